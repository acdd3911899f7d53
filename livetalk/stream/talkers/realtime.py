"""The realtime talker: one server that hears, thinks and speaks, over a WebSocket in OpenAI's Realtime protocol.

The visitor's sound is streamed to the server while it is still being said; the end of the turn is ours to find (unless
``server_vad``): commit, then ask for a reply. The server keeps the conversation; after a lost connection a new one is
told the history.

* ``Heard`` comes first, but servers write down the visitor's words beside the reply, often later, some never. So
  ``Heard(UNKNOWN_WORDS)`` comes when the reply begins, and ``Heard`` again when the words are known.
* What was committed cannot be unheard by every server. Turns are therefore not begun on a guess unless
  ``RealtimeConfig.speculative`` says that the server can delete items; ``cancel()`` asks for that in any case.
* Replies come faster than they are played. ``cancel(heard_s)`` therefore also counts after the reply has come to its
  end here: the server is told how much of it was heard.
* A connection that breaks is replaced once in a turn. If the reply had begun to sound, the server is asked to go on.

This module does not know what travels on the wire (``realtime_events``), how (``realtime_link``), nor what makes up a
turn (``realtime_turn``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np

from livetalk.stream.talkers.background import CLOSE_S, Answer, Background
from livetalk.stream.talkers.protocol import Message, Persona, TalkerError, TalkerEvent, VisitorTurn
from livetalk.stream.talkers.realtime_events import RealtimeConfig
from livetalk.stream.talkers.realtime_link import Exchange
from livetalk.stream.talkers.realtime_server import Server
from livetalk.stream.talkers.realtime_turn import RealtimeTurn
from livetalk.stream.talkers.settings import from_environment

VARIABLES = "LIVETALK_REALTIME_"


def missing(config: RealtimeConfig | None = None) -> str | None:
    """Why the realtime talker cannot work here, in a sentence; None = it can, as far as one knows without asking."""
    config = config or from_environment(RealtimeConfig, VARIABLES)
    return (
        None if config.url else "It needs a server. Set LIVETALK_REALTIME_URL to its address (ws://... or wss://...)."
    )


class RealtimeTalker:
    """A conversation with one Realtime server; see the module's docstring.

    Args:
        config: None = from the environment (``LIVETALK_REALTIME_URL``, ``LIVETALK_REALTIME_KEY`` ...).
    """

    name = "realtime"

    def __init__(self, config: RealtimeConfig | None = None) -> None:
        self.config = config or from_environment(RealtimeConfig, VARIABLES)
        self.title = f"{self.config.model or 'Realtime'} at {self.config.place}"
        self.speculative = self.config.speculative
        self._server = Server(self.config)
        self._persona: Persona | None = None  # the one the server was told
        self._background: Background | None = None
        self._heard: list[np.ndarray] = []  # what ``hear`` brought of the turn that is going on
        self._answer: Answer | None = None
        self._exchange: Exchange | None = None

    def start(self, persona: Persona) -> None:
        """Connect and say who the server is to be. A new persona means a new connection, which is told the history.

        Raises:
            TalkerError: no server is set, it cannot be reached, or it refuses.
        """
        reason = missing(self.config)
        if reason is not None:
            raise TalkerError(f"The realtime talker cannot work here. {reason}")
        if persona == self._persona:
            return
        background = self._background or Background("livetalk-realtime")
        try:
            background.spawn(self._server.connect(persona)).result()
        except TalkerError:
            background.close()
            self._background = self._persona = None
            raise
        self._background, self._persona = background, persona

    def hear(self, samples: np.ndarray) -> None:
        """Pass the sound on to the server; see ``Talker.hear``."""
        if self._background is not None and not self.config.server_vad:
            self._heard.append(samples)
            self._background.post(lambda: self._server.append(samples))

    def forget(self) -> None:
        """Empty the server's buffer."""
        self._heard = []
        if self._background is not None:
            self._background.post(self._server.clear)

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Answer; see ``Talker.turn``. The work begins at once, not with the first ``next``.

        Raises:
            TalkerError: from the iterator: the server failed.
        """
        if self._background is None:
            raise TalkerError("The realtime talker has not been started.")
        streamed = np.concatenate([np.zeros(0, np.float32), *self._heard])
        self._heard = []
        answer = Answer()
        work = RealtimeTurn(self._server, turn, list(history), streamed, answer)
        self._answer, self._exchange = answer, work.exchange
        self._background.begin(answer, work.run())
        return iter(answer)

    def cancel(self, heard_s: float | None = None) -> None:
        """End the running turn, and tell the server what was heard of it; see the module's docstring."""
        answer, exchange, background = self._answer, self._exchange, self._background
        if answer is not None and exchange is not None and background is not None:
            answer.cancel()  # whoever waits for the answer may close this talker now
            background.post(lambda: self._server.withdraw(exchange, heard_s))

    def close(self) -> None:
        """Leave the server."""
        if self._answer is not None:
            self._answer.cancel()
        background, self._background = self._background, None
        if background is not None:
            with contextlib.suppress(FutureTimeoutError):
                background.spawn(self._server.drop()).result(CLOSE_S)
            background.close()
