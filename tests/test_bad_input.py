"""Bad input gets one sentence, exit code 2 or a Gradio error; the server lives on and nothing is half-written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
from bad_input import PORTRAITS, PROMPTS, SPEECH, TOO_LONG, Case, _tone

from livetalk.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PORTRAIT = sorted((ROOT / "examples/portraits").glob("*.png"))[0]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return _tone(tmp_path, "speech.wav", 0.6)


def render(tmp_path: Path, portrait: Path, speech: Path, *more: str, out: Path | None = None) -> int:
    out = out or tmp_path / "out" / "video.mp4"
    return main(["render", "--portrait", str(portrait), "--speech", str(speech), "--out", str(out), *more])


def assert_sentence(text: str, word: str) -> None:
    assert word in text, text
    assert "Traceback" not in text and text.strip().endswith("."), text
    assert len(text.strip().splitlines()) == 1, text


def check(code: int, tmp_path: Path, case: Case, capsys) -> None:
    out, error = tmp_path / "out" / "video.mp4", capsys.readouterr().err
    if case.outcome == "works":
        assert code == 0, error
        with av.open(str(out)) as video:
            assert video.streams.video[0].frames >= 1
    else:
        assert code == 2
        assert_sentence(error, case.outcome)
        assert not out.exists()
    leftovers = list((tmp_path / "out").glob(".*")) if (tmp_path / "out").exists() else []
    assert not leftovers, "something half-written was left"


@pytest.mark.parametrize("case", PORTRAITS, ids=lambda case: case.name)
def test_portrait_on_the_command_line(case: Case, tmp_path: Path, speech: Path, capsys) -> None:
    check(render(tmp_path, case.make(tmp_path, PORTRAIT), speech), tmp_path, case, capsys)


@pytest.mark.parametrize("case", SPEECH, ids=lambda case: case.name)
def test_speech_on_the_command_line(case: Case, tmp_path: Path, capsys) -> None:
    check(render(tmp_path, PORTRAIT, case.make(tmp_path, PORTRAIT)), tmp_path, case, capsys)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=list(PROMPTS))
def test_prompt_on_the_command_line(prompt: str, tmp_path: Path, speech: Path) -> None:
    assert render(tmp_path, PORTRAIT, speech, "--prompt", prompt) == 0


def test_no_face_is_turned_away_without_a_word(tmp_path: Path, speech: Path, capsys) -> None:
    """Every case above says what was expected; this one is the parser's own error."""
    with pytest.raises(SystemExit) as stop:
        main(["render", "--portrait", "x.png"])
    assert stop.value.code == 2
    assert "--speech" in capsys.readouterr().err


def test_output_below_a_file(tmp_path: Path, speech: Path, capsys) -> None:
    assert render(tmp_path, PORTRAIT, speech, out=speech / "video.mp4") == 2
    assert_sentence(capsys.readouterr().err, "Could not write")


def test_full_disk(tmp_path: Path, speech: Path) -> None:
    """A limit on file size stands in for a full disk."""
    command = [sys.executable, "-m", "livetalk", "render", "--portrait", str(PORTRAIT), "--speech", str(speech)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out" / "video.mp4")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2, done.stderr
    assert_sentence(done.stderr, "Could not write")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "wrong config", "nonsense"])
def test_damaged_checkpoint(damage: str, tmp_path: Path, speech: Path, capsys) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(ROOT / "checkpoints/mini", folder)
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "nonsense":
        weights.write_bytes(b"nonsense" * 1000)
    else:
        (folder / "config.json").write_text('{"name": "mini", "wings": 2}')
    assert render(tmp_path, PORTRAIT, speech, "--preset", str(folder)) == 2
    assert_sentence(capsys.readouterr().err, "wings" if damage == "wrong config" else "model.safetensors")


def test_unknown_preset(tmp_path: Path, speech: Path, capsys) -> None:
    assert render(tmp_path, PORTRAIT, speech, "--preset", "maxi") == 2
    assert_sentence(capsys.readouterr().err, "mini")


@pytest.fixture(scope="module")
def client(page_url: str):
    from gradio_client import Client

    return Client(page_url, verbose=False)


def call_render(client, portrait: Path, speech: Path, prompt: str = "") -> str | None:
    """Video path, or None with the error's sentence checked by the caller through pytest.raises."""
    from gradio_client import handle_file

    return client.predict(handle_file(str(portrait)), handle_file(str(speech)), prompt, 0, api_name="/render")


def check_call(client, case: Case, portrait: Path, speech: Path) -> None:
    if case.outcome == "works":
        assert call_render(client, portrait, speech)
        return
    with pytest.raises(Exception) as failure:
        call_render(client, portrait, speech)
    assert case.outcome in str(failure.value), failure.value
    assert "Traceback" not in str(failure.value)


@pytest.mark.parametrize("case", [c for c in PORTRAITS if c.name != "missing"], ids=lambda case: case.name)
def test_portrait_through_the_api(case: Case, tmp_path: Path, speech: Path, client) -> None:
    check_call(client, case, case.make(tmp_path, PORTRAIT), speech)


@pytest.mark.parametrize("case", [*(c for c in SPEECH if c.name != "missing"), TOO_LONG], ids=lambda case: case.name)
def test_speech_through_the_api(case: Case, tmp_path: Path, client) -> None:
    check_call(client, case, PORTRAIT, case.make(tmp_path, PORTRAIT))


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=list(PROMPTS))
def test_prompt_through_the_api(prompt: str, speech: Path, client) -> None:
    if len(prompt) < 2000:
        assert call_render(client, PORTRAIT, speech, prompt)
        return
    with pytest.raises(Exception, match="2,000"):
        call_render(client, PORTRAIT, speech, prompt)
