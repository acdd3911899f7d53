"""Speed of the network alone on a CPU, against the cost of its own matrix products.

The yardstick is the time of the float32 ``F.linear`` and ``F.scaled_dot_product_attention`` calls that five full passes
over one chunk make (text keys and values excluded), measured in the same run: a machine-independent measure of how
much everything around the products costs. Weights are random; pictures, sound and text encoders are not part of it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk.config import ModelConfig, RolloutConfig
from livetalk.model.conditions import Conditions, image_condition
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import chunk_noise, commit_chunk, denoise_chunk, new_cache
from livetalk.types import PICTURES_PER_LATENT, LatentShape

# The configuration at which the public reference was measured, with eight heads of 32.
NETWORK = ModelConfig(
    width=256,
    heads=8,
    layers=8,
    ffn_width=1024,
    text_width=64,
    text_tokens=512,
    freq_width=256,
    audio_width=32,
)
ROLLOUT = RolloutConfig(window_frames=15, sink_frames=9)
SIDE = 16
LIMIT_FLOAT32 = 1.12
LIMIT_BFLOAT16 = 0.60
FAST_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Spread:
    """Durations of one contestant over all rounds, in seconds."""

    median_s: float
    fastest_s: float
    slowest_s: float

    @classmethod
    def of(cls, durations_s: list[float]) -> Spread:
        """Summary of the rounds."""
        return cls(statistics.median(durations_s), min(durations_s), max(durations_s))


def run(rounds: int = 20, threads: int = 1, clock: Callable[[], float] = time.process_time) -> dict[str, object]:
    """Measure yardstick, float32 and bfloat16 network in turn.

    Args:
        rounds: times each is measured, interleaved.
        threads: torch threads during the measurement; restored afterwards.
        clock: seconds, monotonic; by default processor time, which other work on the machine disturbs least.

    Returns:
        Plain data for one JSON line; see ``report`` for a text.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        contestants = _contestants()
        with torch.inference_mode():
            durations: dict[str, list[float]] = {name: [] for name in contestants}
            for step in contestants.values():
                step()
            for _ in range(rounds):
                for name, step in contestants.items():
                    begin = clock()
                    step()
                    durations[name].append(clock() - begin)
    finally:
        torch.set_num_threads(before)
    return _result(durations, rounds, threads)


def report(result: dict[str, object]) -> str:
    """The result of ``run`` as a few lines for people."""
    lines = [
        f"one chunk = 4 denoising passes + 1 commit pass; {result['threads']} thread(s), {result['rounds']} rounds",
    ]
    for name in ("yardstick", "float32", "bfloat16"):
        low, mid, high = (1000 * float(result[f"{name}_{part}_s"]) for part in ("fastest", "median", "slowest"))  # type: ignore[arg-type]
        lines.append(f"{name:>10}: {mid:7.1f} ms median ({low:.1f} .. {high:.1f})")
    lines.append(f"float32  / yardstick = {result['float32_ratio']:.3f} (at most {LIMIT_FLOAT32})")
    note = "" if result["bfloat16_judged"] else "; not judged: this CPU has no bfloat16 products"
    lines.append(f"bfloat16 / yardstick = {result['bfloat16_ratio']:.3f} (at most {LIMIT_BFLOAT16}{note})")
    lines.append("passed" if result["passed"] else "FAILED")
    return "\n".join(lines)


def _result(durations: dict[str, list[float]], rounds: int, threads: int) -> dict[str, object]:
    result: dict[str, object] = {"benchmark": "network", "rounds": rounds, "threads": threads}
    for name, values in durations.items():
        for part, value in vars(Spread.of(values)).items():
            result[f"{name}_{part}"] = value
    # Each round's own yardstick: what else the machine does slows all three alike.
    ratios = {
        name: statistics.median(ours / base for ours, base in zip(durations[name], durations["yardstick"], strict=True))
        for name in ("float32", "bfloat16")
    }
    judged = has_fast_bfloat16()
    result |= {f"{name}_ratio": ratio for name, ratio in ratios.items()}
    result |= {"float32_limit": LIMIT_FLOAT32, "bfloat16_limit": LIMIT_BFLOAT16, "bfloat16_judged": judged}
    in_time = ratios["bfloat16"] <= LIMIT_BFLOAT16 or not judged
    result["passed"] = ratios["float32"] <= LIMIT_FLOAT32 and in_time
    return result


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return any(flag in words for flag in FAST_BFLOAT16_FLAGS)


