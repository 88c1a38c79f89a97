"""Stage 2: speech enters the slots that held pinyin. The encoder is frozen; projector and lowest LoRA layers learn.

python train_asr.py recipes/mini.yaml:bridge     # the pinyin bridge alone, by CTC, on cached features
python train_asr.py recipes/mini.yaml:asr        # bridge and language model together
python train_asr.py --model p2c --manifests train.tsv --output_dir asr
"""

import sys

from pinyin_llm.inference.console import report_errors
from pinyin_llm.training.arguments import ModelArguments, SpeechArguments, parse_arguments


def main(argv: list[str] | None = None) -> int:
    """Train, or print a dry run; the exit code."""
    # Arguments first: --help must not wait for torch and transformers.
    classes = [ModelArguments, SpeechArguments]
    arguments = parse_arguments(classes, sys.argv[1:] if argv is None else argv, section="asr")
    model_arguments, speech_arguments, settings = arguments

    from transformers import set_seed

    from pinyin_llm.training.evaluation import speech_evaluation
    from pinyin_llm.training.preview import preview_stage_2
    from pinyin_llm.training.setup import load_config, model_to_train, train_stage_2
    from pinyin_llm.training.speech_data import Replay, SpeechCollator, read_features
    from pinyin_llm.training.trainer import run_training

    set_seed(settings.seed)  # before new projectors and LoRA are initialised

    config, processor = load_config(model_arguments)
    if model_arguments.dry_run:
        preview_stage_2(config, processor, model_arguments, speech_arguments, settings)
        return 0
    model = model_to_train(model_arguments, config)

    # 1. Speech -> the frozen encoder's output, computed once and kept on disk. Other processes find it there.
    with settings.main_process_first(desc="encoding"):
        rows, counts = read_features(speech_arguments, model, processor)
    replay = None
    if speech_arguments.replay_texts:
        replay = Replay(speech_arguments.replay_texts, processor)
        counts |= {"replay": replay.counts}
    print(f"speech: {counts}", file=sys.stderr)  # what was left out is worth knowing before hours go by
    collator = SpeechCollator(processor, model.config, speech_arguments.learn, speech_arguments.mask_time, replay)

    # 2. The projector is trained, and the lowest layers of the language model where text is learned.
    evaluation = speech_evaluation(processor, speech_arguments, model_arguments.eval_rows)
    model = train_stage_2(model, model_arguments, speech_arguments)

    # 3. Train or resume; evaluate; save the model and the record of the run.
    run_training(model, processor, model_arguments, [speech_arguments], settings, rows, collator, evaluation, counts)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
