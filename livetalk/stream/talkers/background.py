"""A talker's network work on a thread of its own, handed to the conversation as a blocking iterator.

``Background`` runs an asyncio loop; ``Background.begin`` runs one turn there, whose ``Answer`` is iterated by the
conversation's thread and cancelled from any thread. After a cancel the iterator ends at once, however
long the network takes to notice. This module knows nothing of servers or speech.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from livetalk.stream.talkers.protocol import TalkerEvent

T = TypeVar("T")

CLOSE_S = 5.0
_END = object()


class Answer:
    """The events of one turn, on their way from the network's thread to the conversation's.

    Iterating blocks until the next event; it ends when the turn has ended or was cancelled, and raises what the turn
    raised. Leaving the iteration early cancels the turn.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._over = threading.Event()
        self._stop: Callable[[], object] = lambda: None

    @property
    def over(self) -> bool:
        """Whether nothing more will come out: the turn was cancelled, or its last event was taken."""
        return self._over.is_set()

    def put(self, event: TalkerEvent) -> None:
        """Hand out an event; without effect after a cancel."""
        self._events.put(event)

    def end(self, error: BaseException | None = None) -> None:
        """The turn is over, by itself or through ``error``."""
        self._events.put(_END if error is None else error)

    def cancel(self) -> None:
        """Nothing more is handed out, and the turn's work stops as soon as it can."""
        self._over.set()
        self._events.put(_END)
        self._stop()

    def stops(self, work: Future[Any]) -> None:
        """The work that ``cancel`` has to stop."""
        self._stop = work.cancel
        if self.over:
            work.cancel()

    def __iter__(self) -> Iterator[TalkerEvent]:
        try:
            while True:
                event = self._events.get()
                if self.over or event is _END:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.cancel()


class Background:
    """An asyncio loop on a daemon thread; it lives until ``close``."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def post(self, call: Callable[[], object]) -> None:
        """Call something on the loop soon, in the order of posting; without effect after ``close``."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(call)

    def begin(self, answer: Answer, work: Coroutine[Any, Any, None]) -> None:
        """Start a turn: a coroutine that puts its events into ``answer``."""
        answer.stops(self.spawn(_finishing(work, answer)))

    def close(self) -> None:
        """Cancel everything and stop the thread; safe to call twice and from any thread but the loop's own."""
        self.post(self.loop.stop)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            left = asyncio.all_tasks(self.loop)
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=CLOSE_S / 2))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


async def _finishing(work: Coroutine[Any, Any, None], answer: Answer) -> None:
    """Run a turn and always end its answer."""
    try:
        await work
    except asyncio.CancelledError:
        answer.end()
        raise
    except Exception as error:  # whatever it is, it belongs to the conversation's thread
        answer.end(error)
    else:
        answer.end()
