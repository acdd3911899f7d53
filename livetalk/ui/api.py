"""The Python and HTTP API: ``/render``, ``/session``, ``/push_audio``, ``/say``, ``/stop``, ``/chat``.

Endpoints are plain functions with types; Gradio derives the documentation from them. Annotations are evaluated here
(no ``from __future__ import annotations``), because Gradio reads the return type as it stands; for a generator it wants
the type of what is yielded.

A question in a file, answered with a video (``sid`` makes it a conversation)::

    client = gradio_client.Client("http://127.0.0.1:7860")
    answer = client.predict(handle_file("me.png"), handle_file("question.wav"), sid=uuid.uuid4().hex, api_name="/chat")

A live conversation: ``examples/chat.py``.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import gradio as gr
import numpy as np
from gradio import FileData

from livetalk.media.clips import write_clip
from livetalk.media.pictures import load_portrait
from livetalk.stream.chat import question
from livetalk.stream.session import MICROPHONE_BACKLOG_S
from livetalk.stream.talkers.protocol import Persona, VisitorTurn
from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, LiveTalkError, Pictures
from livetalk.ui.chats import Chats
from livetalk.ui.checks import check_mode, check_sid
from livetalk.ui.line import visitor_limit
from livetalk.ui.live import SPEECH_LIMIT_S, LiveSessions, Talk
from livetalk.ui.outbox import Outbox
from livetalk.ui.plain import (
    checked_prompt,
    checked_seed,
    checked_text,
    checked_word,
    plain,
    plain_async,
    plain_stream,
    uploaded,
)

PIECE_PICTURES = 12
BACKLOG_S = 30.0
BEGIN_S = 5.0
OVER_S = 5.0
SETTLE_S = 0.5
"""Rest of /stop. gradio_client learns the name of a call after the server has taken it. When the last two calls of a
client are over by then, it opens a stream of events that nobody closes, and its process never ends."""
_NAMES = {"visitor": "You", "avatar": "LiveTalk"}


class Line(TypedDict):
    """One line of a conversation's transcript, as it is now; lines are known by their number."""

    number: int
    role: str
    text: str
    start_s: float
    is_final: bool
    is_cut: bool


class Piece(TypedDict):
    """One piece of a live session, as ``/session`` yields it."""

    index: int
    start_s: float
    duration_s: float
    video: FileData
    state: str
    text: str
    lines: list[Line]
    notice: str


class Accepted(TypedDict):
    """Answer of ``/push_audio``."""

    accepted_samples: int
    state: str


class Taken(TypedDict):
    """Answer of ``/say``."""

    sid: str
    state: str


class Stopped(TypedDict):
    """Answer of ``/stop``."""

    sid: str
    stopped: bool


class Answered(TypedDict):
    """Answer of ``/chat``."""

    video: FileData
    heard: str
    reply: str
    transcript: str
    talker: str
    notice: str
    seconds: float


def pieces(stream: Iterator[Pictures], limit_s: float) -> Iterator[Pictures]:
    """The pictures of a live stream in pieces of up to ``PIECE_PICTURES``, cut where the generation changes."""
    held: list[Pictures] = []
    pictures_sent = 0
    for item in stream:
        fresh = bool(held) and item.generation != held[0].generation
        if fresh:
            yield joined(held)
            held = []
        if len(item.pictures):
            held.append(item)
        if sum(len(part.pictures) for part in held) >= PIECE_PICTURES:
            yield joined(held)
            held = []
        pictures_sent += len(item.pictures)
        if pictures_sent >= limit_s * PICTURES_PER_SECOND:
            break
    if held:
        yield joined(held)


def joined(parts: list[Pictures]) -> Pictures:
    """Consecutive ``parts`` of one generation as one."""
    return Pictures(
        first_picture=parts[0].first_picture,
        pictures=np.concatenate([part.pictures for part in parts]),
        sound=np.concatenate([part.sound for part in parts]),
        generation=parts[0].generation,
        speaking=any(part.speaking for part in parts),
    )


class NewWords:
    """Changed lines of a transcript as running text: every word once; a line that was misheard comes again."""

    def __init__(self) -> None:
        self._told: dict[int, str] = {}

    def tell(self, lines: list[Line]) -> str:
        """Words in ``lines`` that were not told yet; a new line begins with who says it."""
        text = ""
        for line in lines:
            said, told = line["text"], self._told.get(line["number"])
            if told is not None and said.startswith(told):
                text += said[len(told) :]
            elif said and (told is None or line["role"] == "visitor"):
                text += f"{chr(10) if self._told else ''}{_NAMES[line['role']]}: {said}"
            else:  # the avatar was cut short: what was told is told
                continue
            self._told[line["number"]] = said
        return text


