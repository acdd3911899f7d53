"""A conversation with the page in a headless browser: questions through its microphone, answers as they are heard.

The microphone is a sound file: every second question begins while the answer to the one before is spoken. What the
browser records and plays is listened to on the way, apart from what the page itself measures; only pictures and the
lowering of the volume are the page's own word. What is fast enough is not decided here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.eval.browser import PAGE_TIMEOUT_MS, opened_browser, served, spread_ms
from livetalk.media.sound import write_speech

FIRST_S = 8.0
"""Silence at first: the file begins to play before the session is on."""
INTO_REPLY_S = 2.2
"""From the end of a question to the one that interrupts its answer."""
CALM_S = 9.0
"""From the end of an interruption to the next question."""
PAUSE_MS = 600.0
"""A pause that long ends a question, or an answer."""

LISTEN = """async () => {
  const { player, microphone } = window.livetalk;
  window.voice = []; window.sound = [];
  const frame = microphone.heardFrame;
  microphone.heardFrame = (samples, rate) => {
    frame(samples, rate);
    if (samples.some((x) => Math.abs(x) > 0.02)) window.voice.push(performance.now());
  };
  const code = `registerProcessor('listen', class extends AudioWorkletProcessor {
    process([input]) {
      const x = input[0] || [];
      if (x.some((value) => Math.abs(value) > 0.003)) this.port.postMessage(currentTime);
      return true;
    } })`;
  await player.context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  const ear = new AudioWorkletNode(player.context, 'listen');
  ear.port.onmessage = ({ data }) => window.sound.push(performance.now() + 1000 * (data - player.heardTime()));
  player.output.connect(ear);
}"""

TOLD = """() => ({
  voice: window.voice,
  sound: window.sound,
  turns: window.livetalk.turns.map((turn) => ({ sound: turn.soundMs, picture: turn.pictureMs })),
  ducks: window.livetalk.log.filter((entry) => entry.what === 'duck').map((entry) => entry.ms),
  drawn: window.livetalk.player.log.drawn.filter(({ offsetMs }) => offsetMs !== null),
  counters: window.livetalk.player.counters,
})"""

CHUNK_PICTURES = 12
FIRST_CHUNK_PICTURES = 9


def converse(preset: str, clips: Sequence[np.ndarray], rate: int) -> dict[str, Any]:
    """Ask the page of ``preset`` with the offline talker.

    Args:
        preset: name of a preset, or a folder with a checkpoint.
        clips: questions, float32 ``[n]`` at ``rate``; every second one interrupts.
        rate: in Hz.

    Returns:
        As ``livetalk.eval.conversation.measure`` names them: ``answered``, ``end_of_speech_to_first_sound_ms``,
        ``..._to_first_picture_ms``, ``interrupt_to_silence_ms``, ``duck_ms``; ``stalls`` of the player; ``held_ms`` and
        ``longest_held_ms``, by how much it made silence longer; and ``border_offset_ms``, how far sound and picture are
        apart at the borders of chunks (over the last six minutes).

    Raises:
        LiveTalkError: no Chromium, no playwright, no ``app.py`` (not a clone), or the server did not start.
    """
    sound = microphone(clips, rate)
    with tempfile.TemporaryDirectory() as folder, served(preset, LIVETALK_TALKER="offline") as url:
        path = Path(folder) / "questions.wav"
        write_speech(path, sound, rate)
        with opened_browser(path, loop=False) as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.set_default_timeout(PAGE_TIMEOUT_MS)
            page.goto(url + "?mode=talk")
            page.wait_for_function("window.livetalk && window.livetalk.codec")
            page.click(".lt-talk")
            page.wait_for_function("livetalk.microphone.isOpen && livetalk.player.counters.drawn > 0")
            page.evaluate(LISTEN)
            page.wait_for_timeout(1000 * len(sound) / rate)
            told = page.evaluate(TOLD)
    return figures(told)


def microphone(clips: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The questions with pauses: every second one comes while the answer to the one before is spoken."""
    parts = [np.zeros(round(FIRST_S * rate), np.float32)]
    for number, clip in enumerate(clips):
        pause_s = CALM_S if number % 2 or number == len(clips) - 1 else INTO_REPLY_S
        parts += [clip, np.zeros(round(pause_s * rate), np.float32)]
    return np.concatenate(parts)


def figures(told: dict[str, Any]) -> dict[str, Any]:
    """Figures from what was heard and what the page said; all times in milliseconds of one clock."""
    questions, answers = spans(told["voice"]), spans(told["sound"])
    first, shown, silent, ducked = [], [], [], []
    for number, (onset, stop) in enumerate(questions):
        until = questions[number + 1][1] if number + 1 < len(questions) else np.inf
        answer = next((begin for begin, _ in answers if stop < begin < until), None)
        first.append((stop, answer))
        if answer is not None:
            picture = [
                turn["picture"] for turn in told["turns"] if turn["picture"] and abs(turn["sound"] - answer) < 500
            ]
            shown.append((stop, picture[0] if picture else None))
        cut = next((end for begin, end in answers if begin < onset < end), None)
        if cut is not None:
            silent.append((onset, cut))
            ducked.append((onset, next((at for at in told["ducks"] if at > onset), None)))
    borders = [one for one in told["drawn"] if (one["index"] - FIRST_CHUNK_PICTURES) % CHUNK_PICTURES == 0]
    apart = [abs(one["offsetMs"]) for one in borders]
    return {
        "questions": len(questions),
        "answered": sum(answer is not None for _, answer in first),
        "end_of_speech_to_first_sound_ms": spread_ms(first, unit_s=1e-3),
        "end_of_speech_to_first_picture_ms": spread_ms(shown, unit_s=1e-3),
        "interrupt_to_silence_ms": spread_ms(silent, unit_s=1e-3),
        "duck_ms": spread_ms(ducked, unit_s=1e-3),
        "stalls": told["counters"]["stalls"],
        "stall_ms": told["counters"]["stallMs"],
        "slipped_ms": told["counters"]["slippedMs"],
        "held_ms": told["counters"]["heldMs"],
        "longest_held_ms": told["counters"]["longestHeldMs"],
        "border_offset_ms": {**spread_ms([(0, one) for one in apart], unit_s=1e-3), "most": max(apart, default=None)},
    }


def spans(times: Sequence[float]) -> list[tuple[float, float]]:
    """Begin and end of every stretch of times without a gap of ``PAUSE_MS``."""
    found: list[tuple[float, float]] = []
    for time in sorted(times):
        if found and time - found[-1][1] < PAUSE_MS:
            found[-1] = (found[-1][0], time)
        else:
            found.append((time, time))
    return found
