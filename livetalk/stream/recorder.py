"""A conversation as one mp4: what was on screen and heard, and the visitor's voice with it.

Pictures are told when they are handed out, a little before they are on screen; until then an interruption may void
them. So they are held back, and what is void is replaced. Memory does not grow with the length.

The file lies in a temporary folder of its own, which is gone when the recording is discarded or forgotten. This module
knows nothing of sessions, visitors or pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
from collections import deque
from pathlib import Path

import numpy as np

from livetalk.media.clips import ClipWriter
from livetalk.media.sound import StreamResampler
from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, PLAYBACK_SAMPLES_PER_PICTURE, LiveTalkError, Pictures

SLACK_S = 0.5
"""Held back beyond the lead; more than an interruption ever reaches back."""

JOIN_S = 0.3
"""Voice that comes less than this after what came before follows it without a gap."""

VOICE_LIMIT_S = 30.0
"""Voice that came faster than real time may wait for its pictures so long; more is not recorded."""


class Recorder:
    """Writes what a session shows; ``take`` in one thread, ``hear`` in any.

    Args:
        lead_s: pictures are handed out at most this much before they are on screen.
        name: of the file.
    """

    def __init__(self, lead_s: float, name: str = "conversation.mp4") -> None:
        self._lead_s = lead_s
        self._hold = round((lead_s + SLACK_S) * PICTURES_PER_SECOND)
        self._folder = tempfile.TemporaryDirectory(prefix="livetalk-recording-")
        self.path = Path(self._folder.name) / name
        """Of the file; it is there after ``finish``."""
        self._writer: ClipWriter | None = None
        self._open = contextlib.ExitStack()
        self._held: deque[Pictures] = deque()
        self._written: int | None = None
        self._end = 0  # first picture after the last one taken; other threads read it
        self._voice = _Voice()
        self.problem: str | None = None
        """Why nothing more is recorded, in a sentence; None = all is well."""

    def take(self, piece: Pictures) -> None:
        """What the session hands out next: pictures, or the word that those from a picture on are void."""
        if self.problem is not None:
            return
        self._cut(piece.first_picture)
        if not len(piece.pictures):
            return
        if self._written is None:
            self._written = piece.first_picture
        piece = _from(piece, self._written)
        if len(piece.pictures):
            self._held.append(piece)
            self._end = _stop(piece)
        try:
            while self._held and self._end - _stop(self._held[0]) >= self._hold:
                self._write(self._held.popleft())
        except LiveTalkError as error:  # a full disk ends the recording, not the conversation
            self.discard()
            self.problem = str(error)

    def hear(self, samples: np.ndarray, rate: int) -> None:
        """Sound of the visitor (float32 ``[n]`` at ``rate`` Hz) that just happened."""
        if self._written is None or self.problem is not None:
            return
        now = round((self._end / PICTURES_PER_SECOND - self._lead_s) * PLAYBACK_RATE)
        self._voice.append(samples, rate, now)

    def finish(self) -> Path | None:
        """Write what is held and close the file; None if nothing was recorded.

        Raises:
            LiveTalkError: the file could not be written.
        """
        if self.problem is not None:
            raise LiveTalkError(f"The recording was broken off. {self.problem}")
        while self._held:
            self._write(self._held.popleft())
        self._open.close()
        return None if self._writer is None else self.path

    def discard(self) -> None:
        """Delete everything; does no harm when done twice."""
        self._held.clear()
        with contextlib.suppress(LiveTalkError):
            self._open.close()
        self._folder.cleanup()

    def _cut(self, first: int) -> None:
        """Pictures from ``first`` on are void."""
        while self._held and self._held[-1].first_picture >= first:
            self._held.pop()
        if self._held and _stop(self._held[-1]) > first:
            last = self._held.pop()
            self._held.append(_part(last, 0, first - last.first_picture))

    def _write(self, piece: Pictures) -> None:
        if self._writer is None:
            height, width = piece.pictures.shape[1:3]
            self._writer = self._open.enter_context(ClipWriter(self.path, height, width))
        voice = self._voice.taken(piece.start_sample, len(piece.sound))
        self._writer.write(piece.pictures, np.clip(piece.sound + voice, -1.0, 1.0))
        self._written = _stop(piece)


class _Voice:
    """The visitor's sound on the timeline of the stream, for as long as it was not written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resampler: StreamResampler | None = None
        self._parts: deque[tuple[int, np.ndarray]] = deque()
        self._end = 0

    def append(self, samples: np.ndarray, rate: int, now: int) -> None:
        """Sound whose end was heard at sample ``now`` of the stream."""
        with self._lock:
            if self._resampler is None or self._resampler.source_rate != rate:
                self._resampler = StreamResampler(rate, PLAYBACK_RATE)
            sound = self._resampler.push(samples)
            first = now - len(sound)
            if first < self._end + JOIN_S * PLAYBACK_RATE:
                first = self._end
            if not len(sound) or first > now + VOICE_LIMIT_S * PLAYBACK_RATE:
                return
            self._parts.append((first, sound))
            self._end = first + len(sound)

    def taken(self, first: int, count: int) -> np.ndarray:
        """Sound of samples ``first .. first + count`` (silence where there was none); it is forgotten up to there."""
        mixed = np.zeros(count, np.float32)
        stop = first + count
        with self._lock:
            for at, sound in self._parts:
                low, high = max(at, first), min(at + len(sound), stop)
                if low < high:
                    mixed[low - first : high - first] = sound[low - at : high - at]
            while self._parts and self._parts[0][0] + len(self._parts[0][1]) <= stop:
                self._parts.popleft()
        return mixed


def _stop(piece: Pictures) -> int:
    return piece.first_picture + len(piece.pictures)


def _from(piece: Pictures, first: int) -> Pictures:
    """What of ``piece`` is not before ``first``."""
    return _part(piece, max(0, first - piece.first_picture), len(piece.pictures))


def _part(piece: Pictures, start: int, stop: int) -> Pictures:
    """Pictures ``start .. stop`` of a piece, with their sound."""
    step = PLAYBACK_SAMPLES_PER_PICTURE
    return dataclasses.replace(
        piece,
        first_picture=piece.first_picture + start,
        pictures=piece.pictures[start:stop],
        sound=piece.sound[start * step : stop * step],
    )
