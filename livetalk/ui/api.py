"""The Python and HTTP API: ``/render``, ``/session``, ``/push_audio``, ``/stop``.

Endpoints are plain functions with types; Gradio derives the documentation from them. Annotations are evaluated here
(no ``from __future__ import annotations``), because Gradio reads the return type as it stands; for a generator it wants
the type of what is yielded.
"""

import inspect
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import gradio as gr
import numpy as np
from gradio import FileData

from livetalk.media.clips import write_clip
from livetalk.stream.session import Session
from livetalk.types import PICTURES_PER_SECOND, Pictures
from livetalk.ui.live import SPEECH_LIMIT_S, LiveSessions, check_mode, check_sid
from livetalk.ui.plain import checked_prompt, checked_seed, plain, plain_async, plain_stream, uploaded

PIECE_PICTURES = 12
BACKLOG_S = 30.0
BEGIN_S = 5.0
_KEPT_S = 600.0


class Piece(TypedDict):
    """One piece of a live session, as ``/session`` yields it."""

    index: int
    start_s: float
    duration_s: float
    video: FileData
    state: str
    text: str


class Accepted(TypedDict):
    """Answer of ``/push_audio``."""

    accepted_samples: int
    state: str


class Stopped(TypedDict):
    """Answer of ``/stop``."""

    sid: str
    stopped: bool


class Outbox:
    """A folder for finished files; whoever asks for a new path also clears what is older than ten minutes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="livetalk-")

    def path(self, name: str) -> Path:
        """A fresh path ending in ``name``; its folder exists."""
        root = Path(self._folder.name)
        for old in root.glob("*/*"):
            if time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink(missing_ok=True)
                old.parent.rmdir()
        return Path(tempfile.mkdtemp(dir=root)) / name


def pieces(session: Session, limit_s: float) -> Iterator[Pictures]:
    """Pictures of a live session in pieces of up to ``PIECE_PICTURES``, cut where the generation changes."""
    held: list[Pictures] = []
    pictures_sent = 0
    for item in session.pictures():
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


def _served(path: Path) -> FileData:
    """A finished mp4 for Gradio, as plain data: inside a dict it does not look into its own models for files."""
    file: Any = FileData(path=str(path), orig_name=path.name, mime_type="video/mp4").model_dump()
    return file


def add_api(sessions: LiveSessions, outbox: Outbox, live_limit: int) -> Callable[..., Any]:
    """Registers the endpoints in the current ``gr.Blocks``; returns the render function, which the page uses too."""
    avatar = sessions.avatar

    @plain
    def render(portrait: FileData, speech: FileData, prompt: str = "", seed: int = 0) -> FileData:
        """A talking video (mp4, 16 pictures a second) of a portrait that says a speech clip.

        portrait: picture of a face, up to 40 megapixels. speech: sound or video file with speech, up to 5 minutes.
        prompt: how the person speaks and moves. seed: same seed, same motion.
        """
        face, words = uploaded(portrait, "portrait"), uploaded(speech, "speech")
        out = outbox.path("livetalk.mp4")
        avatar.render(
            face, words, out=out, prompt=checked_prompt(prompt), seed=checked_seed(seed), limit_s=SPEECH_LIMIT_S
        )
        return _served(out)

    def session(
        sid: str,
        portrait: FileData,
        prompt: str = "",
        seed: int = 0,
        mode: Literal["mirror", "conversation"] = "mirror",
    ) -> Iterator[Piece]:
        """A live session: yields pieces of about 0.75 s, each with its own mp4, until /stop is called.

        sid: a name for the session that you make and nobody can guess (uuid.uuid4().hex). portrait: picture of a
        face. mode: "mirror" draws the portrait saying what /push_audio brings, and an idle face in between.
        A piece that starts before the end of the one before replaces the rest of it (speech came in between).
        Pieces: index, start_s and duration_s on the session's clock, video, state ("idle" or "speaking"), text.
        """
        check_sid(sid)
        check_mode(mode)
        face = uploaded(portrait, "portrait")
        words, number = checked_prompt(prompt), checked_seed(seed)
        with sessions.opened(sid, face, words, number, mode, backlog_s=BACKLOG_S) as live:
            for index, piece in enumerate(pieces(live, sessions.limit_s)):
                path = outbox.path(f"piece-{index:05d}.mp4")
                write_clip(path, piece.pictures, piece.sound)
                yield {
                    "index": index,
                    "start_s": piece.first_picture / PICTURES_PER_SECOND,
                    "duration_s": len(piece.pictures) / PICTURES_PER_SECOND,
                    "video": _served(path),
                    "state": "speaking" if piece.speaking else "idle",
                    "text": "",
                }
                path.unlink(missing_ok=True)  # Gradio has made its own copy
                path.parent.rmdir()

    @plain_async
    async def push_audio(sid: str, pcm16_base64: str, rate: int = 16_000) -> Accepted:
        """Speech for a live session: base64 of little-endian mono PCM16 at ``rate`` Hz (8000 to 96000), up to 10 s.

        Packets of 0.1 to 1 s are best; up to 30 s may wait to be said. Answers at once with the number of samples
        accepted and what the face does. Waits up to 5 s for a session that is about to begin.
        """
        await sessions.begun(sid, BEGIN_S)
        answer = sessions.push(sid, pcm16_base64, rate)
        return Accepted(accepted_samples=answer["accepted_samples"], state=answer["state"])

    @plain
    def stop(sid: str) -> Stopped:
        """Ends a live session: its /session stream finishes with the piece at hand. Stopping twice does no harm."""
        sessions.stop(sid)
        return Stopped(sid=sid, stopped=True)

    gr.api(render, api_name="render", concurrency_limit=1, concurrency_id="render")
    stream = plain_stream(session)
    stream.__signature__ = inspect.signature(session).replace(return_annotation=Piece)  # type: ignore[attr-defined]
    gr.api(stream, api_name="session", concurrency_limit=live_limit, concurrency_id="live")
    gr.api(push_audio, api_name="push_audio", queue=False)
    gr.api(stop, api_name="stop", queue=False)
    return render
