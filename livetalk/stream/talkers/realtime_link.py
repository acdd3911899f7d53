"""One connection to a Realtime server: opened, kept in step with the replies that run on it, and lost.

Everything here runs on the talker's loop. Sending never waits: events go into a queue that one task empties, so that a
cancel is on its way at once and everything leaves in order. Arriving events are given to the turn they belong to; those
of a reply that was cancelled go nowhere, however late they come. This module does not know what a turn does with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
from collections import deque
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from livetalk.media.sound import StreamResampler
from livetalk.stream.talkers import realtime_events as say
from livetalk.stream.talkers.protocol import Persona, TalkerError
from livetalk.stream.talkers.realtime_events import Event, RealtimeConfig
from livetalk.types import MODEL_RATE

logger = logging.getLogger(__name__)

LARGEST_EVENT_BYTES = 16 * 2**20
_APPEND_S = 0.5
_CLOSE_S = 0.5
_REMEMBERED = 32


class LinkLostError(Exception):
    """The connection is gone."""


class Exchange:
    """One turn as the server sees it: what it calls the visitor's sound and the reply, and how much of that came.

    Attributes:
        inbox: events of this turn; None = the connection is lost.
        live: it is going on.
        unheard: it was only a guess: its items are deleted, also those that the server names later.
        asked: a reply was asked for.
        done: the reply came to its end.
        reply: the server's name of the reply.
        visitor_item: the server's name of what the visitor said.
        items: samples that came, by the server's name of the reply's items, in order.
        former_samples: samples that came on a connection that was lost.
    """

    def __init__(self) -> None:
        self.live, self.unheard = True, False
        self.items: dict[str, int] = {}
        self.former_samples = 0
        self.begin()

    def begin(self) -> None:
        """On a new connection nothing has been asked yet."""
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        self.asked = self.done = False
        self.reply: str | None = None
        self.visitor_item: str | None = None
        self.former_samples += sum(self.items.values())
        self.items = {}


class Link:
    """A connection that has been greeted; made by ``Link.open``.

    Attributes:
        current: the turn that is going on, or the last one.
        appended: samples of the visitor (at ``MODEL_RATE``) that lie in the server's buffer.
        fresh: the server does not know the conversation yet.
        transcribes: the server writes down what it hears.
        lost: the connection is gone.
        refusal: the sentence if the server closed it on purpose.
    """

    def __init__(self, socket_: ClientConnection, config: RealtimeConfig) -> None:
        self._socket, self._config = socket_, config
        self._numbers = itertools.count(1)
        self._outbox: asyncio.Queue[Event] = asyncio.Queue()
        self._greetings: asyncio.Queue[Event | None] | None = asyncio.Queue()
        self._commits: deque[Exchange] = deque()  # sound that the server has not named yet
        self._visitor_items: deque[str] = deque(maxlen=_REMEMBERED)
        self._awaiting: deque[Exchange] = deque()  # replies that the server has not named yet
        self._replies: dict[str, Exchange | None] = {}  # replies that run, or whose end never came
        self._idle = asyncio.Event()
        self._idle.set()
        self._resampler = StreamResampler(MODEL_RATE, config.input_rate)
        self._tasks: list[asyncio.Task[None]] = []
        self.current: Exchange | None = None
        self.appended = 0
        self.fresh, self.lost, self.transcribes = True, False, False
        self.refusal: TalkerError | None = None

    @classmethod
    async def open(cls, config: RealtimeConfig, persona: Persona) -> Link:
        """Connect, greet, and tell the server who it is.

        Raises:
            TalkerError: nobody answers, the key is refused, or it is no such server.
        """
        try:
            socket_ = await connect(
                config.address,
                additional_headers=config.headers,
                compression=None,
                open_timeout=config.open_s,
                max_size=LARGEST_EVENT_BYTES,
            )
        except (OSError, asyncio.TimeoutError, WebSocketException) as error:
            raise _unreachable(error, config) from error
        link = cls(socket_, config)
        link._tasks = [asyncio.create_task(link._receive()), asyncio.create_task(link._send())]
        try:
            await link._greet(persona)
        except BaseException:
            await link.close()
            raise
        return link

    async def _greet(self, persona: Persona) -> None:
        greetings = self._greetings
        assert greetings is not None, "greeted once"
        await self._greeting(greetings, "session.created", self._config.open_s)
        self.post(say.session_update(self._config, persona))
        try:
            await self._greeting(greetings, "session.updated", self._config.settle_s)
        except asyncio.TimeoutError:
            logger.info("the server did not confirm its settings")  # not every one does
        self._greetings = None

    async def _greeting(self, greetings: asyncio.Queue[Event | None], wanted: str, limit_s: float) -> None:
        """Wait for an event of the session's beginning.

        Raises:
            TalkerError: an error came instead, the connection was closed, or there was no greeting at all.
            asyncio.TimeoutError: another wanted event did not come.
        """
        place, event = self._config.place, None
        try:
            while event is None or say.kind_of(event) != wanted:
                event = await asyncio.wait_for(greetings.get(), limit_s)
                if event is None:
                    raise self.refusal or TalkerError(f"{place} closed the connection at once. Check URL and model.")
                if say.kind_of(event) == "error":
                    raise say.complaint(event, place)
        except asyncio.TimeoutError as error:
            if wanted == "session.created":
                raise TalkerError(f"{place} does not greet. Expected a server of the Realtime protocol.") from error
            raise

    async def close(self) -> None:
        """Leave; events that were posted are dropped."""
        self._lose()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._socket.close(), _CLOSE_S)
        self._socket.transport.abort()

    # --- sending ---

    def post(self, event: Event) -> str:
        """Send an event as soon as those before it are sent; returns its id."""
        name = f"livetalk_{next(self._numbers)}"
        self._outbox.put_nowait({"event_id": name, **event})
        return name

    def append(self, samples: np.ndarray, last: bool = False) -> None:
        """Put sound (float32 at ``MODEL_RATE``) into the server's buffer; ``last`` brings out what resampling holds."""
        self.appended += len(samples)
        sound = self._resampler.push(samples)
        if last:
            sound = np.concatenate([sound, self._resampler.finish()])
        step = int(_APPEND_S * self._config.input_rate)
        for at in range(0, len(sound), step):
            self.post(say.append(sound[at : at + step]))

    def clear(self) -> None:
        """Empty the server's buffer."""
        if self.appended:
            self.post({"type": "input_audio_buffer.clear"})
        self.forget_buffer()

    def forget_buffer(self) -> None:
        """The server's buffer is empty."""
        self.appended = 0
        self._resampler = StreamResampler(MODEL_RATE, self._config.input_rate)

    def commit(self, exchange: Exchange) -> str:
        """What lies in the server's buffer is the visitor's part of ``exchange``; returns the event's id."""
        self._commits.append(exchange)
        self.forget_buffer()
        return self.post({"type": "input_audio_buffer.commit"})

    def expect(self, exchange: Exchange) -> None:
        """The next reply that the server names belongs to ``exchange``."""
        exchange.asked = True
        self._awaiting.append(exchange)
        self._idle.clear()

    async def settled(self, limit_s: float) -> None:
        """Wait until no reply runs, since servers make one at a time; after ``limit_s`` it is taken for over."""
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except asyncio.TimeoutError:
            logger.info("the server did not confirm the end of a reply")
            self._awaiting.clear()
            self._replies = dict.fromkeys(list(self._replies)[-_REMEMBERED:])
            self._idle.set()

    # --- receiving ---

    async def _send(self) -> None:
        try:
            while True:
                await self._socket.send(json.dumps(await self._outbox.get()))
        except ConnectionClosed:
            self._lose()

    async def _receive(self) -> None:
        try:
            async for text in self._socket:
                event = _parsed(text)
                if event is not None:
                    self._deliver(event)
        except ConnectionClosed:
            pass
        code, reason = self._socket.close_code, self._socket.close_reason or ""
        self.refusal = say.refused_close(code, reason, self._config.place)
        self._lose()

    def _lose(self) -> None:
        if self.lost:  # the turn may be on another connection by now
            return
        self.lost = True
        self._idle.set()
        if self._greetings is not None:
            self._greetings.put_nowait(None)
        if self.current is not None:
            self.current.inbox.put_nowait(None)

    def _deliver(self, event: Event) -> None:
        """Give an event to the turn it belongs to."""
        kind, reply, item = say.kind_of(event), say.response_of(event), event.get("item_id")
        if self._greetings is not None:
            self._greetings.put_nowait(event)
            return
        exchange = self.current
        if reply is not None:
            exchange = self._owner(reply)
            if kind == "response.output_item.added" and exchange is not None:
                self._name_reply_item(exchange, str((event.get("item") or {}).get("id")))
            elif kind == "response.done":
                self._finish(reply)
        elif kind == "input_audio_buffer.committed":
            exchange = self._commits.popleft() if self._commits else exchange
            self._name_visitor_item(exchange, str(item))
        elif kind.startswith(say.TRANSCRIPTION):
            self.transcribes = True
            if not self._is_current(item):
                return
        if exchange is not None and exchange.live:
            exchange.inbox.put_nowait(event)
        elif kind == "error":
            logger.info("the realtime server complained: %s", event.get("error"))

    def _owner(self, reply: str) -> Exchange | None:
        """The turn whose reply has this name; the first event of a reply settles it."""
        if reply not in self._replies:
            self._replies[reply] = self._awaiting.popleft() if self._awaiting else None
        exchange = self._replies[reply]
        if exchange is not None:
            exchange.reply = reply
        return exchange

    def _finish(self, reply: str) -> None:
        ended = self._replies.pop(reply)
        if ended is not None:
            ended.done = True
        if not self._awaiting and not any(self._replies.values()):
            self._idle.set()

    def _name_visitor_item(self, exchange: Exchange | None, item: str) -> None:
        self._visitor_items.append(item)
        if exchange is not None:
            exchange.visitor_item = item
            if exchange.unheard:
                self.post(say.delete(item))

    def _name_reply_item(self, exchange: Exchange, item: str) -> None:
        if exchange.unheard:
            self.post(say.delete(item))
        else:
            exchange.items.setdefault(item, 0)

    def _is_current(self, item: Any) -> bool:
        """Whether a transcript is of this turn's sound, not a late one of an earlier turn."""
        mine = self.current.visitor_item if self.current is not None else None
        return item == mine if mine is not None else item not in self._visitor_items


def _parsed(text: str | bytes) -> Event | None:
    """An event, or None for what is none."""
    try:
        event: Any = json.loads(text)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        logger.warning("the realtime server sent something that is no event")
        return None
    return event


def _unreachable(error: Exception, config: RealtimeConfig) -> TalkerError:
    """The sentence for a connection that could not be opened."""
    place = config.place
    if isinstance(error, InvalidStatus):
        return say.refused_handshake(error.response.status_code, place)
    if isinstance(error, InvalidURI):
        return TalkerError(f"{config.url[:80]!r} is no address of a realtime server. Expected ws://... or wss://...")
    if isinstance(error, InvalidHandshake):
        return TalkerError(f"{place} does not speak the Realtime protocol. Check LIVETALK_REALTIME_URL.")
    if isinstance(error, socket.gaierror):
        reason = "its address was not found"
    elif isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        reason = f"it did not answer within {config.open_s:g} s"
    else:
        reason = "nobody answers there"
    return TalkerError(f"{place} cannot be reached: {reason}. Check the network and LIVETALK_REALTIME_URL.")
