"""Stage 2: speech enters the slot that pinyin had. The encoder is frozen; projector and lowest LoRA layers learn.

python train_asr.py recipes/mini.yaml:bridge     # the pinyin bridge alone, by CTC, on cached features
python train_asr.py recipes/mini.yaml:asr        # bridge and language model together
python train_asr.py --model p2c --manifests train.tsv --output_dir asr
"""

import sys
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal


@dataclass
class DataArguments:
    """The speech and what learns from it."""

    manifests: list[str] = field(metadata={"help": "Sentences. tsv or jsonl files: file, text, speaker, seconds."})
    word_manifests: list[str] = field(default_factory=list, metadata={"help": "Words or syllables recorded alone."})
    eval_manifests: list[str] = field(default_factory=list, metadata={"help": "Speech that is only written out."})
    cache_features: str = field(default="data/features", metadata={"help": "Folder of the encoder's outputs."})
    speeds: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Learn sentences at these speeds."})
    learn: Literal["text", "pinyin"] = field(
        default="text", metadata={"help": "pinyin: the bridge alone, by CTC; text: characters too."}
    )
    lowest_layers: int = field(default=5, metadata={"help": "LLM layers that learn (the paper: 5); 0 for none."})
    mask_time: float = field(default=0.0, metadata={"help": "Share of a clip's frames that is hidden, in short spans."})


def read_speech(manifests: list[str], units):
    """Manifests -> one dataset with `characters` and their `units`, and counts; written pinyin counts as text, too."""
    from datasets import concatenate_datasets

    from pinyin_llm.corpora.manifest import read_manifest
    from pinyin_llm.text_normalization import han_only, read_aloud

    def read(text):
        characters, ids = units.encode_characters(han_only(read_aloud(text)))
        slots = [] if ids else units.encode_syllables(text, errors="ignore")
        return {"characters": characters, "units": ids or [slot[0] for slot in slots if len(slot) == 1]}

    rows = concatenate_datasets([read_manifest(path) for path in manifests]).map(read, input_columns="text")
    kept = rows.filter(len, input_columns="units")
    return kept, {"clips": len(kept), "seconds": round(sum(kept["seconds"])), "without_text": len(rows) - len(kept)}


def read_features(arguments: DataArguments, model, processor, most: int | None = None):
    """The encoder's output for all that is learned from (`most` clips of each kind), and the counts for the record."""
    from datasets import concatenate_datasets

    from pinyin_llm.corpora.features import cache_features

    if arguments.learn == "text" and arguments.word_manifests:
        raise ValueError("Words recorded alone teach pinyin: expected no word_manifests beside learn text. Drop them.")
    groups = {"sentences": (arguments.manifests, arguments.speeds)}
    if arguments.word_manifests:
        groups["words"] = (arguments.word_manifests, [1.0])
    parts, counts = [], {}
    for name, (manifests, speeds) in groups.items():
        clips, counts[name] = read_speech(manifests, processor.pinyin_tokenizer)
        clips = clips.select(range(min(most or len(clips), len(clips))))
        rows, dropped = cache_features(clips, model, processor, arguments.cache_features, speeds)
        counts[name] |= dropped
        parts.append(rows)
    arrays = {"type": "numpy", "columns": ["hidden"], "output_all_columns": True}
    return concatenate_datasets(parts).with_format(**arrays), counts


class SpeechCollator:
    """Rows with cached encoder outputs -> audio_hidden_states, pinyin labels for a bridge, prompts with their answers."""

    def __init__(self, processor, config, learn: str, mask_time: float = 0.0):
        self.processor, self.learn, self.mask_time, self.epoch = processor, learn, mask_time, 0
        self.width, self.has_bridge = config.audio_config.d_model, config.projector_type == "pinyin_bridge"

    def __call__(self, rows: list[dict]):
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from pinyin_llm.configuration_pinyin_llm import num_audio_slots
        from pinyin_llm.corpora.features import unpack

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
        return batch

    def _mask(self, hidden, clip: str):
        """Hide spans of up to 0.2 s, others in each epoch (after SpecAugment, Park et al. 2019)."""
        from pinyin_llm.noise import generator_of

        random, spans = generator_of(self.epoch, clip), int(self.mask_time * len(hidden) / 5)
        for start, length in zip(random.integers(len(hidden), size=spans), random.integers(1, 11, spans), strict=True):
            hidden[start : start + length] = 0
        return hidden


def write_evaluation(model, processor, arguments: DataArguments, rows: int):
    """A function that transcribes the evaluation clips and scores characters and syllables."""
    from pathlib import Path

    from pinyin_llm.audio_pinyin_llm import load_waveform
    from pinyin_llm.corpora.manifest import read_manifest
    from pinyin_llm.generation_pinyin_llm import hear_pinyin, transcribe_clips
    from pinyin_llm.scoring import score, score_syllables

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


def show(arguments: DataArguments, model, processor) -> None:
    """Print the counts and two rows; only those two are encoded, and nothing is kept."""
    from tempfile import TemporaryDirectory

    from pinyin_llm.training import show_rows

    with TemporaryDirectory() as folder:
        rows, counts = read_features(replace(arguments, cache_features=folder), model, processor, most=2)
        collator = SpeechCollator(processor, model.config, arguments.learn)
        print(counts, show_rows(collator(list(islice(rows, 2))), processor), sep="\n")


def main(argv: list[str] | None = None) -> int:
    from pinyin_llm.arguments import ModelArguments, parse_arguments

    classes = [ModelArguments, DataArguments]
    arguments = parse_arguments(classes, sys.argv[1:] if argv is None else argv, section="asr")
    model_arguments, data_arguments, training_arguments = arguments

    from transformers import set_seed

    from pinyin_llm import training

    set_seed(training_arguments.seed)  # before new tables and LoRA are drawn

    model, processor = training.load_model(model_arguments)
    if model_arguments.dry_run:
        show(data_arguments, model, processor)
        return 0

    rows, counts = read_features(data_arguments, model, processor)
    collator = SpeechCollator(processor, model.config, data_arguments.learn, data_arguments.mask_time)
    write = write_evaluation(model, processor, data_arguments, model_arguments.eval_rows)
    layers = list(range(data_arguments.lowest_layers)) if data_arguments.learn == "text" else []
    model = training.set_trainable(model, model_arguments, ["multi_modal_projector"], layers or None)
    if data_arguments.learn == "pinyin":
        model.multi_modal_projector.residual.requires_grad_(False)  # CTC alone gives it no gradient
    training.learn(model, processor, arguments, rows, collator, write, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
