"""Trains the embedded model's ear: sound to mouth, supervised by synthetic speech.

Labelled clips are spoken once, then heard through a different room and microphone at every step. The encoder is
frozen afterwards, and what its head reads is the ceiling of any picture made from its features. This module does not
know pictures, nor who listens to the features.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from livetalk.distill.learner import save_tensors
from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.speech import HELD_OUT_SEED, SpeechClip, augment, speech_clip
from livetalk.model.mel import MelAudioEncoder
from livetalk.types import MODEL_SAMPLES_PER_PICTURE

logger = logging.getLogger(__name__)

MOUTH_WEIGHTS = (3.0, 1.0, 1.0)  # openness is what people see first
LABEL_SCALE = (0.23, 0.17, 0.24)  # deviations of (open, wide, teeth): every target counts in its own unit
EVALUATION_VOICES = ("espeak:en-us+m7", "flite:slt", "espeak:en-us+f2", "flite:rms")


@dataclass(frozen=True)
class EarTraining:
    """Sizes of one run.

    Attributes:
        clips: spoken clips to learn from.
        seconds: length of each.
        batch: clips a step.
        evaluation_clips: unseen clips for each voice it is judged by; 0 = no judgement.
        loop: length and rates.
    """

    clips: int = 1_600
    seconds: float = 6.0
    batch: int = 24
    evaluation_clips: int = 12
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2_500, learning_rate=3e-3, last_rate=1e-3, weight_decay=0.02, warmup_steps=50
        )
    )


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


class EarLoss:
    """Draws spoken clips, alters them, and gives the weighted squared error of the mouth (a ``BatchLoss``).

    Args:
        library: the clips.
        batch: clips a step.
    """

    def __init__(self, library: ClipLibrary, batch: int) -> None:
        self.library, self.batch = library, batch
        self.weights = torch.tensor(MOUTH_WEIGHTS) / torch.tensor(LABEL_SCALE).square()

    def __call__(self, encoder: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a fresh batch."""
        assert isinstance(encoder, MelAudioEncoder)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=draws)))
        sound, mouth = self.library.batch(rng.integers(0, len(self.library.sound), self.batch), rng)
        window, rows = windows_of(encoder, torch.from_numpy(sound))
        told = encoder.mouth(encoder(window, rows))
        return ((told - torch.from_numpy(mouth)).square() * self.weights).mean(), {}


def train_ear(
    encoder: MelAudioEncoder,
    library: ClipLibrary,
    plan: EarTraining,
    folder: Path,
    stop_after: int | None = None,
) -> MelAudioEncoder:
    """Train, or go on with the run in ``folder``.

    Args:
        encoder: fresh or pretrained; receives the moving average in the end.
        library: the clips.
        plan: sizes.
        folder: for checkpoint, log and curves.
        stop_after: see ``Loop.run``.

    Returns:
        The encoder, its features standardised on the library.
    """
    about: dict[str, object] = {"stage": "audio", "plan": asdict(plan)}
    loop = Loop(encoder, EarLoss(library, plan.batch), plan.loop, folder, about)
    loop.run(stop_after=stop_after)
    loop.load_average(encoder)
    sound, _ = library.batch(np.arange(min(200, len(library.sound))), np.random.default_rng(plan.loop.seed))
    with torch.no_grad():
        window, rows = windows_of(encoder, torch.from_numpy(sound))
        encoder.standardise(encoder(window, rows))
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


def run(folder: Path, plan: EarTraining, encoder: MelAudioEncoder) -> dict[str, list[float]]:
    """Speaks the clips (kept in ``folder`` for the next run), trains, saves ``audio.safetensors``, judges.

    Returns:
        For each evaluation voice the correlation of openness, width and teeth.
    """
    stored = folder / f"clips-{plan.clips}x{plan.seconds:g}.npz"
    if stored.exists():
        with np.load(stored) as data:
            library = ClipLibrary(data["sound"], data["mouth"])
    else:
        seeds = tqdm(range(plan.clips), desc="speech", disable=not sys.stderr.isatty(), leave=False)
        library = ClipLibrary.of([speech_clip(seed, plan.seconds) for seed in seeds])
        partial = stored.with_name("clips.part.npz")
        np.savez(partial, sound=library.sound, mouth=library.mouth)
        partial.replace(stored)
    logger.info("%d clips ready", len(library.sound))
    train_ear(encoder, library, plan, folder)
    save_tensors(folder / "audio.safetensors", encoder.state_dict())
    voices = EVALUATION_VOICES if plan.evaluation_clips else ()
    clips = {voice: evaluation_clips(voice, plan.evaluation_clips) for voice in voices}
    return {voice: hear(encoder, heard).round(4).tolist() for voice, heard in clips.items()}
