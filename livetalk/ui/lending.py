"""The GPU for a while: what runs on it, how it is asked for, and what a refusal means.

On a ZeroGPU Space a GPU is lent to a worker process for one call of one function, the only one here that ``spaces.GPU``
decorates; elsewhere it is an ordinary generator. What goes in and what comes out is pickled. The worker keeps the pace
itself, since whatever it yields is taken from it at once; what a visitor says meanwhile reaches it by a wire.

This module does not know how the page is kept alive between two calls; see ``livetalk.ui.lent``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
import spaces
import torch
from spaces.config import Config

from livetalk.media.pictures import PortraitSource
from livetalk.media.sound import SpeechSource, duration_s
from livetalk.stream.avatar import Avatar
from livetalk.stream.session import Session
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talk import TalkSession
from livetalk.types import PICTURES_PER_SECOND, LiveTalkError, Pictures
from livetalk.ui.opening import Opening, opened, redraw
from livetalk.ui.plain import sentence
from livetalk.ui.said import SaidNews
from livetalk.ui.visit import LiveSession, Talk, TalkerChain
from livetalk.ui.wire import Hearing, Message

log = logging.getLogger(__name__)

CALL_VARIABLE = "LIVETALK_GPU_CALL_S"
CALL_S = 30.0
LEAST_CALL_S = 15.0
"""Longest live call, and the first one of a session.

What is asked for must be left of a visitor's share of the day (two minutes without an account), although only what is
used is counted: long calls are refused while much is left.
"""

START_S = 5.0
"""Asked for beyond a call's own time, for a worker to get ready."""

CALM_PICTURES = 2 * PICTURES_PER_SECOND
"""A call ends after so many calm pictures: the mouth is closed, and the page has pictures to go on with."""

WARNED_S = 10.0
ENDING_S = 4.0
"""So long before its end a call breaks off what is being said, for a closed mouth and a snapshot."""

CLIP_START_S = 20.0
CLIP_SPEED = 0.5
"""A clip is expected to take this share of its own length, after its start."""


@dataclass(frozen=True)
class LiveCall:
    """A stretch of a session.

    Attributes:
        address, key: of the wire on which the visitor is heard.
        limit_s: longest time.
        source: where the session goes on, or how it begins.
        backlog_s: sound that may wait in a mirror.
        talk: what the visitor wants of a conversation, as of now.
    """

    address: str
    key: bytes
    limit_s: float
    source: SessionSnapshot | Opening
    backlog_s: float
    talk: Talk


@dataclass(frozen=True)
class ClipCall:
    """A whole clip; see ``Avatar.clip``."""

    portrait: PortraitSource
    speech: SpeechSource
    prompt: str | None
    seed: int
    limit_s: float | None


@dataclass(frozen=True)
class Shown:
    """Pictures of a live call, with what was measured and said."""

    pictures: Pictures
    facts: dict[str, Any]


@dataclass(frozen=True)
class Rest:
    """A live call has ended well: where the session goes on, and how many messages were dealt with."""

    snapshot: SessionSnapshot
    taken: int


@dataclass(frozen=True)
class Trouble:
    """The call failed, in a sentence."""

    sentence: str


Call = LiveCall | ClipCall
Item = Shown | Rest | Trouble | Pictures
Lend = Callable[[Call], Generator[Item, None, None]]


def is_lent() -> bool:
    """Whether this process has a GPU only while one is lent to it."""
    return bool(Config.zero_gpu)


def call_limit_s() -> float:
    """Longest live call in seconds.

    Raises:
        LiveTalkError: ``LIVETALK_GPU_CALL_S`` is no number from ``LEAST_CALL_S`` up.
    """
    said = os.environ.get(CALL_VARIABLE, "").strip() or str(CALL_S)
    if not re.fullmatch(r"\d+(\.\d+)?", said) or float(said) < LEAST_CALL_S:
        raise LiveTalkError(
            f"{CALL_VARIABLE} is {said[:40]!r}. Expected seconds of one GPU call, {LEAST_CALL_S:g} or more."
        )
    return float(said)


def seconds(call: Call) -> int:
    """GPU time asked for."""
    if isinstance(call, LiveCall):
        return round(START_S + call.limit_s)
    return round(CLIP_START_S + CLIP_SPEED * (duration_s(call.speech) or call.limit_s or CALL_S))


def lender(avatar: Avatar, talkers: TalkerChain) -> Lend:
    """The function that runs where the GPU is.

    Args:
        avatar: with weights that were loaded before the page was launched: workers inherit them.
        talkers: makes the talkers of a conversation.
    """

    @spaces.GPU(duration=seconds)
    def on_gpu(call: Call) -> Generator[Item, None, None]:
        if is_lent():
            torch.set_num_threads(1)  # those of OpenMP do not survive a fork
        try:
            if isinstance(call, LiveCall):
                yield from _live(avatar, talkers, call)
            else:
                yield from avatar.clip(call.portrait, call.speech, call.prompt, call.seed, call.limit_s)
        except Exception as error:  # it would cross the border as its class's name only
            yield Trouble(sentence(error))

    return on_gpu


