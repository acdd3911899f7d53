"""Frechet distance of pictures and of clips in the probe's feature space.

Not FID or FVD: the features are those of our own small probe, so the numbers compare only with each other. The
distance is that of two normal distributions (Dowson and Landau 1982, as Heusel et al. 2017 use it).

This module does not know the probe: features are plain arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livetalk.types import LiveTalkError

CHANGE_GAIN = 7.0
"""How much louder change counts than state in the features of a clip: then both spread about alike in true clips."""


@dataclass(frozen=True)
class Gaussian:
    """Mean float64 [D] and covariance float64 [D, D] of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """Mean and covariance of features [N, D].

    Raises:
        LiveTalkError: fewer than two rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise LiveTalkError(f"A distribution needs at least 2 rows of features, got shape {list(features.shape)}.")
    rows = np.asarray(features, np.float64)
    return Gaussian(rows.mean(0), np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1]))


def clip_features(features: np.ndarray, window: int = 16, step: int = 4) -> np.ndarray:
    """Features of clips from those of their pictures: float32 [N, 2 * D].

    Args:
        features: of the consecutive pictures of one clip, [T, D].
        window: pictures of a clip.
        step: pictures between the starts of neighbouring windows, which overlap.

    Returns:
        For every window the mean features and their mean absolute change from picture to picture (times
        ``CHANGE_GAIN``): what is shown, and how it moves. No rows if T is shorter than the window.
    """
    starts = range(0, len(features) - window + 1, step)
    change = CHANGE_GAIN * np.abs(np.diff(features, axis=0))
    rows = [np.concatenate([features[k : k + window].mean(0), change[k : k + window - 1].mean(0)]) for k in starts]
    return np.asarray(rows, np.float32).reshape(len(rows), 2 * features.shape[1])


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Squared Frechet distance of two normal distributions; singular covariances (few samples) are fine."""
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ other.covariance @ root)
    overlap = float(np.sqrt(np.clip(shared, 0.0, None)).sum())
    apart = float(np.sum((one.mean - other.mean) ** 2))
    return max(0.0, apart + float(np.trace(one.covariance) + np.trace(other.covariance)) - 2.0 * overlap)
