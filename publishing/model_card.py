"""The model card of a folder, from its configuration, the records of its runs and its measured results.

run_1.json, run_2.json, ..., run.json    written by the training scripts, one per stage
results.json   written by benchmarks/asr.py --json
card.yaml      by hand: further front matter (license, base_model, datasets) and `training_data`; a licence of the
language
               model that is not in TERMS must be given here; `went_on_from` is the `training_data` of the model before
"""

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..ngrams_pinyin_llm import FILE_NAME
from ..training.records import records_of


SAMPLES = ("BAC009S0764W0121.wav", "BAC009S0764W0122.wav")  # of samples/, published with the model
TAGS = ["mandarin", "pinyin", "speech-llm", "custom_code"]
TERMS = {
    "meta-llama/Llama-2": (
        "llama2",
        "Its language model is LLaMA-2: the LLAMA 2 Community License Agreement and Meta's acceptable use policy "
        "apply, and the line: Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, "
        "Inc. All Rights Reserved.",
    ),
    "google/gemma": ("gemma", "Its language model is Gemma: the Gemma Terms of Use apply."),
    "openai/whisper": (
        "apache-2.0",
        "The encoder is Whisper's (OpenAI), whose weights are free to use: Apache-2.0, or MIT.",
    ),
}
LICENSE, CODE_TERMS = "apache-2.0", "The code is Apache-2.0."
UNKNOWN, NOT_KNOWN = "other", "Its language model has terms of its own, which apply to these weights too."


def write_card(folder: Path, repo_id: str) -> None:
    """Write README.md into a model folder.

    Raises:
        ValueError: Facts that contradict each other, as huggingface_hub reports them.
    """
    given = _read_yaml(folder / "card.yaml")
    records = [json.loads(path.read_text("utf-8")) for path in records_of(folder)]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    results = json.loads((folder / "results.json").read_text("utf-8")) if (folder / "results.json").exists() else []
    bases = given.pop("base_model", None) or _bases(records, config)
    bases = [bases] if isinstance(bases, str) else bases
    training_data = given.pop("training_data", "The records of the runs (run*.json) name the files of each stage.")
    if before := given.pop("went_on_from", None):
        training_data += f" It started from a model trained on: {before}"
    data = _front_matter(repo_id, bases, results, given)
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).parent / "hub" / "model_card.md"),
        repo_id=repo_id,
        model_name=repo_id.rpartition("/")[2],
        audio_tower=next((base for base in bases if "whisper" in base.lower()), "Whisper"),
        language_model=config["text_config"]["model_type"],
        projector=_projector(config),
        delta=", ".join(_name_base(config["delta"][part]) for part in ("audio_tower", "language_model"))
        if config.get("delta")
        else "",
        parts=parameters_in_files(folder),
        ngrams=(folder / FILE_NAME).exists(),
        stages=[{"command": record["command"], "about": _about(record)} for record in records],
        training_data=training_data,
        results=results,
        compared=any(result.get("compared") for result in results),
        terms=_terms(bases, data.license),
    )
    card.save(folder / "README.md")


def _front_matter(repo_id: str, bases: list[str], results: list[dict], given: dict) -> ModelCardData:
    """The metadata of the Hub; `given` overrides what is derived here."""
    samples = f"https://huggingface.co/{repo_id}/resolve/main/samples"
    made = {
        "language": "zh",
        "license": _license(bases),
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": TAGS,
        "metrics": ["cer"],
        "base_model": bases,
        "widget": [{"example_title": name, "src": f"{samples}/{name}"} for name in SAMPLES],
    }
    if results:
        made |= {"model_name": repo_id.rpartition("/")[2], "eval_results": list(map(_eval_result, results))}
    return ModelCardData(**(made | given))


def _eval_result(result: dict) -> EvalResult:
    return EvalResult(
        task_type="automatic-speech-recognition",
        task_name="Automatic Speech Recognition",
        dataset_type=re.sub(r"\W+", "-", result["name"].lower()),
        dataset_name=result["name"],
        metric_type="cer",
        metric_name="CER (%)",
        metric_value=round(100 * result["cer"], 2),
    )


def parameters_in_files(folder: Path) -> dict[str, int]:
    """Parameters by part, read from the headers of the weight files."""
    from math import prod

    from safetensors import safe_open

    counts: dict[str, int] = {}
    files = {*folder.glob("*.safetensors"), *folder.glob("adapter_*/*.safetensors")} - {folder / FILE_NAME}
    for path in sorted(files):
        with safe_open(path, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a mapping)
                part = "LoRA" if path.parent != folder else name.partition(".")[0]
                counts[part] = counts.get(part, 0) + prod(weights.get_slice(name).get_shape())
    return counts


def _bases(records: list[dict], config: dict) -> list[str]:
    if config.get("delta"):
        return [config["delta"][part]["name"] for part in ("audio_tower", "language_model")]
    first = next((record["arguments"] for record in records if not record["arguments"].get("model")), {})
    names = [first.get(part) for part in ("audio_tower", "language_model")]
    return [name for name in names if name and name.count("/") == 1 and not Path(name).exists()]


def _license(bases: list[str]) -> str:
    """The strictest licence of the bases: a language model's own terms take precedence over a free licence.

    "other" if a base is unknown or a local folder; card.yaml may say what it is.
    """
    found = [next((own for prefix, (own, _) in TERMS.items() if base.startswith(prefix)), UNKNOWN) for base in bases]
    found += [UNKNOWN] * (2 - len(bases))
    return next((license for license in found if license != LICENSE), LICENSE)


def _terms(bases: list[str], license: str) -> str:
    found = [terms for prefix, (_, terms) in TERMS.items() if any(base.startswith(prefix) for base in bases)]
    found += [NOT_KNOWN] if license == UNKNOWN else []
    return " ".join([CODE_TERMS, *found, "The texts and speech that it was trained on have terms of their own."])


def _projector(config: dict) -> str:
    if config["projector_type"] == "pinyin_bridge":
        return "a pinyin bridge (CTC to pinyin, then the rows of the pinyin table)"
    return f"a {config['projector_pooling']} pooling of {config['projector_stride']} frames and a linear layer"


def _name_base(base: dict) -> str:
    return f"[{base['name']}](https://huggingface.co/{base['name']}/tree/{base['revision']})"


def _about(record: dict) -> str:
    """Steps, learning rate and metrics of one stage, as recorded."""
    arguments = record["arguments"]
    facts = [f"{arguments['max_steps']} steps" if arguments.get("max_steps", -1) > 0 else ""]
    facts.append(f"learning rate {arguments['learning_rate']}")
    facts += [
        f"{name.removeprefix('eval_')} {value:.4f}" for name, value in record["metrics"].items() if name != "epoch"
    ]
    return ", ".join(filter(None, facts)) + "."


def _read_yaml(path: Path) -> dict:
    import yaml

    return (yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}
