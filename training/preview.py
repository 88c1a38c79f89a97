"""What `--dry_run` prints: the estimate of a run, and two rows with the learned tokens in [brackets]."""

import sys
from itertools import groupby, islice
from pathlib import Path

import torch

from ..corpora.manifest import ManifestError
from ..scoring.cer import name_some
from .arguments import ModelArguments, SpeechArguments
from .estimate import RowSize, build_on_meta, estimate
from .setup import train_stage_1, train_stage_2
from .speech_data import SpeechCollator, blank_features, read_speech, speech_groups


def preview_stage_1(config, processor, pairs, collator, arguments: ModelArguments, settings) -> None:
    """Print the estimate, for rows of median and of greatest length, and two rows."""
    model = train_stage_1(build_on_meta(config), arguments)
    lengths = pairs["length"][:]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    typical, longest = (RowSize.of(collator([pairs[number]]), config) for number in (order[len(order) // 2], order[-1]))
    print(estimate(model, config, arguments, settings, (typical, longest), len(pairs)))
    print(show_rows(collator(list(islice(pairs, 2))), processor))


def preview_stage_2(config, processor, arguments: ModelArguments, speech: SpeechArguments, settings) -> None:
    """Print the counts, the estimate for clips of median and of greatest length, and two rows; nothing is encoded.

    Raises:
        ManifestError: A manifest that cannot be read, or none of its sounds is there.
    """
    model = train_stage_2(build_on_meta(config), arguments, speech)
    collator, counts, rows = SpeechCollator(processor, config, speech.learn), {}, []
    examples, seconds = 0, 0.0
    for name, (manifests, changes) in speech_groups(speech).items():
        clips, counts[name] = read_speech(manifests, processor.pinyin_tokenizer, speech.other_letters)
        rows += list(clips)
        examples += len(clips) * len(changes)
        seconds += sum(clips["seconds"]) * sum(1 / change.speed for change in changes.values())
    check_sounds([clip["audio"] for clip in rows])
    by_length = sorted(rows, key=lambda clip: clip["seconds"])
    chosen = [*rows[:2], by_length[len(rows) // 2], by_length[-1]]
    *batches, typical, longest = (collator([blank_features(row, config.audio_config.d_model)]) for row in chosen)
    sizes = (RowSize.of(typical, config), RowSize.of(longest, config))
    rows_per_example = 2 if speech.replay_texts else 1
    print(counts)
    print(estimate(model, config, arguments, settings, sizes, examples, seconds, rows_per_example))
    for batch in batches:
        print(show_rows(batch, processor))


def check_sounds(files: list[str]) -> None:
    """Say which sounds a run would miss.

    Raises:
        ManifestError: All of them.
    """
    missing = [file for file in files if not Path(file).is_file()]
    if len(missing) == len(files):
        raise ManifestError(
            f"Expected the sounds of the manifests, found none of {len(files):,}: {name_some(missing)}."
        )
    if missing:
        print(f"{len(missing):,} of {len(files):,} sounds are missing: {name_some(missing)}.", file=sys.stderr)


def show_rows(batch: dict[str, torch.Tensor], processor) -> str:
    """The rows of a batch as text: what fills the slots, and in [brackets] the tokens that the loss counts."""
    units = processor.pinyin_tokenizer.units
    if "input_ids" not in batch:  # a bridge that learns pinyin alone
        return "\n".join(" ".join(f"[{units[i]}]" for i in row if i >= 0) for row in batch["pinyin_labels"].tolist())
    return "\n".join(_show_row(batch, row, processor) for row in range(len(batch["input_ids"])))


def _show_row(batch: dict[str, torch.Tensor], row: int, processor) -> str:
    ids, is_learned = batch["input_ids"][row], batch["labels"][row] != -100
    start = int((batch["attention_mask"][row] == 0).sum()) if "attention_mask" in batch else 0
    own = slice(start, int(is_learned.nonzero().max()) + 1)  # the rest is padding
    ids, is_learned = ids[own].tolist(), is_learned[own].tolist()
    pieces = processor.tokenizer.convert_ids_to_tokens(ids)
    shown = [f"[{piece}]" if learned else piece for piece, learned in zip(pieces, is_learned, strict=True)]
    if "pinyin_ids" in batch:
        slots = iter(batch["pinyin_ids"][row].tolist())  # with padding at the end
        for index, token in enumerate(ids):
            if token == processor.pinyin_token_id:
                shown[index] = _slot_name(next(slots), processor.pinyin_tokenizer)
    words = []
    for piece, run in groupby(shown):
        times = len(list(run))
        words.append(f"{piece} x {times}" if piece.startswith("<|") else " ".join([piece] * times))
    return " ".join(words)


def _slot_name(slot: list[int], tokenizer) -> str:
    """Shown as "hao3"; as "hao" for all its tones; as "hao3+hao4" for a blend."""
    ids = sorted({i for i in slot if i >= 0})
    base = tokenizer.units[ids[0]][:-1]
    if len(ids) > 1 and tuple(ids) == tokenizer.bases[base]:
        return base
    return "+".join(tokenizer.units[i] for i in ids)
