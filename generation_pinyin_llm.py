"""`generate` of the model, and a faster form of greedy decoding that needs a few passes instead of one per token.

What a slot sounds like says most about its character, so every character is drafted first, as its syllable is
decoded on its own. One pass of the language model over all drafts then gives the token that greedy decoding would
choose at each position: up to the first wrong draft these are final, and the rest are the next draft (Jacobi decoding:
Santilli et al. 2023, arXiv 2305.10427). The result equals greedy decoding; the mini model needs 3 passes for 14
characters.

Shape letters: B batch, P prompt, T tokens of the longest answer, W window, V vocabulary, H width of the language model.
"""

from collections.abc import Sequence
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, GenerationMixin

from .constraint_pinyin_llm import PinyinConstraint, PinyinLogitsProcessor, Position
from .encoder_pinyin_llm import Slots


TOKENS_PER_CHARACTER = 3  # UTF-8 bytes of a Han character that the tokenizer does not know
WINDOW = 16  # tokens verified per pass: what lies further off is verified again anyway
NOT_ABOUT_DECODING = {
    "_from_model_config",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "output_attentions",
    "output_hidden_states",
}
Draft = list[tuple[int, ...]]  # the tokens of each slot's character
# First drafts by units, kept as long as their constraint. A draft of another model is only slower: drafts are verified.
FIRST_DRAFTS: WeakKeyDictionary[PinyinConstraint, dict[tuple, tuple]] = WeakKeyDictionary()


