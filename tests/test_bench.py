"""The benchmark runs and reports what it must; no figure is judged here."""

from __future__ import annotations

import json

from livetalk.eval import bench
from tests.live import tiny_models


def test_the_benchmark_reports_every_figure() -> None:
    figures = bench.measure(tiny_models(), seconds=3.0, rounds=2)
    json.dumps(figures)
    for name in ("first_frame_ms", "first_frame_p95_ms", "fps", "real_time_factor"):
        assert figures[name] > 0
    assert set(figures["stages"]) == {"audio", "denoise", "commit", "decode", "encode"}
    assert all(0 < stage["p50"] <= stage["p95"] for stage in figures["stages"].values())
    assert figures["matmul_gflops"]["float32"] > 0
    assert figures["peak_rss_mb"] is None or figures["peak_rss_mb"] > 50
