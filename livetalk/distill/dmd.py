"""On-policy distillation: the student learns from its own rollouts what the teacher would change (spec 10.2 to 10.5).

The student makes clips as the engine does (``Roller``). The frozen teacher, guided, and the critic, which follows what
the student makes, both look at the noised result; where they differ is where the student moves (Yin et al. 2024,
"Distribution Matching Distillation"; Huang et al. 2025, "Self Forcing").

Beyond the paper, each off unless asked for: noise on the finished past, so that the student learns to recover; a
gradient that counts more at mouth and eyes; a term towards the true clip; rollouts longer than what is judged; a
teacher that is asked block-causally. This module does not know how clips are made, how optimisation works, or how
results look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from livetalk.config import ModelConfig, Preset, to_dict
from livetalk.distill.data import ClipStore
from livetalk.distill.learner import Learner
from livetalk.distill.loop import Loop, LoopConfig, Partner, training_device
from livetalk.distill.losses import critic_loss, draw_timesteps, matching_gradient, matching_loss, regression_loss
from livetalk.distill.onpolicy import RollConfig, Rolled, Roller
from livetalk.distill.optimisers import Rates
from livetalk.distill.reader import Reader
from livetalk.distill.scores import Guidance, Score
from livetalk.distill.teacher import TeacherConfig, TeacherLoss
from livetalk.model.attention import ChunkMask
from livetalk.model.transformer import CausalDiT
from livetalk.model.weights import load_transformer_state


def critic_rates() -> Rates:
    """How the critic is trained by default: constant rate, betas as published."""
    return Rates(learning_rate=1e-5, last_rate=1.0, betas=(0.0, 0.999), warmup_steps=0, clip_norm=10.0)


@dataclass(frozen=True)
class DmdConfig(RollConfig):
    """Who judges the rollouts and what counts; see ``RollConfig`` for what they look like.

    A bidirectional teacher wants whole clips: ``scored_frames`` no shorter than ``frames``. A causal one wants the
    window of a rollout.

    Attributes:
        causal: teacher and critic see what a student sees, instead of every frame seeing every frame.
        text_scale: the teacher's guidance of the caption, 1 = none; see ``Guidance``.
        audio_scale: the teacher's guidance of the sound, 1 = none.
        negative: safetensors file with the rows ``text`` ``[L, W]`` of what the teacher is guided away from (the
            published negative prompt, encoded); "" = zero rows, as caption dropout trains.
        critic: how the critic is trained; the student's rates are the loop's.
        rate_factor: multiplies the learning rates of both.
        every: critic steps for each step of the student.
        alone: the critic's steps before the student's first one.
        critic_floor: see ``losses.critic_loss``; 0 = as published.
        mouth_weight: additional weight of the gradient at the mouth.
        eye_weight: additional weight of the gradient at eyes and brows.
        true_weight: weight of the squared distance from the true clip, beside the gradient.
        reader_weight: weight of what a reader (``livetalk.distill.reader``) sees of mouth, eyes and mood in rollouts,
            compared with the true clip; 0 = none.
        together: the calls of guidance in one batch, for a GPU that is not full.
        teacher_model: sizes of the teacher; None = those of the student.
        critic_model: sizes of the critic; None = those of the teacher.
        dtype: number format to compute in; master weights are always float32.
    """

    causal: bool = False
    text_scale: float = 1.5
    audio_scale: float = 1.75
    negative: str = ""
    critic: Rates = field(default_factory=critic_rates)
    rate_factor: float = 1.0
    every: int = 5
    alone: int = 20
    critic_floor: float = 0.04
    mouth_weight: float = 0.0
    eye_weight: float = 0.0
    true_weight: float = 0.0
    reader_weight: float = 0.0
    together: bool = False
    teacher_model: ModelConfig | None = None
    critic_model: ModelConfig | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class StartWeights:
    """Files of the weights a run begins with: safetensors with the names of ``CausalDiT``.

    Attributes:
        student: usually the result of ODE initialisation.
        teacher: frozen.
        critic: where the critic starts; None = from the teacher.
    """

    student: Path
    teacher: Path
    critic: Path | None = None


class Matching:
    """Losses of student and critic, each a ``BatchLoss`` with rollouts of its own.

    Args:
        store: clips whose portrait, sound and caption are the conditions.
        preset: of the student: how it is rolled out, and what the networks predict.
        config: see ``DmdConfig``.
        student: what is distilled.
        teacher: frozen; guided as ``config`` says.
        critic: follows the student.
        reader: frozen; needed if ``config.reader_weight`` is not 0.
    """

    def __init__(
        self,
        store: ClipStore,
        preset: Preset,
        config: DmdConfig,
        student: CausalDiT,
        teacher: CausalDiT,
        critic: CausalDiT,
        reader: Reader | None = None,
    ) -> None:
        self.preset, self.config, self.student, self.reader = preset, config, student, reader
        guidance = Guidance(config.text_scale, config.audio_scale)
        negative = load_file(config.negative)["text"][None].to(teacher.device) if config.negative else None
        self.teacher = Score(teacher, preset.rollout.prediction, guidance, negative, together=config.together)
        self.critic = Score(critic, preset.rollout.prediction)
        self.roll = Roller(store, preset, config)
        self._mask = ChunkMask(preset.rollout.chunk_frames) if config.causal else None
        spots = TeacherConfig(mouth_weight=config.mouth_weight, eye_weight=config.eye_weight)
        self._spots = TeacherLoss(store, preset, spots, torch.ones(preset.model.out_channels))

    def student_loss(self, _: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Distribution matching on fresh rollouts.

        Figures: mean size of the gradient (before ``1 / elements``), N, exit step, noise level, distance from truth.
        """
        rolled = self.roll(self.student, draws)
        noise, t = self._noise(rolled, draws)
        found = matching_gradient(
            self.teacher,
            self.critic,
            rolled.latents.detach(),
            rolled.cond,
            noise,
            t,
            block_mask=self._mask,
            published=self.config.published,
        )
        weights = self._weights(rolled)
        loss = matching_loss(rolled.latents, found.gradient, weights)
        figures = {
            "gradient": float(found.gradient.abs().mean()),
            "normaliser": float(found.normaliser.mean()),
            "exit_step": rolled.exit_step,
            "level": float(t.mean()),
        }
        if self.config.true_weight or self.reader is not None:
            truth = torch.stack([clip["latents"][:, rolled.frames].float() for clip in rolled.clips])
            truth = truth.to(rolled.latents)
        if self.config.true_weight:
            distance = regression_loss(rolled.latents, truth, weights)
            figures["from_truth"] = float(distance.detach())
            loss = loss + self.config.true_weight * distance
        if self.reader is not None and self.config.reader_weight:
            counted = (rolled.frames > 0).to(rolled.latents).expand(len(truth), -1)
            read = self.reader.distance(rolled.latents, truth, rolled.cond.portrait, counted)
            figures["read"] = float(read.detach())
            loss = loss + self.config.reader_weight * read
        return loss, figures

    def critic_loss(self, _: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Flow matching of the critic on fresh rollouts."""
        with torch.no_grad():
            rolled = self.roll(self.student, draws)
        noise, t = self._noise(rolled, draws)
        loss = critic_loss(
            self.critic,
            rolled.latents,
            rolled.cond,
            noise,
            t,
            floor=self.config.critic_floor,
            block_mask=self._mask,
            published=self.config.published,
        )
        return loss, {"exit_step": rolled.exit_step, "level": float(t.mean())}

    def _noise(self, rolled: Rolled, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise like the latents, and its levels 0..1000 ``[B]``."""
        latents = rolled.latents
        t = draw_timesteps(len(latents), self.preset.rollout.shift, draws)
        return torch.randn(latents.shape, generator=draws).to(latents), t.to(latents)

    def _weights(self, rolled: Rolled) -> Tensor | None:
        """Where the gradient counts how much, ``[B, 1, F, h, w]``, mean about 1; None = everywhere the same."""
        if not (self.config.mouth_weight or self.config.eye_weight):
            return None
        height, width = rolled.latents.shape[-2:]
        maps = [self._spots.spot_weights(clip, rolled.frames, height, width) for clip in rolled.clips]
        return torch.stack(maps).unsqueeze(1).to(rolled.latents)


def load_network(model: ModelConfig, path: Path, dtype: torch.dtype) -> CausalDiT:
    """A network of sizes ``model`` with the weights of a file, on the CPU.

    Raises:
        LiveTalkError: the weights do not fit.
    """
    network = CausalDiT(model).to(dtype)
    load_transformer_state(network, load_file(path), path.name)
    return network.eval()


def train(  # noqa: PLR0913  # a stage's settings
    preset: Preset,
    clips: Path,
    folder: Path,
    weights: StartWeights,
    loop: LoopConfig,
    config: DmdConfig | None = None,
    on_checkpoint: Callable[[Loop], None] | None = None,
    stop_after: int | None = None,
    reader: Reader | None = None,
) -> Loop:
    """Distil on-policy, or go on with the run in ``folder``. Call it once in every rank.

    The paper's schedule (spec sections 10.5 and 11) is ``LoopConfig(learning_rate=4e-6, last_rate=1, betas=(0, .999),
    warmup_steps=0, clip_norm=10, average_decay=.99, late_average_decay=.99, average_from_step=200)`` with 8e-7 for the
    critic. Steps of the loop are steps of the critic.

    Args:
        preset: the student and how it will be rolled out.
        clips: folder of shards, see ``livetalk.distill.data``; read once, at the start.
        folder: for checkpoint (student, critic, their optimisers and averages) and log.
        weights: where student, teacher and critic begin.
        loop: length, the student's rates.
        config: see ``DmdConfig``.
        on_checkpoint, stop_after: see ``Loop.run``.
        reader: see ``Matching``.

    Returns:
        The loop; its moving average is the result.
    """
    config = config or DmdConfig()
    dtype, store = getattr(torch, config.dtype), ClipStore(clips)
    teacher_model = config.teacher_model or preset.model
    teacher = load_network(teacher_model, weights.teacher, dtype).to(training_device(loop.engine))
    tokens = config.scored_frames * preset.latent_shape(1).tokens_per_frame(teacher_model.patch)
    teacher.prepare_for_inference(dtype, tokens)
    student = load_network(preset.model, weights.student, dtype)
    critic = load_network(config.critic_model or teacher_model, weights.critic or weights.teacher, dtype)
    matching = Matching(store, preset, config, student, teacher, critic, reader)
    rates = replace(config.critic, learning_rate=config.rate_factor * config.critic.learning_rate)
    partner = Partner(Learner(critic, matching.critic_loss, rates), every=config.every, alone=config.alone)
    loop = replace(loop, learning_rate=config.rate_factor * loop.learning_rate)
    describe = {"stage": "dmd", "preset": to_dict(preset), "dmd": to_dict(config), "clips": len(store)}
    run = Loop(student, matching.student_loss, loop, folder, describe, partner=partner)
    run.run(on_checkpoint, stop_after)
    return run
