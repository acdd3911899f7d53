"""The page in a headless browser: stalls, time to stop, first picture, sound against picture, the mirror's delay.

Starts ``app.py`` in its own process and visits it with Debian's Chromium (it decodes H.264). Sound is tapped behind the
player's volume, so that silence means that nothing is heard. What is fast enough is not decided here; the load average
and a matrix product say how quiet and how fast the machine was.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetalk.eval.bench import machine
from livetalk.media.sound import load_speech, write_speech
from livetalk.types import PLAYBACK_RATE, LiveTalkError

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)
ROUNDS = 12
CLIP_S = 30.0
START_TIMEOUT_S = 180.0
PAGE_TIMEOUT_MS = 120_000
_ROOT = Path(__file__).resolve().parents[2]

TAP = """async () => {
  const { player } = window.livetalk;
  if (player.tapped) return;
  player.tapped = true;
  const code = `registerProcessor('tap', class extends AudioWorkletProcessor {
    process([input]) {
      const x = input[0] || [];
      for (let i = x.length - 1; i >= 0; i -= 1) if (Math.abs(x[i]) > 0.003) {
        this.port.postMessage((currentFrame + i) / sampleRate);
        break;
      }
      return true;
    } })`;
  await player.context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  const tap = new AudioWorkletNode(player.context, 'tap');
  tap.port.onmessage = (event) => { window.lastLoud = event.data; };
  player.output.connect(tap);
}"""

STOP = """async () => {
  const { player } = window.livetalk;
  const clicked = performance.now();
  document.querySelector('.lt-power').click();
  await new Promise((done) => { setTimeout(done, 700); });
  return Math.max(0, performance.now() + 1000 * (window.lastLoud - player.heardTime()) - clicked);
}"""


def run(preset: str = "mini", rounds: int = ROUNDS, seconds: float = CLIP_S) -> dict[str, Any]:
    """Visit the page of ``preset`` and measure.

    Args:
        preset: name of a preset, or a folder with a checkpoint.
        rounds: how often a session is started and stopped.
        seconds: length of the clip that is played whole.

    Returns:
        ``stalls``, ``stall_ms`` and ``held_ms`` (silence made longer) while the clip plays; ``stop_ms`` (click -> last
        sound heard), ``first_picture_ms`` (click on Start -> drawn), ``sound_to_picture_ms`` (how long after its sound
        a picture is drawn), each with p50 and p95; ``mirror_delay_s``; pictures received, drawn and skipped; and what
        the machine was like.

    Raises:
        LiveTalkError: no Chromium, no playwright, no ``app.py`` (not a clone), or the server did not start.
    """
    speech = _speech(seconds)
    with tempfile.TemporaryDirectory() as folder, served(preset) as url:
        clip = Path(folder) / "clip.wav"
        write_speech(clip, speech, PLAYBACK_RATE)
        with opened_browser(clip) as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.set_default_timeout(PAGE_TIMEOUT_MS)
            page.goto(url + "?mode=mirror")
            page.wait_for_function("window.livetalk && window.livetalk.codec")
            played = _play_whole(page, clip)
            stops, firsts = _start_and_stop(page, rounds)
            delay_s = _mirror(page)
    return {
        "preset": preset,
        "seconds": seconds,
        "rounds": rounds,
        **played,
        "stop_ms": _spread(stops),
        "first_picture_ms": _spread(firsts),
        "mirror_delay_s": delay_s,
        **machine(torch.device("cpu")),
    }


def _play_whole(page: Any, clip: Path) -> dict[str, Any]:
    page.set_input_files("#lt-speech input[type=file]", str(clip))
    page.wait_for_selector("#lt-speech .lt-upload[aria-checked=true]:not(.lt-busy)")
    page.click("#lt-play")
    page.wait_for_function("livetalk.mood === 'speaking'")
    page.wait_for_function("livetalk.quietS > 3 && livetalk.mood === 'idle'")
    counters = page.evaluate("livetalk.player.counters")
    offsets = page.evaluate("livetalk.player.log.offsets")
    page.evaluate("livetalk.stop()")
    return {
        "stalls": counters["stalls"],
        "stall_ms": counters["stallMs"],
        "held_ms": counters["heldMs"],
        "received": counters["received"],
        "drawn": counters["drawn"],
        "skipped": counters["skipped"],
        "lost_fragments": counters["lostFragments"],
        "sound_to_picture_ms": _spread(offsets),
    }


def _start_and_stop(page: Any, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the click on Stop to the last sound, and from Start to the first picture, per round."""
    stops = []
    for _ in range(rounds):
        page.click(".lt-power")
        page.wait_for_function("livetalk.player.counters.drawn > 4")
        page.evaluate(TAP)
        page.click("#lt-play")
        page.wait_for_function("livetalk.mood === 'speaking'")
        page.wait_for_timeout(1200)
        stops.append(page.evaluate(STOP))
        page.wait_for_timeout(500)
    firsts = page.evaluate("livetalk.firsts.filter((first) => first.what === 'start').map((first) => first.ms)")
    return stops, firsts[-rounds:]


