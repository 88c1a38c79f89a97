"""A model folder -> the Hub: assembled, tested in a fresh process, uploaded as one commit, downloaded and compared."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from ..training.records import origin_folder, records_of
from .model_card import SAMPLES, write_card


PACKAGE = Path(__file__).parents[1]
HUB = Path(__file__).parent / "hub"
WEIGHTS = ("config.json", "*_config.json", "*.safetensors", "*.index.json", "adapter_*/*")
TOKENIZER = ("tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja")
ORIGIN = ("run.json", "run_*.json", "results.json", "card.yaml", "NOTICE")
KEPT = (*WEIGHTS, *TOKENIZER, *ORIGIN)
OURS = (*KEPT, "*_pinyin_llm.py", "samples/*")  # files of an earlier publication that this one may remove
TEST_SCRIPT = """
import sys
sys.modules["pinyin_llm"] = None  # as where it is not installed
from transformers import pipeline
from transformers.utils import logging

logging.disable_progress_bar()
print(pipeline("automatic-speech-recognition", model=sys.argv[1], trust_remote_code=True)(sys.argv[2])["text"])
"""


class PublishError(ValueError):
    """A folder that cannot be published as requested, or an upload that failed; the Hub is unchanged."""


def publish(
    folder: str,
    repo_id: str,
    merge: bool = False,
    delta: bool = False,
    private: bool = True,
    dry_run: bool = False,
) -> Iterator[str]:
    """Publish a model; yields what it does, line by line.

    Args:
        folder: A model, whole or a delta, as training writes it.
        repo_id: "user/name".
        merge: Of a delta, publish the whole model.
        delta: Refuse anything but a delta.
        private: A new repository is private, and a public one is refused.
        dry_run: Assemble, test and list; upload nothing.

    Raises:
        PublishError: What is wrong with the folder, or what failed; the Hub is unchanged.
    """
    _check_names(folder, repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        assembled = Path(scratch, "model")
        assemble(folder, assembled, repo_id, merge, delta)
        files = sorted(path.relative_to(assembled).as_posix() for path in assembled.rglob("*") if path.is_file())
        yield from (f"{(assembled / name).stat().st_size:>14,}  {name}" for name in files)
        yield f"tested in a fresh process: {SAMPLES[0]} -> {check_folder(assembled)}"
        if dry_run:
            yield "dry run: nothing was uploaded"
            return
        commit, removed = upload(assembled, files, repo_id, private)
        yield from (f"removed from an earlier publication: {name}" for name in removed)
        yield f"uploaded as {commit.commit_url}"
        verify(assembled, files, repo_id, commit.oid)
        yield f"downloaded again: all {len(files)} files are identical"


def _check_names(folder: str, repo_id: str) -> None:
    """Refuse bad names before anything is done."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not Path(folder, "config.json").is_file():
        raise PublishError(f"{folder}: expected the folder of a model, found no config.json in it.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id}: {error}") from error
    if repo_id.count("/") != 1:
        raise PublishError(f"{repo_id}: expected user/name.")


def assemble(folder: str, assembled: Path, repo_id: str, merge: bool = False, delta: bool = False) -> None:
    """Everything that goes to the Hub: the model, the code of this release, handler, samples and model card.

    Raises:
        PublishError: Not a model, not the kind of model requested, or one whose bases nobody else can fetch.
    """
    from .. import PinyinLlamaConfig

    bases = PinyinLlamaConfig.from_pretrained(folder).delta
    if (merge or delta) and not bases:
        raise PublishError(
            f"{folder} is a whole model; --merge and --delta are for folders that were trained with --save delta."
        )
    assembled.mkdir(parents=True)
    for root in {Path(folder), origin_folder(Path(folder))}:
        for path in {path for pattern in KEPT for path in root.glob(pattern)}:
            if path.is_file():
                (assembled / path.relative_to(root)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, assembled / path.relative_to(root))
    for path in records_of(assembled):
        record = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(without_folders(record), ensure_ascii=False, indent=2) + "\n", "utf-8")
    if merge:
        _merge(folder, assembled)
    elif bases:
        _refuse_local(bases, folder)
    for path in (*PACKAGE.glob("*_pinyin_llm.py"), PACKAGE / "pinyin_units.txt", *HUB.glob("[hr]*.*")):
        shutil.copyfile(path, assembled / path.name)
    (assembled / "samples").mkdir()
    for name in SAMPLES:
        shutil.copyfile(PACKAGE / "samples" / name, assembled / "samples" / name)
    write_card(assembled, repo_id)


