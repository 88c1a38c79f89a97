"""Stage 2: speech enters the slot that pinyin had. The encoder is frozen; projector and lowest LoRA layers learn.

python train_asr.py recipes/mini.yaml:bridge     # the pinyin bridge alone, by CTC, on cached features
python train_asr.py recipes/mini.yaml:asr        # bridge and language model together
python train_asr.py --model p2c --manifests train.tsv --output_dir asr
"""

import sys
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DataArguments:
    """The speech and what learns from it."""

    manifests: list[str] = field(metadata={"help": "Sentences. tsv or jsonl files: file, text, speaker, seconds."})
    word_manifests: list[str] = field(default_factory=list, metadata={"help": "Words or syllables recorded alone."})
    eval_manifests: list[str] = field(default_factory=list, metadata={"help": "Speech that is only written out."})
    cache_features: str = field(default="data/features", metadata={"help": "Folder of the encoder's outputs."})
    speeds: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Learn sentences at these speeds."})
    rooms: int = field(default=0, metadata={"help": "And each in so many small rooms, with noise (needs [corpora])."})
    learn: Literal["text", "pinyin"] = field(
        default="text", metadata={"help": "pinyin: the bridge alone, by CTC; text: characters too."}
    )
    lowest_layers: int = field(default=5, metadata={"help": "LLM layers that learn (the paper: 5); 0 for none."})
    mask_time: float = field(default=0.0, metadata={"help": "Share of a clip's frames that is hidden, in short spans."})
    replay_texts: list[str] = field(
        default_factory=list, metadata={"help": "Text of stage 1; each batch of speech has as many sentences of it."}
    )


def read_speech(manifests: list[str], units):
    """Manifests -> one dataset with `characters` and their `units`, and counts; written pinyin counts as text, too."""
    from datasets import concatenate_datasets

    from pinyin_llm.corpora.manifest import read_manifest
    from pinyin_llm.scoring.normalization import han_only, read_aloud

    def read(text):
        characters, ids = units.encode_characters(han_only(read_aloud(text)))
        slots = [] if ids else units.encode_syllables(text, errors="ignore")
        return {"characters": characters, "units": ids or [slot[0] for slot in slots if len(slot) == 1]}

    rows = concatenate_datasets([read_manifest(path) for path in manifests]).map(read, input_columns="text")
    kept = rows.filter(len, input_columns="units")
    return kept, {"clips": len(kept), "seconds": round(sum(kept["seconds"])), "without_text": len(rows) - len(kept)}


def groups_of(arguments: DataArguments) -> dict[str, tuple[list[str], dict]]:
    """Manifests of each kind of speech, and the changes that make copies of its clips.

    Raises:
        ValueError: Words where text is to be learned.
    """
    from pinyin_llm.training.perturbation import changes_of

    if arguments.learn == "text" and arguments.word_manifests:
        raise ValueError("Words recorded alone teach pinyin: expected no word_manifests beside learn text. Drop them.")
    groups = {"sentences": (arguments.manifests, changes_of(arguments.speeds, arguments.rooms))}
    if arguments.word_manifests:
        groups["words"] = (arguments.word_manifests, changes_of([1.0], rooms=0))
    return groups


def read_features(arguments: DataArguments, model, processor):
    """The encoder's output for all that is learned from, and the counts for the record."""
    from datasets import concatenate_datasets

    from pinyin_llm.training.features import cache_features

    parts, counts = [], {}
    for name, (manifests, changes) in groups_of(arguments).items():
        clips, counts[name] = read_speech(manifests, processor.pinyin_tokenizer)
        rows, dropped = cache_features(clips, model, processor, arguments.cache_features, changes)
        counts[name] |= dropped
        parts.append(rows)
    arrays = {"type": "numpy", "columns": ["hidden"], "output_all_columns": True}
    return concatenate_datasets(parts).with_format(**arrays), counts


