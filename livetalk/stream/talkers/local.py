"""What talkers share that hear and write with a model on this machine.

The rules a model is given that is heard rather than read; the conversation as it gets it, the last turns as sound,
because a model understands a voice better than a transcript; its words while the tokens come in; and the course of a
turn. A subclass brings the model. This module knows nothing of turn taking, what was heard, or pictures.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from livetalk.stream.talkers.machine import as_talker_error
from livetalk.stream.talkers.protocol import Heard, Message, TalkerError, TalkerEvent, VisitorTurn
from livetalk.stream.talkers.relay import Relay, TokenFeed, stop_when
from livetalk.types import MODEL_RATE

LONGEST_TURN_SAMPLES = 30 * MODEL_RATE
SHORTEST_TURN_SAMPLES = MODEL_RATE // 2
HISTORY_MESSAGES = 24
SOUND_TURNS = 2
"""Turns before the current one that a model hears again; older ones it reads."""

UNWRITTEN = "…"
"""The visitor's words while the answer is already on its way and the transcript is not written yet."""

NO_SPEECH = "[no speech]"
PERSONA = "You are a friendly person in a video call."
RULES = (
    "Everything you write is spoken aloud: answer in one to three short sentences of plain spoken language, in the "
    "language of the person you talk to, without lists, markdown, emoji or stage directions. "
    f"If a recording holds no words, answer only: {NO_SPEECH}"
)
TRANSCRIBE = (
    "Transcribe the speech in this recording in its original language. Write only the words that are spoken, "
    "without line breaks, and digits for numbers."
)

_CONTROL_WORDS = re.compile(r"<\|?[\w\"]+\|?>")


def instructions(own: str) -> str:
    """System prompt from a persona's instructions: who the model is, and that it is heard, not read."""
    return f"{plain(own) or PERSONA} {RULES}"


def plain(text: str) -> str:
    """Text of a visitor without anything a tokenizer would take for a mark of the chat (``<|im_end|>``, ``<eos>``)."""
    return _CONTROL_WORDS.sub(" ", text).strip()


def bounded(samples: np.ndarray) -> np.ndarray:
    """A turn's sound as models take it: its last 30 s, at least 0.5 s."""
    samples = np.asarray(samples, np.float32)[-LONGEST_TURN_SAMPLES:]
    return np.pad(samples, (0, max(0, SHORTEST_TURN_SAMPLES - len(samples))))


class Wording:
    """Tokens to text, token by token; a letter that needs several tokens comes with its last one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often ""."""
        self._tokens.append(token)
        text = self.text
        if text.endswith("\ufffd"):
            return ""
        new, self._given = text[self._given :], max(self._given, len(text))
        return new

    @property
    def text(self) -> str:
        """All text so far."""
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)


class Opening:
    """The beginning of an answer, held back until it is clear whether the model heard any words at all.

    Args:
        listened: the turn was sound; a typed turn is never without words.
    """

    def __init__(self, listened: bool) -> None:
        self._held: str | None = "" if listened else None
        self.is_nothing = False
        """The model said that there were no words."""

    def push(self, text: str) -> list[Heard | str]:
        """What can be handed on now: first ``Heard``, then text."""
        if self._held is None or self.is_nothing:
            return [text] if text and not self.is_nothing else []
        self._held += text
        start = self._held.strip().lower()
        if start.startswith(NO_SPEECH):
            self.is_nothing = True
            return [Heard("")]
        return [] if NO_SPEECH.startswith(start) else self.finish()

    def finish(self) -> list[Heard | str]:
        """The answer is complete: what is still held back."""
        if self._held is None or self.is_nothing:
            return []
        held, self._held = self._held, None
        return [Heard(UNWRITTEN), held] if held else [Heard(UNWRITTEN)]


def write(
    model: Any,
    inputs: Mapping[str, Any],
    tokenizer: Any,
    stop: threading.Event,
    take: Callable[[str], object] | None = None,
    **options: Any,
) -> str:
    """What a model writes, all of it.

    Args:
        model: has ``generate``.
        inputs: the prompt, as its arguments.
        tokenizer: of the model.
        stop: ends the writing at the next token.
        take: gets the text while it is written.
        options: further arguments of ``generate``.
    """
    wording = Wording(tokenizer)

    def push(token: int) -> None:
        text = wording.push(token)
        if take is not None:
            take(text)

    model.generate(**inputs, streamer=TokenFeed(push), stopping_criteria=stop_when(stop), **options)
    return wording.text


