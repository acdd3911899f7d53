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

Decoded = tuple[np.ndarray, Any]
"""Pictures uint8 ``[T, H, W, 3]`` and the decoder's state after them."""


class Decoding:
    """Pictures of one chunk, as far as they are decoded.

    Args:
        latents: ``[1, C, F, h, w]``.
        before: the chunk before; None = the stream starts.
        decode: latents of one frame and the state before it -> its pictures and the state after it.
        thread: decodes ahead; None = frames are decoded when they are asked for, by who asks.
    """

    def __init__(
        self,
        latents: Tensor,
        before: Decoding | None,
        decode: Callable[[Tensor, Any], Decoded],
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._latents, self._before, self._decode = latents, before, decode
        self._parts: list[Decoded] = []
        self._ahead: list[Future[None]] | None = None
        if thread is not None:
            self._ahead = [thread.submit(self._decode_to, frame) for frame in range(self._frames)]

    def pictures(self, first: int, stop: int) -> np.ndarray:
        """Pictures from ``first`` to before ``stop`` of this chunk, uint8 ``[T, H, W, 3]``; waits for them."""
        found: list[np.ndarray] = []
        begin = frame = 0
        while begin < stop:
            part = self._part(frame)[0]
            found.append(part[max(0, first - begin) : stop - begin])
            begin, frame = begin + len(part), frame + 1
        return found[0] if len(found) == 1 else np.concatenate([part for part in found if len(part)])

    def is_ready(self, frame: int) -> bool:
        """Whether the pictures of a latent frame are there, or are only waiting to be asked for."""
        return self._ahead is None or self._ahead[frame].done()

    def state(self) -> Any:
        """The decoder's state after this chunk."""
        return self._part(self._frames - 1)[1]

    @property
    def _frames(self) -> int:
        return self._latents.shape[2]

    def _part(self, frame: int) -> Decoded:
        if self._ahead is not None:
            self._ahead[frame].result()
        self._decode_to(frame)
        return self._parts[frame]

    def _decode_to(self, frame: int) -> None:
        """Decode everything up to a frame that is not decoded yet."""
        while len(self._parts) <= frame:
            index = len(self._parts)
            state = self._parts[-1][1] if index else self._state_before()
            self._parts.append(self._decode(self._latents[:, :, index : index + 1], state))

    def _state_before(self) -> Any:
        before, self._before = self._before, None  # or all chunks of the stream would hang together
        return None if before is None else before.state()
