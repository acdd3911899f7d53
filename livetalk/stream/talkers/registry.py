"""Which talkers there are, which of them can work here, and who takes over from whom.

A choice is a name, or "auto": the best this machine can run by itself. "auto" never sends a visitor's voice to somebody
else's server unless the operator named that server. Behind every choice stands the offline talker, so that a
conversation can always go on. Talkers that load models share one process each.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from livetalk.stream.talkers import hosted, realtime
from livetalk.stream.talkers.apart import TalkerProcess
from livetalk.stream.talkers.gemma import LARGE, gemma_talker, why_not_gemma
from livetalk.stream.talkers.hosted import HostedTalker
from livetalk.stream.talkers.offline import OfflineTalker
from livetalk.stream.talkers.protocol import SpeechPiece, Talker
from livetalk.stream.talkers.qwen_omni import omni_talker, why_not_omni
from livetalk.stream.talkers.realtime import RealtimeTalker
from livetalk.stream.talkers.spoken import SpokenVoice, speak_reply
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
        is_automatic: "auto" may choose it.
    """

    name: str
    label: str
    make: Callable[[Visitor], Talker]
    missing: Callable[[Visitor], str | None]
    is_automatic: bool = True


def _last_resort(clause: str) -> Iterable[SpeechPiece]:
    """The voice of a hosted talker whose own voice cannot be had."""
    return (piece for piece in speak_reply(SpokenVoice(), clause) if isinstance(piece, SpeechPiece))


@functools.cache
def _shared(build: Callable[[], Talker]) -> TalkerProcess:
    """The process of a talker whose model is loaded once for all visitors."""
    return TalkerProcess(build)


def _local(
    name: str, label: str, build: Callable[[], Talker], missing: Callable[[], str | None], automatic: bool
) -> Choice:
    """A talker with a model on this machine, in a process of its own."""

    def why(_: Visitor) -> str | None:
        if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"):
            return "On ZeroGPU a GPU is lent for seconds, and this model would have to be loaded for every answer."
        # once it runs, its weights fill the memory that is asked for
        return None if _shared(build).is_running else missing()

    return Choice(name, label, lambda _: _shared(build).talker(), why, automatic)


_large_gemma = functools.partial(gemma_talker, LARGE)

CHOICES: tuple[Choice, ...] = (
    Choice("realtime", "A realtime server", lambda _: RealtimeTalker(), lambda _: realtime.missing()),
    _local("gemma-e4b", "Gemma 4 E4B", _large_gemma, functools.partial(why_not_gemma, LARGE), True),
    _local("gemma", "Gemma 4 E2B", gemma_talker, why_not_gemma, True),
    _local("qwen3-omni", "Qwen3-Omni", omni_talker, why_not_omni, False),
    Choice(
        "hosted",
        "Hosted (Hugging Face)",
        lambda visitor: HostedTalker(visitor.token, speak=_last_resort),
        lambda visitor: hosted.missing(visitor.token),
        False,
    ),
    Choice("offline", "Offline: a few topics, no network", lambda _: OfflineTalker(), lambda _: None),
)
"""In the order in which "auto" asks."""


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
        name: of a choice, or "auto"; None = ``default_name()``.
        visitor: who it is for.

    Raises:
        LiveTalkError: there is no such talker, or the one that was asked for by name cannot work here.
    """
    visitor = visitor or Visitor()
    name = name or default_name()
    offline = choice("offline")
    if name == AUTO:
        able = (one for one in CHOICES if one.is_automatic and one.missing(visitor) is None)
        wanted = next(able, offline)
    else:
        wanted = choice(name)
        if (reason := wanted.missing(visitor)) is not None:
            raise LiveTalkError(f"The talker {name!r} cannot work here: {reason}")
    return [one.make(visitor) for one in ([wanted] if wanted is offline else [wanted, offline])]