class PinyinLlamaGenerationMixin(GenerationMixin):
    """`generate` for a model whose prompts hold slots of speech or pinyin."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_hidden_states: torch.Tensor | None = None,
        audio_slots: Slots | None = None,
        pinyin_ids: torch.LongTensor | None = None,
        pinyin_constraint: PinyinConstraint | None = None,
        logits_processor=None,
        **kwargs,
    ):
        """Characters for speech or pinyin: fills the slots once, then decodes as `GenerationMixin.generate` does.

        Args:
            input_ids, attention_mask: (B, P) prompts with placeholders.
            input_features, input_features_mask, audio_hidden_states, pinyin_ids: As in `forward`.
            audio_slots: The result of `get_audio_features`, instead of the features.
            pinyin_constraint: Restricts each slot to characters that can be read as it sounds.
            **kwargs: As in `GenerationMixin.generate` (`num_beams`, ...). By default an answer may be as long as one
                character per slot can need.

        Returns:
            (B, P + T) token ids, prompt included, as in every decoder-only model.
        """
        is_plain = logits_processor is None and is_plain_greedy(self.generation_config, kwargs)
        config = kwargs.get("generation_config") or self.generation_config
        self._suppress_placeholders(config, kwargs)
        slots = self.collect_slots(pinyin_ids, input_features, input_features_mask, audio_hidden_states)
        if audio_slots is not None:
            slots[self.config.audio_token_id] = audio_slots
        if slots:
            kwargs["inputs_embeds"], attention_mask = self.merge_inputs(input_ids, attention_mask, slots)
            if not self._has_length_limit(kwargs):
                longest = max(int(filling.counts.max()) for filling in slots.values())
                kwargs["max_new_tokens"] = TOKENS_PER_CHARACTER * longest + 2
        if pinyin_constraint is not None:
            with_beams = (kwargs.get("num_beams") or config.num_beams or 1) > 1
            unit_evidence = self._unit_evidence(slots, pinyin_ids)
            pinyin_processor = pinyin_constraint.for_batch(unit_evidence, input_ids.shape[1], with_beams)
            if with_beams and config.length_penalty is None:
                # Sums, not means: a mean would favour a character of three tokens over a character of one.
                kwargs.setdefault("length_penalty", 0.0)
            if is_plain:
                return decode_in_passes(self, input_ids, kwargs["inputs_embeds"], attention_mask, pinyin_processor)
            logits_processor = [*(logits_processor or []), pinyin_processor]
        return super().generate(
            input_ids=input_ids, attention_mask=attention_mask, logits_processor=logits_processor, **kwargs
        )

    def _suppress_placeholders(self, config: GenerationConfig, kwargs: dict) -> None:
        """Never generate placeholders: some language models have more rows than their tokenizer has tokens."""
        placeholders = (self.config.audio_token_id, self.config.pinyin_token_id)
        if in_vocabulary := [token for token in placeholders if token < self.config.vocab_size]:
            suppressed = kwargs.get("suppress_tokens", config.suppress_tokens) or []
            kwargs["suppress_tokens"] = [*suppressed, *in_vocabulary]

    def _has_length_limit(self, kwargs: dict) -> bool:
        """Whether the call or a generation config limits the length of an answer."""
        given = kwargs.get("generation_config") or self.generation_config
        sources = (kwargs, vars(given), vars(self.generation_config))
        return any(source.get(name) is not None for source in sources for name in ("max_new_tokens", "max_length"))

    def _unit_evidence(self, slots: dict[int, Slots], pinyin_ids: torch.Tensor | None) -> torch.Tensor:
        """What a constraint restricts slots by: the unit probabilities of recognised speech, or the unit ids typed."""
        (filling,) = slots.values()
        evidence = filling.unit_probs if filling.unit_probs is not None else pinyin_ids
        if evidence is None:
            raise ValueError(
                f"projector_type={self.config.projector_type!r} recognises no pinyin, which pinyin_constraint needs. "
                "Pass pinyin_ids, use a model with a pinyin_bridge, or leave the constraint out."
            )
        return evidence


def is_plain_greedy(generation_config: GenerationConfig, kwargs: dict) -> bool:
    """Whether the configuration and the arguments of a call ask for nothing but the likeliest tokens."""
    requested = generation_config.to_diff_dict() | {name: value for name, value in kwargs.items() if value is not None}
    requested = {name: value for name, value in requested.items() if name not in NOT_ABOUT_DECODING}
    return requested.items() <= {"num_beams": 1, "do_sample": False}.items()


def decode_in_passes(
    model, input_ids: torch.Tensor, inputs_embeds, attention_mask, logits_processor: PinyinLogitsProcessor
) -> torch.Tensor:
    """Greedy decoding within a constraint, by drafting and verifying.

    Args:
        input_ids: (B, P) prompts with their placeholders, left-padded.
        inputs_embeds: (B, P, H) the same with the slots filled.
        attention_mask: (B, P).

    Returns:
        (B, P + T) ids, prompts included, padded with the end-of-text token.
    """
    drafts = verify(
        model, inputs_embeds, attention_mask, logits_processor, first_drafts(model, input_ids, logits_processor)
    )
    answers = as_tensor(drafts, logits_processor.constraint.eos_token_id, input_ids.device)
    return torch.cat([input_ids, answers], dim=1)


def first_drafts(model, input_ids: torch.Tensor, logits_processor: PinyinLogitsProcessor) -> list[Draft]:
    """Each slot's character when its syllable is decoded alone; every syllable is decoded once per constraint."""
    known = FIRST_DRAFTS.setdefault(logits_processor.constraint, {})
    if new := sorted({units for row in logits_processor.likeliest_units for units in row if units not in known}):
        prompts = one_slot_prompt(model.config, input_ids).expand(len(new), -1)
        units = pad_sequence([torch.tensor(slot) for slot in new], batch_first=True, padding_value=-1)
        units = units[:, None].to(input_ids.device)
        slots = {model.config.pinyin_token_id: model.get_pinyin_features(units)}
        alone = logits_processor.constraint.for_batch(units, prompts.shape[1])
        drafts = [[alone.nearest_character(row, 0, ())] for row in range(len(new))]
        verified = verify(model, *model.merge_inputs(prompts, None, slots), alone, drafts)
        known.update(zip(new, (row[0] for row in verified), strict=True))
    return [[known[units] for units in row] for row in logits_processor.likeliest_units]


def one_slot_prompt(config, input_ids: torch.Tensor) -> torch.Tensor:
    """The prompt of the longest row, which has no padding, with one pinyin placeholder in place of all its slots."""
    is_slot = (input_ids == config.audio_token_id) | (input_ids == config.pinyin_token_id)
    row = is_slot.sum(-1).argmax()
    rest, start = input_ids[row][~is_slot[row]], int(is_slot[row].int().argmax())
    return torch.cat([rest[:start], rest.new_tensor([config.pinyin_token_id]), rest[start:]])


def verify(
    model, inputs_embeds, attention_mask, logits_processor: PinyinLogitsProcessor, drafts: list[Draft]
) -> list[Draft]:
    """Revise `drafts` pass by pass until every token is what greedy decoding chooses after those before it."""
    drafts, final = list(drafts), 0
    verifier = Verifier(model, inputs_embeds, attention_mask)
    rows = verifier.keep([row for row, draft in enumerate(drafts) if draft], range(len(drafts)), 0)
    while rows:
        open_drafts = [drafts[row] for row in rows]
        tokens = as_tensor(open_drafts, logits_processor.constraint.eos_token_id, inputs_embeds.device)
        chosen = choose_tokens(verifier.logits(tokens, final), logits_processor, rows, open_drafts, final)
        num_final = {}
        for row, row_tokens in zip(rows, chosen, strict=True):
            drafts[row], num_final[row] = revise(row, drafts[row], final, row_tokens, logits_processor)
        wrong = [row for row in rows if num_final[row] < count_tokens(drafts[row])]
        final = min((num_final[row] for row in wrong), default=0)
        rows = verifier.keep(wrong, rows, final)
    return drafts


