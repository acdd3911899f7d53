"""Trains the probe of ``livetalk.rulers`` on drawn people whose mouth and eyes are known.

Mouths move at random, not as in speech, and eyes shut at any moment, so that the probe has no habits of its own:
it can only report what it sees. Pictures are blurred, recoloured, shifted and compressed as generated ones may be.
"""

from __future__ import annotations

import io
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from livetalk.distill.portraits import MOODS, MOTIONS, POSE_FIELDS, Face, Poses, animate, draw_clip
from livetalk.rulers import PROBE_SIZE, Probe, correlation

logger = logging.getLogger(__name__)

HELD_OUT_FACE = 9_500_000  # faces of the probe's own evaluation
TRAINING_FACE = 4_000_000
_TARGET_WEIGHTS = (2.0, 1.0, 0.5, 1.0)


@dataclass(frozen=True)
class ProbeTraining:
    """Sizes of one run; ``limit_s`` ends it early."""

    faces: int = 2_000
    pictures_per_face: int = 6
    batch: int = 64
    steps: int = 3_000
    learning_rate: float = 2e-3
    limit_s: float = 400.0


def draw_labelled(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [count, 128, 128, 3] of one person, and float32 [count, 4] (open, wide, teeth, eyes shut)."""
    rng = np.random.default_rng([seed, 0x9B0E])
    span = 64
    mouth = np.stack([rng.beta(0.9, 1.2, span), rng.uniform(-1, 1, span), rng.uniform(0, 1, span)], axis=1)
    mouth[rng.random(span) < 0.2, 0] = 0.0
    poses = animate(mouth.astype(np.float32), seed, str(rng.choice(list(MOTIONS))), str(rng.choice(MOODS)))
    chosen = poses.values[rng.choice(np.arange(1, span), count, replace=False)].copy()
    blink = np.where(rng.random(count) < 0.5, 0.0, rng.beta(0.6, 0.5, count))
    chosen[:, POSE_FIELDS.index("blink")] = blink
    poses = Poses(chosen)
    seen = np.clip(poses.track("open") / 0.15, 0, 1)  # teeth behind closed lips cannot be seen
    labels = np.stack([poses.track("open"), poses.track("wide") / 2 + 0.5, poses.track("teeth") * seen, blink], axis=1)
    return draw_clip(Face.sample(seed), poses, PROBE_SIZE), labels.astype(np.float32)


def disturb(pictures: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Training input [B, 3, 128, 128] in 0..1: flipped, shifted, recoloured, blurred, noisy, some JPEG-compressed."""
    pictures = pictures.copy()
    for index in np.flatnonzero(rng.random(len(pictures)) < 0.15):
        stored = io.BytesIO()
        Image.fromarray(pictures[index]).save(stored, "JPEG", quality=int(rng.integers(25, 85)))
        pictures[index] = np.asarray(Image.open(stored))
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    if rng.random() < 0.5:
        images = images.flip(-1)
    shift = rng.integers(-3, 4, 2)
    images = images.roll((int(shift[0]), int(shift[1])), (-2, -1))
    count = len(images)
    gain = torch.from_numpy(rng.normal(1, 0.06, (count, 3, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.normal(0, 0.03, (count, 1, 1, 1)).astype(np.float32))
    images = images * gain + offset
    if rng.random() < 0.5:
        half = count // 2
        size = int(rng.integers(72, 120))
        small = nn.functional.interpolate(images[:half], (size, size), mode="bilinear", antialias=True)
        restored = nn.functional.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
        images = torch.cat([restored, images[half:]])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    return (images + noise * float(rng.uniform(0, 0.03))).clamp(0, 1)


def train_probe(pictures: np.ndarray, labels: np.ndarray, plan: ProbeTraining, start: Probe | None = None) -> Probe:
    """Trains a probe (a new one, or ``start`` further) on labelled pictures uint8 [N, 128, 128, 3], float32 [N, 4]."""
    torch.manual_seed(0)
    probe = Probe() if start is None else start.requires_grad_(True).train()
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(probe.parameters(), plan.learning_rate, weight_decay=0.03)
    weights = torch.tensor(_TARGET_WEIGHTS)
    started = time.monotonic()
    for step in range(plan.steps):
        progress = max(step / plan.steps, (time.monotonic() - started) / plan.limit_s)
        if progress >= 1:
            break
        rate = plan.learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + float(np.cos(np.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = rng.integers(0, len(pictures), plan.batch)
        told = probe(disturb(pictures[chosen], rng))
        loss = ((told - torch.from_numpy(labels[chosen])).square() * weights).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimiser.step()
        if step % 200 == 199:
            logger.info("step %d loss %.5f after %.0f s", step + 1, float(loss.detach()), time.monotonic() - started)
    return probe.eval()


def judge_probe(probe: Probe, pictures: np.ndarray, labels: np.ndarray) -> list[float]:
    """Correlation of (open, wide, teeth, eyes shut) with the truth."""
    reading = probe.read(pictures)
    tracks = (reading.open, reading.wide, reading.teeth, reading.eyes_shut)
    return [round(correlation(track, labels[:, k]), 4) for k, track in enumerate(tracks)]


def run(file: Path, plan: ProbeTraining) -> list[float]:
    """Draws, trains, saves fp16 weights to ``file``; returns the correlations on unseen people."""
    drawn = [draw_labelled(TRAINING_FACE + index, plan.pictures_per_face) for index in range(plan.faces)]
    pictures, labels = (np.concatenate([one[k] for one in drawn]) for k in (0, 1))
    logger.info("%d pictures drawn", len(pictures))
    probe = train_probe(pictures, labels, plan)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in probe.state_dict().items()}, str(file))
    unseen = [draw_labelled(HELD_OUT_FACE + index, 4) for index in range(100)]
    return judge_probe(Probe.load(file), *(np.concatenate([one[k] for one in unseen]) for k in (0, 1)))
