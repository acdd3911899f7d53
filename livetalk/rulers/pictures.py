"""Measures on pictures, uint8 [T, H, W, 3]: sharpness, likeness to the portrait, flicker, darkness, distance.

Plain arithmetic: this module knows where mouth and eyes of a portrait usually are, nothing else about faces.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from livetalk.rulers.tracks import longest_run
from livetalk.types import PICTURES_PER_SECOND

CELLS = 16
BLACK_SHARE = 0.6
"""A picture under this share of the portrait's brightness counts as black."""


@dataclass(frozen=True)
class Box:
    """Part of a picture, in picture sides: rows ``top..bottom``, columns ``left..right``."""

    top: float
    bottom: float
    left: float
    right: float

    def of(self, pictures: np.ndarray) -> np.ndarray:
        """That part of ``pictures`` [T, H, W, 3]."""
        height, width = pictures.shape[1:3]
        rows = slice(round(self.top * height), round(self.bottom * height))
        return pictures[:, rows, round(self.left * width) : round(self.right * width)]


MOUTH = Box(0.59, 0.78, 0.36, 0.64)
EYES = Box(0.42, 0.56, 0.28, 0.72)


def luminance(pictures: np.ndarray) -> np.ndarray:
    """Brightness [T, H, W], 0..255 (Rec. 601)."""
    return pictures.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def longest_still_s(pictures: np.ndarray) -> float:
    """Seconds that the longest stretch of equal pictures lasts on screen; 1/16 s if all differ."""
    equal = (pictures[1:] == pictures[:-1]).all(axis=(1, 2, 3))
    return (1 + longest_run(equal)) / PICTURES_PER_SECOND


def sharpness(pictures: np.ndarray, box: Box) -> float:
    """Mean absolute brightness difference between neighbouring pixels in ``box``; compare with the truth's."""
    light = luminance(box.of(pictures))
    return float((np.abs(np.diff(light, axis=1)).mean() + np.abs(np.diff(light, axis=2)).mean()) / 2)


def sharpness_ratio(pictures: np.ndarray, truth: np.ndarray, box: Box) -> float:
    """Sharpness over the truth's in ``box``: 1 is right, less is blurred, more is grainy."""
    return sharpness(pictures, box) / (sharpness(truth, box) + 1e-9)


def psnr(pictures: np.ndarray, truth: np.ndarray, box: Box | None = None) -> float:
    """Peak signal-to-noise ratio in dB against the truth of the same size; infinite if they are equal."""
    if box is not None:
        pictures, truth = box.of(pictures), box.of(truth)
    error = float(np.mean(np.square(pictures.astype(np.float32) - truth.astype(np.float32))))
    return 10.0 * math.log10(255.0**2 / error) if error > 0 else math.inf


def cell_means(pictures: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Mean colours [T, cells, cells, 3], 0..255, of a grid; the picture's sides must be multiples of ``cells``."""
    count, height, width, _ = pictures.shape
    shape = (count, cells, height // cells, cells, width // cells, 3)
    return pictures.reshape(shape).mean(axis=(2, 4), dtype=np.float32)


def still_cells(pictures: np.ndarray, limit: float = 3.0) -> np.ndarray:
    """Cells bool [16, 16] of true pictures whose colour hardly moves (deviation under ``limit`` of 255).

    At least the calmest quarter of the cells is returned, however lively the clip.
    """
    moved = cell_means(pictures).std(0).mean(-1)
    return moved <= max(limit, float(np.quantile(moved, 0.25)))


def identity_distance(pictures: np.ndarray, truth: np.ndarray, still: np.ndarray | None = None) -> np.ndarray:
    """How far colours of parts that do not move are off the truth: float32 [T], mean absolute difference, 0..255.

    Args:
        pictures: uint8 [T, H, W, 3].
        truth: true pictures of the same clip, or the portrait [1, H, W, 3]; compared with its mean over time.
        still: cells to compare, see ``still_cells``; None = those of ``truth`` (all cells for a portrait).
    """
    still = still_cells(truth) if still is None else still
    difference = np.abs(cell_means(pictures) - cell_means(truth).mean(0)).mean(-1)
    return difference[:, still].mean(-1)


def identity(pictures: np.ndarray, portrait: np.ndarray, still: np.ndarray | None = None) -> np.ndarray:
    """Distance to the portrait [H, W, 3] over time: float32 [T], 0..255, see ``identity_distance``.

    Without ``still`` the calmest quarter of the cells of ``pictures`` is compared: no truth is needed, and a colour
    that drifts everywhere shows all the same.
    """
    still = still_cells(pictures, limit=0.0) if still is None else still
    return identity_distance(pictures, portrait[None], still)


def flicker(pictures: np.ndarray, still: np.ndarray) -> float:
    """Mean absolute change between neighbouring pictures, 0..255, in the cells ``still``; the truth's is near 0."""
    height, width = pictures.shape[1:3]
    mask = np.kron(still, np.ones((height // CELLS, width // CELLS), bool)).astype(bool)
    light = (luminance(picture[None])[0][mask] for picture in pictures)
    return float(np.mean([np.abs(after - before).mean() for before, after in itertools.pairwise(light)]))


def flicker_ratio(pictures: np.ndarray, through_vae: np.ndarray, still: np.ndarray) -> float:
    """Flicker over that of the true clip encoded and decoded: what the generator adds to the decoder's own."""
    return flicker(pictures, still) / (flicker(through_vae, still) + 1e-9)


def brightness(pictures: np.ndarray) -> np.ndarray:
    """Mean brightness of each picture: float32 [T], 0..255."""
    return np.array([luminance(picture[None]).mean() for picture in pictures], np.float32)


def darkest(pictures: np.ndarray) -> float:
    """Mean brightness, 0..255, of the darkest picture: finds black and fading pictures."""
    return float(brightness(pictures).min())


def black_frames(pictures: np.ndarray, portrait: np.ndarray, share: float = BLACK_SHARE) -> float:
    """Share of pictures, 0..1, whose mean brightness is under ``share`` of the portrait's [H, W, 3]."""
    return float(np.mean(brightness(pictures) < share * brightness(portrait[None])[0]))