class Verifier:
    """The language model with the keys and values of the prompts and of the tokens that are final."""

    def __init__(self, model, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor):
        self.model, self.embeds, self.mask = model, inputs_embeds, attention_mask
        self.positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config.text_config)

    def logits(self, tokens: torch.Tensor, final: int) -> torch.Tensor:
        """(B, T) drafts, whose first `final` tokens are in the cache -> (B, W, V) logits of the window after those."""
        tokens = tokens[:, : final + WINDOW]
        later = torch.arange(1, tokens.shape[1], device=tokens.device)
        positions = torch.cat([self.positions, self.positions[:, -1:] + later], dim=1)
        embeds = self.model.get_input_embeddings()(tokens[:, max(final - 1, 0) : -1])
        embeds = embeds if final else torch.cat([self.embeds, embeds], dim=1)
        return self.model(
            inputs_embeds=embeds,
            attention_mask=nn.functional.pad(self.mask, (0, len(later)), value=1),
            position_ids=positions[:, -embeds.shape[1] :],
            cache=self.cache,
            logits_to_keep=tokens.shape[1] - final,
        ).logits.float()

    def keep(self, rows: list[int], of: Sequence[int], final: int) -> list[int]:
        """Drop all rows but these, and all tokens but the first `final`, the last of which is computed again."""
        if 0 < len(rows) < len(of):
            index = torch.tensor([i for i, row in enumerate(of) if row in rows], device=self.mask.device)
            self.embeds, self.mask, self.positions = self.embeds[index], self.mask[index], self.positions[index]
            if self.cache.get_seq_length():
                self.cache.batch_select_indices(index)
        if (surplus := self.cache.get_seq_length() - (self.mask.shape[1] + final - 1)) > 0:
            self.cache.crop(-surplus)
        return rows


def choose_tokens(
    logits: torch.Tensor, logits_processor: PinyinLogitsProcessor, rows: list[int], drafts: list[Draft], final: int
) -> list[list[int]]:
    """(B, W, V) -> the likeliest allowed token at each position after `final`."""
    window = range(final, final + logits.shape[1])
    positions = {}  # index into the flattened logits -> which slot and which of its tokens that is
    for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        prefixes = ((slot, tokens[:size]) for slot, tokens in enumerate(draft) for size in range(len(tokens)))
        for t, (slot, prefix) in enumerate(prefixes):
            if t in window:
                positions[index * len(window) + t - final] = Position(row, slot, prefix)
    scores = logits.flatten(0, 1)
    scores[list(positions)] += logits_processor.score_tokens(list(positions.values()), logits.shape[2])
    return scores.argmax(-1).view(-1, len(window)).tolist()


def revise(
    row: int, draft: Draft, final: int, chosen: list[int], logits_processor: PinyinLogitsProcessor
) -> tuple[Draft, int]:
    """The next draft of a row, given the tokens chosen after its `final` ones, and how many tokens are final now."""
    drafted = list(chain(*draft))
    seen = min(len(drafted), final + len(chosen))
    wrong = next((t for t in range(final, seen) if chosen[t - final] != drafted[t]), None)
    if wrong is None:
        return draft, seen
    tokens = drafted[:wrong] + chosen[wrong - final : seen - final] + drafted[seen:]
    revised, end = [], 0
    for slot, character in enumerate(draft):
        start, end = end, end + len(character)
        if end > wrong:  # the tokens at and after the first wrong one may spell no character: take the nearest
            character = logits_processor.nearest_character(row, slot, tuple(tokens[start:end]))
        revised.append(character)
    return revised, wrong + 1


def count_tokens(draft: Draft) -> int:
    """Tokens of all characters of a draft."""
    return sum(map(len, draft))


def as_tensor(drafts: list[Draft], padding: int, device) -> torch.Tensor:
    """Drafts -> (B, T) token ids."""
    rows = [torch.tensor(list(chain(*draft)), dtype=torch.long) for draft in drafts]
    return pad_sequence(rows, batch_first=True, padding_value=padding).to(device)


__all__ = ["PinyinLlamaGenerationMixin", "decode_in_passes"]
