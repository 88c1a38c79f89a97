"""The frozen encoder's output, computed once per clip and kept on disk (float16)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from filelock import FileLock
from tqdm import tqdm

from ..audio_pinyin_llm import SAMPLING_RATE, AudioError, load_waveform, why_no_speech
from ..configuration_pinyin_llm import num_encoder_frames
from ..corpora.manifest import ManifestError
from ..inference.loading import has_fast_bfloat16
from .perturbation import Change


BATCH_SECONDS = 120  # of speech encoded at once, in clips of similar length, so that there is little padding
WRITTEN_AT_ONCE = 50  # clips; the thousand that `datasets` keeps by default may take gigabytes
LONGEST_SECONDS = 30.0
COUNTS = "dropped.json"
FEATURES = Features({"row": Value("int64"), "hidden": List(Value("float16")), "mel_frames": Value("int64")})


def cache_features(rows: Dataset, model, processor, folder: str, changes: dict[str, Change]) -> tuple[Dataset, dict]:
    """Rows of `audio` paths -> the same rows, once per change, with the encoder's output; and counts of dropped clips.

    A part that is on disk already is not computed again: its name contains a fingerprint of encoder and audio. Texts
    are not kept there.

    Args:
        rows: id, audio, text, ...
        model: For its `audio_tower`.
        folder: Where the parts are kept.
        changes: The name of each copy of the clips, and the change that makes it (perturbation.py).

    Returns:
        The rows with `hidden` (T * D float16, flat) and `mel_frames`.

    Raises:
        ManifestError: No clip can be used.
    """
    parts, counts = [], {}
    fingerprint = _fingerprint(rows, model, processor)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, change in changes.items():
        part = Path(folder, f"{fingerprint}_{name}")
        with FileLock(f"{part}.lock"):  # of two runs on the same speech, one encodes and the other waits
            if not part.exists():
                _encode_to_disk(rows, model, processor, change, part)
        encoded = load_from_disk(part)  # the sound only; texts come from the rows, where they may be corrected
        parts.append(concatenate_datasets([rows.select(list(encoded["row"])), encoded.remove_columns("row")], axis=1))
        counted = json.loads((part / COUNTS).read_text(encoding="utf-8"))
        counts |= {f"{reason}_at_{name}": n for reason, n in counted.items()}
    return concatenate_datasets(parts), counts


def _fingerprint(rows: Dataset, model, processor) -> str:
    """A hash of the encoder, of the log-mel settings, and of the files: size and time of change, -1 if one is missing.

    A processor that was saved once has its class noted in the extractor (`auto_map`), which does not affect the sound.
    """
    log_mel = {name: value for name, value in processor.feature_extractor.to_dict().items() if name != "auto_map"}
    digest = hashlib.sha256(json.dumps(log_mel, sort_keys=True).encode())
    for tensor in model.audio_tower.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    for path in map(Path, rows["audio"]):
        found = path.stat() if path.is_file() else None
        size, changed = (found.st_size, found.st_mtime_ns) if found else (-1, -1)
        digest.update(f"{path} {size} {changed}\n".encode())
    return digest.hexdigest()[:16]


def _encode_to_disk(rows: Dataset, model, processor, change: Change, part: Path) -> None:
    """Encode all clips into the folder `part`, batch by batch: memory does not depend on the size of the corpus."""
    counts = {"unreadable": 0, "silent": 0, "too_long": 0}
    partial = part.with_name(part.name + ".partial")
    with TemporaryDirectory(dir=part.parent) as scratch:
        try:
            encoded = Dataset.from_generator(
                lambda: _encode(rows, model, processor, change, counts),
                features=FEATURES,
                cache_dir=scratch,
                writer_batch_size=WRITTEN_AT_ONCE,
                fingerprint=part.name,  # otherwise `datasets` would hash the model
            )
        except ValueError as error:  # of `datasets`, which knows no empty set
            if sum(counts.values()) < len(rows):
                raise
            reasons = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
            found = f"found none in {len(rows)} clips ({reasons}), such as {rows[0]['audio']}"
            raise ManifestError(f"Expected sounds to learn from, {found}.") from error
        encoded.save_to_disk(partial)
    (partial / COUNTS).write_text(json.dumps(counts), encoding="utf-8")
    partial.rename(part)


def _encode(rows: Dataset, model, processor, change: Change, counts: dict[str, int]) -> Iterator[dict]:
    """Every clip that can be used, the shortest first; the others are counted in `counts`."""
    order = np.argsort([seconds or 0.0 for seconds in rows["seconds"]], kind="stable").tolist()
    paths, batch, frames = rows["audio"], [], 0
    for number in tqdm(order, desc=f"encoding, {change}"):
        mel = _load(paths[number], processor, change, counts)
        if mel is None:
            continue
        batch.append((number, mel))
        frames += mel.shape[-1]
        if frames >= 100 * BATCH_SECONDS:
            yield from _encode_batch(batch, model, processor)
            batch, frames = [], 0
    if batch:
        yield from _encode_batch(batch, model, processor)


def _load(path: str, processor, change: Change, counts: dict[str, int]) -> torch.Tensor | None:
    """(M, F) log-mel of a clip; `None`, and a count of the reason, if it cannot be used."""
    try:
        waveform = load_waveform(path)
    except AudioError:
        counts["unreadable"] += 1
        return None
    waveform = change(waveform, Path(path).stem)
    if why_no_speech(waveform):
        counts["silent"] += 1
        return None
    if len(waveform) > LONGEST_SECONDS * SAMPLING_RATE:
        counts["too_long"] += 1
        return None
    return processor.extract_features(waveform)


@torch.no_grad()
def _encode_batch(batch: list[tuple[int, torch.Tensor]], model, processor) -> list[dict]:
    data, _ = processor.pad_features([mel for _, mel in batch])
    device = model.device.type
    with torch.autocast(device, torch.bfloat16, enabled=has_fast_bfloat16(device)):
        hidden = model.audio_tower(
            data["input_features"].to(model.device), data["input_features_mask"].to(model.device)
        )
    return [
        {
            "row": number,
            "hidden": row[: num_encoder_frames(mel.shape[-1])].half().flatten().cpu().numpy(),
            "mel_frames": mel.shape[-1],
        }
        for row, (number, mel) in zip(hidden, batch, strict=True)
    ]


def unpack(row: dict, width: int) -> torch.Tensor:
    """The flat column of one row -> (T, D) float32."""
    return torch.tensor(row["hidden"], dtype=torch.float32).view(-1, width)
