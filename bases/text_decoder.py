"""Whisper's decoder for a model with a bridge: pruned to the tokens that Mandarin needs, with a table of silence.

pinyin-llm base text_decoder --whisper data/whisper-base --model data/mini-bridge --output data/mini-both \\
  --texts data/text/clean/*.txt --manifests data/speech/aishell1_S0150/train.tsv

The output is the model with the decoder added. Tokens are kept that are Han characters, Chinese punctuation or single
bytes, and pieces of characters that the texts contain. Digits and Latin words are dropped, so that numbers are written
as they are spoken. The encoder's output for silence is averaged over clips padded to 30 s.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser, WhisperForConditionalGeneration

from .. import PinyinLlamaForASR, PinyinLlamaProcessor
from ..audio_pinyin_llm import SAMPLING_RATE, load_waveform
from ..configuration_pinyin_llm import RECOGNIZERS, num_encoder_frames
from ..corpora.manifest import read_manifest
from ..decoder_pinyin_llm import END, PROMPT, PinyinLlamaTextDecoder
from ..inference.console import report_errors
from ..processing_pinyin_llm import HOP_LENGTH
from ..scoring.cer import read_lines
from ..scoring.normalization import HAN_CLASS


CONTROL_TOKENS = (END, *PROMPT)
HAN_OR_MARK = re.compile(f"[{HAN_CLASS}\u3000-\u303f\uff00-\uffef]+")
MOST_LINES = 50_000  # of the texts: enough to see every piece of a character that is in use
CLIPS = 14
SKIPPED_FRAMES = 25  # after the end of a clip, where the encoder still sees its sound
DECODER_FIELDS = (
    *("d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
    *("max_source_positions", "max_target_positions", "num_mel_bins"),
)


@dataclass
class DecoderArguments:
    """Whose decoder, for which model."""

    whisper: str = field(metadata={"help": "Whisper checkpoint: folder or Hub id; its encoder must be the model's."})
    model: str = field(metadata={"help": "PinyinLLM folder with a bridge."})
    output: str = field(metadata={"help": "Folder to write."})
    texts: list[str] = field(metadata={"help": "Text files, whose characters decide which byte pieces are kept."})
    manifests: list[str] = field(metadata={"help": "Clips of speech, for the table of silence."})


def byte_pieces(tokenizer) -> dict[int, bytes]:
    """Ordinary tokens of Whisper's byte-level vocabulary -> their bytes."""
    # GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    pieces = {}
    for token, number in tokenizer.get_vocab().items():
        if not token.startswith("<|") and all(character in byte_of for character in token):
            pieces[number] = bytes(byte_of[character] for character in token)
    return pieces


def choose_tokens(tokenizer, texts: list[str], suppressed: set[int]) -> dict[int, bytes]:
    """The ordinary tokens that Mandarin needs, in the order of their numbers.

    Args:
        suppressed: Tokens that Whisper never generates.
    """
    seen: Counter[int] = Counter()
    for file in texts:
        lines = [line for line, _ in zip(read_lines(file), range(MOST_LINES), strict=False)]
        for ids in tokenizer(lines, add_special_tokens=False).input_ids:
            seen.update(ids)
    kept = {}
    for number, piece in sorted(byte_pieces(tokenizer).items()):
        text = piece.decode(errors="replace")
        is_part = "\ufffd" in text and min(piece) >= 0x80
        if len(piece) == 1 or HAN_OR_MARK.fullmatch(text) or (is_part and seen[number]):
            kept[number] = piece
    return {number: piece for number, piece in kept.items() if number not in suppressed}


@torch.no_grad()
def silence_table(encoder, processor, files: list[str]) -> torch.Tensor:
    """(positions, D) the encoder's output for silence at each position, averaged over clips padded to its window."""
    positions = encoder.config.max_source_positions
    total, count = torch.zeros(positions, encoder.config.d_model), torch.zeros(positions, 1)
    for file in tqdm(files, desc="encoding silence"):
        waveform = load_waveform(file)
        inputs = processor.feature_extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        start = num_encoder_frames(len(waveform) // HOP_LENGTH) + SKIPPED_FRAMES
        total[start:] += encoder(inputs.input_features).last_hidden_state[0, start:]
        count[start:] += 1
    first = int((count[:, 0] > 0).nonzero()[0])
    table = total / count.clamp(min=1)
    table[:first] = table[first]  # no clip is so short
    return table


def add_decoder(model: PinyinLlamaForASR, processor, whisper, tokenizer, texts: list[str], files: list[str]) -> None:
    """Give the model Whisper's decoder, and both recognisers as its default.

    Raises:
        ValueError: The model has no bridge, or another encoder.
    """
    own, other = model.audio_tower.conv1.weight.float(), whisper.model.encoder.conv1.weight.float()
    if own.shape != other.shape or not torch.allclose(own, other, atol=1e-3):
        raise ValueError("The model's encoder is not that of this Whisper checkpoint. Name the one it was trained on.")
    kept = choose_tokens(tokenizer, texts, set(whisper.generation_config.suppress_tokens or ()))
    rows = [*kept, *tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))]
    values = {name: getattr(whisper.config, name) for name in DECODER_FIELDS} | {"vocab_size": len(rows)}
    values |= {"eos_token_id": len(kept), "decoder_start_token_id": len(kept) + 1}
    values |= {"bos_token_id": None, "pad_token_id": None}
    decoder = PinyinLlamaTextDecoder(whisper.config.__class__(**values)).eval()
    weights = whisper.model.decoder.state_dict()
    weights["embed_tokens.weight"] = weights["embed_tokens.weight"][rows]
    weights["silence"] = silence_table(whisper.model.encoder, processor, files)
    decoder.load_state_dict(weights)
    model.text_decoder = decoder
    model.config.decoder_config = values
    model.config.decoder_tokens = " ".join([*(piece.hex() for piece in kept.values()), *CONTROL_TOKENS])
    model.config.recognizers = list(RECOGNIZERS)
    model.config.check_recognizers(model.config.recognizers)


def main(argv: list[str] | None = None) -> int:
    """Write the model with the decoder; the exit code."""
    (arguments,) = HfArgumentParser(DecoderArguments).parse_args_into_dataclasses(argv)
    model = PinyinLlamaForASR.from_pretrained(arguments.model, dtype=torch.float32)
    processor = PinyinLlamaProcessor.from_pretrained(arguments.model)
    whisper = WhisperForConditionalGeneration.from_pretrained(arguments.whisper, dtype=torch.float32).eval()
    files = [file for manifest in arguments.manifests for file in read_manifest(manifest)["audio"]]
    step = max(1, len(files) // CLIPS)
    add_decoder(
        model,
        processor,
        whisper,
        AutoTokenizer.from_pretrained(arguments.whisper),
        arguments.texts,
        files[::step][:CLIPS],
    )
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    print(f"{Path(arguments.output)}: {model.config.decoder_config['vocab_size']} tokens", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
