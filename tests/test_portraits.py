"""Illustrated portraits: the same seed gives the same picture, the portrait is picture 0, and what is asked shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from livetalk.distill.examples import PORTRAITS, PROMPTS, write_examples
from livetalk.distill.portraits import MOODS, MOTIONS, Face, Pose, animate, caption, draw, draw_clip, landmarks


@pytest.fixture(scope="module")
def skia() -> None:
    """Skip, naming the library, where skia-python or libEGL/libGL is missing."""
    try:
        import skia  # noqa: F401
    except ImportError as problem:
        pytest.skip(f"drawing needs skia-python with libEGL and libGL: {problem}")


def talk(count: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mouth = np.stack([rng.uniform(0, 1, count), rng.uniform(-1, 1, count), rng.uniform(0, 1, count)], 1)
    return mouth.astype(np.float32)


def test_faces_are_their_seed_and_differ() -> None:
    assert Face.sample(5) == Face.sample(5)
    faces = [Face.sample(seed) for seed in range(300)]
    assert len({face.skin for face in faces}) >= 10
    assert len({face.style for face in faces}) >= 9
    assert len({face.collar for face in faces}) >= 5 and len({face.backdrop for face in faces}) >= 4
    assert {"none", "round", "square"} <= {face.glasses for face in faces}


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("mood", MOODS)
def test_tracks_start_at_the_portrait(motion: str, mood: str) -> None:
    loud, quiet = animate(talk(), 7, motion, mood), animate(np.zeros((64, 3), np.float32), 7, motion, mood)
    assert np.array_equal(loud.values[0], quiet.values[0]), "picture 0 must not know what is said"
    rest = loud[0]
    assert (rest.open, rest.wide, rest.teeth, rest.blink, rest.gaze_x, rest.gaze_y) == (0, 0, 0, 0, 0, 0)
    head = np.stack([loud.track(name) for name in ("yaw", "pitch", "roll", "dx", "dy")], 1)
    assert np.abs(np.diff(head, axis=0))[0].max() < 0.08
    assert np.array_equal(loud.mouth[1:], talk()[1:])
    assert np.array_equal(loud.values, animate(talk(), 7, motion, mood).values)


def test_motion_words_order_the_head() -> None:
    spread = {
        motion: np.mean([animate(talk(160, s), s, motion).track("yaw").std() for s in range(8)]) for motion in MOTIONS
    }
    assert spread["still"] < 0.5 * spread["gentle"] < 0.5 * spread["lively"]


def test_blinks_come_at_a_human_rate_and_shut() -> None:
    lids = np.stack([animate(np.zeros((960, 3), np.float32), seed).track("blink") for seed in range(10)])
    starts = ((lids[:, 1:] > 0.5) & (lids[:, :-1] <= 0.5)).sum(1)
    assert 10 <= starts.mean() <= 25
    assert (lids > 0.9).any(1).all()


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match="gentle"):
        animate(talk(), 0, "wild", "happy")
    with pytest.raises(ValueError, match="shape"):
        animate(np.zeros((4, 2), np.float32), 0)


def test_captions_are_short_and_name_mood_and_motion() -> None:
    for motion in MOTIONS:
        for mood in MOODS:
            sentences = {caption(motion, mood, seed) for seed in range(20)}
            assert len(sentences) > 4 and max(len(text.split()) for text in sentences) <= 8


def test_drawing_is_deterministic_and_begins_with_the_portrait(skia: None) -> None:
    face, poses = Face.sample(3), animate(talk(4), 3, "lively", "happy")
    clip = draw_clip(face, poses, 64)
    assert clip.shape == (4, 64, 64, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, draw_clip(face, poses, 64))
    assert np.array_equal(clip[0], draw(face, poses[0], 64))
    assert np.abs(clip[1].astype(int) - clip[0]).max() > 0


def test_opening_the_mouth_shows_more_of_its_inside(skia: None) -> None:
    for seed in (1, 2, 24):
        face = Face.sample(seed)
        clip = draw_clip(face, [Pose(open=float(o)) for o in np.linspace(0, 1, 6)], 128).astype(int)
        inside = (clip[..., 0] < 100) & (clip[..., 1] < 30) & (clip[..., 2] < 45)
        area = inside[:, 70:].sum((1, 2)) - inside[0, 70:].sum()
        assert (np.diff(area) > 0).all(), f"face {seed}: dark pixels {area}"
        assert area[-1] > 80


def test_a_spread_mouth_is_wider_than_a_rounded_one(skia: None) -> None:
    poses = [Pose(open=0.4, wide=float(wide)) for wide in (-1.0, 0.0, 1.0)]
    for seed in (1, 2, 24):
        clip = draw_clip(Face.sample(seed), poses, 128).astype(int)[:, 70:]
        inside = (clip[..., 0] < 120) & (clip[..., 1] < 35) & (clip[..., 2] < 50)
        widths = inside.any(1).sum(1)
        assert (np.diff(widths) >= 2).all(), f"face {seed}: columns of the inside {widths}"


def test_a_blink_hides_the_eye_and_little_else(skia: None) -> None:
    for seed in (1, 8, 30):
        face = Face.sample(seed)
        awake = Pose()
        open_, shut = draw_clip(face, [awake, dataclasses.replace(awake, blink=1.0)], 128).astype(int)
        moved = np.abs(open_ - shut).sum(2) > 40
        rows, columns = np.nonzero(moved)
        assert moved.sum() > 60
        assert rows.max() - rows.min() < 26 and rows.min() > 30 and rows.max() < 90
        assert columns.max() - columns.min() < 64


def test_landmarks_are_where_things_move(skia: None) -> None:
    face = Face.sample(2)
    turned = Pose(yaw=0.5, pitch=-0.4, roll=0.1, dx=0.02)
    awake, talking, asleep = draw_clip(
        face, [turned, dataclasses.replace(turned, open=0.5), dataclasses.replace(turned, blink=1.0)], 128
    ).astype(int)
    mouth, left, right = landmarks(face, [turned], 128)[0]
    for moved, expected in ((talking, mouth), (asleep, (left + right) / 2)):
        weight = np.abs(moved - awake).sum(2).astype(float)
        weight[weight < 60] = 0.0
        rows, columns = np.mgrid[:128, :128]
        found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
        assert np.abs(found - expected).max() < 6.0


def test_the_examples_shipped_are_the_ones_drawn(skia: None, tmp_path: Path) -> None:
    shipped = Path(__file__).parent.parent / "examples"
    written = write_examples(tmp_path)
    assert {path.name for path in (shipped / "portraits").glob("*.png")} == {f"{name}.png" for name in PORTRAITS}
    for path in written[:-1]:
        there = shipped / "portraits" / path.name
        assert there.stat().st_size <= 150_000
        drawn, kept = (np.asarray(Image.open(p).convert("RGB")).astype(int) for p in (path, there))
        assert drawn.shape == (512, 512, 3)
        # another build of the drawing library may round an edge differently
        assert np.abs(drawn - kept).mean() < 1.0
    assert (shipped / "prompts.txt").read_text(encoding="utf-8").splitlines() == list(PROMPTS)
