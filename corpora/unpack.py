"""Downloaded archives, which are not trusted: an archive is checked completely before any of it is written."""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path, PureWindowsPath


SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
LARGEST_RATIO = 20  # speech shrinks to a half, text to a fifth; bombs shrink a thousandfold
ALWAYS_ALLOWED = 64 * 2**20  # bytes: a small archive of silence is not a bomb
HEADER = 512  # least bytes counted per member, so that a flood of empty ones is noticed
# RuntimeError: a zip with a password, or of an unknown kind
DAMAGES = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)


class ArchiveError(ValueError):
    """An archive that is damaged or not to be trusted; the message names it, what was found and what to do."""


def unpack(archives: list[Path], num_proc: int = 1) -> None:
    """Unpack each archive beside itself, `num_proc` at once.

    An archive is unpacked into a hidden folder first, and then renamed into place folder by folder: a folder that
    was not there before appears whole or not at all. An interrupted unpacking starts again.

    Raises:
        ArchiveError: A member with an absolute path or `..`, a link or a device; an archive that would become more
            than 20 times as large (64 MiB are always allowed), or larger than the disk; a damaged one. Nothing of it
            is written.
    """
    from tqdm import tqdm

    with ThreadPool(num_proc) as pool:  # threads: zlib works without Python's lock
        named = tqdm(archives, desc="unpacking", disable=None)
        for archive, folder in zip(named, pool.imap(_unpack_apart, archives), strict=True):
            # one after the other: many archives may contain parts of the same folder
            _move_into(folder, archive.parent)
            shutil.rmtree(folder)


def _unpack_apart(archive: Path) -> Path:
    """The hidden folder beside `archive` with everything in it."""
    folder = archive.with_name(f".{archive.name}.partial")
    try:
        _check(archive)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")  # without owners and odd permissions
    except DAMAGES as error:
        raise ArchiveError(f"{archive}: is damaged or cut off ({error}). Fetch it again.") from error
    return folder


def _check(archive: Path) -> None:
    """Raise ArchiveError unless every member is a plain file or folder that stays inside, and all are small enough."""
    free = shutil.disk_usage(archive.parent).free
    largest = max(ALWAYS_ALLOWED, LARGEST_RATIO * archive.stat().st_size)
    total = 0
    for name, kind, size in _zip_members(archive) if archive.suffix == ".zip" else _tar_members(archive):
        path = PureWindowsPath(name)  # knows a/b, a\b and C:
        if path.anchor or ".." in path.parts:
            raise ArchiveError(f"{archive}: {name!r} leads outside the folder. Do not trust this archive.")
        if kind not in ("file", "folder"):
            raise ArchiveError(f"{archive}: {name!r} is a {kind}, not a file or folder. Do not trust this archive.")
        total += HEADER + size
        if total > largest:
            found = f"{archive.stat().st_size:,} bytes become more than {largest:,}"
            raise ArchiveError(f"{archive}: {found}. This looks like a bomb; unpack it by hand if you trust it.")
        if total > free:
            raise ArchiveError(f"{archive}: needs more than the {free:,} bytes that are free. Make room.")


def _tar_members(archive: Path) -> Iterator[tuple[str, str, int]]:
    """(name, kind, size) of each member, read as far as needed."""
    with tarfile.open(archive) as opened:
        for member in opened:
            kind = "link or device"
            if member.isdir():
                kind = "folder"
            elif member.issparse():
                kind = "sparse file"
            elif member.isfile():
                kind = "file"
            yield member.name, kind, member.size


def _zip_members(archive: Path) -> Iterator[tuple[str, str, int]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            mode = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on Windows
            plain = "file" if mode in (0, stat.S_IFREG) else "link or device"
            yield member.filename, "folder" if member.is_dir() else plain, member.file_size


def _move_into(source: Path, target: Path) -> None:
    """Move what `source` holds into `target`; folders that both have are merged."""
    for entry in source.iterdir():
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move_into(entry, place)
        else:
            entry.replace(place)
