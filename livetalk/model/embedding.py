"""How latents and noise levels enter the network (spec section 5.1).

This module does not know layers, conditions or caches.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk.model.packing import Packable


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Time embedding of ``t`` (0..1000): cosines first, then sines (spec section 5.1); ``[..., width]`` float64."""
    half = width // 2
    frequencies = torch.pow(10_000.0, -torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = t.to(torch.float64)[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class PatchEmbedding(Packable):
    """Latents to tokens: a convolution over patches that do not overlap, written as one matrix product.

    Weight and bias are those of the ``Conv3d`` of the original checkpoint.

    Args:
        channels: of the latents with their condition.
        width: of a token.
        patch: (frames, rows, columns); one frame.
    """

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        like = nn.Conv3d(channels, width, patch)
        self.weight, self.bias = like.weight, cast("nn.Parameter", like.bias)
        self.patch = patch

    def pack_groups(self) -> dict[str, tuple[nn.Linear, ...]]:
        """See ``Packable``; inputs in the order (row, column, channel), in which they are gathered fastest."""
        weight = self.weight.detach()[:, :, 0].permute(0, 2, 3, 1).flatten(1)
        linear = nn.Linear(1, 1)
        linear.weight, linear.bias = nn.Parameter(weight, False), self.bias
        return {"patches": (linear,)}

    def forward(self, channels: Tensor) -> Tensor:
        """``[B, C, F, H, W]`` to tokens ``[B, F * P, D]``."""
        batch, count, frames, height, width = channels.shape
        _, high, wide = self.patch
        patches = channels.view(batch, count, frames, height // high, high, width // wide, wide)
        size = batch, -1, count * math.prod(self.patch)
        packed = self.packed("patches")
        if packed is not None:
            return packed(patches.permute(0, 2, 3, 5, 4, 6, 1).reshape(size))
        return F.linear(patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(size), self.weight.flatten(1), self.bias)
