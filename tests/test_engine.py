"""How networks are run: compiled and in 8 bits they give what the plain ones give, and the environment is obeyed."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from livetalk.config import LIVETALK_1_3B, RepositoryConfig, RolloutConfig, VaeConfig
from livetalk.engine import ENGINES, Engine, configured_engine
from livetalk.hub import Models, random_models
from livetalk.model import backends, compiled
from livetalk.model.compiled import compile_layers
from livetalk.model.conditions import Conditions, image_condition
from livetalk.model.parking import HostMemory
from livetalk.model.quantised import Fp8Linear, Int8Linear, quantise
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import chunk_noise, rollout
from livetalk.stream.performer import Performer
from livetalk.types import AudioChunk, LatentShape, LiveTalkError, SpeechEnd
from tests.live import HandClock, babble
from tests.tiny import TINY

SHAPE = LatentShape(16, 3, 8, 8)
CHUNKS = 4
THIN = dataclasses.replace(
    LIVETALK_1_3B.model, width=256, heads=2, ffn_width=512, layers=4, text_width=64, text_tokens=16, audio_width=32
)
"""The published network, narrower and with four layers: heads of 128, tanh-GELU, norms over the whole width."""
BF16_RMS = 0.01
"""Spec section 12: a bfloat16 implementation agrees to about 1 % RMS."""


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(dtype: torch.dtype, seed: int = 0) -> CausalDiT:
    torch.manual_seed(seed)
    model = CausalDiT(THIN)
    for weight in model.parameters():
        if weight.ndim >= 2:
            torch.nn.init.normal_(weight, std=0.06)
    return model.to(dtype).requires_grad_(False).eval()


@torch.inference_mode()
def rolled(model: CausalDiT, settings: RolloutConfig) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    portrait, text = torch.randn(1, 16, 1, 8, 8, generator=generator), torch.randn(1, 16, 64, generator=generator)
    rows = torch.randn(1, 12 * CHUNKS, 32, generator=generator)
    noise = torch.stack([chunk_noise(0, chunk, SHAPE, len(settings.timesteps)) for chunk in range(CHUNKS)])
    return rollout(model, Conditions(image_condition(portrait, 3 * CHUNKS), rows, text), noise, settings)


def pictures_of(models: Models, packets: Sequence[np.ndarray]) -> np.ndarray:
    identity = models.identity(torch.zeros(3, TINY.height, TINY.width), "a person nods")
    performer = Performer(models, identity)
    pieces = []
    for packet in [*map(AudioChunk, packets), SpeechEnd()]:
        performer.push(packet)
        pieces += [piece.pictures for piece in performer.pictures()]
    return np.concatenate(pieces)


def rms_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """By the house, not by the compiler."""
    return [record.message for record in caplog.records if record.name.startswith("livetalk")]


SETTINGS = dataclasses.replace(LIVETALK_1_3B.rollout, window_frames=9, sink_frames=3, timesteps=(1000.0, 700.0))


@pytest.mark.parametrize("positions", ["bounded", "absolute"])
def test_compiled_is_plain_in_float32(positions: str) -> None:
    """Long enough for the ring to turn; one compilation of each half serves all layers and chunks."""
    settings = dataclasses.replace(SETTINGS, positions=positions)
    model = network(torch.float32)
    wanted = rolled(model, settings)
    compile_layers(model, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    assert rms_error(rolled(model, settings), wanted) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_compiled_by_inductor_is_plain_in_both_formats(caplog: pytest.LogCaptureFixture) -> None:
    exact = rolled(network(torch.float32), SETTINGS)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, BF16_RMS)):
        model = network(dtype)
        plain = rolled(model, SETTINGS)
        compile_layers(model)
        found = rolled(model, SETTINGS)
        assert rms_error(found, plain) < tolerance
        assert rms_error(found, exact) < max(tolerance, 1.1 * rms_error(plain, exact))
    assert not said(caplog)


def test_what_cannot_be_compiled_runs_as_it_is_written(caplog: pytest.LogCaptureFixture) -> None:
    model = network(torch.float32)
    wanted = rolled(model, SETTINGS)

    def refuse(*_: object) -> None:
        raise RuntimeError("no compiler here")

    compile_layers(model, backend=refuse)
    with caplog.at_level(logging.WARNING):
        assert rms_error(rolled(model, SETTINGS), wanted) < 1e-5
    (sentence,) = said(caplog)
    assert "uncompiled" in sentence and "no compiler here" in sentence


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.01), ("fp8", 0.05)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_near_the_plain_network(kind: str, tolerance: float, dtype: torch.dtype) -> None:
    wanted, model = rolled(network(dtype), SETTINGS), network(dtype)
    quantise(model.blocks, kind)
    assert 0 < rms_error(rolled(model, SETTINGS), wanted) < tolerance


@pytest.mark.parametrize(("kind", "tolerance"), [(Int8Linear, 0.006), (Fp8Linear, 0.045)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_of_the_published_width_in_eight_bits(kind: type, tolerance: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(1536, 512).to(dtype).requires_grad_(False), torch.randn(2, 24, 1536).to(dtype)
    small = kind(linear)
    assert rms_error(small(x), linear(x)) < tolerance and small(x).dtype == dtype
    assert small.weight.nbytes == linear.weight.numel() and small(torch.zeros_like(x)).isfinite().all()


def test_eight_bits_compile_too() -> None:
    model = network(torch.float32)
    quantise(model.blocks, "int8")
    wanted = rolled(model, SETTINGS)
    compile_layers(model, backend="aot_eager")
    assert rms_error(rolled(model, SETTINGS), wanted) < 1e-5


def test_the_environment_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEMORY", "DECODER", "LINEARS", "COMPILE", "BATCH", "UNDO"):
        monkeypatch.delenv(f"LIVETALK_{name}", raising=False)
    assert configured_engine() == Engine()
    monkeypatch.setenv("LIVETALK_MEMORY", "8gb")
    assert configured_engine() == ENGINES["8gb"]
    monkeypatch.setenv("LIVETALK_DECODER", "full")
    assert configured_engine() == dataclasses.replace(ENGINES["8gb"], decoder="full")
    monkeypatch.setenv("LIVETALK_LINEARS", "int4")
    with pytest.raises(LiveTalkError, match=r"LIVETALK_LINEARS is 'int4'\. Use one of: plain, int8, fp8"):
        configured_engine()


def test_auto_compiles_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert Engine().compiles(gpu) and not Engine().compiles(cpu)
    assert Engine(compile="on").compiles(cpu) and not Engine(compile="off").compiles(gpu)
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert not Engine().compiles(gpu), "there every call would compile again"


def test_old_gpus_are_told_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old GPU")
    Engine(linears="int8").check(torch.device("cuda"))
    with pytest.raises(LiveTalkError, match=r"Old GPU has no products of 8-bit floats\. Use LIVETALK_LINEARS=int8"):
        Engine(linears="fp8").check(torch.device("cuda"))


@pytest.mark.parametrize("engine", [Engine(linears="int8", undo="host"), Engine(compile="on")])
def test_streams_of_any_engine_can_be_unmade(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the way it streams: packets of any length and speech that comes late give the pictures of the whole."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    models = random_models(TINY, engine=engine)
    speech = babble(3.0)
    wanted = pictures_of(models, [speech])
    assert np.array_equal(pictures_of(models, np.array_split(speech, 7)), wanted)
    plain = pictures_of(random_models(TINY), [speech])
    assert np.abs(wanted.astype(int) - plain).mean() < 1.5


@pytest.mark.parametrize("decoder", ["full", "tiny"])
@pytest.mark.parametrize("overlap", [False, True])
def test_parked_states_bring_back_the_same_pictures(decoder: str, overlap: bool) -> None:
    """A live stream that is interrupted and changes its face, with the video decoders of the published model."""
    small = RepositoryConfig("d/small", ("taew2_1.safetensors",), 0.001, "MIT")
    weights = dataclasses.replace(TINY.weights, tiny_decoder=small)
    config = dataclasses.replace(TINY, vae=VaeConfig(kind="wan", base_width=8), weights=weights)
    models = random_models(config, engine=Engine(decoder=decoder))
    one, other = (models.identity(torch.full((3, TINY.height, TINY.width), x), "a person nods") for x in (-0.5, 0.5))
    shown = []
    for parking in (None, HostMemory(torch.device("cpu"))):
        clock = HandClock()
        performer = Performer(models, one, clock=clock, overlap=overlap)
        performer._maker._parking = parking
        pieces = []
        for second in range(5):
            performer.push(AudioChunk(babble(0.8, seed=second)))
            for _ in range(16):
                pieces += [piece.pictures for piece in performer.pictures()]
                clock.now_s += 0.0625
            performer.clear()
            if second == 2:
                performer.change_look(performer.look(other))
        performer.close()
        shown.append(np.concatenate(pieces))
    assert len(shown[0]) > 40 and np.array_equal(*shown)


def test_the_fastest_attention_is_preferred() -> None:
    """A clock by hand: each kernel that works is measured, and what was preferred is used where it can work."""
    q, k = torch.randn(1, 2, 8, 32), torch.randn(1, 2, 24, 32)
    ticks = itertools.count()
    found = backends.times_s(q, k, lambda: float(next(ticks)))
    assert found == {SDPBackend.FLASH_ATTENTION: 1.0}, "a CPU has one of them"
    try:
        backends.prefer(SDPBackend.CUDNN_ATTENTION)
        backends.prefer(SDPBackend.FLASH_ATTENTION)
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
        mask = torch.ones(8, 24, dtype=torch.bool)
        masked = F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        assert torch.allclose(masked, F.scaled_dot_product_attention(q, k, k), atol=1e-6)
    finally:
        backends._preferred.close()
