"""Things that are kept for a while after somebody used them, and then thrown away whether anybody looks or not.

This module does not know what is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Shelf(Generic[ItemT]):
    """A bounded number of things by name, each for a limited time; any thread.

    Args:
        limit: how many; one more throws the oldest away.
        kept_s: how long each is kept, in seconds.
        discard: throws one away; called in any thread, without a lock.
    """

    def __init__(self, limit: int, kept_s: float, discard: Callable[[ItemT], None]) -> None:
        self._limit, self._kept_s, self._discard = limit, kept_s, discard
        self._items: dict[str, tuple[float, ItemT]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def put(self, name: str, item: ItemT) -> None:
        """Keep ``item`` from now on; what had that name is thrown away."""
        with self._lock:
            gone = [self._items.pop(name)[1]] if name in self._items else []
            self._items[name] = (time.monotonic() + self._kept_s, item)
            while len(self._items) > self._limit:
                gone.append(self._items.pop(next(iter(self._items)))[1])
            self._wind()
        for old in gone:
            self._discard(old)

    def get(self, name: str) -> ItemT | None:
        """What is kept under that name, which stays where it is."""
        with self._lock:
            found = self._items.get(name)
        return found[1] if found else None

    def take(self, name: str) -> ItemT | None:
        """What is kept under that name, which is nobody's business here any more."""
        with self._lock:
            found = self._items.pop(name, None)
        return found[1] if found else None

    def clear(self) -> None:
        """Throw everything away."""
        with self._lock:
            gone = [item for _, item in self._items.values()]
            self._items.clear()
        for old in gone:
            self._discard(old)

    def __len__(self) -> int:
        return len(self._items)

    def _wind(self) -> None:
        """Set the timer for the oldest; it runs only while there is something to throw away."""
        if self._timer is None and self._items:
            due_s = next(iter(self._items.values()))[0] - time.monotonic()
            self._timer = threading.Timer(max(0.0, due_s), self._sweep)
            self._timer.daemon = True
            self._timer.start()

    def _sweep(self) -> None:
        with self._lock:
            self._timer = None
            now = time.monotonic()
            old = [name for name, (until, _) in self._items.items() if until <= now]
            gone = [self._items.pop(name)[1] for name in old]
            self._wind()
        for item in gone:
            self._discard(item)
