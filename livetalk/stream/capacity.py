"""How many live sessions this machine carries: what was configured, or what its speed allows.

This module knows neither visitors nor pages.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
        gain: how much more sessions make together, because they share passes of the network; 1 = they only share time.
    """

    def __init__(self, alone: float, gain: float = 1.0) -> None:
        self._alone, self._gain = alone, gain

    def places(self, running: Sequence[float | None]) -> int:
        """At least 1.

        A session that is alone tells what the machine can do. Sessions that run together slow each other down, at most
        to their share of what they can do together; if all their factors together say less, that is what counts. They
        never say more: sessions that happen not to work at the same time are each as fast as one alone.

        Args:
            running: real-time factors of the sessions that are on; None = not known yet.
        """
        known = [factor for factor in running if factor is not None]
        if known and len(running) == 1:
            self._alone = known[0]
        carried = self._alone * self._gain
        if known and len(running) > 1:
            carried = min(carried, len(running) * min(known))
        return max(1, int(carried / CONVERSATION_FACTOR))


def measured_gain(avatar: Avatar) -> float:
    """How much more two streams at once make than one alone, at least 1; 1 where they share no passes.

    More than two would gain more, if anything.
    """
    if not avatar.models.engine.batches(avatar.models.device):
        return 1.0
    return max(1.0, 2 * _making_s(avatar, 1) / _making_s(avatar, 2))


def _making_s(avatar: Avatar, streams: int) -> float:
    """Seconds until so many streams, begun at once, have each made some chunks of silence."""
    preset = avatar.preset
    identity = avatar.identity(np.zeros((preset.height, preset.width, 3), np.uint8))

    def perform(performer: Performer) -> None:
        performer.push(AudioChunk(np.zeros(MEASURED_PICTURES * PLAYBACK_RATE // PICTURES_PER_SECOND, np.float32)))
        deque(performer.pictures(), maxlen=0)

    performers = [Performer(avatar.models, identity) for _ in range(streams)]
    with ThreadPoolExecutor(streams) as threads:
        begin_s = time.perf_counter()
        deque(threads.map(perform, performers), maxlen=0)
        spent_s = time.perf_counter() - begin_s
    for performer in performers:
        performer.close()
    return spent_s


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
    return configured_number(PLACES_VARIABLE, "live sessions")


def configured_number(variable: str, what: str) -> int | None:
    """What an environment variable says; None = nothing.

    Raises:
        LiveTalkError: no whole number above 0 (of ``what``).
    """
    said = os.environ.get(variable, "").strip()
    if not said:
        return None
    if not said.isdigit() or int(said) < 1:
        raise LiveTalkError(f"{variable} is {said[:40]!r}. Expected a whole number of {what}, 1 or more.")
    return int(said)
