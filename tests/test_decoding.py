"""Pictures are decoded by the latent frame, and the grid says what can still be made in time."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from livetalk.model.parking import HostMemory
from livetalk.stream.decoding import Decoding
from livetalk.stream.grid import Grid
from livetalk.stream.pace import MOST_HASTE, REMEMBERED_HASTE, Allowance, Playback

GRID = Grid(3)


def decoder(calls: list[float]) -> Any:
    """One picture for the first frame of a stream, four for others, all of the frame's value plus the state's."""

    def decode(latents: torch.Tensor, state: float | None, spend: bool) -> tuple[np.ndarray, float]:
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
        assert first.hand_over() == (3, False)


class Adding:
    """A decoder whose state is a list that it turns into the next one where it may."""

    def __call__(self, latents: torch.Tensor, state: list[torch.Tensor] | None, spend: bool) -> Any:
        memory = [torch.zeros(())] if state is None else state if spend else list(state)
        memory[0] = memory[0] + latents.sum()
        return np.full((4, 2, 2, 3), int(memory[0]), np.uint8), memory


@pytest.mark.parametrize("threaded", [False, True])
def test_a_state_that_was_worked_on_is_fetched_from_where_it_was_parked(threaded: bool) -> None:
    with ThreadPoolExecutor(1) as pool:
        thread = pool if threaded else None
        parking = HostMemory(torch.device("cpu"))
        first = Decoding(latents(1, 2, 3), None, Adding(), thread, parking)
        for _ in range(3):  # made, unmade, made again
            second = Decoding(latents(4, 5, 6), first, Adding(), thread, parking)
            assert second.pictures(0, 12)[:, 0, 0, 0].tolist() == [10] * 4 + [15] * 4 + [21] * 4
        second.put_away()
        assert Decoding(latents(7), second, Adding(), thread, parking).pictures(0, 4)[0, 0, 0, 0] == 28


def test_earlier_states_are_let_go() -> None:
    """Of a chunk the state after it, and of that the one the next chunk works on and the parked copy: no more."""
    alive = weakref.WeakSet[torch.Tensor]()

    def decode(latents: torch.Tensor, state: Any, spend: bool) -> Any:
        pictures, state = Adding()(latents, state, spend)
        alive.add(state[0])
        return pictures, state

    chunks: list[Decoding] = []
    for _ in range(4):
        before = chunks[-1] if chunks else None
        chunks.append(Decoding(latents(1, 2, 3), before, decode, None, HostMemory(torch.device("cpu"))))
        chunks[-1].pictures(0, 12)
        assert len(alive) == 1


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
    allowance = Allowance(1.3)
    calm = allowance.factor
    assert calm == 1.3
    allowance.note(0.2, 0.3)
    assert allowance.factor >= 1.5 > calm
    for _ in range(REMEMBERED_HASTE):
        allowance.note(0.2, 0.19)
    assert allowance.factor == calm
    allowance.note(0.2, 20.0)
    assert allowance.factor == MOST_HASTE, "one hitch must not delay a whole conversation"
