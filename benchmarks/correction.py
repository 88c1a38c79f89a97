"""`pinyin-llm correct` on the texts of several recognisers, and what it does to faultless text, by strength.

    python benchmarks/correction.py --whisper data/whisper-base --texts data/whisper_texts \
      data/speech/dev_speakers/manifest.tsv data/speech/aishell1_S0150/held_out.tsv \
      --faultless benchmarks/p2c_dev/*.tsv --plot docs/results/correction.png

The texts of Whisper-base are kept in the folder `--texts`, so that a second run needs no Whisper.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from peers import PEERS
from tabulate import tabulate

from pinyin_llm import correct
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.inference.loading import MINI_MODEL, load_model
from pinyin_llm.scoring.cer import score
from pinyin_llm.scoring.normalization import han_only
from pinyin_llm.transcription_pinyin_llm import transcribe_clips


# name, peer (`None`: our own bridge, without Whisper's decoder), beams
RECOGNISERS = (
    ("Whisper-base, faster-whisper int8", "faster-whisper", 1),
    ("Whisper-base, faster-whisper int8", "faster-whisper", 5),
    ("Whisper-base, transformers", "transformers", 1),
    ("PinyinLLM mini, bridge alone", None, 1),
)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
CURVE_OF = 1  # of the recognisers: five beams


def recognize(number: int, manifests: list[str], arguments: argparse.Namespace) -> list[list[str]]:
    """The texts of one recogniser for each test set."""
    _, peer, beams = RECOGNISERS[number]
    found = []
    for manifest in manifests:
        kept = Path(arguments.texts, f"{peer or 'bridge'}_{beams}_{Path(manifest).parent.name}.txt")
        if not kept.exists():
            clips = [load_waveform(path) for path in read_manifest(manifest)["audio"]]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text("\n".join(_transcribe(peer, beams, clips, arguments)) + "\n", "utf-8")
        found.append(kept.read_text("utf-8").split("\n")[:-1])
    return found


def _transcribe(peer: str | None, beams: int, clips: list, arguments: argparse.Namespace) -> list[str]:
    if peer:
        texts = PEERS[peer](arguments.whisper, arguments.threads)(clips, 8, beams)
        return [" ".join(text.split()) for text in texts]
    model, processor = load_model(arguments.model)
    return transcribe_clips(model, processor, clips, num_beams=beams, recognizers=["bridge"])


def count_changed(model, processor, texts: list[str], strength: float) -> tuple[int, int]:
    """How many Han characters of faultless lines correction changes, and how many there are."""
    corrected = [correction.text for correction in correct(model, processor, texts, strength)]
    changed = sum(a != b for pair in zip(texts, corrected, strict=True) for a, b in zip(*pair, strict=True))
    return changed, sum(len(han_only(text)) for text in texts)


def read_texts(path: str) -> list[str]:
    """The column `text`, or `written`, of a tsv file."""
    with open(path, encoding="utf-8") as lines:
        return [
            row.get("text") or row["written"] for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def plot(curve: list[tuple[float, float, float]], path: Path) -> None:
    """Harm and help by strength, as one line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    harm, help_ = ([100 * point[i] for point in curve] for i in (1, 2))
    axes.plot(harm, help_, "o-")
    for strength, x, y in curve:
        axes.annotate(f"{strength:g}", (100 * x, 100 * y), xytext=(5, -11), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("harm: characters changed in faultless text, %")
    axes.set_ylabel("help: errors of Whisper-base removed, %")
    axes.set_title("pinyin-llm correct by strength")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=150)


def print_recognisers(model, processor, manifests: list[str], said: list, texts: list) -> None:
    """CER of each recogniser's texts before and after correction, and the speed of correction."""
    lines = []
    for (name, _, beams), sets in zip(RECOGNISERS, texts, strict=True):
        for manifest, spoken, own in zip(manifests, said, sets, strict=True):
            start = time.process_time()
            corrected = [correction.text for correction in correct(model, processor, own)]
            speed = sum(map(len, own)) / (time.process_time() - start)
            before, after = score(spoken, own).cer, score(spoken, corrected).cer
            lines.append([name, beams, manifest, *(f"{100 * x:.1f}" for x in (before, after)), f"{speed:.0f}"])
    headers = ["recogniser", "beams", "set", "CER %", "corrected", "characters per CPU second"]
    print(tabulate(lines, headers=headers, tablefmt="github"))


def print_harm(model, processor, faultless: dict[str, list[str]]) -> None:
    counts = {path: count_changed(model, processor, lines, 1.0) for path, lines in faultless.items()}
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    harms = [[path, f"{100 * changed / size:.3f}"] for path, (changed, size) in counts.items()]
    print("\nHarm at strength 1:\n")
    print(tabulate(harms, headers=["faultless text", "characters changed %"], tablefmt="github"))


def print_curve(model, processor, said: list[str], texts: list[str], faultless: list[str], file: Path | None) -> None:
    """Harm and help by strength, as a table and, if asked for, as a picture."""
    before, curve = score(said, texts).cer, []
    for strength in STRENGTHS:
        corrected = [correction.text for correction in correct(model, processor, texts, strength)]
        changed, size = count_changed(model, processor, faultless, strength)
        curve.append((strength, changed / size, 1 - score(said, corrected).cer / before))
    print(f"\nBy strength ({len(faultless)} faultless lines; {RECOGNISERS[CURVE_OF][0]}, five beams):\n")
    rows = [[strength, f"{100 * harm:.2f}", f"{100 * gain:.1f}"] for strength, harm, gain in curve]
    print(tabulate(rows, headers=["strength", "harm %", "help %"], tablefmt="github"))
    if file:
        plot(curve, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", help="speech with its texts")
    parser.add_argument("--model", default=MINI_MODEL)
    parser.add_argument("--whisper", default="openai/whisper-base")
    parser.add_argument("--texts", default="data/whisper_texts", help="folder of the recognisers' texts")
    parser.add_argument("--faultless", nargs="+", required=True, help="tsv files with a column text")
    parser.add_argument("--every", type=int, default=4, help="of the faultless lines, for the curve")
    parser.add_argument("--plot", type=Path, help="png of the curve")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    said = [list(map(han_only, read_manifest(manifest)["text"])) for manifest in arguments.manifests]
    texts = [recognize(number, arguments.manifests, arguments) for number in range(len(RECOGNISERS))]
    faultless = {path: read_texts(path) for path in arguments.faultless}
    model, processor = load_model(arguments.model)
    print_recognisers(model, processor, arguments.manifests, said, texts)
    print_harm(model, processor, faultless)
    sample = [line for lines in faultless.values() for line in lines][:: arguments.every]
    print_curve(model, processor, sum(said, []), sum(texts[CURVE_OF], []), sample, arguments.plot)


if __name__ == "__main__":
    main()