@dataclass(frozen=True)
class Line:
    """A line of the conversation as a model gets it.

    Attributes:
        role: who said it.
        text: what was said, if it is to be read.
        sound: what was said, if it is to be heard: float32 at ``MODEL_RATE``, 0.5 to 30 s.
    """

    role: Literal["visitor", "avatar"]
    text: str
    sound: np.ndarray | None = None


def line_of(turn: VisitorTurn, question: str = "") -> Line:
    """The visitor's turn, as sound or as words; with a ``question`` about the sound."""
    if turn.text is not None:
        return Line("visitor", plain(turn.text))
    return Line("visitor", question, bounded(turn.samples))


class RecentSound:
    """The sound of the last spoken turns, found again in a conversation by the words it was taken for."""

    def __init__(self) -> None:
        self._turns: deque[tuple[str, np.ndarray]] = deque(maxlen=2 * SOUND_TURNS)

    def keep(self, words: str, samples: np.ndarray) -> None:
        """A turn that became part of the conversation, with the last ``Heard`` that was given for it."""
        self._turns.append((words.strip(), samples))

    def drop(self) -> None:
        """The turn kept last was only a guess."""
        self._turns.pop()

    def clear(self) -> None:
        """Forget all."""
        self._turns.clear()

    def attach(self, history: Sequence[Message]) -> list[Line]:
        """The last ``HISTORY_MESSAGES`` of a conversation, the latest ``SOUND_TURNS`` spoken ones as sound."""
        turns, left = list(self._turns), SOUND_TURNS
        lines: list[Line] = []
        for message in reversed(history[-HISTORY_MESSAGES:]):
            words = message.text.strip()
            places = [place for place, (heard, _) in enumerate(turns) if heard == words]
            if message.role == "visitor" and places and left:
                lines.append(Line("visitor", "", bounded(turns[places[-1]][1])))
                left -= 1
                del turns[places[-1] :]
            elif words:
                lines.append(Line(message.role, plain(words)))
        return lines[::-1]


class LocalTalker(ABC):
    """The course of a turn, for talkers whose model runs in this process; one conversation each.

    Args:
        title: what the page calls it.
    """

    speculative = True

    def __init__(self, title: str) -> None:
        self.title = title
        self._instructions = instructions("")
        self._recent = RecentSound()
        self._relay = Relay()
        self._lock = threading.Lock()
        self._was_guess = False
        self._is_kept = False

    def hear(self, samples: np.ndarray) -> None:  # noqa: B027
        """Not used: the whole turn is understood at once, in less time than a pause takes."""

    def forget(self) -> None:  # noqa: B027
        """Nothing to forget; see ``hear``."""

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """See ``Talker.turn``."""
        if turn.text is None and not len(turn.samples):
            yield Heard("")
            return
        self._relay.join()  # a turn that was cancelled may still be in its last step
        with self._lock:
            relay = self._relay = Relay()
            self._was_guess = self._is_kept = False
        words = ""
        if turn.text is not None:
            yield Heard(turn.text)
        try:
            for event in self._answer(relay, turn, history):
                words = event.text if isinstance(event, Heard) else words
                yield event
        except TalkerError:
            raise
        except Exception as error:
            raise as_talker_error(error, self.title) from error
        finally:
            relay.cancel()
            with self._lock:
                self._is_kept = bool(words) and not self._was_guess
                if self._is_kept:
                    self._recent.keep(words, turn.samples)

    def cancel(self, heard_s: float | None = None) -> None:
        """See ``Talker.cancel``."""
        with self._lock:
            self._relay.cancel()
            self._was_guess = heard_s is None
            if self._was_guess and self._is_kept:
                self._recent.drop()
                self._is_kept = False

    def close(self) -> None:
        """See ``Talker.close``; the weights stay for the next conversation of this process."""
        self.cancel()
        with self._lock:
            self._recent.clear()
            self._is_kept = False

    @abstractmethod
    def _answer(self, relay: Relay, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """The events of a turn, but for the ``Heard`` of a typed one; ends soon after ``relay`` was cancelled."""
