"""Speed of the whole stream on this machine: first picture, real-time factor, memory, time to start.

Everything is measured from sound packets to H.264 packets, with the code a session runs. A matrix product measured in
the same process and the load average say how quiet and how fast the machine was. What is fast enough is not decided
here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from livetalk.config import preset as config_of
from livetalk.engine import Engine, configured_engine
from livetalk.eval import roofline
from livetalk.eval.budget import budget
from livetalk.hub import PLAIN, Models, load_models, random_models
from livetalk.media.packets import Packer
from livetalk.stream.performer import Performer
from livetalk.types import (
    MODEL_RATE,
    MODEL_SAMPLES_PER_PICTURE,
    PICTURES_PER_SECOND,
    AudioChunk,
    Identity,
    LiveTalkError,
    SpeechEnd,
    pictures_of,
)

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

PACKET_S = 0.1
FIRST_PICTURE_ROUNDS = 12
CALIBRATION_SIDE = 1024
CALIBRATION_ROUNDS = 8
START_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Random:
    """Random weights instead of those of a preset: they take as long, and nothing has to be fetched.

    Attributes:
        layers: of the network, for machines that cannot carry all of them; None = all.
        size: height and width of the pictures; None = the preset's.
    """

    layers: int | None = None
    size: int | None = None


def run(
    preset: str = "mini",
    device: str = "auto",
    seconds: float = 30.0,
    random: Random | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Measure a preset on this machine.

    Args:
        preset: name of a preset, or a folder with a checkpoint.
        device: "auto", "cpu" or "cuda".
        seconds: length of the video to generate.
        random: random weights of the preset's sizes.
        engine: how the networks are run; None = as the environment says.

    Returns:
        Plain data: ``engine``; see :func:`measure`; ``counted_gpu_mb``, the peak that the budget counts for a GPU;
        ``roofline``, see :func:`livetalk.eval.roofline.measure`; and of weights that
        are not random ``ready_s``, the time from the start of a process until it is warm.

    Raises:
        LiveTalkError: no such model or device, or sizes that cannot be.
    """
    engine = configured_engine() if engine is None else engine
    models = (
        load_models(preset, device, engine=engine)
        if random is None
        else random_models_of(preset, device, random, engine)
    )
    figures = measure(models, seconds)
    told = {
        "preset": preset,
        "weights": "random" if random else "trained",
        "layers": models.preset.model.layers,
        "engine": asdict(engine),
        **figures,
        "counted_gpu_mb": round(budget(models.preset, models.dtype, engine).peak / 2**20, 1),
        "roofline": roofline.measure(models, made_up_identity(models)),
    }
    return told | ({"ready_s": round(ready_s(preset, device), 2)} if random is None else {})


def random_models_of(name: str, device: str, wanted: Random, engine: Engine = PLAIN) -> Models:
    """Random weights of a preset's sizes, with fewer layers or smaller pictures if so wanted.

    Raises:
        LiveTalkError: no such preset or device, or sizes that cannot be.
    """
    config = config_of(name)
    most = config.model.layers
    layers = most if wanted.layers is None else wanted.layers
    if not 1 <= layers <= most:
        raise LiveTalkError(f"{config.title} has {most} layers; {layers} were asked for. Give --layers 1 to {most}.")
    side = config.height if wanted.size is None else wanted.size
    if side < 16 or side % 16:
        raise LiveTalkError(f"Pictures of {side} x {side} cannot be made. Give --size as a multiple of 16.")
    hearing = config.model.audio_layer_range
    audible = None if not len(hearing) else (min(hearing.start, layers - 1), min(hearing[-1], layers - 1))
    model = replace(config.model, layers=layers, audio_layers=audible)
    width = config.width if wanted.size is None else side
    config = replace(config, model=model, height=side, width=width)
    return random_models(config, device=device, dtype="auto", engine=engine)


