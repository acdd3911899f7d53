"""How much heads and brows move, and how differently: measured on what the probe reads, not on pixels.

So mouth, blinks, background and grain do not count as motion of the head. It knows no words for motion.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from livetalk.rulers.probe import Reading
from livetalk.types import PICTURES_PER_SECOND

SMOOTH_PICTURES = 8
BROW_SIDES, BROW_TILT_SIDES = 0.026, 0.022
"""How far a brow travels, in picture sides, per unit of ``brow`` and ``brow_angle``."""


def motion_amount(reading: Reading) -> float:
    """Mean speed of mouth and eyes with the head, in percent of the picture's side a second.

    Positions are averaged over half a second first, so that reading errors of single pictures do not add up.
    Captions that ask for more motion must give larger numbers.
    """
    width = min(SMOOTH_PICTURES, len(reading) // 2)
    if width < 1:
        return 0.0
    smooth = _smoothed(reading.spots.reshape(len(reading), -1, 2), width)
    steps = np.linalg.norm(smooth[width:] - smooth[:-width], axis=-1)
    return float(steps.mean()) * 100.0 * PICTURES_PER_SECOND / width if len(steps) else 0.0


def motion_tracks(reading: Reading) -> np.ndarray:
    """Where eyes, mouth and brows are, counted from the first picture: float32 [T, 8], percent of the side."""
    brows = np.stack([BROW_SIDES * reading.brow, BROW_TILT_SIDES * reading.brow_angle], axis=1)
    tracks = np.concatenate([reading.spots.reshape(len(reading), -1), brows], axis=1) * 100.0
    smooth = _smoothed(tracks, min(SMOOTH_PICTURES, len(tracks)))
    return (smooth - smooth[:1]).astype(np.float32)


def motion_spread(reading: Reading) -> float:
    """Deviation over time of the motion tracks within one clip, percent of the side: 0 for a frozen face."""
    return float(np.sqrt(motion_tracks(reading).var(axis=0).mean()))


def motion_diversity(readings: Sequence[Reading]) -> float:
    """Mean distance between the motion tracks of different clips, percent of the side; take the ratio to the truth's.

    0 if every clip moves alike (or not at all); nan for a single clip. Clips are compared over their common length.
    """
    tracks = [motion_tracks(reading) for reading in readings]
    pairs = list(itertools.combinations(tracks, 2))
    if not pairs:
        return math.nan
    length = min(len(track) for track in tracks)
    return float(np.mean([np.sqrt(np.square(a[:length] - b[:length]).mean()) for a, b in pairs]))


def _smoothed(tracks: np.ndarray, width: int) -> np.ndarray:
    """Moving average over ``width`` pictures of the first axis; ``width - 1`` pictures shorter."""
    sums = np.cumsum(np.concatenate([np.zeros_like(tracks[:1], np.float64), tracks]), axis=0)
    return (sums[width:] - sums[:-width]) / width
