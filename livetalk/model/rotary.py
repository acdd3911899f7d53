"""Rotary position embedding over time, rows and columns (spec section 5.3).

A position becomes an angle in float64 at any offset, so there is no table that ends. The rotation itself, a complex
product over adjacent channel pairs, is ``model.kernels.rotate``. This module does not know which keys a query sees.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

_BASE = 10_000.0


def _turns(positions: Tensor, size: int) -> Tensor:
    """Unit complex numbers (complex64) ``[len(positions), size // 2]`` at angle position x ``10000^(-2i/size)``."""
    frequencies = _BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = positions.to(torch.float64)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


@functools.lru_cache(maxsize=4096)
def _moment_turns(time: float, size: int) -> Tensor:
    """Rotation by one time position ``[size // 2]``: computed alone, so that its bits never depend on company."""
    with torch.inference_mode(False):
        return _turns(torch.tensor([time], dtype=torch.float64), size)[0]


@functools.lru_cache(maxsize=32)
def _grid_turns(rows: int, columns: int, split: tuple[int, int, int], device: torch.device) -> Tensor:
    """Rotation by row and column, ``[1, rows * columns, (row + column channels) // 2]``."""
    with torch.inference_mode(False):
        down = _turns(torch.arange(rows), split[1])[:, None].expand(rows, columns, -1)
        across = _turns(torch.arange(columns), split[2])[None, :].expand(rows, columns, -1)
        return torch.cat((down, across), dim=-1).reshape(1, rows * columns, -1).to(device)


def rotary_table(
    times: Iterable[float], grid: tuple[int, int], split: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Rotation of every token of some latent frames.

    Args:
        times: time position of each frame, any offset.
        grid: rows and columns of the patch grid.
        split: channels of a head for (time, rows, columns), each even.
        device: where the table is wanted.

    Returns:
        complex64 ``[F * rows * columns, head_width // 2]``, token order frame, row, column.
    """
    with torch.inference_mode(False):
        moments = torch.stack([_moment_turns(float(time), split[0]) for time in times]).to(device)
        space = _grid_turns(grid[0], grid[1], split, device)
        frames, tokens = moments.shape[0], space.shape[1]
        table = torch.cat((moments[:, None].expand(-1, tokens, -1), space.expand(frames, -1, -1)), dim=-1)
        return table.reshape(frames * tokens, -1)


def time_shift(frames: int, split: tuple[int, int, int], device: torch.device) -> Tensor:
    """Rotation of rotated tokens by ``frames`` in time and none in space; complex64 ``[1, head_width // 2]``."""
    with torch.inference_mode(False):
        rest = torch.ones((split[1] + split[2]) // 2, dtype=torch.complex64)
        return torch.cat((_moment_turns(float(frames), split[0]), rest))[None].to(device)
