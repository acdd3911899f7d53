"""Training objectives of the distillation as pure functions of tensors (spec sections 10.1, 10.3 and 10.4).

Where the published code has a defect (spec section 13) the functions do the mended thing: noise levels are ``t / 1000``
everywhere, and frame 0, which is the given portrait, counts nowhere. ``published=True`` reproduces the reference
instead, number by number, for comparison. This module does not know clips, optimisers, or how samples come about.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from livetalk.config import RolloutConfig
from livetalk.distill.scores import Score, level, with_portrait
from livetalk.flow import FULL_NOISE, FlowSchedule, add_noise, dmd_timestep, flow_from_x0
from livetalk.model.attention import ChunkMask
from livetalk.model.conditions import Conditions

PUBLISHED_TABLE = (1000, 5.0)
"""Steps and shift of the noise levels that everything but the score networks is looked up in, as published."""

PUBLISHED_SCORE_TABLE = (1000, 8.0)
"""The same inside the published wrapper of teacher and critic."""


@functools.cache
def table(steps: int, shift: float) -> FlowSchedule:
    """Table of noise levels; made once."""
    return FlowSchedule(steps, shift)


def published_settings(settings: RolloutConfig) -> RolloutConfig:
    """Rollout with the noise levels of the published training: nearest in a table of 1000 (spec section 10.2)."""
    sigmas = table(*PUBLISHED_TABLE).sigma(settings.timesteps).tolist()
    return replace(settings, sigmas=tuple(sigmas), positions="absolute")


def published_context_sigma() -> float:
    """Noise level of the published training's "clean" context: the last entry of its table, 0.00498."""
    return float(table(*PUBLISHED_TABLE).sigma(0.0))


def published_score(score: Score) -> Score:
    """A score network as the published wrapper reads it."""
    return replace(score, table=table(*PUBLISHED_SCORE_TABLE))


def regression_loss(x0: Tensor, clean: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of clean latents (spec section 10.1); ``weights`` must broadcast."""
    square = (x0 - clean).square()
    return square.mean() if weights is None else (square * weights).mean()


def draw_timesteps(batch: int, shift: float, draws: torch.Generator) -> Tensor:
    """Noise levels 0..1000 of a batch for teacher and critic, ``[B]``: shifted, clamped (spec section 10.3.1)."""
    return dmd_timestep(torch.randint(int(FULL_NOISE), (batch,), generator=draws), shift)


def noised(clean: Tensor, noise: Tensor, t: Tensor, portrait: Tensor, *, published: bool = False) -> Tensor:
    """Latents ``[B, C, F, H, W]`` at noise level ``t`` ``[B]`` with the portrait as frame 0."""
    sigma = level(t, clean, table(*PUBLISHED_TABLE) if published else None)
    return with_portrait(add_noise(clean, noise, sigma), portrait)


@dataclass(frozen=True)
class ScoreGradient:
    """Where the teacher wants generated latents to go.

    Attributes:
        gradient: ``(q - p) / N`` with q the critic's and p the teacher's clean latents, ``[B, C, F, H, W]``.
        normaliser: N, the mean distance of the latents from p, ``[B]``.
    """

    gradient: Tensor
    normaliser: Tensor


def score_gradient(
    generated: Tensor, critic_x0: Tensor, teacher_x0: Tensor, *, published: bool = False
) -> ScoreGradient:
    """Distribution matching gradient (spec section 10.3.4).

    Args:
        generated: latents ``[B, C, F, H, W]`` of the student.
        critic_x0: what the critic sees in them once they are noised.
        teacher_x0: what the guided teacher sees.
        published: frame 0 counts in the normaliser.

    Returns:
        The gradient, without NaN or infinity.
    """
    counted = slice(0 if published else 1, None)
    distance = (generated - teacher_x0)[:, :, counted].abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    gradient = torch.nan_to_num((critic_x0 - teacher_x0) / distance)
    return ScoreGradient(gradient, distance.flatten())


def matching_gradient(
    teacher: Score,
    critic: Score,
    generated: Tensor,
    cond: Conditions,
    noise: Tensor,
    t: Tensor,
    *,
    block_mask: ChunkMask | None = None,
    published: bool = False,
) -> ScoreGradient:
    """Noise generated latents and ask teacher and critic (spec section 10.3.2 to 4); no gradient flows through it.

    Args:
        teacher: frozen, with its guidance.
        critic: what the student's latents look like, usually without guidance.
        generated: latents ``[B, C, F, H, W]`` of the student; frame 0 is the portrait.
        cond: their conditions, not prepared.
        noise: like ``generated``.
        t: noise level 0..1000, ``[B]``.
        block_mask: ask block-causally; None = every frame sees every frame.
        published: see the module's docstring.
    """
    if published:
        teacher, critic = published_score(teacher), published_score(critic)
    with torch.no_grad():
        x = noised(generated, noise, t, cond.portrait, published=published)
        q, p = (score.x0(x, t, score.branches(cond), block_mask=block_mask) for score in (critic, teacher))
        return score_gradient(generated, q, p, published=published)


def matching_loss(generated: Tensor, gradient: Tensor, weights: Tensor | None = None) -> Tensor:
    """Loss whose derivative in ``generated`` is ``gradient / number of elements`` (spec section 10.3.5), float64.

    ``weights`` (mean about 1, must broadcast) say where the gradient counts more.
    """
    if weights is not None:
        gradient = gradient * weights.to(gradient)
    latents = generated.double()
    target = latents.detach() - gradient.double()
    return 0.5 * (latents - target).square().mean()


def critic_loss(
    critic: Score,
    generated: Tensor,
    cond: Conditions,
    noise: Tensor,
    t: Tensor,
    *,
    floor: float = 0.0,
    block_mask: ChunkMask | None = None,
    published: bool = False,
) -> Tensor:
    """The critic learns what the student's latents look like: flow matching (spec section 10.4).

    Args:
        critic: the trained network.
        generated: latents ``[B, C, F, H, W]`` of the student, a constant.
        cond: their conditions, not prepared.
        noise: like ``generated``.
        t: noise level 0..1000, ``[B]``.
        floor: the squared error at noise level s counts ``s^2 / (s^2 + floor)``: 0 = flow matching as published; a
            network that predicts clean latents wants about .04, or faint noise would count 2500 times as much.
        block_mask: see ``matching_gradient``.
        published: see the module's docstring.
    """
    generated = generated.detach()
    x = noised(generated, noise, t, cond.portrait, published=published)
    if published:
        score = published_score(critic)
        x0 = score.x0(x, t, score.branches(cond), block_mask=block_mask)
        flow = flow_from_x0(x0, x, level(t, x, table(*PUBLISHED_TABLE)))
        return flow_loss(flow, noise - generated, first_channel=True)
    flow = critic.flow(x, t, critic.branches(cond), block_mask=block_mask)
    square = level(t, x).square()
    return flow_loss(flow, noise - generated, square / (square + floor))


def flow_loss(flow: Tensor, target: Tensor, weights: Tensor | float = 1.0, *, first_channel: bool = False) -> Tensor:
    """Mean weighted squared error of flow ``[B, C, F, H, W]``, frame 0 left out.

    Args:
        flow: of the network.
        target: noise - clean latents.
        weights: must broadcast.
        first_channel: leave out channel 0 of every frame instead of frame 0, as the published mask does.
    """
    square = (flow - target).square() * weights
    return (square[:, 1:] if first_channel else square[:, :, 1:]).mean()
