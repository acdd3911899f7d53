"""Talkers in a process of their own, so that a big model and the pictures do not wait for one interpreter's lock.

``TalkerProcess`` starts one process; ``talker()`` gives talkers that live in it and look from outside like any other.
They share the weights the process has loaded and work side by side. What is said goes through a pipe, so a reply can be
called off at once, whatever the model is doing; a process that crashes, is killed or runs out of memory costs the reply
it was making, never the session, and the next ``start`` begins a new one.

This module does not know what the talkers are.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from livetalk.stream.talkers.protocol import Message, Persona, Talker, TalkerError, TalkerEvent, VisitorTurn

logger = logging.getLogger(__name__)

CLOSING_S = 5.0
CHILD_THREADS = 1
"""Threads of torch's operators on the CPU: the model is on a GPU, and the cores are for the pictures."""


@dataclass(frozen=True)
class _Order:
    """What the process shall do.

    Attributes:
        talker: number of the talker.
        kind: "start", "turn", "hear", "forget", "cancel" or "close".
        call: number of the call that "start" and "turn" begin and "cancel" ends.
        what: arguments.
    """

    talker: int
    kind: str
    call: int = 0
    what: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _End:
    """A call has ended; with a message, because it failed."""

    message: str | None = None
    lasting: bool = True


class TalkerProcess:
    """A process that talkers share; begins with the first ``start`` of one of them.

    Args:
        build: gives a talker that has loaded nothing yet; importable by name, for it is called in the other process
            as well.
        threads: of torch's operators there.
    """

    def __init__(self, build: Callable[[], Talker], threads: int = CHILD_THREADS) -> None:
        self._build, self._threads = build, threads
        self._child: _Child | None = None
        self._users: set[int] = set()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def talker(self) -> ApartTalker:
        """A new talker, for one conversation."""
        like = self._build()
        return ApartTalker(self, next(self._numbers), like.name, like.title, like.speculative)

    @property
    def is_running(self) -> bool:
        """Whether the process is there already, with whatever it has loaded."""
        with self._lock:
            return self._child is not None and not self._child.has_ended

    def enter(self, number: int, title: str) -> _Child:
        """The running process, for a talker that starts; a new one if there is none.

        Args:
            number: of the talker.
            title: what the process's errors call it.

        Raises:
            TalkerError: it cannot be started.
        """
        with self._lock:
            if self._child is None or self._child.has_ended:
                self._users.clear()
                self._child = _Child(self._build, self._threads, title)
            self._users.add(number)
            return self._child

    def leave(self, number: int, failed: bool) -> None:
        """A talker was closed; if it was the last one here and could not go on, the process gives its memory back."""
        with self._lock:
            self._users.discard(number)
            if failed and not self._users and self._child is not None:
                self._child.close()

    def close(self) -> None:
        """End the process and give its memory back; safe to call twice."""
        with self._lock:
            if self._child is not None:
                self._child.close()


class ApartTalker:
    """A ``Talker`` whose work is done in a ``TalkerProcess``.

    Args:
        process: where.
        number: of this talker there.
        name: see ``Talker``.
        title: see ``Talker``.
        speculative: see ``Talker``.
    """

    def __init__(self, process: TalkerProcess, number: int, name: str, title: str, speculative: bool) -> None:
        self._process, self._number = process, number
        self.name, self.title, self.speculative = name, title, speculative
        self._child: _Child | None = None
        self._start: _Call | None = None
        self._turn: _Call | None = None
        self._failed = False

    def start(self, persona: Persona) -> None:
        """See ``Talker.start``; also after the process has died."""
        self._child = self._process.enter(self._number, self.title)
        self._start = self._child.begin(self._number, "start", (persona,))
        for _ in self._watch(self._start):
            pass

    def hear(self, samples: np.ndarray) -> None:
        """See ``Talker.hear``."""
        self._tell("hear", samples)

    def forget(self) -> None:
        """See ``Talker.forget``."""
        self._tell("forget")

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """See ``Talker.turn``."""
        if self._child is None:
            raise TalkerError(f"{self.title} was not started.")
        self._turn = call = self._child.begin(self._number, "turn", (turn, tuple(history)))
        try:
            yield from self._watch(call)
        finally:
            call.leave()

    def cancel(self, heard_s: float | None = None) -> None:
        """See ``Talker.cancel``."""
        if self._turn is not None:
            self._turn.cancel(heard_s)

    def close(self) -> None:
        """See ``Talker.close``; the process and its weights stay, for the next conversation."""
        for call in (self._start, self._turn):
            if call is not None:
                call.leave()
        self._tell("close")
        self._child = None
        self._process.leave(self._number, self._failed)

    def _watch(self, call: _Call) -> Iterator[TalkerEvent]:
        try:
            yield from call
        except TalkerError as error:
            self._failed = error.lasting
            raise

    def _tell(self, kind: str, *what: Any) -> None:
        if self._child is not None:
            self._child.send(_Order(self._number, kind, what=what))


