"""A session that converses: a visitor, a talker, one face.

The microphone goes to the conversation, which decides what is said; this session says it. A reply that is still a guess
is made ahead behind a hold of the performer, so that it can be on screen the moment the visitor's turn is over.

This module knows nothing of models that talk, turn taking rules, pages or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from livetalk.hub import Models
from livetalk.media.sound import StreamResampler
from livetalk.stream.chunks import Look
from livetalk.stream.conversation import Conversation
from livetalk.stream.grid import SAFETY_PICTURES
from livetalk.stream.pace import Clock
from livetalk.stream.reply import Reply
from livetalk.stream.session import CLIP_AHEAD_S, Session
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talkers.protocol import Persona, Talker
from livetalk.stream.track import checked_samples
from livetalk.stream.turns import TurnTaker
from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND, AudioChunk, Identity, LiveTalkError, Pictures, SpeechEnd

SHOWING_S = 0.04
"""Allowance for a picture to leave; on the way to a screen it has the time that the player waits at the beginning."""

SOON_S = 1.0
"""Most replies begin so soon after the visitor's voice; silence is made early again where one does not."""

LAST_CHANCE_S = 0.03
"""A guess that is not sure this long before its first picture is due is taken back."""

SETTLING_S = 1.0
"""At the very first words the microphone is not listened to for so long, or the avatar would interrupt itself."""

GONE_MICROPHONE_S = 2.0
"""A microphone that sends nothing for so long is off, and its turn is over; slow networks stall for less."""

NO_CLIPS = "A conversation is on: the avatar says its own words. End it, or open a mirror session."

ECHO_TAIL_S = 0.2
"""The avatar counts as speaking so long after its last word: rooms answer late."""


