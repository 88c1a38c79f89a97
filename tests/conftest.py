"""Fixtures of all tests: tiny random models, a tokenizer of some sixty characters, tones as speech."""

import os
import socket
import tempfile


CACHE = tempfile.TemporaryDirectory(prefix="pinyin_llm_tests_")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": CACHE.name, "TOKENIZERS_PARALLELISM": "false"}  # before transformers

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor, WhisperModel
from warm_process import WarmProcess

from pinyin_llm import PinyinLlamaConfig, PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.bases.han_llama import HanLlamaArguments, build_tokenizer, write_language_model


torch.set_num_threads(1)

# Files that take longest, on two workers: they begin first, so that neither worker is left with one at the end.
LONG_FILES = ("test_publish.py", "test_bulk.py", "test_distributed.py", "test_pipeline.py", "test_paper_table.py",
              "test_no_runaway.py", "test_training.py", "test_cli.py", "test_notebook.py")  # fmt: skip
CHARACTERS = (
    "：汉字你好中国人民大学生日快乐长江黄河银行走路重庆要上海北京天地山水火木金土"
    "一二三四五六七八九十百千万我他她们的了在是不有这"
)
SENTENCES = [
    "中国人民银行",
    "你好",
    "长江和黄河",
    "我们去上海的大学",
    "今天天气很好",
    "重庆人爱走路",
    "他要去北京",
    "快乐的人",
]
KINDS = ("mean", "max", "attention", "stack", "conv", "pinyin_bridge")
COMMAND_LINE = "import sys; from pinyin_llm.inference.cli import main; sys.exit(main())"
WEIGHT_SPREAD = 0.2  # the usual 0.02 keeps all logits of a tiny model within a tolerance of each other


def tone(seconds: float, hertz: float = 300.0) -> np.ndarray:
    """(samples,) at 16 kHz: a rising tone with a little noise."""
    time = np.arange(int(seconds * 16000)) / 16000
    noise = np.random.default_rng(int(hertz)).normal(scale=0.01, size=time.shape)
    return (0.3 * np.sin(2 * np.pi * hertz * time * (1 + time)) + noise).astype(np.float32)


def whisper_config() -> WhisperConfig:
    sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 64}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 3)
    return WhisperConfig(num_mel_bins=80, **sizes, **decoder, **tokens)


@cache
def build_processor(prompt: str = "{slot}：", stride: int = 4) -> PinyinLlamaProcessor:
    return PinyinLlamaProcessor(
        WhisperFeatureExtractor(feature_size=80),
        build_tokenizer(list(CHARACTERS)),
        prompt=prompt,
        projector_stride=stride,
    )


def build_config(kind: str, **changes) -> PinyinLlamaConfig:
    """`kind`: one of `KINDS`."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    bridge = kind == "pinyin_bridge"
    text_config = LlamaConfig(
        vocab_size=processor.audio_token_id,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    values = {
        "audio_config": whisper_config(),
        "text_config": text_config,
        "audio_token_id": processor.audio_token_id,
        "pinyin_token_id": processor.pinyin_token_id,
        "pinyin_units": processor.pinyin_units,
        "projector_type": "pinyin_bridge" if bridge else "pooling",
        "projector_pooling": "mean" if bridge else kind,
        "projector_stride": processor.projector_stride,
        "bridge_hidden_size": 24,
        "bridge_num_layers": 1,
        "bridge_num_attention_heads": 2,
    }
    return PinyinLlamaConfig(**(values | changes))


def build_model(kind: str, **changes) -> PinyinLlamaForASR:
    torch.manual_seed(0)
    model = PinyinLlamaForASR(build_config(kind, **changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=WEIGHT_SPREAD)
    return model


_shared_model = cache(build_model)


def save_folder(model: PinyinLlamaForASR, folder: Path) -> str:
    """A model and its processor as a user has them on disk."""
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return str(folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A language model, a Whisper, text and speech, all tiny."""
    folder = tmp_path_factory.mktemp("parts")
    texts = folder / "texts.txt"
    texts.write_text("\n".join(["汉字：", *SENTENCES, *SENTENCES]), encoding="utf-8")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "fewest": 1}
    write_language_model(HanLlamaArguments(texts=[str(texts)], output=str(folder / "llama"), **sizes))
    torch.manual_seed(0)
    WhisperModel(whisper_config()).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")
    (folder / "eval.tsv").write_text("text\ttoned\ttoneless\n你好\tni3 hao3\tni hao\n", encoding="utf-8")
    (folder / "speech").mkdir()
    rows = ["file\ttext\tseconds"]
    for number, sentence in enumerate(SENTENCES[:4]):
        soundfile.write(folder / "speech" / f"{number}.wav", tone(1.0 + 0.2 * number, 200 + 100 * number), 16000)
        rows.append(f"{number}.wav\t{sentence}\t1")
    (folder / "speech" / "manifest.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@cache
def warm_process() -> WarmProcess:
    """Where the tests of this process run scripts of their own: offline, with a cache of their own."""
    folder = Path(CACHE.name, "warm")
    folder.mkdir()
    return WarmProcess(folder, HF_HUB_OFFLINE="1")


def run_as_stranger(script: str, *arguments, folder: Path) -> None:
    """Run `script` in an empty `folder`, as a process of its own with an empty cache; it must succeed."""
    folder.mkdir()
    warm_process().clear_home()
    run = warm_process().run(script, *arguments, folder=folder)
    assert run.returncode == 0, run.stderr


def pytest_ignore_collect(collection_path, config) -> bool | None:
    """transformers' own tests are fetched when their file is imported: only where they are asked for."""
    unwanted = collection_path.name == "test_hf_suite.py" and "not hf_suite" in config.option.markexpr
    return unwanted or None


def pytest_collection_modifyitems(items) -> None:
    rank = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(params=KINDS)
def model(request) -> PinyinLlamaForASR:
    """A model of each projector; shared, so not to be changed."""
    return _shared_model(request.param)


@pytest.fixture
def bridge_model() -> PinyinLlamaForASR:
    return _shared_model("pinyin_bridge")


@pytest.fixture
def processor() -> PinyinLlamaProcessor:
    return build_processor()


@pytest.fixture
def clips() -> list[np.ndarray]:
    """Three clips of different lengths, the longest neither first nor last."""
    return [tone(0.47, 200), tone(1.3, 450), tone(0.8, 700)]
