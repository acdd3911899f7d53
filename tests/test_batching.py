"""Streams that share passes of the network: each gets what it gets alone, whoever it meets and whatever fails.

Threads meet by a main thread that stands in the middle of a chunk: nothing starts before it leaves, and it leaves when
all are in line.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from livetalk.engine import Engine
from livetalk.hub import Models, random_models
from livetalk.model import compiled
from livetalk.model.batching import CacheBatch, join_conditions, join_text
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions
from livetalk.model.gathering import Gathered
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import commit_chunk, denoise_chunk, new_cache
from livetalk.stream.avatar import Avatar
from livetalk.stream.performer import Performer
from livetalk.types import LiveTalkError
from tests.live import babble, film, speak, tiny_identity, tiny_models
from tests.parity import relative_error
from tests.test_rollout import CHUNK, CONFIG, SETTINGS, SHAPE, conditions, noise, part
from tests.tiny import TINY

TOLERANCE = 1e-5
"""float32: a product of more rows may add up in another order."""
PATIENCE_S = 60.0
SHARING = Engine(compile="off", batch="on")


@pytest.fixture(scope="module")
def model() -> CausalDiT:
    torch.manual_seed(1)
    return CausalDiT(CONFIG).eval().requires_grad_(False)


def stream(model: CausalDiT, chunks: int, seed: int, settings=SETTINGS) -> tuple[KVCache, Conditions]:
    """A stream behind so many chunks, and the conditions of its next one."""
    cache, cond = new_cache(model, settings, SHAPE), conditions(CHUNK * (chunks + 1), seed=seed)
    for chunk in range(chunks):
        commit_chunk(model, cache, noise(chunks, seed)[chunk, 0], part(cond, chunk))
    return cache, model.prepare(part(cond, chunks))


def latents(seed: int) -> Tensor:
    return noise(1, seed + 100)[0, 0]


def stored(cache: KVCache) -> list[Tensor]:
    return [kept for layer in range(CONFIG.layers) for kept in cache.stored(layer)]


class Meeting:
    """Threads that are all in line at ``network`` before anything runs."""

    def __init__(self, network: Gathered) -> None:
        self.network = network

    def run(self, *deeds: Callable[[], Any]) -> list[Future]:
        """Each deed in a thread of its own; they come into the line in this order."""
        with ThreadPoolExecutor(len(deeds)) as threads:
            with self.network.over_a_chunk():
                running = []
                for place, deed in enumerate(deeds, 1):
                    running.append(threads.submit(deed))
                    self.wait_for(place)
            return running

    def wait_for(self, passes: int) -> None:
        with self.network._changed:
            assert self.network._changed.wait_for(lambda: len(self.network._line) == passes, PATIENCE_S)


# --- one pass for several streams --------------------------------------------------------------------------------

KINDS: dict[str, Callable[[CausalDiT], CausalDiT]] = {
    "plain": lambda model: model,
    "packed": lambda model: copy.deepcopy(model).prepare_for_inference(torch.float32),
    "pooled": lambda model: CausalDiT(dataclasses.replace(CONFIG, pooled_text=True)).eval().requires_grad_(False),
}


@pytest.mark.parametrize("positions", ["absolute", "bounded"])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_streams_anywhere_in_their_rings_share_a_pass(model, kind, positions) -> None:
    """Before the window is full, when it just is, and where the ring has turned; at different noise levels, too."""
    ours = KINDS[kind](model)
    settings = dataclasses.replace(SETTINGS, positions=positions)
    places, times = (0, 2, 3, 6), (1000.0, 750.0, 1000.0, 300.0)
    wanted, kept, later = [], [], []
    for seed, (chunks, time) in enumerate(zip(places, times, strict=True)):
        cache, cond = stream(ours, chunks, seed, settings)
        wanted.append(ours(latents(seed), torch.tensor([time]), cond, cache=cache))
        commit_chunk(ours, cache, wanted[-1], cond)
        kept.append(stored(cache))
        later.append(ours(latents(9), torch.tensor([300.0]), cond, cache=cache))

    streams = [stream(ours, chunks, seed, settings) for seed, chunks in enumerate(places)]
    caches = [cache for cache, _ in streams]
    for cache in caches:
        cache.open(CHUNK).is_last = False
    cond = join_conditions([own for _, own in streams], join_text([own.text for _, own in streams]))
    x = torch.cat([latents(seed) for seed in range(len(places))])
    found = ours(x, torch.tensor(times), cond, cache=CacheBatch(caches))
    assert all(relative_error(*pair) < TOLERANCE for pair in zip(found.split(1), wanted, strict=True))
    ours.write_context(torch.cat(wanted), torch.zeros(len(places)), cond, CacheBatch(caches))
    for (cache, cond), chunks, own, next_output in zip(streams, places, kept, later, strict=True):
        assert cache.next_frame == CHUNK * (chunks + 1)
        assert all(relative_error(*pair) < TOLERANCE for pair in zip(stored(cache), own, strict=True))
        found = ours(latents(9), torch.tensor([300.0]), cond, cache=cache)
        assert relative_error(found, next_output) < TOLERANCE, "what the next chunk reads of it"


# --- the line ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def passes_of(network: Any, cache: KVCache, cond: Conditions, seed: int) -> Tensor:
    return network(latents(seed), torch.tensor([750.0]), cond, cache=cache)


@torch.inference_mode()
def chunk_of(network: Any, cache: KVCache, cond: Conditions, seed: int) -> Tensor:
    start = noise(1, seed)[0]
    made = denoise_chunk(network, cache, cond, start, SETTINGS)
    commit_chunk(network, cache, made, cond)
    return made


def alone(model: CausalDiT, deed: Callable[..., Tensor], places: Sequence[int]) -> list[Tensor]:
    return [deed(model, *stream(model, chunks, seed), seed) for seed, chunks in enumerate(places)]


def deeds(network: Gathered, deed: Callable[..., Tensor], places: Sequence[int]) -> list[Callable[[], Tensor]]:
    made = [stream(network.network, chunks, seed) for seed, chunks in enumerate(places)]
    return [lambda own=own, seed=seed: deed(network, *own, seed) for seed, own in enumerate(made)]


def test_who_met_goes_on_in_step(model) -> None:
    """Both steps of a chunk are shared, although neither thread waits for the other on purpose."""
    network, places = Gathered(model), (1, 4)
    wanted = alone(model, chunk_of, places)
    found = Meeting(network).run(*deeds(network, chunk_of, places))
    for own, want in zip(found, wanted, strict=True):
        assert relative_error(own.result(), want) < TOLERANCE
    assert network.passes[2] >= len(SETTINGS.timesteps)
    assert 2 * network.passes[2] + network.passes[1] == 2 * (len(SETTINGS.timesteps) + 1)


def test_more_than_fit_wait_for_the_next_pass(model) -> None:
    network, places = Gathered(model, most=2), (0, 1, 2)
    found = Meeting(network).run(*deeds(network, passes_of, places))
    for own, want in zip(found, alone(model, passes_of, places), strict=True):
        assert relative_error(own.result(), want) < TOLERANCE
    assert network.passes == {1: 1, 2: 1}


def test_only_passes_of_a_kind_are_shared(model) -> None:
    """Denoising, the clean pass, another length of chunk; the second of a kind overtakes the others."""
    network = Gathered(model)
    streams = [stream(model, 1, seed) for seed in range(4)]
    short = streams[2][1].frames(0, 2)

    @torch.inference_mode()
    def shorter() -> Tensor:
        return network(latents(2)[:, :, :2], torch.tensor([750.0]), short, cache=streams[2][0])

    @torch.inference_mode()
    def clean() -> None:
        commit_chunk(network, streams[1][0], latents(1), streams[1][1])

    def denoise(seed: int) -> Callable[[], Tensor]:
        return lambda: passes_of(network, *streams[seed], seed)

    found = Meeting(network).run(denoise(0), clean, shorter, denoise(3))
    assert [own.exception() for own in found] == [None] * 4
    assert network.passes == {1: 2, 2: 1}
    assert streams[1][0].next_frame == 2 * CHUNK


def test_with_gradients_everything_is_as_ever(model) -> None:
    network = Gathered(model)
    cache, cond = stream(model, 1, 0)
    start = latents(0).requires_grad_()
    network(start, torch.tensor([750.0]), cond, cache=cache).sum().backward()
    assert start.grad is not None and start.grad.any() and not network.passes


def test_words_are_joined_once_and_let_go(model) -> None:
    network, places = Gathered(model), (0, 1)
    pair = deeds(network, passes_of, places)
    Meeting(network).run(*pair)
    words = network._words
    Meeting(network).run(*reversed(pair))
    assert words is not None and network._words is words, "in whatever order they come"
    pair[0]()
    assert network._words is None, "a stream that has left is not remembered by who is alone"


class Ended:
    """Stands for a CUDA event: the end of the last pass."""

    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def test_on_a_gpu_nobody_waits_for_an_own_pass(model) -> None:
    """Who is alone launches pass after pass; who follows somebody else waits for the end, so that others can come."""
    network, end = Gathered(model), Ended()
    cache, cond = stream(model, 1, 0)
    for streams, waits in (({id(cache)}, 0), ({id(cache), id(cond)}, 1)):
        network._newest = frozenset(streams), end  # type: ignore[assignment]
        passes_of(network, cache, cond, 0)
        assert end.waited == waits


# --- what fails --------------------------------------------------------------------------------------------------


def breaking(cache: KVCache) -> None:
    """The stream's next chunk fails in the second layer, when the first has been written."""
    whole = cache.open(CHUNK)
    attend = whole.attend

    def fails(layer: int, *args: Any) -> Tensor:
        if layer == 1:
            raise RuntimeError("out of memory")
        return attend(layer, *args)

    whole.attend = fails  # type: ignore[method-assign]


