"""How many live sessions this machine carries: what was configured, or what its speed allows.

This module knows neither visitors nor pages.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence

import numpy as np

from livetalk.stream.avatar import Avatar
from livetalk.stream.pace import CONVERSATION_FACTOR
from livetalk.stream.performer import Performer
from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, AudioChunk, LiveTalkError

PLACES_VARIABLE = "LIVETALK_PLACES"
MEASURED_PICTURES = 36


class Carried:
    """How many live sessions the measured real-time factor carries.

    Args:
        alone: real-time factor of a session that has the machine for itself.
    """

    def __init__(self, alone: float) -> None:
        self._alone = alone

    def places(self, running: Sequence[float | None]) -> int:
        """At least 1.

        A session that is alone tells what the machine can do. Sessions that run together slow each other down, at most
        to their share; if all their factors together say less than what was measured before, that is what counts.

        Args:
            running: real-time factors of the sessions that are on; None = not known yet.
        """
        known = [factor for factor in running if factor is not None]
        if known and len(running) == 1:
            self._alone = known[0]
        carried = min(self._alone, len(running) * min(known)) if known else self._alone
        return max(1, int(carried / CONVERSATION_FACTOR))


def measured_factor(avatar: Avatar) -> float:
    """Real-time factor of one stream that has the machine for itself: some chunks of silence are made."""
    preset = avatar.preset
    blank = np.zeros((preset.height, preset.width, 3), np.uint8)
    performer = Performer(avatar.models, avatar.identity(blank), overlap=False)
    performer.push(AudioChunk(np.zeros(MEASURED_PICTURES * PLAYBACK_RATE // PICTURES_PER_SECOND, np.float32)))
    deque(performer.pictures(), maxlen=0)
    performer.close()
    return performer.real_time_factor or 0.0


def configured_places() -> int | None:
    """What ``LIVETALK_PLACES`` says; None = nothing.

    Raises:
        LiveTalkError: no whole number above 0.
    """
    said = os.environ.get(PLACES_VARIABLE, "").strip()
    if not said:
        return None
    if not said.isdigit() or int(said) < 1:
        raise LiveTalkError(f"{PLACES_VARIABLE} is {said[:40]!r}. Expected a whole number of live sessions, 1 or more.")
    return int(said)
