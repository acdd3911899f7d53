"""Help for streaming tests: tiny models, made-up speech, and a clock that tests turn by hand."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable

import numpy as np
import torch

from livetalk.hub import Models, random_models
from livetalk.stream.performer import Performer
from livetalk.types import PLAYBACK_RATE, AudioChunk, Identity, Pictures, SpeechEnd
from tests.tiny import TINY


class HandClock:
    """Stands still until somebody waits; then it jumps to the end of the wait, or to the next thing planned."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now_s

    def plan(self, after_s: float, deed: Callable[[], None]) -> None:
        """Do ``deed`` when ``after_s`` more seconds have passed."""
        self._planned.append((self.now_s + after_s, deed))
        self._planned.sort(key=lambda item: item[0])

    def wait(self, changed: threading.Condition, timeout_s: float | None) -> None:
        until = self.now_s + (1.0 if timeout_s is None else timeout_s)
        if self._planned and self._planned[0][0] <= until:
            self.now_s, deed = self._planned.pop(0)
            deed()
        else:
            self.now_s = until + 1e-6


@functools.cache
def tiny_models(seed: int = 0) -> Models:
    return random_models(TINY, seed=seed)


@functools.cache
def tiny_identity(seed: int = 0) -> Identity:
    generator = torch.Generator().manual_seed(seed)
    portrait = torch.rand(3, TINY.height, TINY.width, generator=generator) * 2 - 1
    return tiny_models().identity(portrait, "a person nods")


def babble(seconds: float, rate: int = PLAYBACK_RATE, seed: int = 0) -> np.ndarray:
    """Something speech-like: noise that grows loud and quiet four times a second."""
    count = int(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal(count)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(count) / rate)
    return (0.2 * noise * swell).clip(-1, 1).astype(np.float32)


def performer(seed: int = 5, identity: int = 0, **options) -> Performer:
    return Performer(tiny_models(), tiny_identity(identity), seed, **options)


def speak(target: Performer, samples: np.ndarray, packet: int | None = None, rate: int = PLAYBACK_RATE):
    """Push speech in packets and its end, collecting what comes out on the way."""
    pieces = []
    for start in range(0, len(samples), packet or len(samples)):
        target.push(AudioChunk(samples[start : start + (packet or len(samples))], rate))
        pieces += list(target.pictures())
    target.push(SpeechEnd())
    return pieces + list(target.pictures())


def film(pieces: list[Pictures]) -> np.ndarray:
    """All pictures of some pieces, which must follow each other."""
    for before, after in itertools.pairwise(pieces):
        assert after.first_picture == before.first_picture + len(before.pictures)
    return np.concatenate([piece.pictures for piece in pieces])


def sound_of(pieces: list[Pictures]) -> np.ndarray:
    return np.concatenate([piece.sound for piece in pieces])


def live(target: Performer, clock: HandClock, until_picture: int) -> list[Pictures]:
    """What a live performer hands out, in time, until that picture has left."""
    pieces: list[Pictures] = []
    lock = threading.Condition()
    while target.next_picture < until_picture:
        piece = target.next_pictures()
        if piece is None:
            clock.wait(lock, target.wait_s())
        else:
            pieces.append(piece)
    return pieces
