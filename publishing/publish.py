"""A model folder -> the Hub: assembled, tried in a process of its own, uploaded as one commit, downloaded and compared."""

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

from ..training.trainer import origin_folder, records_of
from .model_card import SAMPLES, write_card


PACKAGE = Path(__file__).parents[1]
HUB = Path(__file__).parent / "hub"
WEIGHTS = ("config.json", "*_config.json", "*.safetensors", "*.index.json", "adapter_*/*")
TOKENIZER = ("tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja")
ORIGIN = ("run.json", "run_*.json", "results.json", "card.yaml", "NOTICE")
KEPT = (*WEIGHTS, *TOKENIZER, *ORIGIN)
OURS = (*KEPT, "*_pinyin_llm.py", "samples/*")  # what an earlier publication may have left and this one has no more
TRY_OUT = """
import sys
sys.modules["pinyin_llm"] = None  # as where it is not installed
from transformers import pipeline
from transformers.utils import logging

logging.disable_progress_bar()
print(pipeline("automatic-speech-recognition", model=sys.argv[1], trust_remote_code=True)(sys.argv[2])["text"])
"""


class PublishError(ValueError):
    """A folder that cannot be published as it was asked for, or an upload that did not arrive; the Hub is as it was."""


def publish(
    folder: str,
    repo_id: str,
    merge: bool = False,
    delta: bool = False,
    private: bool = True,
    dry_run: bool = False,
) -> Iterator[str]:
    """Publish a model; says what it does, line by line.

    Args:
        folder: A model, whole or a delta, as training leaves it.
        repo_id: "user/name".
        merge: Of a delta, publish the whole model.
        delta: Refuse anything but a delta.
        private: Of a new repository; a public one is never used unless it is asked for.
        dry_run: Assemble, try out and list; upload nothing.

    Raises:
        PublishError: What is wrong with the folder, or went wrong on the way; nothing was changed on the Hub.
    """
    _check_names(folder, repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "model")
        assemble(folder, place, repo_id, merge, delta)
        files = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
        yield from (f"{(place / name).stat().st_size:>14,}  {name}" for name in files)
        yield f"tried in a process of its own: {SAMPLES[0]} -> {try_out(place)}"
        if dry_run:
            yield "dry run: nothing was uploaded"
            return
        commit, removed = upload(place, files, repo_id, private)
        yield from (f"removed, of an earlier publication: {name}" for name in removed)
        yield f"uploaded as {commit.commit_url}"
        verify(place, files, repo_id, commit.oid)
        yield f"downloaded again: all {len(files)} files are the same"


def _check_names(folder: str, repo_id: str) -> None:
    """What can be refused before anything is done."""
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


def assemble(folder: str, place: Path, repo_id: str, merge: bool = False, delta: bool = False) -> None:
    """Everything that goes to the Hub: the model, the code of this release, handler, samples and model card.

    Raises:
        PublishError: No model, not the kind of model that was asked for, or one whose bases nobody else can fetch.
    """
    from .. import PinyinLlamaConfig

    bases = PinyinLlamaConfig.from_pretrained(folder).delta
    if (merge or delta) and not bases:
        raise PublishError(
            f"{folder} is a whole model; --merge and --delta are for folders that were trained with --save delta."
        )
    place.mkdir(parents=True)
    for root in {Path(folder), origin_folder(Path(folder))}:
        for path in {path for pattern in KEPT for path in root.glob(pattern)}:
            if path.is_file():
                (place / path.relative_to(root)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place / path.relative_to(root))
    for path in records_of(place):
        record = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(without_folders(record), ensure_ascii=False, indent=2) + "\n", "utf-8")
    if merge:
        _merge(folder, place)
    elif bases:
        _refuse_local(bases, folder)
    for path in (*PACKAGE.glob("*_pinyin_llm.py"), PACKAGE / "pinyin_units.txt", *HUB.glob("[hr]*.*")):
        shutil.copyfile(path, place / path.name)
    (place / "samples").mkdir()
    for name in SAMPLES:
        shutil.copyfile(PACKAGE / "samples" / name, place / "samples" / name)
    write_card(place, repo_id)


