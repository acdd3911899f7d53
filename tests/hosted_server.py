"""A local server with OpenAI's routes for speech recognition, chat and speech, which can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
import wave

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

RATE = 24_000
LETTER_SAMPLES = 1200  # 50 ms of sound a letter
STALL, STALL_INSIDE, DROP_INSIDE, DRIP, NOTHING = "stall", "stall inside", "drop inside", "drip", "nothing"


def level(text: str) -> float:
    """The server speaks in steady tones; each text has its own, so that a test can tell them apart."""
    return (10 + len(text)) / 300


class HostedServer:
    """Faults are numbers (an HTTP status) or one of the words above, by service: "asr", "chat", "tts"."""

    def __init__(self) -> None:
        self.words = "what is the capital of France"
        self.reply = ["The cap", "ital of France is ", "Paris. It has two million ", "people."]
        self.key = ""
        self.faults: dict[str, object] = {}
        self.wait_before_speaking: dict[str, threading.Event] = {}
        self.wav_only = False
        self.log: list[tuple[str, object]] = []
        self.changed = threading.Condition()
        self.speaking, self.most_speaking = 0, 0
        self.released = threading.Event()
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> HostedServer:
        self._thread.start()
        limit = time.monotonic() + 30
        while not self._server.started:
            assert time.monotonic() < limit, "the server did not start"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    def note(self, what: str, detail: object = None) -> None:
        with self.changed:
            self.log.append((what, detail))
            self.changed.notify_all()

    def details(self, what: str) -> list:
        return [detail for name, detail in self.log if name == what]

    def wait_for(self, what: str, count: int = 1, timeout_s: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.details(what)) >= count, timeout_s), (what, self.log)

    def _app(self) -> FastAPI:
        app = FastAPI()
        for prefix in ("/v1", "/v1/openai"):
            app.get(f"{prefix}/models")(self._models)
            app.post(f"{prefix}/chat/completions")(self._chat)
            app.post(f"{prefix}/audio/transcriptions")(self._transcriptions)
            app.post(f"{prefix}/audio/speech")(self._speech)
        return app

    async def _refused(self, service: str, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "wrong key"}, 401)
        fault = self.faults.get(service)
        if isinstance(fault, int):
            return JSONResponse({"error": f"made up {fault}"}, fault)
        if fault == STALL:
            await self._stall()
        return None

    async def _stall(self) -> None:
        self.note("stalled")
        while not self.released.is_set():
            await asyncio.sleep(0.02)

    async def _models(self, request: Request) -> Response:
        return await self._refused("models", request) or JSONResponse({"object": "list", "data": []})

    async def _transcriptions(self, request: Request) -> Response:
        refused = await self._refused("asr", request)
        if refused is not None:
            return refused
        form = await request.form()
        data = await form["file"].read()
        with wave.open(io.BytesIO(data)) as file:
            heard = (file.getframerate(), file.getnframes())
        self.note("asr", {"model": form["model"], "file": form["file"].filename, "heard": heard})
        return JSONResponse({"text": self.words})

    async def _chat(self, request: Request) -> Response:
        refused = await self._refused("chat", request)
        body = await request.json()
        self.note("chat", body)
        return refused or StreamingResponse(self._write(self.faults.get("chat")), media_type="text/event-stream")

    async def _write(self, fault: object):
        try:
            if fault == DRIP:
                while not self.released.is_set():
                    yield ": still thinking\n\n"
                    await asyncio.sleep(0.05)
            yield _sse({"role": "assistant", "content": ""})
            for number, text in enumerate(self.reply):
                if number == 2 and fault == STALL_INSIDE:
                    await self._stall()
                if number == 2 and fault == DROP_INSIDE:
                    raise ConnectionAbortedError("made up")
                yield _sse({"content": text})
            yield _sse({}, "stop") + "data: [DONE]\n\n"
        finally:
            self.note("chat over")

    async def _speech(self, request: Request) -> Response:
        refused = await self._refused("tts", request)
        body = await request.json()
        text = body["input"]
        self.note("tts", body)
        if refused is not None:
            return refused
        self.speaking += 1
        self.most_speaking = max(self.most_speaking, self.speaking)
        with contextlib.suppress(KeyError):
            await asyncio.to_thread(self.wait_before_speaking[text].wait, 20)
        self.speaking -= 1
        self.note("spoken", text)
        count = LETTER_SAMPLES * len(text)
        pcm = np.full(count, level(text) * 32767, "<i2").tobytes()
        if self.wav_only or body.get("response_format") != "pcm":
            return Response(_wav(pcm), media_type="audio/wav")
        return StreamingResponse(self._play(pcm, self.faults.get("tts")), media_type="audio/pcm")

    async def _play(self, pcm: bytes, fault: object):
        if fault == NOTHING:
            return
        for at in range(0, len(pcm), 9999):  # an odd number: packets end inside samples
            if at and fault == STALL_INSIDE:
                await self._stall()
            yield pcm[at : at + 9999]


def _sse(delta: dict, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


def _wav(pcm: bytes) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm)
    return target.getvalue()
