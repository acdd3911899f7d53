"""The teacher's sampler: many steps from noise to clean latents, over a whole clip or chunk after chunk (spec 9).

``sample_clip`` is the paper's teacher: every frame sees every frame. ``sample_chunks`` is a causal teacher (Zhu et al.
2026, "Causal Forcing"): each chunk takes all its steps behind a cache, as a rollout does, so that its trajectories are
ones a causal student can follow. Both hand out the samples they pass at given noise levels, which is what ODE
regression learns from. This module does not know clips on disk, losses or training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from livetalk.config import RolloutConfig
from livetalk.distill.scores import Score, level, output_to_flow, with_portrait
from livetalk.flow import FlowSchedule, euler_step
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions
from livetalk.rollout import commit_chunk, new_cache
from livetalk.types import LatentShape, LiveTalkError

TEACHER_STEPS = 48
"""Steps of the teacher: a multiple of 4, so that the four noise levels of a rollout are among them."""

LEVEL_TOLERANCE = 1e-4

Flow = Callable[[Tensor, Tensor], Tensor]
"""Flow ``noise - x0`` of latents ``x`` at noise level ``t`` (0..1000, ``[B]``)."""


def entry_steps(schedule: FlowSchedule, sigmas: Sequence[float]) -> list[int]:
    """Steps of a schedule that begin at exactly the noise levels ``sigmas`` (0..1, falling).

    Raises:
        LiveTalkError: the schedule does not pass one of them.
    """
    steps = []
    for sigma in sigmas:
        step = int((schedule.sigmas - sigma).abs().argmin())
        if abs(float(schedule.sigmas[step]) - sigma) > LEVEL_TOLERANCE:
            raise LiveTalkError(
                f"A sampler of {len(schedule.sigmas)} steps does not pass noise level {sigma:.4g}; the nearest is "
                f"{float(schedule.sigmas[step]):.4g}. Take a multiple of 4 steps and the shift of the rollout."
            )
        steps.append(step)
    return steps


@torch.no_grad()
def integrate(
    flow: Flow,
    noise: Tensor,
    schedule: FlowSchedule,
    hold: Callable[[Tensor], Tensor] = lambda x: x,
    steps: Sequence[int] = (),
    order: int = 1,
) -> Tensor:
    """Follow the flow from noise to clean latents.

    Args:
        flow: the guided network.
        noise: ``[B, C, F, h, w]``, float32: steps are smaller than a rounding of bfloat16.
        schedule: noise levels; the last step ends at 0.
        hold: writes given frames over a sample; called before every step and after the last.
        steps: which samples to return beside the last one, in rising order.
        order: 1 = Euler, as published; 2 = Adams-Bashforth: the flow of the step before tells how it bends, at no cost.

    Returns:
        The samples before ``steps`` (given frames written), then the final one: ``[len(steps) + 1, B, C, F, h, w]``.
    """
    sigmas = [*schedule.sigmas.tolist(), 0.0]
    x, kept, before = hold(noise), [], None
    for step, t in enumerate(schedule.timesteps.tolist()):
        if step in steps:
            kept.append(x)
        here = flow(x, x.new_full((len(x),), t))
        along = here
        if before is not None and order == 2:
            stride = (sigmas[step + 1] - sigmas[step]) / (sigmas[step] - sigmas[step - 1])
            along = here + 0.5 * stride * (here - before)
        before = here
        x = hold(euler_step(x, along, sigmas[step], sigmas[step + 1]))
    return torch.stack([*kept, x])


@torch.no_grad()
def clip_trajectory(
    score: Score,
    cond: Conditions,
    noise: Tensor,
    schedule: FlowSchedule,
    sigmas: Sequence[float] = (),
    order: int = 1,
) -> Tensor:
    """A whole clip by the bidirectional teacher, with the samples it passes.

    Args:
        score: the teacher with its guidance.
        cond: conditions of all F frames, not prepared; frame 0 is the portrait.
        noise: float32 ``[B, C, F, h, w]``, where the network is; one clip does not change another's result.
        schedule: noise levels.
        sigmas: noise levels (0..1, falling) of the samples wanted; see ``entry_steps``.
        order: see ``integrate``.

    Returns:
        ``[len(sigmas) + 1, B, C, F, h, w]``, noisy to clean; frame 0 is the portrait in each.
    """
    branches = score.branches(cond)
    portrait = cond.portrait[:, :, :1].to(noise)

    def flow(x: Tensor, t: Tensor) -> Tensor:
        return score.flow(x, t, branches)

    steps = entry_steps(schedule, sigmas)
    return integrate(flow, noise, schedule, lambda x: with_portrait(x, portrait), steps, order)


def sample_clip(score: Score, cond: Conditions, noise: Tensor, schedule: FlowSchedule) -> Tensor:
    """Clean latents ``[B, C, F, h, w]`` of a whole clip by the bidirectional teacher; see ``clip_trajectory``."""
    return clip_trajectory(score, cond, noise, schedule)[-1]


@torch.no_grad()
def chunks_trajectory(
    score: Score,
    cond: Conditions,
    noise: Tensor,
    schedule: FlowSchedule,
    settings: RolloutConfig,
    sigmas: Sequence[float] = (),
    past: Tensor | None = None,
    order: int = 1,
) -> Tensor:
    """A whole clip by the causal teacher: every chunk takes all steps behind the cache of what came before.

    Args:
        score: the teacher with its guidance.
        cond: conditions of all F frames, not prepared.
        noise: float32 ``[B, C, F, h, w]``.
        schedule: noise levels.
        settings: chunk, window, sinks and positions of the cache.
        sigmas: noise levels of the samples wanted.
        past: true latents ``[B, C, F, h, w]`` to commit; None = what the teacher made.
        order: see ``integrate``.

    Returns:
        As ``clip_trajectory``, chunk behind chunk.
    """
    frames, chunk_frames = noise.shape[2], settings.chunk_frames
    if frames % chunk_frames:
        raise LiveTalkError(
            f"{frames} latent frames are not a whole number of chunks of {chunk_frames}. Cut the clip to a multiple."
        )
    steps = entry_steps(schedule, sigmas)
    shape = LatentShape(noise.shape[1], chunk_frames, *noise.shape[-2:])
    cache = new_cache(score.network, settings, shape, batch=len(noise))
    branches = score.branches(cond)
    chunks = []
    for start in range(0, frames, chunk_frames):
        stop = start + chunk_frames
        parts = [branch.frames(start, stop) for branch in branches]
        flow, hold = _behind(score, cache, parts)
        chunks.append(integrate(flow, noise[:, :, start:stop], schedule, hold, steps, order))
        finished = chunks[-1][-1] if past is None else past[:, :, start:stop]
        commit_chunk(score.network, cache, finished, parts[0])
    return torch.cat(chunks, dim=3)


def _behind(score: Score, cache: KVCache, branches: Sequence[Conditions]) -> tuple[Flow, Callable[[Tensor], Tensor]]:
    """Flow of the chunk at the cache's place, and what is given of it.

    The branches of guidance share the past, as in a rollout.
    """
    portrait, first = branches[0].portrait, cache.next_frame == 0

    def flow(x: Tensor, t: Tensor) -> Tensor:
        outputs = [score.network(x, t, branch, cache=cache) for branch in branches]
        return output_to_flow(score.guidance.combine(outputs), x, level(t, x), portrait, score.prediction)

    def hold(x: Tensor) -> Tensor:
        return with_portrait(x, portrait) if first else x

    return flow, hold
