"""Sessions that are on: found by the secret name (sid) that their visitor made, bounded in number and in length.

A sid is a capability: whoever knows it may speak into the session and stop it, so it must be hard to guess. Nothing of
a visitor outlives the session, except a recording that was asked for, for a few minutes. This module knows neither
Gradio nor the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from livetalk.media.pictures import load_portrait
from livetalk.stream.avatar import Avatar
from livetalk.stream.capacity import Carried, configured_places, measured_factor, measured_gain
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers.registry import talker_chain
from livetalk.types import LiveTalkError, Pictures
from livetalk.ui.checks import check_mode, check_sid, decoded_pcm16
from livetalk.ui.line import Line, visitor_limit
from livetalk.ui.opening import Elsewhere, Opening, RemoteConversation, opened, redraw
from livetalk.ui.shelf import Shelf
from livetalk.ui.visit import Kept, LiveConversation, LiveSession, Talk, TalkerChain, Visit

SPEECH_LIMIT_S = 300.0
GONE_AFTER_S = 10.0
"""A page that said it was there and then nothing for so long loses its place to those who wait."""
KEPT_RECORDINGS = 32
KEPT_S = 600.0
_REMEMBERED = 256


class LiveSessions:
    """Registry of the sessions that are on and of the visitors who wait.

    Args:
        avatar: the loaded models.
        places: how many sessions may be on at once; None = what ``LIVETALK_PLACES`` says, else as many as the measured
            real-time factor carries.
        limit_s: longest session, in seconds.
        talkers: makes the talkers of a conversation.
        elsewhere: opens sessions in other processes; None = pictures are made in this one.

    Raises:
        LiveTalkError: ``LIVETALK_PLACES`` or ``LIVETALK_VISITORS`` is no whole number above 0.
    """

    def __init__(
        self,
        avatar: Avatar,
        places: int | None = None,
        limit_s: float = 3600.0,
        talkers: TalkerChain = talker_chain,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.avatar, self.limit_s, self.talkers = avatar, limit_s, talkers
        self._elsewhere = elsewhere
        self._fixed = places or configured_places()
        measured = self._fixed is None and elsewhere is None
        self._carried = Carried(measured_factor(avatar), measured_gain(avatar)) if measured else Carried(0.0)
        self._line = Line(lambda: self.places, visitor_limit())
        self._visits: dict[str, Visit] = {}
        self._kept: Shelf[Kept] = Shelf(KEPT_RECORDINGS, KEPT_S, lambda kept: kept.recorder.discard())
        self._ended: deque[str] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    @property
    def places(self) -> int:
        """How many sessions may be on now; changes with what running sessions measure."""
        if self._fixed:
            return self._fixed
        if self._elsewhere is not None:
            return self._elsewhere.places
        return self._carried.places([visit.session.real_time_factor for visit in list(self._visits.values())])

    def waits(self, sid: str) -> Iterator[int]:
        """Place in line of that visitor (1 = next), twice a second, until it is their turn; see ``Line.waits``.

        Raises:
            LiveTalkError: sid easy to guess or used before, or the line is too long.
        """
        self._check_fresh(sid)
        return self._line.waits(sid)

    @contextmanager
    def opened(
        self,
        sid: str,
        portrait: Path,
        prompt: str,
        seed: int,
        mode: str = "mirror",
        backlog_s: float = 2.0,
        talk: Talk | None = None,
    ) -> Iterator[LiveSession]:
        """A new session under ``sid``; ended and forgotten when the block is left, however it is left.

        Take its pictures with :meth:`pictures`.

        Args:
            sid: secret name, see ``check_sid``.
            portrait: picture of a face.
            prompt: how the person moves and feels.
            seed: of everything random.
            mode: "mirror" or "conversation".
            backlog_s: sound that may wait in a mirror.
            talk: how the conversation should be.

        Raises:
            LiveTalkError: sid easy to guess or used before, not their turn, mode unknown, no talker, or an unusable
                portrait.
        """
        self._check_fresh(sid)
        check_mode(mode)
        self._line.take(sid)
        visit = None
        try:
            talk = talk or Talk()
            session = self._session(Opening(portrait, prompt, seed, mode, backlog_s, talk))
            lead_s = self.avatar.preset.stream.lead_s
            visit = Visit(session, mode, talk, prompt, lead_s, keeps=talk.keeps and mode == "conversation")
            with self._lock:
                self._visits[sid] = visit
            yield session
        finally:
            if visit is not None:
                self._close(sid, visit)
            self._line.leave(sid)

    def pictures(self, sid: str) -> Iterator[Pictures]:
        """The pictures of that session, kept if that is wanted; ends with the session, or when its page has gone.

        Raises:
            LiveTalkError: there is no such session, or somebody takes its pictures already.
        """
        visit = self._visit(sid)
        stream: Any = visit.session.pictures()
        with contextlib.closing(stream) as pieces:
            for piece in pieces:
                visit.record(piece)
                yield piece
                if self._is_deserted(visit):
                    return

    def get(self, sid: str) -> LiveSession:
        """The session of that name.

        Raises:
            LiveTalkError: there is none.
        """
        return self._visit(sid).session

    def push(self, sid: str, pcm16_base64: str, rate: int) -> dict[str, Any]:
        """Speech of a visitor, base64 of little-endian mono PCM16 at ``rate`` Hz; never blocks.

        Returns:
            ``accepted_samples``, ``state``, and for a page that must react at once: ``voice`` (the visitor speaks),
            ``duck`` (lower the avatar's volume), ``generation``.

        Raises:
            LiveTalkError: unknown sid, or not such speech.
        """
        visit = self._visit(sid)
        samples = decoded_pcm16(pcm16_base64, rate)
        visit.session.listen(samples, int(rate))
        if visit.beat_at_s is not None:
            visit.beat_at_s = time.monotonic()
        recorder = visit.recorder
        if recorder is not None:
            recorder.hear(samples, int(rate))
        talk = visit.conversing().conversation if visit.mode == "conversation" else None
        return {
            "accepted_samples": len(samples),
            "state": visit.session.state,
            "voice": talk is not None and talk.is_voice_on,
            "duck": talk is not None and talk.is_suspected,
            "generation": visit.session.generation,
        }

    def write(self, sid: str, text: str) -> None:
        """A typed turn.

        Raises:
            LiveTalkError: no such session, no conversation, no words or too many.
        """
        self._visit(sid).conversing().write(text)

    def interrupt(self, sid: str) -> int:
        """Be silent now; returns the new generation.

        Raises:
            LiveTalkError: no such session.
        """
        return self.get(sid).interrupt()

    def change(
        self,
        sid: str,
        portrait: Path | None = None,
        prompt: str | None = None,
        voice: str | None = None,
        instructions: str | None = None,
    ) -> None:
        """Another face, mood, voice or character in mid-conversation; None = as it is.

        Raises:
            LiveTalkError: no such session, no conversation, or the portrait cannot be used.
        """
        visit = self._visit(sid)
        session = visit.conversing()
        if portrait is not None or prompt is not None:
            visit.prompt = visit.prompt if prompt is None else prompt
            self._draw(session, portrait, visit.prompt)
        wishes = {"voice": voice, "instructions": instructions}
        persona = dataclasses.replace(visit.talk.persona, **{k: v for k, v in wishes.items() if v is not None})
        if persona != visit.talk.persona:
            visit.talk = dataclasses.replace(visit.talk, persona=persona)
            session.conversation.change_persona(persona)

    def keep(self, sid: str, wanted: bool) -> None:
        """Whether a recording is made from now on; without it, what was recorded is deleted.

        Raises:
            LiveTalkError: no such session, or no conversation.
        """
        visit = self._visit(sid)
        visit.conversing()
        visit.keeps = bool(wanted)

    def recording(self, sid: str) -> Path:
        """The mp4 of a conversation that has ended; it is there for ``KEPT_S`` seconds.

        Raises:
            LiveTalkError: it goes on, nobody asked for a recording, or it was deleted.
        """
        if check_sid(sid) in self._visits:
            raise LiveTalkError("The recording is ready when the conversation has ended.")
        return self._of_ended(sid).recorder.path

    def transcript(self, sid: str) -> str:
        """The conversation as text, one line each; after its end only if a recording was asked for.

        Raises:
            LiveTalkError: there is none.
        """
        if check_sid(sid) in self._visits:
            return self._visit(sid).conversing().conversation.transcript.as_text()
        return self._of_ended(sid).transcript

    def beat(self, sid: str) -> None:
        """The page of that visitor is there; from the first time on it must say so, see ``GONE_AFTER_S``."""
        visit = self._visits.get(check_sid(sid))
        if visit is not None:
            visit.beat_at_s = time.monotonic()

    def stop(self, sid: str) -> None:
        """Ends the session of that name, or takes a waiting visitor out of the line; stopping twice does no harm.

        Raises:
            LiveTalkError: there is none, and was none lately; it will not begin any more.
        """
        if check_sid(sid) in self._ended:
            return
        if self._line.place(sid):
            self._line.leave(sid, was_on=False)
            self._ended.append(sid)
            return
        if sid not in self._visits:
            self._ended.append(sid)  # the call that opens it may still be under way
        self.get(sid).stop()

    async def begun(self, sid: str, wait_s: float) -> None:
        """Waits until that session is on, ``wait_s`` at most: packets may overtake the call that opens it."""
        end = time.monotonic() + wait_s
        while check_sid(sid) not in self._visits and sid not in self._ended and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def over(self, sid: str, wait_s: float) -> None:
        """Waits until that session has ended, ``wait_s`` at most: a stopped one finishes its piece first."""
        end = time.monotonic() + wait_s
        while check_sid(sid) in self._visits and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def place(self, sid: str) -> int:
        """Place in line of a visitor who waits (1 = next); 0 = does not wait."""
        return self._line.place(check_sid(sid))

    def __len__(self) -> int:
        return len(self._visits)

    def _check_fresh(self, sid: str) -> None:
        """A name is good for one session, and not even for that if it was stopped before it began."""
        if check_sid(sid) in self._ended:
            raise LiveTalkError(
                "This sid was used before. Every session needs a new one: for example uuid.uuid4().hex."
            )

    def _draw(self, session: LiveConversation, portrait: Path | None, prompt: str) -> None:
        """Another face, or the same one (None) under other words."""
        if self._elsewhere is not None:
            remote = cast(RemoteConversation, session)
            remote.draw(None if portrait is None else self._pixels(portrait), prompt)
        else:
            assert isinstance(session, TalkSession)
            redraw(self.avatar, session, portrait, prompt)

    def _pixels(self, portrait: Path) -> np.ndarray:
        return np.asarray(load_portrait(portrait, self.avatar.preset.height, self.avatar.preset.width).pixels())

    def _session(self, opening: Opening) -> LiveSession:
        if self._elsewhere is None:
            return opened(self.avatar, self.talkers, opening, opening.talk, opening.backlog_s)
        face = cast(Path, opening.portrait)
        return self._elsewhere.open(dataclasses.replace(opening, portrait=self._pixels(face)))

    def _close(self, sid: str, visit: Visit) -> None:
        """End it; what was asked for is kept for a while, everything else is gone."""
        with self._lock:
            self._visits.pop(sid, None)
            self._ended.append(sid)
        visit.session.stop()
        kept = visit.kept()
        if kept is not None:
            self._kept.put(sid, kept)

    def _visit(self, sid: str) -> Visit:
        visit = self._visits.get(check_sid(sid))
        if visit is None:
            raise LiveTalkError(
                "No session has this sid: it has not begun, or it has ended. "
                "Start /session with it and wait for the first piece, then speak."
            )
        return visit

    def _of_ended(self, sid: str) -> Kept:
        kept = self._kept.get(sid)
        if kept is None:
            raise LiveTalkError(
                "Nothing was kept of this conversation: nobody asked for it, it has not begun, or it ended more than "
                f"{KEPT_S / 60:g} minutes ago."
            )
        return kept

    def _is_deserted(self, visit: Visit) -> bool:
        at_s = visit.beat_at_s
        return self._line.waiting > 0 and at_s is not None and time.monotonic() - at_s > GONE_AFTER_S
