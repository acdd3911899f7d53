"""Makes the example speech that ships with the project: friendly sentences by synthetic voices.

It knows which words are said by whom; speaking is ``livetalk.voice``, writing is ``livetalk.media``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livetalk.media.sound import write_speech
from livetalk.types import MODEL_RATE
from livetalk.voice import speak

PAUSE_S = 0.35
PEAK = 0.8


@dataclass(frozen=True)
class Line:
    """One file: who speaks how, and the sentences, with a pause between them."""

    name: str
    voice: str
    rate_wpm: float
    sentences: tuple[str, ...]


LINES = (
    Line(
        "hello.ogg",
        "flite:slt",
        165,
        (
            "Hello! I am your LiveTalk avatar.",
            "Give me a picture and a voice, and I will move my lips, my head and my eyes.",
        ),
    ),
    Line(
        "welcome.ogg",
        "flite:rms",
        165,
        ("Good morning, and welcome.", "Everything you see is made while you watch: sixteen pictures, every second."),
    ),
    Line(
        "question.ogg",
        "espeak:en-us+f2",
        160,
        ("How are you today?", "Please ask me something, or just interrupt me.", "I promise that I do not mind!"),
    ),
    Line(
        "story.ogg",
        "flite:awb",
        180,
        (
            "Let me tell you a short story.",
            "Once upon a time, a small model lived on an old laptop, far away from the big computers.",
            "It had never seen the world, only paintings of people who talk.",
            "But it listened very carefully.",
            "When it heard a whisper, it opened its mouth a little. When it heard a song, it opened it wide.",
            "And when the room became quiet, it simply waited, blinked, and smiled.",
            "Soon everybody came by to have a chat, and the small model was never lonely again.",
            "That is the end. Thank you for listening!",
        ),
    ),
)


def spoken(line: Line) -> np.ndarray:
    """The sound of a line at ``MODEL_RATE``: float32, peak 0.8, a short pause around every sentence."""
    pause = np.zeros(round(PAUSE_S * MODEL_RATE), np.float32)
    parts = [pause]
    for sentence in line.sentences:
        parts += [speak(sentence, line.voice, line.rate_wpm).samples, pause]
    sound = np.concatenate(parts)
    return sound * (PEAK / max(1e-6, float(np.abs(sound).max())))


def write_speech_examples(folder: Path) -> list[Path]:
    """Writes the example clips (mono, 16 kHz) into ``folder``, made when missing; returns the files.

    Raises:
        LiveTalkError: espeak-ng or flite is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for line in LINES:
        write_speech(folder / line.name, spoken(line), MODEL_RATE)
        written.append(folder / line.name)
    return written
