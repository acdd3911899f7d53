"""What every talker promises: it hears (or reads) a visitor's turn and answers with text and speech, piece by piece.

A talker never sees pages, pictures or queues. It is driven by one thread of the conversation; only ``cancel`` and
``close`` may be called from others. Who may speak when, what was heard of a reply and what an interruption means is
decided by the conversation, not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from livetalk.types import LiveTalkError, TextDelta

LONGEST_PIECE_S = 0.5
"""No piece of speech is longer, so that an interruption never waits for one."""

CANCEL_S = 0.1
"""After ``cancel`` the running turn ends within this time."""


class TalkerError(LiveTalkError):
    """A talker could not go on; the message is one sentence for the visitor.

    Attributes:
        lasting: the next turn would fail too (no token, no network, out of memory): fall back to another talker.
    """

    def __init__(self, message: str, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True)
class Persona:
    """Who the avatar is.

    Attributes:
        instructions: system prompt; "" = the talker's own short one.
        voice: name of one of the talker's voices; "" = its best.
    """

    instructions: str = ""
    voice: str = ""


@dataclass(frozen=True)
class Message:
    """One line of the conversation so far, as it was heard.

    Attributes:
        role: who said it.
        text: words; for the avatar only those that the visitor heard.
    """

    role: Literal["visitor", "avatar"]
    text: str


@dataclass(frozen=True)
class VisitorTurn:
    """What the visitor said.

    Attributes:
        samples: float32 mono at ``MODEL_RATE``, with some silence around; empty for a typed turn.
        text: typed words; None = the talker has to listen.
    """

    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    text: str | None = None


@dataclass(frozen=True)
class Heard:
    """The visitor's words as the talker understood them; "" = no words were in the sound, and no reply follows.

    May come again with a better text; the last one counts.
    """

    text: str


@dataclass(frozen=True)
class SpeechPiece:
    """A piece of the reply's sound with the words in it.

    Attributes:
        samples: float32 mono in -1..1, at most ``LONGEST_PIECE_S`` long.
        sample_rate: in Hz, the same for a whole reply.
        text: words that end within this piece, with their spaces: the pieces' texts together are the reply. "" if the
            talker does not know; then the words are spread evenly over the sound.
    """

    samples: np.ndarray
    sample_rate: int
    text: str = ""


TalkerEvent = Heard | TextDelta | SpeechPiece


class Talker(Protocol):
    """One voice with a mind. One conversation each; see the module's docstring for threads.

    Attributes:
        name: short name, as in ``--talker``.
        title: what the page calls it, with the model's name and licence where weights are loaded.
        speculative: a turn may be begun on a guess and cancelled without a trace.
    """

    name: str
    title: str
    speculative: bool

    def start(self, persona: Persona) -> None:
        """Load, connect, warm up; called once before everything else, again when the persona changes.

        Raises:
            TalkerError: it cannot work here.
        """

    def hear(self, samples: np.ndarray) -> None:
        """Sound of the visitor's turn while it is still going on (float32 mono at ``MODEL_RATE``, in order).

        A talker may begin to understand; one that does not care does nothing. ``turn`` gets the whole sound again.
        """

    def forget(self) -> None:
        """What ``hear`` brought belongs to no turn."""

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Answer. ``Heard`` comes first, then text and speech in any order; ends when all is said or was cancelled.

        Args:
            turn: what the visitor said.
            history: the conversation before it, as it was heard.

        Raises:
            TalkerError: the talker failed, before or in the middle of the reply.
        """

    def cancel(self, heard_s: float | None = None) -> None:
        """End the running turn within ``CANCEL_S``. Any thread; never waits. May come after the turn has given all.

        Args:
            heard_s: seconds of the reply's speech that were played; None = the turn was only a guess.
        """

    def close(self) -> None:
        """Give everything back; the talker is not used again. Any thread."""
