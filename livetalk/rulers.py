"""Rulers: what a frozen probe network reads off pictures, and plain measures on tracks and pictures.

The probe reads openness, width and teeth of the mouth and how far the eyes are shut from pictures of the embedded
model's illustrated people (it is not meant for photographs). Everything else is arithmetic. Pictures are uint8
[T, H, W, 3]; tracks are one number per picture.

This module does not know how pictures were made or what was said; training the probe is ``distill.rulers``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from livetalk.types import PICTURES_PER_SECOND, LiveTalkError

PROBE_SIZE = 128
PROBE_FILE = Path("mini") / "probe.safetensors"
# Rows and columns of a 128 px picture the probe looks at: eyes to chin, with room for the head to move.
_LOOK_ROWS, _LOOK_COLUMNS = slice(40, 112), slice(20, 108)
_BATCH = 64
CELLS = 16


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


@dataclass(frozen=True)
class Reading:
    """What the probe sees in each of T pictures: float32 [T] each.

    Attributes:
        open: 0 lips together .. 1 wide open.
        wide: 0 rounded, 0.5 at rest, 1 spread.
        teeth: 0..1, 0 behind closed lips.
        eyes_shut: 0 open .. 1 shut.
    """

    open: np.ndarray
    wide: np.ndarray
    teeth: np.ndarray
    eyes_shut: np.ndarray


class Probe(nn.Module):
    """Small convolutional network from pictures to (open, wide, teeth, eyes shut); 0.13M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(24, 40, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(40, 40, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(40, 16, 1),
            nn.GELU(),
        )
        self.tell = nn.Sequential(nn.Linear(16 * 9 * 11, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, 128, 128] in 0..1 -> [B, 4]."""
        looked_at = pictures[:, :, _LOOK_ROWS, _LOOK_COLUMNS]
        return self.tell(self.see(looked_at - 0.5).flatten(1))

    @classmethod
    def load(cls, file: Path) -> Probe:
        """The probe trained for the embedded model's people.

        Args:
            file: safetensors file, such as ``checkpoints/mini/probe.safetensors``.

        Raises:
            LiveTalkError: there is no such file, or it holds something else.
        """
        if not file.is_file():
            raise LiveTalkError(f"The probe's weights {file} are missing. Fetch the repository with its checkpoints.")
        probe = cls()
        try:
            probe.load_state_dict({name: value.float() for name, value in load_file(str(file)).items()})
        except (RuntimeError, OSError, SafetensorError) as error:
            raise LiveTalkError(f"{file} does not hold the probe's weights: {error}") from error
        return probe.eval().requires_grad_(False)

    @torch.inference_mode()
    def read(self, pictures: np.ndarray) -> Reading:
        """Reads pictures uint8 [T, H, W, 3]; other sizes than 128 are resized."""
        told = [self(_as_input(pictures[start : start + _BATCH])) for start in range(0, len(pictures), _BATCH)]
        tracks = torch.cat(told).clamp(0, 1).numpy()
        return Reading(*(np.ascontiguousarray(tracks[:, k]) for k in range(4)))


def _as_input(pictures: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if tensor.shape[-2:] != (PROBE_SIZE, PROBE_SIZE):
        size = (PROBE_SIZE, PROBE_SIZE)
        tensor = nn.functional.interpolate(tensor, size, mode="bilinear", antialias=True, align_corners=False)
    return tensor


# --- tracks ---------------------------------------------------------------------------------------


def correlation(told: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation of two tracks [T], -1..1; 0 if one of them never changes."""
    a, b = (np.asarray(track, np.float64) - np.mean(track) for track in (told, truth))
    scale = math.sqrt(float(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale > 1e-9 else 0.0


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


def openness_in_silence(open_: np.ndarray, truth: np.ndarray, margin_pictures: int = 2) -> float:
    """Mean openness where the true mouth [T] is shut, ``margin_pictures`` around included; nan if it never is."""
    moving = np.convolve(truth > 0.02, np.ones(2 * margin_pictures + 1), mode="same") > 0
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


# --- pictures -------------------------------------------------------------------------------------


def luminance(pictures: np.ndarray) -> np.ndarray:
    """Brightness [T, H, W], 0..255 (Rec. 601)."""
    return pictures.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def sharpness(pictures: np.ndarray, box: Box) -> float:
    """Mean absolute brightness difference between neighbouring pixels in ``box``; compare with the truth's."""
    light = luminance(box.of(pictures))
    return float((np.abs(np.diff(light, axis=1)).mean() + np.abs(np.diff(light, axis=2)).mean()) / 2)


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


def flicker(pictures: np.ndarray, still: np.ndarray) -> float:
    """Mean absolute change between neighbouring pictures, 0..255, in the cells ``still``; the truth's is near 0."""
    height, width = pictures.shape[1:3]
    mask = np.kron(still, np.ones((height // CELLS, width // CELLS), bool)).astype(bool)
    light = luminance(pictures)
    return float(np.mean([np.abs(b[mask] - a[mask]).mean() for a, b in itertools.pairwise(light)]))


def darkest(pictures: np.ndarray) -> float:
    """Mean brightness, 0..255, of the darkest picture: finds black and fading pictures."""
    return float(luminance(pictures).mean(axis=(1, 2)).min())
