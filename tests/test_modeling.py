"""The model: rows are independent, nothing is lost between prompt and loss, incomplete weights are refused."""

import pytest
import torch
from conftest import KINDS, build_config, build_model, tone
from torch.nn import functional as F
from transformers import GenerationConfig

from pinyin_llm import PinyinLlamaForASR


PINYIN = ["zhong1 guo2 ren2 min2", "ni3", "chang2 jiang1 huang2 he2 hen3 chang2"]
TEXTS = ["中国人民", "你", "长江黄河很长"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def speech(processor, clips, **kwargs):
    return processor(clips, sampling_rate=16000, **kwargs)


def same_ends(together: torch.Tensor, alone: torch.Tensor) -> None:
    """Rows are padded on the left: the last positions are the row's own."""
    torch.testing.assert_close(together[-alone.shape[0] :], alone, **CLOSE)


# Batches


@torch.no_grad()
def test_speech_in_a_batch_is_speech_alone(model, processor, clips):
    batch = speech(processor, clips, text=TEXTS)
    slots = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    together = model(**batch).logits
    for row, clip in enumerate(clips):
        single = speech(processor, clip, text=TEXTS[row])
        alone = model.get_audio_features(single["input_features"], single["input_features_mask"])
        count = int(alone.counts)
        filled = alone.filled[0, :count]
        assert torch.equal(slots.filled[row, :count], filled)
        torch.testing.assert_close(slots.vectors[row, :count][filled], alone.vectors[0, :count][filled], **CLOSE)
        same_ends(together[row], model(**single).logits[0])


@torch.no_grad()
def test_pinyin_in_a_batch_is_pinyin_alone(bridge_model, processor):
    together = bridge_model(**processor(pinyin=PINYIN, text=TEXTS)).logits
    for row, (pinyin, text) in enumerate(zip(PINYIN, TEXTS, strict=True)):
        same_ends(together[row], bridge_model(**processor(pinyin=pinyin, text=text)).logits[0])


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(bridge_model, processor):
    batch = processor(pinyin=PINYIN[0], text=TEXTS[0])
    padded = dict(batch)
    for name, value in {"input_ids": 2, "attention_mask": 0, "labels": -100}.items():
        padded[name] = F.pad(batch[name], (7, 0), value=value)
    expected, found = bridge_model(**batch), bridge_model(**padded)
    same_ends(found.logits[0], expected.logits[0])
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)


@pytest.mark.parametrize("constrained", [False, True])
def test_written_in_a_batch_is_written_alone(bridge_model, processor, clips, constrained):
    constraint = processor.pinyin_constraint() if constrained else None
    for rows, prepare in ((PINYIN, lambda rows: processor(pinyin=rows)), (clips, lambda rows: speech(processor, rows))):

        def write(rows, prepare=prepare):
            inputs = prepare(rows)
            ids = bridge_model.generate(**inputs, pinyin_constraint=constraint, max_new_tokens=12, do_sample=False)
            return processor.decode_answers(ids, inputs["input_ids"].shape[1])

        assert write(rows) == [write([row])[0] for row in rows]


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_cached_generation_is_uncached_generation(model, processor, clips, rows):
    inputs = speech(processor, clips[:rows])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    written = model.generate(**inputs, **settings, output_logits=True)
    mask = F.pad(inputs["attention_mask"], (0, 6), value=1)
    whole = model(**inputs | {"input_ids": written.sequences, "attention_mask": mask}).logits[:, -7:-1]
    torch.testing.assert_close(torch.stack(written.logits, dim=1), whole, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 2])
def test_placeholders_inside_the_vocabulary_are_never_written(processor, num_beams):
    text_config = build_config("mean").text_config
    text_config.vocab_size += 8  # rows that the tokenizer has no tokens for, as in Qwen's tables
    model = build_model("mean", text_config=text_config)
    placeholders = torch.tensor([processor.audio_token_id, processor.pinyin_token_id])
    loudest = 100 * torch.ones(text_config.hidden_size)
    model.get_output_embeddings().weight[placeholders] = torch.stack([loudest, -loudest])  # one or the other wins
    inputs = processor(pinyin=PINYIN)
    assert torch.isin(model(**inputs).logits[:, -1].argmax(-1), placeholders).all()
    favourite = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1].item()
    settings = {"max_new_tokens": 6, "num_beams": num_beams, "do_sample": False, "suppress_tokens": [favourite]}
    written = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    assert not torch.isin(written, torch.tensor([*placeholders, favourite])).any()


