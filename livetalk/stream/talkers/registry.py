"""Which talkers there are, which of them can work here, and who takes over from whom.

A choice is a name, or "auto": the best this machine can run without being asked to download anything. Behind every
choice stands the offline talker, so that a conversation can always go on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

try:
    from livetalk.stream.talkers.offline import OfflineTalker
except ImportError:
    OfflineTalker = None
from livetalk.stream.talkers.protocol import Talker
from livetalk.types import LiveTalkError

TALKER_VARIABLE = "LIVETALK_TALKER"
AUTO = "auto"


@dataclass(frozen=True)
class Visitor:
    """What a talker may need to know of the visitor it works for.

    Attributes:
        token: of the visitor at the Hugging Face Hub; None = the machine's own, if there is one.
    """

    token: str | None = None


@dataclass(frozen=True)
class Choice:
    """A talker that can be chosen.

    Attributes:
        name: as in ``--talker``.
        label: one line for people.
        make: makes one, for one conversation.
        missing: why it cannot work here, in a sentence; None = it can.
    """

    name: str
    label: str
    make: Callable[[Visitor], Talker]
    missing: Callable[[Visitor], str | None]


CHOICES: tuple[Choice, ...] = (
    Choice("offline", "Offline: a few topics, no network", lambda _: OfflineTalker(), lambda _: None),
)


def choice(name: str) -> Choice:
    """The choice of that name.

    Raises:
        LiveTalkError: there is none.
    """
    for one in CHOICES:
        if one.name == name:
            return one
    names = ", ".join((AUTO, *(one.name for one in CHOICES)))
    raise LiveTalkError(f"There is no talker {name[:40]!r}. Known talkers: {names}.")


def default_name() -> str:
    """What ``LIVETALK_TALKER`` says, or "auto"."""
    return os.environ.get(TALKER_VARIABLE) or AUTO


def talker_chain(name: str | None = None, visitor: Visitor | None = None) -> list[Talker]:
    """Talkers for one conversation, the preferred one first, the offline one last.

    Args:
        name: of a choice; None = ``default_name()``.
        visitor: who it is for.

    Raises:
        LiveTalkError: there is no such talker, or the one that was asked for by name cannot work here.
    """
    visitor = visitor or Visitor()
    name = name or default_name()
    offline = choice("offline")
    if name == AUTO:
        able = [one for one in CHOICES if one is not offline and one.missing(visitor) is None]
        return [one.make(visitor) for one in (*able[:1], offline)]
    wanted = choice(name)
    if (reason := wanted.missing(visitor)) is not None:
        raise LiveTalkError(f"The talker {name!r} cannot work here: {reason}")
    return [one.make(visitor) for one in ([wanted] if wanted is offline else [wanted, offline])]
