"""Measures on tracks, one number per picture: does the mouth follow the speech, does it close, do the eyes blink?

This module does not know where tracks come from: truth of a renderer, prediction of an ear, or reading of a probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from livetalk.types import PICTURES_PER_SECOND

SHUT = 0.02
"""Openness under which a true mouth counts as shut."""


@dataclass(frozen=True)
class Sync:
    """How well the opening of a mouth follows the truth of its speech.

    Attributes:
        sync_r: Pearson correlation without any shift.
        sync_r_best: the highest within a few pictures of shift.
        av_lag_pictures: the shift of that one; positive = the pictures come late.
    """

    sync_r: float
    sync_r_best: float
    av_lag_pictures: int


@dataclass(frozen=True)
class Interval:
    """Mean over clips and its bootstrap interval."""

    mean: float
    low: float
    high: float


def correlation(told: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation of two tracks [T], -1..1; 0 if one of them never changes."""
    a, b = (np.asarray(track, np.float64) - np.mean(track) for track in (told, truth))
    scale = math.sqrt(float(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale > 1e-9 else 0.0


def longest_run(flags: np.ndarray) -> int:
    """Length of the longest stretch of true values in bool [T]."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def amplitude_ratio(told: np.ndarray, truth: np.ndarray) -> float:
    """Deviation of a track over that of the truth: 1 is right, 0 does not move."""
    return float(np.std(told) / (np.std(truth) + 1e-9))


def shifted_correlation(told: np.ndarray, truth: np.ndarray, pictures: int) -> float:
    """Correlation with ``told`` taken ``pictures`` later than the truth; far shifts should give about 0."""
    count, late, early = len(truth), max(pictures, 0), max(-pictures, 0)
    return correlation(told[late : count - early], truth[early : count - late])


def best_lag(told: np.ndarray, truth: np.ndarray, reach: int = 2) -> tuple[float, int]:
    """Highest correlation within ``reach`` pictures of shift, and that shift: positive = ``told`` comes late."""
    return max((shifted_correlation(told, truth, lag), lag) for lag in range(-reach, reach + 1))


def sync(told_open: np.ndarray, true_open: np.ndarray, reach_pictures: int = 2) -> Sync:
    """Correlation of read and true openness [T], unshifted and at its best within ``reach_pictures``."""
    best, lag = best_lag(told_open, true_open, reach_pictures)
    return Sync(correlation(told_open, true_open), best, lag)


def closed_in_silence(open_: np.ndarray, truth: np.ndarray, margin_pictures: int = 2) -> float:
    """Mean openness where the true mouth [T] is shut, ``margin_pictures`` around included; nan if it never is."""
    moving = np.convolve(truth > SHUT, np.ones(2 * margin_pictures + 1), mode="same") > 0
    return float(np.mean(open_[~moving])) if (~moving).any() else math.nan


def blinks_per_minute(eyes_shut: np.ndarray, pictures_per_second: float = PICTURES_PER_SECOND) -> float:
    """Blinks in a track of eye closure [T]: rises above 0.5 after having been under 0.3."""
    blinks, armed = 0, True
    for shut in eyes_shut:
        if armed and shut > 0.5:
            blinks, armed = blinks + 1, False
        elif shut < 0.3:
            armed = True
    return blinks * 60 * pictures_per_second / max(1, len(eyes_shut))


def over_clips(values: Sequence[float]) -> Interval:
    """Mean over clips with its 95 % bootstrap interval; clips without a value (nan) are left out, none = nan."""
    known = [float(value) for value in values if not math.isnan(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan)
    return Interval(float(np.mean(known)), *bootstrap_interval(known))


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = 0.95,
    rounds: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a statistic over clips, by resampling the clips (percentile bootstrap, Efron 1979).

    Args:
        values: one number per clip.
        statistic: what is reported of them.
        level: coverage of the interval.
        rounds: resamplings.
        seed: of the resampling; the same seed gives the same interval.
    """
    data = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    drawn = [float(statistic(data[rng.integers(0, len(data), len(data))])) for _ in range(rounds)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
