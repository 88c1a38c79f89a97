"""Speech for stage 2: manifests -> clips with cached encoder outputs -> batches, with replayed text if asked for."""

import sys
from operator import not_

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch.nn.utils.rnn import pad_sequence

from ..configuration_pinyin_llm import num_audio_slots, num_encoder_frames
from ..corpora.manifest import ManifestError, read_manifest
from ..scoring.normalization import HAN, han_only, read_aloud
from ..tokenization_pinyin_llm import PinyinError
from .arguments import OtherLetters, SpeechArguments, TextArguments
from .features import cache_features, unpack
from .noise import NoiseArguments, PinyinNoise, row_generator
from .perturbation import changes_of
from .text_data import LETTERS_COUNT, PairCollator, answer_reach, read_pairs


LONGEST_MASK = 10  # encoder frames, 0.2 s
FRAMES_PER_SPAN = 5  # a span is 5.5 frames long on average


def read_speech(
    manifests: list[str], pinyin_tokenizer, other_letters: OtherLetters = "leave_out"
) -> tuple[Dataset, dict]:
    """Manifests -> one dataset with `characters` and their `units`, and counts. The text may also be written pinyin.

    Args:
        other_letters: What happens to clips in whose text something has no unit, such as Latin words: "leave_out" takes
            the rest of the text, "drop" drops the clip. They are counted either way.

    Raises:
        ManifestError: A manifest that cannot be read, or no clip with a text.
    """
    rows = concatenate_datasets([read_manifest(path) for path in manifests])
    rows = rows.map(lambda text: _read_text(text, pinyin_tokenizer), input_columns="text")
    kept = rows.filter(len, input_columns="units")
    counts = {"without_text": len(rows) - len(kept)}
    if len(partial := kept.filter(bool, input_columns="is_partial")):
        counts[LETTERS_COUNT[other_letters]] = len(partial)
        example = f"{partial[0]['text'][:40]!r} in {partial[0]['audio']}"
        done = {
            "leave_out": "the rest of their text is trained on; drop them by --other_letters drop",
            "drop": "dropped",
        }
        found = f"{len(partial):,} of {len(kept):,} clips contain words that pinyin cannot spell, such as {example}"
        print(f"warning: {found}: {done[other_letters]}.", file=sys.stderr)
    if other_letters == "drop":
        kept = kept.filter(not_, input_columns="is_partial")
    if not len(kept):
        found = f"{len(rows)} rows, none with Han characters or toned pinyin" if len(rows) else "no row"
        raise ManifestError(f"{', '.join(manifests)}: expected clips and what is said in them, found {found}.")
    counts = {"clips": len(kept), "seconds": round(sum(kept["seconds"]))} | counts
    return kept.remove_columns("is_partial"), counts


def _read_text(text: str, pinyin_tokenizer) -> dict:
    """The characters of a text, their units, and whether anything that is said in it has none."""
    if not HAN.search(text) and any(map(str.isalpha, text)):
        return {"characters": "", **_read_pinyin(text, pinyin_tokenizer)}  # whose digits are tones, not numbers
    spoken = read_aloud(text)
    characters, units = pinyin_tokenizer.encode_characters(han_only(spoken))
    return {"characters": characters, "units": units, "is_partial": sum(map(str.isalnum, spoken)) > len(units)}


def _read_pinyin(text: str, pinyin_tokenizer) -> dict:
    """The units of a text written in pinyin. Words that are no pinyin, and syllables without a tone, are no labels."""
    try:
        slots, is_pinyin = pinyin_tokenizer.encode_syllables(text), True
    except PinyinError:
        slots, is_pinyin = pinyin_tokenizer.encode_syllables(text, errors="ignore"), False
    units = [slot[0] for slot in slots if len(slot) == 1]
    return {"units": units, "is_partial": not is_pinyin or len(units) < len(slots)}


def speech_groups(arguments: SpeechArguments) -> dict[str, tuple[list[str], dict]]:
    """The manifests of each kind of speech, and the changes that make copies of its clips.

    Raises:
        ValueError: Words where text is to be learned.
    """
    if arguments.learn == "text" and arguments.word_manifests:
        raise ValueError("Words recorded alone teach pinyin: expected no word_manifests with learn text. Drop them.")
    groups = {"sentences": (arguments.manifests, changes_of(arguments.speeds, arguments.rooms))}
    if arguments.word_manifests:
        groups["words"] = (arguments.word_manifests, changes_of([1.0], rooms=0))
    return groups


