"""Speech to characters: CER, time and memory beside Whisper-base's own decoder, on the same clips, normalised alike.

    python benchmarks/asr.py --whisper data/whisper-base data/speech/aishell1_S0150/held_out.tsv ...
    python benchmarks/asr.py --whisper data/whisper-base --peers faster-whisper whisper.cpp --peer_beams 1 5 ...

All run in this process on the same threads, one clip at a time and greedily unless told otherwise; the times are given
as a ratio. Peak memory is that of a fresh process that transcribes the same clips.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from peers import PEERS
from tabulate import tabulate
from tqdm import tqdm

from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.inference.loading import MINI_MODEL, load_model
from pinyin_llm.scoring.cer import Score, score, score_syllables
from pinyin_llm.transcription_pinyin_llm import recognize_pinyin, transcribe_clips


OURS = "PinyinLLM mini"
KINDS = ["wrong syllable", "tone", "character alone", "lost", "inserted", "clips with a repetition %"]


def read_set(named: str, rows: int | None) -> tuple[str, list[str], list]:
    """NAME=MANIFEST or MANIFEST -> name, texts and waveforms of one test set."""
    name, _, manifest = named.rpartition("=")
    table = read_manifest(manifest)[:rows]
    return name or manifest, table["text"], [load_waveform(path) for path in tqdm(table["audio"], desc=manifest)]


def measure(system: str, beams: int, transcribe, sets: list[tuple], batch_size: int) -> list[tuple]:
    """One system on every test set: (set, system, beams, seconds, seconds of speech, score) of each."""
    lines = []
    for name, said, clips in sets:
        transcribe(clips[:1], 1, beams)  # warm up
        start = time.perf_counter()
        texts = transcribe(clips, batch_size, beams)
        seconds = time.perf_counter() - start
        lines.append((name, system, beams, seconds, sum(map(len, clips)) / 16000, score(said, texts)))
    return lines


def cells_of(line: tuple, first: float) -> list:
    """A line of the table: rates, and the time as a multiple of `first`."""
    name, system, beams, seconds, speech, s = line
    cer = f"{100 * s.cer:.1f} ({100 * s.low:.1f} - {100 * s.high:.1f})"
    errors = [s.substitutions, s.deletions, s.insertions, f"{100 * s.homophones:.0f} %"]
    return [name, system, beams, cer, *errors, f"{seconds / speech:.3f}", f"{seconds / first:.2f}"]


def kinds_of_error(s: Score) -> list[str]:
    """Cells under `KINDS`: each kind in % of the reference characters, repetitions in % of the utterances."""
    counts = (s.wrong_syllables, s.wrong_tones, s.wrong_characters, s.deletions, s.insertions)
    return [*(f"{100 * count / s.characters:.1f}" for count in counts), f"{100 * s.repetitions:.1f}"]


def peak_memory(model: str, files: list[str]) -> float:
    """GiB of a fresh `pinyin-llm transcribe`."""
    script = Path(__file__).with_name("memory.py")
    command = [sys.executable, str(script), "transcribe", "--model", str(model), *files]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stderr.split()[-1])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", help="tsv or jsonl (file, text), or NAME=MANIFEST")
    parser.add_argument("--model", default=MINI_MODEL)
    parser.add_argument("--whisper", default="openai/whisper-base")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_beams", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--peers", nargs="+", choices=list(PEERS), default=["transformers"], help="that run Whisper-base"
    )
    parser.add_argument("--peer_beams", type=int, nargs="+", default=None, help="as --num_beams if left out")
    parser.add_argument("--rows", type=int, default=None, help="only the first clips of each manifest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write results.json for the model card, by the last of the beams")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    model, processor = load_model(arguments.model)

    def transcribe(clips, batch_size, num_beams):
        return transcribe_clips(model, processor, clips, batch_size, num_beams=num_beams)

    sets = [read_set(manifest, arguments.rows) for manifest in arguments.manifests]
    # one after the other, each loaded when its turn comes: threads of one engine that wait disturb the next
    found = [measure(OURS, n, transcribe, sets, arguments.batch_size) for n in arguments.num_beams]
    for name in arguments.peers:
        peer = PEERS[name](arguments.whisper, arguments.threads)
        for n in arguments.peer_beams or arguments.num_beams:
            found.append(measure(f"Whisper-base, {name}", n, peer, sets, arguments.batch_size))
    by_set = list(zip(*found, strict=True))
    lines = [line for group in by_set for line in group]
    rates = [cells_of(line, group[0][3]) for group in by_set for line in group]
    headers = ["set", "system", "beams", "CER % (95 %)", "S", "D", "I", "homophones", "RTF", "time / ours"]
    print(tabulate(rates, headers=headers, tablefmt="github"))
    print("\nKinds of error in % of the reference characters:\n")
    kinds = [[*line[:3], *kinds_of_error(line[-1])] for line in lines]
    print(tabulate(kinds, headers=["set", "system", "beams", *KINDS], tablefmt="github"))
    if arguments.json:
        arguments.json.write_text(card_results(by_set), "utf-8")
    if model.config.projector_type == "pinyin_bridge":
        print_syllables(sets, model, processor)
    files = [path for one in arguments.manifests for path in read_manifest(one.rpartition("=")[2])["audio"][:8]]
    memory = peak_memory(arguments.model, files)
    print(f"\nPeak memory of pinyin-llm transcribe on {len(files)} clips: {memory:.2f} GiB")


def card_results(by_set: list[tuple]) -> str:
    """What model_card.py reads: for each set our CER and interval with the last beam width, and the best peer."""
    results = []
    for group in by_set:
        *_, (name, *_, ours) = (line for line in group if line[1] == OURS)
        best = min(line[-1].cer for line in group if line[1] != OURS)
        known = {"name": name, "clips": ours.utterances, "cer": ours.cer, "low": ours.low, "high": ours.high}
        results.append(known | {"compared": f"Whisper-base {100 * best:.1f}"})
    return json.dumps(results, ensure_ascii=False, indent=2) + "\n"


def print_syllables(sets: list, model, processor) -> None:
    """Syllables that the bridge gets wrong, before the language model reads them."""
    lines = []
    for manifest, said, clips in sets:
        rates = score_syllables(said, recognize_pinyin(model, processor, clips))
        lines.append([manifest, *(f"{100 * rate:.1f}" for rate in rates.values())])
    print()
    print(tabulate(lines, headers=["set", "toned syllables wrong %", "toneless %"], tablefmt="github"))


if __name__ == "__main__":
    main()
