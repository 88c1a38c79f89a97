"""Corpora that are not as they were published, and text that is not UTF-8: named, and never an empty result."""

import gzip

import pytest
from test_corpora import aishell1, common_voice, counts, record, rows, run, st_cmds, thchs30, write

from pinyin_llm.corpora import plain_text, unpack
from pinyin_llm.corpora.speech_corpora import CORPORA


TEXT = "他在公司的图书馆看了一本很好的中文字典。我们明天一起去公园散步吧！"
IN_BOTH_SCRIPTS = "他在公司看了一本很好的中文字典，我明天一早到上海工作。"  # which Big5 has, too


def unpacked(make, root):
    """The small copy of a corpus, unpacked; its folder."""
    make(root)
    corpus = CORPORA[make.__name__]
    unpack.unpack([path for path in root.iterdir() if path.name.endswith(unpack.SUFFIXES)])
    for archive in root.glob("data_aishell/wav/*.tar.gz"):
        unpack.unpack([archive])
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder, corpus


def test_byte_order_mark_hides_no_transcript(tmp_path):
    folder, corpus = unpacked(aishell1, tmp_path)
    before = {clip.audio.stem: clip.text for clip in corpus.read(tmp_path)}
    transcripts = folder / "transcript" / "aishell_transcript_v0.8.txt"
    transcripts.write_text(transcripts.read_text("utf-8"), "utf-8-sig")
    assert {clip.audio.stem: clip.text for clip in corpus.read(tmp_path)} == before
    assert before["BAC009S0002W0122"] == "而对楼市成交抑制作用最大的限购"


def test_utterance_with_two_texts_is_refused(tmp_path, capsys):
    folder, _ = unpacked(aishell1, tmp_path)
    transcripts = folder / "transcript" / "aishell_transcript_v0.8.txt"
    same = "BAC009S0724W0121 广州市 房地产 中介协会分析\n"
    write(transcripts, transcripts.read_text("utf-8") + same)
    assert run("aishell1", tmp_path, tmp_path / "out") == 1  # incomplete, but read
    write(transcripts, transcripts.read_text("utf-8") + "BAC009S0724W0121 广州\n")
    assert run("aishell1", tmp_path, tmp_path / "other") == 2
    message = "expected one text for BAC009S0724W0121, found 广州市房地产中介协会分析 and 广州."
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("make", [aishell1, thchs30, st_cmds])
def test_suffix_may_be_in_capitals(make, tmp_path):
    folder, corpus = unpacked(make, tmp_path)
    before = {clip.audio.stem: clip.text for clip in corpus.read(tmp_path)}
    for path in list(folder.rglob("*.wav")):
        path.rename(path.with_suffix(".WAV"))
    assert {clip.audio.stem: clip.text for clip in corpus.read(tmp_path)} == before
    assert any(before.values())


@pytest.mark.parametrize("make", [aishell1, thchs30, st_cmds])
def test_missing_sounds_and_other_layouts_are_named(make, tmp_path, capsys):
    folder, _ = unpacked(make, tmp_path)
    for path in list(folder.rglob("*.wav")):
        path.unlink()
    assert run(make.__name__, tmp_path, tmp_path / "out") == 2
    assert "*.wav, found none. Unpack it as it was published" in capsys.readouterr().err
    record(folder / "flat" / "a.WAV")
    assert run(make.__name__, tmp_path, tmp_path / "out") == 2
    assert "*.wav, found some elsewhere, such as flat/a.WAV." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("client_id\tpath\tsentence\nn7\n", "train.tsv, line 2: expected 3 cells, found 1"),
        ("client_id\tpath\tsentence\nn7\ta.mp3\t你\t好\n", "train.tsv, line 2: expected 3 cells, found 4"),
        ("client_id\tpath\ttext\nn7\ta.mp3\t你好\n", "train.tsv: expected the columns .*, found no sentence"),
        ("", "train.tsv: expected the columns path, sentence, client_id, found no path, sentence, client_id"),
    ],
)
def test_rows_of_common_voice(table, message, tmp_path):
    folder, corpus = unpacked(common_voice, tmp_path)
    write(folder / "zh-CN" / "train.tsv", table)
    with pytest.raises(ValueError, match=message):
        list(corpus.read(tmp_path))


