"""A conversation on the page, in Debian's Chromium: answers, captions, interruptions, languages, phone; never speed.

The avatar is a real one with tiny random networks; the talker says a tone of its own for every reply, so that the sound
that leaves the page tells which reply it belongs to.
"""

from __future__ import annotations

import base64
import io
import itertools
import random
import re
import shutil
import threading

import numpy as np
import pytest
import soundfile

from livetalk.eval.browser import FLAGS
from livetalk.stream.avatar import Avatar
from livetalk.stream.talkers.protocol import Heard, SpeechPiece
from livetalk.types import PLAYBACK_RATE
from livetalk.voice import available_voices, speak
from tests.live import tiny_models

CHROMIUM = "/usr/bin/chromium"
TEXT = "Every reply has got a tone of its own. It is long enough to be broken off in the middle of it."
WORD_S = 0.3
TONES_HZ = 320, 520, 840, 1360, 2200

pytestmark = pytest.mark.skipif(not shutil.which(CHROMIUM), reason="needs the Debian package chromium")

TAP = """async () => {
  const { player } = window.livetalk;
  if (window.tones) return;
  window.tones = [];
  const code = `registerProcessor('tones', class extends AudioWorkletProcessor {
    constructor() { super(); this.last = 0; this.clear(); }
    clear() { this.n = this.crossings = this.most = this.first = this.latest = 0; }
    process([input]) {
      for (const v of input[0] || new Float32Array(128)) {
        if ((v >= 0) !== (this.last >= 0)) {
          if (!this.crossings) this.first = this.n;
          this.crossings += 1; this.latest = this.n;
        }
        this.last = v; this.most = Math.max(this.most, Math.abs(v)); this.n += 1;
      }
      if (this.n >= 1152) {
        const hz = (this.crossings - 1) * sampleRate / (this.latest - this.first) / 2;
        if (this.most > 0.03 && this.crossings > 9) this.port.postMessage([currentTime, hz]);
        this.clear();
      }
      return true;
    } })`;
  await player.context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  const tap = new AudioWorkletNode(player.context, 'tones');
  tap.port.onmessage = (event) => window.tones.push(event.data);
  player.output.connect(tap);
}"""

MICROPHONE = """
  // A microphone that hears what the test plays: say(url) resolves when it has been said.
  const room = new AudioContext();
  const ear = room.createMediaStreamDestination();
  navigator.mediaDevices.getUserMedia = async () => ear.stream.clone();
  window.say = async (url) => {
    await room.resume();
    const source = room.createBufferSource();
    source.buffer = await room.decodeAudioData(await (await fetch(url)).arrayBuffer());
    source.connect(ear);
    source.start();
    await new Promise((done) => { source.onended = done; });
  };
"""

NAMES = """() => [...document.querySelectorAll('button, input, select, textarea, a, summary, [role=tab], [role=radio]')]
  .filter((e) => e.checkVisibility({ checkVisibilityCSS: true }))
  .filter((e) => !(e.getAttribute('aria-label') || e.innerText || e.title || e.getAttribute('aria-labelledby')
                   || (e.labels && [...e.labels].some((l) => l.innerText))))
  .map((e) => e.outerHTML.slice(0, 120))"""


class Tones:
    """Says the same words in another tone every time."""

    name, title, speculative = "tones", "Tones, for tests", True
    count = itertools.count()

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def start(self, persona) -> None:
        pass

    def hear(self, samples) -> None:
        pass

    def forget(self) -> None:
        pass

    def turn(self, turn, history):
        self.cancelled.clear()
        tone_hz = TONES_HZ[next(self.count) % len(TONES_HZ)]
        yield Heard(turn.text if turn.text is not None else "a question that was spoken")
        time_s = np.arange(int(WORD_S * PLAYBACK_RATE)) / PLAYBACK_RATE
        piece = (0.3 * np.sin(2 * np.pi * tone_hz * time_s)).astype(np.float32)
        for word in TEXT.split():
            if self.cancelled.is_set():
                return
            yield SpeechPiece(piece, PLAYBACK_RATE, f"{word} ")

    def cancel(self, heard_s=None) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.cancelled.set()


@pytest.fixture(scope="module")
def sessions():
    from livetalk.ui.live import LiveSessions

    return LiveSessions(Avatar(tiny_models()), places=1, talkers=lambda name, visitor: [Tones()])


