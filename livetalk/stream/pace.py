"""When pictures are due: a playback position that follows an injected clock, and the times stages took.

There is no back-pressure between a server and a page, so whoever generates must know where playback is: nothing leaves
more than the lead ahead of it. If pictures come too late, playback slips: the clock's origin moves, sound and pictures
together, and the slip is counted so that it can be shown.

This module knows nothing of pictures, sound or networks; it reads time only from the clock it is given.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from livetalk.types import PICTURES_PER_LATENT, PICTURES_PER_SECOND

Timer = Callable[[], float]
"""Seconds from an arbitrary beginning; never falls."""

REMEMBERED_STEPS = 256
REMEMBERED_HASTE = 4
HASTE_SPARE, MOST_HASTE = 1.15, 2.0
"""Of an ``Allowance``: this much more than the worst of late, never more."""
LEAST_MARGIN_S = 0.15
MARGIN_FACTOR = 1.5
CONVERSATION_FACTOR = 2.0
"""Real-time factor that one conversation takes: chunks are made again where a reply begins, and talkers work, too."""


class Clock(Protocol):
    """Time as a session needs it: to read, and to wait for. Tests bring their own."""

    def __call__(self) -> float:
        """Seconds from an arbitrary beginning; never falls."""

    def wait(self, changed: threading.Condition, timeout_s: float | None) -> None:
        """Wait (holding ``changed``) until somebody notifies it or the time is over."""


class SystemClock:
    """The machine's monotonic clock."""

    def __call__(self) -> float:
        """Seconds from an arbitrary beginning."""
        return time.monotonic()

    def wait(self, changed: threading.Condition, timeout_s: float | None) -> None:
        """Wait (holding ``changed``) until somebody notifies it or the time is over."""
        changed.wait(timeout_s)


class Playback:
    """What is on screen now, for a player that starts with the first pictures handed out.

    Args:
        now: the clock.
        lead_s: at most this much is handed out ahead of what is on screen.
    """

    def __init__(self, now: Timer, lead_s: float) -> None:
        self._now = now
        self.lead_s = lead_s
        self._start_picture = 0
        self.late_s = 0.0
        """How far playback has slipped in all, because pictures came too late."""
        self._origin_s: float | None = None

    def start_at(self, picture: int) -> None:
        """Nothing was handed out yet, and ``picture`` will be the first."""
        self._start_picture = picture

    @property
    def position_s(self) -> float:
        """Position in the stream that is on screen now; before playback has begun, where it will begin."""
        return self._start_picture / PICTURES_PER_SECOND if self._origin_s is None else self._now() - self._origin_s

    @property
    def begun(self) -> bool:
        """Whether anything was handed out."""
        return self._origin_s is not None

    @property
    def next_picture(self) -> int:
        """First picture that is not on screen yet."""
        return int(self.position_s * PICTURES_PER_SECOND) + 1 if self.begun else self._start_picture

    def due_in_s(self, stop_picture: int) -> float:
        """Seconds until pictures before ``stop_picture`` may leave; not positive = now."""
        return stop_picture / PICTURES_PER_SECOND - self.lead_s - self.position_s if self.begun else 0.0

    def ahead_s(self, picture: int) -> float:
        """Seconds until ``picture`` must be on screen; negative = late."""
        return picture / PICTURES_PER_SECOND - self.position_s

    def hand_out(self, first_picture: int) -> None:
        """Pictures from ``first_picture`` on leave now; playback begins, or slips if they are late."""
        if self._origin_s is None:
            self._origin_s = self._now() - first_picture / PICTURES_PER_SECOND
        lateness_s = -self.ahead_s(first_picture)
        if lateness_s > 0:
            self._origin_s += lateness_s
            self.late_s += lateness_s


