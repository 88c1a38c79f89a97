"""Two recognisers combined in pinyin: the other one helps, cannot ruin what the bridge recognises, adds no speech."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model, build_processor, save_folder

from pinyin_llm import PinyinLlamaForASR
from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.decoder_pinyin_llm import END, PROMPT
from pinyin_llm.fusion_pinyin_llm import PinyinFusion, recognize_text
from pinyin_llm.inference.cli import main
from pinyin_llm.inference.loading import load_model
from pinyin_llm.scoring.cer import read_texts, score
from pinyin_llm.transcription_pinyin_llm import transcribe


SAMPLES = Path(__file__).parents[1] / "samples"
SENTENCES = sorted(str(path) for path in SAMPLES.glob("BAC009*"))
REFERENCES = {Path(file).name: text for file, text in read_texts(SAMPLES / "references.tsv").items()}
BYTES = [f"{byte:02x}" for byte in range(256)]
DECODER = {
    "recognizers": ["bridge", "whisper"],
    "decoder_tokens": " ".join([*BYTES, END, *PROMPT]),
    "decoder_config": {
        "vocab_size": len(BYTES) + 1 + len(PROMPT),
        "d_model": 16,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "eos_token_id": len(BYTES),
        "decoder_start_token_id": len(BYTES) + 1,
        "bos_token_id": None,
        "pad_token_id": None,
    },
}


@pytest.fixture(scope="module")
def mini():
    return load_model()


@pytest.fixture(scope="module")
def both():
    """A tiny random model with Whisper's decoder."""
    return build_model("pinyin_bridge", **DECODER), build_processor()


def texts(model, processor, sounds, **options) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [transcript.text for transcript in transcribe(model, processor, sounds, **options)]


def test_a_right_second_opinion_helps(mini):
    references = [REFERENCES[Path(sound).name] for sound in SENTENCES]
    alone, together = (texts(*mini, SENTENCES, second_opinions=given) for given in (None, references))
    assert score(references, together).cer <= score(references, alone).cer
    assert score(references, together).cer < 0.02


def test_an_opinion_about_something_else_changes_nothing(mini):
    without = texts(*mini, SENTENCES)
    for opinion in ("床前明月光疑是地上霜", "", None):
        assert texts(*mini, SENTENCES, second_opinions=[opinion] * len(SENTENCES)) == without


def test_a_batch_with_and_without_opinions_is_its_clips(mini):
    opinions = [REFERENCES[Path(SENTENCES[0]).name], None]
    options = {"recognizers": ["bridge"], "num_return_sequences": 2}

    def scores(sounds, opinions):
        found = transcribe(*mini, sounds, second_opinions=opinions, **options)
        return [chunk.alternatives[0][1] for transcript in found for chunk in transcript.chunks]

    alone = [scores([sound], [opinion])[0] for sound, opinion in zip(SENTENCES[:2], opinions, strict=True)]
    assert scores(SENTENCES[:2], opinions) == pytest.approx(alone, abs=0.05)


def test_the_transcript_of_a_long_sound_is_shared_out_to_its_pieces(mini):
    pause = np.zeros(8000, np.float32)
    sound = np.concatenate([part for file in SENTENCES * 2 for part in (load_waveform(file), pause)])
    reference = "".join(REFERENCES[Path(file).name] for file in SENTENCES * 2)
    assert len(sound) > 2 * 15 * 16000
    (together,) = texts(*mini, [sound], second_opinions=[reference])
    (alone,) = texts(*mini, [sound])
    assert score([reference], [together]).cer < min(0.05, score([reference], [alone]).cer)


