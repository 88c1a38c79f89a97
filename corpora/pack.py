"""A manifest and its sounds -> one parquet file of Ogg/Opus, a tenth of the size, that `datasets` reads as it is.

python -m pinyin_llm.corpora.pack --manifest data/synthetic/train/manifest.tsv --output speech/train.parquet
"""

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..inference.console import report_errors


@dataclass
class PackArguments:
    """What is packed, and into which file."""

    manifest: str = field(metadata={"help": "tsv or jsonl: file, text, speaker, seconds."})
    output: str = field(metadata={"help": "The parquet file."})
    start: int = field(default=0, metadata={"help": "The first row that is packed."})
    end: int | None = field(default=None, metadata={"help": "The row to stop before."})
    num_proc: int = field(default=2, metadata={"help": "Processes that encode."})


def encode_opus(path: str) -> bytes:
    """A sound file -> Ogg/Opus at 16 kHz mono, some 25 kbit/s of speech."""
    import soundfile

    from ..audio_pinyin_llm import SAMPLING_RATE, load_waveform

    buffer = io.BytesIO()
    soundfile.write(buffer, load_waveform(path), SAMPLING_RATE, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def pack(manifest: str, output: str, start: int = 0, end: int | None = None, num_proc: int = 2) -> int:
    """Write clips of `manifest` to `output`: audio (bytes and name), text, speaker, seconds; returns its size."""
    from datasets import Value

    from .manifest import read_manifest

    rows = read_manifest(manifest).select_columns(["audio", "text", "speaker", "seconds"])
    rows = rows.select(range(*slice(start, end).indices(len(rows))))
    features = rows.features.copy()
    features["audio"] = {"bytes": Value("binary"), "path": Value("string")}

    def encode(path: str) -> dict:
        return {"audio": {"bytes": encode_opus(path), "path": f"{Path(path).stem}.ogg"}}

    packed = rows.map(encode, input_columns="audio", features=features, num_proc=num_proc, desc="encoding")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    packed.to_parquet(output)
    return Path(output).stat().st_size


def main(argv: list[str] | None = None) -> int:
    from transformers import HfArgumentParser

    (arguments,) = HfArgumentParser(PackArguments).parse_args_into_dataclasses(argv)
    print(f"{arguments.output}: {pack(**vars(arguments)):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