class SpeechCollator:
    """Rows with cached encoder outputs -> audio_hidden_states, pinyin labels for a bridge, prompts with their answers.

    With `replay` ([`Replay`]) a batch also has as many rows of stage 1.
    """

    def __init__(self, processor, config, learn: str, mask_time: float = 0.0, replay=None):
        self.processor, self.learn, self.mask_time, self.epoch = processor, learn, mask_time, 0
        self.replay = replay
        self.width, self.has_bridge = config.audio_config.d_model, config.projector_type == "pinyin_bridge"

    def __call__(self, rows: list[dict]):
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from pinyin_llm.configuration_pinyin_llm import num_audio_slots
        from pinyin_llm.training.features import unpack
        from pinyin_llm.training.trainer import reach_of_answers

        hidden = [self._mask(unpack(row, self.width), row["id"]) for row in rows]
        mel_frames = torch.tensor([row["mel_frames"] for row in rows])
        batch = {
            "audio_hidden_states": pad_sequence(hidden, batch_first=True),
            "input_features_mask": (torch.arange(int(mel_frames.max())) < mel_frames[:, None]).long(),
        }
        if self.has_bridge:
            units = [torch.tensor(row["units"]) for row in rows]
            batch["pinyin_labels"] = pad_sequence(units, batch_first=True, padding_value=-100)
        if self.learn == "text":
            counts = num_audio_slots(mel_frames, self.processor.projector_stride).tolist()
            texts = [row["characters"] for row in rows]
            batch |= self.processor.make_prompts(self.processor.audio_token_id, counts, texts)
            batch["logits_to_keep"] = reach_of_answers(batch["labels"])
        if self.replay:
            batch["replay"] = self.replay(rows, self.epoch)
        return batch

    def _mask(self, hidden, clip: str):
        """Hide spans of up to 0.2 s, others in each epoch (after SpecAugment, Park et al. 2019)."""
        from pinyin_llm.training.noise import generator_of

        random, spans = generator_of(self.epoch, clip), int(self.mask_time * len(hidden) / 5)
        for start, length in zip(random.integers(len(hidden), size=spans), random.integers(1, 11, spans), strict=True):
            hidden[start : start + length] = 0
        return hidden


class Replay:
    """Sentences of stage 1 for a batch of speech, so that what the model can do with pinyin is not unlearned."""

    def __init__(self, texts: list[str], processor):
        from pinyin_llm.train_p2c import DataArguments as TextArguments
        from pinyin_llm.train_p2c import PairCollator, read_pairs
        from pinyin_llm.training.noise import NoiseArguments, PinyinNoise

        units = processor.pinyin_tokenizer
        self.pairs, self.counts = read_pairs(TextArguments(texts), units)
        self.collate = PairCollator(processor, PinyinNoise(NoiseArguments(), units))

    def __call__(self, rows: list[dict], epoch: int) -> dict:
        """As many pairs as there are `rows`, drawn by the clips: a resumed run draws the same."""
        from pinyin_llm.training.noise import generator_of

        drawn = generator_of(epoch, rows[0]["id"]).integers(len(self.pairs), size=len(rows))
        return self.collate([self.pairs[int(number)] for number in drawn])


def write_evaluation(model, processor, arguments: DataArguments, rows: int):
    """A function that transcribes the evaluation clips and scores characters and syllables."""
    from pathlib import Path

    from pinyin_llm.audio_pinyin_llm import load_waveform
    from pinyin_llm.corpora.manifest import read_manifest
    from pinyin_llm.generation_pinyin_llm import hear_pinyin, transcribe_clips
    from pinyin_llm.scoring.cer import score, score_syllables

    tables = {path: read_manifest(path)[:rows] for path in arguments.eval_manifests}
    sets = {
        f"{Path(path).parent.name}_{Path(path).stem}": (table["text"], [load_waveform(file) for file in table["audio"]])
        for path, table in tables.items()
    }

    def write():
        metrics, samples = {}, []
        for name, (references, clips) in sets.items():
            if model.config.projector_type == "pinyin_bridge":
                heard = hear_pinyin(model, processor, clips)
                metrics |= {f"{name}_{k}": v for k, v in score_syllables(references, heard).items()}
            if arguments.learn == "text":
                hypotheses = transcribe_clips(model, processor, clips)
                metrics[f"{name}_cer"] = score(references, hypotheses)["cer"]
                samples += list(zip(references, hypotheses, strict=True))[:2]
        return metrics, samples

    return write


