"""A conversation turn by turn, for files instead of a live stream: a whole question in, a whole answer out.

Talkers and history are those of a live conversation; nothing here waits for a clock, and nobody interrupts. This module
knows nothing of pictures or pages.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livetalk.media.sound import StreamResampler, load_speech
from livetalk.stream.conversation import TEXT_LIMIT
from livetalk.stream.reply import Transcript
from livetalk.stream.talkers.protocol import Heard, Persona, SpeechPiece, Talker, TalkerError, VisitorTurn
from livetalk.types import MODEL_RATE, PLAYBACK_RATE, LiveTalkError, TextDelta

log = logging.getLogger(__name__)

QUESTION_LIMIT_S = 30.0
"""Longest question in a file."""

ANSWER_LIMIT_S = 120.0
"""A talker that speaks longer is stopped."""

PAUSE_S = 0.75
"""Before, between and after answers that follow each other in one film."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        heard: the visitor's words as they were understood (or typed).
        text: words of the answer.
        samples: float32 mono at ``PLAYBACK_RATE``.
    """

    heard: str
    text: str
    samples: np.ndarray

    @property
    def duration_s(self) -> float:
        """Length of its sound in seconds."""
        return len(self.samples) / PLAYBACK_RATE


class Chat:
    """A conversation that remembers; one question at a time, from any thread.

    Args:
        talkers: in the order of preference; the next one takes over from one that fails.
        persona: who the avatar is.

    Raises:
        LiveTalkError: there is no talker.
    """

    def __init__(self, talkers: Sequence[Talker], persona: Persona) -> None:
        if not talkers:
            raise LiveTalkError("A conversation needs a talker, and there is none. Choose one, such as 'offline'.")
        self._talkers, self._persona = list(talkers), persona
        self._lock = threading.Lock()
        self._is_started = False
        self._told_s = 0.0
        self.transcript = Transcript()
        self.notice: str | None = None
        """What went wrong with a talker, in a sentence."""

    @property
    def talker(self) -> Talker:
        """Who speaks."""
        return self._talkers[0]

    def change_persona(self, persona: Persona) -> None:
        """Another voice or character, from the next answer on."""
        with self._lock:
            self._is_started = self._is_started and persona == self._persona
            self._persona = persona

    def ask(self, turn: VisitorTurn) -> Answer:
        """The answer to a turn, which is remembered with it.

        Raises:
            LiveTalkError: no words were heard, or no talker could answer; nothing is remembered then.
        """
        with self._lock:
            while True:
                try:
                    answer = self._answer(turn)
                    break
                except TalkerError as error:
                    self._replace_talker(error)
            self._remember(turn, answer)
            return answer

    def close(self) -> None:
        """Give the talkers back."""
        with self._lock:
            while self._talkers:
                self._talkers.pop().close()

    def _answer(self, turn: VisitorTurn) -> Answer:
        try:
            if not self._is_started:
                self.talker.start(self._persona)
                self._is_started = True
            return self._collected(turn)
        except LiveTalkError:
            raise
        except Exception as error:  # whatever breaks in a talker is one sentence for the visitor
            log.exception("the talker %s failed", self.talker.name)
            raise TalkerError(f"{self.talker.title} broke down ({type(error).__name__}).") from error

    def _collected(self, turn: VisitorTurn) -> Answer:
        heard, text, pieces, length_s = turn.text, "", [], 0.0
        for event in self.talker.turn(turn, self.transcript.messages()):
            if isinstance(event, Heard):
                heard = event.text if turn.text is None else turn.text
            elif isinstance(event, TextDelta):
                text += event.text
            elif len(event.samples):
                pieces.append(event)
                length_s += len(event.samples) / event.sample_rate
                if length_s > ANSWER_LIMIT_S:
                    self.talker.cancel(length_s)
                    break
        if not heard:
            raise LiveTalkError("No words were heard in the speech. Speak louder and closer, or write your question.")
        if not pieces:
            raise TalkerError(f"{self.talker.title} gave no answer. Ask again, or in other words.", lasting=False)
        spoken = "".join(piece.text for piece in pieces).strip()
        return Answer(heard, spoken or text.strip(), _joined(pieces))

    def _remember(self, turn: VisitorTurn, answer: Answer) -> None:
        """Both lines; time in the transcript is the length of what was said."""
        question = self.transcript.begin("visitor", self._told_s)
        self.transcript.update(question.number, answer.heard, final=True)
        self._told_s += len(turn.samples) / MODEL_RATE
        reply = self.transcript.begin("avatar", self._told_s)
        self.transcript.update(reply.number, answer.text, final=True)
        self._told_s += answer.duration_s

    def _replace_talker(self, error: TalkerError) -> None:
        """The next talker takes over for good.

        Raises:
            TalkerError: the one given, if it concerns this turn only or there is no other talker.
        """
        log.warning("%s: %s", self.talker.name, error)
        if not error.lasting or len(self._talkers) < 2:
            raise error
        self._talkers.pop(0).close()
        self._is_started = False
        self.notice = f"{error} {self.talker.title} answers instead."


def question(source: Path | str) -> VisitorTurn:
    """A turn out of a sound file (a path), or of written words (a string).

    Raises:
        LiveTalkError: the file cannot be used or is longer than ``QUESTION_LIMIT_S``, or there are no words.
    """
    if isinstance(source, Path):
        return VisitorTurn(load_speech(source, MODEL_RATE, QUESTION_LIMIT_S))
    words = " ".join(source.split())
    if not words:
        raise LiveTalkError("There is nothing to answer. Expected a question: speech in a file, or written text.")
    if len(words) > TEXT_LIMIT:
        raise LiveTalkError(f"The text has {len(words):,} characters. Up to {TEXT_LIMIT:,} are read: shorten it.")
    return VisitorTurn(text=words)


def with_pauses(answers: Sequence[Answer]) -> tuple[np.ndarray, int]:
    """The answers one after the other, with pauses to listen in: float32 samples and their rate."""
    pause = np.zeros(round(PAUSE_S * PLAYBACK_RATE), np.float32)
    parts = [part for answer in answers for part in (pause, answer.samples)]
    return np.concatenate([*parts, pause]), PLAYBACK_RATE


def _joined(pieces: Sequence[SpeechPiece]) -> np.ndarray:
    """Pieces of one sample rate as one array at ``PLAYBACK_RATE``."""
    resampler = StreamResampler(pieces[0].sample_rate, PLAYBACK_RATE)
    parts = [resampler.push(piece.samples) for piece in pieces]
    return np.clip(np.concatenate([*parts, resampler.finish()]), -1.0, 1.0)
