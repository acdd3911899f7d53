"""Clips of drawn faces on disk, and random crops of them with weights, for training the video VAE.

A pool is two arrays: pictures, and where mouth and eyes are in each. It does not know the VAE; drawing needs
skia-python, reading a pool does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from livetalk.distill.portraits import MOODS, MOTIONS, Face, animate, draw_clip, landmarks
from livetalk.model.small_vae import PATCH_PIXELS
from livetalk.types import LiveTalkError

SPOTS = 3
"""Places of a face that matter most: mouth, left eye, right eye."""


@dataclass(frozen=True)
class CropSettings:
    """How batches are cut from clips.

    Attributes:
        batch: crops in a batch.
        pixels: side of a crop, a multiple of 8.
        pictures: pictures of a crop, 1 + 4k.
        face_share: share of crops around a spot of the face; the others lie anywhere.
    """

    batch: int = 8
    pixels: int = 64
    pictures: int = 9
    face_share: float = 0.68


@dataclass(frozen=True)
class ClipPool:
    """Clips on disk, read as they are needed.

    Attributes:
        pictures: uint8 ``[N, T, H, W, 3]``.
        spots: float32 ``[N, T, 3, 2]``: column and row in pixels of mouth, left eye and right eye.
    """

    pictures: np.ndarray
    spots: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> ClipPool:
        """The pool in ``folder``: ``pictures.npy`` and ``spots.npy``.

        Raises:
            LiveTalkError: the files are not there or do not fit each other.
        """
        paths = folder / "pictures.npy", folder / "spots.npy"
        if not all(path.is_file() for path in paths):
            raise LiveTalkError(f"No clips in {folder}: pictures.npy and spots.npy were expected. Draw the pool first.")
        pictures, spots = np.load(paths[0], mmap_mode="r"), np.load(paths[1])
        if spots.shape != (*pictures.shape[:2], SPOTS, 2):
            raise LiveTalkError(f"Spots {spots.shape} do not fit pictures {pictures.shape}. Draw the pool again.")
        return cls(pictures, spots)

    def crops(self, rng: np.random.Generator, crops: CropSettings) -> tuple[Tensor, Tensor]:
        """A random batch: pictures ``[B, 3, T, h, w]`` in -1..1 and their weights ``[B, 1, T, h, w]``."""
        videos, weights = zip(*(self._crop(rng, crops) for _ in range(crops.batch)), strict=True)
        return torch.stack(videos), torch.stack(weights)

    def _crop(self, rng: np.random.Generator, crops: CropSettings) -> tuple[Tensor, Tensor]:
        clip = int(rng.integers(len(self.pictures)))
        first = int(rng.integers(self.pictures.shape[1] - crops.pictures + 1))
        span = slice(first, first + crops.pictures)
        spots = self.spots[clip, span]
        side = crops.pixels
        corner = []
        aim = spots[crops.pictures // 2, rng.choice(SPOTS, p=[0.5, 0.25, 0.25])]
        on_face = rng.random() < crops.face_share
        for axis, limit in ((1, self.pictures.shape[2]), (0, self.pictures.shape[3])):
            free = (limit - side) // PATCH_PIXELS
            wish = (aim[axis] - side / 2) / PATCH_PIXELS + rng.uniform(-2, 2)
            corner.append(int(np.clip(round(wish), 0, free)) if on_face else int(rng.integers(free + 1)))
        top, left = corner[0] * PATCH_PIXELS, corner[1] * PATCH_PIXELS
        pixels = np.array(self.pictures[clip, span, top : top + side, left : left + side])
        video = torch.from_numpy(pixels).permute(3, 0, 1, 2).float() / 127.5 - 1.0
        weight = spot_weights(spots - np.array([left, top], np.float32), side, side, self.pictures.shape[2])
        return _varied(video, weight, rng)


def spot_weights(spots: np.ndarray, height: int, width: int, picture_pixels: int) -> Tensor:
    """How much each pixel counts: 1, and up to 8 more at the mouth and 6 more at the eyes.

    Args:
        spots: ``[T, 3, 2]`` columns and rows of mouth, left eye, right eye in the pixels of the result.
        height: of the result.
        width: of the result.
        picture_pixels: side of the whole picture, which tells how large a mouth is.

    Returns:
        ``[1, T, height, width]``.
    """
    rows, columns = np.arange(height, dtype=np.float32) + 0.5, np.arange(width, dtype=np.float32) + 0.5
    total = np.ones((len(spots), height, width), np.float32)
    for spot, (gain, wide, high) in enumerate(((8.0, 0.09, 0.07), (6.0, 0.06, 0.045), (6.0, 0.06, 0.045))):
        across = (columns - spots[:, spot, 0, None]) / (wide * picture_pixels)
        down = (rows - spots[:, spot, 1, None]) / (high * picture_pixels)
        total += gain * np.exp(-0.5 * down**2)[:, :, None] * np.exp(-0.5 * across**2)[:, None, :]
    return torch.from_numpy(total)[None]


def _varied(video: Tensor, weight: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirrored half of the time; sometimes other colours or a still grain, for the sake of uploaded portraits."""
    if rng.random() < 0.5:
        video, weight = video.flip(-1), weight.flip(-1)
    if rng.random() < 0.3:
        gain = torch.from_numpy(rng.uniform(0.75, 1.15, (3, 1, 1, 1)).astype(np.float32))
        shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (3, 1, 1, 1)).astype(np.float32))
        video = (video * gain + shift).clamp(-1, 1)
    if rng.random() < 0.1:
        coarse = torch.from_numpy(rng.normal(size=(1, 3, 16, 16)).astype(np.float32))
        grain = functional.interpolate(coarse, size=video.shape[-2:], mode="bicubic")[0][:, None]
        video = (video + float(rng.uniform(0.02, 0.12)) * grain).clamp(-1, 1)
    return video, weight


