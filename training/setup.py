"""The model of a training run: configuration, weights, and which of them are trained."""

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer

from .. import PinyinLlamaConfig, PinyinLlamaForASR, PinyinLlamaProcessor
from .arguments import ModelArguments, SpeechArguments


PROJECTOR_FIELDS = (
    "projector_type",
    "projector_stride",
    "projector_pooling",
    "bridge_hidden_size",
    "bridge_num_layers",
)


def load_config(arguments: ModelArguments) -> tuple[PinyinLlamaConfig, PinyinLlamaProcessor]:
    """Everything but the weights: from a PinyinLLM folder, or from a Whisper encoder and a causal LM."""
    projector = {name: getattr(arguments, name) for name in PROJECTOR_FIELDS}
    if arguments.model:
        config = PinyinLlamaConfig.from_pretrained(arguments.model)
        processor = PinyinLlamaProcessor.from_pretrained(arguments.model)
        if arguments.new_projector:
            if arguments.projector_type != "pinyin_bridge":
                config.recognizers = None
            config.update(projector)
            processor.projector_stride = arguments.projector_stride
        return config, processor
    processor = PinyinLlamaProcessor(
        AutoFeatureExtractor.from_pretrained(arguments.audio_tower),
        AutoTokenizer.from_pretrained(arguments.language_model),
        prompt=arguments.prompt,
        projector_stride=arguments.projector_stride,
    )
    config = PinyinLlamaConfig(
        audio_config=AutoConfig.from_pretrained(arguments.audio_tower),
        text_config=AutoConfig.from_pretrained(arguments.language_model),
        audio_token_id=processor.audio_token_id,
        pinyin_token_id=processor.pinyin_token_id,
        pinyin_units=processor.pinyin_units,
        **projector,
    )
    return config, processor


def model_to_train(arguments: ModelArguments, config: PinyinLlamaConfig) -> PinyinLlamaForASR:
    """The model that `config` of `load_config` describes; what the checkpoint lacks is untrained.

    Weights are float32, except with --frozen_bf16: then the two bases are read as bfloat16 from the start.
    """
    dtype = torch.bfloat16 if arguments.frozen_bf16 and arguments.lora else torch.float32
    if not arguments.model:
        return PinyinLlamaForASR.from_base_models(config, arguments.audio_tower, arguments.language_model, dtype)
    model = PinyinLlamaForASR.from_pretrained(arguments.model, dtype=dtype if config.delta else torch.float32)
    if arguments.save == "delta" and model.delta is None:
        raise ValueError(
            f"{arguments.model} is a whole model; a delta needs its two bases. Start from those, or use --save whole."
        )
    return replace_projector(model, config) if arguments.new_projector else model


def replace_projector(model: PinyinLlamaForASR, config: PinyinLlamaConfig) -> PinyinLlamaForASR:
    """The model with an untrained projector as `config` describes it: one model of stage 1 serves every kind."""
    decoder = model.text_decoder if config.projector_type == "pinyin_bridge" else None  # it needs a bridge
    renewed = PinyinLlamaForASR.from_parts(config, model.audio_tower, model.language_model, decoder)
    for name in ("pinyin_embeddings", "delta", "adapters"):
        setattr(renewed, name, getattr(model, name))
    return renewed


def train_stage_1(model: PinyinLlamaForASR, arguments: ModelArguments):
    """Make the pinyin table and every layer of the language model trainable; see `set_trainable`."""
    layers = list(range(model.config.text_config.num_hidden_layers))
    return set_trainable(model, arguments, ["pinyin_embeddings"], layers)


def train_stage_2(model: PinyinLlamaForASR, arguments: ModelArguments, speech: SpeechArguments):
    """Make the projector trainable, and the lowest layers where text is learned; see `set_trainable`."""
    layers = list(range(speech.lowest_layers)) if speech.learn == "text" else []
    model = set_trainable(model, arguments, ["multi_modal_projector"], layers or None)
    if speech.learn == "pinyin":
        model.multi_modal_projector.residual.requires_grad_(False)  # CTC alone gives it no gradient
    return model


def set_trainable(model: PinyinLlamaForASR, arguments: ModelArguments, parts: list[str], layers: list[int] | None):
    """Train `parts` of the model and its language model: by LoRA in `layers`, or in full without LoRA.

    Args:
        parts: Modules trained in full ("pinyin_embeddings", "multi_modal_projector").
        layers: Decoder layers; `None` leaves the language model as it is.

    Returns:
        The model, wrapped by PEFT if LoRA is used.
    """
    model.requires_grad_(False)
    for part in parts:
        model.get_submodule(part).requires_grad_(True)
    if layers is not None and not arguments.lora:
        model.language_model.requires_grad_(True)
    for parameter in model.parameters():
        if arguments.frozen_bf16 and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    if layers is None or not arguments.lora:
        return model
    from peft import LoraConfig, get_peft_model

    numbers = "|".join(map(str, layers))  # a full path: layers_to_transform would also match the Whisper layers
    pattern = rf"language_model\..*layers\.({numbers})\..*(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(
        r=arguments.lora, lora_alpha=arguments.lora_alpha, target_modules=pattern, modules_to_save=parts
    )
    return get_peft_model(model, config)
