"""The Realtime server as a talker knows it: a connection that is replaced when it is lost, and what it is told.

Runs on the talker's loop. This module does not know how a turn is asked for; see ``realtime_turn``.
"""

from __future__ import annotations

import numpy as np

from livetalk.stream.talkers import realtime_events as say
from livetalk.stream.talkers.protocol import Persona
from livetalk.stream.talkers.realtime_events import RealtimeConfig
from livetalk.stream.talkers.realtime_link import Exchange, Link


class Server:
    """The server and the connection to it, if there is one; everything but the constructor runs on the loop."""

    def __init__(self, config: RealtimeConfig) -> None:
        self.config = config
        self._persona = Persona()
        self._link: Link | None = None

    async def connect(self, persona: Persona) -> Link:
        """A new connection in place of the old one.

        Raises:
            TalkerError: nobody answers, the key is refused, or it is no such server.
        """
        self._persona = persona
        await self.drop()
        self._link = await Link.open(self.config, persona)
        return self._link

    async def link(self) -> Link:
        """The connection, replaced if it was lost.

        Raises:
            TalkerError: the server cannot be reached.
        """
        if self._link is None or self._link.lost:
            return await self.connect(self._persona)
        return self._link

    async def drop(self) -> None:
        """Leave. A connection on which something failed is not used again: who knows what the server remembers."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def append(self, samples: np.ndarray) -> None:
        """Sound of a turn that is still going on."""
        if self._link is not None and not self._link.lost:
            self._link.append(samples)

    def clear(self) -> None:
        """That sound belongs to no turn."""
        if self._link is not None:
            self._link.clear()

    def withdraw(self, exchange: Exchange, heard_s: float | None) -> None:
        """Stop the server's reply and cut its memory to what was heard; None = it was only a guess."""
        link, exchange.live = self._link, False
        if link is None or link.lost or link.current is not exchange:
            return
        if exchange.asked and not exchange.done:
            named = {"response_id": exchange.reply} if exchange.reply else {}
            link.post({"type": "response.cancel", **named})
        elif heard_s is None and exchange.done and not self.config.speculative:
            return  # it is over, and nobody guesses here
        if heard_s is not None:
            rate = self.config.output_rate
            for event in say.cut_to(exchange.items, heard_s - exchange.former_samples / rate, rate):
                link.post(event)
        elif not exchange.unheard:
            exchange.unheard = True
            for item in (*reversed(exchange.items), *filter(None, [exchange.visitor_item])):
                link.post(say.delete(item))
        exchange.items.clear()
