"""LiveTalk: a portrait that listens, answers and moves its lips, live.

The public names are ``load``, ``Avatar``, ``Session``, ``Performer`` and ``LiveTalkError``. Importing the package is
cheap: a name's module, and with it torch, is loaded when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from livetalk._version import __version__

if TYPE_CHECKING:
    from livetalk.stream.avatar import Avatar, load
    from livetalk.stream.performer import Performer
    from livetalk.stream.session import Session
    from livetalk.types import LiveTalkError

__all__ = ["Avatar", "LiveTalkError", "Performer", "Session", "__version__", "load"]

_HOMES = {
    "Avatar": "livetalk.stream.avatar",
    "LiveTalkError": "livetalk.types",
    "Performer": "livetalk.stream.performer",
    "Session": "livetalk.stream.session",
    "load": "livetalk.stream.avatar",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'livetalk' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
