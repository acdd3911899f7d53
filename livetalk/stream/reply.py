"""What is said in a conversation: replies on their way to the visitor, and the transcript of what was heard.

A reply is filled by a talker and emptied by whoever speaks it. Because speech is made ahead of its being heard, a reply
remembers on which picture every word ends; what counts for the history are the words before the picture on screen.

This module knows nothing of talkers, turn taking, threads or pages.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from livetalk.stream.talkers.protocol import Message, SpeechPiece, VisitorTurn
from livetalk.types import PICTURES_PER_SECOND

CHARACTERS_PER_S = 15.0
"""How fast text is spoken, for talkers that do not say which words are in a piece of speech."""


ECHO_LIKENESS = 0.6
"""Words of an interruption that are this much like the avatar's last ones are its own echo."""

ENOUGH_S = 1.0
"""Speech for the first chunk of a reply, wherever in the chunk it begins."""


@dataclass(frozen=True)
class Said:
    """A piece of speech that was handed on.

    Attributes:
        piece: the speech.
        stop_picture: first picture after it.
    """

    piece: SpeechPiece
    stop_picture: int


@dataclass
class Reply:
    """One reply, from the guess that a turn is over to its last heard word.

    Attributes:
        number: counts replies.
        turn: what it answers.
        line: number of the visitor's line in the transcript.
        is_sure: the turn has ended; until then the reply is a guess that nobody hears.
        is_dropped: it will not be said (any more).
        is_finished: the talker has given everything.
        has_left: its first pictures are on their way to the visitor; nothing waits for that any more.
        heard: the visitor's words; None = not known yet.
        text: words the talker gave apart from its speech.
        waiting: speech not handed on yet.
        said: speech handed on.
    """

    number: int
    turn: VisitorTurn
    line: int
    is_sure: bool = False
    is_dropped: bool = False
    is_finished: bool = False
    has_left: bool = False
    heard: str | None = None
    text: str = ""
    waiting: deque[SpeechPiece] = field(default_factory=deque)
    said: list[Said] = field(default_factory=list)

    def note_said(self, piece: SpeechPiece, stop_picture: int) -> None:
        """A piece was handed on and ends before ``stop_picture``."""
        self.said.append(Said(piece, stop_picture))

    def take_back(self) -> None:
        """What was handed on was not said after all: it waits again."""
        self.waiting.extendleft(said.piece for said in reversed(self.said))
        self.said.clear()

    @property
    def is_enough(self) -> bool:
        """Whether the talker has given enough to begin with."""
        return _length_s((*(said.piece for said in self.said), *self.waiting)) >= ENOUGH_S

    def echoes_in(self, words: str) -> bool:
        """Whether somebody's words are only the end of what was said, heard through the microphone."""
        said = self.spoken_text.lower()[-200:]
        matcher = difflib.SequenceMatcher(None, words.lower(), said, autojunk=False)
        shared = sum(block.size for block in matcher.get_matching_blocks() if block.size >= 4)
        return bool(words) and shared / len(words) > ECHO_LIKENESS

    def heard_before(self, picture: int) -> str:
        """Words that end before ``picture``."""
        return self._words([said.piece for said in self.said if said.stop_picture <= picture])

    @property
    def spoken_text(self) -> str:
        """Words handed on so far."""
        return self._words([said.piece for said in self.said])

    def rest(self, number: int, picture: int) -> Reply:
        """A reply that says what was not heard to its end when ``picture`` was the next one."""
        unheard = [said.piece for said in self.said if said.stop_picture > picture]
        text = self.text.strip()[len(self.heard_before(picture)) :]
        rest = Reply(number, self.turn, self.line, is_sure=True, is_finished=True, text=text)
        rest.waiting.extend([*unheard, *self.waiting])
        return rest

    def heard_s(self, picture: int) -> float:
        """Seconds of its speech that were heard when ``picture`` was the next one on screen."""
        if not self.said:
            return 0.0
        unheard_s = max(0, self.said[-1].stop_picture - picture) / PICTURES_PER_SECOND
        return max(0.0, _length_s(said.piece for said in self.said) - unheard_s)

    def _words(self, pieces: Sequence[SpeechPiece]) -> str:
        """The words in the first ``pieces``; the talker knows, or they are spread evenly over the sound."""
        if any(piece.text for piece in (*(said.piece for said in self.said), *self.waiting)):
            return "".join(piece.text for piece in pieces).strip()
        whole = [*(said.piece for said in self.said), *self.waiting]
        if self.is_finished and len(pieces) == len(whole):
            return self.text.strip()
        spoken_s, whole_s = _length_s(pieces), _length_s(whole)
        count = spoken_s * CHARACTERS_PER_S if not self.is_finished else len(self.text) * spoken_s / max(whole_s, 1e-9)
        return self.text[: round(count) + 1].rpartition(" ")[0].strip()


