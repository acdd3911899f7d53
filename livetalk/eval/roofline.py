"""What the stages of a stream cost in floating-point operations and bytes, against what this machine can do.

Operations are counted by torch while one chunk is made whose window is full; bytes are those that must at least be
read: the weights of every pass, and the keys and values it attends to. The peaks are measured in the same process: a
large matrix product and a large copy. A stage's *share* is the time these peaks would allow over the time it took: 1
cannot be beaten, and what is missing is overhead.

The teacher's pass over a whole clip is timed beside it: what a student saves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from livetalk.hub import Models
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.rollout import chunk_noise, commit_chunk, denoise_chunk, new_cache
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_LATENT, Identity

ROUNDS = 5
TEACHER_FRAMES = 21
"""Latent frames of the clip that the teacher makes: 81 pictures, 5 s."""
TEACHER_STEPS = 48
TEACHER_CALLS = 2
"""Network calls of one of its steps: with guidance, which both text and sound share."""

PEAK_SIDE = {"cuda": 8192, "cpu": 1024}
PEAK_BYTES = {"cuda": 2**30, "cpu": 2**27}


@dataclass(frozen=True)
class Stage:
    """One stage of one chunk.

    Attributes:
        run: does it once.
        least_bytes: that it must read.
        before, after: what must happen before and after it, and does not count.
    """

    run: Callable[[], object]
    least_bytes: int
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None


@torch.inference_mode()
def measure(models: Models, identity: Identity, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure one chunk, stage by stage, and the teacher's pass.

    Args:
        models: networks and preset.
        identity: who is drawn; speed does not depend on it.
        rounds: how often each is timed; the median counts.

    Returns:
        ``peak_gflops`` (in the network's number format), ``peak_gbytes_s``; for ``audio``, ``denoise``, ``commit`` and
        ``decode``: ``gflop``, ``least_mbytes``, ``ms``, ``share``; ``network_fps``, pictures a second of the network
        alone; ``teacher``: ``pass_ms`` of one call over a clip of 21 latent frames, and ``generator_ratio``, how much
        longer its 48 steps with guidance take than the student for the same clip.
    """
    gflops, gbytes_s = peak_gflops(models.device, models.dtype), peak_gbytes_s(models.device)
    found: dict[str, Any] = {"peak_gflops": round(gflops, 1), "peak_gbytes_s": round(gbytes_s, 1)}
    for name, stage in stages(models, identity).items():
        flop = operations(stage)
        spent_s = _seconds(stage, models.device, rounds)
        allowed_s = max(flop / (1e9 * gflops), stage.least_bytes / (1e9 * gbytes_s))
        found[name] = {
            "gflop": round(flop / 1e9, 3),
            "least_mbytes": round(stage.least_bytes / 1e6, 3),
            "ms": round(1000 * spent_s, 2),
            "share": round(allowed_s / spent_s, 3),
        }
    frames = models.preset.rollout.chunk_frames
    chunk_ms = found["denoise"]["ms"] + found["commit"]["ms"]
    pass_ms = 1000 * _seconds(Stage(_teacher_pass(models, identity), 0), models.device, rounds)
    found["network_fps"] = round(1000 * frames * PICTURES_PER_LATENT / chunk_ms, 1)
    found["teacher"] = {
        "pass_ms": round(pass_ms, 1),
        "generator_ratio": round(TEACHER_STEPS * TEACHER_CALLS * pass_ms * frames / (TEACHER_FRAMES * chunk_ms), 1),
    }
    return found


