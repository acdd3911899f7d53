"""Blinks drawn from the seed: any stretch in any order, at a human rate, never on the portrait."""

from __future__ import annotations

import numpy as np

from livetalk.model.drive import lids
from livetalk.rulers import blinks_per_minute

MINUTE = 960


def test_a_stretch_does_not_depend_on_how_it_is_asked_for() -> None:
    whole = lids(7, 0, 300)
    parts = [lids(7, first, 12) for first in range(0, 300, 12)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, lids(8, 0, 300))


def test_people_blink_at_a_human_rate() -> None:
    rates = [blinks_per_minute(lids(seed, 0, MINUTE)) for seed in range(20)]
    assert min(rates) >= 8
    assert max(rates) <= 20


def test_the_first_pictures_have_open_eyes_and_far_streams_still_blink() -> None:
    assert all(lids(seed, 0, 4).max() == 0 for seed in range(50))
    assert lids(3, 10_000_000, MINUTE).max() > 0.9
