"""Cores and memory of a process, containers' limits included; read from made-up files."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

from livetalk import resources

MIB = 1024**2


def written(folder: Path, **contents: str) -> Path:
    """Files of a control group; ``cpu_max`` is written as ``cpu.max``."""
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 16 cores, as containers see it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 16), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 16), ("", 16)],
)
def test_cores_that_a_container_grants(tmp_path: Path, sixteen: None, quota: str, cores: int) -> None:
    assert resources.usable_cores(written(tmp_path, cpu_max=quota + "\n")) == cores


def test_cores_in_the_older_layout(tmp_path: Path, sixteen: None) -> None:
    for quota, cores in (("-1", 16), ("300000", 3)):
        (tmp_path / "cpu").mkdir(exist_ok=True)
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert resources.usable_cores(tmp_path) == cores


def test_without_limits_every_core_counts(tmp_path: Path, sixteen: None) -> None:
    assert resources.usable_cores(tmp_path / "nowhere") == 16


def test_threads_leave_a_core_to_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((1, 1), (2, 1), (8, 7)):
        monkeypatch.setattr(resources, "usable_cores", lambda cores=cores: cores)
        assert resources.page_threads() == threads
    for said, meant in (("3", 3), ("", None), ("0", None), ("many", None)):
        monkeypatch.setenv(resources.THREADS_VARIABLE, said)
        assert resources.configured_threads() == meant


def test_memory_is_what_the_system_has_or_the_container_grants(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:       8192 kB\nMemFree:  1 kB\nMemAvailable:   6144 kB\n")
    assert resources.memory_bytes(tmp_path / "nowhere", table) == (6 * MIB, 8 * MIB)
    group = written(tmp_path / "group", memory_max="max", memory_current=str(MIB))
    assert resources.memory_bytes(group, table) == (6 * MIB, 8 * MIB)
    # a cache of half a megabyte can be dropped
    written(group, memory_max=str(4 * MIB), memory_current=str(3 * MIB), memory_stat=f"anon 9\ninactive_file {MIB}\n")
    assert resources.memory_bytes(group, table) == (2 * MIB, 4 * MIB)


@pytest.mark.parametrize("content", ["", "MemTotal: much kB\nMemAvailable: 1 kB\n", "MemTotal:\nMemAvailable:\n"])
def test_memory_that_is_not_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "meminfo").write_text(content)
    assert resources.memory_bytes(tmp_path, tmp_path / "meminfo") is None
    assert resources.memory_bytes(tmp_path, tmp_path / "nowhere") is None


def test_it_can_be_asked_before_torch_is_there() -> None:
    tree = ast.parse(Path(resources.__file__).read_text("utf-8"))
    names = [node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