def _length_s(pieces: Iterable[SpeechPiece]) -> float:
    return sum(len(piece.samples) / piece.sample_rate for piece in pieces)


@dataclass
class Line:
    """One line of the transcript.

    Attributes:
        number: counts lines, from 0.
        role: who.
        text: what; for the avatar what was said so far, cut to what was heard if it was interrupted.
        start_s: when, in seconds from the beginning of the conversation.
        is_final: it will not change any more.
        is_cut: the avatar was interrupted.
        reply: number of the avatar's reply.
    """

    number: int
    role: Literal["visitor", "avatar"]
    text: str
    start_s: float
    is_final: bool = False
    is_cut: bool = False
    reply: int | None = None


class Transcript:
    """Lines in the order they began, and which of them changed since somebody looked.

    Args:
        lines: of a conversation that goes on; they were told already.
    """

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self.lines: list[Line] = [dataclasses.replace(line) for line in lines]
        self._changed: set[int] = set()

    def begin(self, role: Literal["visitor", "avatar"], start_s: float, text: str = "") -> Line:
        """A new line, not final."""
        line = Line(len(self.lines), role, text, start_s)
        self.lines.append(line)
        self._changed.add(line.number)
        return line

    def update(self, number: int, text: str, *, final: bool = False, cut: bool = False) -> None:
        """Change a line that is not final."""
        line = self.lines[number]
        if line.is_final or (line.text, line.is_final, line.is_cut) == (text, final, cut):
            return
        line.text, line.is_final, line.is_cut = text, final, cut
        self._changed.add(number)

    def news(self) -> list[dict[str, object]]:
        """Lines that changed since the last call, as plain data."""
        changed, self._changed = sorted(self._changed), set()
        return [vars(self.lines[number]).copy() for number in changed]

    def settled(self, cut: bool) -> tuple[Line, ...]:
        """A copy of all lines as they are, final; ``cut``: the avatar had not finished the line it was saying."""
        return tuple(
            dataclasses.replace(
                line, is_final=True, is_cut=line.is_cut or (cut and not line.is_final and line.role == "avatar")
            )
            for line in self.lines
        )

    def messages(self, before: int | None = None) -> list[Message]:
        """The conversation for a talker: final lines with words, those before line ``before``."""
        kept: Sequence[Line] = self.lines[:before]
        known = (line for line in kept if line.text and (line.is_final or line.role == "avatar"))
        return [Message(line.role, line.text) for line in known]

    def as_text(self) -> str:
        """The conversation as text, one line each, with times."""
        names = {"visitor": "You", "avatar": "LiveTalk"}
        rows = []
        for line in self.lines:
            if line.text:
                minutes, seconds = divmod(int(line.start_s), 60)
                cut = " —" if line.is_cut else ""
                rows.append(f"[{minutes:02d}:{seconds:02d}] {names[line.role]}: {line.text}{cut}")
        return "\n".join(rows) + "\n" if rows else ""
