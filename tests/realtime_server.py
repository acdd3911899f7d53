"""A local server that speaks the Realtime protocol in both spellings, keeps a real conversation, and can misbehave.

It "hears" how long the visitor's sound is and how loud, and "says" a tone. It is strict: unknown fields of a session,
truncation behind the end of an item, two replies at a time and unknown items are answered with errors, as they should.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from http import HTTPStatus

import numpy as np
from websockets.asyncio.server import ServerConnection, serve

OUTPUT_RATE = 24_000
DELTA_SAMPLES = 4_800
TONE = 0.25
GA_TO_BETA = {
    "response.output_audio.": "response.audio.",
    "response.output_audio_transcript.": "response.audio_transcript.",
    "response.output_text.": "response.text.",
}
NESTED_FIELDS = {"type", "output_modalities", "instructions", "audio"}
FLAT_FIELDS = {"modalities", "instructions", "input_audio_format", "output_audio_format", "turn_detection", "voice"}


class RealtimeServer:
    """Faults are switches; "once" ones switch themselves off.

    Attributes:
        deltas: pieces of sound in a reply, 0.2 s each.
        hold_after: a reply pauses after so many of them until ``go`` is set (or it is cancelled).
        drop_after: the connection is cut after so many pieces, ``drops`` times.
        stall_after: nothing more comes after so many pieces; frozen: then nothing is read either.
        late_deltas: pieces that are still sent after a cancel.
        silent_cancel: a cancelled reply never gets its ``response.done``.
        transcript: of the visitor's words: "before" the reply, "after" it, or "never".
        words: what the visitor said; None = a sentence about the sound.
        fail_with: the reply fails with this error code; error_on: an event type that is answered with an error.
    """

    def __init__(self, nested: bool = True, input_rate: int = 24_000, server_vad: bool = False) -> None:
        self.nested, self.input_rate, self.server_vad = nested, input_rate, server_vad
        self.key, self.model = "", ""
        self.deltas = 5
        self.hold_after: int | None = None
        self.drop_after: int | None = None
        self.drops = 0
        self.stall_after: int | None = None
        self.late_deltas = 0
        self.silent_cancel = self.silent_greeting = self.frozen = False
        self.transcript = "before"
        self.words: str | None = None
        self.fail_with = self.error_on = ""
        self.text_at_once = self.unconfirmed = False
        self.close_with: tuple[int, str] | None = None
        self.log: list[tuple[str, dict]] = []
        self.visits: list[Visit] = []
        self.changed = threading.Condition()
        self.go = asyncio.Event()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> RealtimeServer:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def release(self) -> None:
        """Let held replies go on."""
        self.loop.call_soon_threadsafe(self.go.set)

    def cut_all(self) -> None:
        """Break every connection, as a network does."""
        for visit in list(self.visits):
            self.loop.call_soon_threadsafe(visit.socket.transport.abort)

    def note(self, what: str, event: dict) -> None:
        with self.changed:
            self.log.append((what, event))
            self.changed.notify_all()

    def got(self, what: str) -> list[dict]:
        return [event for kind, event in self.log if kind == what]

    def wait_for(self, what: str, count: int = 1, timeout_s: float = 20.0) -> list[dict]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got(what)) >= count, timeout_s), (what, self.kinds())
        return self.got(what)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]

    @property
    def visit(self) -> Visit:
        return self.visits[-1]

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        server = await serve(self._handle, "127.0.0.1", 0, process_request=self._check_key, compression=None)
        self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/realtime"
        self._started.set()
        await self._stop.wait()
        for visit in self.visits:
            visit.socket.transport.abort()
        server.close()

    def _check_key(self, connection: ServerConnection, request):
        self.note("handshake", {"path": request.path, **{k.lower(): v for k, v in request.headers.raw_items()}})
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong key")
        return None

    async def _handle(self, socket: ServerConnection) -> None:
        visit = Visit(self, socket)
        self.visits.append(visit)
        await visit.run()


class Visit:
    """One connection with its conversation."""

    def __init__(self, server: RealtimeServer, socket: ServerConnection) -> None:
        self.server, self.socket = server, socket
        self.items: dict[str, dict] = {}
        self.buffer: list[np.ndarray] = []
        self.session: dict = {}
        self.replying: asyncio.Task | None = None
        self.reply_name = ""
        self.cancelled = asyncio.Event()
        self.counter = 0

    def conversation(self) -> list[tuple[str, object]]:
        """Role and text, or role and heard milliseconds, of every item."""
        return [(item["role"], item.get("text") or round(item["ms"])) for item in self.items.values()]

    async def run(self) -> None:
        if self.server.close_with:
            await self.socket.close(*self.server.close_with)
            return
        if not self.server.silent_greeting:
            await self.send({"type": "session.created", "session": {"id": "s"}})
        async for text in self.socket:
            event = json.loads(text)
            self.server.note(event["type"], event)
            if event["type"] == self.server.error_on:
                await self.error("made_up", "made up", event)
                continue
            known = getattr(self, "on_" + event["type"].replace(".", "_"), None)
            if known is None:
                await self.error("unknown_or_invalid_event", "what?", event)
            else:
                await known(event)

    async def send(self, event: dict) -> None:
        if not self.server.nested:
            for ga, beta in GA_TO_BETA.items():
                event = {**event, "type": event["type"].replace(ga, beta)}
        await self.socket.send(json.dumps({"event_id": self.name("event"), **event}))

    async def error(self, code: str, message: str, cause: dict | None = None) -> None:
        inner = {"type": "invalid_request_error", "code": code, "message": message}
        self.server.note("complained", inner)
        await self.send({"type": "error", "error": {**inner, "event_id": (cause or {}).get("event_id")}})

    def name(self, kind: str) -> str:
        self.counter += 1
        return f"{kind}_{self.counter}"

    def sound(self) -> np.ndarray:
        return np.concatenate(self.buffer) if self.buffer else np.zeros(0, np.float32)

    async def on_session_update(self, event: dict) -> None:
        session = event["session"]
        nested = self.server.nested
        strange = set(session) - (NESTED_FIELDS if nested else FLAT_FIELDS | {"input_audio_transcription"})
        if strange or (nested and session["type"] != "realtime"):
            return await self.error("unknown_parameter", f"unknown: {strange}", event)
        if nested and session["audio"]["input"]["format"] != {"type": "audio/pcm", "rate": self.server.input_rate}:
            return await self.error("invalid_value", "wrong format", event)
        detection = session["audio"]["input"]["turn_detection"] if nested else session["turn_detection"]
        if (detection is None) is self.server.server_vad:
            return await self.error("invalid_value", "turn detection", event)
        self.session = session
        if not self.server.unconfirmed:
            await self.send({"type": "session.updated", "session": session})

    async def on_input_audio_buffer_append(self, event: dict) -> None:
        pcm = np.frombuffer(base64.b64decode(event["audio"]), "<i2")
        self.buffer.append(pcm.astype(np.float32) / 32768)
        if self.server.server_vad:
            pause = self.sound()[-int(0.5 * self.server.input_rate) :]
            if len(pause) >= 0.5 * self.server.input_rate and np.abs(pause).max() < 0.01 < np.abs(self.sound()).max():
                item = await self.commit()
                self.start_reply(item)

    async def on_input_audio_buffer_clear(self, event: dict) -> None:
        self.buffer = []

    async def on_input_audio_buffer_commit(self, event: dict) -> None:
        if self.server.server_vad or len(self.sound()) < 0.1 * self.server.input_rate:
            return await self.error("input_audio_buffer_commit_empty", "buffer too small", event)
        await self.commit()

    async def commit(self) -> dict:
        sound, self.buffer = self.sound(), []
        ms = 1000 * len(sound) / self.server.input_rate
        item = {"id": self.name("item"), "role": "user", "ms": ms, "loud": float(np.abs(sound).max()), "sound": sound}
        self.items[item["id"]] = item
        await self.send({"type": "input_audio_buffer.committed", "item_id": item["id"]})
        if self.server.transcript == "before":
            await self.transcribe(item)
        return item

    async def transcribe(self, item: dict) -> None:
        words = self.server.words if self.server.words is not None else f"{round(item['ms'])} milliseconds"
        prefix = "conversation.item.input_audio_transcription."
        for half in (words[: len(words) // 2], words[len(words) // 2 :]):
            await self.send({"type": prefix + "delta", "item_id": item["id"], "delta": half})
        await self.send({"type": prefix + "completed", "item_id": item["id"], "transcript": words})

    async def on_conversation_item_create(self, event: dict) -> None:
        role, (content,) = event["item"]["role"], event["item"]["content"]
        wanted = ("output_text" if self.server.nested else "text") if role == "assistant" else "input_text"
        if content["type"] != wanted:
            return await self.error("invalid_value", f"content type {content['type']} for {role}", event)
        name = self.name("item")
        self.items[name] = {"id": name, "role": role, "text": content["text"], "ms": 0.0}

    async def on_conversation_item_delete(self, event: dict) -> None:
        if self.items.pop(event["item_id"], None) is None:
            await self.error("item_delete_invalid_item_id", "no such item", event)

    async def on_conversation_item_truncate(self, event: dict) -> None:
        item = self.items.get(event["item_id"])
        if item is None or item["role"] != "assistant":
            return await self.error("item_truncate_invalid_item_id", "no such item", event)
        if event["audio_end_ms"] > item["ms"]:
            return await self.error("invalid_value", "behind the end of the sound", event)
        item["ms"], item["text"] = event["audio_end_ms"], ""

    async def on_response_create(self, event: dict) -> None:
        if self.replying is not None and not self.replying.done():
            return await self.error("conversation_already_has_active_response", "one at a time", event)
        users = [item for item in self.items.values() if item["role"] == "user"]
        if not users:
            return await self.error("invalid_value", "nothing to reply to", event)
        self.start_reply(users[-1])

    def start_reply(self, item: dict) -> None:
        self.cancelled = asyncio.Event()
        self.replying = asyncio.create_task(self.reply(item))

    async def on_response_cancel(self, event: dict) -> None:
        if self.replying is None or self.replying.done():
            return await self.error("response_cancel_not_active", "nothing to cancel", event)
        if event.get("response_id", self.reply_name) != self.reply_name:
            return await self.error("response_cancel_not_active", "another one", event)
        self.cancelled.set()

    async def reply(self, question: dict) -> None:
        server, name = self.server, self.name("resp")
        self.reply_name = name
        await self.send({"type": "response.created", "response": {"id": name, "status": "in_progress"}})
        if server.fail_with:
            error = {"code": server.fail_with, "message": "made up failure"}
            failed = {"id": name, "status": "failed", "status_details": {"type": "failed", "error": error}}
            return await self.send({"type": "response.done", "response": failed})
        item = {"id": self.name("item"), "role": "assistant", "text": "", "ms": 0.0}
        self.items[item["id"]] = item
        shared = {"response_id": name, "item_id": item["id"], "output_index": 0, "content_index": 0}
        await self.send({"type": "response.output_item.added", "response_id": name, "item": {"id": item["id"]}})
        finished = await self.say(item, shared)
        if finished and server.transcript == "after":
            await self.transcribe(question)
        if finished or not server.silent_cancel:
            status = "completed" if finished else "cancelled"
            await self.send({"type": "response.done", "response": {"id": name, "status": status}})
        server.note("reply over", {"id": name, "finished": finished})

    async def say(self, item: dict, shared: dict) -> bool:
        """Whether the reply was said to its end."""
        server = self.server
        for number in range(server.deltas):
            if number == server.drop_after and server.drops > 0:
                server.drops -= 1
                self.socket.transport.abort()
                await asyncio.sleep(60)
            if number == server.stall_after:
                if server.frozen:
                    self.socket.transport.pause_reading()
                server.note("stalled", {})
                await self.cancelled.wait()
            if number == server.hold_after:
                server.note("holding", {})
                waits = [asyncio.create_task(server.go.wait()), asyncio.create_task(self.cancelled.wait())]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self.cancelled.is_set():
                for _ in range(server.late_deltas):
                    await self.send_sound(shared, -TONE)
                return False
            if not server.text_at_once:
                text = f"word{number} "
                await self.send({"type": "response.output_audio_transcript.delta", "delta": text, **shared})
            item["ms"] += 1000 * DELTA_SAMPLES / OUTPUT_RATE
            item["text"] += f"word{number} "
            await self.send_sound(shared, TONE)
        await self.send({"type": "response.output_audio.done", **shared})
        done = {"type": "response.output_audio_transcript.done", "transcript": item["text"], **shared}
        await self.send(done)
        return True

    async def send_sound(self, shared: dict, level: float) -> None:
        pcm = np.full(DELTA_SAMPLES, level * 32768, "<i2").tobytes()
        half = len(pcm) // 2 + 1  # packets end inside a sample
        for part in (pcm[:half], pcm[half:]):
            delta = base64.b64encode(part).decode()
            await self.send({"type": "response.output_audio.delta", "delta": delta, **shared})
