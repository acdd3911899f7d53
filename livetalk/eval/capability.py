"""Whether a preset fits this machine, and how fast it would be: needs counted from its sizes, speed measured briefly.

An expectation, not a benchmark (``bench`` is one): a second or two of silence, on a machine that may be busy. Nothing
is downloaded, and no weights are read but those that come with the repository.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from livetalk import resources
from livetalk.config import Preset
from livetalk.engine import ENGINES, MEMORY_VARIABLE, Engine, configured_engine, fast_dtype
from livetalk.eval.budget import budget
from livetalk.hub import Models, find_weights, load_models, random_models
from livetalk.model.transformer import CausalDiT
from livetalk.stream.performer import Performer
from livetalk.types import PICTURES_PER_LATENT, PICTURES_PER_SECOND, PLAYBACK_RATE, AudioChunk

GIB = 1024**3
MEASURED_S = 1.5
SMALLEST = "8gb"
"""The engine that is proposed where the one asked for does not fit."""
WARM_CHUNKS = 2
EXTRAPOLATED_FROM = (2, 4)
"""Layers of the two cut-down networks from which a large one is extrapolated."""
CPU_OPERATIONS_PER_S = 1e12
"""More than processors reach in matrix products; a preset that needs more wants a GPU."""


@dataclass(frozen=True)
class Fit:
    """One preset on this machine.

    Attributes:
        preset: which.
        device: where it would run.
        needed_bytes: memory of that device it needs, free.
        why_not: why it does not fit, in a sentence; None = it does.
        has_weights: they are here, ready to be loaded.
        factor: seconds of video a second that one stream may expect; None = not measured.
    """

    preset: Preset
    device: torch.device
    needed_bytes: float
    why_not: str | None
    has_weights: bool
    factor: float | None = None


def fit(preset: Preset, measure: bool = True) -> Fit:
    """Whether a preset fits this machine, and if so what speed to expect.

    Args:
        preset: which.
        measure: False = no speed.

    Raises:
        LiveTalkError: its checkpoint is here and damaged.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    has_weights = find_weights(preset) is not None
    needed = needed_bytes(preset, fast_dtype(device))
    found = Fit(preset, device, needed, _why_not(preset, device, needed, has_weights), has_weights)
    if found.why_not is not None or not measure:
        return found
    return dataclasses.replace(found, factor=expected_factor(preset, device))


def needed_bytes(preset: Preset, dtype: torch.dtype) -> float:
    """Memory one stream of a preset needs on its device, run as the environment says, in bytes.

    Raises:
        LiveTalkError: a variable of the engine has a value nobody knows.
    """
    return budget(preset, dtype, configured_engine()).needed


def wants_gpu(preset: Preset) -> bool:
    """Whether the network alone, for one second of video in a second, is more than processors can compute."""
    shape = preset.latent_shape(preset.rollout.chunk_frames)
    _, rows, columns = preset.model.patch
    tokens = shape.frames * (shape.height // rows) * (shape.width // columns)
    passes = len(preset.rollout.timesteps) + 1  # and the commit
    return passes * 2 * _parameters(preset) * tokens / _chunk_s(preset) > CPU_OPERATIONS_PER_S


def expected_factor(preset: Preset, device: torch.device) -> float:
    """Real-time factor to expect of one stream: measured with an embedded model, extrapolated for a published one.

    Raises:
        LiveTalkError: the embedded checkpoint is damaged.
    """
    if preset.weights.repositories:  # gigabytes, too slow to read for an expectation
        return extrapolated_factor(preset, device)
    return real_time_factor(load_models(preset.name, str(device), engine=_quick_engine()))


def extrapolated_factor(preset: Preset, device: torch.device) -> float:
    """Real-time factor of a preset without its weights: every layer costs the same, all else is as it is.

    Two networks with few of its layers and random weights (speed does not depend on them) are measured.
    """
    run = {"device": str(device), "dtype": "auto", "engine": _quick_engine()}
    few, more = (
        1 / real_time_factor(random_models(with_layers(preset, layers), **run))  # type: ignore[arg-type]
        for layers in EXTRAPOLATED_FROM
    )
    layer = max(0.0, more - few) / (EXTRAPOLATED_FROM[1] - EXTRAPOLATED_FROM[0])
    return 1 / (few + (preset.model.layers - EXTRAPOLATED_FROM[0]) * layer)


def _quick_engine() -> Engine:
    """As the environment says, uncompiled: compiling takes longer than an expectation may."""
    return dataclasses.replace(configured_engine(), compile="off")


def with_layers(preset: Preset, layers: int) -> Preset:
    """The preset with another number of layers, one of which adds audio."""
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, layers=layers, audio_layers=(1, 1)))


def real_time_factor(
    models: Models, budget_s: float = MEASURED_S, timer: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of video a second, from sound to pictures, of one stream of silence, with the threads a page would use.

    Args:
        models: networks and preset.
        budget_s: how long to measure; at least one chunk is.
        timer: the clock.
    """
    preset = models.preset
    threads = torch.get_num_threads()
    torch.set_num_threads(measured_threads())
    try:
        portrait = torch.zeros(3, preset.height, preset.width)
        performer = Performer(models, models.identity(portrait, preset.stream.default_prompt))
        silence = AudioChunk(np.zeros(round(_chunk_s(preset) * PLAYBACK_RATE), np.float32))
        made, begin_s = 0, timer()
        for chunk in itertools.count():
            performer.push(silence)
            pictures = sum(len(piece.pictures) for piece in performer.pictures())
            if chunk < WARM_CHUNKS:
                begin_s = timer()
                continue
            made += pictures
            if made and timer() - begin_s >= budget_s:
                break
        spent_s = timer() - begin_s
        performer.close()
    finally:
        torch.set_num_threads(threads)
    return made / PICTURES_PER_SECOND / spent_s


def measured_threads() -> int:
    """Threads the page would use here: what the environment says, else ``resources.page_threads``."""
    return resources.configured_threads() or resources.page_threads()


def _why_not(preset: Preset, device: torch.device, needed: float, has_weights: bool) -> str | None:
    """Why a preset does not fit, in a sentence; None = it does."""
    if not has_weights and not preset.weights.repositories:
        return f"Its weights are missing. Fetch the repository again with checkpoints/{preset.weights.folder}."
    need = f"It needs {needed / GIB:.1f} GiB of free memory"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        place = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free on the GPU"
        if free >= needed:
            return None
        least = budget(preset, fast_dtype(device), ENGINES[SMALLEST]).needed
        advice = "Close what else runs there, or use a larger GPU."
        if least <= free:
            advice = f"With {MEMORY_VARIABLE}={SMALLEST} it needs {least / GIB:.1f} GiB."
        return f"{need}, and {place}. {advice}"
    if wants_gpu(preset):
        return f"It needs a CUDA GPU with {needed / GIB:.1f} GiB of free memory, and none was found."
    memory = resources.memory_bytes()
    if memory is None or memory[0] >= needed:
        return None
    return f"{need}, and {memory[0] / GIB:.1f} of {memory[1] / GIB:.1f} GiB are free. Close other programs."


def _parameters(preset: Preset) -> int:
    """Weights of the network."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in CausalDiT(preset.model).parameters())


def _chunk_s(preset: Preset) -> float:
    """Length of a chunk, in seconds of video."""
    return preset.rollout.chunk_frames * PICTURES_PER_LATENT / PICTURES_PER_SECOND