def test_a_syllable_that_only_one_recogniser_has_needs_evidence():
    """CTC output of "ni3 hao3" with room for two syllables, and none for a third."""
    processor = build_processor()
    tokenizer, ids = processor.pinyin_tokenizer, processor.pinyin_tokenizer.ids
    log_probs = torch.full((12, 1 + len(tokenizer)), 1e-6)
    log_probs[:, 0] = 1.0
    for frame, unit in ((2, "ni3"), (7, "hao3")):
        log_probs[frame, 0], log_probs[frame, 1 + ids[unit]] = 1e-4, 1.0
    log_probs = (log_probs / log_probs.sum(-1, keepdim=True)).log()
    fusion = PinyinFusion(tokenizer)
    missed = torch.nn.functional.one_hot(torch.tensor([ids["hao3"]]), len(tokenizer)).float()
    for text, kept in (("你好", 2), ("你好吗", 2), ("好", 2)):
        other = recognize_text(text, tokenizer).unit_probs
        units = torch.nn.functional.one_hot(torch.tensor([ids["ni3"], ids["hao3"]]), len(tokenizer)).float()
        assert len(fusion.choose(fusion.align(units, other), units, other, log_probs)) == kept, text
    other = recognize_text("你好", tokenizer).unit_probs  # the bridge missed the first syllable
    assert len(fusion.choose(fusion.align(missed, other), missed, other, log_probs)) == 2


def test_decoder_is_saved_and_a_batch_is_its_clips(both, clips, tmp_path):
    model, processor = both
    together = texts(model, processor, clips)
    assert together == [texts(model, processor, [clip])[0] for clip in clips]
    loaded = PinyinLlamaForASR.from_pretrained(save_folder(model, tmp_path))
    assert texts(loaded.eval(), processor, clips) == together
    assert loaded.config.recognizers == ["bridge", "whisper"]


def test_both_recognisers_of_the_mini_model(mini):
    """By default both: hardly an error in sentences and words of known speakers; a batch is its clips."""
    sounds = sorted(str(SAMPLES / name) for name in REFERENCES)
    together = texts(*mini, sounds)
    assert score([REFERENCES[Path(sound).name] for sound in sounds], together).cer < 0.05
    assert together == [texts(*mini, [sound])[0] for sound in sounds]
    assert together != texts(*mini, sounds, recognizers=["bridge"])


def test_where_the_bridge_finds_nothing_the_decoder_is_silent(mini, both):
    """Whatever the decoder makes of silence, noise or a tone."""
    model, processor = both
    assert texts(model, processor, [np.zeros(32000, np.float32)]) == [""]
    quiet = np.random.default_rng(0).normal(scale=0.02, size=48000).astype(np.float32)
    assert len(texts(*mini, [quiet], second_opinions=["今天天气很好"])[0]) <= 3


def test_recognisers_that_a_model_lacks_are_refused(both, tmp_path, capsys):
    lacking = build_model("pinyin_bridge")
    with pytest.raises(ValueError, match="no Whisper decoder"):
        lacking.config.check_recognizers(["bridge", "whisper"])
    with pytest.raises(ValueError, match="pooling"):
        build_model("mean").config.check_recognizers(["bridge"])
    with pytest.raises(ValueError, match="found whisper"):
        both[0].config.check_recognizers(["whisper"])
    folder = save_folder(lacking, tmp_path)
    assert main(["transcribe", SENTENCES[0], "--model", folder, "--recognizers", "bridge,whisper"]) == 2
    assert "no Whisper decoder" in capsys.readouterr().err


def test_second_opinion_by_file(tmp_path, capsys):
    table = tmp_path / "other.tsv"
    table.write_text("".join(f"elsewhere/{name}\t{text}\n" for name, text in REFERENCES.items()), "utf-8")
    assert main(["transcribe", *SENTENCES[:2], "--second_opinion", str(table)]) == 0
    assert capsys.readouterr().out.splitlines() == [REFERENCES[Path(sound).name] for sound in SENTENCES[:2]]
    table.write_text("nothing.wav\t你好\n", "utf-8")
    assert main(["transcribe", SENTENCES[0], "--second_opinion", str(table)]) == 2
    assert "found none for any" in capsys.readouterr().err