class LivePieces:
    """What ``/session`` yields: the files are gone again when the next one is asked for.

    Args:
        sessions: where the session is.
        sid: its name.
        mode: "mirror" or "conversation".
        outbox: where files are written.
    """

    def __init__(self, sessions: LiveSessions, sid: str, mode: str, outbox: Outbox) -> None:
        self._sessions, self._sid, self._mode, self._outbox = sessions, sid, mode, outbox
        self._words = NewWords()

    def waiting(self) -> Iterator[Piece]:
        """While all places are taken: pieces without pictures."""
        for place in self._sessions.waits(self._sid):
            yield _piece(-1, None, "waiting", f"Place {place} in line.")

    def live(self) -> Iterator[Piece]:
        """The session, which is on."""
        session = self._sessions.get(self._sid)
        for index, piece in enumerate(pieces(self._sessions.pictures(self._sid), self._sessions.limit_s)):
            path = self._outbox.path(f"piece-{index:05d}.mp4")
            try:
                write_clip(path, piece.pictures, piece.sound)
                facts = session.facts()
                state = "speaking" if piece.speaking else facts["state"] if self._mode == "conversation" else "idle"
                text = self._words.tell(facts.get("lines", []))
                yield _piece(index, _served(path), state, text, piece, facts)
            finally:  # Gradio has made its own copy, or nobody waits for it any more
                path.unlink(missing_ok=True)
                path.parent.rmdir()


def _piece(
    index: int, video: Any, state: str, text: str, pictures: Pictures | None = None, facts: dict[str, Any] | None = None
) -> Piece:
    return Piece(
        index=index,
        start_s=pictures.first_picture / PICTURES_PER_SECOND if pictures else 0.0,
        duration_s=len(pictures.pictures) / PICTURES_PER_SECOND if pictures else 0.0,
        video=video,
        state=state,
        text=text,
        lines=facts.get("lines", []) if facts else [],
        notice=(facts.get("notice") if facts else None) or "",
    )


def _served(path: Path) -> FileData:
    """A finished mp4 for Gradio, as plain data: inside a dict it does not look into its own models for files."""
    file: Any = FileData(path=str(path), orig_name=path.name, mime_type="video/mp4").model_dump()
    return file


def add_api(sessions: LiveSessions, outbox: Outbox) -> Callable[..., Any]:
    """Registers the endpoints in the current ``gr.Blocks``; returns the render function, which the page uses too."""
    render = _add_render(sessions, outbox)
    _add_live(sessions, outbox)
    _add_chat(sessions, outbox)
    return render


def _add_render(sessions: LiveSessions, outbox: Outbox) -> Callable[..., Any]:
    @plain
    def render(portrait: FileData, speech: FileData, prompt: str = "", seed: int = 0) -> FileData:
        """A talking video (mp4, 16 pictures a second) of a portrait that says a speech clip.

        portrait: picture of a face, up to 40 megapixels. speech: sound or video file with speech, up to 5 minutes.
        prompt: how the person speaks and moves. seed: same seed, same motion.
        """
        face, words = uploaded(portrait, "portrait"), uploaded(speech, "speech")
        manner, number = checked_prompt(prompt), checked_seed(seed)
        out = outbox.path("livetalk.mp4")
        sessions.avatar.render(face, words, out=out, prompt=manner, seed=number, limit_s=SPEECH_LIMIT_S)
        return _served(out)

    gr.api(render, api_name="render", concurrency_limit=1, concurrency_id="render")
    return render


