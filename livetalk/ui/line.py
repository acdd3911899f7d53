"""Who is on and who waits.

A place is free if the machine carries one more live session; those who wait get in one after the other. Nobody holds a
place without using it: an invitation lapses, and who stops asking has left the line. This module knows neither sessions
nor the page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from livetalk.stream.capacity import configured_number
from livetalk.types import LiveTalkError

VISITORS_VARIABLE, VISITORS = "LIVETALK_VISITORS", 24
"""Visitors who are on or wait, unless the variable says otherwise; further ones are turned away."""

ASKED_AGAIN_S = 0.5
INVITED_S = 10.0
"""An invitation to a place lapses after this time."""


def visitor_limit() -> int:
    """Visitors who may be on or wait at once; each keeps one of the server's threads busy.

    Raises:
        LiveTalkError: ``LIVETALK_VISITORS`` is no whole number above 0.
    """
    return configured_number(VISITORS_VARIABLE, "visitors") or VISITORS


class Line:
    """Places and the visitors who wait for one, in order; any thread.

    Args:
        places: tells how many visitors may be on at the moment.
        limit: how many may be on or wait.
    """

    def __init__(self, places: Callable[[], int], limit: int = VISITORS) -> None:
        self._places, self._limit = places, limit
        self._changed = threading.Condition()
        self._on: set[str] = set()
        self._invited: dict[str, float] = {}
        self._waiting: list[str] = []

    def waits(self, name: str) -> Iterator[int]:
        """Place in line of that visitor (1 = next), twice a second; ends when it is their turn.

        Who closes the iterator has left the line.

        Raises:
            LiveTalkError: they are there already, the line is too long, or they were taken out of it.
        """
        with self._changed:
            self._enter(name)
        try:
            while True:
                with self._changed:
                    if name not in self._waiting:
                        raise LiveTalkError("You have left the line. Start again to join it.")
                    place = self._waiting.index(name)
                    if place < self._free():
                        self._invited[name] = time.monotonic() + INVITED_S
                        return
                yield place + 1
                with self._changed:
                    self._changed.wait(ASKED_AGAIN_S)
        finally:
            self.leave(name, was_on=False)

    def take(self, name: str) -> None:
        """That visitor is on now.

        Raises:
            LiveTalkError: they are on already, or it is not their turn.
        """
        with self._changed:
            if name in self._on:
                raise LiveTalkError("This sid is in use. Every session needs a new one: for example uuid.uuid4().hex.")
            invited = self._invited.pop(name, None) is not None
            if not invited and self._free() <= len(self._waiting):
                raise LiveTalkError("All places are taken at the moment. Wait for your turn, or come back later.")
            self._on.add(name)

    def leave(self, name: str, *, was_on: bool = True) -> None:
        """That visitor has gone: out of the line, or off if they were on."""
        with self._changed:
            if was_on:
                self._on.discard(name)
                self._invited.pop(name, None)
            if name in self._waiting:
                self._waiting.remove(name)
            self._changed.notify_all()

    def place(self, name: str) -> int:
        """Place in line of a visitor who waits (1 = next); 0 = does not wait."""
        with self._changed:
            return self._waiting.index(name) + 1 if name in self._waiting else 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def _enter(self, name: str) -> None:
        if name in self._waiting or name in self._on:
            raise LiveTalkError("This sid is in use. Every session needs a new one: for example uuid.uuid4().hex.")
        if len(self._waiting) + len(self._on) >= self._limit:
            raise LiveTalkError(f"{len(self._waiting)} visitors are waiting already. Please come back a little later.")
        self._waiting.append(name)

    def _free(self) -> int:
        """Places that nobody has or was invited to."""
        now = time.monotonic()
        for name in [name for name, until in self._invited.items() if until < now]:
            del self._invited[name]
        return self._places() - len(self._on) - len(self._invited)
