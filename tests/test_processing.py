"""What the model is given: prompts with the right placeholders, padding on the left, labels on answers alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_processor, tone
from jinja2 import TemplateError

from pinyin_llm import PinyinLlamaProcessor
from pinyin_llm.configuration_pinyin_llm import num_audio_slots
from pinyin_llm.tokenization_pinyin_llm import PinyinError


def test_prompt_is_the_golden_one(processor):
    """Fails when prompts change, for a trained model reads only the prompt that it was trained on."""
    batch = processor(pinyin="ni3 hao3", text="你好")
    bos, eos, colon, ni, hao, pinyin = 1, 2, 259, 262, 263, processor.pinyin_token_id
    assert batch["input_ids"].tolist() == [[bos, pinyin, pinyin, colon, ni, hao, eos]]
    assert batch["labels"].tolist() == [[-100, -100, -100, -100, ni, hao, eos]]
    units = [processor.pinyin_tokenizer.units[i] for i in batch["pinyin_ids"].flatten()]
    assert units == ["ni3", "hao3"]


def test_text_on_both_sides_of_the_slot():
    processor = build_processor(prompt="汉{slot}字：")
    ids = processor(pinyin="ma1").input_ids[0].tolist()
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<s>", "汉", "<|pinyin|>", "字", "："]


def test_rows_are_padded_on_the_left_and_learn_answers_alone(processor):
    texts = ["你好", "中国人民"]
    batch = processor(pinyin=["ni3 hao3", "zhong1 guo2 ren2 min2"], text=texts)
    mask = batch["attention_mask"]
    assert mask.tolist() == [[0] * 4 + [1] * 7, [1] * 11]
    assert (batch["input_ids"][mask == 0] == processor.tokenizer.pad_token_id).all()
    for labels, ids, text in zip(batch["labels"], batch["input_ids"], texts, strict=True):
        learned = labels != -100
        assert torch.equal(labels[learned], ids[learned])
        assert processor.tokenizer.decode(labels[learned]) == f"{text}</s>"
    assert batch["pinyin_ids"][0, 2:].eq(-1).all()


def test_each_clip_has_a_placeholder_a_slot(processor, clips):
    batch = processor(clips, sampling_rate=16000)
    slots = [num_audio_slots(len(clip) // 160, processor.projector_stride) for clip in clips]
    assert (batch["input_ids"] == processor.audio_token_id).sum(-1).tolist() == slots
    assert batch["input_features_mask"].sum(-1).tolist() == [len(clip) // 160 for clip in clips]


def test_features_of_a_clip_do_not_depend_on_its_batch(processor, clips):
    together = processor(clips, sampling_rate=16000)
    for row, clip in enumerate(clips):
        alone = processor(clip, sampling_rate=16000)["input_features"]
        torch.testing.assert_close(together["input_features"][row, :, : alone.shape[-1]], alone[0])


def test_file_bytes_array_and_stereo_are_one_sound(processor, tmp_path):
    clip = tone(0.4)
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip, 16000, subtype="FLOAT")
    expected = processor(clip, sampling_rate=16000)["input_features"]
    decoded = {"array": clip, "sampling_rate": 16000, "path": None}  # as `datasets` gave it, and as it does now
    samples = SimpleNamespace(data=torch.from_numpy(clip)[None], sample_rate=16000)
    decoder = SimpleNamespace(get_all_samples=lambda: samples)
    contents = path.read_bytes()
    files, arrays = (
        (path, str(path), contents, bytearray(contents), [path]),
        (np.stack([clip, clip]), torch.tensor(clip)),
    )
    for audio in (*files, *arrays, decoded, decoder, [decoder]):
        found = processor(audio, sampling_rate=16000)["input_features"]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "both or neither"),
        ({"audio": tone(0.2), "pinyin": "ni3", "sampling_rate": 16000}, "both or neither"),
        ({"audio": tone(0.2)}, "sampling_rate"),
        ({"audio": tone(0.2), "sampling_rate": "16000"}, "found '16000'"),
        ({"audio": {"array": tone(0.2)}}, "'sampling_rate', found the keys"),
        ({"audio": {"array": tone(0.2), "sampling_rate": 8000}, "sampling_rate": 16000}, "16000 beside a clip of 8000"),
        ({"audio": []}, "one clip or more"),
        ({"pinyin": []}, "found no row"),
        ({"pinyin": ""}, "found ''"),
        ({"pinyin": ["ni3", " ' "]}, 'found " \' "'),
        ({"pinyin": ["ni3", "hao3"], "text": ["你"]}, "1 texts for 2 rows"),
        ({"pinyin": "ni3", "return_tensors": "np"}, "'np'"),
        ({"pinyin": "ni3", "padding": "max_length"}, "'max_length'"),
    ],
)
def test_impossible_calls_are_explained(processor, call, message):
    with pytest.raises(ValueError, match=message):
        processor(**call)


def test_unknown_syllable_is_named(processor):
    with pytest.raises(PinyinError, match="hoa3"):
        processor(pinyin="ni3 hoa3")


@pytest.mark.parametrize("prompt", ["no slot", "{slot}{slot}"])
def test_prompt_holds_the_slot_once(processor, prompt):
    with pytest.raises(ValueError, match="slot"):
        PinyinLlamaProcessor(processor.feature_extractor, processor.tokenizer, prompt=prompt)


def test_reload_makes_the_same_inputs(processor, tmp_path):
    build_processor(prompt="汉字{slot}：", stride=3).save_pretrained(tmp_path)
    again = PinyinLlamaProcessor.from_pretrained(tmp_path)
    assert (again.prompt, again.projector_stride, again.pinyin_units) == ("汉字{slot}：", 3, processor.pinyin_units)
    expected = build_processor(prompt="汉字{slot}：", stride=3)(tone(0.5), sampling_rate=16000, text="你好")
    found = again(tone(0.5), sampling_rate=16000, text="你好")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("prompt", ["{slot}：", '汉"\\{{ {slot} }}\n字：$'])
def test_chat_template_is_the_prompt(prompt):
    processor, clip = build_processor(prompt=prompt), tone(0.3)
    conversation = [{"role": "user", "content": [{"type": "audio", "audio": clip}]}]
    written = processor.apply_chat_template(conversation)
    assert written == "<s>" + prompt.replace("{slot}", "<|audio|>")
    found = processor.apply_chat_template([conversation] * 2, tokenize=True, return_dict=True)
    expected = processor([clip, clip], sampling_rate=16000)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("saved", [None, "{{ messages[0].content }}"])
def test_folder_without_our_chat_template(processor, saved, tmp_path):
    """0.1.0 saved none, or that of the language model that it started from."""
    processor.save_pretrained(tmp_path)
    template = tmp_path / "chat_template.jinja"
    expected = template.read_text(encoding="utf-8")
    template.unlink()
    if saved:
        template.write_text(saved, encoding="utf-8")
    again = PinyinLlamaProcessor.from_pretrained(tmp_path)
    assert again.chat_template == expected == processor.chat_template
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / template.name).read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "content", ["你好", [], [{"type": "audio"}] * 2, [{"type": "audio"}, {"type": "text", "text": ""}]]
)
def test_chat_template_takes_one_clip(processor, content):
    with pytest.raises(TemplateError, match="one audio entry"):
        processor.apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize("wrong", [{"language": "en"}, {"prompt": "Translate."}])
def test_transcription_request_in_another_language(processor, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        processor.apply_transcription_request(audio=tone(0.2), **wrong)


def test_prompts_are_skipped_with_special_tokens(processor):
    batch = processor(pinyin=["ni3 hao3", "ni3"], text=["你好", "你"])
    assert processor.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["你好", "你"]
    assert processor.decode(batch["input_ids"][0], skip_special_tokens=True) == "你好"
    assert processor.decode(batch["input_ids"][0]) == "<s><|pinyin|><|pinyin|>：你好</s>"


def test_changed_units_of_a_saved_processor_are_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(file.read_text().replace("zhong1", "zhong9"))
    with pytest.raises(PinyinError, match="1417"):
        PinyinLlamaProcessor.from_pretrained(tmp_path)


def test_answers_are_read_behind_the_prompt(processor):
    batch = processor(pinyin=["ni3 hao3", "ni3"], text=["你好", "𠮷你"])  # 𠮷 is written in bytes
    prompt = 4
    start = batch["input_ids"].shape[1] - (batch["labels"] != -100).sum(-1).max()
    assert processor.decode_answers(batch["input_ids"], int(start))[1] == "𠮷你"
    assert processor.decode_answers(batch["input_ids"][:1, -3 - prompt :], prompt) == ["你好"]