def _add_live(sessions: LiveSessions, outbox: Outbox) -> None:
    def session(
        sid: str,
        portrait: FileData,
        prompt: str = "",
        seed: int = 0,
        mode: Literal["mirror", "conversation"] = "mirror",
        talker: str = "",
        voice: str = "",
        instructions: str = "",
    ) -> Iterator[Piece]:
        """A live session: yields pieces of about 0.75 s, each with its own mp4, until /stop is called.

        sid: a name for the session that you make and nobody can guess (uuid.uuid4().hex). portrait: picture of a
        face. mode: "mirror" draws the portrait saying what /push_audio brings, and an idle face in between;
        "conversation" listens to /push_audio (all the time, silence too) and /say, and answers: talker, voice and
        instructions say who answers and how, empty = the best there is. A piece that starts before the end of the one
        before replaces the rest of it (speech came in between, or somebody interrupted).
        Pieces: index, start_s and duration_s on the session's clock, video, state ("idle", "listening", "thinking",
        "speaking"; "waiting" while all places are taken: no video, text says the place in line), text (new words of
        the transcript), lines (changed lines of the transcript: number, role, text, start_s, is_final, is_cut), notice
        (what you should know, in a sentence, or empty).
        """
        check_sid(sid)
        check_mode(mode)
        face, words, number = uploaded(portrait, "portrait"), checked_prompt(prompt), checked_seed(seed)
        talk = _talk(talker, voice, instructions)
        stream = LivePieces(sessions, sid, mode, outbox)
        yield from stream.waiting()
        backlog_s = BACKLOG_S if mode == "mirror" else MICROPHONE_BACKLOG_S
        with sessions.opened(sid, face, words, number, mode, backlog_s, talk):
            yield from stream.live()

    @plain_async
    async def push_audio(sid: str, pcm16_base64: str, rate: int = 16_000) -> Accepted:
        """Speech for a live session: base64 of little-endian mono PCM16 at ``rate`` Hz (8000 to 96000), up to 10 s.

        Packets of 0.1 to 1 s are best; up to 30 s may wait to be said in a mirror, a conversation hears them as they
        come. Answers at once with the number of samples accepted and what the face does. Waits up to 5 s for a
        session that is about to begin.
        """
        await sessions.begun(sid, BEGIN_S)
        answer = sessions.push(sid, pcm16_base64, rate)
        return Accepted(accepted_samples=answer["accepted_samples"], state=answer["state"])

    @plain_async
    async def say(sid: str, text: str) -> Taken:
        """A typed turn in a live conversation; it interrupts what the avatar is saying. Up to 2000 characters."""
        await sessions.begun(sid, BEGIN_S)
        sessions.write(sid, checked_text(text))
        return Taken(sid=sid, state=sessions.get(sid).state)

    @plain_async
    async def stop(sid: str) -> Stopped:
        """Ends a live session: its /session stream finishes with the piece at hand; answers when the session is over.

        Stopping twice does no harm.
        """
        sessions.stop(sid)
        await sessions.over(sid, OVER_S)
        await asyncio.sleep(SETTLE_S)
        return Stopped(sid=sid, stopped=True)

    stream = plain_stream(session)
    stream.__signature__ = inspect.signature(session).replace(return_annotation=Piece)  # type: ignore[attr-defined]
    gr.api(stream, api_name="session", concurrency_limit=visitor_limit(), concurrency_id="live")
    gr.api(push_audio, api_name="push_audio", queue=False)
    gr.api(say, api_name="say", queue=False)
    gr.api(stop, api_name="stop", queue=False)


def _add_chat(sessions: LiveSessions, outbox: Outbox) -> None:
    chats = Chats(sessions.talkers)

    @plain
    def chat(
        portrait: FileData,
        speech: FileData | None = None,
        text: str = "",
        sid: str = "",
        prompt: str = "",
        voice: str = "",
        seed: int = 0,
        talker: str = "",
    ) -> Answered:
        """One turn of a conversation, as files: speech or text in, a talking video with the answer out.

        portrait: picture of a face. speech: sound file with a question, up to 30 s; or text: the question in writing.
        sid: a name for the conversation that you make and nobody can guess (uuid.uuid4().hex): calls with the same one
        remember each other, for ten minutes after the last; empty = nothing is remembered. prompt: how the person
        speaks and moves. voice, talker: empty = the best there is. seed: same seed, same motion.
        Answer: video (mp4), heard (your words as they were understood), reply (words of the answer), transcript (the
        conversation so far), talker (who answered), notice (what went wrong, or empty), seconds (length of the video).
        """
        face, words, number = uploaded(portrait, "portrait"), checked_prompt(prompt), checked_seed(seed)
        turn = _question(speech, text)
        preset = sessions.avatar.preset
        load_portrait(
            face, preset.height, preset.width
        )  # one that cannot be used is told before anything is remembered
        with chats.opened(checked_word(sid, "sid", 128), _talk(talker, voice)) as conversation:
            answer = conversation.ask(turn)
            out = outbox.path("reply.mp4")
            sessions.avatar.render(face, (answer.samples, PLAYBACK_RATE), out=out, prompt=words, seed=number)
            return Answered(
                video=_served(out),
                heard=answer.heard,
                reply=answer.text,
                transcript=conversation.transcript.as_text(),
                talker=conversation.talker.title,
                notice=conversation.notice or "",
                seconds=round(answer.duration_s, 3),
            )

    gr.api(chat, api_name="chat", concurrency_limit=1, concurrency_id="render")


def _question(speech: Any, text: Any) -> VisitorTurn:
    if speech is None:
        return question(checked_text(text))
    if text:
        raise LiveTalkError("Both speech and text were given. Expected one of them: what you say, or what you write.")
    return question(uploaded(speech, "speech"))


def _talk(talker: Any, voice: Any, instructions: Any = "") -> Talk:
    """What the caller wants of a conversation.

    Raises:
        LiveTalkError: not text, or too long.
    """
    persona = Persona(checked_prompt(instructions), checked_word(voice, "voice"))
    return Talk(checked_word(talker, "talker") or None, persona)
