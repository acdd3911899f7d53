"""Who speaks when: turns of the visitor, replies of a talker, interruptions, and what each of them heard.

A conversation is told what the microphone hears and what is on screen, and keeps the reply that should be said now; a
session says it. A talker works in a thread of its own. A reply may be begun on a guess, while it is not certain that
the visitor has finished; a guess is never heard. An interrupted reply goes on if the sound that broke it off held no
words. A talker that fails is replaced by the next one, which gets the same turn.

All public methods and attributes are used under the lock given (``changed``), which is notified when something new may
be said. This module knows nothing of pictures, pages or models.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from livetalk.stream.reply import Reply, Transcript
from livetalk.stream.snapshot import ConversationSnapshot
from livetalk.stream.talkers.protocol import Heard, Persona, SpeechPiece, Talker, TalkerError, VisitorTurn
from livetalk.stream.turns import (
    TurnEnded,
    TurnEvent,
    TurnTaker,
    VoiceDismissed,
    VoiceHeard,
    VoicePaused,
    VoiceResumed,
    VoiceStarted,
    VoiceSuspected,
)
from livetalk.types import MODEL_RATE, LiveTalkError, TextDelta

log = logging.getLogger(__name__)

BEGINNING_S, CALMING_S = 0.8, 0.5
"""Cores may be few: so long at most a talker waits for the first pictures of its reply, and after an interruption."""

CLOSING_S = 5.0
TEXT_LIMIT = 2_000
"""Longest typed turn in characters."""


class Conversation:
    """The state of one conversation; see the module's docstring for threads.

    Args:
        talkers: in the order of preference; the next one takes over from one that fails.
        persona: who the avatar is.
        turns: turn taking of this visitor.
        changed: lock and signal shared with the session.
        now_s: seconds from the beginning of the conversation.
        shown_picture: tells the first picture that is not on screen yet.
    """

    def __init__(
        self,
        talkers: Sequence[Talker],
        persona: Persona,
        turns: TurnTaker,
        changed: threading.Condition,
        now_s: Callable[[], float],
        shown_picture: Callable[[], int],
    ) -> None:
        if not talkers:
            raise LiveTalkError("A conversation needs a talker, and there is none. Choose one, such as 'offline'.")
        self._talkers, self._persona, self._turns = deque(talkers), persona, turns
        self._changed, self._now_s, self._shown_picture = changed, now_s, shown_picture
        self.transcript = Transcript()
        self.reply: Reply | None = None
        """What should be said now, or made ahead if it is not sure."""
        self.version = 0
        """Grows whenever there may be something new to say."""
        self.notice: str | None = None
        """What went wrong with a talker, in a sentence."""
        self.is_ready = False
        """Whether the talker has started."""
        self.is_voice_on = False
        """Whether the visitor is speaking."""
        self.is_suspected = False
        """Whether the visitor may be about to interrupt: the avatar should be heard less loudly at once."""
        self.stopped_at_s: float | None = None
        """When the visitor's last turn ended, in seconds of the conversation: the voice, not the pause after it."""
        self.confirmed_at_s: float | None = None
        """When a guess that nobody contradicts will be sure."""
        self.is_calm = True
        """Whether the first pictures after the latest interruption are made: the talker listens on when they are."""
        self._broken: Reply | None = None
        self._broken_from = 0
        self._line: int | None = None
        self._jobs: deque[tuple[str, Any]] = deque([("start", persona)])
        self._replies = 0
        self._closed = self._is_working = False
        self._thread = threading.Thread(target=self._work, name="livetalk-talker", daemon=True)
        self._thread.start()

    @property
    def talker(self) -> Talker:
        """Who speaks."""
        return self._talkers[0]

    @property
    def is_busy(self) -> bool:
        """Whether the talker has something to do."""
        return bool(self._jobs) or self._is_working

    def hear(self, samples: np.ndarray, *, speaking: bool) -> bool:
        """Microphone sound at ``MODEL_RATE``.

        Args:
            samples: float32 ``[n]``.
            speaking: the avatar can be heard at the moment.

        Returns:
            Whether the visitor has just interrupted: nothing of the reply may be shown any more.
        """
        broke_off = False
        for event in self._turns.push(samples, speaking):
            broke_off |= self._take_event(event)
        return broke_off

    def write(self, text: str) -> bool:
        """A typed turn; returns as ``hear`` does.

        Raises:
            LiveTalkError: no words, or too many.
        """
        text = " ".join(text.split())
        if not text or len(text) > TEXT_LIMIT:
            raise LiveTalkError(f"The message has {len(text)} characters. Write 1 to {TEXT_LIMIT}.")
        speaking = self._begin_turn(text)
        self._turns.reset()
        self.is_voice_on = self.is_suspected = False
        self.stopped_at_s = self._now_s()
        self._answer(VisitorTurn(text=text), sure=True)
        return speaking

    def close_microphone(self) -> None:
        """No more sound comes: a turn that is going on ends here."""
        silence = np.zeros(MODEL_RATE, np.float32)
        self.hear(silence, speaking=False)

    def change_persona(self, persona: Persona) -> None:
        """Another voice or character, from the next reply on."""
        with self._changed:
            self._persona = persona
            self._give("start", persona)

    def interrupt(self) -> bool:
        """Break the reply off; history keeps what was heard. Returns whether there was anything to hear."""
        reply, self.reply = self.reply, None
        if reply is None:
            return False
        if not (reply.said and reply.is_sure):
            self._drop(reply)
            return False
        shown = self._shown_picture()
        reply.is_dropped, self.is_calm = True, False
        self._broken, self._broken_from = reply, shown
        self._avatar_line(reply, reply.heard_before(shown), final=True, cut=True)
        self.talker.cancel(reply.heard_s(shown))  # also when all was given: a server wants to know what was heard
        return True

    def said(self, reply: Reply, piece: SpeechPiece, stop_picture: int) -> None:
        """A piece of the reply will be on screen before ``stop_picture``."""
        reply.note_said(piece, stop_picture)
        if reply.is_sure:
            self._avatar_line(reply, reply.spoken_text)

    def over(self, reply: Reply) -> None:
        """The reply was heard to its end."""
        self._avatar_line(reply, reply.spoken_text, final=True)
        if self.reply is reply:
            self.reply = None

    def snapshot(self) -> ConversationSnapshot:
        """The conversation for another process; a reply that is being said ends with what was handed on."""
        cut = self.reply is not None and bool(self.reply.waiting or not self.reply.is_finished)
        return ConversationSnapshot(self._persona, self.transcript.settled(cut), self._replies)

    def take_up(self, snapshot: ConversationSnapshot) -> None:
        """Go on with a conversation that was begun elsewhere, before anything was said in this one."""
        self.transcript, self._replies = Transcript(snapshot.lines), snapshot.replies

    def close(self) -> None:
        """End the talker and its thread."""
        self._closed = True
        self._jobs.clear()
        self.talker.cancel()
        if not self.is_ready:
            self.talker.close()  # loading a model can take minutes; nobody waits for it any more
        self._signal()

    def join(self) -> None:
        """Wait for the talker's thread; call without the lock, after ``close``."""
        self._thread.join(CLOSING_S)

    def _take_event(self, event: TurnEvent) -> bool:
        """React to one event; returns whether it interrupts the avatar."""
        if isinstance(event, VoiceSuspected | VoiceDismissed):
            self.is_suspected = isinstance(event, VoiceSuspected)
        elif isinstance(event, VoiceStarted):
            speaking = self._begin_turn("")
            self._give("forget", None)
            self.is_voice_on, self.is_suspected = True, False
            self._give("hear", event.samples)
            return speaking
        elif isinstance(event, VoiceHeard):
            self._give("hear", event.samples)
        elif isinstance(event, VoicePaused):
            if self.talker.speculative and self.is_ready:
                self._note_stop(event.at_sample - event.speech_stop_sample)
                self.confirmed_at_s = self._now_s() + self._turns.confirmation_s
                self._answer(VisitorTurn(event.samples), sure=False)
        elif isinstance(event, VoiceResumed):
            self._drop_guess()
        elif isinstance(event, TurnEnded):
            self._end_turn(event)
        return False

    def _begin_turn(self, text: str) -> bool:
        """A line for the visitor, who takes the turn; returns whether that broke off a reply that was being heard."""
        heard = self.interrupt()
        self._line = self.transcript.begin("visitor", self._now_s(), text).number
        if text:
            self.transcript.update(self._line, text, final=True)
        return heard

    def _end_turn(self, event: TurnEnded) -> None:
        self.is_voice_on = False
        self._note_stop(event.at_sample - event.speech_stop_sample)
        self.confirmed_at_s = None
        guess = self.reply
        if guess is not None and not guess.is_sure and not guess.is_dropped:
            guess.is_sure = True
            self._note_words(guess)
            if guess.said:
                self._avatar_line(guess, guess.spoken_text)
            if guess.is_finished:
                self._finish(guess)
            self._signal()
        else:
            self._answer(VisitorTurn(event.samples), sure=True)

    def _note_stop(self, samples_ago: int) -> None:
        self.stopped_at_s = self._now_s() - samples_ago / MODEL_RATE

    def _answer(self, turn: VisitorTurn, *, sure: bool) -> None:
        assert self._line is not None
        self._replies += 1
        self.reply = Reply(self._replies, turn, self._line, is_sure=sure)
        self._give("turn", self.reply)

    def _drop_guess(self) -> None:
        reply, self.confirmed_at_s = self.reply, None
        if reply is not None and not reply.is_sure:
            self._drop(reply)
            self.reply = None
            self._give("hear", reply.turn.samples)

    def _drop(self, reply: Reply) -> None:
        """Nobody will hear this reply."""
        reply.is_dropped = True
        if not reply.is_finished:
            self.talker.cancel()
        self._give("forget", None)

    def _give(self, kind: str, what: Any) -> None:
        self._jobs.append((kind, what))
        self._signal()

    def _signal(self) -> None:
        self.version += 1
        self._changed.notify_all()

    def _work(self) -> None:
        """The talker's thread."""
        while True:
            with self._changed:
                self._is_working = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._jobs)
                self._changed.wait_for(lambda: self._closed or self.is_calm, CALMING_S)
                self.is_calm = True
                if self._closed:
                    break
                kind, what = self._jobs.popleft()
                self._is_working = True
            try:
                self._do(kind, what)
            except TalkerError as error:
                self._replace_talker(error, what if kind == "turn" else None)
            except Exception as error:  # a talker must never take the session with it
                log.exception("the talker %s failed", self.talker.name)
                failure = TalkerError(f"{self.talker.title} broke down ({type(error).__name__}).")
                self._replace_talker(failure, what if kind == "turn" else None)
        for talker in self._talkers:
            talker.close()

    def _do(self, kind: str, what: Any) -> None:
        talker = self.talker
        if kind == "start":
            talker.start(what)
            with self._changed:
                self.is_ready = True
                self._signal()
        elif kind == "hear":
            talker.hear(what)
        elif kind == "forget":
            talker.forget()
        elif not what.is_dropped:
            self._run_turn(talker, what)

    def _run_turn(self, talker: Talker, reply: Reply) -> None:
        with self._changed:
            history = self.transcript.messages(before=reply.line)
        for event in talker.turn(reply.turn, history):
            with self._changed:
                if reply.is_dropped or self._closed:
                    break
                if isinstance(event, Heard):
                    reply.heard = "" if self._is_echo(event.text) else event.text
                    self._note_words(reply)
                    if event.text and not reply.heard:
                        talker.cancel()
                        break
                elif isinstance(event, TextDelta):
                    reply.text += event.text
                elif len(event.samples):
                    reply.waiting.append(event)
                self._signal()
                if reply.is_enough and not reply.has_left:
                    self._changed.wait_for(lambda: reply.has_left or reply.is_dropped or self._closed, BEGINNING_S)
                    reply.has_left = True
        with self._changed:
            reply.is_finished = True
            if reply.is_sure and not reply.is_dropped:
                self._finish(reply)
            self._signal()

    def _note_words(self, reply: Reply) -> None:
        """Write down what the visitor said, once it is sure that it was said."""
        if not reply.is_sure or reply.heard is None or reply.turn.text is not None:
            return
        self.transcript.update(reply.line, reply.heard)

    def _finish(self, reply: Reply) -> None:
        """The talker has given all of a sure reply: settle the visitor's line; without words go on where we were."""
        words = reply.turn.text if reply.turn.text is not None else (reply.heard or "")
        self.transcript.update(reply.line, words, final=True)
        if words or reply.waiting or reply.said:
            self._broken = None
            if not (reply.waiting or reply.said) and self.reply is reply:
                self.reply = None
            return
        broken, self._broken, self.reply = self._broken, None, None
        if broken is not None:
            self._resume(broken)

    def _resume(self, broken: Reply) -> None:
        """Say the rest of a reply that was broken off by something without words."""
        self._replies += 1
        rest = broken.rest(self._replies, self._broken_from)
        self.reply = rest if rest.waiting else None

    def _is_echo(self, words: str) -> bool:
        """Whether the microphone only heard the avatar itself."""
        return self._broken is not None and self._broken.echoes_in(words)

    def _avatar_line(self, reply: Reply, text: str, *, final: bool = False, cut: bool = False) -> None:
        own = next((x for x in reversed(self.transcript.lines) if x.role == "avatar" and x.reply == reply.number), None)
        if own is None:
            if not text:
                return
            own = self.transcript.begin("avatar", self._now_s(), text)
            own.reply = reply.number
        self.transcript.update(own.number, text, final=final, cut=cut)

    def _replace_talker(self, error: TalkerError, reply: Reply | None) -> None:
        """Say what happened; the next talker takes over, with the same turn if nothing of the answer was heard."""
        log.warning("%s: %s", self.talker.name, error)
        with self._changed:
            self.notice = str(error)
            if error.lasting and len(self._talkers) > 1:
                self._talkers.popleft().close()
                self.is_ready = False
                self.notice = f"{error} {self.talker.title} answers instead."
                jobs: list[tuple[str, Any]] = [("start", self._persona)]
                if reply is not None and not reply.is_dropped:
                    jobs.append(("turn", reply))
                self._jobs.extendleft(reversed(jobs))
            elif reply is not None:
                reply.is_finished = True
                if reply.is_sure:
                    self._finish(reply)
            self._signal()
