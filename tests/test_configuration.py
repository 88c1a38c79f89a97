"""The configuration survives a reload, and contradictions are named before any weight is read."""

import json
import shutil

import pytest
from conftest import build_config, build_model, save_folder
from transformers import AutoConfig, AutoProcessor, GPT2Config

from pinyin_llm import PinyinLlamaConfig, PinyinLlamaForASR, PinyinLlamaProcessor
from pinyin_llm.bases.han_llama import build_tokenizer
from pinyin_llm.configuration_pinyin_llm import RELEASE, num_audio_slots, num_encoder_frames
from pinyin_llm.tokenization_pinyin_llm import PINYIN_UNITS_SHA256


def test_reload_keeps_every_number(tmp_path):
    config = build_config("pinyin_bridge", projector_stride=3, ctc_loss_weight=0.25)
    config.save_pretrained(tmp_path)
    assert PinyinLlamaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_folders_of_the_parts_stay_private(tmp_path):
    config = build_config("mean")
    config.text_config.save_pretrained(tmp_path / "llama of mine")
    text_config = AutoConfig.from_pretrained(tmp_path / "llama of mine")
    build_config("mean", text_config=text_config).save_pretrained(tmp_path)
    assert "llama of mine" not in (tmp_path / "config.json").read_text()


def test_defaults_are_the_papers_size():
    config = PinyinLlamaConfig()
    assert (config.audio_config.d_model, config.audio_config.encoder_layers) == (1280, 32)
    assert (config.hidden_size, config.vocab_size) == (4096, 32000)
    assert (config.pinyin_vocab_size, config.projector_type) == (1417, "pooling")


def test_placeholders_lie_behind_the_vocabulary():
    config = PinyinLlamaConfig()
    assert min(config.audio_token_id, config.pinyin_token_id) >= config.vocab_size


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"pinyin_vocab_size": 1400}, ("1400", "1417")),
        ({"projector_type": "linear"}, ("pinyin_bridge", "linear")),
        ({"projector_pooling": "median"}, ("attention", "median")),
        ({"projector_stride": 0}, ("at least 1", "found 0")),
        ({"audio_token_id": 322}, ("different tokens", "322 and 322")),
        ({"pinyin_token_id": -1}, ("different tokens", "321 and -1")),
        ({"release": RELEASE + 1}, (str(RELEASE + 1), f"knows {RELEASE}")),
        ({"projector_type": "pinyin_bridge", "pinyin_units": None}, ("needs pinyin_units",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradiction_is_refused_with_both_numbers(change, found):
    with pytest.raises(ValueError, match=".") as refusal:
        build_config("mean", **change)
    assert all(part in str(refusal.value) for part in found)


def test_wrong_type_is_refused():
    with pytest.raises(Exception, match="projector_stride"):
        build_config("mean", projector_stride="four")


def test_folders_that_are_not_ours_are_refused_by_name(tmp_path):
    config = build_config("mean")
    config.audio_config.save_pretrained(tmp_path / "whisper")
    with pytest.raises(ValueError, match="is a whisper checkpoint; expected pinyin_llama"):
        PinyinLlamaConfig.from_pretrained(tmp_path / "whisper")
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"projector_stride": 4', '"projector_stride": "four"'))
    with pytest.raises(ValueError, match=r"config\.json.*projector_stride.*four"):
        PinyinLlamaConfig.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_folder(build_model("pinyin_bridge"), folder)
    return folder


@pytest.fixture
def edit(whole_folder, tmp_path):
    """edit(change): a copy of the folder whose config.json `change` has changed."""

    def edit(change):
        shutil.copytree(whole_folder, tmp_path, dirs_exist_ok=True)
        values = json.loads((tmp_path / "config.json").read_text("utf-8"))
        change(values)
        (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
        return tmp_path

    return edit


@pytest.mark.parametrize(
    "key",
    ["audio_config", "text_config", "audio_token_id", "pinyin_token_id", "projector_type", "projector_stride",
     "text_config.hidden_size", "text_config.vocab_size", "text_config.model_type", "audio_config.encoder_layers"],
)  # fmt: skip
@pytest.mark.parametrize(
    "remove", [dict.pop, lambda values, name: values.update({name: None})], ids=["missing", "null"]
)
def test_folder_must_have_its_keys(edit, key, remove):
    *parts, name = key.split(".")
    folder = edit(lambda values: remove(values[parts[0]] if parts else values, name))
    for load in (PinyinLlamaConfig.from_pretrained, PinyinLlamaForASR.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=f"expected {key} in the configuration of a model, found none"):
            load(folder)


def test_names_that_a_language_model_has_for_its_sizes_are_known(tmp_path):
    build_config("mean", text_config=GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=321)).save_pretrained(
        tmp_path
    )
    assert PinyinLlamaConfig.from_pretrained(tmp_path).hidden_size == 8
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"n_embd"', '"embd"'))
    with pytest.raises(ValueError, match="expected text_config.hidden_size in the config"):
        PinyinLlamaConfig.from_pretrained(tmp_path)


def test_reordered_units_are_refused_with_both_hashes(edit):
    def swap(values):
        units = values["pinyin_units"].split()
        units[700], units[701] = units[701], units[700]
        values["pinyin_units"] = " ".join(units)

    with pytest.raises(
        ValueError, match=f"config.json: .*expected 1417 units .*{PINYIN_UNITS_SHA256}, found 1417 with"
    ):
        PinyinLlamaConfig.from_pretrained(edit(swap))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"projector_stride": 7}, "projector_stride: 4 and 7"),
        ({"audio_token_id": 5}, "audio_token_id: 321 and 5"),
        ({"pinyin_token_id": 99_999}, "pinyin_token_id: 322 and 99999"),
        ({"audio_token_id": 322, "pinyin_token_id": 321}, "audio_token_id: 321 and 322; pinyin_token_id: 322 and 321"),
    ],
)
def test_numbers_beside_those_of_the_processor(edit, change, found):
    folder = edit(lambda values: values.update(change))
    for load in (PinyinLlamaProcessor.from_pretrained, AutoProcessor.from_pretrained):
        with pytest.raises(ValueError, match=f"The processor and config.json differ in {found}\\. Take both from one"):
            load(folder)


