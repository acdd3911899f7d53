"""Rulers must rank: the truth first, slightly damaged pictures next, broken ones last."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from livetalk import rulers
from livetalk.rulers import EYES, MOODS, MOUTH, Probe, Reading
from livetalk.types import LiveTalkError

PROBE = Path(__file__).parents[1] / "checkpoints" / rulers.PROBE_FILE
FACE = 9_700_000
"""Faces never trained on, nor looked at for the probe's own figures."""

needs_probe = pytest.mark.skipif(not PROBE.is_file(), reason="needs checkpoints/mini/probe.safetensors")


@functools.cache
def probe() -> Probe:
    return Probe.load(PROBE)


def mouth(seed: int, count: int) -> np.ndarray:
    """Something like speech: syllables of random height and width, and a pause at the end."""
    rng = np.random.default_rng(seed)
    knots = np.arange(0, count + 4, 2)
    tracks = [np.interp(np.arange(count), knots, rng.uniform(low, 1, len(knots))) for low in (0, -1, 0)]
    talking = np.arange(count) < count * 0.8
    return (np.stack(tracks, axis=1) * talking[:, None]).astype(np.float32)


@functools.cache
def film(face: int, motion: str = "gentle", mood: str = "neutral", count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """True pictures of a talking person and the true openness."""
    pytest.importorskip("skia", reason="needs skia-python to draw people")
    from livetalk.distill.portraits import Face, animate, draw_clip

    poses = animate(mouth(face, count), FACE + face, motion, mood)
    return draw_clip(Face.sample(FACE + face), poses, 128), poses.track("open")


@functools.cache
def seen(face: int, motion: str = "gentle", mood: str = "neutral", count: int = 48) -> Reading:
    return probe().read(film(face, motion, mood, count)[0])


def blurred(pictures: np.ndarray, radius: float = 0.8) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(radius))) for p in pictures])


def noisy(pictures: np.ndarray, strength: float = 6.0) -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, strength, pictures.shape)
    return np.clip(pictures + grain, 0, 255).astype(np.uint8)


