"""Decoding a chunk, one latent frame after the other: when its pictures are wanted, or ahead in a thread.

The first pictures of a chunk can leave before its last ones are decoded. Either way every latent frame is decoded by
itself, so that the bits are the same.

This module knows nothing of what is decoded, of time or of who wants pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from livetalk.model.parking import HostMemory

Decoded = tuple[np.ndarray, Any]
"""Pictures uint8 ``[T, H, W, 3]`` and the decoder's state after them."""


class Decoding:
    """Pictures of one chunk, as far as they are decoded.

    Only the decoder's state after the chunk is kept: a chunk is always decoded again from its beginning.

    Args:
        latents: ``[1, C, F, h, w]``.
        before: the chunk before; None = the stream starts.
        decode: latents of one frame, the state before it, whether that state may be written over -> its pictures and
            the state after it.
        thread: decodes ahead; None = frames are decoded when they are asked for, by who asks.
        parking: where the state after the chunk waits once the chunk behind works on it; None = where it is.
    """

    def __init__(
        self,
        latents: Tensor,
        before: Decoding | None,
        decode: Callable[[Tensor, Any, bool], Decoded],
        thread: ThreadPoolExecutor | None = None,
        parking: HostMemory | None = None,
    ) -> None:
        self._latents, self._before, self._decode = latents, before, decode
        self._parts: list[np.ndarray] = []
        self._state: Any = None
        self._parking, self._parked = parking, None
        self._ahead: list[Future[None]] | None = None
        if thread is not None:
            self._ahead = [thread.submit(self._decode_to, frame) for frame in range(self._frames)]

    def pictures(self, first: int, stop: int) -> np.ndarray:
        """Pictures from ``first`` to before ``stop`` of this chunk, uint8 ``[T, H, W, 3]``; waits for them."""
        found: list[np.ndarray] = []
        begin = frame = 0
        while begin < stop:
            part = self._part(frame)
            found.append(part[max(0, first - begin) : stop - begin])
            begin, frame = begin + len(part), frame + 1
        return found[0] if len(found) == 1 else np.concatenate([part for part in found if len(part)])

    def is_ready(self, frame: int) -> bool:
        """Whether the pictures of a latent frame are there, or are only waiting to be asked for."""
        return self._ahead is None or self._ahead[frame].done()

    def put_away(self) -> None:
        """Decode all of it, for a chunk behind that comes later or elsewhere; nothing but what is parked stays."""
        self._part(self._frames - 1)
        if self._parking is not None:
            self._parking.settle()
            self._state = None

    def hand_over(self, parking: HostMemory | None = None) -> tuple[Any, bool]:
        """The decoder's state after this chunk, and whether who takes it may write over it.

        Args:
            parking: brings it to where the taker works, if it is not there any more; None = this chunk's own.
        """
        self._part(self._frames - 1)
        if self._parking is None:
            return self._state, False
        state, self._state = self._state, None
        return (parking or self._parking).fetch(self._parked) if state is None else state, True

    @property
    def _frames(self) -> int:
        return self._latents.shape[2]

    def _part(self, frame: int) -> np.ndarray:
        if self._ahead is not None:
            self._ahead[frame].result()
        self._decode_to(frame)
        return self._parts[frame]

    def _decode_to(self, frame: int) -> None:
        """Decode everything up to a frame that is not decoded yet."""
        while len(self._parts) <= frame:
            index = len(self._parts)
            state, spend = (self._state, True) if index else self._state_before()
            pictures, self._state = self._decode(self._latents[:, :, index : index + 1], state, spend)
            if index == self._frames - 1 and self._parking is not None:
                self._parked = self._parking.park(self._state)
            self._parts.append(pictures)

    def _state_before(self) -> tuple[Any, bool]:
        before, self._before = self._before, None  # or all chunks of the stream would hang together
        return (None, False) if before is None else before.hand_over(self._parking)
