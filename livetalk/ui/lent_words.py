"""The words of a session whose pictures are made elsewhere: what workers tell, for the page and for the next worker.

This module does not know pages or workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from livetalk.stream.reply import Line, Transcript
from livetalk.stream.snapshot import ConversationSnapshot
from livetalk.stream.talkers.protocol import Persona


class LentWords:
    """What was said, as the workers tell it, and who says it.

    Args:
        persona: who the avatar is.
        tell: is told when that changes.
    """

    def __init__(self, persona: Persona, tell: Callable[[Persona], None]) -> None:
        self.persona, self._tell = persona, tell
        self.is_voice_on = self.is_suspected = False
        self._lines: dict[int, Line] = {}
        self._changed: set[int] = set()

    @property
    def transcript(self) -> Transcript:
        """A copy of what was said so far."""
        return Transcript(self._lines[number] for number in sorted(self._lines))

    def change_persona(self, persona: Persona) -> None:
        """Another voice or character, from the next reply on."""
        self.persona = persona
        self._tell(persona)

    def take(self, facts: dict[str, Any]) -> None:
        """News of a call."""
        for line in facts.get("lines", []):
            self._lines[line["number"]] = Line(**line)
            self._changed.add(line["number"])
        self.is_voice_on, self.is_suspected = bool(facts.get("voice")), bool(facts.get("duck"))

    def settle(self) -> None:
        """The call was lost: nobody finishes what was being said."""
        for line in self._lines.values():
            if not line.is_final:
                line.is_final, line.is_cut = True, line.role == "avatar"
                self._changed.add(line.number)

    def news(self) -> list[dict[str, Any]]:
        """Lines that changed since the last call, as plain data."""
        changed, self._changed = sorted(self._changed), set()
        return [vars(self._lines[number]).copy() for number in changed]

    def snapshot(self, replies: int) -> ConversationSnapshot:
        """For the next call; ``replies``: at least so many were begun."""
        lines = self.transcript.settled(cut=False)
        return ConversationSnapshot(self.persona, lines, max([replies, *(line.reply or 0 for line in lines)]))