def test_answers_may_be_as_long_as_their_slots(bridge_model, processor):
    """transformers' own bound is 20 tokens; here a row of 30 syllables is written whole, and a bound given is kept."""
    inputs, constraint = processor(pinyin="ni3 " * 30), processor.pinyin_constraint()
    ids = bridge_model.generate(**inputs, pinyin_constraint=constraint, do_sample=False)
    assert len(processor.decode_answers(ids, inputs["input_ids"].shape[1])[0]) == 30
    for bound in ({"max_new_tokens": 3}, {"generation_config": GenerationConfig(max_new_tokens=3)}):
        ids = bridge_model.generate(**inputs, pinyin_constraint=constraint, do_sample=False, **bound)
        assert ids.shape[1] == inputs["input_ids"].shape[1] + 3


# Slots


def test_placeholders_that_do_not_fit_are_counted(bridge_model, processor, clips):
    batch = speech(processor, clips[:1])
    slots = int((batch["input_ids"] == processor.audio_token_id).sum())
    batch["input_ids"][0, 1] = 5
    with pytest.raises(ValueError, match=rf"Expected \[{slots}\] placeholders .* found \[{slots - 1}\]"):
        bridge_model(**batch)


def test_speech_over_thirty_seconds_is_refused(bridge_model, processor):
    with pytest.raises(ValueError, match=r"3000 mel frames \(30 s\), found 3050"):
        bridge_model(**speech(processor, tone(30.1)))


@torch.no_grad()
def test_toneless_syllable_is_the_mean_of_its_tones(bridge_model, processor):
    toneless, toned = (processor(pinyin=row)["pinyin_ids"] for row in ("hao", "hao1 hao2 hao3 hao4 hao5"))
    expected = bridge_model.get_pinyin_features(toned).vectors[0].mean(0)
    torch.testing.assert_close(bridge_model.get_pinyin_features(toneless).vectors[0, 0], expected)


@torch.no_grad()
def test_toned_and_toneless_syllables_share_a_row(bridge_model, processor):
    mixed = bridge_model.get_pinyin_features(processor(pinyin="ni3 hao")["pinyin_ids"]).vectors[0]
    table = bridge_model.pinyin_embeddings.weight
    torch.testing.assert_close(mixed[0], table[processor.pinyin_tokenizer.ids["ni3"]])


# Loss


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_the_answers(model, processor, clips):
    batch = speech(processor, clips, text=TEXTS)
    output = model(**batch)
    losses = []
    for logits, labels in zip(output.logits, batch["labels"], strict=True):
        for position in (labels != -100).nonzero().flatten().tolist():
            losses.append(-logits[position - 1].log_softmax(-1)[labels[position]])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    torch.testing.assert_close(model(**batch, num_items_in_batch=100).loss, torch.stack(losses).sum() / 100)


@torch.no_grad()
def test_logits_of_the_end_alone_give_the_same_loss(bridge_model, processor):
    batch = processor(pinyin=PINYIN, text=TEXTS)
    learned = int((batch["labels"] != -100).sum(-1).max())
    few = bridge_model(**batch, logits_to_keep=learned + 1)
    assert few.logits.shape[1] == learned + 1
    torch.testing.assert_close(few.loss, bridge_model(**batch).loss)


@torch.no_grad()
def test_cached_features_give_the_same_loss(bridge_model, processor, clips):
    batch = speech(processor, clips, text=TEXTS)
    expected = bridge_model(**batch).loss
    features, mask = batch.pop("input_features"), batch["input_features_mask"]
    batch["audio_hidden_states"] = bridge_model.audio_tower(features, mask)
    torch.testing.assert_close(bridge_model(**batch).loss, expected)


def test_training_step_keeps_no_logits(processor):
    output = build_model("mean").train()(**processor(pinyin=PINYIN, text=TEXTS))
    assert output.loss is not None
    assert "logits" not in output


def test_training_step_leaves_out_empty_slots(processor, clips):
    model = build_model("pinyin_bridge", bridge_dropout=0.0)
    model.multi_modal_projector.parts.bias.data[0] = 5.0  # blanks in every row
    batch = speech(processor, clips, text=TEXTS)
    read = []
    model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    losses = [model.train(training)(**batch).loss for training in (False, True)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, model.pinyin_embeddings.weight)[0] for loss in losses]
    torch.testing.assert_close(*gradients)
    assert read[1] < read[0] == batch["input_ids"].shape[1]


