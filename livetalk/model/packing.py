"""Linear layers in the layout a CPU multiplies fastest: copies of weights for inference.

``torch`` rearranges a weight at every product; rearranging once makes a small network about a tenth faster. A packed
copy does not follow its layer, so it is dropped whenever the layer may change: when it moves, loads or trains. This
module knows linear layers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def can_pack(weight: Tensor) -> bool:
    """Whether this machine's torch has packed products for such a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear:
    """One or several linear layers with the same input as one product; a copy of their weights.

    Args:
        linears: the layers; their outputs follow each other.
        rows: rows the input will usually have; others work too.
    """

    def __init__(self, linears: Sequence[nn.Linear], rows: int) -> None:
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.cat([linear.weight for linear in linears])
            self._bias = torch.cat([linear.bias for linear in linears])
            self._product = torch.ops.mkldnn._linear_pointwise.default
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        return self._product(x, self._weight, self._bias, "none", [], "")

    def gelu(self, x: Tensor, form: str) -> Tensor:
        """The same followed, within the product, by a GELU in the form "tanh" or "none" (exact)."""
        return self._product(x, self._weight, self._bias, "gelu", [], form)


class Packable(nn.Module):
    """A module that may hold packed copies of its linear layers.

    ``pack`` makes them; moving, loading and ``train()`` drop them, and so does copying the module. Whoever writes
    weights in another way must call ``unpack``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packs: dict[str, PackedLinear] = {}

    def pack(self, rows: int) -> None:
        """Keep packed copies where the machine can use them.

        Args:
            rows: tokens of one pass.
        """
        groups = self.pack_groups()
        if all(can_pack(linear.weight) for group in groups.values() for linear in group):
            self._packs = {name: PackedLinear(group, rows) for name, group in groups.items()}

    def unpack(self) -> None:
        """Drop the packed copies."""
        self._packs = {}

    def pack_groups(self) -> dict[str, tuple[nn.Linear, ...]]:
        """Which layers are packed together, by name."""
        raise LookupError(f"{type(self).__name__} names no layers to pack.")

    def packed(self, name: str) -> PackedLinear | None:
        """The packed copy called ``name``; None without one, or where a gradient has to find its way."""
        return None if torch.is_grad_enabled() else self._packs.get(name)

    def train(self, mode: bool = True) -> Packable:
        """See ``nn.Module.train``."""
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Packable:
        self.unpack()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(state_dict, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packs": {}}
