"""What the README says is true: its Python runs, its commands parse, its file tree exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
COMMANDS = re.findall(r"python -m livetalk ([a-z-]+)", README)
PAGE_URL = "http://127.0.0.1:7860"


def run(code: str, folder: Path) -> str:
    """Run code as a user would: a fresh interpreter in a folder that holds the examples."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.mark.parametrize("index", [i for i, code in enumerate(SNIPPETS) if PAGE_URL not in code])
def test_snippet_runs(index: int, folder: Path) -> None:
    run(SNIPPETS[index], folder)
    if "out=" in SNIPPETS[index]:
        assert list(folder.glob("*.mp4"))


@pytest.mark.parametrize("index", [i for i, code in enumerate(SNIPPETS) if PAGE_URL in code])
def test_network_snippet_runs(index: int, folder: Path, page_url: str) -> None:
    import soundfile

    shutil.copy(sorted((ROOT / "examples/portraits").glob("*.png"))[0], folder / "me.png")
    speech, rate = soundfile.read(ROOT / "examples/speech/welcome.ogg", dtype="int16")
    soundfile.write(folder / "speech.wav", speech[: 2 * rate], rate)
    run(SNIPPETS[index].replace(PAGE_URL, page_url), folder)


def test_file_tree_is_true() -> None:
    tree = re.search(r"## What lies where\n\n```\n(.*?)```", README, flags=re.S)
    assert tree
    parent = ROOT
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            assert (parent / name).exists(), f"README lists {parent.name}/{name}"
        else:
            assert (ROOT / name).exists(), f"README lists {name}"
            parent = ROOT / name


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_exist(command: str, capsys) -> None:
    from livetalk.__main__ import build_parser

    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0


def test_front_matter_makes_a_space() -> None:
    front = README.split("---")[1]
    facts = dict(line.split(": ", 1) for line in front.strip().splitlines() if ": " in line)
    assert facts["sdk"] == "gradio" and facts["app_file"] == "app.py" and facts["license"] == "apache-2.0"
    pinned = re.search(r"gradio==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"))
    assert pinned and facts["sdk_version"] == pinned.group(1)
    assert len(facts["short_description"]) <= 60