def without_folders(record):
    """The same with absolute paths cut to their last name, so that nobody's disk layout is published.

    >>> without_folders({"manifests": ["/home/me/secret/train.tsv"], "command": "train_asr.py --output_dir /out/run 7"})
    {'manifests': ['train.tsv'], 'command': 'train_asr.py --output_dir run 7'}
    """
    if isinstance(record, dict):
        return {name: without_folders(value) for name, value in record.items()}
    if isinstance(record, list):
        return list(map(without_folders, record))
    return re.sub(r"(?<!\S)/\S*/", "", record) if isinstance(record, str) else record


def _merge(folder: str, assembled: Path) -> None:
    """Replace the delta by the whole model."""
    from .. import PinyinLlamaForASR

    for adapter in assembled.glob("adapter_*"):
        shutil.rmtree(adapter)
    model = PinyinLlamaForASR.from_pretrained(folder)
    model.adapters, model.delta = [], None
    model.save_pretrained(assembled)


def _refuse_local(bases: dict, folder: str) -> None:
    for part in ("audio_tower", "language_model"):
        if Path(bases[part]["name"]).exists() or not bases[part]["revision"]:
            raise PublishError(
                f"{folder} is based on {bases[part]['name']}, which is not a model on the Hub. Publish it with "
                f"--merge, or train with --{part} HUB_ID."
            )


def check_folder(assembled: Path) -> str:
    """The text of a sample, transcribed by the folder in a fresh process in an empty directory with an empty cache.

    Raises:
        PublishError: It cannot be loaded or gives no text.
    """
    with tempfile.TemporaryDirectory() as empty:
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                TEST_SCRIPT,
                str(assembled.resolve()),
                str((assembled / "samples" / SAMPLES[0]).resolve()),
            ],
            cwd=empty,
            env=os.environ | {"HF_MODULES_CACHE": str(Path(empty, "modules"))},
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        raise PublishError(
            f"The assembled folder does not work where this package is not installed:\n{run.stderr[-2000:]}"
        )
    return run.stdout.strip()


def upload(assembled: Path, files: list[str], repo_id: str, private: bool) -> tuple:
    """Upload these files as one commit on the current state; returns the commit and the files that it removed.

    Files that do not belong to a PinyinLLM model stay.

    Raises:
        PublishError: The Hub refused the commit, or the connection broke; a commit is applied whole or not at all, and
            a repository that was created for it is deleted again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, created = HfApi(), False
    try:
        if not api.repo_exists(repo_id):
            api.create_repo(repo_id, private=private)
            created = True
        there = api.model_info(repo_id)
        _check_target(repo_id, there, private)
        gone = sorted(filter(_is_ours, _published(there) - {*files}))
        operations = [CommitOperationAdd(name, str(assembled / name)) for name in files]
        operations += [CommitOperationDelete(name) for name in gone]
        message = f"Publish {repo_id}"
        return api.create_commit(repo_id, operations, commit_message=message, parent_commit=there.sha), gone
    except PublishError:
        raise
    except Exception as error:  # from the Hub, the network, or whichever client huggingface_hub uses
        if created:
            api.delete_repo(repo_id, missing_ok=True)
        raise PublishError(
            f"{repo_id}: not uploaded ({error}). The Hub is unchanged; run the command again."
        ) from error


def _is_ours(name: str) -> bool:
    """`*` does not cross folders, as in `glob`: results.json is ours, eval/results.json is not."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in OURS)


def _published(there) -> set[str]:
    return {sibling.rfilename for sibling in there.siblings}


def _check_target(repo_id: str, there, private: bool) -> None:
    """Refuse a public repository that was not requested, and one that holds something else."""
    if private and not there.private:
        raise PublishError(f"{repo_id} is public. Add --public, or choose another name.")
    if "config.json" in _published(there) and "modeling_pinyin_llm.py" not in _published(there):
        raise PublishError(f"{repo_id} holds a model of another kind. Choose another name.")


def verify(assembled: Path, files: list[str], repo_id: str, revision: str) -> None:
    """Compare what the Hub now serves with what was sent.

    Raises:
        PublishError: The files that differ.
    """
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory() as cache:
        arrived = snapshot_download(repo_id, revision=revision, cache_dir=cache)
        wrong = [name for name in files if _digest(Path(arrived, name)) != _digest(assembled / name)]
    if wrong:
        raise PublishError(f"{repo_id}, {revision}: {', '.join(wrong)} differ after the upload. Publish again.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
