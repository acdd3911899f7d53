"""Blinks drawn from the seed: any stretch in any order, at a human rate, never on the portrait."""

from __future__ import annotations

import numpy as np

from livetalk.distill.portraits import MOTIONS, animate, sway_of_clip, sway_of_poses
from livetalk.model.drive import SWAY_AXES, driven, gaze, lids, sway
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


def test_gaze_is_the_same_however_it_is_asked_for_and_rests_on_the_camera():
    whole = gaze(7, 0, 300)
    parts = [gaze(7, first, 12) for first in range(0, 300, 12)]
    assert np.array_equal(whole, np.concatenate(parts))
    minutes = np.stack([gaze(seed, 0, MINUTE) for seed in range(20)])
    assert 0.4 < (np.abs(minutes).max(-1) < 0.02).mean() < 0.75
    assert 0.3 < np.abs(minutes).max() <= 0.5
    assert np.abs(np.diff(minutes, axis=1)).max() <= 0.55, "a glance takes two pictures"


def test_sway_is_the_same_however_it_is_asked_for_and_begins_at_the_portrait():
    whole = sway(7, 0, 300)
    assert whole.shape == (300, len(SWAY_AXES)) and not whole[0].any()
    assert np.array_equal(whole, np.concatenate([sway(7, first, 12) for first in range(0, 300, 12)]))
    assert not np.allclose(whole, sway(8, 0, 300))
    hour = sway(3, 57_600, MINUTE)
    assert hour.std() > 0.2 and np.abs(hour).max() <= 2 and np.abs(np.diff(hour, axis=0)).max() < 0.2


def test_drawn_heads_go_where_the_sway_says():
    mouth = np.zeros((48, 3), np.float32)
    shown = sway_of_clip(11, 48)
    for motion, reach in MOTIONS.items():
        poses = animate(mouth, 11, motion)
        assert np.allclose(poses.track("yaw")[8:] - poses.track("yaw")[0], 0.36 * reach * shown[8:, 0], atol=1e-5)
        assert np.allclose(sway_of_poses(poses, motion)[8:], shown[8:], atol=1e-3)


def test_driven_columns_are_lids_then_gaze_then_sway():
    assert np.array_equal(driven(3, 40, 24, 8)[:, 3:], sway(3, 40, 24))
    columns = driven(3, 40, 24, 3)
    assert np.array_equal(columns[:, 0], lids(3, 40, 24)) and np.array_equal(columns[:, 1:], gaze(3, 40, 24))
    assert driven(3, 40, 24, 1).shape == (24, 1) and driven(3, 40, 24, 0).shape == (24, 0)
