"""How an illustrated face moves: poses, and tracks of head, eyes and brows that go with given mouth tracks.

Picture 0 of every track is the portrait: mouth shut, eyes open and on the camera, head at its resting turn.
It knows numbers only; what they look like is up to the drawing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from livetalk.model.drive import SWAY_AXES, sway_of_axis

PICTURES_HZ = 16.0
EASE_S = 0.4
MOTIONS = {"still": 0.12, "gentle": 0.5, "lively": 1.15}
MOOD_WORDS = {
    "neutral": ("calmly", "plainly", "evenly", "quietly"),
    "happy": ("happily", "cheerfully", "joyfully", "brightly"),
    "sad": ("sadly", "sorrowfully", "gloomily", "unhappily"),
    "surprised": ("surprised", "astonished", "amazed", "startled"),
    "angry": ("angrily", "crossly", "furiously", "sternly"),
}
MOODS = tuple(MOOD_WORDS)
MOTION_WORDS = {
    "still": ("holding still", "hardly moving", "keeping still", "motionless"),
    "gentle": ("moving gently", "swaying softly", "with gentle moves", "swaying gently"),
    "lively": ("nodding along", "moving lively", "nodding lively", "with lively nods"),
}
# mood -> smile, brow raise, brow angle (inner ends up > 0), eye wideness
_MOOD_FACE = {
    "neutral": (0.32, 0.0, 0.0, 0.0),
    "happy": (0.95, 0.30, 0.10, -0.25),
    "sad": (-0.75, 0.10, 0.95, -0.45),
    "surprised": (0.05, 1.00, 0.15, 0.95),
    "angry": (-0.50, -0.65, -1.00, -0.20),
}


@dataclass(frozen=True)
class Pose:
    """One moment of a face.

    `open` 0 shut .. 1 wide open; `wide` -1 rounded .. 1 spread; `teeth` 0..1; `yaw` (> 0: to the picture's right),
    `pitch` (> 0: down) in units of about 25 degrees; `roll` in radians (> 0: clockwise); `dx`, `dy` in picture sides;
    `blink` 0 open .. 1 shut; gaze -1..1 (right, down); `brow` -1..1.2 (up); `brow_angle` -1 angry .. 1 sad;
    `smile` -1..1; `eye_wide` -1..1.
    """

    open: float = 0.0
    wide: float = 0.0
    teeth: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    blink: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    brow: float = 0.0
    brow_angle: float = 0.0
    smile: float = 0.32
    eye_wide: float = 0.0


POSE_FIELDS = tuple(f.name for f in fields(Pose))
HEAD_REACH = {"yaw": (0.22, 0.36), "pitch": (0.10, 0.28), "roll": (0.03, 0.055), "dx": (0.0, 0.010), "dy": (0.0, 0.006)}
"""Of each of ``SWAY_AXES``: how far heads are turned at rest, and how far they go for a sway of 1."""


class Poses:
    """A track of poses and the ground truth of a clip: float32 `values` [T, fields] in the order of `POSE_FIELDS`."""

    def __init__(self, values: np.ndarray) -> None:
        if values.ndim != 2 or values.shape[1] != len(POSE_FIELDS):
            raise ValueError(f"poses have shape [T, {len(POSE_FIELDS)}], got {list(values.shape)}")
        self.values = np.asarray(values, np.float32)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Pose:
        return Pose(*(float(v) for v in self.values[index]))

    def __iter__(self) -> Iterator[Pose]:
        return (self[index] for index in range(len(self)))

    def track(self, name: str) -> np.ndarray:
        """One field over time, float32 [T]; `name` is one of `POSE_FIELDS`."""
        return self.values[:, POSE_FIELDS.index(name)]

    @property
    def mouth(self) -> np.ndarray:
        """Openness, width and teeth, float32 [T, 3]."""
        return self.values[:, :3]


def animate(mouth: np.ndarray, seed: int, motion: str = "gentle", mood: str = "neutral") -> Poses:
    """Give a mouth track a head, eyes and brows.

    Args:
        mouth: float32 [T, 3], openness 0..1, width -1..1, teeth 0..1 at the middle of each picture (16 a second).
        seed: decides the resting pose and all chance; the same seed gives the same track.
        motion: "still", "gentle" or "lively" (head amplitude 0.12, 0.5, 1.15; lively nods with openness).
        mood: "neutral", "happy", "sad", "surprised" or "angry".

    Returns:
        `Poses` of T pictures; picture 0 is the portrait and motion eases in over 0.4 s.

    Raises:
        ValueError: unknown motion or mood, or a mouth track of another shape.
    """
    if motion not in MOTIONS or mood not in _MOOD_FACE:
        raise ValueError(
            f"motion is one of {list(MOTIONS)} and mood one of {list(_MOOD_FACE)}, got {motion!r}, {mood!r}"
        )
    if mouth.ndim != 2 or mouth.shape[1] != 3 or not len(mouth):
        raise ValueError(f"a mouth track has shape [T, 3] with T >= 1, got {list(mouth.shape)}")
    rng = _draws(seed)
    count = len(mouth)
    time_s = np.arange(count) / PICTURES_HZ
    ease = np.clip(time_s / EASE_S, 0.0, 1.0)
    ease = ease * ease * (3.0 - 2.0 * ease)
    out = {name: np.zeros(count) for name in POSE_FIELDS}
    shut = np.where(np.arange(count) == 0, 0.0, 1.0)
    for i, name in enumerate(("open", "wide", "teeth")):
        out[name] = mouth[:, i].astype(np.float64) * shut
    _head(out, rng, time_s, ease, MOTIONS[motion])
    if motion == "lively":
        emphasis = _smooth(out["open"], 4.0)
        out["pitch"] += 0.55 * ease * (emphasis - emphasis[0])
        out["dy"] += 0.008 * ease * emphasis
    out["blink"] = _blinks(rng, time_s)
    out["gaze_x"], out["gaze_y"] = _gaze(rng, time_s, ease, MOTIONS[motion])
    _mood(out, rng, ease, mood)
    return Poses(np.stack([out[name] for name in POSE_FIELDS], 1).astype(np.float32))


def sway_of_clip(seed: int, count: int) -> np.ndarray:
    """The sway that ``animate`` gives the head of that seed, whatever its motion: float32 ``[count, 5]``."""
    rng, tracks = _draws(seed), []
    for _ in SWAY_AXES:
        tracks.append(sway_of_axis(rng, np.arange(count) / PICTURES_HZ))
        rng.uniform(-1, 1)  # the pose at rest
    return np.stack(tracks, axis=1).astype(np.float32)


def sway_of_poses(poses: Poses, motion: str) -> np.ndarray:
    """About the sway of a head that was filmed, from its poses and how lively it is: float32 ``[T, 5]``."""
    turned = [(poses.track(name) - poses.track(name)[0]) / HEAD_REACH[name][1] for name in SWAY_AXES]
    return np.clip(np.stack(turned, axis=1) / MOTIONS[motion], -2.0, 2.0).astype(np.float32)


def _draws(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x30710])


def _head(
    out: dict[str, np.ndarray], rng: np.random.Generator, time_s: np.ndarray, ease: np.ndarray, amplitude: float
) -> None:
    """Rest pose plus sway, which is zero at the start."""
    for name, (rest, reach) in HEAD_REACH.items():
        sway = sway_of_axis(rng, time_s)
        out[name] = rest * rng.uniform(-1, 1) + amplitude * reach * ease * sway


def _blinks(rng: np.random.Generator, time_s: np.ndarray) -> np.ndarray:
    """Lids: a blink of about 0.25 s (4 pictures at 16 a second) every 2 to 5 s, never on picture 0."""
    lids = np.zeros_like(time_s)
    at_s = rng.uniform(0.7, 3.2)
    while at_s < (time_s[-1] if len(time_s) else 0.0):
        half_s = rng.uniform(0.12, 0.16)
        shape = np.clip(1.35 * (1.0 - np.abs(time_s - at_s) / half_s), 0.0, 1.0)
        lids = np.maximum(lids, shape)
        at_s += 0.5 if rng.random() < 0.08 else rng.uniform(2.0, 5.2)
    lids[0] = 0.0
    return lids


def _gaze(
    rng: np.random.Generator, time_s: np.ndarray, ease: np.ndarray, amplitude: float
) -> tuple[np.ndarray, np.ndarray]:
    """Eyes rest on the camera and jump aside now and then; a jump takes about 2 pictures."""
    x, y = np.zeros_like(time_s), np.zeros_like(time_s)
    at_s, reach = rng.uniform(0.8, 2.0), 0.45 + 0.4 * min(amplitude, 1.0)
    while at_s < time_s[-1]:
        home = rng.random() < 0.45
        goal_x, goal_y = (0.0, 0.0) if home else (reach * rng.uniform(-1, 1), 0.6 * reach * rng.uniform(-1, 1))
        step = np.clip((time_s - at_s) / 0.1, 0.0, 1.0)
        x, y = x + (goal_x - x) * step, y + (goal_y - y) * step
        at_s += rng.uniform(0.8, 2.2)
    return x * ease, y * ease


def _mood(out: dict[str, np.ndarray], rng: np.random.Generator, ease: np.ndarray, mood: str) -> None:
    """Mood mildly or not at all in the portrait, full once talking; brows also follow emphasis."""
    strength = rng.uniform(0.85, 1.1)
    # a portrait without the mood: so that the words must be listened to
    shown = float(rng.choice((0.0, 0.5)))
    share = shown + (1.0 - shown) * ease
    emphasis = _smooth(out["open"], 3.0)
    emphasis = np.clip(emphasis - _smooth(out["open"], 24.0), 0.0, 1.0) * ease
    tracks = zip(("smile", "brow", "brow_angle", "eye_wide"), _MOOD_FACE["neutral"], _MOOD_FACE[mood], strict=True)
    for name, calm, full in tracks:
        out[name] = strength * (calm + share * (full - calm))
    out["brow"] = out["brow"] + 0.8 * emphasis
    out["eye_wide"] = out["eye_wide"] + 0.3 * emphasis


def _smooth(track: np.ndarray, width_frames: float) -> np.ndarray:
    reach = int(3 * width_frames)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width_frames) ** 2)
    padded = np.pad(track, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def caption(motion: str, mood: str, seed: int) -> str:
    """A sentence of at most 8 words that always names mood and motion, as "A person speaks happily, nodding along."."""
    rng = np.random.default_rng([seed, 0xCA97])
    who = str(rng.choice(["A person", "Someone", "A speaker", "The person"]))
    verb = str(rng.choice(["speaks", "talks"]))
    how = str(rng.choice(MOOD_WORDS[mood]))
    moves = str(rng.choice(MOTION_WORDS[motion]))
    return f"{who} {verb} {how}, {moves}."
