"""Sessions that are on: found by the secret name (sid) that their visitor made, bounded in number and in length.

A sid is a capability: whoever knows it may speak into the session and stop it, so it must be hard to guess. This
module knows neither Gradio nor the page.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.stream.avatar import Avatar
from livetalk.stream.session import Session
from livetalk.types import LiveTalkError

SPEECH_LIMIT_S = 300.0
PACKET_LIMIT_S = 10.0
RATES_HZ = 8_000, 96_000
MODES = "mirror", "conversation"
_SID = re.compile(r"[A-Za-z0-9_-]{16,128}")
_FORGOTTEN_AFTER_S = 5.0
_REMEMBERED = 256


class LiveSessions:
    """Registry of the sessions that are on and of the visitors who wait.

    Args:
        avatar: the loaded models.
        places: how many sessions may be on at once (used to tell a visitor the place in line).
        limit_s: longest session, in seconds.
    """

    def __init__(self, avatar: Avatar, places: int, limit_s: float) -> None:
        self.avatar, self.places, self.limit_s = avatar, places, limit_s
        self._sessions: dict[str, Session] = {}
        self._waiting: dict[str, float] = {}
        self._ended: deque[str] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    @contextmanager
    def opened(
        self, sid: str, portrait: Path, prompt: str, seed: int, mode: str = "mirror", backlog_s: float = 2.0
    ) -> Iterator[Session]:
        """A new session under ``sid``; ended and forgotten when the block is left, however it is left.

        Raises:
            LiveTalkError: sid easy to guess or in use, mode unknown, or the portrait cannot be used.
        """
        check_sid(sid)
        check_mode(mode)
        with self._lock:
            if sid in self._sessions:
                raise LiveTalkError("This sid is in use. Every session needs a new one: for example uuid.uuid4().hex.")
            self._waiting.pop(sid, None)
        session = self.avatar.session(portrait, prompt=prompt, seed=seed, mode=mode, backlog_s=backlog_s)
        with self._lock:
            self._sessions[sid] = session
        try:
            yield session
        finally:
            with self._lock:
                self._sessions.pop(sid, None)
                self._ended.append(sid)
            session.stop()

    def get(self, sid: str) -> Session:
        """The session of that name.

        Raises:
            LiveTalkError: there is none.
        """
        session = self._sessions.get(check_sid(sid))
        if session is None:
            raise LiveTalkError(
                "No session has this sid: it has not begun, or it has ended. "
                "Start /session with it and wait for the first piece, then speak."
            )
        return session

    def push(self, sid: str, pcm16_base64: str, rate: int) -> dict[str, Any]:
        """Speech of a visitor, base64 of little-endian mono PCM16 at ``rate`` Hz; never blocks.

        Raises:
            LiveTalkError: unknown sid, or not such speech.
        """
        session = self.get(sid)
        samples = decoded_pcm16(pcm16_base64, rate)
        session.listen(samples, int(rate))
        return {"accepted_samples": len(samples), "state": session.state}

    def stop(self, sid: str) -> None:
        """Ends the session of that name; one that has just ended may be stopped again.

        Raises:
            LiveTalkError: there is none, and was none lately.
        """
        if check_sid(sid) in self._ended:
            return
        self.get(sid).stop()

    async def begun(self, sid: str, wait_s: float) -> None:
        """Waits until that session is on, ``wait_s`` at most: packets may overtake the call that opens it."""
        end = time.monotonic() + wait_s
        while check_sid(sid) not in self._sessions and sid not in self._ended and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def place(self, sid: str) -> int:
        """Place in line of a visitor who waits (1 = next), 0 for one who is on or about to be; asked every second."""
        now = time.monotonic()
        with self._lock:
            if check_sid(sid) in self._sessions:
                return 0
            self._waiting[sid] = now
            for other, seen in list(self._waiting.items()):
                if now - seen > _FORGOTTEN_AFTER_S:
                    del self._waiting[other]
            if len(self._sessions) < self.places:
                return 0
            return list(self._waiting).index(sid) + 1

    def __len__(self) -> int:
        return len(self._sessions)


def check_sid(sid: Any) -> str:
    """``sid`` if nobody can guess it by trying.

    Raises:
        LiveTalkError: it is not a string of 16 to 128 letters, digits, ``-`` and ``_``, or nearly all the same.
    """
    if not isinstance(sid, str) or not _SID.fullmatch(sid) or len(set(sid)) < 6:
        raise LiveTalkError(
            "The sid names your session and keeps others out of it, so it must be hard to guess: 16 to 128 letters, "
            "digits, '-' or '_'. Make one with uuid.uuid4().hex."
        )
    return sid


def check_mode(mode: Any) -> None:
    """Raises:
    LiveTalkError: the mode is unknown, or not there yet.
    """
    if mode not in MODES:
        raise LiveTalkError(f"There is no mode {str(mode)[:40]!r}. Known modes: {', '.join(MODES)}.")
    if mode == "conversation":
        raise LiveTalkError(
            'This version mirrors speech and does not converse: mode "conversation" comes with a later one. '
            'Use mode "mirror".'
        )


def decoded_pcm16(pcm16_base64: Any, rate: Any) -> np.ndarray:
    """float32 samples ``[n]`` in -1..1 of base64 PCM16.

    Raises:
        LiveTalkError: rate out of range, not base64, an odd number of bytes, or longer than ``PACKET_LIMIT_S``.
    """
    low, high = RATES_HZ
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not low <= rate <= high or rate != int(rate):
        raise LiveTalkError(f"The rate is {str(rate)[:40]!r}. Expected a whole number of Hz from {low} to {high}.")
    if not isinstance(pcm16_base64, str):
        raise LiveTalkError("The speech is no text. Expected base64 of little-endian mono PCM16.")
    if len(pcm16_base64) > PACKET_LIMIT_S * rate * 2 * 4 / 3 + 4:
        raise LiveTalkError(f"This packet is longer than {PACKET_LIMIT_S:g} s. Send speech in packets of 0.1 to 1 s.")
    try:
        data = base64.b64decode(pcm16_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LiveTalkError("The speech is not valid base64. Expected base64 of little-endian mono PCM16.") from error
    if len(data) % 2:
        raise LiveTalkError("The speech has an odd number of bytes. Expected 16-bit samples, two bytes each.")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
