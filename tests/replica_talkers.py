"""Talkers for replicas; a module of its own, because their processes import it."""

from __future__ import annotations

from livetalk.stream.talkers.protocol import Heard, Message
from livetalk.types import LiveTalkError
from tests.test_conversation import Scripted, words


def remembering(turn, history: list[Message]) -> list:
    """An answer that tells what was asked before."""
    return [Heard(turn.text or "hm"), *words([one.text for one in history if one.role == "visitor"] + ["so far"])]


def scripted(name, visitor) -> list[Scripted]:
    if name:
        raise LiveTalkError(f"There is no talker {name!r} here.")
    return [Scripted(remembering)]
