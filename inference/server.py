"""`pinyin-llm serve`: OpenAI's POST /v1/audio/transcriptions, and POST /v1/text/corrections for the text of any
recogniser, by FastAPI and uvicorn.

Sounds that wait at the same time are transcribed as one batch.
"""

import asyncio
import queue
import threading
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ..correction.corrector import correct
from ..transcript_pinyin_llm import FORMATS, Transcript, characters_of
from ..transcription_pinyin_llm import transcribe


LARGEST_BYTES = 25 * 2**20  # OpenAI's limit as well
FORM_BYTES = 2**16  # of the other fields
MOST_CHARACTERS, MOST_LINES = 10_000, 1_000  # of a request to correct text: some 20 seconds of two cores
LANGUAGES = {"", "zh", "cmn", "chinese", "mandarin"}  # also with a region or script, as in zh-TW
MODEL = {"id": "pinyin-llm", "object": "model", "created": 0, "owned_by": "pinyin-llm"}
FORMS = ("json", "text", "srt", "vtt", "verbose_json")
POLL_SECONDS = 0.5  # between checks that the client of a waiting request is still connected
RETRY_SECONDS = 1


class RequestError(Exception):
    """A request that is refused: HTTP status and the reason."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class TextRequest(BaseModel):
    """The body of a request to correct text: lines by any recogniser."""

    texts: list[str] = Field(min_length=1, max_length=MOST_LINES)
    strength: float = Field(default=1.0, ge=0.0, le=10.0)
    simplified: bool = False


@dataclass
class Job:
    """What a client waits for: the transcript of a sound, or the corrections of its lines."""

    work: bytes | TextRequest
    future: Future

    @property
    def size(self) -> int:
        """Bytes of the sound or characters of the text: short ones go first."""
        return len(self.work) if isinstance(self.work, bytes) else sum(map(len, self.work.texts))


class Batcher:
    """One thread that owns the model, corrects text, and transcribes the sounds that wait as one batch.

    Args:
        batch_size: Requests, and pieces of sound, at once.
        most_waiting: Requests in the queue; more are refused.
    """

    def __init__(self, model, processor, batch_size: int, most_waiting: int):
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.waiting: queue.Queue = queue.Queue(most_waiting)
        self.thread = threading.Thread(target=self._work, name="transcriber")
        self.thread.start()

    def submit(self, work: bytes | TextRequest) -> Future:
        """A future [`Transcript`] of a sound, or a list of [`Correction`].

        Raises:
            RequestError: The queue is full.
        """
        future: Future = Future()
        try:
            self.waiting.put_nowait(Job(work, future))
        except queue.Full:
            raise RequestError(
                503, f"{self.waiting.maxsize} requests are waiting already. Try again in a second."
            ) from None
        return future

    def close(self) -> None:
        """Finish the waiting requests, then end the thread."""
        self.waiting.put(None)
        self.thread.join()

    def _work(self) -> None:
        while jobs := self._next_batch():
            jobs.sort(key=lambda job: job.size)
            sounds = [job for job in jobs if isinstance(job.work, bytes)]
            if sounds:
                self._transcribe(sounds)
            for job in (job for job in jobs if not isinstance(job.work, bytes)):
                self._correct(job)

    def _correct(self, job: Job) -> None:
        """Answer a request to correct text, unless its client hung up."""
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            job.future.set_result(correct(self.model, self.processor, **job.work.model_dump()))
        except Exception as error:
            job.future.set_exception(error)

    def _transcribe(self, jobs: list[Job]) -> None:
        """Answer all sounds; if a batch fails, each is tried alone, and the one that fails gets the error."""
        waiting = list(jobs)
        try:
            for transcript in transcribe(self.model, self.processor, [job.work for job in jobs], self.batch_size):
                waiting.pop(0).future.set_result(transcript)
        except Exception as error:
            if len(jobs) == 1:
                for job in waiting:
                    job.future.set_exception(error)
                return
        for job in waiting:  # outside the except block: the error would keep the memory of the batch
            self._transcribe([job])

    @staticmethod
    def _is_wanted(job: Job) -> bool:
        """Whether its client is still there; a sound is from now on under way, a text may still be given up."""
        if isinstance(job.work, bytes):
            return job.future.set_running_or_notify_cancel()
        return not job.future.cancelled()

    def _next_batch(self) -> list[Job]:
        """Waits for one request and takes all that wait with it; empty when the server stops."""
        jobs: list = []
        while not jobs:  # requests whose clients hung up are dropped
            taken = [self.waiting.get()]
            while taken[-1] is not None and len(taken) < self.batch_size and not self.waiting.empty():
                taken.append(self.waiting.get())
            jobs = [job for job in taken if job is not None and self._is_wanted(job)]
            if taken[-1] is None:
                if jobs:
                    self.waiting.put(None)  # stop after the requests that came before
                break
        return jobs


class SizeLimit:
    """Refuses a request by the length that it announces, before its body is stored."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        length = dict(scope.get("headers", ())).get(b"content-length", b"")
        if length.isdigit() and int(length) > LARGEST_BYTES + FORM_BYTES:
            message = f"Expected at most {LARGEST_BYTES} bytes, found {int(length)}. Cut the sound."
            await _refuse(413, message)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def build_server(model, processor, batch_size: int = 32, most_waiting: int = 64) -> FastAPI:
    """The application; its lifespan owns the [`Batcher`]."""

    @asynccontextmanager
    async def lifespan(server: FastAPI):
        server.state.batcher = Batcher(model, processor, batch_size, most_waiting)
        yield
        server.state.batcher.close()

    server = FastAPI(title="PinyinLLM", lifespan=lifespan)
    server.add_exception_handler(RequestError, lambda _, error: _refuse(error.status, str(error)))
    server.add_exception_handler(RequestValidationError, lambda _, error: _refuse(400, _name_fields(error)))
    server.add_exception_handler(HTTPException, _refuse_path)
    server.add_exception_handler(Exception, lambda _, error: _refuse(500, f"{type(error).__name__}: {error}"))
    server.add_middleware(SizeLimit)

    @server.get("/health")
    async def health() -> dict:
        return {"status": "ok", "waiting": server.state.batcher.waiting.qsize()}

    @server.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [MODEL]}

    @server.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        return MODEL | {"id": name}  # any name: there is one model

    @server.post("/v1/audio/transcriptions")
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()] = MODEL["id"],  # noqa: ARG001  (there is one model)
        language: Annotated[str, Form()] = "zh",
        response_format: Annotated[str, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
    ):
        _check(language, response_format, stream)
        sound = await file.read(LARGEST_BYTES + 1)
        if len(sound) > LARGEST_BYTES:
            raise RequestError(413, f"{file.filename}: expected at most {LARGEST_BYTES} bytes. Cut the sound.")
        transcript = await _wait(server.state.batcher.submit(sound), request)
        if transcript.error:
            raise RequestError(400, f"{file.filename}: {transcript.error}")
        return _answer(transcript, response_format)

    @server.post("/v1/text/corrections")
    async def corrections(request: Request, body: TextRequest) -> dict:
        if (size := sum(map(len, body.texts))) > MOST_CHARACTERS:
            raise RequestError(413, f"texts: expected at most {MOST_CHARACTERS} characters, found {size}. Send parts.")
        found = await _wait(server.state.batcher.submit(body), request)
        return {"object": "list", "data": [asdict(correction) for correction in found]}

    return server


