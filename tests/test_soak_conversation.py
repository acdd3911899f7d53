"""Half an hour of conversation on the page (``make soak``): nothing grows, nothing drifts, nothing is logged as wrong.

A visitor with a microphone asks something every ten seconds, in real time. ``LIVETALK_SOAK_MINUTES`` shortens it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from livetalk.eval.browser import PAGE_TIMEOUT_MS, opened_browser, served
from livetalk.media.sound import write_speech
from livetalk.stream.talkers.topics import Retrieval, load_topics
from livetalk.types import MODEL_RATE
from livetalk.voice import available_voices, speak

MINUTES = int(os.environ.get("LIVETALK_SOAK_MINUTES", "30"))
SETTLED = 3
"""Minutes after which caches are full and nothing should grow any more."""

TURN_S = 10.0
GROWTH_MB = 32
DRIFT_MS = 20
OFFSET_MS = 60
ANSWERED_SHARE = 0.9
RIGHT_SHARE = 0.75  # the microphone file is heard through a browser; exact figures are those of `evaluate topics`
QUESTIONS = (
    "Can you tell me a joke?",
    "How old are you?",
    "What is LiveTalk?",
    "Do you work without the internet?",
    "How do you know how to move your lips?",
    "Thank you very much.",
)

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not shutil.which("/usr/bin/chromium"), reason="needs the Debian package chromium"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc (Linux)"),
    pytest.mark.skipif("flite:slt" not in available_voices(), reason="needs the Debian package flite"),
]


def test_half_an_hour_of_conversation(tmp_path: Path) -> None:
    console: list[str] = []
    log, microphone = tmp_path / "server.log", tmp_path / "questions.wav"
    write_speech(microphone, asked(), MODEL_RATE)
    with served("mini", log=log, LIVETALK_TALKER="offline") as url, opened_browser(microphone) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(PAGE_TIMEOUT_MS)
        page.on("console", lambda line: console.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: console.append(str(error)))
        page.goto(url + "?mode=talk")
        page.wait_for_function("window.livetalk && window.livetalk.codec")
        page.click(".lt-talk")
        page.wait_for_function("livetalk.microphone.isOpen && livetalk.player.counters.drawn > 0")
        server = server_process()
        minutes = []
        for minute in range(MINUTES):
            page.wait_for_timeout(60_000)
            minutes.append({"minute": minute + 1, **sizes(server), **page.evaluate(TOLD)})
            (tmp_path / "minutes.json").write_text(json.dumps(minutes, indent=1))
        lines = page.evaluate(LINES)
    check_sizes(minutes)
    check_clock(minutes)
    check_answers(lines)
    assert not console, console
    assert not re.search(r"Traceback|ERROR|Error:", log.read_text()), log.read_text()[-2000:]


TOLD = """() => {
  const { player } = window.livetalk;
  const recent = player.log.offsets.slice(-800).sort((a, b) => a - b);
  const at = (share) => Math.round(recent[Math.floor(share * (recent.length - 1))]);
  return {
    offset_p50_ms: at(0.5), offset_p95_ms: at(0.95), offset_most_ms: at(1),
    heap_mb: Math.round(performance.memory.usedJSHeapSize / 2 ** 20), stalls: player.counters.stalls,
    slippedMs: player.counters.slippedMs, heldMs: player.counters.heldMs, lost: player.counters.lostFragments,
    errors: player.counters.decodeErrors, frames: player.frames.size,
  };
}"""

LINES = """() => [...document.querySelectorAll('#lt-transcript .lt-lines li')].map(
  (line) => [line.className, line.querySelector('.lt-text').innerText])"""


def asked() -> np.ndarray:
    """The questions, one every ten seconds."""
    parts = []
    for question in QUESTIONS:
        clip = speak(question.replace("LiveTalk", "Live Talk"), "flite:slt").samples
        parts.append(np.pad(clip, (0, round(TURN_S * MODEL_RATE) - len(clip))))
    return np.concatenate(parts)


def server_process() -> Path:
    """The folder in /proc of the ``app.py`` that this process started."""
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"app.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                return Path(f"/proc/{child}")
    raise AssertionError("no server")


def sizes(process: Path) -> dict[str, float]:
    """Memory, threads and open files of a process."""
    status = (process / "status").read_text()
    return {
        "resident_mb": round(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, 1),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "files": len(list((process / "fd").iterdir())),
    }


def check_sizes(minutes: list[dict[str, Any]]) -> None:
    """Minutes at the end against minutes at the beginning, by their medians: single ones vary by what is in flight."""
    for name, allowed in (("resident_mb", GROWTH_MB), ("threads", 4), ("files", 4), ("heap_mb", GROWTH_MB)):
        values = [minute[name] for minute in minutes]
        few = max(1, len(values) // 4)
        begun, ended = np.median(values[SETTLED : SETTLED + few] or values[:1]), np.median(values[-few:])
        assert ended - begun <= allowed, (name, values)


def check_clock(minutes: list[dict[str, Any]]) -> None:
    offsets = [minute["offset_p50_ms"] for minute in minutes]
    assert max(map(abs, offsets)) <= OFFSET_MS, offsets
    assert abs(offsets[-1] - offsets[0]) <= DRIFT_MS, offsets
    assert minutes[-1]["lost"] == 0 and minutes[-1]["errors"] == 0, minutes[-1]


def check_answers(lines: list[list[str]]) -> None:
    """Every ten seconds a question and an answer, nearly all of them about each other."""
    roles = [role.split()[0].removeprefix("lt-said-by-") for role, _ in lines]  # behind it stands what became of a line
    asked = [at for at, role in enumerate(roles) if role == "visitor"]
    assert len(asked) >= ANSWERED_SHARE * MINUTES * 60 / TURN_S - 2, len(asked)
    answered = [at for at in asked if roles[at + 1 : at + 2] == ["avatar"]]
    assert len(answered) >= ANSWERED_SHARE * len(asked) - 1, lines
    wrong = [(lines[at][1], lines[at + 1][1]) for at in answered if not is_about(lines[at][1], lines[at + 1][1])]
    assert len(wrong) <= (1 - RIGHT_SHARE) * len(answered), wrong


def is_about(heard: str, answer: str) -> bool:
    """Whether an answer belongs to the topic of the question that was most probably asked."""
    asked = max(QUESTIONS, key=lambda question: difflib.SequenceMatcher(None, question.lower(), heard.lower()).ratio())
    match = Retrieval(load_topics()).find(asked)
    return match is not None and any(answer[:20] == line[:20] for line in match.topic.replies)
