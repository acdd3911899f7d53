"""A double of Avatar whose pictures can be read back: they are white while their sound is loud, and show their number.

Left half: white if the picture's own sound is loud, else grey. Right half: six bars, black or white, the picture's
number modulo 64 (top bar = highest bit). Everything else (packer, page, player, queue) is the real thing.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from livetalk.config import MINI
from livetalk.types import MODEL_RATE, PLAYBACK_RATE, PLAYBACK_SAMPLES_PER_PICTURE, Pictures

SIDE = 128
LOUD = 0.05


def picture(number: int, loud: bool) -> np.ndarray:
    drawn = np.full((SIDE, SIDE, 3), 255 if loud else 70, np.uint8)
    for bar in range(6):
        top = bar * SIDE // 6
        drawn[top : (bar + 1) * SIDE // 6, SIDE // 2 :] = 255 * (number >> (5 - bar) & 1)
    return drawn


class FlashSession:
    generation = 0
    notice = None
    real_time_factor = 9.0

    def __init__(self, lead_s: float) -> None:
        self.lead_s = lead_s
        self._sound = np.zeros(0, np.float32)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._cut = False

    @property
    def state(self) -> str:
        return "stopped" if self._stopped.is_set() else "speaking" if self._sound.size else "idle"

    def facts(self) -> dict:
        return {"real_time_factor": self.real_time_factor, "notice": None}

    def play(self, samples, rate) -> None:
        assert rate == PLAYBACK_RATE
        with self._lock:
            self._sound = np.concatenate([self._sound, samples])

    def listen(self, samples, rate) -> None:
        with self._lock:
            where = np.arange(0, len(samples), rate / PLAYBACK_RATE)
            self._sound = np.concatenate([self._sound, np.interp(where, np.arange(len(samples)), samples).astype("f4")])

    def interrupt(self) -> None:
        with self._lock:
            self._sound, self._cut = np.zeros(0, np.float32), True

    def stop(self) -> None:
        self._stopped.set()

    def pictures(self):
        begun, number, size = time.monotonic(), 0, 4
        while not self._stopped.wait(max(0.0, begun + number / 16 - self.lead_s - time.monotonic())):
            with self._lock:
                samples = size * PLAYBACK_SAMPLES_PER_PICTURE
                sound, self._sound = self._sound[:samples], self._sound[samples:]
                if self._cut:
                    self.generation, self._cut = self.generation + 1, False
                    number = max(0, round((time.monotonic() - begun) * 16))
            sound = np.pad(sound, (0, samples - len(sound)))
            loud = np.abs(sound.reshape(size, -1)).max(axis=1) > LOUD
            drawn = np.stack([picture(number + j, bool(loud[j])) for j in range(size)])
            yield Pictures(number, drawn, sound, self.generation, bool(loud.any()))
            number += size


class FlashAvatar:
    preset = MINI

    def session(self, portrait, prompt="", seed=0, mode="mirror", backlog_s=2.0) -> FlashSession:
        return FlashSession(lead_s=0.6)


def beeps(seconds: float, every_s: float = 1.0, rate: int = MODEL_RATE) -> np.ndarray:
    """Silence with a 1 kHz beep of 0.25 s (four pictures) every ``every_s``, beginning on a picture's border."""
    t = np.arange(int(seconds * rate)) / rate
    into = t % every_s
    loudness = 0.5 * np.clip(np.minimum(into, 0.25 - into) / 0.005, 0.0, 1.0)  # soft edges do not ring when resampled
    return (loudness * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)
