"""Audio, characters and pinyin -> tensors, and ids -> text."""

import json
import warnings
from functools import lru_cache
from pathlib import Path
from string import Template

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import CONFIG_NAME, cached_file

from .audio_pinyin_llm import SAMPLING_RATE, load_waveform
from .configuration_pinyin_llm import PinyinLlamaConfig, naming_faults, num_audio_slots
from .constraint_pinyin_llm import NGRAM_WEIGHT, SOUND_WEIGHT, PinyinConstraint, tokenize_characters
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
LANGUAGES = ("zh", "cmn", "chinese", "mandarin", "中文")
# One user message with one audio entry -> the prompt, which is fixed: the model was trained on no other.
CHAT_TEMPLATE = """\
{%- set content = messages[0].content -%}
{%- if messages | length != 1 or content is string or content | map(attribute="type") | join(" ") != "audio" -%}
  {{- raise_exception("Expected one user message with one audio entry. The prompt is fixed: leave out text.") -}}
{%- endif -%}
{{- bos_token -}} {{- $before -}} $audio {{- $after -}}
"""


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
        # Always made from the prompt: a folder may hold the chat template of the language model that it started from.
        super().__init__(feature_extractor, tokenizer, chat_template=make_chat_template(prompt))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """With the n-grams of the folder, if it has any (training/count_ngrams.py).

        Raises:
            ValueError: A file cannot be read, or the model's configuration in the same folder has other numbers.
        """
        with naming_faults(str(pretrained_model_name_or_path)):
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        processor._check_config_of(pretrained_model_name_or_path, where)
        where["_raise_exceptions_for_missing_entries"] = False
        try:
            path = cached_file(pretrained_model_name_or_path, FILE_NAME, **where)
        except OSError as error:
            message = f"{FILE_NAME} could not be looked up ({error}); beam search is more accurate with it."
            warnings.warn(message, stacklevel=2)
            path = None
        if path:
            with naming_faults(str(path)):
                processor.ngrams = CharacterNgrams.load(path)
        return processor

    def _check_config_of(self, folder, where: dict) -> None:
        """Refuse a folder whose config.json has other numbers; a processor may also lie in a folder of its own."""
        quiet = dict.fromkeys(("missing_entries", "connection_errors", "gated_repo"), False)
        if cached_file(
            folder, CONFIG_NAME, **where, **{f"_raise_exceptions_for_{why}": on for why, on in quiet.items()}
        ):
            try:
                self.check_config(PinyinLlamaConfig.from_pretrained(folder, **where))
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from error

    def check_config(self, config: PinyinLlamaConfig) -> None:
        """Refuse a model that this processor does not fit.

        Raises:
            ValueError: Names both values.
        """
        tokens = len(self.tokenizer) - len({AUDIO_TOKEN, PINYIN_TOKEN})
        if tokens > config.vocab_size:
            found = f"The tokenizer has {tokens} tokens, but the language model {config.vocab_size}"
            raise ValueError(f"{found}. It is another model's: restore tokenizer.json.")
        own = {name: getattr(self, name) for name in ("audio_token_id", "pinyin_token_id", "projector_stride")}
        theirs = {name: getattr(config, name) for name in own}
        own["mel bins"], theirs["mel bins"] = self.feature_extractor.feature_size, config.audio_config.num_mel_bins
        if wrong := [f"{name}: {own[name]} and {theirs[name]}" for name in own if own[name] != theirs[name]]:
            found = "; ".join(wrong)
            raise ValueError(f"The processor and config.json differ in {found}. Take both from one model.")

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
            audio: One clip or a list: paths, URLs, arrays (samples,) / (channels, samples) with `sampling_rate` in Hz,
                or the clips of `datasets`: decoders, or {"array": ..., "sampling_rate": ...}.
            text: The characters spoken, one string per clip or row: adds them and `labels` (-100 on the prompt).
                Strings with a placeholder are prompts instead, as `apply_chat_template` writes them.
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
        token, token_id = (AUDIO_TOKEN, self.audio_token_id) if pinyin is None else (PINYIN_TOKEN, self.pinyin_token_id)
        texts = [text] if isinstance(text, str) else text
        if texts is not None and len(texts) != len(counts):
            raise ValueError(f"Expected one text per row, found {len(texts)} texts for {len(counts)} rows.")
        prompts = None
        if texts is not None and any(token in text for text in texts):
            prompts, texts = [self._read_prompt(text, token) for text in texts], None
        return BatchFeature({**self.make_prompts(token_id, counts, texts, padding_side, prompts), **data})

    def apply_transcription_request(
        self,
        audio,
        language: str | None = None,
        prompt: None = None,
        sampling_rate: int = SAMPLING_RATE,
        tokenize: bool = True,
        **kwargs,
    ) -> BatchFeature | list[str]:
        """Inputs that transcribe speech of up to 30 s, as the other speech models of transformers make them.

            inputs = processor.apply_transcription_request(audio="clip.wav").to(model.device)
            outputs = model.generate(**inputs)
            texts = processor.batch_decode(outputs[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)

        This decodes greedily. `generate(**inputs, pinyin_constraint=processor.pinyin_constraint(), num_beams=5)` is as
        accurate as the pipeline: 8.6 % of the characters wrong rather than 16.5 % on 40 clips of an unknown voice.
        Inputs are tensors only, so they do not carry the constraint; without beams it would not help (16.9 %).

        Args:
            audio: One clip or a list, as for a call of the processor.
            language: Mandarin is the only one: "zh", "Chinese", or `None`.
            prompt: Must be `None`, as the prompt is fixed.
            sampling_rate: Of arrays, in Hz.
            tokenize: `False` returns the prompts, which with the audio give the same inputs:
                `processor(text=prompts, audio=audio)`.
            **kwargs: For `apply_chat_template`.

        Returns:
            input_ids and attention_mask (B, L), input_features (B, M, F) and input_features_mask (B, F).

        Raises:
            AudioError: Audio that cannot be read.
            ValueError: Another language, or a prompt.
        """
        if language is not None and language.lower().split("-")[0] not in LANGUAGES:
            raise ValueError(f"language: expected one of {', '.join(LANGUAGES)} or None, found {language!r}.")
        if prompt is not None:
            raise ValueError(f"prompt: expected None, as this model reads one fixed prompt; found {prompt!r}.")
        conversations = [
            [{"role": "user", "content": [{"type": "audio", "audio": clip}]}] for clip in _list_clips(audio)
        ]
        options = {"tokenize": tokenize, "add_generation_prompt": True, "return_dict": True}
        return self.apply_chat_template(conversations, sampling_rate=sampling_rate, **options, **kwargs)

    def apply_chat_template(
        self,
        conversation: list,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str = "pt",
        sampling_rate: int = SAMPLING_RATE,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        """Conversations of one user message with one audio entry -> prompts, or inputs for `model.generate`.

        Args:
            conversation: [{"role": "user", "content": [{"type": "audio", "audio" or "url" or "path": clip}]}], or a
                list of these. A clip is whatever a call of the processor takes.
            tokenize: Return tensors rather than text.
            return_dict: Return everything rather than input_ids alone.
            sampling_rate: Of arrays, in Hz.
            processor_kwargs: For the call of the processor.
            **kwargs: As in transformers, e.g. `add_generation_prompt`, which changes nothing here.

        Raises:
            AudioError: Audio that cannot be read.
            jinja2.TemplateError: Text, or not exactly one audio entry.
        """
        if not conversation:
            raise ValueError("Expected one conversation or more, found an empty list.")
        prompts = super().apply_chat_template(conversation, chat_template, **kwargs)
        if not tokenize:
            return prompts
        batch = [conversation] if isinstance(conversation[0], dict) else conversation
        entries = [entry for messages in batch for message in messages for entry in message["content"]]
        clips = [entry[key] for entry in entries for key in ("audio", "url", "path") if key in entry]
        options = {"sampling_rate": sampling_rate, "return_tensors": return_tensors} | (processor_kwargs or {})
        inputs = self(audio=clips, text=prompts, **options)
        return inputs if return_dict else inputs["input_ids"]

    def _read_prompt(self, text: str, token: str) -> str:
        """A prompt as the chat template writes it -> the same with `{slot}`, as in `prompt`."""
        if text.count(token) != 1:
            raise ValueError(f"Expected {token} once in each prompt, found {text!r}.")
        return text.removeprefix(self.tokenizer.bos_token or "").replace(token, "{slot}")

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
        self,
        token_id: int,
        counts: list[int],
        texts: list[str] | None = None,
        padding_side: str = "left",
        prompts: list[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Prompts with `counts[b]` placeholders each -> input_ids, attention_mask (B, L) and labels.

        All rows have the processor's prompt, unless `prompts` are given.
        """
        prompt_ids = [self._prompt_ids(prompt) for prompt in prompts or [self.prompt] * len(counts)]
        rows = []
        for (before, after), count in zip(prompt_ids, counts, strict=True):
            rows.append([*before, *[token_id] * count, *after])
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
        clips = [load_waveform(clip, sampling_rate) for clip in _list_clips(audio)]
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
        self, weight: float = SOUND_WEIGHT, floor: float = 1e-4, ngram_weight: float = NGRAM_WEIGHT
    ) -> PinyinConstraint:
        """For `model.generate(pinyin_constraint=...)`.

        Args:
            weight: Of the log-probabilities of a slot's units, relative to the language model's.
            floor: Least probability of a unit that may be written.
            ngram_weight: Of the n-grams' log-probabilities; only beam search uses them.
        """
        return self._constraint(weight, floor, self.ngrams, ngram_weight)

    @lru_cache(maxsize=4)  # noqa: B019
    def _constraint(self, *settings) -> PinyinConstraint:
        return PinyinConstraint(self.tokenizer, self.pinyin_tokenizer, *settings)

    def decode_answers(self, sequences: torch.Tensor, prompt_length: int) -> list[str]:
        """(B, L) ids of `generate` -> the text after the prompt of each row."""
        texts = self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str | list[str]:
        """As the tokenizer's; `skip_special_tokens` skips a prompt, too."""
        token_ids = self._skip_prompts(token_ids) if skip_special_tokens else token_ids
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """As the tokenizer's; `skip_special_tokens` skips prompts, too: `transformers serve` leaves them in."""
        sequences = self._skip_prompts(sequences) if skip_special_tokens else sequences
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs)

    def _skip_prompts(self, ids):
        """Ids of one row, or of several, without the prompt; ids without placeholders stay as they are."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if not isinstance(ids, (list, tuple)):
            return ids
        if ids and not isinstance(ids[0], int):
            return [self._skip_prompts(row) for row in ids]
        ends = [i + 1 for i, token in enumerate(ids) if token in (self.audio_token_id, self.pinyin_token_id)]
        if not ends:
            return ids
        answer, (_, after) = ids[ends[-1] :], self._prompt_ids(self.prompt)
        return answer[len(after) :] if answer[: len(after)] == after else answer


def make_chat_template(prompt: str) -> str:
    """The chat template that writes `prompt`, with the audio placeholder in its slot."""
    before, after = (json.dumps(part, ensure_ascii=False) for part in prompt.split("{slot}"))  # as Jinja's literals
    return Template(CHAT_TEMPLATE).substitute(before=before, audio=AUDIO_TOKEN, after=after)


def _list_clips(audio) -> list:
    """One clip or several, in any form that `load_waveform` takes -> a list."""
    single = isinstance(audio, (str, Path, bytes, bytearray, dict)) or getattr(audio, "ndim", 0) > 0
    return [audio] if single or hasattr(audio, "get_all_samples") else list(audio)


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
