"""`pinyin-llm serve` as OpenAI's own client meets it."""

import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import soundfile
from conftest import COMMAND_LINE, build_model, free_port, save_folder, tone, warm_process
from openai import APITimeoutError, BadRequestError, InternalServerError, NotFoundError, OpenAI

from pinyin_llm.inference import server as serve
from pinyin_llm.inference.loading import MINI_MODEL
from pinyin_llm.transcript_pinyin_llm import Transcript


SOUND = Path(__file__).parents[1] / "samples" / "BAC009S0764W0121.wav"
TEXT = "甚至出现交易几乎停滞的情况"


@contextmanager
def serving(model, *flags: str):
    """A server process and a client of it; ends the server as `kill` does."""
    port = free_port()
    process = warm_process().start(COMMAND_LINE, "serve", "--model", model, "--port", port, *flags)
    try:
        yield process, wait_for(OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0))
    finally:
        process.kill(signal.SIGTERM)
        process.wait()


def wait_for(client: OpenAI) -> OpenAI:
    for _ in range(240):
        try:
            client.models.list()
            return client
        except Exception:  # not up yet
            time.sleep(0.25)
    raise TimeoutError("The server did not start within a minute.")


@pytest.fixture(scope="module")
def client():
    with serving(MINI_MODEL) as (_, client):
        yield client


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model, and a sound that keeps it busy for a while."""
    folder = tmp_path_factory.mktemp("slow")
    save_folder(build_model("pinyin_bridge"), folder)
    soundfile.write(folder / "long.wav", tone(60.0), 16000)
    return folder, folder / "long.wav"


def test_formats(client):
    def ask(form: str, **more):
        return client.audio.transcriptions.create(model="mini", file=SOUND, response_format=form, **more)

    assert ask("json", language="zh").text == TEXT
    assert ask("text").strip() == TEXT
    assert ask("srt").startswith("1\n00:00:00,")
    verbose = ask("verbose_json", timestamp_granularities=["word"])
    assert (verbose.text, round(verbose.duration, 1)) == (TEXT, 4.2)
    assert "".join(word.word for word in verbose.words) == TEXT
    assert verbose.segments[0].end <= verbose.duration


def test_what_it_refuses(client, tmp_path):
    (tmp_path / "page.wav").write_text("<!DOCTYPE html>")
    for wrong, message in (
        ({"file": tmp_path / "page.wav"}, "HTML page"),
        ({"language": "en"}, "Mandarin"),
        ({"response_format": "tsv"}, "response_format"),
    ):
        with pytest.raises(BadRequestError, match=message):
            client.audio.transcriptions.create(**({"model": "mini", "file": SOUND} | wrong))


def test_text_of_any_recogniser_is_corrected(client):
    def ask(**body) -> httpx.Response:
        return httpx.post(f"{client.base_url}text/corrections", json=body, timeout=60)

    wrong, empty = ask(texts=["十年后的需求还能继续支撑仿价吗", ""]).json()["data"]
    assert wrong["text"] == "十年后的需求还能继续支撑房价吗"
    assert [(change["before"], change["after"]) for change in wrong["changes"]] == [("仿", "房")]
    assert empty == {"text": "", "changes": []}
    assert ask(texts=["今後可能會出現"], simplified=True).json()["data"][0]["text"] == "今后可能会出现"
    assert [ask(texts=texts).status_code for texts in ([], ["好" * 10_001])] == [400, 413]


def test_large_upload_is_refused_unread(client):
    """Before its body: a disk is soon full of what is too large."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
        head = (
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        )
        connection.sendall(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_what_is_not_here(client):
    assert client.models.retrieve("mini").id == "mini"
    with pytest.raises(NotFoundError) as refused:
        client.audio.translations.create(model="mini", file=SOUND)
    assert refused.value.body["message"].startswith("POST /v1/audio/translations: Not Found")


def test_twenty_at_once(client):
    def ask(_):
        return client.audio.transcriptions.create(model="mini", file=SOUND).text

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == [TEXT] * 20


def test_short_before_long_and_nothing_for_those_who_hung_up(slow, tmp_path):
    folder, sound = slow
    soundfile.write(tmp_path / "short.wav", tone(1.0), 16000)
    one_less = "4"  # than the pieces of both: the short one is done with the first batch, the long one with the second
    with serving(folder, "--batch_size", one_less) as (_, client), ThreadPoolExecutor(8) as pool:
        ended = {}

        def ask(name: str, file) -> None:
            client.audio.transcriptions.create(model="tiny", file=file)
            ended[name] = time.time()

        begun = time.time()
        first = pool.submit(ask, "first", sound)  # keeps the model busy while the others wait
        time.sleep(0.3)
        rest = [pool.submit(ask, "long", sound), pool.submit(ask, "short", tmp_path / "short.wav")]
        gone = [
            pool.submit(client.with_options(timeout=0.2).audio.transcriptions.create, model="tiny", file=sound)
            for _ in range(3)
        ]
        assert all(isinstance(future.exception(), APITimeoutError) for future in gone)
        for future in (first, *rest):
            future.result()
        assert ended["short"] < ended["long"]
        once = ended["first"] - begun
        assert ended["long"] - begun < 3.5 * once  # with those who hung up it would be five


def test_full_queue_refuses_and_the_rest_is_answered(slow, tmp_path):
    folder, sound = slow[0], tmp_path / "sound.wav"
    soundfile.write(sound, tone(15.0), 16000)
    with serving(folder, "--batch_size", "1", "--queue", "2") as (_, client), ThreadPoolExecutor(12) as pool:

        def ask(_) -> str:
            try:
                return client.audio.transcriptions.create(model="tiny", file=sound).text and "answered"
            except InternalServerError as error:
                return f"{error.status_code}, again after {error.response.headers['Retry-After']}"

        fates = list(pool.map(ask, range(12)))
        assert set(fates) == {"answered", "503, again after 1"}
        assert ask(0) == "answered"


def test_shutdown_answers_what_is_under_way(slow):
    folder, sound = slow
    with serving(folder) as (process, client), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.audio.transcriptions.create, model="tiny", file=sound)
        time.sleep(0.5)
        process.kill(signal.SIGTERM)
        assert asked.result(timeout=60).text
        assert process.wait().returncode == -signal.SIGTERM  # uvicorn ends itself by the signal, after all is done


