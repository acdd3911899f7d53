"""Blinks, gaze and sway of a stream: when the lids shut, where the eyes look, where the head goes, drawn from the seed.

Few-step generation goes to the most likely picture, and at any moment open eyes on the camera are more likely than
anything else: a network left alone with sound never blinks, and blurs the eyes and the outline of a head it cannot
foretell. So its last audio columns (``ModelConfig.drive_width``) say how far the lids are shut, where the eyes look and
where the head sways; in training that is the truth, in a stream the tracks of this module. They are functions of seed
and picture number alone, so that they may be asked for any stretch, in any order, for ever.

Sway has no size: how far a head goes with it is what the network makes of the words, and nods come from the sound.
This module does not know how a blink, a glance or a turn of the head looks.
"""

from __future__ import annotations

import numpy as np

from livetalk.types import PICTURES_PER_SECOND

SLOT_PICTURES = 60
"""A blink at most in each slot of this length: 16 a minute, about as often as people who listen."""

SKIPPED_SHARE = 0.1
FIRST_S = 0.7
HALF_S = (0.12, 0.16)
EDGE_PICTURES = 4

GLANCE_PICTURES = 24
"""The eyes move once in each slot of this length."""

HOME_SHARE = 0.55
"""Glances that go back to the camera."""

GLANCE_REACH = (0.5, 0.3)
"""How far the eyes go at most across and down, in units of the portraits' gaze (1 = as far as eyes turn)."""

GLANCE_TAKES = 2
"""Pictures a glance takes."""

SWAY_AXES = ("yaw", "pitch", "roll", "dx", "dy")
SWAY_BANDS = ((0.08, 0.16, 0.5), (0.2, 0.36, 0.33), (0.42, 0.68, 0.17))
"""Lowest and highest rate in Hz and share of the sines an axis sways with."""


def driven(seed: int, first_picture: int, pictures: int, width: int) -> np.ndarray:
    """The first ``width`` driven columns: lids, gaze across and down, sway; float32 ``[pictures, width]``."""
    columns = (
        lids(seed, first_picture, pictures)[:, None],
        gaze(seed, first_picture, pictures),
        sway(seed, first_picture, pictures),
    )
    return np.concatenate(columns, axis=1)[:, :width]


def lids(seed: int, first_picture: int, pictures: int) -> np.ndarray:
    """How far the lids are shut, float32 ``[pictures]``, 0 open .. 1 shut.

    Args:
        seed: of the stream.
        first_picture: number of the first picture in the stream.
        pictures: how many.
    """
    at = np.arange(first_picture, first_picture + pictures)
    shut = np.zeros(pictures)
    for slot in range(first_picture // SLOT_PICTURES, (first_picture + pictures) // SLOT_PICTURES + 1):
        rng = np.random.default_rng([seed & 0xFFFFFFFF, slot, 0xB11C])
        skipped = rng.random() < SKIPPED_SHARE
        middle_s = (
            slot * SLOT_PICTURES + rng.uniform(EDGE_PICTURES, SLOT_PICTURES - EDGE_PICTURES)
        ) / PICTURES_PER_SECOND
        half_s = rng.uniform(*HALF_S)
        if not skipped and middle_s >= FIRST_S:
            shut = np.maximum(shut, 1.35 * (1 - np.abs(at / PICTURES_PER_SECOND - middle_s) / half_s))
    return np.clip(shut, 0, 1).astype(np.float32)


def gaze(seed: int, first_picture: int, pictures: int) -> np.ndarray:
    """Where the eyes look, across and down, float32 ``[pictures, 2]``, -1..1, 0 = the camera.

    Args:
        seed: of the stream.
        first_picture: number of the first picture in the stream.
        pictures: how many.
    """
    at = np.arange(first_picture, first_picture + pictures)
    first, last = first_picture // GLANCE_PICTURES, (first_picture + pictures) // GLANCE_PICTURES
    looked, goal = np.zeros((pictures, 2)), _glance(seed, first - 1)[1]
    looked += goal
    for slot in range(first, last + 1):
        start, following = _glance(seed, slot)
        share = np.clip((at - start) / GLANCE_TAKES, 0, 1)[:, None]
        looked += (following - goal) * share
        goal = following
    return looked.astype(np.float32)


def sway(seed: int, first_picture: int, pictures: int) -> np.ndarray:
    """Where the head goes on each of ``SWAY_AXES``, float32 ``[pictures, 5]``, -2..2, 0 at the portrait.

    Args:
        seed: of the stream.
        first_picture: number of the first picture in the stream.
        pictures: how many.
    """
    time_s = np.arange(first_picture, first_picture + pictures) / PICTURES_PER_SECOND
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 0x5A47])
    return np.stack([sway_of_axis(rng, time_s) for _ in SWAY_AXES], axis=1).astype(np.float32)


def sway_of_axis(rng: np.random.Generator, time_s: np.ndarray) -> np.ndarray:
    """Three slow sines, 0 at time 0, of rates and phases drawn from ``rng``; shape of ``time_s``."""
    track = np.zeros_like(time_s)
    for low_hz, high_hz, share in SWAY_BANDS:
        rate_hz, phase = rng.uniform(low_hz, high_hz), rng.uniform(0, 2 * np.pi)
        track += share * (np.sin(2 * np.pi * rate_hz * time_s + phase) - np.sin(phase))
    return track


def _glance(seed: int, slot: int) -> tuple[float, np.ndarray]:
    """Picture at which the eyes move in a slot, and where to; on the camera before the stream begins."""
    if slot < 0:
        return 0.0, np.zeros(2)
    rng = np.random.default_rng([seed & 0xFFFFFFFF, slot, 0x6A2E])
    start = (slot + rng.uniform(0, 1)) * GLANCE_PICTURES - GLANCE_TAKES
    home = rng.random() < HOME_SHARE
    goal = np.zeros(2) if home else rng.uniform(-1, 1, 2) * GLANCE_REACH
    return max(start, slot * GLANCE_PICTURES), goal
