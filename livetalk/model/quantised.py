"""Linear layers in 8 bits, made from plain ones: half the memory, or twice the speed where the GPU has such products.

Each output channel has a scale of its own. ``Int8Linear`` keeps the activations as they are and widens its weight for
each product; ``Fp8Linear`` rounds the activations too, with one scale for each token, and multiplies in 8 bits. Both
run on any device torch has the products for, so that what a GPU will compute is tested on a CPU.

This module knows linear layers only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk.model.packing import Packable
from livetalk.types import LiveTalkError

LARGEST_INT8 = 127
FP8 = torch.float8_e4m3fn
LEAST_SCALE = 1e-12
"""Of rows of zeros, which have none of their own."""


class Int8Linear(nn.Module):
    """A linear layer whose weight is kept in 8 bits.

    Args:
        linear: where weight and bias come from.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        whole, scale = _rounded(linear.weight.detach().float(), LARGEST_INT8)
        self.register_buffer("weight", whole.round_().to(torch.int8))
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``: whole numbers are exact in bfloat16, scales come after the sum."""
        product = (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        return product if self.bias is None else product + self.bias


class Fp8Linear(nn.Module):
    """A linear layer that multiplies in 8-bit floats (e4m3) and adds up in float32.

    Args:
        linear: where weight and bias come from; both sides a multiple of 16.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rounded, scale = _rounded(linear.weight.detach().float(), torch.finfo(FP8).max)
        self.register_buffer("weight", rounded.to(FP8))
        self.register_buffer("scale", scale.T)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        rows, scale = _rounded(x.flatten(0, -2).float(), torch.finfo(FP8).max)
        product = torch._scaled_mm(
            rows.to(FP8), self.weight.T, scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16
        )
        product = product.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


def _rounded(rows: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Rows ``[N, D]`` stretched so that each reaches ``largest``, and the scales ``[N, 1]`` that undo it."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(LEAST_SCALE) / largest
    return rows / scale, scale


def quantise(layers: nn.Module, kind: str) -> None:
    """Put every linear layer inside ``layers`` into 8 bits, in place; nothing can be trained afterwards.

    Args:
        layers: the transformer's layers, in their number format.
        kind: "int8" or "fp8".

    Raises:
        LiveTalkError: no such kind.
    """
    kinds = {"int8": Int8Linear, "fp8": Fp8Linear}
    if kind not in kinds:
        raise LiveTalkError(f"There are no linear layers of the kind {kind!r}. Use one of: {', '.join(kinds)}.")
    for module in list(layers.modules()):
        if isinstance(module, Packable):
            module.unpack()
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kinds[kind](child))