def _mirror(page: Any) -> float:
    """Seconds from the (fake) microphone to the mouth, as the page measures it."""
    page.click(".lt-speak")
    page.wait_for_function("livetalk.delays.measure() > 0", polling=500)
    page.wait_for_timeout(6000)
    delay_s = page.evaluate("livetalk.delays.measure()")
    page.evaluate("livetalk.stop()")
    return round(delay_s, 2)


def spread_ms(spans: Sequence[tuple[float, float | None]], unit_s: float = 1.0) -> dict[str, float | int | None]:
    """Median and 95th percentile of spans of time, in milliseconds; spans without an end do not count.

    Args:
        spans: begin and end of each, in units of ``unit_s`` seconds.
        unit_s: unit of the times.
    """
    known = [1000 * unit_s * (stop - start) for start, stop in spans if stop is not None]
    return {**(_spread(known) if known else {"p50": None, "p95": None}), "n": len(known)}


def _spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"p50": round(float(np.percentile(values, 50)), 1), "p95": round(float(np.percentile(values, 95)), 1)}


def _speech(seconds: float) -> np.ndarray:
    """Our example speeches, one after the other."""
    paths = sorted((_ROOT / "examples" / "speech").glob("*.ogg"))
    if not paths or not (_ROOT / "app.py").exists():
        raise LiveTalkError("The browser benchmark needs app.py and examples/ of a clone. Run it in the repository.")
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * PLAYBACK_RATE:
        parts.append(load_speech(paths[len(parts) % len(paths)], PLAYBACK_RATE))
    return np.concatenate(parts)[: int(seconds * PLAYBACK_RATE)]


@contextmanager
def opened_browser(microphone: Path, loop: bool = True) -> Iterator[Any]:
    """Debian's Chromium with ``microphone`` as what its microphone hears, again and again or once.

    Raises:
        LiveTalkError: no playwright, or no Chromium.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise LiveTalkError(
            "The browser benchmark needs playwright. Install it: pip install -r requirements-dev.txt"
        ) from error
    if not CHROMIUM.exists():
        raise LiveTalkError("The browser benchmark needs the Debian package chromium. Install it: apt install chromium")
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}{'' if loop else '%noloop'}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags, headless=False)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(preset: str, log: Path | None = None, **settings: str) -> Iterator[str]:
    """``app.py`` in its own process; gives its address.

    Args:
        preset: name of a preset, or a folder with a checkpoint.
        log: file for what the server prints; None = errors on this process's own.
        settings: more of its environment.

    Raises:
        LiveTalkError: it did not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "LIVETALK_PRESET": preset,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        **settings,
    }
    with contextlib.ExitStack() as files:
        out = files.enter_context(log.open("w")) if log is not None else None
        server = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=_ROOT,
            env=environment,
            stdout=subprocess.DEVNULL if out is None else out,
            stderr=out,
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > end:
                raise LiveTalkError("app.py did not start serving. Run `python app.py` to see why.")
            time.sleep(0.3)
        yield url
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "config", timeout=5):
            return True
    except OSError:
        return False
