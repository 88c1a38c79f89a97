"""The configuration survives a reload, and contradictions are named before any weight is read."""

import pytest
from conftest import build_config
from transformers import AutoConfig

from pinyin_llm import PinyinLlamaConfig
from pinyin_llm.configuration_pinyin_llm import RELEASE, num_audio_slots, num_encoder_frames


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


def test_slots_cover_every_frame_once():
    for mel_frames in range(1, 200):
        frames = num_encoder_frames(mel_frames)
        assert 2 * frames - mel_frames in (0, 1)
        for stride in (1, 2, 3, 5):
            slots = num_audio_slots(mel_frames, stride)
            assert (slots - 1) * stride < frames <= slots * stride
