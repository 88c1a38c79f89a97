"""Greedy decoding in a few passes, not one a token: what a slot sounds like says most of its character.

Every character is guessed first, as its syllable is written alone. One pass of the language model over all guesses then
says what greedy decoding writes behind each of them: up to the first wrong guess that is final, and what it says of the
rest is the next guess (Jacobi decoding: Santilli et al. 2023, arXiv 2305.10427). The answer is greedy decoding's own; the
mini model needs 3 passes for 14 characters.

Shape letters: B batch, P prompt, T tokens of the longest answer, V vocabulary, H width of the language model.
"""

from collections.abc import Sequence
from itertools import accumulate, chain

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig

from .constraint_pinyin_llm import PinyinLogitsProcessor, Place


WINDOW = 16  # tokens that a pass reads ahead: in long answers what lies further off is read again anyway
SAYS_NOTHING_OF_DECODING = {
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
Answer = list[tuple[int, ...]]  # the tokens of each slot's character


def is_plain_greedy(generation_config: GenerationConfig, kwargs: dict) -> bool:
    """Whether the configuration and the arguments of a call ask for nothing but the likeliest tokens."""
    asked = generation_config.to_diff_dict() | {name: value for name, value in kwargs.items() if value is not None}
    asked = {name: value for name, value in asked.items() if name not in SAYS_NOTHING_OF_DECODING}
    return asked.items() <= {"num_beams": 1, "do_sample": False}.items()


def write_in_passes(model, input_ids: torch.Tensor, inputs_embeds, attention_mask, bound: PinyinLogitsProcessor):
    """What greedy decoding within `bound` writes for each row.

    Args:
        input_ids: (B, P) prompts with their placeholders, left-padded.
        inputs_embeds: (B, P, H) the same with the slots filled.
        attention_mask: (B, P).

    Returns:
        (B, P + T) ids, prompts included, padded with the end of text.
    """
    answers = correct(model, inputs_embeds, attention_mask, bound, guess(model, input_ids, bound))
    return torch.cat([input_ids, as_tensor(answers, bound.constraint.eos_token_id, input_ids.device)], dim=1)


def guess(model, input_ids: torch.Tensor, bound: PinyinLogitsProcessor) -> list[Answer]:
    """Each slot's character as its syllable is written alone; remembered by syllable, whatever the model."""
    known = bound.constraint.guesses
    if new := sorted({slot for row in bound.named for slot in row if slot not in known}):
        prompts = prompt_of_one_slot(model.config, input_ids).expand(len(new), -1)
        units = pad_sequence([torch.tensor(slot) for slot in new], batch_first=True, padding_value=-1)
        units = units[:, None].to(input_ids.device)
        slots = {model.config.pinyin_token_id: model.get_pinyin_features(units)}
        alone = bound.constraint.bind(units, prompts.shape[1])
        first = [[alone.nearest(row, 0, ())] for row in range(len(new))]
        written = correct(model, *model.merge_inputs(prompts, None, slots), alone, first)
        known.update(zip(new, (row[0] for row in written), strict=True))
    return [[known[slot] for slot in row] for row in bound.named]


def prompt_of_one_slot(config, input_ids: torch.Tensor) -> torch.Tensor:
    """The prompt of the longest row, which has no padding, with one typed syllable in place of all its slots."""
    places = (input_ids == config.audio_token_id) | (input_ids == config.pinyin_token_id)
    row = places.sum(-1).argmax()
    rest, start = input_ids[row][~places[row]], int(places[row].int().argmax())
    return torch.cat([rest[:start], rest.new_tensor([config.pinyin_token_id]), rest[start:]])


def correct(model, inputs_embeds, attention_mask, bound: PinyinLogitsProcessor, answers: list[Answer]) -> list[Answer]:
    """Pass over `answers` until every token is what greedy decoding writes behind those before it."""
    answers, final = list(answers), 0
    reader = Reader(model, inputs_embeds, attention_mask)
    rows = reader.keep([row for row, answer in enumerate(answers) if answer], range(len(answers)), 0)
    while rows:
        drafts = [answers[row] for row in rows]
        scores = reader.read(as_tensor(drafts, bound.constraint.eos_token_id, inputs_embeds.device), final)
        found = choose(scores, bound, rows, drafts, final)
        sizes = {}
        for row, tokens in zip(rows, found, strict=True):
            answers[row], sizes[row] = revise(row, answers[row], final, tokens, bound)
        wrong = [row for row in rows if sizes[row] < count_tokens(answers[row])]
        final = min((sizes[row] for row in wrong), default=0)
        rows = reader.keep(wrong, rows, final)
    return answers


class Reader:
    """The language model, with the keys and values of the prompts and of what is final behind them."""

    def __init__(self, model, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor):
        self.model, self.embeds, self.mask = model, inputs_embeds, attention_mask
        self.positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config.text_config)

    def read(self, tokens: torch.Tensor, final: int) -> torch.Tensor:
        """(B, T) guesses, the first `final` of them read before -> (B, W, V) logits of the `WINDOW` behind those."""
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
        """Forget all rows but these, and all tokens but the first `final`; the last of them is read again."""
        if 0 < len(rows) < len(of):
            index = torch.tensor([i for i, row in enumerate(of) if row in rows], device=self.mask.device)
            self.embeds, self.mask, self.positions = self.embeds[index], self.mask[index], self.positions[index]
            if self.cache.get_seq_length():
                self.cache.batch_select_indices(index)
        if (surplus := self.cache.get_seq_length() - (self.mask.shape[1] + final - 1)) > 0:
            self.cache.crop(-surplus)
        return rows


def choose(logits, bound: PinyinLogitsProcessor, rows: list[int], drafts: list[Answer], final: int) -> list[list[int]]:
    """(B, W, V) -> the likeliest token at each place behind `final`, of those that may stand there."""
    places, window = {}, range(final, final + logits.shape[1])
    for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        at = ((slot, tokens[:size]) for slot, tokens in enumerate(draft) for size in range(len(tokens)))
        places |= {index * len(window) + t - final: Place(row, *place) for t, place in enumerate(at) if t in window}
    scores = logits.flatten(0, 1)
    scores[list(places)] += bound.score(list(places.values()), logits.shape[2])
    return scores.argmax(-1).view(-1, len(window)).tolist()


def revise(row: int, answer: Answer, final: int, found: list[int], bound: PinyinLogitsProcessor) -> tuple[Answer, int]:
    """The next guess, after `found` tokens were chosen behind the `final` ones, and how many tokens are final now."""
    guessed = list(chain(*answer))
    read = min(len(guessed), final + len(found))
    wrong = next((t for t in range(final, read) if found[t - final] != guessed[t]), None)
    if wrong is None:
        return answer, read
    said = guessed[:wrong] + found[wrong - final : read - final] + guessed[read:]
    ends = accumulate(map(len, answer))
    spans = [(tokens, slice(end - len(tokens), end)) for tokens, end in zip(answer, ends, strict=True)]
    revised = [
        tokens if span.stop <= wrong else bound.nearest(row, slot, tuple(said[span]))
        for slot, (tokens, span) in enumerate(spans)
    ]
    return revised, wrong + 1


def count_tokens(answer: Answer) -> int:
    return sum(map(len, answer))


def as_tensor(answers: list[Answer], padding: int, device) -> torch.Tensor:
    """(B, T)"""
    rows = [torch.tensor(list(chain(*answer)), dtype=torch.long) for answer in answers]
    return pad_sequence(rows, batch_first=True, padding_value=padding).to(device)


__all__ = ["write_in_passes"]
