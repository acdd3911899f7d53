"""The reader: a small frozen network that reads mouth, eyes and mood off latents, to train generators by.

Lips that round and a mouth that smiles move two pixels of 128. In a squared error of latents that is nothing beside
hair and light, so a generator learns them last; here they are told in their own units. The reader is trained on true
clips, whose poses are known, and has nothing of what judges (``livetalk.rulers``): that looks at pictures.

This module does not know generators, noise levels or rollouts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from livetalk.distill.data import ClipStore
from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.portraits import POSE_FIELDS
from livetalk.model.conditions import pack_audio
from livetalk.types import PICTURES_PER_LATENT

FAST = ("open", "wide", "teeth", "blink")
"""Tracks that are read for each of the four pictures of a latent frame."""

SLOW = ("smile", "brow", "brow_angle", "eye_wide")
"""Tracks that are read once a latent frame."""

WEIGHTS = {"open": 1.0, "wide": 1.5, "teeth": 0.5, "blink": 0.25, "smile": 1.0, "brow": 0.5, "brow_angle": 1.0}
"""What counts how much, where it is not 1."""

UNITS = {"open": 0.3, "wide": 0.35, "teeth": 0.3, "blink": 0.3, "smile": 0.5, "brow": 0.5, "brow_angle": 0.5}
"""About the deviation of each track over true clips, where it is not .4."""

TOLD = PICTURES_PER_LATENT * len(FAST) + len(SLOW)
FRAMES = 11
"""Latent frames of each clip that a batch of the reader's own training takes."""


class Reader(nn.Module):
    """Convolutions over a latent frame and the portrait's.

    Args:
        channels: of the latents.
        size: of the latents' sides, a multiple of 4.
        width: channels of the convolutions.
    """

    weights: Tensor

    def __init__(self, channels: int, size: int, width: int = 64) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(width * (size // 4) ** 2, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, TOLD),
        )
        counted = [WEIGHTS.get(name, 1.0) for name in (*FAST * PICTURES_PER_LATENT, *SLOW)]
        self.register_buffer("weights", torch.tensor(counted) / sum(counted), persistent=False)

    def forward(self, latents: Tensor, portraits: Tensor) -> Tensor:
        """What is read, in ``UNITS``: picture by picture, then what is read once.

        Args:
            latents: ``[B, C, F, h, w]``.
            portraits: ``[B, C, 1, h, w]``.

        Returns:
            ``[B, F, 20]``.
        """
        both = torch.cat((latents - portraits, portraits.expand_as(latents)), dim=1)
        return self.see(both.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))

    def distance(self, latents: Tensor, truth: Tensor, portraits: Tensor, counted: Tensor) -> Tensor:
        """Weighted squared distance of what is read in two videos, a scalar; gradient flows into ``latents`` only.

        Args:
            latents: generated, ``[B, C, F, h, w]``.
            truth: the same shape.
            portraits: ``[B, C, 1, h, w]``.
            counted: how much each frame counts, ``[B, F]``.
        """
        with torch.no_grad():
            wanted = self(truth, portraits)
        square = (self(latents, portraits) - wanted).square() @ self.weights
        return (square * counted).mean()


def truth_of(poses: Tensor) -> Tensor:
    """True tracks ``[T, fields]`` of a clip as the reader tells them, ``[F, 20]``."""
    fast, slow = (poses[:, [POSE_FIELDS.index(name) for name in names]].float() for names in (FAST, SLOW))
    packed = [
        pack_audio((track / torch.tensor([UNITS.get(name, 0.4) for name in names]))[None])[0].unflatten(
            0, (-1, PICTURES_PER_LATENT)
        )
        for names, track in ((FAST, fast), (SLOW, slow))
    ]
    return torch.cat((packed[0].flatten(1), packed[1].mean(1)), dim=1)


class ReaderLoss:
    """Draws stretches of clips and gives the reader's squared error (a ``BatchLoss``)."""

    def __init__(self, store: ClipStore, batch: int = 12) -> None:
        self.store, self.batch = store, batch

    def __call__(self, model: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a fresh batch; every second latent is disturbed a little, as generated ones are."""
        device = next(model.parameters()).device
        latents, portraits, truth = [], [], []
        for clip in self.store.clips(torch.randint(len(self.store), (self.batch,), generator=draws).tolist()):
            frames = 1 + torch.randperm(clip["latents"].shape[1] - 1, generator=draws)[:FRAMES]
            latents.append(clip["latents"][:, frames].float())
            portraits.append(clip["latents"][:, :1].float())
            truth.append(truth_of(clip["poses"])[frames])
        seen = torch.stack(latents)
        noise = 0.3 * torch.rand((len(seen), 1, seen.shape[2], 1, 1), generator=draws) - 0.15
        seen = seen + noise.clamp_min(0) * torch.randn(seen.shape, generator=draws)
        told = model(seen.to(device), torch.stack(portraits).to(device))
        square = (told - torch.stack(truth).to(device)).square().mean((0, 1))
        seen_fast, seen_slow = square.detach().split((TOLD - len(SLOW), len(SLOW)))
        fast = seen_fast.unflatten(0, (PICTURES_PER_LATENT, -1)).mean(0).tolist()
        figures = dict(zip((*FAST, *SLOW), (*fast, *seen_slow.tolist()), strict=True))
        return square.mean(), figures


def train(clips: Path, folder: Path, loop: LoopConfig) -> Loop:
    """Train a reader on a folder of clips, or go on; its weights are left as ``reader.safetensors``. In every rank."""
    store = ClipStore(clips)
    channels, size = store.clip(0)["latents"].shape[0], store.clip(0)["latents"].shape[-1]
    torch.manual_seed(loop.seed)
    run = Loop(Reader(channels, size), ReaderLoss(store), loop, folder, {"stage": "reader", "clips": len(store)})
    run.run()
    return run


def load_reader(file: Path) -> Reader:
    """A trained reader, frozen."""
    state = load_file(file)
    width, channels = state["see.0.weight"].shape[0], state["see.0.weight"].shape[1] // 2
    size = 4 * int((state["see.7.weight"].shape[1] // width) ** 0.5)
    reader = Reader(channels, size, width)
    reader.load_state_dict(state)
    return reader.eval().requires_grad_(False)
