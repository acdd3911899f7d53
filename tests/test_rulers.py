"""Rulers must rank: the truth first, slightly damaged pictures next, broken ones last."""

from pathlib import Path

import numpy as np
import pytest

from livetalk import rulers
from livetalk.rulers import EYES, MOUTH, Probe
from livetalk.types import LiveTalkError

PROBE = Path(__file__).parents[1] / "checkpoints" / rulers.PROBE_FILE


def _blurred(pictures: np.ndarray, times: int = 1) -> np.ndarray:
    soft = pictures.astype(np.float32)
    for _ in range(times):
        soft = (soft + np.roll(soft, 1, 1) + np.roll(soft, 1, 2) + np.roll(soft, (1, 1), (1, 2))) / 4
    return soft.astype(np.uint8)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """24 true pictures of one unseen person, and (open, wide, teeth, eyes shut) of each."""
    pytest.importorskip("skia", reason="needs skia-python to draw people")
    from livetalk.distill.rulers import HELD_OUT_FACE, draw_labelled

    return draw_labelled(HELD_OUT_FACE + 7, 24)


@pytest.mark.skipif(not PROBE.is_file(), reason="needs checkpoints/mini/probe.safetensors")
def test_the_probe_reads_unseen_people(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    pictures, labels = drawn
    probe = Probe.load(PROBE)
    reading = probe.read(pictures)
    assert rulers.correlation(reading.open, labels[:, 0]) > 0.95
    assert rulers.correlation(reading.eyes_shut, labels[:, 3]) > 0.93
    assert rulers.correlation(reading.wide, labels[:, 1]) > 0.85
    soft = probe.read(_blurred(pictures))
    large = probe.read(np.kron(pictures, np.ones((1, 2, 2, 1), np.uint8)))
    assert rulers.correlation(soft.open, labels[:, 0]) > 0.9
    np.testing.assert_allclose(large.open, reading.open, atol=0.15)
    order = np.random.default_rng(0).permutation(len(pictures))
    broken = probe.read(pictures[order])
    assert rulers.correlation(broken.open, labels[:, 0]) < 0.6


def test_the_probe_refuses_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="missing"):
        Probe.load(tmp_path / "probe.safetensors")
    foreign = tmp_path / "other.safetensors"
    foreign.write_bytes(b"not weights")
    with pytest.raises(LiveTalkError, match="does not hold"):
        Probe.load(foreign)


def test_tracks_rank_truth_over_damaged_over_broken() -> None:
    rng = np.random.default_rng(0)
    truth = np.clip(np.sin(np.arange(160) * 0.7) * 0.5 + 0.3 * rng.standard_normal(160), 0, 1)
    damaged = 0.7 * truth + 0.1 * rng.standard_normal(160)
    ranks = [rulers.correlation(track, truth) for track in (truth, damaged, rng.permutation(truth))]
    assert ranks[0] == pytest.approx(1)
    assert ranks[0] > ranks[1] > 0.6 > 0.3 > ranks[2]
    assert rulers.correlation(np.full(160, 0.4), truth) == 0
    assert rulers.amplitude_ratio(0.5 * truth, truth) == pytest.approx(0.5)
    assert rulers.best_lag(np.roll(truth, 2), truth)[1] == 2
    assert rulers.best_lag(truth[1:], truth[:-1])[1] == -1
    assert rulers.shifted_correlation(np.roll(truth, 2), truth, 2) > 0.9
    assert abs(rulers.shifted_correlation(truth, truth, 17)) < 0.6


def test_silence_and_blinks_are_counted() -> None:
    truth = np.zeros(64)
    truth[10:30] = 0.5
    leaky = truth + 0.2
    assert rulers.openness_in_silence(truth, truth) == 0
    assert rulers.openness_in_silence(leaky, truth) == pytest.approx(0.2)
    assert np.isnan(rulers.openness_in_silence(truth, np.ones(64)))
    eyes = np.zeros(16 * 30)
    for start in (20, 100, 300):
        eyes[start : start + 3] = (0.6, 1, 0.55)
    assert rulers.blinks_per_minute(eyes) == pytest.approx(6)
    assert rulers.blinks_per_minute(np.full(100, 0.4)) == 0


def test_pictures_rank_truth_over_damaged_over_broken(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    truth, _ = drawn
    still = rulers.still_cells(truth)
    assert 0.2 < still.mean() < 1
    rng = np.random.default_rng(0)
    noisy = np.clip(truth + rng.normal(0, 6, truth.shape), 0, 255).astype(np.uint8)
    tinted = np.clip(truth.astype(int) + np.array([20, -15, 0]), 0, 255).astype(np.uint8)
    for box in (MOUTH, EYES):
        sharp = [rulers.sharpness(pictures, box) for pictures in (truth, _blurred(truth), _blurred(truth, 4))]
        assert sharp[0] > 1.1 * sharp[1] > 1.1 * 1.1 * sharp[2]
    distances = [rulers.identity_distance(pictures, truth, still).mean() for pictures in (truth, noisy, tinted)]
    assert distances[0] < distances[1] < 0.3 * distances[2]
    assert rulers.identity_distance(truth, truth[:1]).shape == (len(truth),)
    calm = np.repeat(truth[:1], 8, 0)
    assert rulers.flicker(calm, still) == 0
    assert rulers.flicker(np.clip(calm + rng.normal(0, 6, calm.shape), 0, 255).astype(np.uint8), still) > 2
    faded = truth.copy()
    faded[3] //= 4
    assert rulers.darkest(faded) < 0.5 * rulers.darkest(truth)


def test_the_bootstrap_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(3).normal(0.8, 0.05, 12).tolist()
    low, high = rulers.bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert high - low < 0.12
    assert (low, high) == rulers.bootstrap_interval(values)
