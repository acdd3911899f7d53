"""Word to a worker that runs already: a Unix socket, because nothing can be passed to a ZeroGPU call once it runs.

One side keeps everything it said, in order, and never waits for the other; the other side deals with one message after
the other in a thread of its own. This module does not know what the messages mean.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

Message = tuple[str, tuple[Any, ...]]
"""A verb and its arguments; plain data and numpy arrays."""

log = logging.getLogger(__name__)


class Wire:
    """The side that speaks; any thread. One worker hears it.

    The socket lies in a folder that only this user can open, and who hears must know the key: what is said is
    unpickled by the hearer.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="livetalk-")
        self.address = str(Path(self._folder) / "wire")
        self.key = secrets.token_bytes(32)
        self._listener = Listener(self.address, "AF_UNIX", authkey=self.key)
        self._said: list[Message] = []
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._serve, name="livetalk-wire", daemon=True).start()

    def say(self, verb: str, *arguments: Any) -> None:
        """Tell the worker, once it hears; never waits."""
        with self._changed:
            self._said.append((verb, arguments))
            self._changed.notify_all()

    def unheard(self, taken: int) -> list[Message]:
        """What was said after the first ``taken`` messages."""
        with self._changed:
            return self._said[taken:]

    def close(self) -> None:
        """Nothing more is said; the socket is gone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as nobody:
            nobody.connect(self.address)  # whoever still waits for the worker is woken
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        try:
            with self._listener.accept() as line:
                self._tell(line)
        except (OSError, EOFError, AuthenticationError):
            log.debug("nobody hears the wire any more")

    def _tell(self, line: Connection) -> None:
        for told in itertools.count():
            with self._changed:
                while len(self._said) <= told:
                    if self._closed:
                        return
                    self._changed.wait()
                message = self._said[told]
            line.send(message)


class Hearing:
    """The side that hears.

    Args:
        address: of the wire.
        key: of the wire.
        deal: is given every message, in a thread of its own; ``("stop", ())`` when the speaker has gone.
    """

    def __init__(self, address: str, key: bytes, deal: Callable[[Message], None]) -> None:
        self._line = Client(address, "AF_UNIX", authkey=key)
        self._deal = deal
        self.taken = 0
        """How many messages were dealt with."""
        threading.Thread(target=self._hear, name="livetalk-hearing", daemon=True).start()

    def _hear(self) -> None:
        with contextlib.suppress(EOFError, OSError), self._line:
            while True:
                message = self._line.recv()
                self._deal(message)
                self.taken += 1
        self._deal(("stop", ()))
