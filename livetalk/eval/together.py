"""Several streams at once on one engine: how much more they make when passes of the network are shared.

Each stream runs in a thread of its own, from sound to pictures (no H.264), as a live session does that is always busy.
The same streams run with and without sharing, round after round in one process, so that a machine whose speed changes
disturbs both alike. This module does not judge what is fast enough.
"""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from livetalk.engine import Engine, configured_engine
from livetalk.eval.bench import Random, machine, made_up_identity, random_models_of
from livetalk.hub import Models, load_models
from livetalk.model.batching import CacheBatch, join_conditions, join_text
from livetalk.model.conditions import Conditions, TextKeys, image_condition
from livetalk.model.gathering import Gathered
from livetalk.rollout import commit_chunk, new_cache
from livetalk.stream.avatar import Avatar
from livetalk.stream.performer import Performer
from livetalk.types import MODEL_RATE, AudioChunk, LiveTalkError, SpeechEnd

ROUNDS = 5
WARM_S = 2.0
PASS_ROUNDS = 20


def run(
    preset: str = "mini",
    device: str = "auto",
    seconds: float = 30.0,
    random: Random | None = None,
    engine: Engine | None = None,
    sessions: int = 2,
) -> dict[str, Any]:
    """Measure a preset on this machine.

    Args:
        preset: name of a preset, or a folder with a checkpoint.
        device: "auto", "cpu" or "cuda".
        seconds: length of the video that each stream generates, each time.
        random: random weights of the preset's sizes.
        engine: how the networks are run otherwise; None = as the environment says.
        sessions: streams at once.

    Returns:
        Plain data: what was run, see :func:`measure`, and what the machine was like.

    Raises:
        LiveTalkError: no such model or device, or less than one stream.
    """
    if sessions < 1:
        raise LiveTalkError(f"{sessions} streams cannot be measured. Give --sessions 1 or more.")
    engine = configured_engine() if engine is None else engine
    if random is None:
        models = load_models(preset, device, engine=engine)
    else:
        models = random_models_of(preset, device, random, engine)
    return {
        "preset": preset,
        "weights": "random" if random else "trained",
        "layers": models.preset.model.layers,
        "size": [models.preset.height, models.preset.width],
        "device": str(models.device),
        "dtype": str(models.dtype).removeprefix("torch."),
        "engine": asdict(engine) | {"batch": "both"},
        "seconds": seconds,
        **measure(models, seconds, sessions),
        "threads": torch.get_num_threads(),
        **machine(models.device),
    }


def measure(models: Models, seconds: float, sessions: int, rounds: int | None = None) -> dict[str, Any]:
    """Measure loaded models.

    Args:
        models: networks and preset; whether their engine shares passes does not matter.
        seconds: length of the video that each stream generates, each time.
        sessions: streams at once.
        rounds: how often each way; None = ``ROUNDS``.

    Returns:
        ``apart_fps`` and ``together_fps``: pictures a second of all streams in the median round, without and with
        shared passes; ``ratio``: the second over the first, in the median of the rounds; ``ratios``: of each round;
        ``alone_fps``: of one stream by itself; ``streams_per_pass``: how many of the passes that could be shared ran
        with how many streams; ``pass_ms``: milliseconds of a denoising pass for 1, 2, ... streams, without anything
        around it.
    """
    apart, shared = (replace(models, engine=replace(models.engine, batch=batch)) for batch in ("off", "on"))
    network = shared.network
    assert isinstance(network, Gathered)
    Avatar(shared).warm_up_together()
    for way in (apart, shared):
        _fps(way, WARM_S, sessions)
    network.passes.clear()
    alone, without, with_shared = [], [], []
    for _ in range(ROUNDS if rounds is None else rounds):
        alone.append(_fps(apart, seconds, 1))
        without.append(_fps(apart, seconds, sessions))
        with_shared.append(_fps(shared, seconds, sessions))
    ratios = [after / before for before, after in zip(without, with_shared, strict=True)]
    return {
        "sessions": sessions,
        "alone_fps": round(statistics.median(alone), 1),
        "apart_fps": round(statistics.median(without), 1),
        "together_fps": round(statistics.median(with_shared), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "streams_per_pass": dict(sorted(network.passes.items())),
        "pass_ms": {streams: round(1000 * spent_s, 2) for streams, spent_s in _passes_s(models, network.most).items()},
    }


@torch.inference_mode()
def _passes_s(models: Models, most: int) -> dict[int, float]:
    """Median time of a pass for every number of streams up to ``most``, the window full; one cache stands for all."""
    identity, settings, network = made_up_identity(models), models.preset.rollout, models.transformer
    shape = models.preset.latent_shape(settings.chunk_frames)
    image = image_condition(identity.portrait_latent.to(models.device), shape.frames, first_frame=1)
    cond = network.prepare(Conditions(image, None, identity.text.to(models.device)))
    cache = new_cache(network, settings, shape)
    while cache.stored_frames < settings.window_frames:
        commit_chunk(network, cache, cond.portrait, cond)
    cache.open(shape.frames).is_last = False
    assert isinstance(cond.text, TextKeys)
    spent_s: dict[int, list[float]] = {streams: [] for streams in range(1, most + 1)}
    for streams in [*spent_s] * (1 + PASS_ROUNDS):
        whole, own = cond, (CacheBatch([cache] * streams) if streams > 1 else cache)
        if streams > 1:
            whole = join_conditions([cond] * streams, join_text([cond.text] * streams))
        x = torch.cat([cond.portrait] * streams)
        _wait_for(models.device)
        begin_s = time.perf_counter()
        network(x, x.new_full((streams,), settings.timesteps[-1]), whole, cache=own)
        _wait_for(models.device)
        spent_s[streams].append(time.perf_counter() - begin_s)
    return {streams: statistics.median(times[1:]) for streams, times in spent_s.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fps(models: Models, seconds: float, streams: int) -> float:
    """Pictures a second of all streams together; they begin at once, and the last one's end counts."""
    identity = made_up_identity(models)
    noise = np.random.default_rng(0).standard_normal(int(seconds * MODEL_RATE))
    speech = (0.1 * noise).clip(-1, 1).astype(np.float32)
    ready = threading.Barrier(streams + 1)

    def perform(performer: Performer) -> int:
        ready.wait()
        made = 0
        for push in (AudioChunk(speech, MODEL_RATE), SpeechEnd()):
            performer.push(push)
            made += sum(len(piece.pictures) for piece in performer.pictures())
        performer.close()
        return made

    performers = [Performer(models, identity, seed) for seed in range(streams)]
    with ThreadPoolExecutor(streams) as threads:
        running = [threads.submit(perform, performer) for performer in performers]
        ready.wait()
        begin_s = time.perf_counter()
        made = sum(one.result() for one in running)
        return made / (time.perf_counter() - begin_s)
