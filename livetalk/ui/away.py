"""A session whose pictures are made in another process, which may die at any moment: the visitor's side of it.

It keeps the newest snapshot and all that was said. When the process is lost, the session goes on from there in another
one, at the first picture that nobody has: the page sees one late chunk. What the visitor said in the last moment may be
lost with the process, so the visitor is told.

This module does not know how processes are started and reached; see ``livetalk.ui.replicas``.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talkers.protocol import Persona
from livetalk.stream.track import checked_samples
from livetalk.types import PICTURES_PER_SECOND, LiveTalkError, Pictures
from livetalk.ui.lent_words import LentWords
from livetalk.ui.opening import Opening
from livetalk.ui.replica import Hearing, Step

MAIL_PACKETS = 64
"""Packets of the microphone that may wait to be sent; beyond it the oldest is dropped."""

ANSWER_S = 10.0
"""A word to a session is taken within this time, or the visitor is told that it was not."""

TOLD_PICTURES = 10 * PICTURES_PER_SECOND
"""So long the visitor is told that the session has moved."""

MOVED = "The computer that drew this face was lost, and another one goes on. If you were not heard, say it again."
BUSY = "This was not taken: the computer that draws this face does not answer. Try again in a moment."

log = logging.getLogger(__name__)


class ReplicaLostError(Exception):
    """The process has died, or cannot be reached any more; what was called may have happened or not."""


class Place(Protocol):
    """A replica on which a session is."""

    def call(self, verb: str, *arguments: Any, limit_s: float | None = None) -> Any:
        """What the method ``verb`` of ``livetalk.ui.replica.Replica`` says.

        Raises:
            LiveTalkError: as the method does.
            ReplicaLostError: there is nobody to call any more.
            TimeoutError: there was no answer within ``limit_s``.
        """

    def post(self, verb: str, *arguments: Any) -> None:
        """The same without waiting for an answer; never fails."""


class House(Protocol):
    """All replicas."""

    def place(self, session: AwaySession) -> Place:
        """A living replica for a session; waits for one if none lives.

        Raises:
            LiveTalkError: there was none for too long.
        """

    def leave(self, session: AwaySession) -> None:
        """The session has ended."""


class AwaySession:
    """One visitor's session in a replica; used as ``livetalk.stream.session.Session`` and ``TalkSession`` are.

    Args:
        house: where replicas are found.
        opening: who is drawn, and what drives the face.

    Raises:
        LiveTalkError: no talker can work, or no replica lives.
    """

    def __init__(self, house: House, opening: Opening) -> None:
        self.mode = opening.mode
        self.conversation = LentWords(opening.talk.persona, self._tell_persona)
        self._house, self._opening = house, opening
        self._name = secrets.token_hex(8)
        self._opened_at_s = time.monotonic()
        self._rest: SessionSnapshot | None = None
        self._facts: dict[str, Any] = {}
        self._said: dict[str, Any] | None = None
        self._next_picture = 0
        self._told_until = 0
        self._stopped = self._running = False
        self._changed = threading.Condition()
        self._mail: deque[tuple[np.ndarray, int]] = deque(maxlen=MAIL_PACKETS)
        self.generation = 0
        """Number of interruptions so far."""
        self._place = self._settle(opening)
        threading.Thread(target=self._send_mail, name="livetalk-mail", daemon=True).start()

    def listen(self, samples: np.ndarray, rate: int) -> None:
        """Microphone sound (mono float ``[n]`` in -1..1 at ``rate`` Hz) that just happened; never waits.

        Raises:
            LiveTalkError: not mono float samples, not finite, or no sample rate.
        """
        sound = checked_samples(samples, rate)
        with self._changed:
            if not self._stopped and len(sound):
                self._mail.append((sound, int(rate)))
                self._changed.notify_all()

    def play(self, samples: np.ndarray, rate: int) -> None:
        """See ``Session.play``."""
        self._tell("play", samples, rate)

    def write(self, text: str) -> None:
        """See ``TalkSession.write``."""
        self._tell("write", text)

    def interrupt(self) -> int:
        """Be silent now; returns the new generation, see ``Session.interrupt``."""
        self.generation = int(self._tell("interrupt"))
        return self.generation

    def draw(self, portrait: np.ndarray | None, prompt: str) -> None:
        """Another face (uint8 ``[H, W, 3]``), or the same one (None) in another mood."""
        self._tell("draw", portrait, prompt, limit_s=None)  # as long as some chunks

    def stop(self) -> None:
        """End the session: ``pictures()`` ends within the chunk that is being made."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            place = self._place
        place.post("stop", self._name)
        self._house.leave(self)

    def pictures(self) -> Iterator[Pictures]:
        """The stream, see ``Session.pictures``.

        Raises:
            LiveTalkError: somebody takes them already, or no replica lives any more.
        """
        with self._changed:
            if self._running:
                raise LiveTalkError("The pictures of this session are being taken already. Open another session.")
            self._running = True
        try:
            while not self._stopped:
                try:
                    step = self._place.call("step", self._name)
                except ReplicaLostError:
                    self._move()
                    continue
                if step is None:
                    return
                self._take(step)
                yield step.piece
        finally:
            self.stop()

    @property
    def state(self) -> str:
        """What the face is doing, see ``TalkSession.state``."""
        calm = "listening" if self.mode == "conversation" else "idle"
        return "stopped" if self._stopped else str(self._facts.get("state", calm))

    @property
    def real_time_factor(self) -> float | None:
        """See ``Session.real_time_factor``."""
        factor: float | None = self._facts.get("real_time_factor")
        return factor

    @property
    def notice(self) -> str | None:
        """What the visitor should know, in a sentence; None = all is well."""
        return MOVED if self._next_picture < self._told_until else self._facts.get("notice")

    def facts(self) -> dict[str, Any]:
        """Figures for a status line and news, see ``TalkSession.facts``; what is news is told once."""
        with self._changed:
            said, self._said = self._said, None
            facts = {**self._facts, "state": self.state, "notice": self.notice, "said": said}
            if self.mode == "conversation":
                facts["lines"] = self.conversation.news()
            return facts

    def _settle(self, source: Opening | SessionSnapshot) -> Place:
        """Begin or go on somewhere."""
        talk = dataclasses.replace(self._opening.talk, persona=self.conversation.persona)
        while True:
            place = self._house.place(self)
            try:
                place.call("open", self._name, source, talk, self._opening.backlog_s)
            except ReplicaLostError:
                continue
            except LiveTalkError:
                self._house.leave(self)
                raise
            return place

    def _move(self) -> None:
        """The replica is lost: go on in another one."""
        if self._stopped:
            return
        log.warning("a session moves to another replica at picture %d", self._next_picture)
        with self._changed:
            self.conversation.settle()
            self.conversation.is_voice_on = self.conversation.is_suspected = False
            source = self._going_on()
        place = self._settle(source)
        with self._changed:
            self._place = place
            self._changed.notify_all()
            self._told_until = self._next_picture + TOLD_PICTURES
            stopped = self._stopped
        if stopped:  # meanwhile, and the old place was told so
            self.stop()

    def _going_on(self) -> Opening | SessionSnapshot:
        """Where the session goes on: at the first picture nobody has, with all that was said."""
        rest = self._rest
        if rest is None:
            return self._opening
        talk = rest.conversation
        return dataclasses.replace(
            rest,
            elapsed_s=time.monotonic() - self._opened_at_s,
            stream=dataclasses.replace(
                rest.stream, next_picture=self._next_picture, generation=max(rest.stream.generation, self.generation)
            ),
            conversation=None if talk is None else self.conversation.snapshot(talk.replies),
        )

    def _take(self, step: Step) -> None:
        piece = step.piece
        with self._changed:
            self._next_picture = piece.first_picture + len(piece.pictures)
            self.generation = max(self.generation, piece.generation)
            self._rest = step.snapshot or self._rest
            if step.facts is not None:
                self._facts = step.facts
                self._said = step.facts["said"] or self._said
                self.conversation.take(step.facts)

    def _tell(self, verb: str, *arguments: Any, limit_s: float | None = ANSWER_S) -> Any:
        """A word to the session, wherever it is.

        Raises:
            LiveTalkError: as the session does, or it cannot be told at the moment.
        """
        try:
            return self._place.call(verb, self._name, *arguments, limit_s=limit_s)
        except (ReplicaLostError, TimeoutError) as error:
            raise LiveTalkError(BUSY) from error

    def _tell_persona(self, persona: Persona) -> None:
        self._tell("change_persona", persona)

    def _send_mail(self) -> None:
        """The microphone's thread: packets arrive in the order in which they were heard."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._mail or self._stopped)
                if self._stopped:
                    return
                packets, place = list(self._mail), self._place
                self._mail.clear()
            try:
                self._note(place.call("hear", self._name, packets))
            except ReplicaLostError:
                self._await_move(place)
            except Exception:
                log.exception("sound did not reach a session")

    def _await_move(self, lost: Place) -> None:
        """Whoever takes the pictures moves the session; sound that comes meanwhile waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._place is not lost or self._stopped)

    def _note(self, heard: Hearing | None) -> None:
        if heard is None:
            return
        with self._changed:
            self._facts = {**self._facts, "state": heard.state}
            self.generation = max(self.generation, heard.generation)
            self.conversation.is_voice_on, self.conversation.is_suspected = heard.voice, heard.suspected