def draw_pool(folder: Path, seeds: Iterable[int], pictures: int, size: int) -> None:
    """Draw one clip per seed (face, motion, mood and mouth all follow from it) into ``folder``.

    Args:
        folder: receives ``pictures.npy``, ``spots.npy`` and the mouths' truth ``mouths.npy``.
        seeds: one per clip.
        pictures: pictures of a clip.
        size: side of a picture in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = list(seeds)
    shape = (len(seeds), pictures, size, size, 3)
    store = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    spots, mouths = [], []
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 0x9001])
        face = Face.sample(seed)
        motion, mood = str(rng.choice(list(MOTIONS))), str(rng.choice(MOODS))
        poses = animate(babble(rng, pictures), seed, motion, mood)
        store[index] = draw_clip(face, poses, size)
        spots.append(landmarks(face, poses, size))
        mouths.append(poses.mouth)
    store.flush()
    np.save(folder / "spots.npy", np.stack(spots).astype(np.float32))
    np.save(folder / "mouths.npy", np.stack(mouths).astype(np.float32))


def babble(rng: np.random.Generator, pictures: int) -> np.ndarray:
    """A mouth that moves as fast as speech, without any: openness, width and teeth, float32 ``[T, 3]``."""
    marks = [0.0]
    while marks[-1] < pictures + 1:
        marks.append(marks[-1] + rng.uniform(0.8, 3.0))
    shut = rng.random(len(marks)) < 0.35
    keys = np.stack(
        [
            np.where(shut, 0.0, rng.beta(1.3, 1.5, len(marks))),
            rng.uniform(-1.0, 1.0, len(marks)),
            np.where(shut, 0.0, rng.uniform(0.0, 1.0, len(marks))),
        ],
        axis=1,
    )
    if rng.random() < 0.12:
        keys[:, [0, 2]] = 0.0
    moments = np.arange(pictures) + 0.5
    return np.stack([np.interp(moments, marks, keys[:, i]) for i in range(3)], axis=1).astype(np.float32)
