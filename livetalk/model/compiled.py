"""The transformer's layers compiled by torch: the same numbers with fewer trips to memory.

What surrounds the products of a layer (norms, modulation, rotation, GELU, residual sums) is little arithmetic on large
tensors; ``torch.compile`` fuses it. A layer is compiled in two halves, before and after its attention. Between them the
cache is written in place and attention reads it, at places that change from chunk to chunk; so the halves see the same
shapes and no number of a chunk in all of a stream, and one compilation serves all layers and chunks. Streams that meet
in one pass have other shapes, so each number of streams is compiled once.

CUDA graphs are not used: at 512 x 512 a layer keeps a GPU busy several times longer than its launches take.

This module knows layers and the passes of a cache; it does not know chunks, noise or devices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from livetalk.model.attention import AttentionContext
from livetalk.model.batching import PassBatch
from livetalk.model.cache import CachePass
from livetalk.model.conditions import FewKeys
from livetalk.model.packing import Packable
from livetalk.model.transformer import CausalDiT, DiTBlock, add, modulate

logger = logging.getLogger(__name__)

BACKEND = "inductor"
REASON_CHARACTERS = 200


def compile_layers(network: CausalDiT, backend: Any = None) -> None:
    """Let the layers of a network run compiled in rollouts; training and whole clips stay as they are.

    The first pass compiles. If that fails, it is said once and all layers run as they are written.

    Args:
        network: frozen, on its device and in its number format.
        backend: of ``torch.compile``; None = ``BACKEND``.
    """
    for module in network.modules():
        if isinstance(module, Packable):
            module.unpack()  # packed weights are a CPU's other way to be fast, which a compiler cannot see into
    halves = Halves(backend or BACKEND)
    for block in network.blocks:
        block.forward = _Layer(cast("DiTBlock", block), halves)


class Halves:
    """The two halves of a layer, compiled once for all layers.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, backend: Any) -> None:
        self.work = True
        self._before = torch.compile(_before, backend=backend, dynamic=False, fullgraph=True)
        self._after = torch.compile(_after, backend=backend, dynamic=False, fullgraph=True)

    def before(self, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See ``_before``."""
        return self._run(self._before, _before, *args)

    def after(self, *args: Any) -> Tensor:
        """See ``_after``."""
        return self._run(self._after, _after, *args)

    def _run(self, compiled: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> Any:
        """The compiled function as long as it can be compiled; it writes over nothing, so it can be tried."""
        if self.work:
            try:
                return compiled(*args)
            except Exception as error:  # whatever a compiler, its C++ compiler or a driver may say
                self.work = False
                reason = " ".join(str(error).split())[:REASON_CHARACTERS] or type(error).__name__
                logger.warning("the network runs uncompiled, which is slower: torch could not compile it (%s)", reason)
        return plain(*args)


class _Layer:
    """What stands in for a layer's own ``forward``.

    Args:
        block: the layer.
        halves: of all layers.
    """

    def __init__(self, block: DiTBlock, halves: Halves) -> None:
        self._block, self._halves = block, halves

    def __call__(
        self,
        x: Tensor,
        modulations: tuple[Tensor, ...],
        text: tuple[Tensor, Tensor, FewKeys | None],
        layer: int,
        context: AttentionContext,
    ) -> Tensor:
        """See ``DiTBlock.forward``."""
        if torch.is_grad_enabled() or not isinstance(context, (CachePass, PassBatch)):
            return DiTBlock.forward(self._block, x, modulations, text, layer, context)
        q, rotated, k, v = self._halves.before(self._block, x, modulations, context.turns)
        attended = context.attend_rotated(layer, q, rotated, k, v)
        return self._halves.after(self._block, x, attended, modulations, text)


def _before(
    block: DiTBlock, x: Tensor, modulations: tuple[Tensor, ...], turns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, keys as they were, values, ``[B, heads, N, d]`` each, of tokens ``[B, F, P, D]``."""
    attention = block.self_attn
    tokens = modulate(x, *modulations[:2]).flatten(1, 2)
    k, v = attention.keys_values(tokens)
    return _rotated(attention.queries(tokens), turns), _rotated(k, turns), k, v


def _after(
    block: DiTBlock,
    x: Tensor,
    attended: Tensor,
    modulations: tuple[Tensor, ...],
    text: tuple[Tensor, Tensor, FewKeys | None],
) -> Tensor:
    """The rest of a layer, ``[B, F, P, D]``."""
    gate1, shift2, factor2, gate2 = modulations[2:]
    x = add(x, block.self_attn.output(attended).view(x.shape), gate1)
    x = add(x, block.cross_attn(block.norm3(x).flatten(1, 2), *text).view(x.shape))
    return add(x, block.ffn(modulate(x, shift2, factor2)), gate2)


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """``kernels.rotate`` in real numbers, which compilers fuse.

    Args:
        x: ``[B, heads, N, d]``.
        turns: cosines and sines ``[N, d / 2, 2]``, or of each stream ``[B, 1, N, d / 2, 2]``.
    """
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turns.unbind(-1)
    pair = (first * cosine - second * sine, first * sine + second * cosine)
    return torch.stack(pair, dim=-1).flatten(-2).to(x.dtype)