def _contestants() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = CausalDiT(NETWORK)
    half = copy.deepcopy(model).prepare_for_inference(torch.bfloat16)
    model.prepare_for_inference(torch.float32)
    return {"yardstick": _yardstick(), "float32": _chunk_after_chunk(model), "bfloat16": _chunk_after_chunk(half)}


def _chunk_after_chunk(model: CausalDiT) -> Callable[[], object]:
    """Denoise and commit the next chunk of a stream whose window is full."""
    config, frames = model.config, ROLLOUT.chunk_frames
    shape = LatentShape(config.out_channels, frames, SIDE, SIDE)
    cache = new_cache(model, ROLLOUT, shape)
    image = image_condition(torch.randn(1, config.out_channels, 1, SIDE, SIDE), frames, first_frame=frames)
    sound = torch.randn(1, PICTURES_PER_LATENT * frames, config.audio_width)
    text = torch.randn(1, config.text_tokens, config.text_width)
    with torch.no_grad():
        cond = model.prepare(Conditions(image, sound, text))
    noise = chunk_noise(0, 0, shape, len(ROLLOUT.timesteps))
    while cache.stored_frames < ROLLOUT.window_frames:
        commit_chunk(model, cache, noise[0], cond)

    def step() -> None:
        commit_chunk(model, cache, denoise_chunk(model, cache, cond, noise, ROLLOUT), cond)

    return step


def _yardstick() -> Callable[[], object]:
    """The float32 products of five full passes, one after the other, with nothing around them."""
    calls = _linear_calls() + _attention_calls()

    def step() -> None:
        for _ in range(len(ROLLOUT.timesteps) + 1):
            for call in calls:
                call()

    return step


def _linear_calls() -> list[Call]:
    """Every linear layer of one pass, with an input of its size."""
    frames, width = ROLLOUT.chunk_frames, NETWORK.width
    tokens = frames * LatentShape(0, frames, SIDE, SIDE).tokens_per_frame(NETWORK.patch)
    patch_numbers = NETWORK.out_channels * NETWORK.patch[1] * NETWORK.patch[2]
    # Per layer: q, k, v, o; q, o of the text attention; two of the feed-forward. Then time embedding and head.
    sizes = [(tokens, width, width)] * 6 + [(tokens, width, NETWORK.ffn_width), (tokens, NETWORK.ffn_width, width)]
    sizes *= NETWORK.layers
    sizes += [(frames, NETWORK.freq_width, width), (frames, width, width), (frames, width, 6 * width)]
    sizes += [(tokens, width, patch_numbers)]
    return [
        partial(F.linear, torch.randn(1, rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs))
        for rows, inputs, outputs in sizes
    ]


def _attention_calls() -> list[Call]:
    """Every attention of one pass: the chunk over the full window and over the text, in each layer."""
    per_frame = LatentShape(0, 1, SIDE, SIDE).tokens_per_frame(NETWORK.patch)
    tokens, window = ROLLOUT.chunk_frames * per_frame, ROLLOUT.window_frames * per_frame

    def heads(count: int) -> Tensor:
        return torch.randn(1, NETWORK.heads, count, NETWORK.head_width)

    return [
        partial(F.scaled_dot_product_attention, heads(tokens), heads(keys), heads(keys))
        for _ in range(NETWORK.layers)
        for keys in (window, NETWORK.text_tokens)
    ]