def read_features(arguments: SpeechArguments, model, processor) -> tuple[Dataset, dict]:
    """The encoder's output for all training speech, and the counts for the record."""
    parts, counts = [], {}
    for name, (manifests, changes) in speech_groups(arguments).items():
        clips, counts[name] = read_speech(manifests, processor.pinyin_tokenizer, arguments.other_letters)
        rows, dropped = cache_features(clips, model, processor, arguments.cache_features, changes)
        counts[name] |= dropped
        parts.append(rows)
    # numpy: as Python floats, which is the default, reading took half of the time (docs/log.md)
    arrays = {"type": "numpy", "columns": ["hidden"], "output_all_columns": True}
    return concatenate_datasets(parts).with_format(**arrays), counts


class SpeechCollator:
    """Rows with cached encoder outputs -> audio_hidden_states, pinyin labels for a bridge, prompts with answers.

    Args:
        learn: "text" or "pinyin".
        mask_time: Share of the frames that is masked.
        replay: A [`Replay`]: the batch also gets as many rows of stage 1.
    """

    def __init__(self, processor, config, learn: str, mask_time: float = 0.0, replay: "Replay | None" = None):
        self.processor, self.learn, self.mask_time, self.epoch = processor, learn, mask_time, 0
        self.replay = replay
        self.width, self.has_bridge = config.audio_config.d_model, config.projector_type == "pinyin_bridge"

    def __call__(self, rows: list[dict]) -> dict:
        hidden = [self._mask(unpack(row, self.width), row["id"]) for row in rows]
        mel_frames = torch.tensor([row["mel_frames"] for row in rows])
        batch = {
            "audio_hidden_states": pad_sequence(hidden, batch_first=True),
            "input_features_mask": (torch.arange(int(mel_frames.max())) < mel_frames[:, None]).long(),
        }
        if self.has_bridge:
            units = [torch.tensor(row["units"]) for row in rows]
            batch["pinyin_labels"] = pad_sequence(units, batch_first=True, padding_value=-100)
        if self.learn == "text":
            counts = num_audio_slots(mel_frames, self.processor.projector_stride).tolist()
            texts = [row["characters"] for row in rows]
            batch |= self.processor.make_prompts(self.processor.audio_token_id, counts, texts)
            batch["logits_to_keep"] = answer_reach(batch["labels"])
        if self.replay:
            batch["replay"] = self.replay(rows, self.epoch)
        return batch

    def _mask(self, hidden: torch.Tensor, clip: str) -> torch.Tensor:
        """(T, D) with spans of up to 0.2 s zeroed, others in each epoch (after SpecAugment, Park et al. 2019)."""
        random, spans = row_generator(self.epoch, clip), int(self.mask_time * len(hidden) / FRAMES_PER_SPAN)
        starts, lengths = random.integers(len(hidden), size=spans), random.integers(1, LONGEST_MASK + 1, spans)
        for start, length in zip(starts, lengths, strict=True):
            hidden[start : start + length] = 0
        return hidden


class Replay:
    """Sentences of stage 1 for a batch of speech, so that the model does not unlearn pinyin."""

    def __init__(self, texts: list[str], processor):
        pinyin_tokenizer = processor.pinyin_tokenizer
        self.pairs, self.counts = read_pairs(TextArguments(texts), pinyin_tokenizer)
        self.collate = PairCollator(processor, PinyinNoise(NoiseArguments(), pinyin_tokenizer))

    def __call__(self, rows: list[dict], epoch: int) -> dict:
        """As many pairs as there are `rows`, drawn by the first clip, so that a resumed run draws the same."""
        drawn = row_generator(epoch, rows[0]["id"]).integers(len(self.pairs), size=len(rows))
        return self.collate([self.pairs[int(number)] for number in drawn])


def blank_features(clip: dict, width: int) -> dict:
    """A clip with zeros for its encoder output, as long as its manifest says (1 s where it does not say)."""
    frames = round(100 * (clip["seconds"] or 1))
    return clip | {"mel_frames": frames, "hidden": np.zeros(num_encoder_frames(frames) * width, np.float16)}