def without_folders(record):
    """The same with the last name alone of whatever is a whole path: how somebody's disk is laid out is nobody's business.

    >>> without_folders({"manifests": ["/home/me/secret/train.tsv"], "command": "train_asr.py --output_dir /out/run 7"})
    {'manifests': ['train.tsv'], 'command': 'train_asr.py --output_dir run 7'}
    """
    if isinstance(record, dict):
        return {name: without_folders(value) for name, value in record.items()}
    if isinstance(record, list):
        return list(map(without_folders, record))
    return re.sub(r"(?<!\S)/\S*/", "", record) if isinstance(record, str) else record


def _merge(folder: str, place: Path) -> None:
    """The whole model in place of the delta."""
    from .. import PinyinLlamaForASR

    for adapter in place.glob("adapter_*"):
        shutil.rmtree(adapter)
    model = PinyinLlamaForASR.from_pretrained(folder)
    model.adapters, model.delta = [], None
    model.save_pretrained(place)


def _refuse_local(bases: dict, folder: str) -> None:
    for part in ("audio_tower", "language_model"):
        if Path(bases[part]["name"]).exists() or not bases[part]["revision"]:
            raise PublishError(
                f"{folder} lies on {bases[part]['name']}, which is no model of the Hub. Publish it with --merge, or train "
                f"with --{part} HUB_ID."
            )


def try_out(place: Path) -> str:
    """What the folder writes for a sample, in a fresh process in an empty directory, with no code cached.

    Raises:
        PublishError: It does not load or does not write.
    """
    with tempfile.TemporaryDirectory() as empty:
        run = subprocess.run(
            [sys.executable, "-c", TRY_OUT, str(place.resolve()), str((place / "samples" / SAMPLES[0]).resolve())],
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


def upload(place: Path, files: list[str], repo_id: str, private: bool) -> tuple:
    """These files as one commit on the state that was just looked at; the commit, and what it removed.

    Files that are none of a PinyinLLM model's stay.

    Raises:
        PublishError: The Hub refused or broke off; it takes a commit whole or not at all, and a repository that was made
            for it is removed again.
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
        operations = [CommitOperationAdd(name, str(place / name)) for name in files]
        operations += [CommitOperationDelete(name) for name in gone]
        message = f"Publish {repo_id}"
        return api.create_commit(repo_id, operations, commit_message=message, parent_commit=there.sha), gone
    except PublishError:
        raise
    except Exception as error:  # of the Hub, of the network, of the client that huggingface_hub has at the moment
        if created:
            api.delete_repo(repo_id, missing_ok=True)
        raise PublishError(
            f"{repo_id}: not uploaded ({error}). The Hub is as it was; run the command again."
        ) from error


def _is_ours(name: str) -> bool:
    """`*` is of one folder, as in `glob`: results.json is ours, eval/results.json is not."""
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in OURS)


def _published(there) -> set[str]:
    return {sibling.rfilename for sibling in there.siblings}


def _check_target(repo_id: str, there, private: bool) -> None:
    """A public repository that was not asked for, and one that holds something else, are left alone."""
    if private and not there.private:
        raise PublishError(f"{repo_id} is public. Add --public, or choose another name.")
    if "config.json" in _published(there) and "modeling_pinyin_llm.py" not in _published(there):
        raise PublishError(f"{repo_id} holds a model of another kind. Choose another name.")


def verify(place: Path, files: list[str], repo_id: str, revision: str) -> None:
    """Compare what the Hub now gives with what was sent.

    Raises:
        PublishError: The files that differ.
    """
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory() as cache:
        arrived = snapshot_download(repo_id, revision=revision, cache_dir=cache)
        wrong = [name for name in files if _digest(Path(arrived, name)) != _digest(place / name)]
    if wrong:
        raise PublishError(f"{repo_id}, {revision}: {', '.join(wrong)} arrived changed. Publish again.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
