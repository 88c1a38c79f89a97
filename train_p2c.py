"""Stage 1: the language model learns to convert pinyin to characters, from text alone.

python train_p2c.py recipes/mini.yaml
python train_p2c.py --texts corpus.txt --output_dir p2c      # Whisper-large-v3 + LLaMA2-7b, LoRA
"""

import sys

from pinyin_llm.inference.console import report_errors
from pinyin_llm.training.arguments import ModelArguments, TextArguments, parse_arguments
from pinyin_llm.training.noise import NoiseArguments


def main(argv: list[str] | None = None) -> int:
    """Train, or print a dry run; the exit code."""
    # Arguments first: --help must not wait for torch and transformers.
    classes = [ModelArguments, TextArguments, NoiseArguments]
    arguments = parse_arguments(classes, sys.argv[1:] if argv is None else argv, section="p2c")
    model_arguments, text_arguments, noise_arguments, settings = arguments

    from transformers import set_seed

    from pinyin_llm.training.evaluation import text_evaluation
    from pinyin_llm.training.noise import PinyinNoise
    from pinyin_llm.training.preview import preview_stage_1
    from pinyin_llm.training.setup import load_config, model_to_train, train_stage_1
    from pinyin_llm.training.text_data import PairCollator, read_pairs
    from pinyin_llm.training.trainer import run_training

    set_seed(settings.seed)  # before new tables and LoRA are initialised

    # 1. Text -> pairs of characters and pinyin units. The noise in the pinyin is drawn when a batch is made.
    config, processor = load_config(model_arguments)
    pairs, counts = read_pairs(text_arguments, processor.pinyin_tokenizer)
    noise = PinyinNoise(noise_arguments, processor.pinyin_tokenizer)
    collator = PairCollator(processor, noise)
    if model_arguments.dry_run:
        print(counts)
        preview_stage_1(config, processor, pairs, collator, model_arguments, settings)
        return 0
    print(f"text: {counts}", file=sys.stderr)  # what was left out is worth knowing before hours go by

    # 2. The model: the pinyin table and every layer of the language model are trained, by LoRA or in full.
    model = model_to_train(model_arguments, config)
    evaluation = text_evaluation(processor, text_arguments.eval_texts, model_arguments.eval_rows)
    model = train_stage_1(model, model_arguments)

    # 3. Train or resume; evaluate; save the model and the record of the run.
    data_arguments = [text_arguments, noise_arguments]
    run_training(model, processor, model_arguments, data_arguments, settings, pairs, collator, evaluation, counts)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
