"""The benchmark runs and reports what it must; no figure is judged here."""

from __future__ import annotations

import json
import math

import pytest

from livetalk.__main__ import main
from livetalk.eval import bench, roofline, together
from livetalk.hub import random_models
from livetalk.types import LiveTalkError
from tests.live import tiny_identity, tiny_models
from tests.tiny import TINY


def test_the_benchmark_reports_every_figure() -> None:
    figures = bench.measure(tiny_models(), seconds=3.0, rounds=2)
    json.dumps(figures)
    for name in ("first_frame_ms", "first_frame_p95_ms", "fps", "real_time_factor"):
        assert figures[name] > 0
    assert set(figures["stages"]) == {"audio", "denoise", "commit", "decode", "encode"}
    assert all(0 < stage["p50"] <= stage["p95"] for stage in figures["stages"].values())
    assert figures["matmul_gflops"]["float32"] > 0
    assert figures["peak_rss_mb"] is None or figures["peak_rss_mb"] > 50


def test_stages_are_counted_against_measured_peaks() -> None:
    models = random_models(TINY, dtype="float32")
    found = roofline.measure(models, tiny_identity(), rounds=1)
    json.dumps(found)
    assert found["peak_gflops"] > 0 and found["peak_gbytes_s"] > 0
    for name in ("audio", "denoise", "commit", "decode"):
        assert found[name]["least_mbytes"] > 0 and found[name]["ms"] > 0
    assert found["network_fps"] > 0 and found["teacher"]["generator_ratio"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operations_are_those_of_the_products(dtype: str) -> None:
    models = random_models(TINY, dtype=dtype)
    config, rollout = TINY.model, TINY.rollout
    shape = TINY.latent_shape(rollout.chunk_frames)
    per_frame = shape.tokens_per_frame(config.patch)
    tokens, keys = rollout.chunk_frames * per_frame, rollout.window_frames * per_frame
    width, texts = config.width, config.text_tokens
    layer = 2 * tokens * width * (6 * width + 2 * config.ffn_width) + 4 * tokens * (keys + texts) * width
    outside = 2 * tokens * (config.in_channels + config.out_channels) * math.prod(config.patch) * width
    embedding = 2 * width * (config.freq_width + 7 * width)
    expected = len(rollout.timesteps) * (config.layers * layer + outside + embedding)
    stage = roofline.stages(models, tiny_identity())["denoise"]
    assert roofline.operations(stage) == pytest.approx(expected, rel=0.02)


def test_the_command_says_how_the_networks_were_run(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(roofline, "measure", lambda *_: {})
    monkeypatch.setenv("LIVETALK_UNDO", "host")
    sizes = ["--random-weights", "--layers", "2", "--size", "64", "--seconds", "1", "--device", "cpu"]
    assert main(["bench", *sizes, "--linears", "int8", "--compile", "off"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["engine"] == {
        "decoder": "full",
        "linears": "int8",
        "compile": "off",
        "batch": "auto",
        "undo": "host",
    }
    assert figures["counted_gpu_mb"] > 0 and figures["peak_gpu_mb"] is None


def test_sessions_are_measured_together_and_apart(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(together, "ROUNDS", 1)
    monkeypatch.setattr(together, "PASS_ROUNDS", 1)
    sizes = ["--random-weights", "--layers", "2", "--size", "64", "--seconds", "1", "--device", "cpu"]
    assert main(["bench", *sizes, "--sessions", "2"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["sessions"], figures["engine"]["batch"], figures["layers"]) == (2, "both", 2)
    for name in ("alone_fps", "apart_fps", "together_fps", "ratio"):
        assert figures[name] > 0
    assert figures["streams_per_pass"].keys() <= {"1", "2"}
    assert all(figures["pass_ms"][str(streams)] > 0 for streams in range(1, 5))
    assert main(["bench", *sizes, "--sessions", "0"]) == 2


def test_a_large_preset_is_benchmarked_with_fewer_layers() -> None:
    models = bench.random_models_of("mini", "cpu", bench.Random(layers=2, size=64))
    assert (models.preset.model.layers, models.preset.height) == (2, 64)
    for wrong in (bench.Random(layers=0), bench.Random(layers=7), bench.Random(size=50)):
        with pytest.raises(LiveTalkError, match=r"Give --(layers|size)"):
            bench.random_models_of("mini", "cpu", wrong)
