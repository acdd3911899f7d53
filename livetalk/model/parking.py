"""A parking place in the machine's memory for what a stream may have to come back to.

The state of a full video decoder is over a gigabyte at 512 x 512. One of them is at work; those of earlier chunks wait
for a change of mind that seldom comes, and need not fill a GPU.

This module does not know what states mean.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class HostMemory:
    """Copies states to the machine's memory and back.

    Args:
        device: where states are used.
        stream: CUDA stream on which they are used; None = the current one.
    """

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        self._device, self._stream = device, stream
        self._pinned = device.type == "cuda"

    def park(self, state: Any) -> Any:
        """A copy of all tensors in lists, tuples and dicts; on CUDA it goes on while the caller does."""
        with self._on_stream():
            return tree_map(self._copied, state)

    def fetch(self, parked: Any) -> Any:
        """What was parked as new tensors on the device; ``parked`` stays as it is."""
        with self._on_stream():
            return tree_map(self._fetched, parked)

    def settle(self) -> None:
        """Wait until what was parked is there, for who fetches it on another stream."""
        if self._pinned:
            with self._on_stream():
                torch.cuda.current_stream(self._device).synchronize()

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)  # None = nothing changes

    def _copied(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        place = torch.empty(value.shape, dtype=value.dtype, pin_memory=self._pinned)
        return place.copy_(value, non_blocking=self._pinned)

    def _fetched(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=self._pinned, copy=True) if isinstance(value, Tensor) else value
