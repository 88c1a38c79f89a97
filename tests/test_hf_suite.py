"""transformers' own tests of a model, on tiny random ones: `pytest -m hf_suite`.

They are not part of the installed package, so its source distribution is fetched once, in the version installed here.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
import warnings
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
import transformers
from conftest import build_config, build_processor, tone
from filelock import FileLock
from transformers import PreTrainedModel
from transformers.testing_utils import torch_device

from pinyin_llm import PinyinLlamaConfig, PinyinLlamaForASR


pytestmark = pytest.mark.hf_suite
PACKAGE = "transformers_tests"
# Mixins that the tests inherit from and the source distribution leaves out; an empty one stands for each.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def fetch_tests(cache: Path) -> None:
    """Put `tests/` of transformers' source distribution into `cache`, nothing else of it.

    Raises:
        subprocess.SubprocessError: pip cannot download it.
    """
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "transformers", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, f"transformers=={transformers.__version__}"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.isfile() and Path(m.name).parts[1:2] == ("tests",)]
            tar.extractall(folder, members, filter="data")
        (tests,) = Path(folder).glob("*/tests")
        tests.rename(cache / PACKAGE)  # last, so that what is in the cache is whole


def import_tests() -> ModuleType:
    """transformers' `test_modeling_common`; without it this module is skipped."""
    pytest.importorskip("parameterized", reason="transformers' tests need parameterized: pip install '.[test]'")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "pinyin_llm" / f"transformers-{transformers.__version__}"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache / "lock"):  # pytest collects in two processes
            if not (cache / PACKAGE).exists():
                fetch_tests(cache)
    except subprocess.SubprocessError as error:
        pytest.skip(
            f"transformers' source distribution cannot be fetched: {error.stderr or error}", allow_module_level=True
        )
    sys.path.append(str(cache))
    for name, mixin in LEFT_OUT.items():
        if not (cache / PACKAGE / name.replace(".", "/")).with_suffix(".py").exists():
            module = sys.modules[f"{PACKAGE}.{name}"] = ModuleType(f"{PACKAGE}.{name}")
            setattr(module, mixin, type(mixin, (), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # the marks of their own pytest.ini
        return importlib.import_module(f"{PACKAGE}.test_modeling_common")


common = import_tests()

NOT_AN_ENCODER = "speech becomes Slots, several tensors of which no encoder's output class tells"
SKIPPED = {
    "test_generation_tester_mixin_inheritance": "the mixin is not in the source distribution",
    "test_model_base_model_prefix": "three parts side by side, none of them the base of the others",
    "test_get_audio_features_output_0": NOT_AN_ENCODER,
    "test_get_audio_features_output_1": NOT_AN_ENCODER,
    "test_get_audio_features_output_2": NOT_AN_ENCODER,
    "test_get_audio_features_hidden_states": NOT_AN_ENCODER,
    "test_get_audio_features_attentions": NOT_AN_ENCODER,
}
NO_SPEECH = "counts on the audio tower's layers, and no speech is given"
SKIPPED_WITHOUT_SPEECH = {
    "test_training_gradient_checkpointing": NO_SPEECH,
    "test_training_gradient_checkpointing_use_reentrant_false": NO_SPEECH,
    "test_training_gradient_checkpointing_use_reentrant_true": NO_SPEECH,
}


PLACEHOLDERS = {"audio_token_id": 10, "pinyin_token_id": 11}  # the tests look all ids up, and clamp them to the table


class ModelTester:
    """What the tests ask of a model: its configuration and a batch of two rows of different lengths.

    Args:
        kind: Of the projector, as in `build_config`.
        inputs: For the processor.
    """

    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 32

    def __init__(self, kind: str, **inputs):
        self.kind = kind
        processor = build_processor("{slot}汉字：")
        self.inputs = processor(**inputs)
        input_ids = self.inputs["input_ids"]
        for name, placeholder in PLACEHOLDERS.items():
            input_ids[input_ids == getattr(processor, name)] = placeholder
        self.batch_size, self.seq_length = input_ids.shape

    def get_config(self) -> PinyinLlamaConfig:
        return build_config(self.kind, **PLACEHOLDERS)

    def prepare_config_and_inputs_for_common(self) -> tuple[PinyinLlamaConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {name: value.to(torch_device) for name, value in self.inputs.items()}


def fill_gaps(test):
    """`test` with transformers' `from_pretrained`, which fills up what a checkpoint lacks; ours refuses it."""
    stock = classmethod(PreTrainedModel.from_pretrained.__func__)
    return mock.patch.object(PinyinLlamaForASR, "from_pretrained", stock)(test)


class ModelCase(common.ModelTesterMixin):
    """Common to the models below."""

    all_model_classes = (PinyinLlamaForASR,)
    _is_composite = True
    test_all_params_have_gradient = False  # either the pinyin table or the projector is idle
    test_can_init_all_missing_weights_before_2023 = True  # the year is read from a file's head; ours name none
    skipped = SKIPPED

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name, reason in cls.skipped.items():
            setattr(cls, name, unittest.skip(reason)(getattr(cls, name)))

    @fill_gaps
    def test_can_init_all_missing_weights(self):
        super().test_can_init_all_missing_weights()

    @fill_gaps
    def test_model_weights_reload_no_missing_tied_weights(self):
        super().test_model_weights_reload_no_missing_tied_weights()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return inputs | ({"labels": torch.ones_like(inputs["input_ids"])} if return_labels else {})


class PoolingTest(ModelCase, unittest.TestCase):
    """Speech through the paper's projector."""

    def setUp(self):
        self.model_tester = ModelTester("mean", audio=[tone(0.5), tone(0.8)], sampling_rate=16000)


class BridgeTest(ModelCase, unittest.TestCase):
    """Speech through the bridge."""

    def setUp(self):
        self.model_tester = ModelTester("pinyin_bridge", audio=[tone(0.5), tone(0.8)], sampling_rate=16000)


class PinyinTest(ModelCase, unittest.TestCase):
    """Typed pinyin."""

    skipped = SKIPPED | SKIPPED_WITHOUT_SPEECH

    def setUp(self):
        self.model_tester = ModelTester("pinyin_bridge", pinyin=["ni3 hao3 ma5", "zhong1 guo2"])
