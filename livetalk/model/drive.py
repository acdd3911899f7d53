"""Blinks of a stream: when the lids shut, drawn from the seed.

Few-step generation goes to the most likely picture, and at any moment open eyes are more likely than shut ones: a
network left alone with sound never blinks. So its last audio column (``ModelConfig.drive_width``) says how far the
lids are shut; in training that is the truth, in a stream the track of this module. It is a function of seed and
picture number alone, so that it may be asked for any stretch, in any order, for ever.

This module does not know how a blink looks.
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