class _Call:
    """A ``start`` or ``turn`` that goes on in the process; iterating gives its events."""

    def __init__(self, child: _Child, talker: int, number: int) -> None:
        self._child, self._talker, self._number = child, talker, number
        self._events: queue.SimpleQueue[TalkerEvent | _End] = queue.SimpleQueue()
        self._is_over = threading.Event()

    def put(self, event: TalkerEvent | _End) -> None:
        self._events.put(event)

    def cancel(self, heard_s: float | None) -> None:
        """End the iteration now, and the work as soon as it can; the talker is told even if all had been given."""
        self._is_over.set()
        self._events.put(_End())
        self._child.send(_Order(self._talker, "cancel", self._number, (heard_s,)))

    def leave(self) -> None:
        """As if it was called off, unless it is over."""
        if not self._is_over.is_set():
            self.cancel(None)

    def __iter__(self) -> Iterator[TalkerEvent]:
        while not isinstance(event := self._events.get(), _End):
            if self._is_over.is_set():
                return
            yield event
        if not self._is_over.is_set():
            self._is_over.set()
            if event.message is not None:
                raise TalkerError(event.message, event.lasting)


class _Child:
    """One life of the process, seen from outside."""

    def __init__(self, build: Callable[[], Talker], threads: int, title: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks and a broken CUDA
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, build, threads), name="livetalk-talker", daemon=True
        )
        try:
            self._process.start()
        except OSError as error:
            raise TalkerError(f"{title} could not be started in a process of its own: {error}.") from error
        theirs.close()  # so that the end of the process is the end of the pipe
        self._title = title
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self.has_ended = False
        self._listener = threading.Thread(target=self._listen, name="livetalk-talker-pipe", daemon=True)
        self._listener.start()

    def begin(self, talker: int, kind: str, what: tuple[Any, ...]) -> _Call:
        """Begin a ``start`` or a ``turn``."""
        call = _Call(self, talker, number := next(self._numbers))
        with self._lock:
            self._calls[number] = call
            if self.has_ended:
                call.put(self._obituary())
        self.send(_Order(talker, kind, number, what))
        return call

    def send(self, order: _Order) -> None:
        """Tell the process; without effect if it has ended, because then its calls end by themselves."""
        with self._sending, contextlib.suppress(OSError, ValueError):
            self._pipe.send(order)

    def close(self) -> None:
        """End the process."""
        with self._sending, contextlib.suppress(OSError, ValueError):
            self._pipe.send(None)
        self._listener.join(CLOSING_S)
        if self._listener.is_alive():
            self._process.kill()
            self._listener.join(CLOSING_S)

    def _listen(self) -> None:
        """A thread's work: pass events on to their calls, until the process ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, event = self._pipe.recv()
                with self._lock:
                    call = self._calls.pop(number, None) if isinstance(event, _End) else self._calls.get(number)
                if call is not None:
                    call.put(event)
        self._process.join(CLOSING_S)
        with self._lock:
            self.has_ended = True
            for call in self._calls.values():
                call.put(self._obituary())
            self._calls.clear()
        with self._sending:
            self._pipe.close()

    def _obituary(self) -> _End:
        code = self._process.exitcode
        if not code:
            reason = "ended"
        elif code < 0:
            reason = f"was ended by signal {-code}" + (", perhaps because the memory ran out" if code == -9 else "")
        else:
            reason = f"crashed (code {code})"
        return _End(f"{self._title} stopped: its process {reason}.")


# --- inside the process -----------------------------------------------------------------------------


def _serve(pipe: Connection, build: Callable[[], Talker], threads: int) -> None:
    """The process: rooms for talkers, until the pipe ends."""
    torch.set_num_threads(threads)
    sending = threading.Lock()

    def send(number: int, event: TalkerEvent | _End) -> None:
        with sending:
            pipe.send((number, event))

    rooms: dict[int, _Room] = {}
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while (order := pipe.recv()) is not None:
            if order.talker not in rooms:
                rooms[order.talker] = _Room(build, send)
            rooms[order.talker].take(order)
            if order.kind == "close":
                del rooms[order.talker]
    # The models' threads may be anywhere: an orderly end of the interpreter would pull the ground from under them.
    os._exit(0)


class _Room:
    """One talker in the process, with the thread that drives it."""

    def __init__(self, build: Callable[[], Talker], send: Callable[[int, TalkerEvent | _End], None]) -> None:
        self._talker, self._send = build(), send
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._cancelled: dict[int, float | None] = {}
        self._latest = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True).start()

    def take(self, order: _Order) -> None:
        """Do as told, in order; but cancel at once."""
        if order.kind != "cancel":
            self._orders.put(order)
            return
        with self._lock:
            if order.call >= self._latest:
                self._cancelled[order.call] = order.what[0]
            if order.call == self._latest:
                self._talker.cancel(order.what[0])

    def _work(self) -> None:
        while (order := self._orders.get()).kind != "close":
            if order.call:
                with self._lock:
                    self._latest = order.call
                    self._cancelled = {call: heard_s for call, heard_s in self._cancelled.items() if call >= order.call}
                end = _End() if order.call in self._cancelled else self._run(order)
                self._send(order.call, end)
            else:
                self._run(order)
        self._talker.close()

    def _run(self, order: _Order) -> _End:
        try:
            if order.kind == "turn":
                self._answer(order)
            else:
                getattr(self._talker, order.kind)(*order.what)
        except TalkerError as error:
            return _End(str(error), error.lasting)
        except Exception as error:  # the process lives on; whether the talker does, nobody can know
            logger.exception("%s crashed", self._talker.name)
            line = (str(error).splitlines() or [""])[0]
            return _End(f"{self._talker.title} crashed: {type(error).__name__} {line[:200]}".rstrip() + ".")
        return _End()

    def _answer(self, order: _Order) -> None:
        for number, event in enumerate(self._talker.turn(*order.what)):
            if order.call not in self._cancelled:
                self._send(order.call, event)
            elif number == 0:  # the cancel may have come before there was a turn to cancel
                self._talker.cancel(self._cancelled[order.call])
