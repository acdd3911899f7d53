"""Several streams in one pass of the network: their caches as one, their conditions as one.

Linears, norms, modulation and feed-forward take the tokens of all streams at once, along ``B``. Caches cannot be
joined: their rings turn at different places, and their windows are of different lengths while they fill. So queries,
keys and values are split again where self-attention begins, and each stream's part goes to its own cache.

This module does not know threads, nor which streams meet (``model.gathering``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from livetalk.model.cache import CachePass, KVCache
from livetalk.model.conditions import AudioVectors, Conditions, FewKeys, TextKeys


class CacheBatch:
    """The caches of several streams, for one pass over a chunk of each.

    Args:
        caches: in the order of the streams along ``B``; all of the same network and picture size.
    """

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self._caches = tuple(caches)

    def open(self, frames: int) -> PassBatch:
        """See ``KVCache.open``."""
        return PassBatch([cache.open(frames) for cache in self._caches], [cache.batch for cache in self._caches])

    def advance(self, frames: int) -> None:
        """See ``KVCache.advance``."""
        for cache in self._caches:
            cache.advance(frames)


class PassBatch:
    """``CachePass`` for several streams; made by ``CacheBatch.open``."""

    def __init__(self, passes: Sequence[CachePass], sizes: Sequence[int]) -> None:
        self._passes, self._sizes = tuple(passes), list(sizes)

    @property
    def is_last(self) -> bool:
        """See ``CachePass.is_last``; of all streams."""
        return all(one.is_last for one in self._passes)

    @is_last.setter
    def is_last(self, last: bool) -> None:
        for one in self._passes:
            one.is_last = last

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, largest: float = math.inf) -> Tensor:
        """See ``AttentionContext``."""
        return self._each(lambda one, *parts: one.attend(layer, *parts, largest), q, k, v)

    @functools.cached_property
    def turns(self) -> Tensor:
        """Cosines and sines ``[B, 1, N, d / 2, 2]``, see ``CachePass.turns``: each stream has its own."""
        rows = [one.turns for one, size in zip(self._passes, self._sizes, strict=True) for _ in range(size)]
        return torch.stack(rows).unsqueeze(1)

    def attend_rotated(self, layer: int, q: Tensor, rotated: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``CachePass.attend_rotated``."""
        return self._each(lambda one, *parts: one.attend_rotated(layer, *parts), q, rotated, k, v)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """See ``CachePass.write``."""
        for one, own_k, own_v in zip(self._passes, k.split(self._sizes), v.split(self._sizes), strict=True):
            one.write(layer, own_k, own_v)

    def _each(self, attend: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """What every stream attends to with its part of ``tensors``, in the layout of ``kernels.attend``."""
        parts = zip(self._passes, *(tensor.split(self._sizes) for tensor in tensors), strict=True)
        return torch.cat([attend(*part).transpose(1, 2) for part in parts]).transpose(1, 2)


def join_conditions(conditions: Sequence[Conditions], text: TextKeys) -> Conditions:
    """Conditions of several streams as one, along ``B``.

    Args:
        conditions: prepared by the network.
        text: their words, see ``join_text``.
    """
    vectors = [cond.audio.vectors for cond in conditions if isinstance(cond.audio, AudioVectors)]
    return Conditions(torch.cat([cond.image for cond in conditions]), AudioVectors(torch.cat(vectors, dim=1)), text)


def join_text(texts: Sequence[TextKeys]) -> TextKeys:
    """Keys and values of several streams' words as one, along ``B``; copies them."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return TextKeys(
        keys=_joined([text.keys for text in texts]),
        values=_joined([text.values for text in texts]),
        pooled=torch.cat(pooled) if pooled else None,
        few=tuple(
            FewKeys(torch.cat([one.keys for one in layer]), torch.cat([one.outputs for one in layer]))
            for layer in zip(*(text.few for text in texts), strict=True)
        ),
    )


def _joined(streams: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(layer) for layer in zip(*streams, strict=True))
