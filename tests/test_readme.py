"""What the README says is true: its Python runs, its commands parse, its file tree exists."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from livetalk.config import PRESETS
from livetalk.engine import Engine
from livetalk.stream.talkers import gemma, qwen_omni
from livetalk.stream.talkers.hosted_services import HostedConfig
from livetalk.stream.talkers.realtime_events import RealtimeConfig
from tests.space_hub import front_matter, front_matter_faults

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
    facts = front_matter(README)
    assert front_matter_faults(facts) == []
    assert facts["sdk"] == "gradio" and facts["app_file"] == "app.py" and facts["license"] == "apache-2.0"
    requirements = (ROOT / "requirements.txt").read_text("utf-8")
    pinned = re.search(r"gradio==(\S+)", requirements)
    assert pinned and facts["sdk_version"] == pinned.group(1)
    assert facts["suggested_hardware"].startswith("cpu"), "mini is what a duplicated Space runs"
    assert "preload_from_hub" not in facts, "a Space that runs mini would download gigabytes for nothing"
    page = "".join(path.read_text("utf-8") for path in (ROOT / "livetalk/ui").glob("*.py"))
    assert facts.get("hf_oauth", False) == ("OAuthToken" in page)


def test_front_matter_names_every_model() -> None:
    hosted = HostedConfig()
    used = {repository.name for preset in PRESETS.values() for repository in preset.weights.repositories}
    used |= {tiny.name for preset in PRESETS.values() if (tiny := preset.weights.tiny_decoder) is not None}
    used |= {gemma.SMALL, gemma.LARGE, qwen_omni.REPOSITORY, hosted.ears_model, hosted.chat_model, hosted.voice_model}
    assert used <= set(front_matter(README)["models"])


def test_a_space_gets_what_the_demo_installs() -> None:
    """A Space builds with these two files alone, so neither may point at another one."""
    requirements = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    packages = (ROOT / "packages.txt").read_text("utf-8").split()
    assert not [line for line in requirements if line.startswith("-")]
    assert {"flite", "espeak-ng"} <= set(packages), "the voices; elsewhere requirements-voice.txt brings one"
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name) for name in packages)


def test_variables_of_a_space_are_all_explained() -> None:
    table = README[README.index("| name | kind | default |") : README.index("## Licences")]
    explained = set(re.findall(r"`((?:LIVETALK|HF|OMP)_[A-Z_]+)`", table))
    sources = [ROOT / "app.py", *(ROOT / "livetalk").rglob("*.py")]
    read = set(re.findall(r'"(LIVETALK_[A-Z_]*[A-Z])"', "".join(path.read_text("utf-8") for path in sources)))
    settings = {"LIVETALK_HOSTED_": HostedConfig, "LIVETALK_REALTIME_": RealtimeConfig, "LIVETALK_": Engine}
    known = {prefix + field.name.upper() for prefix, kind in settings.items() for field in dataclasses.fields(kind)}
    assert read <= explained
    assert explained <= read | known | {"HF_TOKEN", "HF_HOME", "OMP_NUM_THREADS"}
    assert {"HF_TOKEN", "LIVETALK_REALTIME_KEY", "LIVETALK_HOSTED_API_KEY"} == {
        name for name in explained if f"| `{name}` | secret |" in table
    }
