"""The command line: what goes to stdout, what to stderr, and what the exit code says."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pytest
import soundfile
import torch
from conftest import build_model, save_folder, tone
from safetensors.torch import load_file

from pinyin_llm.audio_pinyin_llm import load_waveform
from pinyin_llm.inference.cli import main
from pinyin_llm.inference.files import SOURCES
from pinyin_llm.inference.loading import load_model
from pinyin_llm.scoring.cer import score
from pinyin_llm.transcription_pinyin_llm import RowResult, transcribe, transcribe_clips


COMMANDS = ("transcribe", "convert", "score", "publish", "demo", "serve", "info")
SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    """A tiny random model as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("model")
    save_folder(build_model("pinyin_bridge"), folder)
    return str(folder)


@pytest.fixture
def sounds(tmp_path) -> dict[str, str]:
    """Files of every fate by what they are."""
    stereo = np.stack([tone(0.7, 500), tone(0.7, 600)], axis=1)
    contents = {
        "short.wav": (tone(0.5, 250), 16000),
        "stereo.flac": (stereo, 44100),
        "telephone.ogg": (tone(0.6, 350), 8000),
        "long.wav": (tone(16.0), 16000),  # longer than the 15 s of a segment
        "silent.wav": (np.zeros(160_000), 16000),
        "loud.wav": (np.clip(tone(0.5, 250) * 20, -1, 1), 16000),
    }
    for name, (samples, rate) in contents.items():
        soundfile.write(tmp_path / name, samples, rate)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.wav").write_bytes(b"<!DOCTYPE html>")
    return {path.name: str(path) for path in tmp_path.iterdir()}


@pytest.fixture
def run(model_folder, capsys):
    """run("transcribe", ...) -> exit code, lines of stdout, stderr."""

    def run(*arguments: str) -> tuple[int, list[str], str]:
        model = ("--model", model_folder) if arguments[0] in ("transcribe", "convert") else ()
        code = main([*arguments, *model])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


