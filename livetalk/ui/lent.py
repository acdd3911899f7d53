"""A session whose pictures are made elsewhere, a stretch at a time, where a GPU is lent for it.

A first call brings the face to life. When it is calm the GPU is given back, and its last pictures go on as a loop until
there is something to say: a turn of the visitor has ended, a text was written, a clip chosen. Then the session goes on
from its snapshot in another call. In a call the visitor can interrupt as ever; between calls the voice detector listens
here. If the worker is lost, the face and all that was said so far go on with the visitor's next turn.

Picture numbers here are those of the page; the worker's do not count the loop.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from livetalk.stream.conversation import TEXT_LIMIT
from livetalk.stream.pace import Clock, Playback, SystemClock
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talk import NO_CLIPS
from livetalk.stream.talkers.protocol import Persona
from livetalk.stream.track import checked_samples
from livetalk.types import PLAYBACK_SAMPLES_PER_PICTURE, LiveTalkError, Pictures
from livetalk.ui.doorbell import Doorbell
from livetalk.ui.idle import IdleLoop
from livetalk.ui.lending import LEAST_CALL_S, Lend, LentAvatar, LiveCall, Rest, Shown, asked, call_limit_s
from livetalk.ui.lent_words import LentWords
from livetalk.ui.opening import Opening
from livetalk.ui.plain import sentence
from livetalk.ui.wire import Message, Wire

IDLE_PICTURES = 4
LENT_PLACES = 8
"""Visitors at once: between two calls a visitor costs a loop of pictures; calls wait in line."""

PATIENCE_S = 3.0
"""Who waits longer for a GPU is told so."""


@dataclasses.dataclass(frozen=True)
class Over:
    """A call has ended; ``error`` says why, if it did not end well."""

    error: str | None


class LentGpus:
    """Opens sessions on lent GPUs; see ``livetalk.ui.opening.Elsewhere``.

    Args:
        avatar: whose function runs where the GPU is.

    Raises:
        LiveTalkError: ``LIVETALK_GPU_CALL_S`` is no such number.
    """

    places = LENT_PLACES

    def __init__(self, avatar: LentAvatar) -> None:
        self._avatar, self._call_s = avatar, call_limit_s()

    def open(self, opening: Opening) -> LentSession:
        """A session begins; its first call is made when its pictures are taken."""
        return LentSession(self._avatar.lend, opening, self._avatar.preset.stream.lead_s, self._call_s)


class LentSession:
    """One visitor's session on lent GPUs; used as ``livetalk.stream.session.Session`` and ``TalkSession`` are.

    Args:
        lend: the function that runs where the GPU is.
        opening: who is drawn, and what drives the face.
        lead_s: the loop leaves at most this much before it is on screen.
        call_s: longest call.
        clock: time to read and to wait for; None = the machine's.
    """

    def __init__(self, lend: Lend, opening: Opening, lead_s: float, call_s: float, clock: Clock | None = None) -> None:
        self.mode = opening.mode
        self.conversation = LentWords(opening.talk.persona, self._tell_persona)
        self._lend, self._source, self._call_s = lend, opening, call_s
        self._snapshot: SessionSnapshot | None = None
        self._clock: Clock = clock or SystemClock()
        self._opened_at_s = self._clock()
        self._playback = Playback(self._clock, lead_s)
        self._changed = threading.Condition()
        self._door = Doorbell(self.mode)
        self._idle = IdleLoop()
        self._look: tuple[np.ndarray | None, str] | None = None
        self._waiting: list[Message] = []
        self._inbox: deque[Shown | Rest | Over] = deque()
        self._wire: Wire | None = None
        self._thread: threading.Thread | None = None
        self._is_on = self._is_asked = self._stopped = self._running = False
        self._asked_at_s = 0.0
        self._next_picture = self._shift = self._generations = 0
        self._taken = 0
        self._ahead_s = 0.0
        self._facts: dict[str, Any] = {}
        self._said: dict[str, Any] | None = None
        self._notice: str | None = None
        self.generation = 0
        """Number of interruptions so far."""

    def listen(self, samples: np.ndarray, rate: int) -> None:
        """Microphone sound (mono float ``[n]`` in -1..1 at ``rate`` Hz) that just happened; never waits.

        Raises:
            LiveTalkError: not mono float samples, not finite, or no sample rate.
        """
        sound = np.clip(checked_samples(samples, rate), -1.0, 1.0)
        with self._changed:
            if self._stopped or not len(sound):
                return
            if self._wire is not None:
                self._wire.say("listen", sound, rate)
                return
            turn = self._door.hear(sound, rate)
            self.conversation.is_voice_on = self._door.is_voice_on
            self._tell(turn)

    def write(self, text: str) -> None:
        """A typed turn; interrupts what is being said.

        Raises:
            LiveTalkError: no words, or too many.
        """
        words = " ".join(text.split())
        if not words or len(words) > TEXT_LIMIT:
            raise LiveTalkError(f"The message has {len(words)} characters. Write 1 to {TEXT_LIMIT}.")
        self._say("write", words)

    def play(self, samples: np.ndarray, rate: int) -> None:
        """A clip (mono float ``[n]`` in -1..1 at ``rate`` Hz) the face says as soon as it can; never waits.

        Raises:
            LiveTalkError: a conversation is on, or unusable samples.
        """
        if self.mode == "conversation":
            raise LiveTalkError(NO_CLIPS)
        self._say("play", checked_samples(samples, rate), rate)

    def interrupt(self) -> int:
        """Be silent now; returns the new generation, whose pictures come as soon as the worker has heard of it."""
        with self._changed:
            if self._wire is None:
                return self.generation
            self._wire.say("interrupt")
            return self.generation + 1

    def draw(self, portrait: np.ndarray | None, prompt: str) -> None:
        """Another face (uint8 ``[H, W, 3]``, None = the same) or mood; between calls it is seen with the next one."""
        with self._changed:
            if portrait is None and self._look is not None:
                portrait = self._look[0]
            if self._wire is not None:
                self._wire.say("look", portrait, prompt)
            else:
                self._look = portrait, prompt

    def stop(self) -> None:
        """End the session: ``pictures()`` ends, and the GPU is given back within a piece."""
        with self._changed:
            self._stopped = True
            if self._wire is not None:
                self._wire.say("stop")
            self._changed.notify_all()

    def pictures(self) -> Iterator[Pictures]:
        """The stream, see ``Session.pictures``.

        Raises:
            LiveTalkError: somebody takes them already, or the first call failed, so that there is no face to show.
        """
        with self._changed:
            if self._running:
                raise LiveTalkError("The pictures of this session are being taken already. Open another session.")
            self._running = True
            self._ask()
        try:
            while not self._stopped:
                piece = self._next()
                if piece is not None:
                    yield piece
        finally:
            self.stop()
            self._hang_up()

    @property
    def state(self) -> str:
        """What the face is doing, see ``TalkSession.state``."""
        if self._stopped:
            return "stopped"
        if self._is_on:
            return str(self._facts.get("state", "idle"))
        if self.mode != "conversation":
            return "idle"
        return "thinking" if self._is_asked else "listening"

    @property
    def real_time_factor(self) -> float | None:
        """Of the last call, see ``Session.real_time_factor``."""
        factor: float | None = self._facts.get("real_time_factor")
        return factor

    @property
    def notice(self) -> str | None:
        """What the visitor should know, in a sentence; None = all is well."""
        if self._notice is None and self._is_waiting and self._clock() - self._asked_at_s > PATIENCE_S:
            return "Waiting for a GPU."
        return self._notice or (self._facts.get("notice") if self._is_on else None)

    def facts(self) -> dict[str, Any]:
        """Figures for a status line and news for the transcript, see ``TalkSession.facts``; told once."""
        with self._changed:
            said, self._said = self._said, None
            own = {"state": self.state, "generation": self.generation, "notice": self.notice, "said": said}
            if self.mode == "conversation":
                own |= {"voice": self.conversation.is_voice_on, "duck": self.conversation.is_suspected, "ready": True}
            absent = dict.fromkeys(("real_time_factor", "first_picture_ms", "mirror_delay_s", "talker", "reply_ms"))
            return {**absent, **self._facts, **own, "ahead_s": self._ahead_s, "lines": self.conversation.news()}

    @property
    def _is_waiting(self) -> bool:
        return self._thread is not None and not self._is_on

    def _tell_persona(self, persona: Persona) -> None:
        with self._changed:
            if self._wire is not None:
                self._wire.say("persona", persona)

    def _say(self, verb: str, *arguments: Any) -> None:
        with self._changed:
            self._tell([(verb, arguments)])

    def _tell(self, messages: Sequence[Message]) -> None:
        """To the worker that is on, or to the next one, which is asked for."""
        if self._wire is not None:
            for verb, arguments in messages:
                self._wire.say(verb, *arguments)
        else:
            self._waiting += messages
        self._changed.notify_all()

    def _ask(self) -> None:
        """Ask for a GPU, with all that waits to be told."""
        self._wire = wire = Wire()
        self._door = Doorbell(self.mode)  # what it heard so far is told, or belongs to no turn
        self._is_asked, self._asked_at_s = bool(self._waiting), self._clock()
        messages, self._waiting = self._waiting, []
        if self._look is not None and self._snapshot is not None:
            messages.insert(0, ("look", self._look))
            self._look = None
        for verb, arguments in messages:
            wire.say(verb, *arguments)
        talk = dataclasses.replace(self._source.talk, persona=self.conversation.persona)
        limit_s = min(LEAST_CALL_S, self._call_s) if self._snapshot is None else self._call_s
        call = LiveCall(wire.address, wire.key, limit_s, self._begin_from(), self._source.backlog_s, talk)
        # The visitor's share of GPU time is found in the context of the page's own call.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run, call), name="livetalk-lent", daemon=True)
        self._thread.start()

    def _begin_from(self) -> SessionSnapshot | Opening:
        """What the next call goes on from: time and words as they are now."""
        rest = self._snapshot
        if rest is None:
            return self._source
        talk = rest.conversation
        return dataclasses.replace(
            rest,
            elapsed_s=self._clock() - self._opened_at_s,
            conversation=None if talk is None else self.conversation.snapshot(talk.replies),
        )

    def _run(self, call: LiveCall) -> None:
        """The thread of a call."""
        error: str | None = None
        try:
            with contextlib.closing(asked(self._lend, call)) as items:
                for item in items:
                    assert isinstance(item, Shown | Rest)
                    self._receive(item)
                    if self._stopped:
                        break
        except Exception as failure:
            error = sentence(failure)
        self._receive(Over(error))

    def _receive(self, item: Shown | Rest | Over) -> None:
        with self._changed:
            self._inbox.append(item)
            self._changed.notify_all()

    def _next(self) -> Pictures | None:
        """The next piece, if there is one by now; waits for what comes next otherwise."""
        with self._changed:
            if self._wire is None and self._waiting:
                self._ask()
            item = self._inbox[0] if self._inbox else None
            if item is not None and (self._is_on or not isinstance(item, Shown) or self._idle.is_home):
                return self._take(self._inbox.popleft())
            if self._is_on or self._idle.is_empty:
                self._clock.wait(self._changed, None)
                return None
            due_s = self._playback.due_in_s(self._next_picture + IDLE_PICTURES)
            if due_s > 0:
                self._clock.wait(self._changed, due_s)
                return None
            return self._idle_piece(homeward=item is not None)

    def _idle_piece(self, homeward: bool) -> Pictures:
        pictures = self._idle.pictures(IDLE_PICTURES, homeward)
        silence = np.zeros(len(pictures) * PLAYBACK_SAMPLES_PER_PICTURE, np.float32)
        return self._hand_out(Pictures(self._next_picture, pictures, silence, self.generation, speaking=False))

    def _hand_out(self, piece: Pictures) -> Pictures:
        if len(piece.pictures):
            self._playback.hand_out(piece.first_picture)
            self._ahead_s = self._playback.ahead_s(piece.first_picture)
        self._next_picture = piece.first_picture + len(piece.pictures)
        return piece

    def _take(self, item: Shown | Rest | Over) -> Pictures | None:
        if isinstance(item, Rest):
            self._snapshot, self._taken = item.snapshot, item.taken
            self._idle.keep()
            return None
        if isinstance(item, Over):
            self._end(item.error)
            return None
        if not self._is_on:
            self._is_on, self._notice = True, None
            self._shift = self._next_picture - item.pictures.first_picture
            self._generations = self.generation - item.pictures.generation
        self._facts = item.facts
        self.conversation.take(item.facts)
        self._said = self._merged(item.facts.get("said"))
        piece = item.pictures
        self.generation = piece.generation + self._generations
        piece = dataclasses.replace(piece, first_picture=piece.first_picture + self._shift, generation=self.generation)
        self._idle.take(piece)
        return self._hand_out(piece)

    def _merged(self, said: dict[str, Any] | None) -> dict[str, Any] | None:
        """News of captions on the page's numbers, behind what was not told yet."""
        if said is None:
            return self._said
        marks = [[characters, picture + self._shift] for characters, picture in said["marks"]]
        if self._said is not None and self._said["reply"] == said["reply"]:
            return {**self._said, "marks": self._said["marks"] + marks}
        return {**said, "marks": marks}

    def _end(self, error: str | None) -> None:
        """A call is over; what it did not hear any more is told to the next one, unless it was lost."""
        unheard = self._wire.unheard(self._taken) if self._wire is not None and error is None else []
        self._hang_up()
        self._is_on = self._is_asked = False
        self._facts = {**self._facts, "notice": None}
        self.conversation.is_voice_on = self.conversation.is_suspected = False
        if error is not None:
            self._notice = error
            self.conversation.settle()
        self._idle.begin(lost=error is not None)
        if self._idle.is_empty:
            raise LiveTalkError(error or "The face did not come to life. Start again.")
        for verb, arguments in unheard:
            if verb == "listen":
                self._tell(self._door.hear(*arguments))
            elif verb == "look":
                self._look = arguments[0], arguments[1]
            elif verb in ("write", "play"):  # others concern what was being said
                self._tell([(verb, arguments)])

    def _hang_up(self) -> None:
        wire, self._wire, self._thread = self._wire, None, None
        if wire is not None:
            wire.close()