def operations(stage: Stage) -> int:
    """Floating-point operations of the products of a stage, as torch counts them (a multiply-add is two)."""
    custom: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        custom[torch.ops.mkldnn._linear_pointwise] = _packed_linear_flop
    stage.before()
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        stage.run()
    stage.after()
    return int(counter.get_total_flops())


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some large square matrix products, in 10^9 operations a second."""
    side = PEAK_SIDE["cuda" if device.type == "cuda" else "cpu"]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(Stage(lambda: left @ right, 0), device, 2 * ROUNDS, best=True) / 1e9


def peak_gbytes_s(device: torch.device) -> float:
    """The best of some large copies, in 10^9 bytes read and written a second."""
    size = PEAK_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(Stage(lambda: target.copy_(source), 0), device, 2 * ROUNDS, best=True) / 1e9


def stages(models: Models, identity: Identity) -> dict[str, Stage]:
    """The stages of the next chunk of a stream whose window is full, by name."""
    preset, network = models.preset, models.transformer
    settings, frames = preset.rollout, preset.rollout.chunk_frames
    shape = preset.latent_shape(frames)
    cond = network.prepare(_conditions(models, identity, frames, first_frame=frames))
    noise = chunk_noise(0, 0, shape, len(settings.timesteps)).to(models.device)
    cache = new_cache(network, settings, shape)
    while cache.stored_frames < settings.window_frames:
        commit_chunk(network, cache, noise[0], cond)
    _, state = models.vae.decode_chunk(noise[0], None)
    pictures = frames * PICTURES_PER_LATENT
    sound = torch.zeros(1, _samples(models, pictures), device=models.device)
    passes = len(settings.timesteps) * (2 if settings.audio_guidance else 1)
    one_pass = _nbytes(network) + cache.bytes() * 2 // 3 if settings.positions == "bounded" else cache.bytes()

    def denoise() -> None:
        denoise_chunk(network, cache, cond, noise, settings)

    def commit() -> None:
        commit_chunk(network, cache, noise[0], cond)

    return {
        "audio": Stage(lambda: models.audio(sound, pictures), _nbytes(models.audio)),
        "denoise": Stage(denoise, passes * one_pass, after=commit),
        "commit": Stage(commit, one_pass, before=denoise),
        "decode": Stage(lambda: models.vae.decode_chunk(noise[0], state), _nbytes(models.vae, "decoder")),
    }


def _teacher_pass(models: Models, identity: Identity) -> Callable[[], Tensor]:
    network, shape = models.transformer, models.preset.latent_shape(TEACHER_FRAMES)
    cond = network.prepare(_conditions(models, identity, TEACHER_FRAMES, first_frame=0))
    noise = chunk_noise(0, 0, shape, 1)[0].to(models.device)
    t = torch.full((1,), 500.0, device=models.device)
    return lambda: network(noise, t, cond)


def _conditions(models: Models, identity: Identity, frames: int, first_frame: int) -> Conditions:
    config, device = models.transformer.config, models.device
    portrait = identity.portrait_latent.to(device)
    rows = torch.zeros(1, frames * PICTURES_PER_LATENT - (3 if first_frame == 0 else 0), config.audio_width)
    return Conditions(
        image=image_condition(portrait, frames, first_frame=first_frame),
        audio=(pack_audio(rows) if first_frame == 0 else rows).to(device),
        text=identity.text.to(device),
    )


def _samples(models: Models, pictures: int) -> int:
    audio = models.audio
    return audio.past_samples + pictures * MODEL_SAMPLES_PER_PICTURE + audio.look_ahead_samples


def _nbytes(module: Any, part: str = "") -> int:
    """Bytes of a module's weights, or of those with ``part`` in their names; those in 8 bits are buffers."""
    named = (*module.named_parameters(), *module.named_buffers())
    return sum(weight.numel() * weight.element_size() for name, weight in named if part in name)


def _seconds(stage: Stage, device: torch.device, rounds: int, *, best: bool = False) -> float:
    """Median (or best) time of some runs, after one that does not count."""
    spent: list[float] = []
    for _ in range(rounds + 1):
        stage.before()
        _settle(device)
        begin_s = time.perf_counter()
        stage.run()
        _settle(device)
        spent.append(time.perf_counter() - begin_s)
        stage.after()
    return min(spent[1:]) if best else statistics.median(spent[1:])


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _attention_flop(q_shape: Any, k_shape: Any, v_shape: Any, *_: Any, **__: Any) -> int:
    """Of torch's attention on CPUs, which its own counter does not know."""
    return sdpa_flop_count(q_shape, k_shape, v_shape)


def _packed_linear_flop(x_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of one product with packed weights: ``[..., inputs]`` times ``[outputs, inputs]``."""
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 2 * rows * x_shape[-1] * out_shape[-1]
