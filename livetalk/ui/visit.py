"""One visitor's session with what belongs to it: wishes, and a recording if there is one.

This module does not know who else is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from livetalk.stream.recorder import Recorder
from livetalk.stream.reply import Transcript
from livetalk.stream.talkers.protocol import Persona, Talker
from livetalk.stream.talkers.registry import Visitor
from livetalk.types import LiveTalkError, Pictures

log = logging.getLogger(__name__)

TalkerChain = Callable[[str | None, Visitor], Sequence[Talker]]
"""Makes the talkers of a conversation from the name of a choice."""


class LiveSession(Protocol):
    """What the page needs of a session, wherever its pictures are made; see ``livetalk.stream.session.Session``."""

    @property
    def state(self) -> str: ...  # noqa: D102

    @property
    def generation(self) -> int: ...  # noqa: D102

    @property
    def real_time_factor(self) -> float | None: ...  # noqa: D102

    def listen(self, samples: np.ndarray, rate: int) -> None: ...  # noqa: D102

    def play(self, samples: np.ndarray, rate: int) -> None: ...  # noqa: D102

    def interrupt(self) -> int: ...  # noqa: D102

    def stop(self) -> None: ...  # noqa: D102

    def pictures(self) -> Iterator[Pictures]: ...  # noqa: D102

    def facts(self) -> dict[str, Any]: ...  # noqa: D102


class Words(Protocol):
    """What the page needs of a conversation; see ``livetalk.stream.conversation.Conversation``."""

    is_voice_on: bool
    is_suspected: bool

    @property
    def transcript(self) -> Transcript: ...  # noqa: D102

    def change_persona(self, persona: Persona) -> None: ...  # noqa: D102


class LiveConversation(LiveSession, Protocol):
    """The same of a conversation; see ``livetalk.stream.talk.TalkSession``."""

    @property
    def conversation(self) -> Words: ...  # noqa: D102

    def write(self, text: str) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Talk:
    """What a visitor wants of a conversation.

    Attributes:
        talker: name of a choice; None = the default.
        persona: who the avatar is.
        token: of the visitor at the Hugging Face Hub, for hosted talkers.
        keeps: a recording is wanted.
    """

    talker: str | None = None
    persona: Persona = field(default_factory=Persona)
    token: str | None = None
    keeps: bool = False


@dataclass(frozen=True)
class Kept:
    """What a visitor asked to keep: the closed recording, and the conversation as text."""

    recorder: Recorder
    transcript: str


@dataclass
class Visit:
    """One session that is on, and what belongs to it.

    Attributes:
        session: the stream.
        mode: "mirror" or "conversation".
        talk: what the visitor wants of a conversation, as of now.
        prompt: how the person moves and feels, as of now.
        lead_s: pictures are handed out at most this much before they are on screen.
        keeps: a recording is wanted, as of now.
        beat_at_s: when its page last said that it was there; None = it never did, it may be a program.
        recorder: what is being recorded.
    """

    session: LiveSession
    mode: str
    talk: Talk
    prompt: str
    lead_s: float
    keeps: bool
    beat_at_s: float | None = None
    recorder: Recorder | None = None

    def conversing(self) -> LiveConversation:
        """The session, if it is a conversation.

        Raises:
            LiveTalkError: it is a mirror.
        """
        if self.mode != "conversation":
            raise LiveTalkError('This session mirrors speech, it does not converse. Open one with mode "conversation".')
        return cast(LiveConversation, self.session)

    def record(self, piece: Pictures) -> None:
        """Keep what is shown, if that is wanted; called in the thread that takes the pictures."""
        if self.recorder is not None and not self.keeps:
            self.recorder.discard()
            self.recorder = None
        if self.keeps and self.recorder is None:
            self.recorder = Recorder(self.lead_s)
        if self.recorder is not None:
            self.recorder.take(piece)

    def kept(self) -> Kept | None:
        """What is to be kept of it, which has ended: the closed file; whatever is not kept is deleted here."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return None
        try:
            if self.keeps and recorder.finish() is not None:
                return Kept(recorder, self.conversing().conversation.transcript.as_text())
        except LiveTalkError as error:
            log.warning("a recording was lost: %s", error)
        recorder.discard()
        return None
