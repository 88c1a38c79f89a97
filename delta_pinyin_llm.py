"""A delta: a folder with only the trained weights, and the names of the two base models that they belong to.

    config.json          as in a whole model; `delta` names the bases and counts the adapters
    model.safetensors    projector and pinyin table
    adapter_1, ...       LoRA of the language model, one PEFT folder per stage that trained it, merged in this order

Each adapter is an ordinary PEFT adapter of the language model.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, resolve_revision

from .configuration_pinyin_llm import PinyinLlamaConfig
from .encoder_pinyin_llm import PinyinLlamaAudioTower


LEARNED_IN_FULL = ("multi_modal_projector.", "pinyin_embeddings.")
FOR_LANGUAGE_MODEL = ("quantization_config", "device_map", "attn_implementation")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
IN_MODEL, ALONE = "base_model.model.language_model.", "base_model.model."  # prefixes of PEFT's weight names


def name_base(name: str) -> dict[str, str | None]:
    """The folder or Hub id of a base and its commit, for `PinyinLlamaConfig.delta`."""
    return {"name": str(name), "revision": getattr(resolve_revision(name), "resolved", None)}


def read_delta_config(folder, arguments: dict) -> PreTrainedConfig | None:
    """The configuration of a folder of [`save_delta`]; `None` for a whole model.

    Args:
        folder: Folder or Hub id; `None` if `arguments` contain the configuration.
        arguments: Those of `from_pretrained`.
    """
    config = arguments.get("config")
    if not isinstance(config, PreTrainedConfig):
        where = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
        config = PinyinLlamaConfig.from_pretrained(config or folder, **where)
    return config if config.delta else None


def _load_base(load, base: dict, folder, **kwargs):
    try:
        return load(base["name"], revision=base["revision"], **kwargs)
    except OSError as error:
        raise OSError(
            f"{folder} is a delta of {base['name']}, which could not be loaded ({error}). "
            "Put it there, or name another place under `delta` in config.json."
        ) from error


def _load_adapters(language_model, folder, count: int, hub: dict) -> tuple[torch.nn.Module, list]:
    """The language model with `count` adapters merged, and the adapters: PEFT's configuration and weights of each."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(f"{folder} holds LoRA adapters, which need peft: pip install peft.") from error
    adapters = []
    for number in range(1, count + 1):
        subfolder = "/".join(filter(None, (hub.get("subfolder"), f"adapter_{number}")))
        adapted = PeftModel.from_pretrained(language_model, folder, **hub | {"subfolder": subfolder})
        adapters.append(
            (adapted.peft_config["default"], get_peft_model_state_dict(adapted, save_embedding_layers=False))
        )
        language_model = adapted.merge_and_unload()
    return language_model, adapters


def load_delta(model_class, folder, config: PreTrainedConfig, arguments: dict) -> tuple[torch.nn.Module, dict]:
    """A folder of [`save_delta`] -> the whole model, and the keys that are missing or left over.

    The bases are loaded in `dtype` (float32 by default), the trained weights as they were saved. Nothing is copied:
    there is never a second copy of a base in memory.

    Args:
        model_class: `PinyinLlamaForASR`.
        folder: Folder or Hub id.
        config: Its configuration.
        arguments: Those of `from_pretrained`; the language model gets those named in `FOR_LANGUAGE_MODEL`.

    Raises:
        OSError: A base, or a file of the folder, is missing.
        ValueError: Tensors of another shape than the configuration says.
    """
    hub = {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}
    dtype = arguments.get("dtype") or arguments.get("torch_dtype") or "auto"
    dtype = (config.dtype or torch.float32) if dtype == "auto" else dtype
    placed = {name: arguments[name] for name in FOR_LANGUAGE_MODEL if arguments.get(name) is not None}
    tower = _load_base(PinyinLlamaAudioTower.from_whisper, config.delta["audio_tower"], folder, dtype=dtype)
    load = AutoModelForCausalLM.from_pretrained
    language_model = _load_base(load, config.delta["language_model"], folder, dtype=dtype, **placed)
    language_model, adapters = _load_adapters(language_model, folder, config.delta["adapters"], hub)
    model = model_class.from_parts(config, tower, language_model)
    model.delta, model.adapters, model.generation_config = (
        config.delta,
        adapters,
        GenerationConfig.from_pretrained(folder, **hub),
    )
    try:
        keys = model.load_state_dict(load_file(cached_file(folder, SAFE_WEIGHTS_NAME, **hub)), strict=False)
    except RuntimeError as error:  # torch's message names the tensors and both shapes
        raise ValueError(f"{folder}: {error}") from error
    for part in (model.audio_tower, model.multi_modal_projector, model.pinyin_embeddings):
        part.to(language_model.device)
    missing = [name for name in keys.missing_keys if name.startswith(LEARNED_IN_FULL)]
    return model.eval(), {"missing_keys": missing, "unexpected_keys": keys.unexpected_keys}


def save_delta(model, folder: str | Path) -> None:
    """Write what was trained on top of the bases: the LoRA of this stage and of those before it, projector and table.

    Args:
        model: A `PinyinLlamaForASR` built on bases or loaded from a delta, wrapped by PEFT if LoRA was trained. Its
            LoRA is merged.
    """
    adapters = list(model.adapters)
    if hasattr(model, "merge_and_unload"):
        adapters.append(_lora_of_language_model(model))
        model = model.merge_and_unload()
    for number, (lora, weights) in enumerate(adapters, start=1):
        lora.save_pretrained(Path(folder, f"adapter_{number}"))
        save_file(weights, Path(folder, f"adapter_{number}", "adapter_model.safetensors"), {"format": "pt"})
    learned = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(LEARNED_IN_FULL)}
    model.config.delta = {**model.delta, "adapters": len(adapters)}
    model.save_pretrained(folder, state_dict=learned)
    model.config.delta = None  # the model in memory is whole


def _lora_of_language_model(model) -> tuple:
    """The adapter that is being trained, as PEFT's configuration and weights for the language model alone."""
    from peft import get_peft_model_state_dict

    weights = {
        name.replace(IN_MODEL, ALONE): tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if name.startswith(IN_MODEL)
    }
    modules = {name.removeprefix(ALONE).partition(".lora_")[0] for name in weights}
    base = model.delta["language_model"]
    lora = replace(
        model.peft_config["default"],
        target_modules=modules,
        modules_to_save=None,
        base_model_name_or_path=base["name"],
        revision=base["revision"],
        inference_mode=True,
    )
    return lora, weights
