"""``livetalk doctor``: what fits, what works and what would help, on this machine and on others. No speed is judged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import socket
from pathlib import Path

import pytest
import torch

from livetalk import hub, resources, voice
from livetalk.__main__ import main
from livetalk.config import LIVETALK_1_3B, LIVETALK_1_3B_720P, MINI, PRESETS
from livetalk.engine import MEMORY_VARIABLE, fast_dtype
from livetalk.eval import capability, doctor
from livetalk.eval.capability import GIB
from livetalk.stream.talkers import machine, registry
from livetalk.types import LiveTalkError
from tests.live import tiny_models
from tests.tiny import TINY


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, with 4 cores and 8 GiB, nothing set and no login."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(resources, "usable_cores", lambda: 4)
    monkeypatch.setattr(resources, "memory_bytes", lambda: (8 * GIB, 16 * GIB))
    monkeypatch.setattr("livetalk.stream.talkers.hosted.machine_token", lambda: None)
    monkeypatch.setattr(capability, "find_weights", hub.find_checkpoint)  # whatever was downloaded here before
    monkeypatch.delenv(resources.THREADS_VARIABLE, raising=False)
    for name in ("LIVETALK_REALTIME_URL", "LIVETALK_HOSTED_BASE_URL", "LIVETALK_TALKER", MEMORY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Gives the machine a CUDA GPU with so many GiB, all free."""

    def give(gib: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Made-up GPU")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(gib * GIB), int(gib * GIB)))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)

    return give


def found(measure: bool = False) -> tuple[dict, str]:
    findings = doctor.examine(measure)
    return doctor.as_data(findings), doctor.report(findings, columns=100)


def test_every_preset_and_every_talker_is_there() -> None:
    data, text = found()
    assert set(data["presets"]) == set(PRESETS)
    assert set(data["talkers"]) == {one.name for one in registry.CHOICES}
    for name in (*PRESETS, *data["talkers"]):
        assert f" {name} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_laptop_runs_mini_and_the_offline_talker() -> None:
    data, text = found()
    assert data["presets"]["mini"]["fits"] and data["presets"]["mini"]["weights_here"]
    assert not data["presets"]["livetalk-1.3b"]["fits"] and "needs a CUDA GPU with" in text
    able = {name for name, one in data["talkers"].items() if one["works"]}
    assert able == {"offline"} and data["talkers"]["offline"]["automatic"]
    assert "LIVETALK_REALTIME_URL" in data["talkers"]["realtime"]["why_not"]
    assert "HF_TOKEN" in data["talkers"]["hosted"]["why_not"]
    assert data["advice"] == [
        f"For {preset.title}: a CUDA GPU with {need(preset):.1f} GiB of free memory."
        for preset in (LIVETALK_1_3B, LIVETALK_1_3B_720P)
    ]


def need(preset) -> float:
    return capability.needed_bytes(preset, fast_dtype(torch.device("cpu"))) / GIB


def test_what_several_talkers_lack_is_said_once() -> None:
    data, text = found()
    assert text.count("a CUDA GPU, and") == 1 and "as gemma-e4b" in text
    assert data["talkers"]["gemma"]["why_not"] == data["talkers"]["gemma-e4b"]["why_not"]


def test_a_large_gpu_runs_what_is_installed(gpu, monkeypatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object())
    gpu(141)
    data, _ = found()
    assert data["machine"]["device"]["kind"] == "cuda" and "Made-up GPU" in data["machine"]["device"]["text"]
    assert all(preset["fits"] and preset["device"] == "cuda" for preset in data["presets"].values())
    assert "not here" in data["presets"]["livetalk-1.3b"]["text"]
    assert {name for name, one in data["talkers"].items() if not one["works"]} == {"realtime", "hosted"}
    assert data["talkers"]["gemma-e4b"]["automatic"]
    assert data["advice"] == ["For the weights of LiveTalk-1.3B: python -m livetalk download --preset livetalk-1.3b"]


def test_a_small_gpu_says_how_much_is_missing(gpu, monkeypatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: object())
    gpu(11)
    data, _ = found()
    assert "11.0 of 11.0 GiB are free on the GPU. With LIVETALK_MEMORY=8gb" in data["presets"]["livetalk-1.3b"]["text"]
    assert "use a larger GPU" in data["presets"]["livetalk-1.3b-720p"]["text"]
    assert data["presets"]["mini"]["fits"] and data["talkers"]["gemma"]["works"]
    assert "GB of free GPU memory" in data["talkers"]["qwen3-omni"]["why_not"]


def test_packages_are_asked_for_where_a_gpu_could_use_them(gpu, monkeypatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert not any("requirements-extra" in one for one in found()[0]["advice"])
    gpu(141)
    data, _ = found()
    assert "For language models on this GPU: pip install -r requirements-extra.txt." in data["advice"]


def test_a_machine_without_a_voice_is_told_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(voice, "available_voices", lambda: [])
    data, text = found()
    assert not data["talkers"]["offline"]["works"] and not data["tools"]["flite"]["fine"]
    assert any("apt install flite" in one and "requirements-voice.txt" in one for one in data["advice"])
    assert "What would help here:" in text


def test_more_threads_than_cores_are_noticed(monkeypatch) -> None:
    monkeypatch.setenv(resources.THREADS_VARIABLE, "16")
    data, _ = found()
    assert data["machine"]["device"]["threads"] == 16 and not data["machine"]["device"]["fine"]
    assert any("OMP_NUM_THREADS to 4" in one for one in data["advice"])


def test_too_little_memory_is_told(monkeypatch) -> None:
    monkeypatch.setattr(resources, "memory_bytes", lambda: (0.2 * GIB, 1 * GIB))
    data, _ = found()
    assert not data["presets"]["mini"]["fits"] and "0.2 of 1.0 GiB are free" in data["presets"]["mini"]["text"]
    monkeypatch.setattr(resources, "memory_bytes", lambda: None)
    data, _ = found()
    assert data["presets"]["mini"]["fits"] and "could not be read" in data["machine"]["memory"]["text"]


def test_settings_that_do_not_fit_are_a_finding(monkeypatch) -> None:
    monkeypatch.setenv("LIVETALK_HOSTED_WINGS", "2")
    data, _ = found()
    assert "LIVETALK_HOSTED_WINGS" in data["talkers"]["hosted"]["text"]


@pytest.mark.parametrize(
    ("factor", "expected", "advised"), [(6.0, "6.0 x real time", 0), (1.4, "clips", 1), (0.3, "late", 1)]
)
def test_what_a_speed_means(monkeypatch, factor: float, expected: str, advised: int) -> None:
    monkeypatch.setattr(capability, "expected_factor", lambda *_: factor)
    data, _ = found(measure=True)
    assert expected in data["presets"]["mini"]["text"]
    assert data["presets"]["mini"]["expected_real_time_factor"] == factor
    assert sum("wants 2 x real time" in one for one in data["advice"]) == advised


def test_weights_that_are_damaged_or_missing_are_a_finding(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / hub.CONFIG_NAME).write_text("{")
    monkeypatch.setenv(hub.CHECKPOINTS_VARIABLE, str(tmp_path))
    data, _ = found(measure=True)
    assert not data["presets"]["mini"]["fine"] and "config.json is no JSON" in data["presets"]["mini"]["text"]
    monkeypatch.setattr(hub, "checkpoint_roots", lambda: [tmp_path / "nowhere"])
    data, _ = found()
    assert "weights are missing" in data["presets"]["mini"]["text"]


def test_needs_grow_with_the_network() -> None:
    half, whole = (capability.needed_bytes(LIVETALK_1_3B, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert 10 * GIB < half < whole
    assert capability.needed_bytes(MINI, torch.float32) < GIB
    assert capability.wants_gpu(LIVETALK_1_3B) and not capability.wants_gpu(MINI)


def test_the_real_time_factor_is_pictures_by_time() -> None:
    models = tiny_models()
    clock = itertools.count()  # every look at the clock is a second later
    threads = torch.get_num_threads()
    factor = capability.real_time_factor(models, budget_s=3.0, timer=lambda: float(next(clock)))
    assert torch.get_num_threads() == threads
    # looks: begin, 2 warm chunks, 3 chunks of .75 s, the end: 4 seconds later than the last warm one
    assert factor == pytest.approx(3 * 0.75 / 4, abs=0.05)


def test_layers_are_extrapolated(monkeypatch) -> None:
    """A chunk that costs .1 s and .02 s a layer is what a network with all layers would cost."""
    deep = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, layers=30))
    monkeypatch.setattr(capability, "real_time_factor", lambda models: 1 / (0.1 + 0.02 * models.preset.model.layers))
    assert capability.extrapolated_factor(deep, torch.device("cpu")) == pytest.approx(1 / (0.1 + 0.02 * 30))


def test_a_network_with_few_layers_runs(monkeypatch) -> None:
    monkeypatch.setattr(capability, "MEASURED_S", 0.0)
    few = hub.random_models(capability.with_layers(TINY, 2))
    assert capability.real_time_factor(few, budget_s=0.0) > 0


def test_the_command_with_the_real_mini(capsys) -> None:
    assert main(["doctor", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    data = json.loads(lines[-1])
    assert data["presets"]["mini"]["expected_real_time_factor"] > 0
    assert lines[0].startswith("ok software")
    assert main(["doctor", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "x real time" not in text.partition("What would help")[0] and not text.endswith("}\n")


def test_nothing_is_loaded_or_fetched_for_what_is_not_here(gpu, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise LiveTalkError("a download")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(capability, "load_models", refuse)
    monkeypatch.setattr(capability, "random_models", lambda preset, **_: tiny_models())
    monkeypatch.setattr(capability, "real_time_factor", lambda models: 2.5)
    gpu(141)
    finding = doctor._preset(LIVETALK_1_3B, measure=True)
    assert finding.facts["expected_real_time_factor"] == 2.5 and finding.fine
