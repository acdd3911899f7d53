"""Trains the probe of ``livetalk.rulers`` on drawn people whose mouth, eyes, mood and pose are known.

Mouths move at random, not as in speech, eyes shut at any moment, and half the people wear an expression
that is no named mood: the probe can have no habits, it can only report what it sees. Pictures are blurred,
recoloured, shifted and compressed as generated ones may be. How wide a mouth is drawn differs between people more than
a viewer could tell apart from spreading it, so errors count twice: within the pictures of one person and, less, between
people.
"""

from __future__ import annotations

import io
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.portraits import MOTIONS, POSE_FIELDS, Face, Poses, animate, draw_clip, landmarks
from livetalk.rulers import MOODS, PROBE_SIZE, Probe, correlation
from livetalk.rulers.probe import SPOT_CENTRES, SPOT_UNIT, TRACKS, UNITS

logger = logging.getLogger(__name__)

HELD_OUT_FACE = 9_500_000  # faces of the probe's own evaluation
TRAINING_FACE = 4_000_000
UNNAMED = -1
"""Mood label of an expression that is none."""

_SPAN = 64
_SETTLED = 8  # pictures until the mood of a clip is there
_FREE_SHARE = 0.4
_AXES_BATCHES = 16
_TRACK_WEIGHTS = (4.0, 3.0, 1.0, 1.5, 1.0, 1.0, 1.0, 0.7, 0.7, 0.7, 0.7)
# Between people: rest widths, brow heights and eye sizes differ, which nobody can tell from moving them.
_BETWEEN = (1.0, 0.25, 0.7, 1.0, 0.5, 0.7, 0.7, 0.5, 0.7, 0.7, 1.0)


@dataclass(frozen=True)
class ProbeTraining:
    """Sizes of one run.

    Attributes:
        faces: people drawn for training.
        pictures_per_face: of each.
        batch: pictures in a batch, of whole people.
        steps: batches.
        judged_faces: people never trained on, for the figures.
    """

    faces: int = 2_200
    pictures_per_face: int = 7
    batch: int = 63
    steps: int = 2_400
    learning_rate: float = 2e-3
    judged_faces: int = 100


@dataclass(frozen=True)
class Labelled:
    """Pictures of one or more people with their truth.

    Attributes:
        pictures: uint8 [N, 128, 128, 3].
        tracks: float32 [N, 11], in the order of ``TRACKS``.
        spots: float32 [N, 3, 2], picture sides.
        moods: int64 [N], index in ``MOODS`` or ``UNNAMED``.
        looks: float32 [N, 19], colours and proportions of the person.
    """

    pictures: np.ndarray
    tracks: np.ndarray
    spots: np.ndarray
    moods: np.ndarray
    looks: np.ndarray

    @classmethod
    def joined(cls, parts: list[Labelled]) -> Labelled:
        """Several people, one after the other."""
        return cls(*(np.concatenate([vars(part)[name] for part in parts]) for name in cls.__dataclass_fields__))


def draw_labelled(seed: int, count: int) -> Labelled:
    """``count`` pictures of the person of ``seed`` in poses drawn at random."""
    rng = np.random.default_rng([seed, 0x9B0E])
    mouth = np.stack([rng.beta(0.9, 1.2, _SPAN), rng.uniform(-1, 1, _SPAN), rng.uniform(0, 1, _SPAN)], axis=1)
    mouth[rng.random(_SPAN) < 0.2, 0] = 0.0
    mood = int(rng.integers(len(MOODS)))
    values = animate(mouth.astype(np.float32), seed, str(rng.choice(list(MOTIONS))), MOODS[mood]).values
    chosen = values[rng.choice(np.arange(_SETTLED, _SPAN), count, replace=False)].copy()
    _set(chosen, "blink", np.where(rng.random(count) < 0.5, 0.0, rng.beta(0.6, 0.5, count)))
    if rng.random() < _FREE_SHARE:
        mood = UNNAMED
        for name, low, high in (("smile", -1, 1), ("brow", -0.7, 1.3), ("brow_angle", -1, 1), ("eye_wide", -0.6, 1)):
            _set(chosen, name, rng.uniform(low, high, count))
    face, poses = Face.sample(seed), Poses(chosen)
    looks = np.concatenate(
        [face.skin, face.hair, face.cloth, face.lip, face.back_near, face.back_far, [10 * face.mouth_width - 0.4]]
    )
    return Labelled(
        pictures=draw_clip(face, poses, PROBE_SIZE),
        tracks=_tracks(poses),
        spots=landmarks(face, poses, 1),
        moods=np.full(count, mood),
        looks=np.tile(looks.astype(np.float32), (count, 1)),
    )


def _set(values: np.ndarray, name: str, track: np.ndarray) -> None:
    values[:, POSE_FIELDS.index(name)] = track


