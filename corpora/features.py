"""The frozen encoder's output, computed once a clip and kept on disk (float16)."""

import hashlib
import json
from pathlib import Path

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from tqdm import tqdm

from pinyin_llm.audio_pinyin_llm import AudioError, load_waveform, why_no_speech


BATCH_SECONDS = 120  # of speech encoded at once: clips of like length, so little is padding
LONGEST_SECONDS = 30.0
COUNTS = "dropped.json"


def cache_features(rows: Dataset, model, processor, folder: str, speeds: list[float]) -> tuple[Dataset, dict]:
    """Rows of `audio` paths -> the same rows, once a speed, with the encoder's output; and counts of what was dropped.

    A part that is on disk already is not computed again: its name holds a fingerprint of encoder and audio. Texts are
    not kept there.

    Args:
        rows: id, audio, text, ...
        model: For its `audio_tower`.
        folder: Where the parts are kept.
        speeds: 0.9 plays a clip slower and lower, 1.1 faster and higher: more voices from few (Ko et al. 2015).

    Returns:
        The rows with `hidden` (T * D float16, flat) and `mel_frames`.
    """
    parts, counts = [], {}
    fingerprint = _fingerprint(rows, model, processor)
    for speed in speeds:
        place = Path(folder, f"{fingerprint}_{speed}")
        if not place.exists():
            encoded, counted = _encode(rows, model, processor, speed)
            partial = place.with_name(place.name + ".partial")
            encoded.save_to_disk(partial)
            (partial / COUNTS).write_text(json.dumps(counted), encoding="utf-8")
            partial.rename(place)
        encoded = load_from_disk(place)  # what was heard; what was said comes from the rows, which may be mended
        parts.append(concatenate_datasets([rows.select(list(encoded["row"])), encoded.remove_columns("row")], axis=1))
        counted = json.loads((place / COUNTS).read_text(encoding="utf-8"))
        counts |= {f"{reason}_at_{speed}": n for reason, n in counted.items()}
    return concatenate_datasets(parts), counts


def _fingerprint(rows: Dataset, model, processor) -> str:
    """Of the encoder, of how sound becomes log-mel, and of the files; -1 stands for one that is missing."""
    digest = hashlib.sha256(processor.feature_extractor.to_json_string().encode())
    for tensor in model.audio_tower.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    for path in rows["audio"]:
        digest.update(f"{path} {Path(path).stat().st_size if Path(path).is_file() else -1}\n".encode())
    return digest.hexdigest()[:16]


def _load(rows: Dataset, processor, speed: float) -> tuple[list[tuple[int, torch.Tensor]], dict]:
    """(row number, (M, F) log-mel) of every clip that can be used, shortest first."""
    import soxr

    clips, counts = [], {"unreadable": 0, "silent": 0, "too_long": 0}
    for number, path in enumerate(tqdm(rows["audio"], desc=f"reading at {speed}")):
        try:
            waveform = load_waveform(path)
        except AudioError:
            counts["unreadable"] += 1
            continue
        if speed != 1.0:
            waveform = soxr.resample(waveform, speed * 16000, 16000)
        if why_no_speech(waveform):
            counts["silent"] += 1
        elif len(waveform) > LONGEST_SECONDS * 16000:
            counts["too_long"] += 1
        else:
            clips.append((number, processor.extract_features(waveform)))
    return sorted(clips, key=lambda clip: clip[1].shape[-1]), counts


@torch.no_grad()
def _encode(rows: Dataset, model, processor, speed: float) -> tuple[Dataset, dict]:
    clips, counts = _load(rows, processor, speed)
    columns = {"row": [number for number, _ in clips], "hidden": [], "mel_frames": []}
    start = 0
    with tqdm(total=len(clips), desc=f"encoding at {speed}") as progress:
        while start < len(clips):
            size = max(1, int(BATCH_SECONDS * 100 / clips[min(start + 32, len(clips) - 1)][1].shape[-1]))
            batch = [mel for _, mel in clips[start : start + size]]
            data, _ = processor.pad_features(batch)
            with torch.autocast(model.device.type, torch.bfloat16):
                hidden = model.audio_tower(
                    data["input_features"].to(model.device), data["input_features_mask"].to(model.device)
                )
            for row, mel in zip(hidden.cpu(), batch, strict=True):
                frames = (mel.shape[-1] + 1) // 2
                columns["hidden"].append(row[:frames].half().flatten().numpy())
                columns["mel_frames"].append(mel.shape[-1])
            start += len(batch)
            progress.update(len(batch))
    features = Features({"row": Value("int64"), "hidden": List(Value("float16")), "mel_frames": Value("int64")})
    return Dataset.from_dict(columns, features=features), counts


def unpack(row: dict, width: int) -> torch.Tensor:
    """The flat column of one row -> (T, D) float32."""
    return torch.tensor(row["hidden"], dtype=torch.float32).view(-1, width)
