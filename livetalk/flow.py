"""Flow matching: noise levels and the conversions between noise, samples and network outputs (spec section 7).

``x_t = (1 - sigma) x0 + sigma noise``, flow ``v = noise - x0``. Pure functions and one table. Does not know networks,
chunks or conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FULL_NOISE = 1000.0


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise level 0..1 moved towards noise: ``shift u / (1 + (shift - 1) u)``."""
    return shift * u / (1 + (shift - 1) * u)


def add_noise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """``(1 - sigma) x0 + sigma noise``; a tensor ``sigma`` must broadcast."""
    return (1 - sigma) * x0 + sigma * noise


def x0_from_flow(flow: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
    """Clean sample that ``flow`` at noise level ``sigma`` points to."""
    return x - sigma * flow


def flow_from_x0(x0: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
    """Flow of a clean sample seen through ``x`` at noise level ``sigma`` (not 0)."""
    return (x - x0) / sigma


def euler_step(x: Tensor, flow: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step of the teacher's sampler from ``sigma`` to ``sigma_next`` (0 after the last)."""
    return x + flow * (sigma_next - sigma)


def guide(
    negative: Tensor, positive: Tensor, text_scale: float, audio_scale: float, positive_silent: Tensor | None = None
) -> Tensor:
    """Classifier-free guidance of text and audio (spec section 9).

    Args:
        negative: output for the negative text without audio.
        positive: output for text and audio.
        text_scale: strength of the text, 1 = no guidance.
        audio_scale: strength of the audio.
        positive_silent: output for the text without audio; needed when the scales differ.
    """
    if text_scale == audio_scale or positive_silent is None:
        return negative + text_scale * (positive - negative)
    return negative + text_scale * (positive_silent - negative) + audio_scale * (positive - positive_silent)


def dmd_timestep(index: Tensor, shift: float = 5.0, lowest: float = 20.0, highest: float = 980.0) -> Tensor:
    """Noise level 0..1000 for a uniform draw 0..999, shifted and clamped (spec section 10.3)."""
    return (FULL_NOISE * shifted(index.to(torch.float32) / FULL_NOISE, shift)).clamp(lowest, highest)


class FlowSchedule:
    """A table of noise levels.

    Args:
        steps: entries in the table.
        shift: how far they are moved towards noise.

    Attributes:
        sigmas: float32 ``[steps]``, falling from 1.
        timesteps: ``1000 sigmas``, what the network is told.
    """

    def __init__(self, steps: int, shift: float) -> None:
        even = torch.linspace(1, 0, steps + 1)[:-1]
        self.sigmas = shifted(even, shift)
        self.timesteps = FULL_NOISE * self.sigmas

    def nearest(self, t: Tensor | Sequence[float] | float) -> Tensor:
        """Index of the entry nearest to each ``t`` (0..1000); the first one on a tie."""
        wanted = torch.as_tensor(t, dtype=torch.float32)
        return (self.timesteps.to(wanted.device) - wanted[..., None]).abs().argmin(dim=-1)

    def sigma(self, t: Tensor | Sequence[float] | float) -> Tensor:
        """Noise level used for ``t``: that of the nearest entry."""
        index = self.nearest(t)
        return self.sigmas.to(index.device)[index]

    def warp(self, timesteps: Sequence[float]) -> list[float]:
        """Evenly spaced noise levels as entries of this table: 1000 is the first, 0 behind the last."""
        table = [*self.timesteps.tolist(), 0.0]
        return [table[round((1 - t / FULL_NOISE) * (len(table) - 1))] for t in timesteps]

    def training_weights(self) -> Tensor:
        """Bell-shaped weight of every entry; none of the losses uses it (spec section 7)."""
        bell = torch.exp(-2 * ((self.timesteps - FULL_NOISE / 2) / FULL_NOISE) ** 2)
        bell = bell - bell.min()
        return bell * (FULL_NOISE / bell.sum())
