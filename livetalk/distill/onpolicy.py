"""Clips as the student makes them: rollouts over stored conditions, for whoever judges them (spec section 10.2).

The student goes chunk after chunk through the same ``livetalk.rollout`` as the engine, with the window and the sinks of
inference, from noise and from its own past. A chunk stops at a random step, and only that last pass sees gradients; the
past is a constant. This module does not know who judges the result, or how the student is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from livetalk.config import Preset, RolloutConfig
from livetalk.distill.data import ClipStore
from livetalk.distill.losses import published_context_sigma, published_settings
from livetalk.distill.pairs import clip_conditions, cut_clip
from livetalk.flow import add_noise
from livetalk.model.conditions import Conditions
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import rollout
from livetalk.types import PICTURES_PER_LATENT


@dataclass(frozen=True)
class RollConfig:
    """What a batch of rollouts looks like.

    Attributes:
        batch: clips a step and rank.
        frames: latent frames of a rollout, one of these for each batch; at most those of a clip.
        scored_frames: latent frames that are judged: the first sink chunks and the end of the rollout.
        windowed: window and sinks of inference; False = everything before, as published.
        sinks: sink frames, one of these for each batch; () = the preset's.
        exit: where a chunk stops: one random step for the whole clip, as published, or one for each chunk.
        past_noise: highest noise level (0..1) mixed into the finished chunks that later ones attend to.
        published: with the defects of the published training (spec section 13), for comparison.
    """

    batch: int = 4
    frames: tuple[int, ...] = (21,)
    scored_frames: int = 21
    windowed: bool = True
    sinks: tuple[int, ...] = ()
    exit: Literal["clip", "chunk"] = "clip"
    past_noise: float = 0.0
    published: bool = False


@dataclass(frozen=True)
class Rolled:
    """The frames of a batch of rollouts that are judged.

    Attributes:
        latents: of the student, ``[B, C, F, h, w]``; frame 0 is the portrait.
        cond: their conditions, not prepared.
        clips: the stored clips the conditions are from, as long as the rollout.
        frames: which latent frames of the rollout these are, ``[F]``.
        exit_step: mean over the chunks.
    """

    latents: Tensor
    cond: Conditions
    clips: list[dict[str, Tensor]]
    frames: Tensor
    exit_step: float


class Roller:
    """Rolls a student out over random stored clips.

    Args:
        store: clips whose portrait, sound and caption are the conditions.
        preset: of the student: how it is rolled out.
        config: see ``RollConfig``.
    """

    def __init__(self, store: ClipStore, preset: Preset, config: RollConfig) -> None:
        self.store, self.preset, self.config = store, preset, config
        self.chunk = preset.rollout.chunk_frames

    def __call__(self, student: CausalDiT, draws: torch.Generator) -> Rolled:
        """A batch of rollouts, with gradients if they are on."""
        chosen = torch.randint(len(self.store), (self.config.batch,), generator=draws).tolist()
        stored = self.store.clips(chosen)
        frames = min(_one_of(self.config.frames, draws), *(clip["latents"].shape[1] for clip in stored))
        frames = frames // self.chunk * self.chunk
        clips = [cut_clip(clip, frames) for clip in stored]
        settings = self.settings(frames, draws)
        kept = self.scored(frames, settings.sink_frames)
        noise, exits = self.noise(clips, settings, draws)
        cond = clip_conditions(clips, self.preset.model.drive_width, student.device)
        latents = rollout(
            student,
            cond,
            noise,
            settings,
            exit_steps=exits,
            first_trained=int(kept[-1] + 1 - self._trained(kept)) // self.chunk,
            spoil=self._spoil(noise[:, 0], draws),
        )
        return Rolled(latents[:, :, kept], frames_of(cond, kept), clips, kept, sum(exits) / len(exits))

    def settings(self, frames: int, draws: torch.Generator) -> RolloutConfig:
        """How ``frames`` latent frames are rolled out; guidance is the teacher's, so the student has none."""
        settings = replace(self.preset.rollout, audio_guidance=0.0)
        if self.config.published:
            settings = published_settings(settings)
        if not self.config.windowed:
            return replace(settings, window_frames=frames, sink_frames=0)
        sinks = self.config.sinks or (settings.sink_frames,)
        return replace(settings, sink_frames=_one_of(sinks, draws))

    def scored(self, frames: int, sinks: int) -> Tensor:
        """Numbers of the latent frames that are judged, ``[n]``: all, or the first chunks and the end."""
        if frames <= self.config.scored_frames:
            return torch.arange(frames)
        first = max(sinks, self.chunk)
        return torch.cat((torch.arange(first), torch.arange(frames - self.config.scored_frames + first, frames)))

    def noise(
        self, clips: Sequence[dict[str, Tensor]], settings: RolloutConfig, draws: torch.Generator
    ) -> tuple[Tensor, list[int]]:
        """Noise ``[chunks, steps, B, C, f, h, w]`` of a rollout and the exit step of every chunk."""
        channels, frames, height, width = clips[0]["latents"].shape
        chunks, steps = frames // self.chunk, len(settings.timesteps)
        drawn = torch.randint(steps, (chunks,), generator=draws).tolist()
        exits = drawn if self.config.exit == "chunk" else drawn[:1] * chunks
        noise = torch.zeros(chunks, steps, len(clips), channels, self.chunk, height, width)
        used = noise[:, : max(exits) + 1]
        noise[:, : max(exits) + 1] = torch.randn(used.shape, generator=draws)
        return noise, exits

    @staticmethod
    def _trained(kept: Tensor) -> int:
        """Length of the unbroken stretch of frames at the end: what is judged as anything but an anchor."""
        gaps = (kept.diff() != 1).nonzero()
        return len(kept) if not len(gaps) else len(kept) - 1 - int(gaps[-1])

    def _spoil(self, like: Tensor, draws: torch.Generator) -> Callable[[Tensor, int], Tensor] | None:
        """What becomes of finished chunks before later ones attend to them; ``like`` is ``[chunks, B, C, f, h, w]``."""
        highest = self.config.past_noise
        if not (highest or self.config.published):
            return None
        noise = torch.randn(like.shape, generator=draws)
        sigma = highest * torch.rand((*like.shape[:2], 1, 1, 1, 1), generator=draws)
        if self.config.published:
            sigma = torch.full_like(sigma, published_context_sigma())
        return lambda latents, chunk: add_noise(latents, noise[chunk].to(latents), sigma[chunk].to(latents))


def frames_of(cond: Conditions, frames: Tensor) -> Conditions:
    """Unprepared conditions of some latent frames only."""
    if len(frames) == cond.image.shape[2]:
        return cond
    assert isinstance(cond.audio, Tensor)
    audio = cond.audio.unflatten(1, (-1, PICTURES_PER_LATENT))[:, frames].flatten(1, 2)
    return Conditions(cond.image[:, :, frames], audio, cond.text)


def _one_of(choices: Sequence[int], draws: torch.Generator) -> int:
    return choices[int(torch.randint(len(choices), (), generator=draws))]
