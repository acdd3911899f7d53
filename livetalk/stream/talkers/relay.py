"""A reply that threads make and one reader takes, and that can be called off at any moment.

This module knows no model and no conversation.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LOOK_S = 0.02
"""How often a thread that waits for its turn looks whether it still has to."""

_END = object()


class Relay:
    """Events of one reply on their way from the threads that make it to the one that reads them.

    Attributes:
        stopping: set when the reply is not wanted any more, or one of the threads failed.
        changed: notified then; threads that wait for something else wait with it.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.changed = threading.Condition()
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._cancelled = False
        self._error: BaseException | None = None

    def run(self, *works: Callable[[], None]) -> None:
        """Start a thread for each; the reply is complete when all have ended."""
        self._running = len(works)
        self._threads = [threading.Thread(target=self._work, args=(work,), daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def put(self, item: Any) -> None:
        """Hand an event to the reader."""
        self._items.put(item)

    def cancel(self) -> None:
        """End the reading at once, and the threads as soon as they look. Any thread."""
        self._cancelled = True
        self._stop()

    def join(self) -> None:
        """Wait until no thread works for this reply any more."""
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Any]:
        """Events in order, until all threads have ended or the reply was cancelled; raises what a thread raised."""
        while (item := self._items.get()) is not _END and not self._cancelled:
            yield item
        if self._error is not None and not self._cancelled:
            raise self._error

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = self._error or error
            self._stop()
        with self.changed:
            self._running -= 1
            if not self._running:
                self._items.put(_END)

    def _stop(self) -> None:
        self.stopping.set()
        self._items.put(_END)
        with self.changed:
            self.changed.notify_all()


@contextmanager
def taking(lock: threading.Lock, stop: threading.Event) -> Iterator[bool]:
    """Holds ``lock``; gives False, without it, if ``stop`` was set before it was free."""
    while not lock.acquire(timeout=LOOK_S):
        if stop.is_set():
            yield False
            return
    try:
        yield True
    finally:
        lock.release()


def stop_when(event: threading.Event) -> Any:
    """Stopping criteria for ``generate``: ends at the next token once ``event`` is set."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), event.is_set(), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Stop()])


class TokenFeed:
    """Streamer for ``generate``: calls ``take`` with every new token; the prompt, which comes first, is left out."""

    def __init__(self, take: Callable[[int], object]) -> None:
        self._take = take
        self._is_prompt = True

    def put(self, tokens: torch.Tensor) -> None:
        """Called by ``generate``."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in tokens.flatten().tolist():
            self._take(token)

    def end(self) -> None:
        """Called by ``generate`` after the last token."""