class Allowance:
    """Factor on the time that making something is expected to take, where somebody waits for it.

    Small while expectations are kept; as large as the worst of the last few times otherwise, because beside a browser
    or a talker a machine may be slower exactly when it is wanted.

    Args:
        least: the factor while expectations are kept.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._seen: deque[float] = deque(maxlen=REMEMBERED_HASTE)

    @property
    def factor(self) -> float:
        """The factor."""
        return min(max(self._least, HASTE_SPARE * max(self._seen, default=1.0)), MOST_HASTE)

    def note(self, expected_s: float, took_s: float) -> None:
        """What was expected to take ``expected_s`` took ``took_s``."""
        if expected_s > 0:
            self._seen.append(took_s / expected_s)


class FirstPicture:
    """How long people wait for the first picture of a piece of speech, or of silence, once its sound is there.

    Args:
        timer: the clock that is read.
        making_s: seconds in which a picture is expected to be made.
        least: see ``Allowance``.
    """

    def __init__(self, timer: Timer, making_s: Callable[[int], float], least: float) -> None:
        self._timer, self._making_s = timer, making_s
        self._heard_at_s: float | None = None
        self.allowance = Allowance(least)
        """On the time the next one is expected to take."""
        self.awaited: int | None = None
        """The picture that is waited for."""
        self.took_s: float | None = None
        """From the last sample that the latest speech's first chunk needed to its first picture."""

    def await_(self, picture: int | None, *, is_heard: bool = False) -> None:
        """Speech begins at ``picture``, None = it was never said; ``is_heard``: the sound it needs is there."""
        self.awaited, self._heard_at_s = picture, self._timer() if is_heard else None

    def note_sound(self) -> None:
        """The sound it needs is there."""
        if self._heard_at_s is None:
            self._heard_at_s = self._timer()

    def note_made(self, stop: int) -> None:
        """Everything before picture ``stop`` is made."""
        made = self.awaited
        if made is None or self._heard_at_s is None or made >= stop:
            return
        self.took_s, self.awaited = self._timer() - self._heard_at_s, None
        self.allowance.note(self._making_s(made), self.took_s)


class StageTimes:
    """How long the stages of generation took lately. Stages may run in different threads.

    Args:
        timer: the clock that is read.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._steps_s: dict[str, deque[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as one step of stage ``name``."""
        begin_s = self._timer()
        try:
            yield
        finally:
            spent_s = self._timer() - begin_s
            with self._lock:
                self._steps_s.setdefault(name, deque(maxlen=REMEMBERED_STEPS)).append(spent_s)

    def steps_s(self) -> dict[str, list[float]]:
        """The last steps of every stage, oldest first, in seconds."""
        with self._lock:
            return {name: list(steps) for name, steps in self._steps_s.items()}

    def typical_s(self, *names: str) -> float:
        """Sum of the medians of some stages; a stage that never ran counts nothing."""
        steps = self.steps_s()
        return sum(statistics.median(steps[name]) for name in names if steps.get(name))


class Speed:
    """How fast chunks are made, by what their stages took lately.

    Args:
        times: of the stages "audio", "denoise", "commit" (once a chunk) and "decode" (once a latent frame).
        frames: latent frames of a chunk.
    """

    def __init__(self, times: StageTimes, frames: int) -> None:
        self._times, self._frames = times, frames

    def making_s(self, frames: int) -> float:
        """How long it takes to make a chunk and to decode so many of its latent frames."""
        return self._times.typical_s("audio", "denoise", "commit") + frames * self._times.typical_s("decode")

    def margin_s(self, lead_s: float) -> float:
        """A chunk whose sound is not there is made with silence when playback, ``lead_s`` behind, comes this close."""
        return max(LEAST_MARGIN_S, min(MARGIN_FACTOR * self.making_s(self._frames), lead_s / 2))

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of video per second of work; None before the first chunk."""
        spent_s = self.making_s(self._frames)
        return self._frames * PICTURES_PER_LATENT / PICTURES_PER_SECOND / spent_s if spent_s > 0 else None