def _tracks(poses: Poses) -> np.ndarray:
    """Truth of the probe's tracks, float32 [N, 11]."""
    own = {name: poses.track(name) for name in POSE_FIELDS}
    own["wide"] = own["wide"] / 2 + 0.5
    own["teeth"] = own["teeth"] * np.clip(own["open"] / 0.15, 0, 1)  # teeth behind closed lips cannot be seen
    own["eyes_shut"] = own["blink"]
    return np.stack([own[name] for name in TRACKS], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Disturbed pictures [B, 3, 128, 128] in 0..1 and targets in the probe's own units (see ``rulers.probe.Told``)."""

    pictures: Tensor
    tracks: Tensor
    spots: Tensor
    moods: Tensor
    looks: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(value.to(device) for value in vars(self).values()))


def disturb(data: Labelled, rng: np.random.Generator) -> Batch:
    """Flip and shift the whole batch; recolour, blur, add noise to and JPEG-compress pictures each for itself."""
    pictures, damage = _compressed(data.pictures, rng)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    tracks, spots = torch.from_numpy(data.tracks / np.asarray(UNITS, np.float32)), torch.from_numpy(data.spots)
    if rng.random() < 0.5:
        images, tracks, spots = images.flip(-1), *mirrored(tracks, spots)
    down, right = (int(pixels) for pixels in rng.integers(-3, 4, 2))
    images = nn.functional.pad(images, (3, 3, 3, 3), mode="replicate")
    images = images[:, :, 3 - down : 3 - down + PROBE_SIZE, 3 - right : 3 - right + PROBE_SIZE]
    spots = spots + torch.tensor([right, down]) / PROBE_SIZE
    count = len(images)
    gain = torch.from_numpy(rng.normal(1, 0.06, (count, 3)).astype(np.float32))
    offset = torch.from_numpy(rng.normal(0, 0.03, (count, 1)).astype(np.float32))
    images = images * gain[:, :, None, None] + offset[:, :, None, None]
    looks = torch.from_numpy(data.looks).clone()
    looks[:, :18] = (looks[:, :18] * gain.repeat(1, 6) + offset).clamp(0, 1)
    images, soft = _blurred(images, rng)
    noise = torch.from_numpy(np.where(rng.random(count) < 0.5, 0, rng.uniform(0, 0.04, count)).astype(np.float32))
    grain = torch.randn(images.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    images = (images + grain * noise[:, None, None, None]).clamp(0, 1)
    quality = torch.stack([torch.from_numpy(damage), soft, noise * 25], dim=1)
    centres = torch.tensor(SPOT_CENTRES)
    targets = (spots - centres) / SPOT_UNIT
    return Batch(images, tracks, targets, torch.from_numpy(data.moods), torch.cat([looks, quality], 1))


def _compressed(pictures: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every seventh picture through JPEG, and how strongly, float32 [B] 0..1."""
    pictures, damage = pictures.copy(), np.zeros(len(pictures), np.float32)
    for index in np.flatnonzero(rng.random(len(pictures)) < 0.15):
        quality = int(rng.integers(25, 85))
        stored = io.BytesIO()
        Image.fromarray(pictures[index]).save(stored, "JPEG", quality=quality)
        pictures[index], damage[index] = np.asarray(Image.open(stored)), 1 - quality / 100
    return pictures, damage


def mirrored(tracks: Tensor, spots: Tensor) -> tuple[Tensor, Tensor]:
    """Truth of mirrored pictures."""
    signs = torch.tensor([-1.0 if name in ("yaw", "roll") else 1.0 for name in TRACKS])
    columns = torch.stack([1 - spots[..., 0], spots[..., 1]], dim=-1)
    return tracks * signs, columns[:, [0, 2, 1]]


def _blurred(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Half of the batches: a random half of the pictures made smaller and enlarged again, and how much, [B]."""
    soft = torch.zeros(len(images))
    if rng.random() < 0.5:
        chosen = torch.from_numpy(rng.permutation(len(images))[: len(images) // 2])
        size = int(rng.integers(64, 120))
        small = nn.functional.interpolate(images[chosen], (size, size), mode="bilinear", antialias=True)
        images = images.clone()
        images[chosen] = nn.functional.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
        soft[chosen] = PROBE_SIZE / size - 1
    return images, soft


def probe_loss(probe: nn.Module, batch: Batch, pictures_per_face: int) -> tuple[Tensor, dict[str, float]]:
    """Squared errors of tracks within and between people, of spots and looks, and cross-entropy of the moods."""
    told = probe(batch.pictures)
    error = (told.tracks - batch.tracks).unflatten(0, (-1, pictures_per_face))
    shared = error.mean(1, keepdim=True)
    within, between = (error - shared).square().mean((0, 1)), shared.square().mean((0, 1))
    weights, share = (within.new_tensor(values) for values in (_TRACK_WEIGHTS, _BETWEEN))
    tracks = (weights * (within + share * between)).sum() / weights.sum()
    spots = (told.spots - batch.spots).square().mean()
    looks = (told.looks - batch.looks).square().mean()
    named = batch.moods != UNNAMED
    moods = nn.functional.cross_entropy(told.moods, batch.moods.clamp_min(0), reduction="none")
    moods = (moods * named).sum() / named.sum().clamp_min(1)
    figures = {"open": float(within[0].detach()), "wide": float(within[1].detach()), "mood": float(moods.detach())}
    return tracks + 0.5 * spots + looks + 0.1 * moods, figures


class ProbeLoss:
    """Draws a disturbed batch of whole people and returns the loss of the probe, see ``loop.BatchLoss``."""

    def __init__(self, data: Labelled, plan: ProbeTraining) -> None:
        self.data, self.plan = data, plan

    def __call__(self, model: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch and figures for the log."""
        device = next(model.parameters()).device
        return probe_loss(model, self.batch(draws).to(device), self.plan.pictures_per_face)

    def batch(self, draws: torch.Generator) -> Batch:
        """All pictures of some people drawn at random, disturbed."""
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=draws)))
        per = self.plan.pictures_per_face
        people = rng.choice(len(self.data.pictures) // per, self.plan.batch // per, replace=False)
        rows = (people[:, None] * per + np.arange(per)).ravel()
        return disturb(Labelled(*(vars(self.data)[name][rows] for name in Labelled.__dataclass_fields__)), rng)


@torch.no_grad()
def set_axes(probe: Probe, batches: list[Batch]) -> None:
    """Lay the feature axes along the strongest directions of what the probe sees in ``batches``, total variance 1."""
    seen = torch.cat([probe(batch.pictures).seen for batch in batches])
    centred = seen - seen.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(seen))
    axes = vectors.flip(1)[:, : len(probe.axes)].T
    probe.centre.copy_(seen.mean(0))
    probe.axes.copy_(axes / values.sum().sqrt())


def judge_probe(probe: Probe, faces: range, pictures_per_face: int = 8) -> dict[str, float]:
    """Figures on people never trained on.

    Returns:
        Mean correlation within a person for every track, ``spots`` (mean error in thousandths of the side) and
        ``mood`` (share of pictures whose mood is named rightly).
    """
    people = [draw_labelled(seed, pictures_per_face) for seed in faces]
    readings = [probe.read(person.pictures) for person in people]
    figures = {}
    for k, name in enumerate(TRACKS):
        pairs = [(getattr(r, name), p.tracks[:, k]) for r, p in zip(readings, people, strict=True)]
        both = (np.concatenate([track - track.mean() for track in side]) for side in zip(*pairs, strict=True))
        figures[name] = correlation(*both)
    errors = [np.linalg.norm(r.spots - p.spots, axis=-1).mean() for r, p in zip(readings, people, strict=True)]
    figures["spots"] = float(np.mean(errors)) * 1_000
    named = [(r.moods.argmax(1) == p.moods).mean() for r, p in zip(readings, people, strict=True) if p.moods[0] >= 0]
    return {key: round(float(v), 4) for key, v in {**figures, "mood": float(np.mean(named))}.items()}


def run(file: Path, plan: ProbeTraining, folder: Path | None = None) -> dict[str, float]:
    """Draws, trains, saves fp16 weights to ``file``; returns the figures of ``judge_probe``.

    Args:
        file: receives the weights.
        plan: sizes.
        folder: for checkpoint and log, from which an interrupted run goes on; None = ``rulers`` beside ``file``'s.
    """
    folder = file.parent.parent / "rulers" if folder is None else folder
    people = [draw_labelled(TRAINING_FACE + index, plan.pictures_per_face) for index in range(plan.faces)]
    batches = ProbeLoss(Labelled.joined(people), plan)
    logger.info("%d pictures drawn", len(batches.data.pictures))
    torch.manual_seed(0)
    probe = Probe()
    settings = LoopConfig(steps=plan.steps, learning_rate=plan.learning_rate, weight_decay=0.03, warmup_steps=100)
    loop = Loop(probe, batches, settings, folder, {"stage": "rulers", "plan": asdict(plan)})
    loop.run()
    loop.load_average(probe)
    draws = torch.Generator().manual_seed(0)
    set_axes(probe, [batches.batch(draws) for _ in range(_AXES_BATCHES)])
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in probe.state_dict().items()}, str(file))
    return judge_probe(Probe.load(file), range(HELD_OUT_FACE, HELD_OUT_FACE + plan.judged_faces))