def tinted(pictures: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Colours that drift away over the clip."""
    drift = strength * np.linspace(0, 1, len(pictures))[:, None, None, None] * np.array([30, -20, 5])
    return np.clip(pictures + drift, 0, 255).astype(np.uint8)


def shuffled(pictures: np.ndarray) -> np.ndarray:
    return pictures[np.random.default_rng(1).permutation(len(pictures))]


def frozen(pictures: np.ndarray) -> np.ndarray:
    return np.repeat(pictures[:1], len(pictures), axis=0)


def falls(values: list[float], factor: float = 1.0) -> bool:
    """Whether every value is clearly larger than the next."""
    return all(one > factor * other for one, other in itertools.pairwise(values))


# --- the probe ------------------------------------------------------------------------------------


@needs_probe
def test_the_probe_reads_unseen_people() -> None:
    pytest.importorskip("skia", reason="needs skia-python to draw people")
    from livetalk.distill import portraits
    from livetalk.distill.rulers import HELD_OUT_FACE, judge_probe

    assert portraits.MOODS == MOODS
    figures = judge_probe(probe(), range(HELD_OUT_FACE + 500, HELD_OUT_FACE + 524))
    wanted = {"open": 0.97, "wide": 0.93, "teeth": 0.85, "eyes_shut": 0.95, "brow": 0.85, "smile": 0.75, "mood": 0.85}
    assert {name: figures[name] for name in wanted if figures[name] < wanted[name]} == {}
    assert figures["spots"] < 6


@needs_probe
def test_the_probe_reads_blurred_large_and_split_pictures_alike() -> None:
    pictures, opening = film(0)
    reading = seen(0)
    assert rulers.correlation(probe().read(blurred(pictures)).open, opening) > 0.9
    large = probe().read(np.kron(pictures[:8], np.ones((1, 2, 2, 1), np.uint8)))
    np.testing.assert_allclose(large.open, reading.open[:8], atol=0.15)
    parts = Reading.joined([probe().read(pictures[:20]), probe().read(pictures[20:])])
    np.testing.assert_allclose(parts.features, reading.features, atol=1e-4)
    np.testing.assert_allclose(reading[20:].moods, parts.moods[20:], atol=1e-4)


@needs_probe
def test_moods_are_told_apart_and_a_wrong_one_is_noticed() -> None:
    asked = [(face, name) for face in range(4) for name in MOODS]
    told = [rulers.mood(seen(face, "gentle", name, 24)) for face, name in asked]
    assert np.mean([name == one for (_, name), one in zip(asked, told, strict=True)]) >= 0.8
    wrong = MOODS[1:] + MOODS[:1]  # every clip shows the next mood
    assert np.mean([wrong[MOODS.index(name)] == one for (_, name), one in zip(asked, told, strict=True)]) < 0.2


def test_the_probe_refuses_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="missing"):
        Probe.load(tmp_path / "probe.safetensors")
    foreign = tmp_path / "other.safetensors"
    foreign.write_bytes(b"not weights")
    with pytest.raises(LiveTalkError, match="does not hold"):
        Probe.load(foreign)


# --- tracks ---------------------------------------------------------------------------------------


@needs_probe
def test_sync_ranks_truth_over_late_over_shuffled_over_frozen() -> None:
    pictures, opening = film(1)
    late = np.concatenate([pictures[:2], pictures[:-2]])
    kinds = [pictures, noisy(pictures, 12), late, shuffled(pictures), frozen(pictures)]
    found = [rulers.sync(probe().read(one).open, opening) for one in kinds]
    assert found[0].sync_r > 0.97
    assert falls([one.sync_r for one in (found[0], found[1], found[2])])
    assert found[2].sync_r > 0.1 + max(found[3].sync_r, found[4].sync_r)
    assert found[2].av_lag_pictures == 2
    assert found[2].sync_r_best > 0.95
    assert rulers.sync(opening[1:], opening[:-1]).av_lag_pictures == -1


def test_tracks_rank_truth_over_damaged_over_broken() -> None:
    rng = np.random.default_rng(0)
    truth = np.clip(np.sin(np.arange(160) * 0.7) * 0.5 + 0.3 * rng.standard_normal(160), 0, 1)
    damaged = 0.7 * truth + 0.1 * rng.standard_normal(160)
    ranks = [rulers.correlation(track, truth) for track in (truth, damaged, rng.permutation(truth))]
    assert ranks[0] == pytest.approx(1)
    assert ranks[0] > ranks[1] > 0.6 > 0.3 > ranks[2]
    assert rulers.correlation(np.full(160, 0.4), truth) == 0
    assert rulers.amplitude_ratio(0.5 * truth, truth) == pytest.approx(0.5)
    assert rulers.shifted_correlation(np.roll(truth, 2), truth, 2) > 0.9
    assert abs(rulers.shifted_correlation(truth, truth, 17)) < 0.6


def test_silence_and_blinks_are_counted() -> None:
    truth = np.zeros(64)
    truth[10:30] = 0.5
    leaky = truth + 0.2
    assert rulers.closed_in_silence(truth, truth) == 0
    assert rulers.closed_in_silence(leaky, truth) == pytest.approx(0.2)
    assert np.isnan(rulers.closed_in_silence(truth, np.ones(64)))
    eyes = np.zeros(16 * 30)
    for start in (20, 100, 300):
        eyes[start : start + 3] = (0.6, 1, 0.55)
    assert rulers.blinks_per_minute(eyes) == pytest.approx(6)
    assert rulers.blinks_per_minute(np.full(100, 0.4)) == 0


def test_the_bootstrap_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(3).normal(0.8, 0.05, 12).tolist()
    found = rulers.over_clips([*values, float("nan")])
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(np.mean(values))
    assert found.high - found.low < 0.12
    assert (found.low, found.high) == rulers.bootstrap_interval(values)
    assert np.isnan(rulers.over_clips([float("nan")]).mean)


# --- motion ---------------------------------------------------------------------------------------


@needs_probe
def test_motion_words_are_told_by_how_much_heads_move() -> None:
    for face in (2, 3):
        amounts = [rulers.motion_amount(seen(face, motion, count=64)) for motion in ("lively", "gentle", "still")]
        standing = rulers.motion_amount(probe().read(noisy(frozen(film(face, "still", count=64)[0]), 3)))
        assert falls([*amounts, standing], 1.2), amounts


@needs_probe
def test_diversity_ranks_truth_over_reduced_over_alike() -> None:
    truth = [seen(face, "lively") for face in range(4)]
    reduced = [seen(face, "still") for face in range(4)]
    alike = [truth[0]] * 4
    assert falls([rulers.motion_diversity(kind) for kind in (truth, reduced, alike)], 1.5)
    assert rulers.motion_spread(truth[0]) > 2 * rulers.motion_spread(reduced[0])
    assert np.isnan(rulers.motion_diversity(truth[:1]))


# --- pictures -------------------------------------------------------------------------------------


def test_identity_ranks_truth_over_noise_over_drift_over_another_person() -> None:
    pictures, _ = film(0)
    still = rulers.still_cells(pictures)
    assert 0.2 < still.mean() < 1
    kinds = [film(1)[0], tinted(pictures), tinted(pictures, 0.3), noisy(pictures), pictures]
    for mask in (still, None):
        distances = [rulers.identity(kind, pictures[0], mask) for kind in kinds]
        assert falls([float(d.mean()) for d in distances], 1.1)
        assert distances[1][-12:].mean() > 2 * distances[1][:12].mean()
    floats = rulers.cell_means(pictures).mean(0, keepdims=True)
    mean = np.kron(floats, np.ones((1, 8, 8, 1), np.float32))
    np.testing.assert_allclose(
        rulers.identity_distance(pictures, mean, still), rulers.identity_distance(pictures, pictures, still), atol=1e-3
    )


def test_sharpness_flicker_and_distance_rank_by_damage() -> None:
    pictures, _ = film(0)
    still = rulers.still_cells(pictures)
    for box in (MOUTH, EYES):
        soft = [
            rulers.sharpness_ratio(kind, pictures, box) for kind in (pictures, blurred(pictures), blurred(pictures, 2))
        ]
        assert soft[0] == pytest.approx(1)
        assert falls(soft, 1.1)
        assert rulers.sharpness_ratio(noisy(pictures), pictures, box) > 1.05
    kinds = [noisy(pictures, 8), noisy(pictures, 2), pictures, frozen(pictures)]
    assert falls([rulers.flicker(kind, still) for kind in kinds], 1.1)
    assert rulers.flicker(frozen(pictures), still) == 0
    assert rulers.flicker_ratio(noisy(pictures, 8), noisy(pictures, 2), still) > 2
    levels = [rulers.psnr(kind, pictures) for kind in (pictures, noisy(pictures, 2), noisy(pictures, 8), film(1)[0])]
    assert falls(levels, 1.1)
    assert rulers.psnr(pictures, pictures, MOUTH) == float("inf")


def test_black_and_faded_pictures_are_found() -> None:
    pictures, _ = film(0)
    faded, black = pictures.copy(), pictures.copy()
    faded[::4] //= 3
    black[:] = 0
    shares = [rulers.black_frames(kind, pictures[0]) for kind in (black, faded, pictures)]
    assert shares == [1.0, 0.25, 0.0]
    assert falls([rulers.darkest(kind) for kind in (pictures, faded, black)])


# --- distributions --------------------------------------------------------------------------------


@needs_probe
def test_frechet_distances_rank_by_damage_and_see_order() -> None:
    people, count = range(4), 32

    def distances(damage) -> tuple[float, float]:
        readings = [probe().read(damage(film(face, count=count)[0])) for face in people]
        found = rulers.gaussian(np.concatenate([one.features for one in readings]))
        clips = rulers.gaussian(np.concatenate([rulers.clip_features(one.features) for one in readings]))
        return rulers.frechet_distance(found, true_pictures), rulers.frechet_distance(clips, true_clips)

    truth = [seen(face, count=count) for face in people]
    true_pictures = rulers.gaussian(np.concatenate([one.features for one in truth]))
    true_clips = rulers.gaussian(np.concatenate([rulers.clip_features(one.features) for one in truth]))
    same, slight, worse, black = (distances(d) for d in (np.copy, blurred, lambda p: blurred(p, 2.5), np.zeros_like))
    for which in (0, 1):
        assert same[which] < 1e-4
        assert falls([black[which], worse[which], slight[which], same[which]], 1.5)
    mixed, still = distances(shuffled), distances(frozen)
    assert mixed[0] < 1e-4, "the same pictures in another order are the same pictures"
    assert mixed[1] > 2 * slight[1] or mixed[1] > 0.02
    assert still[1] > 0.02
    assert distances(tinted)[0] > slight[0]


def test_frechet_distance_of_known_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4_000, 3))
    one = rulers.gaussian(rows)
    assert rulers.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert rulers.frechet_distance(one, rulers.gaussian(rows + 2)) == pytest.approx(12)
    doubled = rulers.gaussian(rows.mean(0) + 2 * (rows - rows.mean(0)))
    assert rulers.frechet_distance(one, doubled) == pytest.approx(np.trace(one.covariance))
    few = rulers.gaussian(rng.standard_normal((4, 48)))
    assert np.isfinite(rulers.frechet_distance(few, rulers.gaussian(rng.standard_normal((5, 48)))))
    with pytest.raises(LiveTalkError, match="at least 2"):
        rulers.gaussian(rows[:1])
    assert rulers.clip_features(rows[:10]).shape == (0, 6)
    assert rulers.clip_features(rows[:24]).shape == (3, 6)


def test_mirrored_truth_is_that_of_the_mirrored_person() -> None:
    pytest.importorskip("skia", reason="needs skia-python to draw people")
    from livetalk.distill.rulers import draw_labelled, mirrored

    person = draw_labelled(FACE, 4)
    tracks, spots = torch.from_numpy(person.tracks), torch.from_numpy(person.spots)
    once = mirrored(tracks, spots)
    for back, truth in zip(mirrored(*once), (tracks, spots), strict=True):
        torch.testing.assert_close(back, truth)
    assert (once[1][:, 1, 0] < once[1][:, 2, 0]).all(), "the left eye stays left"


def test_a_frozen_picture_is_noticed() -> None:
    moving = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    assert rulers.longest_still_s(moving) == 1 / 16
    frozen = moving.copy()
    frozen[5:9] = frozen[5]
    assert rulers.longest_still_s(frozen) == 4 / 16
