"""Whisper's own decoder as a second recogniser, on the encoder output that the bridge uses too.

Its text becomes probabilities over the pinyin units.

Shape letters: B batch, K beams, L tokens, T encoder frames, D width, V tokens that are kept, M characters of a text,
U pinyin units.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from .encoder_pinyin_llm import length_mask
from .tokenization_pinyin_llm import PinyinTokenizer


# Whisper was trained on clips padded with silence to 30 s; on the bare encoder output of a clip it repeats the end.
# Extra characters in 92 clips of S0150, 3 beams, with 50, 100 and 200 frames of silence after them: 140, 38, 2.
SILENT_FRAMES = 200
PROMPT = ("<|startoftranscript|>", "<|zh|>", "<|transcribe|>", "<|notimestamps|>")
END = "<|endoftext|>"
BLANK = b" "
NUM_BEAMS = 3
# More tokens than speech has: a row that reaches the limit is repeating itself.
TOKENS_PER_SECOND, TOKENS_PER_SYLLABLE, SPARE_TOKENS = 8, 3, 12
LONGEST_STRETCH, MOST_IN_A_ROW = 4, 3  # 1 to 4 characters; a fourth occurrence in a row and the rest are dropped
IMPOSSIBLE = -1e9


@dataclass
class Recognition:
    """The result of a recogniser for one clip.

    Args:
        text: The Han characters, M of them.
        unit_probs: (M, U) probability of each unit; a row may sum to less than 1, and the rest is unknown.
    """

    text: str
    unit_probs: torch.Tensor


class PinyinLlamaTextDecoder(WhisperDecoder):
    """Whisper's decoder, same weights, with only the rows of its embedding that Mandarin needs.

    Its forward pass suits many short rows on a CPU: the beams of a clip share the keys and values of its frames.

    Args:
        config: WhisperConfig; `vocab_size` counts the tokens kept.
    """

    _keys_to_ignore_on_load_unexpected = [r"encoder\.", r"proj_out\."]

    def __init__(self, config):
        super().__init__(config)
        # The encoder's output for silence at each position of its window, averaged over clips.
        self.silence = nn.Parameter(torch.zeros(config.max_source_positions, config.d_model), requires_grad=False)

    def add_silence(self, hidden: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D) encoder output and (B,) valid frames -> both with `SILENT_FRAMES` of silence after each clip."""
        size = hidden.shape[1] + SILENT_FRAMES
        longer = (frames + SILENT_FRAMES).clamp(max=len(self.silence))
        silence = nn.functional.pad(self.silence[:size], (0, 0, 0, max(0, size - len(self.silence))))
        own = length_mask(frames, size).unsqueeze(-1)
        hidden = nn.functional.pad(hidden, (0, 0, 0, SILENT_FRAMES))
        return torch.where(own, hidden, silence.to(hidden.dtype)), longer

    def project_frames(self, hidden: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(B, T, D) -> the keys and values of each layer's cross-attention, (B, heads, T, D / heads)."""
        attention = [layer.encoder_attn for layer in self.layers]
        return [(self._split(a.k_proj(hidden)), self._split(a.v_proj(hidden))) for a in attention]

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """B, L, D -> B, heads, L, D / heads"""
        return states.unflatten(-1, (self.config.decoder_attention_heads, -1)).transpose(1, 2)

    def token_logits(self, tokens: torch.Tensor, past: list, memory: list, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, L) next tokens of each beam -> (B * K, L, V) logits; `past` is extended in place.

        Args:
            past: Keys and values of each layer's self-attention, (B * K, heads, tokens so far, D / heads), or empty.
            memory: Of `project_frames`.
            mask: (B, 1, 1, T) bool, the frames to attend to.
        """
        batch, beams, length = tokens.shape
        start = past[0][0].shape[2] if past else 0
        weights = self.embed_tokens.weight
        hidden = weights[tokens.flatten(0, 1)] + self.embed_positions.weight[start : start + length]
        for number, layer in enumerate(self.layers):
            hidden = hidden + self._attend_to_past(number, layer.self_attn, layer.self_attn_layer_norm(hidden), past)
            attention, states = layer.encoder_attn, layer.encoder_attn_layer_norm(hidden)
            query = self._split(attention.q_proj(states).view(batch, beams * length, -1))
            attended = nn.functional.scaled_dot_product_attention(query, *memory[number], attn_mask=mask)
            attended = attended.transpose(1, 2).reshape(batch * beams, length, -1)
            hidden = hidden + attention.out_proj(attended)
            hidden = hidden + layer.fc2(nn.functional.gelu(layer.fc1(layer.final_layer_norm(hidden))))
        return self.layer_norm(hidden) @ weights.T

    def _attend_to_past(self, number: int, attention, states: torch.Tensor, past: list) -> torch.Tensor:
        """Self-attention of one layer over the earlier tokens; several new tokens at once only where there are none."""
        query, key, value = (
            self._split(part(states)) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if number < len(past):
            key, value = (torch.cat(pair, dim=2) for pair in zip(past[number], (key, value), strict=True))
            past[number] = (key, value)
        else:
            past.append((key, value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)
        return attention.out_proj(attended.transpose(1, 2).flatten(2))


class MandarinTokens:
    """The tokens that the decoder keeps, with their characters and pinyin units.

    Args:
        tokens: In the order of the rows: the bytes of each in hexadecimal, or the name of a control token.
        pinyin_tokenizer: The units.
    """

    def __init__(self, tokens: list[str], pinyin_tokenizer: PinyinTokenizer):
        self.pinyin_tokenizer = pinyin_tokenizer
        self.names = {name: row for row, name in enumerate(tokens) if name.startswith("<|")}
        self.bytes = [b"" if name.startswith("<|") else bytes.fromhex(name) for name in tokens]
        self.prompt, self.end = [self.names[name] for name in PROMPT], self.names[END]
        never = torch.zeros(len(tokens))
        never[[row for row in self.names.values() if row != self.end]] = IMPOSSIBLE
        never[[row for row, spelling in enumerate(self.bytes) if _is_markup(spelling)]] = IMPOSSIBLE
        self.never, self.never_first = never, never.clone()
        self.never_first[[row for row, spelling in enumerate(self.bytes) if spelling in (BLANK, b"")]] = IMPOSSIBLE
        self.unit_of = self._first_units()

    def _first_units(self) -> torch.Tensor:
        """(V,) unit of the character that each token begins with; U if it is incomplete or has no reading."""
        unknown = len(self.pinyin_tokenizer)
        units = []
        for spelling in self.bytes:
            first = spelling.decode(errors="ignore")[:1] if spelling[:1] > b"\xe2" else ""
            (unit,) = self.pinyin_tokenizer.encode_characters(first or "-", errors="keep")[1]
            units.append(unknown if unit is None else unit)
        return torch.tensor(units)

    def recognize(self, tokens: list[int], log_probs: torch.Tensor) -> Recognition:
        """(L,) tokens of a text and (L, V) the distribution of each -> its characters and their unit probabilities.

        The unit of a character in its context gets the probability of the character; the other tokens at its position
        give theirs to their own units.
        """
        text, spans = self._spell(tokens)
        text, units = self.pinyin_tokenizer.encode_characters(text, errors="keep")
        readable = [i for i, unit in enumerate(units) if unit is not None]
        readable = readable[: _before_repetition("".join(text[i] for i in readable))]
        if not readable:
            return Recognition("", torch.zeros(0, len(self.pinyin_tokenizer)))
        chosen = torch.tensor([units[i] for i in readable])
        starts = torch.tensor([spans[i][0] for i in readable])
        own = log_probs.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
        certain = torch.stack([own[slice(*spans[i])].sum() for i in readable]).exp()
        others = log_probs[starts].exp().scatter(1, torch.tensor(tokens)[starts, None], 0.0)  # M, V
        probs = others.new_zeros(len(readable), len(self.pinyin_tokenizer) + 1).index_add(1, self.unit_of, others)[
            :, :-1
        ]
        return Recognition("".join(text[i] for i in readable), probs.scatter_add(1, chosen[:, None], certain[:, None]))

    def _spell(self, tokens: list[int]) -> tuple[str, list[tuple[int, int]]]:
        """Tokens -> characters and the (first, last + 1) token of each; bytes that spell no character are left out."""
        spellings = [self.bytes[token] for token in tokens]
        owner = [token for token, piece in enumerate(spellings) for _ in piece]
        text = b"".join(spellings).decode(errors="surrogateescape")
        characters, spans, offset = [], [], 0
        for character in text:
            size = 1 if "\udc80" <= character <= "\udcff" else len(character.encode())
            if size > 1 or character.isascii():
                characters.append(character)
                spans.append((owner[offset], owner[offset + size - 1] + 1))
            offset += size
        return "".join(characters), spans


def _is_markup(spelling: bytes) -> bool:
    """Single ASCII letters, digits and signs, except for the marks that stand for pauses."""
    return len(spelling) == 1 and spelling.isascii() and spelling not in b" ,.?!"


def _before_repetition(text: str) -> int:
    """Characters before a stretch occurs for the fourth time in a row."""
    for end in range(1, len(text) + 1):
        for size in range(1, LONGEST_STRETCH + 1):
            run = text[max(0, end - size * (MOST_IN_A_ROW + 1)) : end]
            if len(run) == size * (MOST_IN_A_ROW + 1) and run == run[:size] * (MOST_IN_A_ROW + 1):
                return end - size
    return len(text)


@torch.no_grad()
def recognize(
    decoder: PinyinLlamaTextDecoder,
    tokens: MandarinTokens,
    hidden: torch.Tensor,
    frames: torch.Tensor,
    syllables: torch.Tensor,
    num_beams: int = NUM_BEAMS,
) -> list[Recognition]:
    """The decoder's result for each clip; empty where the bridge found no syllable.

    Args:
        hidden: (B, T, D) encoder output.
        frames: (B,) valid frames.
        syllables: (B,) number of syllables that the bridge found.
    """
    nothing = Recognition("", torch.zeros(0, len(tokens.pinyin_tokenizer)))
    found = [nothing] * len(hidden)
    spoken = syllables.nonzero().flatten()
    if not len(spoken):
        return found
    longest = (frames * TOKENS_PER_SECOND // 50).minimum(TOKENS_PER_SYLLABLE * syllables) + SPARE_TOKENS
    hidden, frames = decoder.add_silence(hidden[spoken], frames[spoken])
    memory, mask = decoder.project_frames(hidden), length_mask(frames, hidden.shape[1])[:, None, None]
    best = search(decoder, tokens, memory, mask, longest[spoken].tolist(), num_beams)
    log_probs = _token_log_probs(decoder, tokens, best, memory, mask)
    for row, clip in enumerate(spoken.tolist()):
        found[clip] = tokens.recognize(best[row], log_probs[row, : len(best[row])])
    return found


def _token_log_probs(decoder, tokens: MandarinTokens, rows: list[list[int]], memory: list, mask) -> torch.Tensor:
    """Texts -> (B, L, V) log-probabilities of every token at each position, in one pass over all of them."""
    size = max(map(len, rows), default=0)
    start = len(tokens.prompt) - 1
    texts = torch.tensor([[*tokens.prompt, *row, *[tokens.end] * (size - len(row))] for row in rows])
    logits = decoder.token_logits(texts[:, None].to(mask.device), [], memory, mask)
    return (logits[:, start : start + size].float().cpu() + tokens.never).log_softmax(-1)


def search(
    decoder, tokens: MandarinTokens, memory: list, mask: torch.Tensor, longest: list[int], beams: int
) -> list[list[int]]:
    """Beam search with mean scores, as in Whisper -> the best text of each row; finished rows leave the batch.

    Args:
        memory, mask: As for `token_logits`.
        longest: Most tokens of each row.
    """
    rows = Beams(tokens, len(longest), beams)  # on the CPU; the decoder's device computes the logits
    past: list = []
    prompt = torch.tensor(tokens.prompt, device=mask.device).expand(len(longest), 1, -1)
    rows.begin(decoder.token_logits(prompt, past, memory, mask)[:, -1].cpu())
    order = torch.arange(len(longest)).repeat_interleave(beams)  # a prompt's keys and values serve all its beams
    while rows.alive:
        past = [(key[order], value[order]) for key, value in past]
        logits = decoder.token_logits(rows.texts[..., -1:].to(mask.device), past, memory, mask)[:, -1]
        kept, order = rows.advance(logits.cpu(), longest)
        if len(kept) < len(mask):
            memory, mask = [(key[kept], value[kept]) for key, value in memory], mask[kept]
    return rows.best


class Beams:
    """The texts of a search, K per row, and the best finished one of each row."""

    def __init__(self, tokens: MandarinTokens, batch: int, beams: int):
        self.tokens, self.beams = tokens, beams
        self.alive = list(range(batch))
        self.best: list[list[int]] = [[] for _ in range(batch)]
        self.best_scores = [-torch.inf] * batch

    def begin(self, logits: torch.Tensor) -> None:
        """(B, V) logits after the prompt."""
        scores = (logits.float() + self.tokens.never_first).log_softmax(-1)
        self.scores, first = scores.topk(self.beams)  # B, K
        self.texts = first.unsqueeze(-1)  # B, K, L

    def advance(self, logits: torch.Tensor, longest: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B * K, V) logits -> the rows that continue, and the beam (of B * K) that each of their beams extends."""
        step = (logits.float() + self.tokens.never).log_softmax(-1).unflatten(0, (-1, self.beams))
        length = self.texts.shape[-1] + 1
        totals = self.scores.unsqueeze(-1) + step  # B, K, V
        self._finish(totals[..., self.tokens.end] / length)
        totals[..., self.tokens.end] = -torch.inf
        scores, indices = totals.flatten(1).topk(self.beams)
        parents, chosen = indices // totals.shape[-1], indices % totals.shape[-1]
        promise = (scores[:, 0] / length).tolist()
        open_rows = []
        for i, row in enumerate(self.alive):
            if promise[i] > self.best_scores[row] and length <= longest[row]:
                open_rows.append(i)
        kept = torch.tensor(open_rows, dtype=torch.long)
        self.alive = [self.alive[i] for i in open_rows]
        before = self.texts[kept[:, None], parents[kept]]
        self.texts = torch.cat([before, chosen[kept].unsqueeze(-1)], dim=-1)
        self.scores = scores[kept]
        return kept, (parents + self.beams * torch.arange(len(parents))[:, None])[kept].flatten()

    def _finish(self, scores: torch.Tensor) -> None:
        """(B, K) scores of the texts if they end here."""
        for i, (row, best) in enumerate(zip(self.alive, scores.max(-1).values.tolist(), strict=True)):
            if best > self.best_scores[row]:
                self.best_scores[row] = best
                self.best[row] = self.texts[i, scores[i].argmax()].tolist()


__all__ = ["MandarinTokens", "PinyinLlamaTextDecoder", "Recognition", "recognize"]