class TestTranscribe:
    def test_good_files(self, run, sounds):
        files = [sounds[name] for name in ("stereo.flac", "short.wav", "telephone.ogg")]
        code, lines, talk = run("transcribe", *files, "--format", "tsv")
        assert code == 0
        assert [line.split("\t")[0] for line in lines] == files
        assert all(line.split("\t")[1] for line in lines)
        assert "8000 Hz" in talk

    def test_bad_files_do_not_stop_the_good_ones(self, run, sounds):
        names = ["empty.wav", "short.wav", "page.wav", "stereo.flac", "nobody.wav"]
        files = [sounds.get(name, name) for name in names]
        code, lines, talk = run("transcribe", *files, "--format", "tsv", "--batch_size", "1")
        rows = dict(line.split("\t") for line in lines)
        assert code == 1
        assert list(rows) == files
        assert [bool(text) for text in rows.values()] == [False, True, False, True, False]
        assert [line.split(": ")[1] for line in talk.splitlines()] == ["error"] * 3
        assert "is empty" in talk
        assert "an HTML page" in talk
        assert "nobody.wav: no such file" in talk

    def test_nothing_done(self, run, sounds):
        code, lines, _ = run("transcribe", sounds["empty.wav"])
        assert (code, lines) == (2, [""])

    def test_silence_is_an_empty_text_with_a_warning(self, run, sounds):
        code, lines, talk = run("transcribe", sounds["silent.wav"], sounds["short.wav"])
        assert code == 0
        assert lines[0] == ""
        assert lines[1]
        assert talk.count("warning") == 1
        assert "silent.wav: silent" in talk

    def test_full_gpu_is_said(self, run, sounds, monkeypatch):
        def fill(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("pinyin_llm.transcription_pinyin_llm.transcribe_waveforms", fill)
        code, lines, talk = run("transcribe", sounds["short.wav"])
        assert (code, lines) == (2, [])
        assert "smaller --batch_size" in talk

    def test_noise_in_which_nothing_is_heard_warns(self, run, sounds, monkeypatch):
        write_nothing = lambda model, processor, clips, *_, **__: [RowResult("") for _ in clips]  # noqa: E731
        monkeypatch.setattr("pinyin_llm.transcription_pinyin_llm.transcribe_waveforms", write_nothing)
        code, lines, talk = run("transcribe", sounds["short.wav"])
        assert (code, lines) == (0, [""])
        assert "short.wav: no speech was recognised; its text is empty" in talk

    def test_names_of_any_bytes(self, run, sounds, tmp_path):
        odd = os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.wav")
        shutil.copy(sounds["short.wav"], odd)
        code, lines, _ = run("transcribe", odd, sounds["short.wav"])
        assert code == 0
        assert lines[0] == lines[1] != ""

    def test_names_do_not_break_the_table(self, run, sounds, tmp_path):
        odd = shutil.copy(sounds["short.wav"], tmp_path / "a\tb\nc.wav")
        code, lines, talk = run("transcribe", str(odd), "--format", "tsv")
        assert (code, len(lines)) == (0, 1)
        assert lines[0].split("\t")[0] == str(tmp_path / "a b c.wav")
        assert "is written as" in talk

    def test_clipping_warns(self, run, sounds):
        code, lines, talk = run("transcribe", sounds["loud.wav"])
        assert code == 0
        assert lines[0]
        assert "clipped" in talk

    def test_json(self, run, sounds):
        code, lines, _ = run("transcribe", sounds["short.wav"], sounds["empty.wav"], "--format", "json")
        rows = json.loads("\n".join(lines))
        assert code == 1
        known = {"file", "text", "seconds", "chunks", "heard"}
        assert [set(row) for row in rows] == [known, {*known, "error"}]
        assert len(rows[0]["heard"]) == len(rows[0]["text"]) > 0
        assert [row["file"] for row in rows] == [sounds["short.wav"], sounds["empty.wav"]]

    def test_subtitles(self, run, sounds):
        text = run("transcribe", sounds["long.wav"])[1][0]
        for form, point in (("srt", ","), ("vtt", ".")):
            code, lines, _ = run("transcribe", sounds["long.wav"], "--format", form)
            clocks = [re.fullmatch(rf"(\S+{re.escape(point)}\d{{3}}) --> (\S+)", line) for line in lines]
            times = [time for match in clocks if match for time in match.groups()]
            assert code == 0
            assert times == sorted(times)
            assert times[-1] <= f"00:00:16{point}000"
            said = [lines[place + 1] for place, match in enumerate(clocks) if match]
            assert "".join(said) == text
            assert max(map(len, said)) <= 20
            assert run("transcribe", sounds["short.wav"], sounds["long.wav"], "--format", form)[0] == 2

    def test_best_texts(self, run, sounds):
        rows = json.loads(
            "\n".join(run("transcribe", sounds["short.wav"], "--format", "json", "--alternatives", "3")[1])
        )
        scores = [row["score"] for row in rows[0]["alternatives"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)

    def test_folders_and_patterns_into_a_folder(self, run, sounds, tmp_path):
        (tmp_path / "in" / "deep").mkdir(parents=True)
        for place in ("short.wav", "deep/short.wav", "deep/stereo.flac", "empty.wav"):
            shutil.copy(sounds[Path(place).name], tmp_path / "in" / place)
        (tmp_path / "in" / "notes.md").write_text("not a sound")
        arguments = ("transcribe", str(tmp_path / "in"), str(tmp_path / "*.ogg"), "-o", str(tmp_path / "out"))
        code, lines, talk = run(*arguments)
        written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert (code, lines) == (1, [])
        assert "empty.wav: is empty" in talk
        assert written == {"short.txt", "deep/short.txt", "deep/stereo.txt", "telephone.txt", SOURCES}
        (tmp_path / "out" / "short.txt").write_text("kept")
        (tmp_path / "out" / "deep" / "short.txt").unlink()
        code, _, talk = run(*arguments)
        assert "3 of 5 are there already" in talk
        assert (tmp_path / "out" / "short.txt").read_text() == "kept"
        assert (tmp_path / "out" / "deep" / "short.txt").read_text("utf-8").strip()

    def test_what_a_folder_leaves_out_is_said_and_long_names_are_written(self, run, sounds, tmp_path):
        place = tmp_path / "in"
        place.mkdir()
        shutil.copy(sounds["short.wav"], place / f"{'录' * 83}.wav")  # 253 bytes: one as long as names may be
        (place / "talk.m4a").touch()
        (place / "._talk.wav").write_bytes(b"Mac OS X")
        code, _, talk = run("transcribe", str(place), "-o", str(tmp_path / "out"))
        assert code == 0, talk
        assert "1 sounds that cannot be read, such as talk.m4a, are left out" in talk
        assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{'录' * 83}.txt", SOURCES}

    def test_target_that_cannot_be_written_stops_no_other(self, run, sounds, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "deep").touch()  # where a folder should be
        (tmp_path / "in" / "deep").mkdir(parents=True)
        for file in ("deep/short.wav", "short.wav"):
            shutil.copy(sounds["short.wav"], tmp_path / "in" / file)
        code, _, talk = run("transcribe", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
        assert code == 1, talk
        assert (tmp_path / "out" / "short.txt").read_text("utf-8").strip()

    def test_sounds_of_one_name_get_outputs_of_their_own(self, run, sounds, tmp_path):
        shutil.copy(sounds["stereo.flac"], tmp_path / "short.flac")
        (tmp_path / "deep").mkdir()
        other = shutil.copy(sounds["short.wav"], tmp_path / "deep" / "short.wav")
        out = tmp_path / "out"
        assert run("transcribe", sounds["short.wav"], str(tmp_path / "short.flac"), "-o", str(out))[0] == 0
        assert {path.name for path in out.iterdir()} == {"short.wav.txt", "short.flac.txt", SOURCES}
        code, _, talk = run("transcribe", sounds["short.wav"], str(other), "-o", str(tmp_path / "out2"))
        assert code == 2
        assert "would both be written to" in talk
        assert run("transcribe", sounds["short.wav"], "-o", str(tmp_path / "out2"))[0] == 0
        code, _, talk = run("transcribe", str(other), "-o", str(tmp_path / "out2"))  # no second transcript is lost
        assert code == 2
        assert f"short.txt is the transcript of {sounds['short.wav']}" in talk

    def test_what_cannot_be_done_is_said_before_the_model_is_loaded(self, run, sounds, tmp_path, monkeypatch):
        monkeypatch.setattr("pinyin_llm.inference.commands._load", lambda name: pytest.fail("the model was loaded"))
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        for arguments, message in (
            ([str(tmp_path / "empty")], "found none in this folder"),
            ([sounds["short.wav"], "-o", str(tmp_path / "file")], "found a file"),
            ([sounds["short.wav"], "--alternatives", "2"], "--format json"),
        ):
            code, _, talk = run("transcribe", *arguments)
            assert code == 2
            assert message in talk

    def test_batches_do_not_change_texts(self, run, sounds):
        files = [sounds[name] for name in ("short.wav", "long.wav", "stereo.flac", "silent.wav")]
        texts = {size: run("transcribe", *files, "--batch_size", size)[1] for size in ("1", "2", "8")}
        assert texts["1"] == texts["2"] == texts["8"]

    def test_files_are_read_only_when_their_turn_comes(self, sounds, bridge_model, processor):
        opened = []

        def files():
            for name in ("short.wav", "stereo.flac", "telephone.ogg", "loud.wav"):
                opened.append(name)
                yield sounds[name]

        next(transcribe(bridge_model, processor, files(), batch_size=2))
        assert opened == ["short.wav", "stereo.flac"]

    def test_bad_model(self, capsys, sounds, tmp_path):
        for model in (tmp_path, tmp_path / "nowhere"):
            assert main(["transcribe", sounds["short.wav"], "--model", str(model)]) == 2
            talk = capsys.readouterr().err
            assert str(model) in talk
            assert "Traceback" not in talk

    def test_model_of_another_kind(self, capsys, sounds, tmp_path):
        build_model("mean").config.audio_config.save_pretrained(tmp_path)
        assert main(["transcribe", sounds["short.wav"], "--model", str(tmp_path)]) == 2
        assert f"{tmp_path} is a whisper checkpoint" in capsys.readouterr().err

    def test_damaged_weights(self, capsys, sounds, model_folder, tmp_path):
        for file in Path(model_folder).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
        assert main(["transcribe", sounds["short.wav"], "--model", str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_long_speech_is_written_like_its_clips():
    """Pieces of 28 s hold twice the syllables that the language model was taught: see LONGEST_ROW."""
    model, processor = load_model()
    clips = [load_waveform(path) for path in sorted(SAMPLES.glob("BAC009S0150*.flac"))]
    alone = transcribe_clips(model, processor, clips)
    pause = np.zeros(int(0.3 * 16000), np.float32)
    long = np.concatenate([part for clip in clips * 3 for part in (clip, pause)])
    assert len(long) > 30 * 16000
    for seconds in (15.0, 28.0):
        (together,) = transcribe(model, processor, [long], longest_seconds=seconds, num_beams=1)
        cer = score(["".join(alone * 3)], [together.text]).cer
        assert cer < 0.25  # 0.13 and 0.12; in rows of any length 0.45 of 28 s


class TestConvert:
    def test_arguments(self, run):
        code, lines, talk = run("convert", "ni3 hao3", "zhong guo", "běi jīng", "")
        assert (code, talk) == (0, "")
        assert [len(line) for line in lines] == [2, 2, 2, 0]

    def test_stdin(self, run, monkeypatch):
        typed = "\ufeffni3 hao3\n\nni3 blorp4\nzhong1 guo2".encode() + b"\n\xff\n"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        code, lines, talk = run("convert", "--num_beams", "2")
        assert code == 1
        assert [len(line) for line in lines] == [2, 0, 0, 2, 0]
        assert "line 3: 'blorp4'" in talk
        assert "line 5" in talk

    def test_nothing_done(self, run):
        assert run("convert", "hello world")[:2] == (2, [""])

    def test_names_of_a_list_go_before_others_that_sound_so(self, capsys, tmp_path):
        names, empty, other = (tmp_path / f"{name}.txt" for name in ("names", "empty", "other"))
        names.write_text("张效烟\n李沐辰\n", encoding="utf-8")
        empty.touch()
        other.write_text("张效烟\n李沐辰\n", encoding="gb18030")
        sentence = "wo3 men5 de5 li3 mu4 chen2 zhu3 ren4 jin1 tian1 bu2 zai4"
        assert main(["convert", sentence]) == main(["convert", sentence, "--text", str(names)]) == 0
        without, given = capsys.readouterr().out.splitlines()
        assert ("李沐辰" in without, given) == (False, "我们的李沐辰主任今天不在")
        assert main(["convert", sentence, "--text", str(empty)]) == 2
        assert "expected sentences or names" in capsys.readouterr().err
        assert main(["convert", sentence, "--text", str(other)]) == 2
        assert "other.txt: expected text in UTF-8" in capsys.readouterr().err


class TestScore:
    REFERENCES = "file\ttext\tspeaker\na.wav\t你好中国\tA\nb.wav\t上海\tB\n"

    @pytest.fixture
    def tables(self, tmp_path):
        def write(references: str, hypotheses: str) -> list[str]:
            (tmp_path / "ref.tsv").write_text(references, encoding="utf-8")
            (tmp_path / "hyp.tsv").write_text(hypotheses, encoding="utf-8")
            return [str(tmp_path / "ref.tsv"), str(tmp_path / "hyp.tsv")]

        return write

    def test_table(self, run, tables):
        code, lines, talk = run("score", *tables(self.REFERENCES, "x/b.wav\t上海\nx/a.wav\t你号中\n"), "--each")
        assert (code, talk) == (0, "")
        assert lines[0].split("\t") == ["a.wav", "你好中国", "你号中", "50.0%"]
        assert lines[2].startswith("CER           33.33% (95 % interval 0.00% to 50.00%)")
        assert lines[-2:] == ["characters    6", "utterances    2"]

    def test_json(self, run, tables):
        _, lines, _ = run("score", *tables(self.REFERENCES, "a.wav\t你号中\nb.wav\t\n"), "--json")
        numbers = json.loads(lines[0])
        counts = [numbers[name] for name in ("substitutions", "deletions", "insertions", "homophones")]
        assert counts == [1, 3, 0, 0.25]

    def test_each_as_json_is_one_object(self, run, tables):
        references = "utt\ttext\na\t你好\nb\t。\n"
        code, lines, _ = run("score", *tables(references, "audio\ttext\na\t你号\nb\t啊\n"), "--each", "--json")
        (line,) = lines
        assert code == 0
        assert json.loads(line)["each"] == [
            {"file": "a", "reference": "你好", "text": "你号", "cer": 0.5},
            {"file": "b", "reference": "。", "text": "啊", "cer": None},
        ]

    def test_folders_tell_files_apart(self, run, tables):
        references = "s1/001.wav\t你好\ns2/001.wav\t中国\n"
        code, lines, _ = run("score", *tables(references, "s2/001.wav\t中国\ns1/001.wav\t你好\n"))
        assert code == 0
        assert lines[0].startswith("CER           0.00%")
        code, _, talk = run("score", *tables(references, "x/s2/001.wav\t中国\nx/s1/001.wav\t你好\n"))
        assert code == 2
        assert "001.wav occurs twice, in different folders" in talk

    def test_table_that_is_not_utf_8(self, run, tmp_path):
        (tmp_path / "gbk.tsv").write_bytes("a.wav\t你好\n".encode("gbk"))
        code, _, talk = run("score", str(tmp_path / "gbk.tsv"), str(tmp_path / "gbk.tsv"))
        assert code == 2
        assert "gbk.tsv: expected UTF-8" in talk

    @pytest.mark.parametrize(
        ("hypotheses", "message"),
        [
            ("a.wav\t你好\n", "missing: b.wav"),
            ("a.wav\t\nb.wav\t\nc.wav\t\n", "extra: c.wav"),
            ("a.wav\t\na.wav\t\n", "line 2: a.wav occurs twice"),
            ("a.wav\t\nb.wav 你好\n", "line 2: expected file TAB text"),
            ("", "missing: a.wav, b.wav"),
        ],
    )
    def test_tables_that_do_not_fit(self, hypotheses, message, run, tables):
        code, lines, talk = run("score", *tables(self.REFERENCES, hypotheses))
        assert (code, lines) == (2, [])
        assert message in talk

    def test_missing_table(self, run):
        assert run("score", "nowhere.tsv", "nowhere.tsv")[0] == 2


class TestInfo:
    # From config.json and the parameter counts of meta-llama/Llama-2-7b-hf and openai/whisper-large-v3
    # (1,543,490,560 with its decoder).
    FULL_SIZE = {
        "audio_tower": 636_968_960,
        "multi_modal_projector": 1280 * 4096 + 4096,
        "pinyin_embeddings": 1417 * 4096,
        "language_model": 6_738_415_616,
    }

    def test_full_size_without_a_weight(self, run):
        before = getrusage(RUSAGE_SELF).ru_maxrss
        code, lines, _ = run("info")
        grown = getrusage(RUSAGE_SELF).ru_maxrss - before
        counts = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines[1:]}
        assert code == 0
        assert counts == {**self.FULL_SIZE, "all": sum(self.FULL_SIZE.values())}
        assert grown < 10**6  # KiB; the weights are 29 GB

    def test_a_folder(self, run, model_folder):
        _, lines, _ = run("info", "--model", model_folder)
        weights = load_file(Path(model_folder, "model.safetensors"))
        buffers = weights.pop("multi_modal_projector.composition")
        assert buffers.ndim == 2
        assert int(lines[-1].split()[1].replace(",", "")) == sum(tensor.numel() for tensor in weights.values())


class TestUsage:
    @pytest.mark.parametrize(
        "arguments", [[], ["sing"], ["transcribe"], ["transcribe", "a.wav", "--num_beams", "0"], ["score", "a.tsv"]]
    )
    def test_bad_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
    def test_help_is_quick(self, command):
        start = os.times()
        printed = subprocess.check_output(
            [sys.executable, "-m", "pinyin_llm.inference.cli", *command, "--help"], text=True
        )
        assert printed.startswith("usage: pinyin-llm")
        end = os.times()
        assert end.children_user - start.children_user < 1.0  # of work: a busy machine may take longer
