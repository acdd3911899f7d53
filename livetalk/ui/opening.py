"""A session as it begins or goes on, told in plain data: wherever its pictures are made, it is opened here.

This module knows neither who asks for it nor how the words travelled.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from livetalk.media.pictures import PortraitSource
from livetalk.stream.avatar import Avatar
from livetalk.stream.session import Session
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers.registry import Visitor
from livetalk.ui.visit import LiveConversation, LiveSession, Talk, TalkerChain


@dataclass(frozen=True)
class Opening:
    """A session that was never on.

    Attributes:
        portrait: a face; on its way to another process uint8 ``[H, W, 3]`` of the model's size.
        prompt: how the person moves and feels.
        seed: of everything random.
        mode: "mirror" or "conversation".
        backlog_s: sound that may wait in a mirror.
        talk: what the visitor wants of a conversation.
    """

    portrait: PortraitSource
    prompt: str
    seed: int
    mode: str
    backlog_s: float
    talk: Talk


class RemoteConversation(LiveConversation, Protocol):
    """A conversation whose pictures are made in another process, where its face is drawn anew, too."""

    def draw(self, portrait: np.ndarray | None, prompt: str) -> None:
        """Another face (uint8 ``[H, W, 3]``), or the same one (None) under other words."""


class Elsewhere(Protocol):
    """Where sessions are opened if not in this process."""

    @property
    def places(self) -> int:
        """How many sessions may be on now."""

    def open(self, opening: Opening) -> LiveSession:
        """A session begins; one that converses is a ``RemoteConversation``.

        Raises:
            LiveTalkError: no talker can work, or the portrait cannot be used.
        """


def opened(
    avatar: Avatar, talkers: TalkerChain, source: Opening | SessionSnapshot, talk: Talk, backlog_s: float
) -> Session:
    """A session of this process.

    Args:
        avatar: who draws.
        talkers: makes the talkers of a conversation.
        source: how it begins, or where it goes on.
        talk: what the visitor wants of a conversation, as of now.
        backlog_s: sound that may wait in a mirror.

    Raises:
        LiveTalkError: no talker can work, or the portrait cannot be used.
    """
    chain = talkers(talk.talker, Visitor(talk.token)) if source.mode == "conversation" else ()
    if isinstance(source, SessionSnapshot):
        return avatar.resume(source, chain, backlog_s)
    if source.mode == "conversation":
        return avatar.conversation(source.portrait, source.prompt, source.seed, chain, talk.persona)
    return avatar.session(source.portrait, source.prompt, source.seed, source.mode, backlog_s)


def redraw(avatar: Avatar, session: TalkSession, portrait: PortraitSource | None, prompt: str) -> None:
    """Draw another face, or the same one (None) under other words, in this process.

    Raises:
        LiveTalkError: the portrait cannot be used.
    """
    blank = np.zeros((avatar.preset.height, avatar.preset.width, 3), np.uint8)
    identity = avatar.identity(blank if portrait is None else portrait, prompt)
    if portrait is None:
        identity = dataclasses.replace(session.identity, text=identity.text)
    session.change(identity)
