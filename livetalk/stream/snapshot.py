"""A session at rest: what another process needs to go on with it, as small CPU tensors and plain data.

Everything here can be pickled and holds no lock, thread, device memory or file. What is large is not in it but made
again from what is: the cache from the latents it was filled with, the decoder's memory from the newest of them. The
size does not depend on how long the session has lasted, except for the words of a conversation.

This module knows nothing of how sessions are run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields

from livetalk.stream.past import StreamSnapshot
from livetalk.stream.reply import Line
from livetalk.stream.talkers.protocol import Persona


@dataclass(frozen=True)
class ConversationSnapshot:
    """The words' side.

    Attributes:
        persona: who the avatar is.
        lines: the transcript; every line is final.
        replies: how many replies were begun.
    """

    persona: Persona
    lines: tuple[Line, ...]
    replies: int


@dataclass(frozen=True)
class SessionSnapshot:
    """A whole session.

    Attributes:
        mode: "mirror" or "conversation".
        elapsed_s: since the session was opened.
        stream: the pictures.
        conversation: the words; None = it is a mirror.
    """

    mode: str
    elapsed_s: float
    stream: StreamSnapshot
    conversation: ConversationSnapshot | None = None

    def __reduce__(self) -> tuple[Callable[[bytes], SessionSnapshot], tuple[bytes]]:
        """Pickles as one piece of bytes.

        Queues of ``multiprocessing`` would hand its tensors over as open files, which are gone with the process that
        made them.
        """
        return _unpacked, (pickle.dumps({one.name: getattr(self, one.name) for one in fields(self)}),)


def _unpacked(data: bytes) -> SessionSnapshot:
    return SessionSnapshot(**pickle.loads(data))
