"""``livetalk space``: what is sent to an imitated Hub, and what is said when that fails. No network."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from livetalk import publish
from livetalk.__main__ import main
from livetalk.types import LiveTalkError
from tests.space_hub import READER_TOKEN, TOKEN, SpaceHub

ROOT = Path(__file__).resolve().parent.parent


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small repository with what must and what must not be sent."""
    root = tmp_path / "clone"
    for name in ("README.md", ".gitignore"):
        root.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    contents = {
        "app.py": b"print('a page')\n",
        "requirements.txt": b"gradio\n",
        "livetalk/empty.py": b"",
        "checkpoints/mini/model.safetensors": bytes(range(256)) * 400,
        "checkpoints/mini/talking.mp4": b"\0\1\2" * 999,
        "checkpoints/mini/held-out/set.json": b"{}",
        "tests/test_a.py": b"",
        ".ci/run": b"",
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    git(root.parent, "init", "-q", str(root))
    git(root, "add", "--all")
    for name in (".env", "runs/weights.safetensors", ".venv/big", "me.mp4", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"secret")
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """The imitated Hub instead of the real one. Xet, its newer store of large files, is switched off as documented."""
    with SpaceHub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_a_new_space_holds_what_git_tracks_and_nothing_else(hub: SpaceHub, clone: Path) -> None:
    address = publish.publish(publish.plan("ada/face", clone))
    assert address == f"{hub.address}/spaces/ada/face"
    sent = hub.spaces["ada/face"]
    expected = {"README.md", ".gitignore", "app.py", "requirements.txt", "livetalk/empty.py"}
    expected |= {"checkpoints/mini/model.safetensors", "checkpoints/mini/talking.mp4"}
    assert set(sent) == expected
    assert all((clone / name).read_bytes() == content for name, content in sent.items())
    large = {name for name, mode in hub.modes.items() if mode == "lfs"}
    assert large == {"checkpoints/mini/model.safetensors", "checkpoints/mini/talking.mp4"}
    assert "visibility" not in hub.created[0]


def test_publishing_again_updates_and_leaves_what_was_added_there(hub: SpaceHub, clone: Path) -> None:
    hub.spaces["ada/face"] = {"app.py": b"old", "added-by-hand.txt": b"x"}
    (clone / "app.py").write_bytes(b"new")
    (clone / "livetalk" / "empty.py").unlink()
    publish.publish(publish.plan("ada/face", clone))
    sent = hub.spaces["ada/face"]
    assert not hub.created and sent["app.py"] == b"new" and "added-by-hand.txt" in sent
    assert "livetalk/empty.py" not in sent


def test_a_private_space_is_asked_for(hub: SpaceHub, clone: Path) -> None:
    publish.publish(publish.plan("ada/face", clone), private=True)
    assert hub.created[0]["visibility"] == "private"


def test_this_repository_can_be_published_from_the_command_line(tmp_path: Path) -> None:
    """The documented variables alone, in a process of its own: every file of this clone arrives, weights and all."""
    with SpaceHub() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "livetalk", "space", "--repo", "ada/livetalk"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{hub.address}/spaces/ada/livetalk"
        sent = hub.spaces["ada/livetalk"]
        assert set(sent) == set(publish.space_files())
        weights = "checkpoints/mini/model.safetensors"
        assert sent[weights] == (ROOT / weights).read_bytes() and hub.modes[weights] == "lfs"
        assert {"README.md", "app.py", "requirements.txt", "packages.txt", "livetalk/publish.py"} <= set(sent)


def test_a_dry_run_says_what_and_how_much_and_asks_nobody(hub: SpaceHub, monkeypatch, capsys) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["space", "--repo", "ada/livetalk", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not hub.asked
    assert any(re.search(r"files .* MB  checkpoints/$", line) for line in lines)
    files = publish.space_files()
    megabytes = sum((ROOT / name).stat().st_size for name in files) / 1e6
    assert any(f"{len(files)} files" in line and f"{megabytes:.2f} MB  in all" in line for line in lines)
    assert lines[-1].startswith("Nothing was sent") and "/spaces/ada/livetalk" in "\n".join(lines)
    assert not any(name.startswith(("tests/", "runs/", ".venv/")) for name in files)


@pytest.mark.parametrize("name", ["", "livetalk", "a/b/c", "ada/", "/x", "ada/my face", "https://hf.co/a/b", "a--b/c"])
def test_a_malformed_name_is_told(name: str, capsys) -> None:
    assert main(["space", "--repo", name, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "user/name" in said and said.count("\n") == 1


def failure(clone: Path, name: str = "ada/face") -> str:
    with pytest.raises(LiveTalkError) as caught:
        publish.publish(publish.plan(name, clone))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_token(hub: SpaceHub, clone: Path, monkeypatch) -> None:
    monkeypatch.setattr(publish.huggingface_hub, "get_token", lambda: None)
    assert "no Hugging Face token" in failure(clone) and not hub.asked


def test_a_token_the_hub_does_not_know(hub: SpaceHub, clone: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    said = failure(clone)
    assert "does not accept" in said and "HF_TOKEN" in said and "hf_expired" not in said
    assert hub.asked == ["whoami"]


def test_names_and_tokens_that_may_not_write(hub: SpaceHub, clone: Path, monkeypatch) -> None:
    for taken in ("someone/else", "someone/new"):
        said = failure(clone, taken)
        assert f"may not write to the Space {taken}" in said and f"ada/{taken.partition('/')[2]}" in said
    assert hub.spaces["someone/else"] == {"README.md": b"not yours"}
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    assert "can only read" in failure(clone)


@pytest.mark.parametrize(
    ("route", "status", "expected"),
    [("create", 402, "paid plan"), ("commit", 413, "status 413.*made up 413"), ("upload", 403, "may not write")],
)
def test_refusals_on_the_way(hub: SpaceHub, clone: Path, route: str, status: int, expected: str) -> None:
    hub.faults[route] = status
    if route == "create":  # the library looks whether the Space is there all the same
        hub.faults["info"] = 404
    assert re.search(expected, failure(clone))


def test_a_configuration_the_hub_refuses_is_named(hub: SpaceHub, clone: Path) -> None:
    readme = clone / "README.md"
    readme.write_text(readme.read_text("utf-8").replace("colorFrom: yellow", "colorFrom: beige"), "utf-8")
    assert "beige" in failure(clone) and not hub.spaces["ada/face"]


def test_no_network(clone: Path, monkeypatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert f"{address} cannot be reached" in failure(clone)


def test_a_folder_that_is_no_clone(tmp_path: Path, clone: Path, monkeypatch) -> None:
    with pytest.raises(LiveTalkError, match=r"Publish from a clone"):
        publish.plan("ada/face", tmp_path)
    (clone / "app.py").unlink()
    with pytest.raises(LiveTalkError, match=r"no app\.py"):
        publish.plan("ada/face", clone)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LiveTalkError, match=r"git is not installed"):
        publish.plan("ada/face", clone)
