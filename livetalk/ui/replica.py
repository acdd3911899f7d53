"""What runs in a replica: the loaded models, and the sessions of the visitors that the front has sent here.

A session is known by a name the front made up. The front asks for one piece after the other (``step``), which keeps the
pace as it would in one process, and gets a snapshot with the first piece of every chunk: if this process dies, the
session goes on from it elsewhere. Everything here is called by several threads and returns plain data, arrays and CPU
tensors. This module knows nothing of the front, of the page, or of how calls travel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetalk.config import Preset
from livetalk.stream.avatar import Avatar, load
from livetalk.stream.capacity import measured_factor, measured_gain
from livetalk.stream.grid import Grid
from livetalk.stream.performer import Performer
from livetalk.stream.session import Session
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers.protocol import Persona
from livetalk.types import PLAYBACK_RATE, AudioChunk, LiveTalkError, Pictures, SpeechEnd
from livetalk.ui.opening import Opening, opened, redraw
from livetalk.ui.said import SaidNews
from livetalk.ui.visit import Talk, TalkerChain


@dataclass(frozen=True)
class Step:
    """What a session hands out next.

    Attributes:
        piece: pictures, or the word that older ones are void.
        facts: figures and news that belong to it; None = they come with the next pictures.
        snapshot: where the session can go on; None = the last one is still good for this.
    """

    piece: Pictures
    facts: dict[str, Any] | None
    snapshot: SessionSnapshot | None


@dataclass(frozen=True)
class Hearing:
    """What a session makes of the microphone's newest sound; see ``Conversation``."""

    state: str
    generation: int
    voice: bool
    suspected: bool


@dataclass
class _Live:
    """A session that is on.

    Attributes:
        session: the stream.
        stream: its pieces.
        said: news of its captions.
        taking: held while a piece is taken.
        rest: chunk and generation that the last snapshot was for; None = another one is due.
    """

    session: Session
    stream: Iterator[Pictures]
    said: SaidNews
    taking: threading.Lock = field(default_factory=threading.Lock)
    rest: tuple[int, int] | None = None


class Replica:
    """Models and sessions of one process; any thread.

    Args:
        preset: see ``load``.
        device: see ``load``.
        threads: of the network.
        talkers: makes the talkers of a conversation.
    """

    def __init__(self, preset: str | Path, device: str, threads: int, talkers: TalkerChain) -> None:
        self._source, self._threads, self._talkers = (preset, device), threads, talkers
        self._avatar: Avatar
        self._live: dict[str, _Live] = {}
        self._clips: dict[str, Performer] = {}

    def load(self) -> tuple[Preset, float, float]:
        """Load the models and warm them up; called once before everything else.

        Returns:
            The preset, the real-time factor of one stream that has the replica for itself, and what streams that run
            together gain; see ``Carried``.

        Raises:
            LiveTalkError: see ``livetalk.stream.avatar.load``.
        """
        torch.set_num_threads(self._threads)
        self._avatar = load(*self._source)
        self._avatar.warm_up_together()
        return self._avatar.preset, measured_factor(self._avatar), measured_gain(self._avatar)

    def live_on(self) -> None:
        """Never returns: whoever waits for it learns when this process has died."""
        threading.Event().wait()

    def open(self, name: str, source: Opening | SessionSnapshot, talk: Talk, backlog_s: float) -> None:
        """A session begins, or goes on.

        Args:
            name: what the front calls it.
            source: how it begins, or where it goes on.
            talk: what the visitor wants of a conversation, as of now.
            backlog_s: sound that may wait in a mirror.

        Raises:
            LiveTalkError: no talker can work, or the portrait cannot be used.
        """
        session = opened(self._avatar, self._talkers, source, talk, backlog_s)
        self._live[name] = _Live(session, session.pictures(), SaidNews(session))

    def step(self, name: str) -> Step | None:
        """The next piece of a session, when it is due; None = it has ended."""
        live = self._live.get(name)
        if live is None:
            return None
        with live.taking:
            piece = next(live.stream, None)
            if piece is None:
                return None
            facts = {**live.session.facts(), "said": live.said.news()} if len(piece.pictures) else None
            return Step(piece, facts, self._due_snapshot(live, piece))

    def hear(self, name: str, packets: list[tuple[np.ndarray, int]]) -> Hearing | None:
        """Packets of the microphone, mono float with their rates; None = the session has ended."""
        live = self._live.get(name)
        if live is None:
            return None
        session = live.session
        for samples, rate in packets:
            session.listen(samples, rate)
        talk = session.conversation if isinstance(session, TalkSession) else None
        voice, suspected = (talk.is_voice_on, talk.is_suspected) if talk is not None else (False, False)
        return Hearing(session.state, session.generation, voice, suspected)

    def play(self, name: str, samples: np.ndarray, rate: int) -> None:
        """See ``Session.play``."""
        self._on(name).session.play(samples, rate)

    def write(self, name: str, text: str) -> None:
        """See ``TalkSession.write``."""
        self._conversing(name).write(text)

    def interrupt(self, name: str) -> int:
        """See ``Session.interrupt``."""
        return self._on(name).session.interrupt()

    def change_persona(self, name: str, persona: Persona) -> None:
        """See ``Conversation.change_persona``."""
        self._conversing(name).conversation.change_persona(persona)

    def draw(self, name: str, portrait: np.ndarray | None, prompt: str) -> None:
        """Another face (uint8 ``[H, W, 3]``), or the same one (None) under other words."""
        redraw(self._avatar, self._conversing(name), portrait, prompt)
        self._on(name).rest = None

    def stop(self, name: str) -> None:
        """A session ends, and is forgotten; does no harm when done twice."""
        live = self._live.pop(name, None)
        if live is None:
            return
        live.session.stop()
        with live.taking:
            for _ in live.stream:  # it has not ended if its last piece was under way
                pass

    def open_clip(self, name: str, portrait: np.ndarray, prompt: str | None, seed: int) -> None:
        """A clip begins; see ``Avatar.clip``."""
        self._clips[name] = self._avatar.performer(portrait, prompt, seed)

    def say(self, name: str, speech: np.ndarray | None) -> list[Pictures]:
        """What can be drawn after more of a clip's speech (float ``[n]`` at ``PLAYBACK_RATE``), or its end (None)."""
        performer = self._clips[name]
        performer.push(SpeechEnd() if speech is None else AudioChunk(speech, PLAYBACK_RATE))
        return list(performer.pictures())

    def close_clip(self, name: str) -> None:
        """Nothing more is said in that clip."""
        self._clips.pop(name).close()

    def _on(self, name: str) -> _Live:
        live = self._live.get(name)
        if live is None:
            raise LiveTalkError("This session has ended. Start another.")
        return live

    def _conversing(self, name: str) -> TalkSession:
        session = self._on(name).session
        assert isinstance(session, TalkSession), "the front asks only conversations"
        return session

    def _due_snapshot(self, live: _Live, piece: Pictures) -> SessionSnapshot | None:
        """A snapshot if what comes next is in another chunk, or of another generation, than at the last one."""
        grid = Grid(self._avatar.preset.rollout.chunk_frames)
        rest = grid.chunk_of(piece.first_picture + len(piece.pictures)), piece.generation
        if live.rest == rest:
            return None
        live.rest = rest
        return live.session.snapshot()