def test_text_that_fails_or_that_nobody_waits_for(monkeypatch):
    """An error is the answer of its own request; a client that hung up costs nothing; the thread goes on."""

    def correct(model, processor, texts, strength, simplified):
        asked.append(texts[0])
        if texts[0] == "bad":
            raise ValueError("no n-grams")
        return texts

    asked: list[str] = []
    monkeypatch.setattr(serve, "correct", correct)
    batcher = serve.Batcher(None, None, batch_size=8, most_waiting=8)
    with batcher.waiting.mutex:
        jobs = [serve.Job(serve.TextRequest(texts=[text]), Future()) for text in ("bad", "gone", "good")]
        jobs[1].future.cancel()
        batcher.waiting.queue.extend(jobs)
        batcher.waiting.not_empty.notify()
    assert jobs[2].future.result(10) == ["good"]
    assert str(jobs[0].future.exception(10)) == "no n-grams"
    assert asked == ["bad", "good"]
    batcher.close()


def test_what_fails_in_a_batch_fails_alone(monkeypatch):
    def transcribe(model, processor, sounds, batch_size):
        if b"bad" in sounds:
            raise RuntimeError("bad")
        return [Transcript(sound) for sound in sounds]

    monkeypatch.setattr(serve, "transcribe", transcribe)
    batcher = serve.Batcher(None, None, batch_size=8, most_waiting=8)
    with batcher.waiting.mutex:  # so that all three are taken together
        futures = [Future() for _ in range(3)]
        batcher.waiting.queue.extend(map(serve.Job, [b"one", b"bad", b"two"], futures))
        batcher.waiting.not_empty.notify()
    one, bad, two = futures
    assert (one.result(10).source, two.result(10).source) == (b"one", b"two")
    assert str(bad.exception(10)) == "bad"
    batcher.close()
