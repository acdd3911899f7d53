"""Talkers for ``test_talker_process``, in a module of their own because another process imports it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from livetalk.stream.talkers.protocol import (
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    TalkerEvent,
    VisitorTurn,
)
from livetalk.types import TextDelta

RATE = 24_000


class ObedientTalker:
    """Does what a turn's text says."""

    name = "obedient"
    title = "the obedient talker"
    speculative = True

    def __init__(self) -> None:
        self.heard = 0
        self.cancelled: list[float | None] = []
        self.wake = threading.Event()

    def start(self, persona: Persona) -> None:
        if persona.instructions == "refuse":
            raise TalkerError("There is no room for this model.")

    def hear(self, samples: np.ndarray) -> None:
        self.heard += len(samples)

    def forget(self) -> None:
        self.heard = 0

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        self.wake.clear()
        yield Heard(turn.text or "")
        yield from getattr(self, f"_{turn.text}")(history)

    def cancel(self, heard_s: float | None = None) -> None:
        self.cancelled.append(heard_s)
        self.wake.set()

    def close(self) -> None:
        self.wake.set()

    def _tell(self, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Everything another process could get wrong."""
        yield TextDelta(f"{os.getpid()} {self.heard} {self.cancelled} {[m.text for m in history]}")
        yield SpeechPiece(np.linspace(-1, 1, 4_800, dtype=np.float32), RATE, "words ")

    def _talk(self, _: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Until cancelled."""
        while not self.wake.wait(0.01):
            yield SpeechPiece(np.zeros(240, np.float32), RATE)

    def _sleep(self, _: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Longer than any test, whatever is cancelled."""
        yield TextDelta("good night")
        time.sleep(3600)

    def _fall(self, _: Sequence[Message]) -> Iterator[TalkerEvent]:
        """As if the machine ran out of memory."""
        yield TextDelta("oh")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def _stumble(self, _: Sequence[Message]) -> Iterator[TalkerEvent]:
        yield TextDelta("oh")
        raise ValueError("a mistake")

    def _give_up(self, _: Sequence[Message]) -> Iterator[TalkerEvent]:
        yield TextDelta("oh")
        raise TalkerError("The line is bad.", lasting=False)


class UnmadeTalker(ObedientTalker):
    """Cannot even be made in the other process."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.current_process().name != "MainProcess":
            raise RuntimeError("no")


def tiny_gemma_talker(folder: str):
    """The real thing, with random weights that it makes itself: a fresh process has nothing but the folder's name."""
    from livetalk.stream.talkers.gemma import GemmaTalker, load_gemma
    from livetalk.stream.talkers.pocket import PocketModel, PocketVoice, load_pocket

    def load():
        import tiny_llms

        return load_gemma(str(tiny_llms.save_tiny_gemma(Path(folder) / "gemma")), device="cpu")

    def load_voice():
        import tiny_llms

        model: PocketModel = load_pocket(config=tiny_llms.save_tiny_pocket(Path(folder) / "pocket"))
        model.states["tiny"] = model.tts.get_state_for_audio_prompt(torch.randn(1, RATE) * 0.1)
        return PocketVoice(model)

    return GemmaTalker(load, load_voice, "tiny Gemma")