def choose_trainable(model, model_arguments, arguments: DataArguments):
    """The projector, and the lowest layers where text is learned."""
    from pinyin_llm.training.trainer import set_trainable

    layers = list(range(arguments.lowest_layers)) if arguments.learn == "text" else []
    model = set_trainable(model, model_arguments, ["multi_modal_projector"], layers or None)
    if arguments.learn == "pinyin":
        model.multi_modal_projector.residual.requires_grad_(False)  # CTC alone gives it no gradient
    return model


def unheard(clip: dict, width: int) -> dict:
    """A clip with zeros for its encoder's output: as long as its manifest says (1 s where it does not say)."""
    import numpy as np

    from pinyin_llm.configuration_pinyin_llm import num_encoder_frames

    frames = round(100 * (clip["seconds"] or 1))
    return clip | {"mel_frames": frames, "hidden": np.zeros(num_encoder_frames(frames) * width, np.float16)}


def show(config, processor, model_arguments, arguments: DataArguments, settings) -> None:
    """Print the counts, the estimate by clips of median and of greatest length, and two rows; nothing is encoded."""
    from pinyin_llm.training.estimate import Row, build_on_meta, estimate
    from pinyin_llm.training.trainer import show_rows

    model = choose_trainable(build_on_meta(config), model_arguments, arguments)
    collator, counts, rows = SpeechCollator(processor, config, arguments.learn), {}, []
    examples, seconds = 0, 0.0
    for name, (manifests, changes) in groups_of(arguments).items():
        clips, counts[name] = read_speech(manifests, processor.pinyin_tokenizer)
        rows += list(clips)
        examples += len(clips) * len(changes)
        seconds += sum(clips["seconds"]) * sum(1 / change.speed for change in changes.values())
    by_length = sorted(rows, key=lambda clip: clip["seconds"])
    shown = [*rows[:2], by_length[len(rows) // 2], by_length[-1]]
    *batches, typical, longest = (collator([unheard(row, config.audio_config.d_model)]) for row in shown)
    sizes = (Row.of(typical, config), Row.of(longest, config))
    together = 2 if arguments.replay_texts else 1
    print(counts, estimate(model, config, model_arguments, settings, sizes, examples, seconds, together), sep="\n")
    print(*(show_rows(batch, processor) for batch in batches), sep="\n")


def main(argv: list[str] | None = None) -> int:
    from pinyin_llm.training.arguments import ModelArguments, parse_arguments

    classes = [ModelArguments, DataArguments]
    arguments = parse_arguments(classes, sys.argv[1:] if argv is None else argv, section="asr")
    model_arguments, data_arguments, training_arguments = arguments

    from transformers import set_seed

    from pinyin_llm.training import trainer as training

    set_seed(training_arguments.seed)  # before new tables and LoRA are drawn

    config, processor = training.load_config(model_arguments)
    if model_arguments.dry_run:
        show(config, processor, model_arguments, data_arguments, training_arguments)
        return 0

    model = training.load_model(model_arguments, config)
    with training_arguments.main_process_first(desc="encoding"):  # the others find it on disk
        rows, counts = read_features(data_arguments, model, processor)
    replay = Replay(data_arguments.replay_texts, processor) if data_arguments.replay_texts else None
    counts |= {"replay": replay.counts} if replay else {}
    print(f"speech: {counts}", file=sys.stderr)  # before hours go by: what was left out
    collator = SpeechCollator(processor, model.config, data_arguments.learn, data_arguments.mask_time, replay)
    write = write_evaluation(model, processor, data_arguments, model_arguments.eval_rows)
    model = choose_trainable(model, model_arguments, data_arguments)
    training.learn(model, processor, arguments, rows, collator, write, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
