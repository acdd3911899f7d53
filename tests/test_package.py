"""``pip install .`` carries everything a user outside the clone needs: every package and mini's weights."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_wheel_holds_all_packages_and_the_weights(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: building leaves files beside the sources
    ignored = shutil.ignore_patterns(".*", "tests", "examples", "runs", "build", "__pycache__", "*.mp4")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "-w", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("livetalk-*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    for module in (ROOT / "livetalk").rglob("*.py"):
        assert module.relative_to(ROOT).as_posix() in names, f"{module} is not in the wheel: list it in pyproject.toml"
    for page_part in (ROOT / "livetalk/ui").glob("*.[hcj]*s*"):
        assert page_part.relative_to(ROOT).as_posix() in names
    for weights in ("config.json", "model.safetensors"):
        assert f"livetalk/_checkpoints/mini/{weights}" in names
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert re.search(r"Requires-Dist: gradio==", metadata) and "License-Expression: Apache-2.0" in metadata
