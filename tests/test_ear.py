"""Training the ear: on sounds whose loudness is the mouth it learns within seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from livetalk.config import MINI
from livetalk.distill.audio import ClipLibrary, EarTraining, hear, train_ear
from livetalk.distill.curves import fell, read_log
from livetalk.distill.learner import save_tensors
from livetalk.distill.loop import LoopConfig
from livetalk.distill.speech import SpeechClip
from livetalk.model.mel import MelAudioEncoder


def _clip(seed: int) -> SpeechClip:
    """2 s of noise bursts; the mouth is open while it sounds, wide where the sound is bright."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 2, 16).repeat(2)
    bright = rng.integers(0, 2, 16).repeat(2)
    noise = rng.standard_normal(32_000)
    dull = np.convolve(noise, np.ones(12) / 12, mode="same")
    sound = np.where(bright.repeat(1000) == 1, noise, 3 * dull) * steps.repeat(1000) * 0.1
    mouth = np.stack([steps * 0.7, 0.5 + 0.4 * steps * (2 * bright - 1), steps * bright * 0.8], axis=1)
    return SpeechClip(sound.astype(np.float32), mouth.astype(np.float32), "noise", "")


def test_the_ear_learns_and_keeps_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = MelAudioEncoder(MINI.audio)
    library = ClipLibrary.of([_clip(seed) for seed in range(12)])
    loop = LoopConfig(steps=30, learning_rate=5e-3, warmup_steps=5, average_decay=0.5, late_average_decay=0.5)
    plan = EarTraining(batch=6, loop=replace(loop, log_every=1, curves=False))
    unseen = [_clip(seed) for seed in range(100, 103)]
    before = hear(encoder, unseen)
    train_ear(encoder, library, plan, tmp_path)
    after = hear(encoder, unseen)
    assert after[0] > 0.8 > before[0]
    assert after[1] > 0.6
    assert fell(read_log(tmp_path / "log.jsonl")["loss"][1]) < 0.6
    save_tensors(tmp_path / "audio.safetensors", encoder.state_dict())
    again = MelAudioEncoder(MINI.audio)
    again.load_state_dict(load_file(tmp_path / "audio.safetensors"))
    np.testing.assert_allclose(hear(again, unseen), after)
