"""Conditions of the ablation: portrait, sound and caption of stored clips, as they are or as careless data has them.

The paper's curation mends references that are blurred or of poor quality and captions that say little. Drawn clips have
no such faults, so they are put in: portraits go through the VAE once more, blurred, dark, taken from another moment or
another person; sound is drowned in noise or somebody else's; captions are empty. What is wrong with a clip follows from
its seed alone. Only what a student is told is spoiled: the latents after frame 0 stay true, and nothing in ODE
initialisation from pairs or in distribution matching learns from them.

A shard keeps no samples, so noise is mixed in where sound is kept: half of a row is what the ear hears in loud noise.

This module does not know teachers, students or rulers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from livetalk.distill.data import ClipStore
from livetalk.distill.learner import save_tensors
from livetalk.distill.pairs import cut_clip
from livetalk.distill.portraits import POSE_FIELDS
from livetalk.model.audio import AudioEncoder
from livetalk.model.vae import VideoVAE
from livetalk.types import MODEL_SAMPLES_PER_PICTURE

SHARD = "shard-00000000.safetensors"
FAULTS_FILE = "faults.json"
FINE = ""
DARKER = 7
SMALLER = 4
NOISE_LEVEL = 0.3


@dataclass(frozen=True)
class FaultShares:
    """How often careless data has which fault; a clip has at most one of each kind (portrait, sound, caption).

    Attributes:
        blurred, dark: portraits out of focus, and without light.
        moment: portraits from the middle of a word or a blink.
        other: portraits of somebody else.
        noise, dubbed: sound drowned in noise, and sound of another clip.
        no_caption: captions that say nothing.
    """

    blurred: float = 0.25
    dark: float = 0.15
    moment: float = 0.1
    other: float = 0.1
    noise: float = 0.1
    dubbed: float = 0.1
    no_caption: float = 0.3


FAULTLESS = FaultShares(*(0.0,) * len(fields(FaultShares)))


@dataclass(frozen=True)
class Faults:
    """What is wrong with a clip, as named in ``FaultShares``; empty = nothing."""

    portrait: str = FINE
    sound: str = FINE
    caption: str = FINE


def faults_of(seed: int, shares: FaultShares) -> Faults:
    """The faults of the clip of a seed."""
    rng = np.random.default_rng([seed, 0xBAD])
    drawn = {name: _one_of(kinds, shares, float(rng.random())) for name, kinds in _KINDS.items()}
    return Faults(**drawn)


_KINDS = {
    "portrait": ("blurred", "dark", "moment", "other"),
    "sound": ("noise", "dubbed"),
    "caption": ("no_caption",),
}


def _one_of(kinds: tuple[str, ...], shares: FaultShares, at: float) -> str:
    for kind in kinds:
        at -= getattr(shares, kind)
        if at < 0:
            return kind
    return FINE


def write_conditions(
    folder: Path, clips: Path, count: int, frames: int, encoders: tuple[VideoVAE, AudioEncoder], shares: FaultShares
) -> None:
    """Write the first ``count`` clips of a folder as a shard of their own, with faults; one that is there is kept.

    Args:
        folder: receives the shard and a list of what is wrong with which clip.
        clips: folder of shards, see ``livetalk.distill.data``.
        count: at most; fewer if there are fewer.
        frames: latent frames of each.
        encoders: the frozen VAE and ear the clips were stored through.
        shares: see ``FaultShares``; ``FAULTLESS`` = clips as they are.
    """
    if (folder / SHARD).is_file():
        return
    store = ClipStore(clips)
    stored = store.clips(range(min(count, len(store))))
    seeds = torch.stack([clip["seeds"] for clip in stored])
    wrong = [faults_of(int(seed), shares) for seed in seeds]
    whole = [cut_clip(clip, frames) for clip in stored]
    rows = [
        _spoiled(clip, whole[(k + 1) % len(whole)], wrong[k], int(seeds[k]), encoders) for k, clip in enumerate(whole)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"seed": int(seed), **asdict(faults)} for seed, faults in zip(seeds, wrong, strict=True)]
    (folder / FAULTS_FILE).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    tensors = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    save_tensors(folder / SHARD, {**tensors, "seeds": seeds})


def spoiled_picture(picture: np.ndarray, fault: str) -> np.ndarray:
    """A picture uint8 ``[H, W, 3]`` out of focus ("blurred") or without light ("dark")."""
    if fault == "dark":
        return picture // DARKER
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).reduce(SMALLER)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)).copy()


@torch.no_grad()
def _spoiled(
    clip: dict[str, Tensor],
    other: dict[str, Tensor],
    faults: Faults,
    seed: int,
    encoders: tuple[VideoVAE, AudioEncoder],
) -> dict[str, Tensor]:
    """A stored clip with its faults; ``other`` is somebody else's."""
    vae, ear = encoders
    latents, audio, text = clip["latents"].clone(), clip["audio"], clip["text"]
    if faults.portrait == "other":
        latents[:, :1] = other["latents"][:, :1]
    elif faults.portrait:
        shown = _moment(vae, clip) if faults.portrait == "moment" else _pictures(vae, latents[:, :1])[0]
        picture = shown if faults.portrait == "moment" else spoiled_picture(shown, faults.portrait)
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        latents[:, :1] = vae.encode_image(image)[0].to(latents)
    if faults.sound == "dubbed":
        audio = other["audio"]
    elif faults.sound:
        audio = (0.5 * audio.float() + 0.5 * _noise_rows(ear, len(audio), seed)).to(audio)
    if faults.caption:
        text = torch.zeros_like(text)
    return {**clip, "latents": latents, "audio": audio.clone(), "text": text}


def _moment(vae: VideoVAE, clip: dict[str, Tensor]) -> np.ndarray:
    """The picture of a clip that makes the worst portrait: mouth open, eyes shut."""
    open_, shut = (clip["poses"][:, POSE_FIELDS.index(name)].float() for name in ("open", "blink"))
    return _pictures(vae, clip["latents"])[int((open_ + shut)[1:].argmax()) + 1]


def _pictures(vae: VideoVAE, latents: Tensor) -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` of latents ``[C, F, h, w]``."""
    pictures = (vae.decode(latents[None].float())[0].permute(1, 2, 3, 0).float() + 1.0) * 127.5
    return pictures.round().clamp(0, 255).to(torch.uint8).numpy()


def _noise_rows(ear: AudioEncoder, rows: int, seed: int) -> Tensor:
    """What the ear hears in loud noise, ``[rows, A]``."""
    samples = ear.past_samples + rows * MODEL_SAMPLES_PER_PICTURE + ear.look_ahead_samples
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(seed)) * NOISE_LEVEL
    return ear(noise.clamp(-1, 1), rows)[0].float()