class TalkSession(Session):
    """One visitor's conversation; give sound and text from any thread, take pictures in one.

    Args:
        models: networks and preset; shared, never changed.
        identity: whose face, and how it moves.
        talkers: in the order of preference; the next one takes over from one that fails.
        persona: who the avatar is.
        turns: turn taking of this visitor.
        seed: of everything random about the pictures.
        lead_s: see ``Session``.
        clock: see ``Session``.

    Raises:
        LiveTalkError: there is no talker.
    """

    def __init__(
        self,
        models: Models,
        identity: Identity,
        talkers: Sequence[Talker],
        persona: Persona,
        turns: TurnTaker,
        *,
        seed: int = 0,
        lead_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(models, identity, seed=seed, mode="conversation", lead_s=lead_s, clock=clock)
        self._resampler: StreamResampler | None = None
        self._spoken: Reply | None = None
        self._spoken_from = self._spoken_stop = 0
        self._is_closed_off = False
        self._first_reply: int | None = None
        self._next_look: Look | None = None
        self._seen = -1
        self.reply_ms: float | None = None
        """From the end of the visitor's voice to the reply's first sound on screen."""
        self.conversation = Conversation(
            talkers, persona, turns, self._changed, self._since_opened_s, self._heard_picture
        )

    def listen(self, samples: np.ndarray, rate: int) -> None:
        """Microphone sound (mono float ``[n]`` in -1..1 at ``rate`` Hz) that just happened; never waits.

        Raises:
            LiveTalkError: not mono float samples, not finite, or no sample rate.
        """
        sound = np.clip(checked_samples(samples, rate), -1.0, 1.0)
        with self._changed:
            if self._stopped or not len(sound):
                return
            if self._resampler is None or self._resampler.source_rate != rate:
                self._resampler = StreamResampler(int(rate), MODEL_RATE)
            self._microphone_at_s = self._clock()
            heard = self._resampler.push(sound)
            if self._is_settling():
                heard = np.zeros_like(heard)
            if self.conversation.hear(heard, speaking=self._is_heard()):
                self._cleared = self._scope.cancel()
            self._changed.notify_all()

    def write(self, text: str) -> None:
        """A typed turn; interrupts what is being said.

        Raises:
            LiveTalkError: no words, or too many.
        """
        with self._changed:
            if not self._stopped and self.conversation.write(text):
                self._cleared = self._scope.cancel()
            self._changed.notify_all()

    def interrupt(self) -> int:
        """Be silent now; see ``Session.interrupt``. History keeps what was heard."""
        with self._changed:
            self.conversation.interrupt()
        return super().interrupt()

    def play(self, samples: np.ndarray, rate: int) -> None:  # noqa: ARG002  # refused whatever it is
        """Clips are not played in a conversation.

        Raises:
            LiveTalkError: always.
        """
        raise LiveTalkError(NO_CLIPS)

    def stop(self) -> None:
        """End the session and its talker: ``pictures()`` ends within the chunk it is making."""
        with self._changed:
            self.conversation.close()
        super().stop()

    def change(self, identity: Identity) -> None:
        """Another face, or the same one in another mood, at the next border of a chunk; conversation and clock go on.

        Another face takes as long as some chunks to get ready, in the caller's thread.

        Args:
            identity: the face, see ``Avatar.identity``.
        """
        look = self._performer.look(identity)
        with self._changed:
            self._next_look, self.identity = look, identity
            self._changed.notify_all()

    @property
    def state(self) -> str:
        """What the face is doing: "listening", "thinking", "speaking" or "stopped"."""
        if self._stopped:
            return "stopped"
        if self._is_heard():
            return "speaking"
        reply = self.conversation.reply
        return "thinking" if reply is not None and reply.is_sure else "listening"

    @property
    def is_busy(self) -> bool:
        """Whether the visitor speaks, or is being answered."""
        return self.conversation.is_voice_on or self.conversation.reply is not None

    @property
    def notice(self) -> str | None:
        """What the visitor should know, in a sentence; None = all is well."""
        return self.conversation.notice or super().notice

    def facts(self) -> dict[str, Any]:
        """Figures for a status line and news for the transcript; plain data, lines are told once."""
        with self._changed:
            talk = self.conversation
            return {
                **super().facts(),
                "talker": talk.talker.title,
                "ready": talk.is_ready,
                "voice": talk.is_voice_on,
                "duck": talk.is_suspected,
                "reply_ms": self.reply_ms,
                "lines": talk.transcript.news(),
            }

    def snapshot(self) -> SessionSnapshot:
        """See ``Session.snapshot``; the reply that is being said ends with the speech that was handed on."""
        with self._making, self._changed:
            look = self._next_look
            stream = self._performer.snapshot()
            if look is not None:
                stream = dataclasses.replace(stream, next_identity=look.identity)
            return SessionSnapshot(self.mode, self._since_opened_s(), stream, self.conversation.snapshot())

    def take_up(self, snapshot: SessionSnapshot) -> None:
        """Go on where another conversation stopped, see ``Session.take_up``."""
        super().take_up(snapshot)
        if snapshot.conversation is not None:
            with self._changed:
                self.conversation.take_up(snapshot.conversation)

    def _since_opened_s(self) -> float:
        return self._clock() - self._opened_at_s

    def _is_settling(self) -> bool:
        """Whether the browser's echo canceller still learns the room: the first second of the first reply."""
        first = self._spoken is not None and self._spoken.is_sure and self._spoken.number == self._first_reply
        pictures = round(SETTLING_S * PICTURES_PER_SECOND)
        return first and 0 <= self._performer.shown_picture - self._spoken_from < pictures

    def _heard_picture(self) -> int:
        """First picture whose sound is not heard if the reply is broken off now."""
        return min(self._performer.shown_picture + SAFETY_PICTURES, self._performer.next_picture)

    def _is_heard(self) -> bool:
        """Whether the reply is on screen now."""
        if self._spoken is None or not self._spoken.is_sure:
            return False
        shown, tail = self._performer.shown_picture, round(ECHO_TAIL_S * PICTURES_PER_SECOND)
        return self._spoken_from <= shown < self._spoken_stop + tail or bool(self._spoken.waiting)

    def _take_in(self) -> Pictures | None:
        """Give the performer what is to be said; returns the word that older pictures are void, if so."""
        with self._changed:
            self._seen = self.conversation.version
            self._close_silent_microphone()
            look, self._next_look = self._next_look, None
            if look is not None:
                self._performer.change_look(look)
            void = self._clear() if self._cleared is not None else None
            reply = self.conversation.reply
            if self._spoken is not None and self._spoken is not reply:
                self._performer.withdraw()
                self._performer.push(SpeechEnd())
                self._spoken = None
            self._performer.expects_speech = self._is_expected(reply)
            if reply is None:
                return void
            self._take_back_late_guess(reply)
            if void is None and (reply.waiting or self._spoken is not None):
                self._speak(reply)
                void = self._show(reply)
                self._end(reply)
            return void

    def _is_expected(self, reply: Reply | None) -> bool:
        """Whether a reply may begin at any moment: the making of silence would only be in its way."""
        stopped_at_s = self.conversation.stopped_at_s
        if reply is None or reply is self._spoken or reply.waiting or stopped_at_s is None:
            return False
        return self._since_opened_s() - stopped_at_s < SOON_S

    def _speak(self, reply: Reply) -> None:
        """Hand the reply's speech on; its first piece decides where it begins."""
        while reply.waiting and (self._spoken is None or self._performer.backlog_s < CLIP_AHEAD_S):
            if self._spoken is None:
                self._begin(reply)
            piece = reply.waiting.popleft()
            self._performer.push(AudioChunk(piece.samples, piece.sample_rate))
            self._spoken_stop = self._performer.speech_stop
            self.conversation.said(reply, piece, self._spoken_stop)
        if reply.is_finished and not reply.waiting and not self._is_closed_off:
            self._is_closed_off = True
            self._performer.push(SpeechEnd())
            self._spoken_stop = self._performer.speech_stop

    def _begin(self, reply: Reply) -> None:
        self._first_reply = self._first_reply or reply.number
        self._spoken, self._is_closed_off = reply, False
        sure_at_s = self.conversation.confirmed_at_s
        sure_in_s = 0.0 if reply.is_sure or sure_at_s is None else max(0.0, sure_at_s - self._since_opened_s())
        self._spoken_from = self._performer.hold(sure_in_s + SHOWING_S)

    def _show(self, reply: Reply) -> Pictures | None:
        """Let a reply that is sure leave; returns the word that pictures before it are void, if so."""
        if not reply.is_sure or self._performer.hold_left_s is None:
            return None
        stopped_at_s = self.conversation.stopped_at_s
        if stopped_at_s is not None:
            self.reply_ms = 1000 * (self._since_opened_s() + self._performer.hold_left_s - stopped_at_s)
        first = self._performer.release(self._scope.generation + 1)
        if first is None:
            return None
        nothing = np.zeros((0, *self._picture_size, 3), np.uint8)
        return Pictures(first, nothing, np.zeros(0, np.float32), self._scope.cancel(), speaking=False)

    def _wait(self) -> None:
        """Nothing can be made or leave now: a talker that made room for the first pictures may work on."""
        with self._changed:
            if self._cleared is None and self._performer.calm.awaited is None:
                self.conversation.is_calm = True
            spoken = self._spoken
            if spoken is not None and spoken.is_sure and self._performer.next_picture > self._spoken_from:
                spoken.has_left = True
            self._changed.notify_all()
        super()._wait()

    def _end(self, reply: Reply) -> None:
        if self._is_closed_off and reply.is_sure and self._performer.shown_picture >= self._spoken_stop:
            self.conversation.over(reply)
            self._spoken = None

    def _take_back_late_guess(self, reply: Reply) -> None:
        """The turn did not end when it should have: what was made ahead waits until it does."""
        left_s = self._performer.hold_left_s
        if left_s is not None and left_s < LAST_CHANCE_S and not reply.is_sure:
            self._performer.withdraw()
            reply.take_back()
            self._spoken = None

    def _close_silent_microphone(self) -> None:
        at_s = self._microphone_at_s
        if at_s is not None and self._clock() - at_s > GONE_MICROPHONE_S:
            self._microphone_at_s = None
            self.conversation.close_microphone()

    def _has_news(self) -> bool:
        return self._seen != self.conversation.version or self._next_look is not None