@pytest.fixture(scope="module")
def url(sessions):
    from livetalk.ui.page import launch_options, page_of

    page = page_of(sessions)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    if not available_voices():
        pytest.skip("needs flite or espeak-ng")
    spoken = speak("Hello there, can you tell me what this is?")
    quiet = np.zeros(spoken.sample_rate, np.float32)
    voice = tmp_path_factory.mktemp("voice") / "question.wav"
    sound = np.concatenate([quiet, spoken.samples, *[quiet] * 20])
    noise = 0.0005 * np.random.default_rng(0).standard_normal(len(sound))
    soundfile.write(voice, sound + noise, spoken.sample_rate, subtype="PCM_16")
    with playwright.sync_playwright() as p:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={voice}"]
        opened = p.chromium.launch(executable_path=CHROMIUM, args=flags, headless=False)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page as a new visitor; at the end the console must be clean."""
    problems, contexts = [], []

    def opened(address="", script=None, **options):
        options = {"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **options}
        context = browser.new_context(**options)
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url + address)
        page.wait_for_function("window.livetalk && window.livetalk.codec")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def lines(page) -> list[tuple[str, str]]:
    return page.evaluate(
        """[...document.querySelectorAll('.lt-lines li')].map((row) =>
          [row.className.split(' ')[0].replace('lt-said-by-', ''), row.querySelector('.lt-text').textContent])"""
    )


def logged(page, what: str) -> list[dict]:
    return page.evaluate("(what) => livetalk.log.filter((entry) => entry.what === what)", what)


def write(page, text: str) -> None:
    page.fill(".lt-write input", text)
    page.press(".lt-write input", "Enter")


def test_a_typed_turn_is_answered_with_words_and_sound(visit, sessions):
    page = visit()
    assert page.evaluate("document.body.dataset.mode") == "talk" and page.is_disabled(".lt-copy")
    page.click(".lt-keep")
    page.click(".lt-suggestion >> nth=0")
    page.wait_for_function("livetalk.player.counters.drawn > 2")
    page.evaluate(TAP)
    page.wait_for_function("livetalk.mood === 'speaking' && document.querySelector('.lt-said').textContent.length > 12")
    caption = page.text_content(".lt-said")
    assert TEXT.find(caption.strip()) >= 0
    page.wait_for_function("livetalk.log.some((entry) => entry.number === 1 && entry.final)")
    assert [tuple(line) for line in lines(page)] == [("visitor", "What is LiveTalk?"), ("avatar", TEXT)]
    (turn,) = page.evaluate("livetalk.turns")
    assert turn["how"] == "typed" and turn["soundMs"] > turn["stopped"] and turn["pictureMs"] is not None
    assert page.text_content(".lt-reply").endswith(" s") and page.text_content(".lt-lips").endswith(" ms")
    assert page.text_content(".lt-who") == "Tones, for tests"
    assert page.evaluate("window.tones.length") > 20, "the reply was heard"
    states = [entry["state"] for entry in logged(page, "state")]
    assert states[0] == "waiting" and "speaking" in states
    with page.expect_download() as download:
        page.click(".lt-save")
    text = download.value.path().read_text("utf-8")
    assert re.search(r"^\[\d\d:\d\d\] You: What is LiveTalk\?\n\[\d\d:\d\d\] Avatar: Every reply", text)
    page.click(".lt-leave")
    page.wait_for_selector(".lt-stage[data-state=off]")
    page.wait_for_function("livetalk.sid === null")
    assert len(lines(page)) == 2, "the transcript stays"
    with page.expect_download() as download:
        page.click(".lt-film")
    assert download.value.suggested_filename.endswith(".mp4")
    assert download.value.path().read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_nothing_stale_is_drawn_or_heard_after_an_interruption(visit, times):
    page = visit()
    write(page, "first")
    page.wait_for_function("livetalk.player.counters.drawn > 2")
    page.evaluate(TAP)
    chance = random.Random(4)
    for number in range(times):
        reply = number + 1
        page.wait_for_function(f"livetalk.log.filter((entry) => entry.what === 'reply').length === {reply}")
        page.wait_for_function("livetalk.mood === 'speaking'")
        page.wait_for_timeout(chance.uniform(100, 1500))
        generation = page.evaluate("livetalk.player.generation")
        if number % 2:
            page.keyboard.press("Escape")
            page.wait_for_function(f"livetalk.player.generation > {generation}")
            page.wait_for_function("livetalk.mood !== 'speaking'")
        write(page, f"again {number}")
        page.wait_for_function(f"livetalk.player.generation > {generation}")
    page.wait_for_function(f"livetalk.log.filter((entry) => entry.what === 'reply').length === {times + 1}")
    page.wait_for_timeout(1000)
    drawn, heard, changes, tones, replies = page.evaluate(
        """[livetalk.player.log.drawn, livetalk.player.log.heard, livetalk.player.log.generations, window.tones,
            livetalk.log.filter((entry) => entry.what === 'reply')]"""
    )
    for change in changes[1:]:
        stale = [entry for entry in heard if entry["generation"] < change["generation"] and entry["at"] < change["cut"]]
        assert all(entry["until"] <= change["cut"] + 0.06 for entry in stale), "old sound ends where the new one begins"
        later = [entry for entry in drawn if entry["heard"] > change["cut"] + 0.06]
        assert all(entry["generation"] >= change["generation"] or entry["index"] < change["first"] for entry in later)
    assert [entry["generation"] for entry in drawn] == sorted(entry["generation"] for entry in drawn)
    order = [min(TONES_HZ, key=lambda hz: abs(hz - found)) for _, found in tones if found > 200]
    changed = [tone for tone, _ in itertools.groupby(order)]
    assert len(set(changed)) >= 2
    # A reply that was broken off early may not be heard at all; a tone that came back would go round the circle.
    places = [TONES_HZ.index(tone) for tone in changed]
    steps = sum((after - before) % len(TONES_HZ) for before, after in itertools.pairwise(places))
    assert steps <= len(replies) + 1, "one tone after the other, none twice"
    cut = page.query_selector_all(".lt-broken .lt-text")
    assert len(cut) >= times // 2
    for line in cut:
        assert TEXT.startswith(line.text_content())


def test_a_spoken_question_gets_a_line_and_a_reply_and_the_tab_gives_its_place_back(visit, sessions):
    page = visit()
    page.click(".lt-talk")
    page.wait_for_selector(".lt-talk[aria-pressed=true]")
    page.wait_for_function("livetalk.log.some((entry) => entry.role === 'visitor' && entry.text)")
    assert ("visitor", "a question that was spoken") in [tuple(line) for line in lines(page)]
    page.wait_for_function("livetalk.mood === 'speaking'")
    page.wait_for_function("livetalk.turns.length && livetalk.turns[0].pictureMs")
    assert page.evaluate("livetalk.turns[0].how") == "spoken"
    states = [entry["state"] for entry in logged(page, "state")]
    assert "listening" in states and states.index("listening") < states.index("speaking")
    assert page.evaluate("livetalk.microphone.counters.failed") == 0
    second = visit()
    write(second, "hello")
    second.wait_for_function("document.querySelector('.lt-pill b').textContent === 'Place 1 in line'")
    page.context.close()
    second.wait_for_function("livetalk.player.counters.drawn > 2", timeout=20_000)
    assert len(sessions) == 1
    second.wait_for_function("livetalk.mood === 'speaking'")


def data_url(samples: np.ndarray, rate: int) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def test_a_noise_lowers_the_voice_and_words_interrupt_it(visit):
    page = visit(script=MICROPHONE)
    page.click(".lt-talk")
    page.wait_for_selector(".lt-talk[aria-pressed=true]")
    write(page, "hello")
    page.wait_for_function("livetalk.mood === 'speaking'")
    page.wait_for_timeout(1200)  # the first second of the first reply cannot be interrupted
    knock = 0.3 * np.random.default_rng(1).standard_normal(2_000) * np.exp(-np.linspace(0, 3, 2_000))
    page.evaluate("say", data_url(knock, 16_000))
    page.wait_for_function("livetalk.log.some((entry) => entry.what === 'duck' && entry.why === 'meter')")
    page.wait_for_function("livetalk.log.filter((entry) => entry.what === 'unduck').length > 1")
    assert page.evaluate("livetalk.player.volumeNow") == 1
    if page.evaluate("livetalk.mood") != "speaking":
        write(page, "hello again")
        page.wait_for_function("livetalk.mood === 'speaking'")
    generation, ducks = page.evaluate(
        "[livetalk.player.generation, livetalk.log.filter((e) => e.what === 'duck').length]"
    )
    question = speak("Excuse me, may I ask you something else?")
    page.evaluate("say", data_url(question.samples, question.sample_rate))
    page.wait_for_function(f"livetalk.player.generation > {generation}")
    page.wait_for_function("livetalk.log.some((e) => e.role === 'visitor' && e.text === 'a question that was spoken')")
    log = page.evaluate("livetalk.log")
    ducked = [entry["ms"] for entry in log if entry["what"] == "duck"][ducks]
    flushed = next(e["ms"] for e in log if e["what"] == "generation" and e["generation"] > generation)
    assert ducked < flushed, "the voice was lowered before the server knew"
    page.wait_for_function("livetalk.turns.at(-1).how === 'spoken' && livetalk.mood === 'speaking'")
    assert page.evaluate("livetalk.player.volumeNow") == 1
    assert page.query_selector_all(".lt-broken")


def test_without_a_microphone_there_is_a_sentence_and_the_text_box(visit):
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); };"
    page = visit(script=refuse)
    page.click(".lt-talk")
    page.wait_for_selector(".lt-message:not([hidden])")
    assert "not allowed" in page.text_content(".lt-message")
    assert page.evaluate("document.activeElement.closest('.lt-write') !== null")
    page.wait_for_function("livetalk.player.counters.drawn > 2")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    page.wait_for_function("livetalk.mood === 'speaking'")


def test_a_face_a_mood_and_a_voice_change_in_mid_conversation(visit, sessions):
    page = visit()
    write(page, "hello")
    page.wait_for_function("livetalk.talking && livetalk.player.counters.drawn > 2")
    sid = page.evaluate("livetalk.sid")
    identity = sessions.get(sid).identity
    page.click("#lt-faces .lt-surprise")
    page.wait_for_selector("#lt-faces .lt-surprise.lt-opened")
    face = sessions.get(sid).identity
    assert not np.array_equal(face.portrait_latent, identity.portrait_latent)
    with page.expect_response(lambda response: "component_server" in response.url):
        page.click(".lt-feel[data-mood=happy]")
    page.wait_for_timeout(500)
    assert not np.array_equal(sessions.get(sid).identity.text, face.text)
    assert page.evaluate("livetalk.sid") == sid, "it is still the same conversation"
    drawn = page.evaluate("livetalk.player.counters.drawn")
    page.wait_for_function(f"livetalk.player.counters.drawn > {drawn + 20}")


@pytest.mark.parametrize(
    ("locale", "talk", "play"),
    [("de-DE", "Sprechen", "Live abspielen"), ("es-MX", "Hablar", "Reproducir en vivo"), ("zh-CN", "说话", "现场播放")],
)
def test_the_page_speaks_the_visitors_language(visit, locale, talk, play):
    page = visit(locale=locale, viewport={"width": 390, "height": 844})
    assert page.text_content(".lt-talk-name") == talk
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.click(".lt-modes [data-mode=mirror]")
    page.wait_for_selector("#lt-play")
    assert page.text_content("#lt-play").strip() == play
    assert page.is_hidden(".lt-dock") and page.is_visible(".lt-power")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_the_stage_on_top_and_the_talk_button_at_the_thumb(visit, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    stage, button = page.locator(".lt-frame").bounding_box(), page.locator(".lt-talk").bounding_box()
    assert stage["y"] < 160 and stage["width"] > 340
    assert button["y"] > 844 * 0.7 and button["y"] + button["height"] <= 844 and button["height"] >= 44
    page.evaluate("window.scrollTo(0, 2000)")
    assert page.locator(".lt-talk").bounding_box()["y"] == pytest.approx(button["y"], abs=2)


def test_everything_has_a_name_and_the_keyboard_reaches_it(visit):
    page = visit()
    for mode in ("talk", "mirror", "clip"):
        page.click(f".lt-modes [data-mode={mode}]")
        assert page.evaluate(NAMES) == [], mode
    page.focus(".lt-modes [data-mode=clip]")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.body.dataset.mode") == "talk"
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or "keep" in page.evaluate("document.activeElement.parentElement.className")
    assert reached[0].startswith("lt-talk") and "INPUT" in reached[1]
    assert any("lt-suggestion" in name for name in reached)
    live = page.evaluate("[...document.querySelectorAll('.lt-stage [aria-live], .lt-stage [role=status]')].length")
    assert live >= 3
