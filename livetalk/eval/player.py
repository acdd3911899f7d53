"""A player without a browser: when would a visitor hear and see what was sent? The rules are those of ``player.js``.

Sound is scheduled a little after the first message and then without a gap; a message that comes too late moves sound
and pictures, and silence is made shorter until that is made up for; silence is made longer where little would be too
late; a new generation replaces everything from its first picture on. This module does not know who sends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE

LEAD_S = 0.1
LEAST_AHEAD_S = 0.01
SOON_S = 0.02
SPARE_S = 0.06
LEAST_SPARE_S = 0.03
LEAST_SLIP_S = 0.005
RECENT = 16
FEW = 4
SILENT = 0.005
LOUD = 0.01
REMEMBERED_S = 120.0


@dataclass
class _Segment:
    """Sound and pictures of one message: from ``at_s`` on, ``pictures`` from ``first`` on; came at ``came_s``."""

    at_s: float
    first: int
    pictures: int
    sound: np.ndarray
    came_s: float

    @property
    def stop_s(self) -> float:
        return self.at_s + len(self.sound) / PLAYBACK_RATE


class Screen:
    """What is heard and seen of the messages of one session. Times are those of the caller's clock."""

    def __init__(self) -> None:
        self._segments: deque[_Segment] = deque()
        self._generation: int | None = None
        self._end_s: float | None = None
        self._spares_s: deque[float] = deque(maxlen=RECENT)
        self._is_quiet = True
        self.stalls = 0
        """Messages that came too late."""
        self.slipped_s = 0.0
        """By how much silence was made shorter."""
        self.held_s = 0.0
        """By how much silence was made longer."""
        self.longest_held_s = 0.0
        """The most by which a picture stayed longer than it should."""

    def push(self, header: dict[str, Any], sound: np.ndarray, now_s: float) -> None:
        """Take a message.

        Args:
            header: as ``livetalk.media.packets`` writes it.
            sound: its samples, float32 at ``PLAYBACK_RATE``.
            now_s: when it came.
        """
        if self._generation is not None and header["generation"] < self._generation:
            return
        if header["flush"] or header["generation"] != self._generation:
            self._replace_from(header["first"], now_s)
            self._generation = header["generation"]
        if not header["pictures"]:
            return
        at_s, pictures = self._at_s(now_s), header["pictures"]
        self._spares_s.append(at_s - now_s - header["facts"].get("ahead_s", 0.0))
        self._is_quiet = bool(np.abs(sound).max(initial=0.0) < SILENT)
        stretch_s = self._stretch_s() if self._is_quiet else 0.0
        longer = round(stretch_s * PLAYBACK_RATE)
        sound = np.pad(sound, (0, longer)) if longer > 0 else sound[: len(sound) + longer]
        self._segments.append(_Segment(at_s, header["first"], pictures, sound, now_s))
        self._end_s = at_s + pictures / PICTURES_PER_SECOND + stretch_s
        while self._segments[0].stop_s < now_s - REMEMBERED_S:
            self._segments.popleft()

    def first_loud_s(self, after_s: float) -> float | None:
        """When the first loud sample after ``after_s`` is heard; None = none so far."""
        for segment in self._segments:
            loud = _loud_s(segment)
            later = loud[loud > after_s]
            if len(later):
                return float(later[0])
        return None

    def last_loud_s(self, before_s: float) -> float | None:
        """When the last loud sample before ``before_s`` is heard; None = none so far."""
        for segment in reversed(self._segments):
            loud = _loud_s(segment)
            earlier = loud[loud < before_s]
            if len(earlier):
                return float(earlier[-1])
        return None

    def picture_s(self, heard_s: float) -> float | None:
        """When the picture that belongs to the sound heard at ``heard_s`` is shown; it may come too late for it."""
        for segment in self._segments:
            if segment.at_s <= heard_s < segment.stop_s:
                into = int((heard_s - segment.at_s) * PICTURES_PER_SECOND) / PICTURES_PER_SECOND
                return max(segment.at_s + into, segment.came_s)
        return None

    def _at_s(self, now_s: float) -> float:
        """When a message that comes now is heard."""
        if self._end_s is None:
            return now_s + LEAD_S
        if self._end_s >= now_s + LEAST_AHEAD_S:
            return self._end_s
        self._spares_s.clear()
        held_s = now_s + SOON_S - self._end_s
        if self._is_quiet and held_s <= 1 / PICTURES_PER_SECOND:
            self._note_held(held_s)
            return now_s + SOON_S
        self.stalls += 1
        return now_s + LEAD_S

    def _stretch_s(self) -> float:
        """By how much silence is made longer, negative: shorter, given the time that is spare before it is heard."""
        spares = self._spares_s
        too_much_s = 0.0 if len(spares) < RECENT else min(spares) - SPARE_S
        too_little_s = 0.0 if len(spares) < FEW else LEAST_SPARE_S - max(list(spares)[-FEW:])
        stretch_s, most_s = 0.0, 0.5 / PICTURES_PER_SECOND
        if too_much_s >= LEAST_SLIP_S:
            stretch_s = -min(too_much_s, most_s)
            self.slipped_s -= stretch_s
        elif too_little_s > 0:
            stretch_s = min(too_little_s, most_s)
            self._note_held(stretch_s)
        self._spares_s = deque((spare + stretch_s for spare in spares), RECENT)
        return stretch_s

    def _note_held(self, seconds: float) -> None:
        self.held_s += seconds
        self.longest_held_s = max(self.longest_held_s, seconds)

    def _replace_from(self, first: int, now_s: float) -> None:
        """Pictures from ``first`` on are void; those before are still shown, but all falls silent now."""
        if self._generation is None:
            return
        self._is_quiet = True
        cut_s = next(
            (s.at_s + (first - s.first) / PICTURES_PER_SECOND for s in self._segments if _holds(s, first)), None
        )
        last = self._segments[-1] if self._segments else None
        if last is not None and first == last.first + last.pictures:
            cut_s = self._end_s
        if cut_s is not None and cut_s <= now_s:
            cut_s = None
        for segment in self._segments:
            kept = max(0, round(((now_s if cut_s is None else cut_s) - segment.at_s) * PLAYBACK_RATE))
            segment.sound = segment.sound[:kept].copy()
            segment.sound[max(0, round((now_s - segment.at_s) * PLAYBACK_RATE)) :] = 0.0
        self._end_s = cut_s


def _holds(segment: _Segment, picture: int) -> bool:
    return segment.first <= picture < segment.first + segment.pictures


def _loud_s(segment: _Segment) -> np.ndarray:
    return segment.at_s + np.flatnonzero(np.abs(segment.sound) > LOUD) / PLAYBACK_RATE
