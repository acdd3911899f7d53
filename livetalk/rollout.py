"""The autoregressive loop: denoise a chunk, commit it to the cache, go on (spec section 8).

Used by the engine (one chunk at a time) and by on-policy training (with gradients through one step). Knows chunks,
steps and the prediction target. Does not know sound, pictures, sessions or weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from livetalk.config import RolloutConfig
from livetalk.flow import FlowSchedule, add_noise, x0_from_flow
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions
from livetalk.model.gathering import CachedNetwork, over_a_chunk
from livetalk.types import LatentShape, LiveTalkError

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def chunk_noise(seed: int, chunk: int, shape: LatentShape, steps: int, batch: int = 1) -> Tensor:
    """Noise of one chunk, the same for the same ``seed`` and ``chunk`` on every machine and in any order.

    Args:
        seed: chosen by the visitor.
        chunk: number of the chunk in its stream.
        shape: latents of one chunk.
        steps: denoising steps: entry 0 starts the chunk, entry i is added again before step i.
        batch: streams in step.

    Returns:
        float32 ``[steps, batch, C, f, H, W]`` on the CPU.
    """
    # A mixing function over both numbers: the generator itself keeps only 32 bits of its seed.
    mixed = (seed * _GOLDEN + chunk + 1) & _WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
    generator = torch.Generator().manual_seed(mixed >> 32)
    size = (steps, batch, shape.channels, shape.frames, shape.height, shape.width)
    return torch.randn(size, generator=generator)


def new_cache(
    model: CachedNetwork,
    settings: RolloutConfig,
    shape: LatentShape,
    batch: int = 1,
    start_frame: int = 0,
    undo_on_host: bool = False,
) -> KVCache:
    """An empty cache that fits the network; see ``KVCache``."""
    return KVCache(
        model.config,
        settings,
        shape,
        batch=batch,
        dtype=model.dtype,
        device=model.device,
        start_frame=start_frame,
        undo_on_host=undo_on_host,
    )


def step_sigmas(settings: RolloutConfig) -> list[float]:
    """Noise level of every denoising step: given, or the nearest entries of the inference table."""
    if settings.sigmas is not None:
        return list(settings.sigmas)
    return FlowSchedule(len(settings.timesteps), settings.shift).sigma(settings.timesteps).tolist()


def denoise_chunk(
    model: CachedNetwork,
    cache: KVCache,
    cond: Conditions,
    noise: Tensor,
    settings: RolloutConfig,
    *,
    exit_step: int | None = None,
) -> Tensor:
    """Few-step denoising of the chunk that stands at the cache's place.

    Args:
        model: the student.
        cache: what was said before; the chunk's own slot is written, but not committed.
        cond: conditions of these frames; prepare them once for all steps.
        noise: ``[steps, B, C, f, H, W]``, see ``chunk_noise``.
        settings: timesteps, prediction and guidance.
        exit_step: training: stop after this step; only it sees gradients. None = all steps.

    Returns:
        Clean latents ``[B, C, f, H, W]`` in the dtype of ``noise``.

    Raises:
        LiveTalkError: noise for another number of steps.
    """
    sigmas = step_sigmas(settings)
    if noise.shape[0] != len(sigmas):
        raise LiveTalkError(f"Noise for {noise.shape[0]} steps was given, the settings have {len(sigmas)} steps.")
    noise = noise.to(model.device)
    cond = model.prepare(cond)
    # Without all of its rows, the driven ones too: then guidance also makes a blink shut the eyes wholly.
    silent = model.prepare(dataclasses.replace(cond, audio=None)) if settings.audio_guidance else None
    last = len(sigmas) - 1 if exit_step is None else exit_step
    gradients = torch.is_grad_enabled()
    cache.open(noise.shape[3]).is_last = False
    x0 = noise[0]
    with over_a_chunk(model):
        for step in range(last + 1):
            x = noise[0] if step == 0 else add_noise(x0, noise[step], sigmas[step])
            x = _with_portrait(x, cache, cond)
            t = x.new_full((x.shape[0],), settings.timesteps[step])
            with torch.set_grad_enabled(gradients and (step == last or exit_step is None)):
                x0 = _predict(model, cache, cond, x, t, sigmas[step], settings)
                if silent is not None:
                    without = _predict(model, cache, silent, x, t, sigmas[step], settings)
                    x0 = x0 + settings.audio_guidance * (x0 - without)
    return _with_portrait(x0, cache, cond)


def commit_chunk(model: CachedNetwork, cache: KVCache, latents: Tensor, cond: Conditions) -> None:
    """The clean pass: write keys and values of finished latents ``[B, C, f, H, W]`` and move the cache on."""
    clean = latents.detach().to(model.device)
    model.write_context(clean, clean.new_zeros(clean.shape[0]), cond, cache)


def rollout(
    model: CachedNetwork,
    cond: Conditions,
    noise: Tensor,
    settings: RolloutConfig,
    cache: KVCache | None = None,
    *,
    exit_steps: Sequence[int] | None = None,
    first_trained: int = 0,
    spoil: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Chunk after chunk over a whole clip.

    Args:
        model: the student.
        cond: conditions of all F frames.
        noise: ``[chunks, steps, B, C, f, H, W]``.
        settings: window, sinks, timesteps, prediction, guidance.
        cache: where to go on; None = a new stream.
        exit_steps: training: the step after which each chunk stops, see ``denoise_chunk``; only the latents see
            gradients, never what later chunks attend to.
        first_trained: training: chunks before this one see no gradients at all.
        spoil: training: what a finished chunk ``[B, C, f, H, W]`` and its number are turned into before it becomes
            the past of later chunks.

    Returns:
        Latents ``[B, C, F, H, W]``.
    """
    chunks, _, batch, channels, frames, height, width = noise.shape
    if cache is None:
        cache = new_cache(model, settings, LatentShape(channels, frames, height, width), batch)
    cond = dataclasses.replace(cond, text=model.prepare(cond).text)
    latents = []
    for chunk in range(chunks):
        part = cond.frames(chunk * frames, (chunk + 1) * frames)
        exit_step = None if exit_steps is None else exit_steps[chunk]
        with torch.set_grad_enabled(torch.is_grad_enabled() and chunk >= first_trained):
            made = denoise_chunk(model, cache, part, noise[chunk], settings, exit_step=exit_step)
        latents.append(made)
        commit_chunk(model, cache, made if spoil is None else spoil(made.detach(), chunk), part)
    return torch.cat(latents, dim=2)


def _with_portrait(x: Tensor, cache: KVCache, cond: Conditions) -> Tensor:
    """The first frame of a stream is the portrait itself."""
    if cache.next_frame != 0:
        return x
    return torch.cat((cond.portrait[:, :, :1].to(x), x[:, :, 1:]), dim=2)


def _predict(
    model: CachedNetwork, cache: KVCache, cond: Conditions, x: Tensor, t: Tensor, sigma: float, settings: RolloutConfig
) -> Tensor:
    """Clean latents as the network sees them through ``x``."""
    output = model(x, t, cond, cache=cache)
    if settings.prediction == "portrait_residual":
        return output + cond.portrait.to(output)
    return x0_from_flow(output, x, sigma)
