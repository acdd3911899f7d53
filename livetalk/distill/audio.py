"""Trains the embedded model's ear: sound to mouth, supervised by synthetic speech.

Labelled clips are spoken once, then heard through a different room and microphone at every step. The encoder is
frozen afterwards, and what its head reads is the ceiling of any picture made from its features.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from livetalk.distill.speech import HELD_OUT_SEED, SpeechClip, augment, speech_clip
from livetalk.model.mel import MelAudioEncoder
from livetalk.types import MODEL_SAMPLES_PER_PICTURE

logger = logging.getLogger(__name__)

MOUTH_WEIGHTS = (3.0, 1.0, 1.0)  # openness is what people see first
LABEL_SCALE = (0.23, 0.17, 0.24)  # deviations of (open, wide, teeth): every target counts in its own unit
EVALUATION_VOICES = ("espeak:en-us+m7", "flite:slt", "espeak:en-us+f2", "flite:rms")


@dataclass(frozen=True)
class EarTraining:
    """Sizes of one run. ``limit_s`` ends it early (the learning rate still anneals)."""

    clips: int = 1_600
    seconds: float = 6.0
    batch: int = 24
    steps: int = 2_500
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    limit_s: float = 1_200.0
    seed: int = 0


@dataclass(frozen=True)
class ClipLibrary:
    """Spoken clips held in memory: int16 sound [clips, samples] and float32 mouths [clips, T, 3]."""

    sound: np.ndarray
    mouth: np.ndarray

    @classmethod
    def of(cls, clips: Sequence[SpeechClip]) -> ClipLibrary:
        """Library of equally long clips."""
        sound = np.stack([(clip.samples * 32767).astype(np.int16) for clip in clips])
        return cls(sound, np.stack([clip.mouth for clip in clips]))

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Augmented sound [B, samples] and mouths [B, T, 3]; three in four clips are altered."""
        sound = self.sound[indices].astype(np.float32) / 32767
        heard = [augment(one, rng) if rng.random() < 0.75 else one for one in sound]
        return np.stack(heard), self.mouth[indices]


def windows_of(encoder: MelAudioEncoder, sound: Tensor) -> tuple[Tensor, int]:
    """Window and row count that cover all of ``sound`` [B, rows * 1000], with silence around it."""
    rows = sound.shape[-1] // MODEL_SAMPLES_PER_PICTURE
    return torch.nn.functional.pad(sound, (encoder.past_samples, encoder.look_ahead_samples)), rows


def train_ear(
    encoder: MelAudioEncoder,
    library: ClipLibrary,
    plan: EarTraining,
    save: Callable[[MelAudioEncoder], None] | None = None,
) -> MelAudioEncoder:
    """Trains in place on one thread; AdamW, cosine rate, weighted squared error.

    Args:
        encoder: fresh or pretrained.
        library: the clips.
        plan: sizes.
        save: called every 250 steps and at the end.

    Returns:
        The encoder, its features standardised on the library.
    """
    rng = np.random.default_rng(plan.seed)
    optimiser = torch.optim.AdamW(encoder.parameters(), plan.learning_rate, (0.9, 0.98), weight_decay=plan.weight_decay)
    weights = torch.tensor(MOUTH_WEIGHTS) / torch.tensor(LABEL_SCALE).square()
    started, mean_loss = time.monotonic(), 0.0
    step = 0
    while step < plan.steps:
        progress = max(step / plan.steps, (time.monotonic() - started) / plan.limit_s)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * progress)) + 1e-6
        sound, mouth = library.batch(rng.integers(0, len(library.sound), plan.batch), rng)
        window, rows = windows_of(encoder, torch.from_numpy(sound))
        told = encoder.mouth(encoder(window, rows))
        loss = ((told - torch.from_numpy(mouth)).square() * weights).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        step += 1
        mean_loss += (float(loss.detach()) - mean_loss) / min(step, 50)
        if step % 50 == 0:
            logger.info("step %d loss %.4f after %.0f s", step, mean_loss, time.monotonic() - started)
        if step % 250 == 0 and save is not None:
            save(encoder)
    sound, _ = library.batch(np.arange(min(200, len(library.sound))), rng)
    with torch.no_grad():
        window, rows = windows_of(encoder, torch.from_numpy(sound))
        encoder.standardise(encoder(window, rows))
    if save is not None:
        save(encoder)
    return encoder


@torch.inference_mode()
def hear(encoder: MelAudioEncoder, clips: Sequence[SpeechClip]) -> np.ndarray:
    """Correlation of (open, wide, teeth) with the truth, over all pictures of ``clips``: float64 [3]."""
    told, truth = [], []
    for clip in clips:
        window, rows = windows_of(encoder, torch.from_numpy(clip.samples)[None])
        told.append(encoder.mouth(encoder(window, rows))[0].numpy())
        truth.append(clip.mouth)
    a, b = np.concatenate(told), np.concatenate(truth)
    return np.array([np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(3)])


def evaluation_clips(voice: str, count: int = 12, seconds: float = 8.0) -> list[SpeechClip]:
    """Unseen sentences spoken by ``voice``."""
    seeds = range(HELD_OUT_SEED + 1_000, HELD_OUT_SEED + 1_000 + count)
    return [speech_clip(seed, seconds, held_out=True, voice=voice) for seed in seeds]


def save_ear(encoder: MelAudioEncoder, path: Path) -> None:
    """Writes the encoder's weights, head included, as safetensors."""
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, str(partial))
    partial.replace(path)


def run(folder: Path, plan: EarTraining, encoder: MelAudioEncoder) -> dict[str, list[float]]:
    """Speaks the clips (kept in ``folder`` for the next run), trains, evaluates, saves ``audio.safetensors``.

    Returns:
        For each evaluation voice the correlation of openness, width and teeth.
    """
    stored = folder / f"clips-{plan.clips}x{plan.seconds:g}.npz"
    if stored.exists():
        with np.load(stored) as data:
            library = ClipLibrary(data["sound"], data["mouth"])
    else:
        library = ClipLibrary.of([speech_clip(seed, plan.seconds) for seed in range(plan.clips)])
        np.savez(stored, sound=library.sound, mouth=library.mouth)
    logger.info("%d clips ready", len(library.sound))
    train_ear(encoder, library, plan, lambda current: save_ear(current, folder / "audio.safetensors"))
    figures = {voice: hear(encoder, evaluation_clips(voice)).round(4).tolist() for voice in EVALUATION_VOICES}
    for voice, values in figures.items():
        logger.info("%s open/wide/teeth %s", voice, values)
    return figures
