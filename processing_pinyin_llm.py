"""Audio, characters and pinyin -> tensors, and ids -> text."""

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .audio_pinyin_llm import load_waveform
from .configuration_pinyin_llm import num_audio_slots
from .constraint_pinyin_llm import PinyinConstraint, tokenize_characters
from .ngrams_pinyin_llm import FILE_NAME, CharacterNgrams
from .tokenization_pinyin_llm import PinyinTokenizer


AUDIO_TOKEN = "<|audio|>"
PINYIN_TOKEN = "<|pinyin|>"
IGNORED = -100
HOP_LENGTH = 160  # samples per mel frame
STFT_REACH = 200  # half a window: zeros after the clip keep the reflection of its end out of its last frames
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Batches are multiples of half a second long: oneDNN compiles kernels for every new shape (12 ms per clip in bfloat16).
FRAME_STEP = 50


class PinyinLlamaProcessor(ProcessorMixin):
    """Makes the model's inputs and reads its outputs. The same prompt holds speech and pinyin.

    Args:
        feature_extractor: WhisperFeatureExtractor of the audio tower.
        tokenizer: The language model's; the two placeholders are added after its vocabulary.
        prompt: The text before the answer; `{slot}` is where speech or pinyin goes. The paper does not give its prompt,
            so this one is ours.
        projector_stride: As in the model's configuration.
        pinyin_units: The 1417 syllables separated by spaces; by default those of this release.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        prompt: str = "{slot}\n汉字：",
        projector_stride: int = 5,
        pinyin_units: str | None = None,
    ):
        if prompt.count("{slot}") != 1:
            raise ValueError(f"The prompt must hold {{slot}} once, found {prompt!r}.")
        tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN, PINYIN_TOKEN]})
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.prompt, self.projector_stride = prompt, projector_stride
        self.pinyin_tokenizer = PinyinTokenizer(pinyin_units.split()) if pinyin_units else PinyinTokenizer.from_file()
        self.pinyin_units = " ".join(self.pinyin_tokenizer.units)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.pinyin_token_id = tokenizer.convert_tokens_to_ids(PINYIN_TOKEN)
        self.ngrams: CharacterNgrams | None = None
        super().__init__(feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """With the n-grams of the folder, if it has any (training/count_ngrams.py)."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        where["_raise_exceptions_for_missing_entries"] = False
        try:
            path = cached_file(pretrained_model_name_or_path, FILE_NAME, **where)
        except OSError as error:
            message = f"{FILE_NAME} could not be looked up ({error}); beam search is more accurate with it."
            warnings.warn(message, stacklevel=2)
            path = None
        if path:
            processor.ngrams = CharacterNgrams.load(path)
        return processor

    def save_pretrained(self, save_directory, **kwargs):
        path = Path(save_directory, FILE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.ngrams:  # first, because super() may push the folder to the Hub
            self.ngrams.save(path)
        else:
            path.unlink(missing_ok=True)
        return super().save_pretrained(save_directory, **kwargs)

    def __call__(
        self,
        audio=None,
        text: str | list[str] | None = None,
        pinyin: str | list | None = None,
        sampling_rate: int | None = None,
        padding_side: str = "left",
        padding: bool | str = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prompts for speech or for pinyin, with answers for training if `text` is given.

        Args:
            audio: One clip or a list: paths, arrays (samples,) / (channels, samples) with `sampling_rate` in Hz, or the
                clips of `datasets`: decoders, or {"array": ..., "sampling_rate": ...}.
            text: The characters spoken, one string per clip or row: adds them and `labels` (-100 on the prompt).
            pinyin: One row or a list: written syllables ("ni3 hao3", "ni hao", "nǐ hǎo"), or lists of unit ids (a
                tuple of ids for a syllable without tone).
            sampling_rate: Of the arrays.
            padding_side: "left" for generation; "right" for training, where causal attention needs no mask.

        Returns:
            input_ids and attention_mask (B, L); input_features (B, M, F) float32 and
            input_features_mask (B, F), or pinyin_ids (B, N, K) padded with -1; labels (B, L).

        Raises:
            AudioError: Audio that cannot be read.
            PinyinError: A syllable that does not exist.
        """
        if padding not in (True, "longest"):
            raise ValueError(
                f"padding must be True or 'longest', found {padding!r}: rows are padded to the longest one."
            )
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', found {return_tensors!r}.")
        if (audio is None) == (pinyin is None):
            raise ValueError("Expected either audio or pinyin for the one slot of the prompt, found both or neither.")
        data, counts = self._audio(audio, sampling_rate) if pinyin is None else self._pinyin(pinyin)
        token_id = self.audio_token_id if pinyin is None else self.pinyin_token_id
        texts = [text] if isinstance(text, str) else text
        if texts is not None and len(texts) != len(counts):
            raise ValueError(f"Expected one text per row, found {len(texts)} texts for {len(counts)} rows.")
        return BatchFeature({**self.make_prompts(token_id, counts, texts, padding_side), **data})

    @lru_cache(maxsize=4)  # noqa: B019  (a processor lives as long as the process)
    def _prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the slot."""
        before, after = prompt.split("{slot}")
        ids = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        ids += self.tokenizer(before, add_special_tokens=False).input_ids if before else []
        return ids, self.tokenizer(after, add_special_tokens=False).input_ids if after else []

    @lru_cache(maxsize=65536)  # noqa: B019
    def _character_ids(self, character: str) -> tuple[int, ...]:
        return tokenize_characters(self.tokenizer, [character])[0]

    def _answer_ids(self, text: str) -> list[int]:
        """Character by character, as a constraint decodes it."""
        return [token for character in text for token in self._character_ids(character)]

    def make_prompts(
        self, token_id: int, counts: list[int], texts: list[str] | None = None, padding_side: str = "left"
    ) -> dict[str, torch.Tensor]:
        """Prompts with `counts[b]` placeholders each -> input_ids, attention_mask (B, L) and labels."""
        before, after = self._prompt_ids(self.prompt)
        rows = [[*before, *[token_id] * count, *after] for count in counts]
        answers = [[]] * len(rows)
        if texts is not None:
            answers = [[*self._answer_ids(text), self.tokenizer.eos_token_id] for text in texts]
        length = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True))
        input_ids = np.full((len(rows), length), self.tokenizer.pad_token_id)
        attention_mask, labels = np.zeros_like(input_ids), np.full_like(input_ids, IGNORED)
        for b, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            size = len(row) + len(answer)
            start = length - size if padding_side == "left" else 0
            input_ids[b, start : start + size], attention_mask[b, start : start + size] = [*row, *answer], 1
            labels[b, start + len(row) : start + size] = answer
        batch = {"input_ids": input_ids, "attention_mask": attention_mask} | (
            {"labels": labels} if texts is not None else {}
        )
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _pinyin(self, pinyin) -> tuple[dict, list[int]]:
        rows = [pinyin] if isinstance(pinyin, str) else list(pinyin)
        slots = [self.pinyin_tokenizer.encode_syllables(row) if isinstance(row, str) else row for row in rows]
        if not all(map(len, slots)) or not slots:
            found = next((repr(row) for row, own in zip(rows, slots, strict=True) if not len(own)), "no row")
            raise ValueError(f"Expected pinyin like 'ni3 hao3', found {found}. Leave empty rows out.")
        return {"pinyin_ids": pad_pinyin(slots)}, [len(row) for row in slots]

    def _audio(self, audio, sampling_rate) -> tuple[dict, list[int]]:
        single = isinstance(audio, (str, Path, bytes, bytearray, dict)) or getattr(audio, "ndim", 0) > 0
        single = single or hasattr(audio, "get_all_samples")
        clips = [load_waveform(clip, sampling_rate) for clip in ([audio] if single else audio)]
        if not clips:
            raise ValueError("Expected one clip or more, found an empty list.")
        return self.pad_features([self.extract_features(clip) for clip in clips])

    def extract_features(self, waveform: np.ndarray) -> torch.Tensor:
        """(samples,) float32 at 16 kHz -> (M, F) log-mel, F = samples // 160; never padded to 30 s."""
        frames = max(len(waveform) // HOP_LENGTH, 1)
        padded = np.pad(waveform, (0, STFT_REACH + HOP_LENGTH))
        options = {"padding": "do_not_pad", "truncation": False, "return_tensors": "pt"}
        features = self.feature_extractor(padded, sampling_rate=16000, **options)
        return features.input_features[0, :, :frames]

    def pad_features(self, features: list[torch.Tensor]) -> tuple[dict, list[int]]:
        """List of (M, F) -> input_features (B, M, F), input_features_mask (B, F), and the slots of each.

        F is a multiple of `FRAME_STEP`.
        """
        lengths = [clip.shape[-1] for clip in features]
        longest = -(-max(lengths) // FRAME_STEP) * FRAME_STEP
        padded = torch.zeros(len(features), features[0].shape[0], longest)
        mask = torch.zeros(len(features), longest, dtype=torch.long)
        for row, clip in enumerate(features):
            padded[row, :, : lengths[row]] = clip
            mask[row, : lengths[row]] = 1
        counts = [num_audio_slots(length, self.projector_stride) for length in lengths]
        return {"input_features": padded, "input_features_mask": mask}, counts

    def pinyin_constraint(
        self, weight: float = 0.3, floor: float = 1e-4, ngram_weight: float = 0.4
    ) -> PinyinConstraint:
        """For `model.generate(pinyin_constraint=...)`."""
        return self._constraint(weight, floor, self.ngrams, ngram_weight)

    @lru_cache(maxsize=4)  # noqa: B019
    def _constraint(self, *settings) -> PinyinConstraint:
        return PinyinConstraint(self.tokenizer, self.pinyin_tokenizer, *settings)

    def decode_answers(self, sequences: torch.Tensor, prompt_length: int) -> list[str]:
        """(B, L) ids of `generate` -> the text after the prompt of each row."""
        texts = self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
        return [text.strip() for text in texts]


def pad_pinyin(rows: list[list]) -> torch.Tensor:
    """Lists of unit ids, or of tuples of them -> (B, N, K), padded with -1."""
    rows = [[slot if isinstance(slot, (tuple, list)) else (slot,) for slot in row] for row in rows]
    width = max((len(slot) for row in rows for slot in row), default=1)
    padded = np.full((len(rows), max(map(len, rows)), width), -1)
    for b, row in enumerate(rows):
        for n, slot in enumerate(row):
            padded[b, n, : len(slot)] = slot
    return torch.from_numpy(padded)


__all__ = ["PinyinLlamaProcessor"]