def measure(models: Models, seconds: float, rounds: int = FIRST_PICTURE_ROUNDS) -> dict[str, Any]:
    """Measure loaded models.

    Args:
        models: networks and preset.
        seconds: length of the video to generate.
        rounds: how often the first picture is measured.

    Returns:
        ``first_frame_ms`` and ``first_frame_p95_ms`` (last sample the first chunk needs -> its pictures, encoded),
        ``fps`` and ``real_time_factor`` (generated seconds per second, all stages), ``stages`` (milliseconds a chunk,
        p50 and p95), ``peak_rss_mb``, ``peak_gpu_mb`` (None without a GPU), and what the machine was like.
    """
    identity = made_up_identity(models)
    if models.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(models.device)  # loading is not talking
    first_ms = [1000 * _first_picture_s(models, identity, seed) for seed in range(rounds + 2)][2:]  # two to get warm
    fps, stages = _stream(models, identity, seconds)
    return {
        "device": str(models.device),
        "dtype": str(models.dtype).removeprefix("torch."),
        "size": [models.preset.height, models.preset.width],
        "seconds": seconds,
        "first_frame_ms": round(statistics.median(first_ms), 1),
        "first_frame_p95_ms": round(_percentile(first_ms, 95), 1),
        "fps": round(fps, 1),
        "real_time_factor": round(fps / PICTURES_PER_SECOND, 2),
        "peak_rss_mb": peak_rss_mb(),
        "peak_gpu_mb": _peak_gpu_mb(models.device),
        "stages": stages,
        "threads": torch.get_num_threads(),
        **machine(models.device),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """How busy and how fast this machine is now: load average, processors, a matrix product in both number formats."""
    formats = (torch.float32, torch.bfloat16)
    return {
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "matmul_gflops": {str(dtype).removeprefix("torch."): _matmul_gflops(device, dtype) for dtype in formats},
    }


def peak_rss_mb() -> float | None:
    """Largest memory this process ever had, in MiB; None where the system does not say."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _peak_gpu_mb(device: torch.device) -> float | None:
    """Largest memory that tensors ever had on the GPU, in MiB."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None


def ready_s(preset: str, device: str) -> float:
    """Seconds from the start of a new process until the model has made its first pictures."""
    begin_s = time.perf_counter()
    code = "import sys; from livetalk import load; load(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, preset, device], check=True, timeout=START_TIMEOUT_S)
    return time.perf_counter() - begin_s


def _first_picture_s(models: Models, identity: Identity, seed: int) -> float:
    """From the last sample that the first chunk needs to its pictures in H.264."""
    preset = models.preset
    pictures = pictures_of(preset.rollout.chunk_frames)
    speech = _speech(pictures * MODEL_SAMPLES_PER_PICTURE + preset.audio.look_ahead_samples)
    performer, packer = Performer(models, identity, seed), Packer(preset.height, preset.width)
    last = int(PACKET_S * MODEL_RATE)
    performer.push(AudioChunk(speech[:-last], MODEL_RATE))
    begin_s = time.perf_counter()
    performer.push(AudioChunk(speech[-last:], MODEL_RATE))
    for piece in performer.pictures():
        packer.pack(piece, "speaking")
    spent_s = time.perf_counter() - begin_s
    performer.close()
    return spent_s


def _stream(models: Models, identity: Identity, seconds: float) -> tuple[float, dict[str, dict[str, float]]]:
    """Pictures per second of a stream fed with packets, all stages, and the times of the stages."""
    preset = models.preset
    performer, packer = Performer(models, identity), Packer(preset.height, preset.width)
    packet = _speech(int(PACKET_S * MODEL_RATE))
    made = 0
    begin_s = time.perf_counter()
    for push in [AudioChunk(packet, MODEL_RATE)] * max(1, round(seconds / PACKET_S)) + [SpeechEnd()]:
        performer.push(push)
        for piece in performer.pictures():
            with performer.times.stage("encode"):
                packer.pack(piece, "speaking")
            made += len(piece.pictures)
    fps = made / (time.perf_counter() - begin_s)
    performer.close()
    steps = performer.times.steps_s()
    return fps, {
        name: {
            "p50": round(1000 * statistics.median(steps[name]), 2),
            "p95": round(1000 * _percentile(steps[name], 95), 2),
        }
        for name in ("audio", "denoise", "commit", "decode", "encode")
        if steps.get(name)
    }


def made_up_identity(models: Models) -> Identity:
    """A made-up portrait; speed does not depend on what it shows, except a little in the encoder of pictures."""
    rows = torch.linspace(-1, 1, models.preset.height)[None, :, None]
    columns = torch.linspace(-1, 1, models.preset.width)[None, None, :]
    face = torch.exp(-3 * (rows**2 + columns**2)) * 2 - 1
    return models.identity(face.expand(3, -1, -1).contiguous(), models.preset.stream.default_prompt)


def _speech(samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.1 * noise).clip(-1, 1).astype(np.float32)


def _matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Best of some square matrix products, in 10^9 operations a second."""
    side = CALIBRATION_SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(CALIBRATION_ROUNDS):
        begin_s = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        best_s = min(best_s, time.perf_counter() - begin_s)
    return round(2 * side**3 / best_s / 1e9, 1)


def _percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))
