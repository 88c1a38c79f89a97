"""A corpus of any size -> transcripts, on Ray Data: one machine, or a cluster by its address.

    python -m pinyin_llm.bulk recordings/ --output texts/ --workers 2
    python -m pinyin_llm.bulk corpus.parquet --output texts/ --workers 64 --address auto

The corpus is a folder of sound files (on a cluster: one that every machine sees), or parquet with a column `audio` as datasets writes it.
The output is jsonl in parts: file, sound (of parquet: a digest), text, seconds, chunks, and an error where there is one.
Given again, it goes on where it stopped; a worker that dies is replaced, and what it was doing is done again.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass
class BulkArguments:
    """What is transcribed, where to, and by how many."""

    corpus: str = field(metadata={"help": "Folder of sounds, or parquet file or folder."})
    output: str = field(metadata={"help": "Folder of the parts."})
    model: str | None = field(default=None, metadata={"help": "Folder or Hub id; the mini model if left out."})
    workers: int = field(default=1, metadata={"help": "Processes that each hold the model."})
    threads: int = field(default=1, metadata={"help": "CPU threads of each; Ray counts them as its CPUs."})
    gpus: float = field(default=0, metadata={"help": "GPUs of each, e.g. 0.5."})
    batch_size: int = field(default=16, metadata={"help": "Pieces of sound at once."})
    num_beams: int = field(default=5, metadata={"help": "Beams."})
    address: str | None = field(
        default=None, metadata={"help": "Of a Ray cluster; a new one on this machine if left out."}
    )
    part: int = field(default=64, metadata={"help": "Sounds of a part: what is done again when a worker dies."})


class Transcriber:
    """A worker: the model, loaded once.

    Args:
        arguments: As the command had them.
    """

    def __init__(self, arguments: BulkArguments):
        import torch

        from ..inference.files import MINI_MODEL, load_model

        torch.set_num_threads(arguments.threads)
        self.model, self.processor = load_model(arguments.model or MINI_MODEL)
        self.arguments = arguments

    def __call__(self, batch: dict) -> dict:
        """Rows of `file`, `sound` and, from parquet, `audio` -> a part of the output; how many rows and errors it has."""
        from ..inference.files import write_whole
        from ..pipeline_pinyin_llm import transcribe
        from ..transcript_pinyin_llm import as_dict

        files = [str(name) for name in batch["file"]]
        options = {"batch_size": self.arguments.batch_size, "num_beams": self.arguments.num_beams}
        found = transcribe(self.model, self.processor, batch.get("audio", files), **options)
        named = [
            {"file": file, "sound": str(sound)} if sound else {"file": file}
            for file, sound in zip(files, batch["sound"], strict=True)
        ]
        rows = [as_dict(transcript) | names for names, transcript in zip(named, found, strict=True)]
        # rows that are done again replace themselves
        name = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_whole(Path(self.arguments.output, f"part-{name}.jsonl"), "\n".join(lines) + "\n")
        return {"sounds": [len(rows)], "failed": [sum("error" in row for row in rows)]}


def read_corpus(corpus: str, done: set[tuple[str, str]]):
    """A Ray dataset of what is not done yet: `file`, `sound`, and `audio` for parquet.

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
    """`file`, or the corpus where there is none, and a digest of the `sound`: datasets keeps paths without their folders."""
    return {"file": audio["path"] or corpus, "sound": hashlib.sha256(audio["bytes"] or b"").hexdigest()[:16]}


def read_done(output: Path) -> dict[tuple[str, str], bool]:
    """The `file` and `sound` of each row that the parts hold, and whether it could not be read."""
    parts = [part.read_text("utf-8").split("\n") for part in sorted(output.glob("*.jsonl"))]
    rows = [json.loads(line) for part in parts for line in part if line]
    return {(row["file"], row.get("sound", "")): "error" in row for row in rows}


def run(arguments: BulkArguments) -> tuple[int, int, int]:
    """(sounds, failed) of what was not done before, and how many had failed before."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # on this machine one more than the workers take: reading the corpus is a task, too
    here = {} if arguments.address else {"num_cpus": arguments.workers * arguments.threads + 1}
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
        print(f"{before} could not be read before; to try them again, remove the lines with an error.", file=sys.stderr)
    return 1 if failed or before else 0