@torch.inference_mode()
def commit_of(network: Any, cache: KVCache, cond: Conditions, seed: int) -> Tensor:
    commit_chunk(network, cache, latents(seed), cond)
    return torch.stack([kept.mean() for kept in stored(cache)])


@pytest.mark.parametrize("deed", [passes_of, commit_of])
def test_an_error_reaches_only_its_own_stream(model, deed) -> None:
    network, places = Gathered(model), (4, 4, 1)
    wanted = alone(model, deed, places)
    streams = [stream(model, chunks, seed) for seed, chunks in enumerate(places)]
    breaking(streams[1][0])
    found = Meeting(network).run(*(lambda s=s, own=own: deed(network, *own, s) for s, own in enumerate(streams)))
    with pytest.raises(RuntimeError, match="out of memory"):
        found[1].result()
    assert torch.equal(found[0].result(), wanted[0]) and torch.equal(found[2].result(), wanted[2])
    assert network.passes == {1: 2}, "each of the others by itself"
    assert streams[1][0].next_frame == 4 * CHUNK
    again = deeds(network, deed, places)
    assert relative_error(again[1](), wanted[1]) < TOLERANCE, "the line goes on"


def test_who_leaves_in_the_middle_of_a_chunk_holds_nobody_up(model) -> None:
    network = Gathered(model)
    (deed,) = deeds(network, chunk_of, (1,))
    begun = threading.Event()

    def gives_up() -> None:
        with network.over_a_chunk():
            begun.set()
            Meeting(network).wait_for(2)
            raise LiveTalkError("the visitor closed the page")

    with ThreadPoolExecutor(1) as threads:
        left = threads.submit(gives_up)
        assert begun.wait(PATIENCE_S)
        found = Meeting(network).run(*deeds(network, chunk_of, (1, 2)))
        with pytest.raises(LiveTalkError):
            left.result()
    assert all(own.exception() is None for own in found)
    deed()