async def _wait(future: Future, request: Request):
    """The result; if the client hangs up before its turn, the request is cancelled."""
    waiting = asyncio.wrap_future(future)
    while not (await asyncio.wait([waiting], timeout=POLL_SECONDS))[0]:
        if await request.is_disconnected():
            waiting.cancel()
            raise RequestError(499, "The client hung up.")
    return waiting.result()


def _check(language: str, response_format: str, stream: bool) -> None:
    if language.lower().split("-")[0] not in LANGUAGES:
        raise RequestError(400, f"language: this model transcribes Mandarin (zh) only, found {language!r}.")
    if response_format not in FORMS:
        raise RequestError(400, f"response_format: expected one of {', '.join(FORMS)}, found {response_format!r}.")
    if stream:
        raise RequestError(400, "stream: streaming is not supported. Leave it out.")


def _answer(transcript: Transcript, response_format: str):
    if response_format == "json":
        return {"text": transcript.text}
    if response_format == "verbose_json":
        return _verbose(transcript)
    return PlainTextResponse(FORMATS["txt" if response_format == "text" else response_format](transcript))


def _verbose(transcript: Transcript) -> dict:
    """As OpenAI's: segments are the chunks between pauses, words are characters."""
    chunks = enumerate(transcript.chunks)
    words = [(row["text"], *row["timestamp"]) for row in characters_of(transcript)]
    return {
        "task": "transcribe",
        "language": "chinese",
        "duration": transcript.seconds,
        "text": transcript.text,
        "segments": [{"id": i, "start": chunk.start, "end": chunk.end, "text": chunk.text} for i, chunk in chunks],
        "words": [{"word": text, "start": start, "end": end} for text, start, end in words],
    }


def _refuse(status: int, message: str) -> JSONResponse:
    """An error in OpenAI's format."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


def _refuse_path(request: Request, error: HTTPException) -> JSONResponse:
    """No such path, or not with this method."""
    return _refuse(error.status_code, f"{request.method} {request.url.path}: {error.detail}. See /docs.")


def _name_fields(error: RequestValidationError) -> str:
    return "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())


def serve(model, processor, host: str, port: int, batch_size: int, most_waiting: int) -> int:
    """Serve until SIGINT or SIGTERM; requests in progress are answered first."""
    server = build_server(model, processor, batch_size, most_waiting)
    uvicorn.run(server, host=host, port=port, access_log=False)
    return 0
