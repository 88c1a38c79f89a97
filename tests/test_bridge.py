"""The pinyin bridge: which frames make a unit, when it was said, and what an empty sound leaves in the prompt."""

import numpy as np
import pytest
import torch
from conftest import build_model, tone
from torch.nn import functional as F

from pinyin_llm.audio_pinyin_llm import split_at_pauses
from pinyin_llm.encoder_pinyin_llm import PinyinBridge, describe_segments, segment
from pinyin_llm.transcription_pinyin_llm import recognize_pinyin


# Best class of each frame, 0 for blank; the frames behind the eighth are padding.
BEST = torch.tensor([[0, 5, 5, 0, 5, 7, 7, 0, 9, 9], [3, 3, 3, 3, 3, 3, 3, 3, 0, 0], [0] * 8 + [4, 4]])
FRAMES = torch.tensor([8, 8, 8])


@pytest.fixture
def log_probs() -> torch.Tensor:
    """(3, 10, 12): nine tenths on the best class."""
    return (F.one_hot(BEST, 12) * 0.9 + 0.1 / 12).log()


def test_run_of_frames_with_one_unit_fills_one_slot(log_probs):
    members, best = segment(log_probs, FRAMES, slots=4)
    frames = [[run.nonzero().flatten().tolist() for run in row] for row in members]
    assert frames == [[[1, 2], [4], [5, 6], []], [[0, 1, 2, 3, 4, 5, 6, 7], [], [], []], [[], [], [], []]]
    assert best[:, 8:].eq(0).all()


def test_unit_heard_over_and_over_fills_three_slots():
    best = torch.tensor([[5, 0, 5, 0, 5, 5, 0, 5, 0, 5, 7, 7, 5, 0, 5, 0, 0, 9]])
    members, _ = segment((F.one_hot(best, 12) * 0.9 + 0.1 / 12).log(), torch.tensor([18]), slots=9)
    starts = [run.nonzero().flatten().tolist()[:1] for run in members[0]]
    assert starts == [[0], [2], [4], [10], [12], [14], [17], [], []]


def test_units_times_and_confidence_of_the_segments(log_probs):
    members, best = segment(log_probs, FRAMES, slots=4)
    units = torch.zeros(3, 4, 11)
    units[0, range(3), [4, 4, 6]] = torch.tensor([0.9, 0.5, 0.7])
    units[1, 0, 2] = 0.8
    heard = describe_segments(members, best, units, FRAMES)
    assert heard["pinyin"].tolist() == [[4, 4, 6, -1], [2, -1, -1, -1], [-1] * 4]
    torch.testing.assert_close(heard["pinyin_times"][0, :3], torch.tensor([[0.04, 0.16], [0.16, 0.2], [0.2, 0.32]]))
    torch.testing.assert_close(heard["pinyin_confidence"][:2, 0], torch.tensor([0.9, 0.8]))
    assert heard["pinyin_confidence"][2].eq(0).all()


def test_ctc_loss_is_torchs_mean_over_the_units_spoken(log_probs):
    labels = torch.tensor([[4, 4, 6], [2, -100, -100], [3, 1, -100]])
    each = [
        F.ctc_loss(row[:frames], label[label >= 0] + 1, frames[None], (label >= 0).sum()[None], reduction="sum")
        for row, frames, label in zip(log_probs, FRAMES, labels, strict=True)
    ]
    torch.testing.assert_close(PinyinBridge.ctc_loss(log_probs, FRAMES, labels), sum(each) / 6)


def test_more_units_than_frames_do_not_spoil_the_loss(log_probs):
    labels = torch.arange(11).expand(3, 11).clone()
    assert PinyinBridge.ctc_loss(log_probs, FRAMES, labels) == 0


@torch.no_grad()
def test_unit_scores_are_its_initial_its_final_and_its_tone(bridge_model, processor):
    """zhong1 - zhong4 is the difference of the tones, whatever the syllable."""
    bridge, ids = bridge_model.multi_modal_projector, processor.pinyin_tokenizer.ids
    states = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    scores = bridge.classify(states)[..., 1:] - bridge.unit_bias
    pairs = [(ids[f"{base}1"], ids[f"{base}4"]) for base in ("zhong", "ma", "yi", "lü") if f"{base}1" in ids]
    differences = torch.stack([scores[..., one] - scores[..., four] for one, four in pairs])
    torch.testing.assert_close(differences, differences[:1].expand_as(differences))


@torch.no_grad()
def test_heard_in_a_batch_is_heard_alone(bridge_model, processor, clips):
    """A short clip may fill no more slots than its own prompt has, however long its neighbours are."""
    batch = processor(clips, sampling_rate=16000)
    together = bridge_model(**batch)
    for row, clip in enumerate(clips):
        alone = bridge_model(**processor(clip, sampling_rate=16000))
        slots = alone.pinyin.shape[1]
        assert torch.equal(together.pinyin[row, :slots], alone.pinyin[0])
        assert together.pinyin[row, slots:].eq(-1).all()
        torch.testing.assert_close(together.pinyin_times[row, :slots], alone.pinyin_times[0])
        torch.testing.assert_close(together.pinyin_confidence[row, :slots], alone.pinyin_confidence[0])


def test_long_sound_is_heard_in_pieces(bridge_model, processor):
    """Evaluation during training hears whole clips; the encoder takes 30 s."""
    sound = np.concatenate([tone(14, 300), tone(14, 500), tone(14, 700)])
    pieces = [sound[a:b] for a, b in split_at_pauses(sound)]
    assert len(pieces) > 2
    (heard,) = recognize_pinyin(bridge_model, processor, [sound])
    assert heard == [unit for row in recognize_pinyin(bridge_model, processor, pieces) for unit in row]


@torch.no_grad()
def test_sound_without_pinyin_fills_nothing(processor, clips):
    model = build_model("pinyin_bridge")
    model.multi_modal_projector.parts.bias[0] = 1000.0  # always blank
    inputs = processor(clips, sampling_rate=16000)
    slots = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    assert not slots.filled.any()
    assert slots.vectors.eq(0).all()
    assert model(**inputs).logits.isfinite().all()
    written = model.generate(**inputs, pinyin_constraint=processor.pinyin_constraint(), max_new_tokens=5)
    assert processor.decode_answers(written, inputs["input_ids"].shape[1]) == ["", "", ""]


@torch.no_grad()
def test_new_bridge_says_nothing_but_pinyin(processor, clips):
    """Before training the residual is zero: the slot holds expected rows of the pinyin table alone."""
    from conftest import build_config

    from pinyin_llm import PinyinLlamaForASR

    model = PinyinLlamaForASR(build_config("pinyin_bridge")).eval()
    inputs = processor(clips, sampling_rate=16000)
    slots = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    torch.testing.assert_close(slots.vectors, slots.unit_probs @ model.pinyin_embeddings.weight)