def test_a_thread_that_is_stopped_leaves_the_others_their_passes(model) -> None:
    """Ctrl-C while it runs the pass for all of them: they run theirs themselves."""
    network, places = Gathered(model), (1, 2, 3)
    asked = deeds(network, passes_of, places)
    stopped = threading.Event()

    class Stopping:
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            if not stopped.is_set():
                stopped.set()
                raise KeyboardInterrupt
            return model(*args, **kwargs)

        prepare = staticmethod(model.prepare)

    network.network = Stopping()  # type: ignore[assignment]
    found = Meeting(network).run(*asked)
    with pytest.raises(KeyboardInterrupt):
        found[0].result()
    for own, want in list(zip(found, alone(model, passes_of, places), strict=True))[1:]:
        assert relative_error(own.result(), want) < TOLERANCE
    assert network.passes == {2: 1}


# --- sessions ----------------------------------------------------------------------------------------------------


def said(models: Models, seed: int) -> np.ndarray:
    return film(speak(Performer(models, tiny_identity(seed), seed), babble(3.0, seed=seed), packet=9_000))


def met(models: Models, streams: int) -> list[np.ndarray]:
    """What streams that begin at once show."""
    assert isinstance(models.network, Gathered)
    found = Meeting(models.network).run(*(lambda seed=seed: said(models, seed) for seed in range(streams)))
    return [own.result() for own in found]


def test_a_stream_that_is_alone_has_the_plain_bits() -> None:
    models = dataclasses.replace(tiny_models(), engine=SHARING)
    assert isinstance(models.network, Gathered) and tiny_models().network is tiny_models().transformer
    assert np.array_equal(said(models, 0), said(tiny_models(), 0))
    assert set(models.network.passes) == {1}


def test_sessions_that_meet_show_what_they_show_alone() -> None:
    models = dataclasses.replace(tiny_models(), engine=SHARING)
    for seed, pictures in enumerate(met(models, 3)):
        wanted = said(tiny_models(), seed)
        assert np.abs(pictures.astype(int) - wanted).max() <= 1, "of 255 levels: a rounding"
        assert (pictures != wanted).mean() < 0.001
    assert models.network.passes[3] >= len(TINY.rollout.timesteps)


@pytest.mark.parametrize(
    "engine", [Engine(linears="int8"), Engine(linears="fp8"), Engine(compile="on"), Engine("full", "int8", "on")]
)
def test_streams_of_any_engine_meet(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled layers are compiled for every number of streams beforehand, and never while people watch."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch.compiler.reset()
    models = random_models(TINY, engine=dataclasses.replace(engine, batch="on"))
    assert isinstance(models.network, Gathered)
    apart = [said(models, seed) for seed in range(2)]
    torch._dynamo.utils.counters.clear()
    Avatar(models).warm_up_together()
    known = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert known == (2 * (models.network.most - 1) if engine.compile == "on" else 0)
    models.network.passes.clear()
    for pictures, wanted in zip(met(models, 2), apart, strict=True):
        assert np.abs(pictures.astype(int) - wanted).mean() < (0.2 if engine.linears == "fp8" else 0.002)
    assert models.network.passes[2] >= len(TINY.rollout.timesteps)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == known
    torch.compiler.reset()


def test_sessions_share_passes_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert Engine().batches(gpu) and not Engine().batches(cpu), "on a CPU two sessions have the bits of one alone"
    assert Engine(batch="on").batches(cpu) and not Engine(batch="off").batches(gpu)
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert not Engine().batches(gpu), "there a process has one session"
