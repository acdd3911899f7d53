"""The probe: a frozen network that reads mouth, eyes, brows, mood and head off pictures of illustrated people.

It was trained on drawn, true pictures only (see ``distill.rulers``) and is not meant for photographs. Its features,
the last layer before the readings along their strongest axes, are the space of the Frechet distances.

It does not read gaze: a trial did not learn it at this size. This module does not know how pictures were made or what
was said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from livetalk.types import LiveTalkError

PROBE_SIZE = 128
PROBE_FILE = Path("mini") / "probe.safetensors"
MOODS = ("neutral", "happy", "sad", "surprised", "angry")
TRACKS = ("open", "wide", "teeth", "eyes_shut", "brow", "brow_angle", "smile", "eye_wide", "yaw", "pitch", "roll")
UNITS = (0.3, 0.3, 0.3, 0.4, 0.5, 0.5, 0.5, 0.4, 0.3, 0.3, 0.05)
"""About the deviation of each track over true pictures: the network tells tracks in these units."""

SPOTS = 3
SPOT_CENTRES = ((0.5, 0.68), (0.39, 0.486), (0.61, 0.486))
SPOT_UNIT = 0.04
LOOKS = 22
"""Numbers about person and picture quality that are only trained, so that the features know them."""

FEATURES = 48
# Rows and columns of a 128 px picture where the mouth, and where eyes and brows can be.
_MOUTH = (slice(64, 112), slice(28, 100))
_EYES = (slice(36, 76), slice(20, 108))
_SEEN = 136
_BATCH = 64


@dataclass(frozen=True)
class Reading:
    """What the probe sees in each of T pictures: float32 [T] each if nothing else is said.

    Attributes:
        open: 0 lips together .. 1 wide open.
        wide: 0 rounded, 0.5 at rest, 1 spread.
        teeth: 0..1, 0 behind closed lips.
        eyes_shut: 0 open .. 1 shut.
        brow: height of the brows, 0 at rest, about -0.7..1.3.
        brow_angle: -1 angry .. 1 sad.
        smile: -1..1.
        eye_wide: -1..1; read weakly (correlation about .5 within a person).
        yaw, pitch: turn of the head in units of about 25 degrees, right and down.
        roll: radians, clockwise.
        spots: [T, 3, 2], column and row of mouth, left and right eye in picture sides.
        moods: [T, 5], probabilities of ``MOODS``.
        features: [T, 48], see ``livetalk.rulers.frechet``.
    """

    open: np.ndarray
    wide: np.ndarray
    teeth: np.ndarray
    eyes_shut: np.ndarray
    brow: np.ndarray
    brow_angle: np.ndarray
    smile: np.ndarray
    eye_wide: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    spots: np.ndarray
    moods: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.open)

    def __getitem__(self, stretch: slice) -> Reading:
        """The reading of some of the pictures."""
        return Reading(*(getattr(self, field.name)[stretch] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Reading]) -> Reading:
        """One reading of stretches that follow each other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def mood(reading: Reading, skip_pictures: int = 8) -> str:
    """The mood of a clip: the likeliest on average after the first half second, in which it may still come up."""
    return MOODS[int(reading.moods[min(skip_pictures, len(reading) - 1) :].mean(0).argmax())]


@dataclass(frozen=True)
class Told:
    """Raw outputs for B pictures: ``tracks`` [B, 11] in ``UNITS``, ``spots`` [B, 3, 2], ``moods`` [B, 5] logits,
    ``looks`` [B, 22], ``seen`` [B, 136]."""

    tracks: Tensor
    spots: Tensor
    moods: Tensor
    looks: Tensor
    seen: Tensor


class Probe(nn.Module):
    """Convolutional network with a view each of the mouth, of eyes and brows, and of the whole picture at half size."""

    centre: Tensor
    axes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mouth = _view((24, 40, 48), 24, 6 * 9, 48)
        self.eyes = _view((24, 40, 48), 24, 5 * 11, 48)
        self.whole = _view((24, 48, 64), 16, 8 * 8, 40)
        self.read_out = nn.Linear(_SEEN, len(TRACKS) + 2 * SPOTS + len(MOODS) + LOOKS)
        self.register_buffer("centre", torch.zeros(_SEEN))
        self.register_buffer("axes", torch.eye(FEATURES, _SEEN))

    def forward(self, pictures: Tensor) -> Told:
        """[B, 3, 128, 128] in 0..1 -> raw outputs."""
        light = pictures - 0.5
        views = (
            self.mouth(light[:, :, _MOUTH[0], _MOUTH[1]]),
            self.eyes(light[:, :, _EYES[0], _EYES[1]]),
            self.whole(nn.functional.avg_pool2d(light, 2)),
        )
        seen = torch.cat(views, 1)
        tracks, spots, moods, looks = self.read_out(seen).split((len(TRACKS), 2 * SPOTS, len(MOODS), LOOKS), 1)
        return Told(tracks, spots.unflatten(1, (SPOTS, 2)), moods, looks, seen)

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
        """Reads pictures uint8 [T, H, W, 3], T >= 1; other sizes than 128 are resized."""
        parts = [self._reading(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)]
        return Reading.joined(parts)

    def _reading(self, pictures: np.ndarray) -> Reading:
        told = self(as_input(pictures))
        tracks = dict(zip(TRACKS, (told.tracks * torch.tensor(UNITS)).T.numpy(), strict=True))
        for name in ("open", "wide", "teeth", "eyes_shut"):
            tracks[name] = tracks[name].clip(0, 1)
        return Reading(
            **{name: np.ascontiguousarray(track) for name, track in tracks.items()},
            spots=(torch.tensor(SPOT_CENTRES) + SPOT_UNIT * told.spots).numpy(),
            moods=told.moods.softmax(1).numpy(),
            features=((told.seen - self.centre) @ self.axes.T).numpy(),
        )


def as_input(pictures: np.ndarray) -> Tensor:
    """Pictures uint8 [T, H, W, 3] as the probe takes them: [T, 3, 128, 128] in 0..1."""
    tensor = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
    if tensor.shape[-2:] != (PROBE_SIZE, PROBE_SIZE):
        size = (PROBE_SIZE, PROBE_SIZE)
        tensor = nn.functional.interpolate(tensor, size, mode="bilinear", antialias=True, align_corners=False)
    return tensor


def _view(widths: tuple[int, int, int], channels: int, cells: int, width: int) -> nn.Sequential:
    """Three halvings of the resolution, then all ``cells`` to one vector."""
    first, second, third = widths
    return nn.Sequential(
        nn.Conv2d(3, first, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(second, third, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(third, channels, 1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(channels * cells, width),
        nn.GELU(),
    )