class LentAvatar(Avatar):
    """An avatar whose clips are made where the GPU is.

    Args:
        avatar: with the weights.
        lend: see :func:`lender`.
    """

    def __init__(self, avatar: Avatar, lend: Lend) -> None:
        super().__init__(avatar.models)
        self.lend = lend

    def clip(
        self,
        portrait: PortraitSource,
        speech: SpeechSource,
        prompt: str | None = None,
        seed: int = 0,
        limit_s: float | None = None,
    ) -> Iterator[Pictures]:
        """See ``Avatar.clip``."""
        for piece in asked(self.lend, ClipCall(portrait, speech, prompt, seed, limit_s)):
            assert isinstance(piece, Pictures)
            yield piece


def asked(lend: Lend, call: Call) -> Generator[Shown | Rest | Pictures, None, None]:
    """What the call yields.

    Raises:
        LiveTalkError: it failed, the GPU was refused or taken away; one sentence.
    """
    try:
        with contextlib.closing(lend(call)) as items:
            for item in items:
                if isinstance(item, Trouble):
                    raise LiveTalkError(item.sentence)
                yield item
    except gr.Error as error:
        raise LiveTalkError(refusal(error)) from error
    except (RuntimeError, AssertionError, OSError) as error:  # the scheduler cannot be reached, or answers nonsense
        log.exception("no GPU could be had")
        raise LiveTalkError(f"No GPU could be had ({type(error).__name__}). Try again in a minute.") from error


def refusal(error: gr.Error) -> str:
    """What an error of ZeroGPU means for a visitor, in a sentence or two."""
    title, message = str(getattr(error, "title", "")), str(error.message)
    again = re.search(r"Try again in ([\w:, ]*\w)", message)
    if "illegal duration" in title:
        return (
            f"The GPU is not lent for so long at once. Give a shorter clip; who runs this Space: lower {CALL_VARIABLE}."
        )
    if "pending credits" in title:
        return "Your GPU time is taken by something else that is running. Try again when it has ended."
    if "quota" in title and "No GPU" not in message:
        when = f"Try again in {again[1]}" if again else "Try again tomorrow"
        return f"The free GPU time of today is used up. {when}, or log in to Hugging Face, which gives you more."
    if "worker" in title:
        return "The GPU was taken away in the middle. Say it again: the conversation goes on where it was."
    if "No GPU" in message:
        return "All GPUs are busy. Try again in a minute."
    return f"The GPU could not be had: {message[:200].rstrip('. ')}. Try again in a minute."


class Desk:
    """Deals with what comes over the wire, in the thread that hears.

    Args:
        avatar: draws other faces.
        session: whose visitor it is.
    """

    def __init__(self, avatar: Avatar, session: Session) -> None:
        self._avatar, self._session = avatar, session
        self._deeds: dict[str, Callable[..., Any]] = {
            "listen": session.listen,
            "play": session.play,
            "interrupt": session.interrupt,
            "stop": session.stop,
        }
        if isinstance(session, TalkSession):
            self._deeds |= {"write": session.write, "persona": session.conversation.change_persona, "look": self._look}
        self.notice: str | None = None
        """What could not be done, in a sentence."""

    def deal(self, message: Message) -> None:
        """Do what a message says."""
        verb, arguments = message
        try:
            self._deeds[verb](*arguments)
        except LiveTalkError as error:
            self.notice = str(error)

    def _look(self, portrait: np.ndarray | None, prompt: str) -> None:
        assert isinstance(self._session, TalkSession)
        redraw(self._avatar, self._session, portrait, prompt)


def _live(avatar: Avatar, talkers: TalkerChain, call: LiveCall) -> Iterator[Shown | Rest]:
    """A stretch of a session: until nothing is said any more, somebody stops it, or its time is up."""
    end_s = time.monotonic() + call.limit_s
    session = opened(avatar, talkers, call.source, call.talk, call.backlog_s)
    desk = Desk(avatar, session)
    stream: Any = session.pictures()
    with contextlib.closing(stream):
        try:
            hearing = Hearing(call.address, call.key, desk.deal)
        except OSError:
            log.info("the visitor left before the GPU was there")
            return
        yield from _until_calm(session, stream, desk, end_s)
        snapshot = session.snapshot()
    yield Rest(snapshot, hearing.taken)


def _until_calm(session: Session, stream: Iterator[Pictures], desk: Desk, end_s: float) -> Iterator[Shown]:
    news, calm_at, is_ending = SaidNews(session), None, False
    for piece in stream:
        left_s = end_s - time.monotonic()
        yield Shown(piece, _facts(session, news, desk, left_s))
        if left_s < ENDING_S and not is_ending:
            is_ending = True
            session.interrupt()
        stop = piece.first_picture + len(piece.pictures)
        if calm_at is None or (session.is_busy and not is_ending):
            calm_at = stop + CALM_PICTURES
        if left_s <= 0 or (stop >= calm_at and len(piece.pictures)):
            return


def _facts(session: LiveSession, news: SaidNews, desk: Desk, left_s: float) -> dict[str, Any]:
    facts = {**session.facts(), "said": news.news()}
    left = f"The GPU is lent for another {max(0.0, left_s):.0f} s." if left_s < WARNED_S else None
    facts["notice"] = desk.notice or facts["notice"] or left
    return facts