def test_byte_order_mark_of_common_voice(tmp_path):
    folder, _ = unpacked(common_voice, tmp_path)
    table = folder / "zh-CN" / "train.tsv"
    table.write_text(table.read_text("utf-8"), "utf-8-sig")
    assert run("common_voice", tmp_path, tmp_path / "out") == 0
    assert counts(tmp_path / "out", "train")["kept"] == len(rows(tmp_path / "out", "train")) == 1


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".tsv"])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [("gbk", "GB18030"), ("gb18030", "GB18030"), ("utf-16", "UTF-16"), ("utf-16-be", "UTF-16-BE"), ("big5", "BIG5")],
)
def test_text_in_another_encoding_is_refused_by_name(encoding, named, suffix, tmp_path, capsys):
    encoded = (f"id\ttext\n1\t{IN_BOTH_SCRIPTS}\n" if suffix == ".tsv" else IN_BOTH_SCRIPTS).encode(encoding)
    path = tmp_path / f"raw{suffix}"
    path.write_bytes(gzip.compress(encoded) if suffix.endswith("gz") else encoded)
    assert plain_text.main(["--inputs", str(path), "--output", str(tmp_path / "out.txt")]) == 2
    talk = capsys.readouterr().err
    assert f"raw{suffix}: expected text in UTF-8, found {named} or the like. Convert it: iconv -f {named}" in talk
    assert not list(tmp_path.glob("out*"))


def test_a_few_damaged_bytes_end_their_sentence_and_are_counted(tmp_path, capsys):
    raw = TEXT.encode()
    cut = raw.index("图".encode())
    (tmp_path / "raw.txt").write_bytes(raw[:cut] + b"\xe5\x9b" + raw[cut + 3 :])
    assert plain_text.main(["--inputs", str(tmp_path / "raw.txt"), "--output", str(tmp_path / "out.txt")]) == 0
    assert (tmp_path / "out.txt").read_text("utf-8").split() == [
        "他在公司的", "书馆看了一本很好的中文字典", "我们明天一起去公园散步吧"
    ]  # fmt: skip
    assert "warning: 1 bytes are not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("split", ["写一份很长的报告", "今天天气很好"]), ("drop", ["今天天气很好"]),
     ("delete", ["我用写一份很长的报告", "今天天气很好"])],
)  # fmt: skip
def test_sentences_with_foreign_words_are_counted(policy, kept, tmp_path, capsys):
    write(tmp_path / "raw.txt", "我用Word写一份很长的报告。今天天气很好。")
    arguments = ["--inputs", str(tmp_path / "raw.txt"), "--output", str(tmp_path / "out.txt"), "--non_han", policy]
    assert plain_text.main(arguments) == 0
    assert (tmp_path / "out.txt").read_text("utf-8").split() == kept
    talk = capsys.readouterr()
    assert '"with_foreign_words": 1' in talk.out
    assert ("cut out of 1 sentences" in talk.err) == (policy == "delete")


@pytest.mark.parametrize("content", ["", "\n\n", "Nothing in Chinese here.\n", "好\n"])
def test_nothing_kept_is_an_error(content, tmp_path, capsys):
    write(tmp_path / "raw.txt", content)
    write(tmp_path / "out.txt", "from before\n")
    assert plain_text.main(["--inputs", str(tmp_path / "raw.txt"), "--output", str(tmp_path / "out.txt")]) == 2
    assert "Expected sentences in Han characters, kept none" in capsys.readouterr().err
    assert (tmp_path / "out.txt").read_text("utf-8") == "from before\n"
    assert not list(tmp_path.glob("*.partial"))
