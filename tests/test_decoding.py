"""Pictures are decoded by the latent frame, and the grid says what can still be made in time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from livetalk.stream.decoding import Decoding
from livetalk.stream.grid import Grid
from livetalk.stream.pace import MOST_HASTE, REMEMBERED_HASTE, Allowance, Playback

GRID = Grid(3)


def decoder(calls: list[float]) -> Any:
    """One picture for the first frame of a stream, four for others, all of the frame's value plus the state's."""

    def decode(latents: torch.Tensor, state: float | None) -> tuple[np.ndarray, float]:
        value = float(latents)
        calls.append(value)
        count = 1 if state is None else 4
        return np.full((count, 2, 2, 3), value + (state or 0), np.uint8), value

    return decode


def latents(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1, 1, 1)


def test_only_what_is_wanted_is_decoded_and_only_once() -> None:
    calls: list[float] = []
    first = Decoding(latents(1, 2, 3), None, decoder(calls))
    second = Decoding(latents(4, 5, 6), first, decoder(calls))
    assert first.pictures(0, 1)[:, 0, 0, 0].tolist() == [1]
    assert calls == [1]
    assert first.pictures(0, 4)[:, 0, 0, 0].tolist() == [1, 3, 3, 3]
    assert calls == [1, 2]
    assert second.pictures(3, 6)[:, 0, 0, 0].tolist() == [7, 9, 9], "the rest of the chunk before is decoded on the way"
    assert calls == [1, 2, 3, 4, 5]
    assert second.pictures(0, 12)[:, 0, 0, 0].tolist() == [7] * 4 + [9] * 4 + [11] * 4
    assert calls == [1, 2, 3, 4, 5, 6]


def test_a_thread_decodes_the_same_ahead() -> None:
    with ThreadPoolExecutor(1) as thread:
        first = Decoding(latents(1, 2, 3), None, decoder([]), thread)
        second = Decoding(latents(4, 5, 6), first, decoder([]), thread)
        assert second.pictures(0, 12)[:, 0, 0, 0].tolist() == [7] * 4 + [9] * 4 + [11] * 4
        assert all(second.is_ready(frame) for frame in range(3))
        assert first.state() == 3


def test_every_picture_has_its_chunk_and_frame() -> None:
    for picture in range(100):
        first, stop = GRID.span(GRID.chunk_of(picture))
        assert first <= picture < stop
        assert picture < GRID.frame_stop(picture) <= stop
    assert [GRID.frame_of(picture) for picture in (0, 1, 4, 5, 8, 9, 13, 17, 20, 21)] == [0, 1, 1, 2, 2, 0, 1, 2, 2, 0]


@pytest.mark.parametrize("at_s", np.arange(2.0, 3.0, 0.037).tolist())
@pytest.mark.parametrize("allowance", [1.0, 1.2, 1.6])
def test_what_is_begun_soonest_is_ready_in_time(at_s: float, allowance: float) -> None:
    now = 0.0
    playback = Playback(lambda: now, 0.6)
    playback.hand_out(0)
    now = at_s

    def making_s(frames: int) -> float:
        return 0.1 + 0.02 * frames

    first = GRID.soonest(playback, making_s, allowance)
    stop = GRID.span(GRID.chunk_of(first))[1]
    assert playback.ahead_s(first) >= allowance * making_s(GRID.frame_of(first) + 1)
    assert playback.ahead_s(stop) >= allowance * making_s(3) + making_s(1)
    assert playback.ahead_s(first) <= allowance * making_s(3) + making_s(1) + 1 / 16, "and not much later than that"


def test_an_allowance_grows_with_what_came_late_and_shrinks_again() -> None:
    allowance = Allowance()
    calm = allowance.factor
    allowance.note(0.2, 0.3)
    assert allowance.factor >= 1.5 > calm
    for _ in range(REMEMBERED_HASTE):
        allowance.note(0.2, 0.19)
    assert allowance.factor == calm
    allowance.note(0.2, 20.0)
    assert allowance.factor == MOST_HASTE, "one hitch must not delay a whole conversation"
