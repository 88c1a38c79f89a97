"""Adapt the mini model to a voice with about a hundred clips, on a laptop, in under five minutes.

1. Put your clips into a folder with a table `clips.tsv` next to them (tab-separated, with a header line):

       file        text
       001.wav     今天天气很好
       002.wav     我们去吃饭吧

2. python examples/fine_tune.py clips.tsv --output_dir my-model

3. pinyin-llm transcribe --model my-model talk.wav

With `--test`, a table of other clips of the same voice, it prints the character error rate before and after. Only the
pinyin bridge is trained, that is, how the voice sounds; the language model already knows the words from text. One step
per clip at a low rate is enough; more would make the model forget other voices. A hundred clips of a real voice that
the model did not know brought the error rate on 92 others from 18.6 to 17.7 %. Ten clips are too few: in forty steps
they brought it from 18.6 to 19.1. (Three beams, before there were n-grams; with n-grams it is 15.3 to begin with.)
"""

import argparse
import tempfile
from pathlib import Path

from pinyin_llm import train_asr
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.corpora.manifest import read_manifest
from pinyin_llm.inference.loading import MINI_MODEL, load_model
from pinyin_llm.scoring.cer import score
from pinyin_llm.transcription_pinyin_llm import NUM_BEAMS, transcribe_clips


def error_rate(model_folder: str, table: str) -> float:
    """CER of a model on a table of clips."""
    model, processor = load_model(model_folder)
    rows = read_manifest(table)
    texts = transcribe_clips(model, processor, [load_waveform(path) for path in rows["audio"]], num_beams=NUM_BEAMS)
    return score(rows["text"], texts).cer


def fine_tune(model: str, table: str, output_dir: str, steps: int) -> None:
    """Train the bridge of `model` on a table of clips, each at three speeds and with parts of it hidden."""
    with tempfile.TemporaryDirectory() as features:
        flags = {
            "model": model,
            "manifests": table,
            "learn": "pinyin",
            "mask_time": 0.15,
            "learning_rate": 1e-4,
            "warmup_steps": 5,
            "max_steps": steps,
            "per_device_train_batch_size": 10,
            "cache_features": features,
            "output_dir": output_dir,
            "save_strategy": "no",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        train_asr.main([*words, "--speeds", "1.0", "0.9", "1.1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", help="tsv: file, text")
    parser.add_argument("--test", help="tsv: other clips of the same voice")
    parser.add_argument("--model", default=str(MINI_MODEL))
    parser.add_argument("--output_dir", default="my-model")
    parser.add_argument("--steps", type=int, help="of ten clips; as many as there are clips if left out")
    arguments = parser.parse_args()
    steps = arguments.steps or len(read_manifest(arguments.clips))
    fine_tune(arguments.model, arguments.clips, arguments.output_dir, steps)
    print(f"The model is in {Path(arguments.output_dir).resolve()}.")
    if arguments.test:
        for name, model in (("before", arguments.model), ("after", arguments.output_dir)):
            print(f"CER {name}: {100 * error_rate(model, arguments.test):.1f} %")


if __name__ == "__main__":
    main()
