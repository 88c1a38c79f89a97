"""A corpus of any size -> transcripts, on Ray Data: one machine, or a cluster by its address.

    python -m pinyin_llm.bulk recordings/ --output texts/ --workers 2
    python -m pinyin_llm.bulk corpus.parquet --output texts/ --workers 64 --address auto

The corpus is a folder of sound files (on a cluster, one that every machine can read), or parquet with a column `audio`
as `datasets` writes it. The output is jsonl in parts: file, sound (for parquet, a digest), text, seconds, chunks, and
an error if there is one. The command resumes if interrupted; a worker that dies is replaced, and its sounds are
transcribed again.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass
class BulkArguments:
    """What is transcribed, where the output goes, and how many workers there are."""

    corpus: str = field(metadata={"help": "Folder of sounds, or parquet file or folder."})
    output: str = field(metadata={"help": "Folder of the parts."})
    model: str | None = field(default=None, metadata={"help": "Folder or Hub id; default: the mini model."})
    workers: int = field(default=1, metadata={"help": "Processes that each hold the model."})
    threads: int = field(default=1, metadata={"help": "CPU threads of each; Ray counts them as CPUs."})
    gpus: float = field(default=0, metadata={"help": "GPUs of each, e.g. 0.5."})
    batch_size: int = field(default=16, metadata={"help": "Pieces of sound at once."})
    num_beams: int = field(default=5, metadata={"help": "Beam width."})
    address: str | None = field(
        default=None, metadata={"help": "Of a Ray cluster; by default a new one on this machine."}
    )
    part: int = field(default=64, metadata={"help": "Sounds per part, which are transcribed again when a worker dies."})


class Transcriber:
    """A worker, which loads the model once.

    Args:
        arguments: Those of the command.
    """

    def __init__(self, arguments: BulkArguments):
        import torch

        from ..inference.loading import MINI_MODEL, load_model

        torch.set_num_threads(arguments.threads)
        self.model, self.processor = load_model(arguments.model or MINI_MODEL)
        self.arguments = arguments

    def __call__(self, batch: dict) -> dict:
        """Rows of `file`, `sound` and, from parquet, `audio` -> writes a part; returns its counts."""
        from ..inference.files import write_whole
        from ..transcript_pinyin_llm import as_dict
        from ..transcription_pinyin_llm import transcribe

        files = [str(name) for name in batch["file"]]
        options = {"batch_size": self.arguments.batch_size, "num_beams": self.arguments.num_beams}
        found = transcribe(self.model, self.processor, batch.get("audio", files), **options)
        named = [
            {"file": file, "sound": str(sound)} if sound else {"file": file}
            for file, sound in zip(files, batch["sound"], strict=True)
        ]
        rows = [as_dict(transcript) | names for names, transcript in zip(named, found, strict=True)]
        # named by its rows, so that a part that is written again replaces itself
        name = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_whole(Path(self.arguments.output, f"part-{name}.jsonl"), "\n".join(lines) + "\n")
        return {"sounds": [len(rows)], "failed": [sum("error" in row for row in rows)]}


def read_corpus(corpus: str, done: set[tuple[str, str]]):
    """A Ray dataset of the sounds that are not done yet: `file`, `sound`, and `audio` for parquet.

    Raises:
        ValueError: A folder without sounds, or parquet without `audio`.
    """
    import ray

    from ..inference.files import find_sounds

    if corpus.endswith(".parquet") or any(Path(corpus).glob("*.parquet")):
        rows = ray.data.read_parquet(corpus, include_paths=True)
        if "audio" not in rows.schema().names:
            raise ValueError(f"{corpus}: expected a column audio, found {', '.join(rows.schema().names)}.")
        rows = rows.map(lambda row: name_sound(row["audio"], row["path"]) | {"audio": row["audio"]})
        return rows.filter(lambda row: (row["file"], row["sound"]) not in done)
    names = [name for name in find_sounds([corpus]) if (name, "") not in done]
    return ray.data.from_items([{"file": name, "sound": ""} for name in names])


def name_sound(audio: dict, corpus: str) -> dict[str, str]:
    """`file` (or the corpus) and a digest of the `sound`, because `datasets` keeps file names without folders."""
    return {"file": audio["path"] or corpus, "sound": hashlib.sha256(audio["bytes"] or b"").hexdigest()[:16]}


def read_done(output: Path) -> dict[tuple[str, str], bool]:
    """The `file` and `sound` of each row in the parts, and whether it could not be read."""
    parts = [part.read_text("utf-8").split("\n") for part in sorted(output.glob("*.jsonl"))]
    rows = [json.loads(line) for part in parts for line in part if line]
    return {(row["file"], row.get("sound", "")): "error" in row for row in rows}


def run(arguments: BulkArguments) -> tuple[int, int, int]:
    """Transcribe what is not done yet; returns its numbers of sounds and failures, and failures of earlier runs."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # One CPU more than the workers take, because reading the corpus is a task too. Ray's dashboard is of no use here,
    # and takes three seconds to start.
    own = {"num_cpus": arguments.workers * arguments.threads + 1, "include_dashboard": False}
    here = {} if arguments.address else own
    ray.init(address=arguments.address, log_to_driver=False, **here)
    output = Path(arguments.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    done = read_done(output)
    rows = read_corpus(arguments.corpus, set(done))
    parts = rows.repartition(target_num_rows_per_block=arguments.part).map_batches(
        Transcriber,
        fn_constructor_args=(replace(arguments, output=str(output)),),
        batch_size=arguments.part,
        compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        num_cpus=arguments.threads,
        num_gpus=arguments.gpus,
    )
    counts = parts.take_all()
    before = sum(failed and (bool(sound) or Path(file).exists()) for (file, sound), failed in done.items())
    return sum(row["sounds"] for row in counts), sum(row["failed"] for row in counts), before


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 all done, 1 some sounds could not be read."""
    from transformers import HfArgumentParser

    words = list(sys.argv[1:] if argv is None else argv)
    corpus = ["--corpus", words.pop(0)] if words and not words[0].startswith("-") else []
    (arguments,) = HfArgumentParser(BulkArguments, description=__doc__).parse_args_into_dataclasses([*corpus, *words])
    sounds, failed, before = run(arguments)
    print(f"{sounds} sounds, {failed} of them could not be read; the texts are in {arguments.output}", file=sys.stderr)
    if before:
        print(
            f"{before} could not be read in an earlier run; to try them again, remove the lines with an error.",
            file=sys.stderr,
        )
    return 1 if failed or before else 0