@pytest.mark.parametrize(
    ("characters", "found"),
    [
        ("汉字：你好", "audio_token_id: "),
        ([chr(0x4E00 + n) for n in range(900)], "The tokenizer has .* language model 321"),
    ],
    ids=["smaller", "larger"],
)
def test_foreign_tokenizer(edit, characters, found):
    folder = edit(lambda values: None)
    build_tokenizer(list(characters)).save_pretrained(folder)
    with pytest.raises(ValueError, match=found):
        PinyinLlamaProcessor.from_pretrained(folder)


def test_mel_bins_of_another_whisper(edit):
    folder = edit(lambda values: values["audio_config"].update(num_mel_bins=128))
    with pytest.raises(ValueError, match="mel bins: 80 and 128"):
        PinyinLlamaProcessor.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "7", "null"])
def test_file_that_is_no_configuration(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((OSError, ValueError), match=r"config\.json|config file"):
        PinyinLlamaConfig.from_pretrained(tmp_path)


def test_folders_without_a_configuration(tmp_path):
    with pytest.raises(OSError, match="expected a model folder with config.json, found none in it"):
        PinyinLlamaConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere: expected the folder of a PinyinLLM model or a Hub id, found no such"):
        PinyinLlamaConfig.from_pretrained(tmp_path / "nowhere")


def test_messages_of_other_libraries_are_cut(edit):
    folder = edit(lambda values: values["text_config"].update(model_type="llama9"))
    with pytest.raises(ValueError, match="config.json: Unrecognized model type for subconfig: llama9") as refusal:
        PinyinLlamaConfig.from_pretrained(folder)
    assert len(str(refusal.value)) < 400 + len(str(folder))


def test_slots_cover_every_frame_once():
    for mel_frames in range(1, 200):
        frames = num_encoder_frames(mel_frames)
        assert 2 * frames - mel_frames in (0, 1)
        for stride in (1, 2, 3, 5):
            slots = num_audio_slots(mel_frames, stride)
            assert (slots - 1) * stride < frames <= slots * stride