@torch.no_grad()
def test_tuple_holds_what_the_output_holds(bridge_model, processor, clips):
    batch = speech(processor, clips, text=TEXTS)
    output = bridge_model(**batch)
    values = bridge_model(**batch, return_dict=False)
    assert list(output) == ["loss", "logits", "cache", "pinyin", "pinyin_times", "pinyin_confidence"]
    assert len(values) == len(output)
    for name, value in zip(output, values, strict=True):
        assert name == "cache" or torch.equal(output[name], value)


@torch.no_grad()
def test_loss_comes_first_without_a_prompt(bridge_model, processor, clips):
    batch = speech(processor, clips)
    batch = {name: batch[name] for name in ("input_features", "input_features_mask")}
    pinyin_labels = processor(pinyin=PINYIN)["pinyin_ids"].squeeze(-1)
    output = bridge_model(**batch, pinyin_labels=pinyin_labels)
    assert next(iter(output)) == "loss"
    torch.testing.assert_close(output.loss, bridge_model.config.ctc_loss_weight * output.ctc_loss)


@pytest.mark.parametrize(("kind", "found"), [("pinyin_bridge", "no speech"), ("mean", "a pooling projector")])
def test_pinyin_labels_need_speech_and_a_bridge(kind, found, processor, clips):
    batch = processor(pinyin=PINYIN) if kind == "pinyin_bridge" else speech(processor, clips)
    with pytest.raises(ValueError, match=found):
        build_model(kind)(**batch, pinyin_labels=torch.zeros(3, 1, dtype=torch.long))


# Vocabulary


@torch.no_grad()
def test_resized_vocabulary_leaves_the_logits_of_the_old(processor):
    model, batch = build_model("mean"), processor(pinyin=PINYIN)
    before, size = model(**batch).logits, model.config.vocab_size
    model.resize_token_embeddings(size + 8)
    assert model.config.vocab_size == model(**batch).logits.shape[-1] == size + 8
    torch.testing.assert_close(model(**batch).logits[..., :size], before)


# Weights


def test_bfloat16_loads_and_runs(processor, clips, tmp_path):
    build_model("pinyin_bridge").save_pretrained(tmp_path)
    model = PinyinLlamaForASR.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    output = model(**speech(processor, clips, text=TEXTS))
    assert output.loss.isfinite()
    output.loss.backward()
    model.generate(**speech(processor, clips), pinyin_constraint=processor.pinyin_constraint(), max_new_tokens=3)


@pytest.mark.parametrize("kind", ["conv", "pinyin_bridge"])
def test_reload_gives_the_same_logits(kind, processor, clips, tmp_path):
    model, batch = build_model(kind), speech(processor, clips)
    model.save_pretrained(tmp_path)
    again = PinyinLlamaForASR.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    model.save_pretrained(tmp_path)  # over itself


@pytest.mark.parametrize("key", ["pinyin_embeddings.weight", "language_model.model.norm.weight"])
def test_missing_weights_are_named(key, tmp_path):
    model = build_model("mean")
    state = {name: tensor for name, tensor in model.state_dict().items() if name != key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=key):
        PinyinLlamaForASR.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["residual.weight", "composition"])
def test_weights_and_tables_that_are_not_numbers_are_named(name, tmp_path):
    model = build_model("pinyin_bridge")
    model.state_dict()[f"multi_modal_projector.{name}"][0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"not finite: multi_modal_projector\.{name}"):
        PinyinLlamaForASR.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, 100, -1000], ids=["empty", "header", "truncated"])
def test_cut_weights_are_refused_with_their_path(size, tmp_path):
    build_model("mean").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=str(tmp_path)):
        PinyinLlamaForASR.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    build_model("mean").save_pretrained(tmp_path)
    config = build_config("stack")
    with pytest.raises((ValueError, RuntimeError), match=r"multi_modal_projector\.linear\.weight"):
        PinyinLlamaForASR.from_pretrained(tmp_path, config=config)


def test_every_kind_of_projector_is_tried():
    assert set(KINDS) == {"mean", "max", "attention", "stack", "conv", "pinyin_bridge"}
