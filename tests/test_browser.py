"""The page in Debian's Chromium (real H.264): order, completeness, offsets, generations; never speed."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from flash_avatar import FlashAvatar, beeps

from livetalk.eval.browser import FLAGS
from livetalk.media.sound import load_speech

CHROMIUM = "/usr/bin/chromium"
SPEECH = sorted((Path(__file__).parents[1] / "examples" / "speech").glob("*.ogg"))

pytestmark = pytest.mark.skipif(not shutil.which(CHROMIUM), reason="needs the Debian package chromium")

TAP = """async () => {
  const { player } = window.livetalk;
  window.heard = []; window.seen = [];
  const code = `registerProcessor('tap', class extends AudioWorkletProcessor {
    constructor() { super(); this.last = -sampleRate; }
    process([input]) {
      const x = input[0] || [];
      for (let i = 0; i < x.length; i += 1) if (Math.abs(x[i]) > 0.05) {
        if (currentFrame + i - this.last > 0.3 * sampleRate) this.port.postMessage((currentFrame + i) / sampleRate);
        this.last = currentFrame + i;
      }
      return true;
    } })`;
  await player.context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  const tap = new AudioWorkletNode(player.context, 'tap');
  tap.port.onmessage = (event) => window.heard.push(event.data);
  player.output.connect(tap);
  const paint = player.paint.bind(player);
  player.paint = (frame) => {
    paint(frame);
    const side = player.canvas.width;
    const light = (x, y) => player.canvas.getContext('2d').getImageData(side * x, side * y, 1, 1).data[1];
    let number = 0;
    for (let bar = 0; bar < 6; bar += 1) number = 2 * number + (light(0.75, (bar + 0.5) / 6) > 127);
    window.seen.push({ heard: player.heardTime(), white: light(0.2, 0.5) > 160, number });
  };
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    voice = tmp_path_factory.mktemp("voice") / "microphone.wav"
    soundfile.write(voice, spoken(20.0, pause_s=1.0), 24_000, subtype="PCM_16")
    with playwright.sync_playwright() as p:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={voice}"]
        opened = p.chromium.launch(executable_path=CHROMIUM, args=flags, headless=False)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def flash_url():
    from livetalk.ui.page import build, launch_options

    page = build(FlashAvatar(), places=4)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    yield url
    page.close()


@pytest.fixture
def open_page(browser):
    """Opens an address in a fresh visitor's window; at the end the console must be clean."""
    problems, contexts = [], []

    def opened(url, width=1280, height=860, dark=False):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{url}{'&' if '?' in url else '?'}mode=mirror")
        page.wait_for_selector(".lt-power", timeout=60_000)
        page.wait_for_function("window.livetalk && window.livetalk.codec")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def spoken(seconds: float, pause_s: float = 0.0, rate: int = 24_000) -> np.ndarray:
    """Our example speeches, one after the other, cut to ``seconds``."""
    parts = []
    for path in SPEECH * 8:
        parts += [load_speech(path, rate), np.zeros(int(pause_s * rate), np.float32)]
    return np.concatenate(parts)[: int(seconds * rate)]


def counters(page) -> dict:
    return page.evaluate("livetalk.player.counters")


def logs(page) -> dict:
    return json.loads(page.evaluate("JSON.stringify(livetalk.player.log)"))


def play_file(page, path: Path) -> None:
    page.set_input_files("#lt-speech input[type=file]", str(path))
    page.wait_for_selector("#lt-speech .lt-upload[aria-checked=true]:not(.lt-busy)", timeout=30_000)
    page.click("#lt-play")


def check_complete(page) -> None:
    """Everything sent has come, was decoded, and was drawn in rising order."""
    counted, logged = counters(page), logs(page)
    indexes = [entry["index"] for entry in logged["fragments"]]
    assert indexes == list(range(indexes[0], indexes[0] + len(indexes)))
    assert counted["lostFragments"] == counted["decodeErrors"] == counted["stale"] == 0
    held = [entry for entry in logged["fragments"] if entry["pictures"]]
    for before, after in itertools.pairwise(held):
        if before["generation"] == after["generation"]:
            assert after["first"] == before["first"] + before["pictures"]
        assert after["generation"] >= before["generation"]
    drawn = [(entry["generation"], entry["index"]) for entry in logged["drawn"]]
    assert drawn == sorted(set(drawn))


def test_a_long_clip_plays_live_in_order_and_without_loss(page_url, open_page, tmp_path):
    clip = tmp_path / "half-a-minute.wav"
    soundfile.write(clip, spoken(30.0), 24_000)
    page = open_page(page_url)
    play_file(page, clip)
    page.wait_for_function("livetalk.mood === 'speaking'", timeout=60_000)
    page.wait_for_function("livetalk.quietS > 3 && livetalk.mood === 'idle'", timeout=120_000)
    check_complete(page)
    assert page.evaluate("livetalk.codec") == "h264"
    counted, logged = counters(page), logs(page)
    speaking = [entry for entry in logged["fragments"] if entry["state"] == "speaking"]
    span = speaking[-1]["first"] + speaking[-1]["pictures"] - speaking[0]["first"]
    assert 29 * 16 <= span <= 31 * 16 and len({entry["generation"] for entry in speaking}) == 1
    assert counted["received"] - counted["decoded"] < 40  # what is still in the decoder when we look
    assert abs(np.median(logged["offsets"])) <= 60

    first = page.evaluate("livetalk.player.canvas.toDataURL()")
    time.sleep(1.5)
    assert page.evaluate("livetalk.player.canvas.toDataURL()") != first, "an idle face lives"

    page.click(".lt-power")
    page.wait_for_selector(".lt-stage[data-state=off]")
    after = counters(page)["fragments"]
    time.sleep(1.0)
    assert counters(page)["fragments"] == after and page.evaluate("livetalk.sid") is None
    page.click(".lt-power")
    page.wait_for_function("livetalk.player.counters.drawn > 8", timeout=60_000)


def test_the_microphone_drives_the_face_silently(page_url, open_page):
    page = open_page(page_url)
    page.click(".lt-speak")
    page.wait_for_selector(".lt-stage[data-microphone=on]", timeout=60_000)
    assert page.text_content(".lt-badge") == "Mirror, silent"
    page.wait_for_function("livetalk.quietS < 60", timeout=60_000)
    page.wait_for_function("Math.max(...livetalk.delays.played.values()) > 0.02", timeout=60_000)
    page.wait_for_function("document.querySelector('.lt-delay').textContent.endsWith(' s')", timeout=60_000)
    assert page.evaluate("livetalk.player.muted") is True
    page.click(".lt-headphones")
    assert page.evaluate("livetalk.player.muted") is False
    sent = page.evaluate("livetalk.microphone.counters")
    assert sent["sent"] > 0 and sent["failed"] == 0
    assert counters(page)["lostFragments"] == 0
    page.click(".lt-speak")
    assert page.evaluate("livetalk.microphone.isOpen") is False
    page.click(".lt-power")
    page.wait_for_selector(".lt-stage[data-state=off]")


def test_a_bad_file_is_a_sentence_and_the_page_goes_on(page_url, open_page, tmp_path):
    fake = tmp_path / "face.png"
    fake.write_text("this is no picture")
    page = open_page(page_url)
    page.set_input_files("#lt-faces input[type=file]", str(fake))
    page.wait_for_selector(".lt-message:not([hidden])", timeout=30_000)
    said = page.text_content(".lt-message")
    assert "could not be read as a picture" in said and "face.png" in said and "/tmp" not in said
    page.click("#lt-faces [role=radio] >> nth=1")
    page.click(".lt-power")
    page.wait_for_function("livetalk.player.counters.drawn > 4", timeout=60_000)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_everything_without_overflow(flash_url, open_page, dark):
    page = open_page(flash_url, width=390, height=844, dark=dark)
    page.click(".lt-power")
    page.wait_for_function("livetalk.player.counters.drawn > 4", timeout=60_000)
    width, inside = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= inside
    outside = page.evaluate(
        """[...document.querySelectorAll('.lt-stage *, .lt-picker *, #lt-play')].filter((e) => {
          const box = e.getBoundingClientRect();
          return box.width > 1 && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
        }).map((e) => e.className.toString())"""
    )
    assert outside == []


@pytest.mark.parametrize("codec", ["h264", "jpeg"])
def test_what_is_seen_is_what_is_heard(flash_url, open_page, tmp_path, codec):
    """Independent of the player's own figures: beeps tapped behind its volume, flashes read from the canvas."""
    clip = tmp_path / "beeps.wav"
    soundfile.write(clip, beeps(5.0), 16_000)
    page = open_page(f"{flash_url}?codec={codec}")
    page.click(".lt-power")
    page.wait_for_function("livetalk.player.counters.drawn > 4", timeout=60_000)
    page.evaluate(TAP)
    play_file(page, clip)
    page.wait_for_function("window.heard.length >= 5", timeout=60_000)
    page.wait_for_function("livetalk.mood === 'idle'", timeout=60_000)
    check_complete(page)
    heard, seen, drawn = page.evaluate(
        "[window.heard, window.seen, livetalk.player.log.drawn.slice(-window.seen.length)]"
    )
    assert len(heard) == 5
    late_ms = [entry["offsetMs"] for entry in drawn]  # None: decoded when its time was long over
    timely = [picture for picture, ms in zip(seen, late_ms, strict=True) if ms is not None and ms <= 63]
    for picture in timely:  # white inside a beep, dark outside, judged 60 ms away from its ends
        within = [beep - 0.06 <= picture["heard"] <= beep + 0.25 + 0.06 for beep in heard]
        inside = [beep + 0.06 <= picture["heard"] <= beep + 0.25 - 0.06 for beep in heard]
        assert any(within) if picture["white"] else not any(inside), (picture, heard)
    assert any(picture["white"] for picture in timely) and not all(picture["white"] for picture in timely)
    assert [entry["number"] for entry in seen] == [entry["index"] % 64 for entry in drawn]

    generation = page.evaluate("livetalk.player.generation")
    play_file(page, clip)
    page.wait_for_function("livetalk.mood === 'speaking'", timeout=60_000)
    page.evaluate("document.querySelector('.lt-cut').click()")
    page.wait_for_function(f"livetalk.player.generation > {generation}", timeout=30_000)
    page.wait_for_function("livetalk.mood === 'idle'", timeout=30_000)
    silent_since = len(page.evaluate("window.heard"))
    time.sleep(1.5)
    assert len(page.evaluate("window.heard")) == silent_since, "nothing of an old generation is heard"
    generations = [entry["generation"] for entry in logs(page)["drawn"]]
    assert generations == sorted(generations)
