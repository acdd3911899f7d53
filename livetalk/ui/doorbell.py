"""Listens while no worker does, and says when one is wanted.

In a conversation a turn of the visitor must have ended; the sound since just before it began is kept for whoever
answers. In a mirror it is enough that something is to be heard. This module does not know who is called.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from livetalk.media.sound import StreamResampler
from livetalk.stream.turns import TurnEnded, TurnTaker, VoiceStarted
from livetalk.stream.vad import SileroDetector
from livetalk.types import MODEL_RATE
from livetalk.ui.wire import Message

KEPT_S = 1.0
"""Sound before a voice is confirmed that belongs to its turn."""

LOUD = 0.02
"""Amplitude from which a mirror has something to show."""


class Doorbell:
    """One visitor's microphone between two calls.

    Args:
        mode: "mirror" or "conversation".
    """

    def __init__(self, mode: str) -> None:
        self._turns = TurnTaker(SileroDetector()) if mode == "conversation" else None
        self._resampler: StreamResampler | None = None
        self._kept: deque[tuple[np.ndarray, int]] = deque()
        self.is_voice_on = False
        """Whether a turn has begun."""

    def hear(self, samples: np.ndarray, rate: int) -> list[Message]:
        """Checked sound (float32 ``[n]`` at ``rate`` Hz); returns what a worker must be told, if one is wanted."""
        if self._turns is None:
            return [("listen", (samples, rate))] if np.abs(samples).max() > LOUD else []
        self._keep(samples, rate)
        if self._resampler is None or self._resampler.source_rate != rate:
            self._resampler = StreamResampler(rate, MODEL_RATE)
        is_over = False
        for event in self._turns.push(self._resampler.push(samples), False):
            self.is_voice_on |= isinstance(event, VoiceStarted)
            is_over |= isinstance(event, TurnEnded)
        if not is_over:
            return []
        turn: list[Message] = [("listen", packet) for packet in self._kept]
        self._kept.clear()
        self.is_voice_on = False
        return turn

    def _keep(self, samples: np.ndarray, rate: int) -> None:
        self._kept.append((samples, rate))
        while not self.is_voice_on and sum(len(x) / hz for x, hz in self._kept) - len(self._kept[0][0]) / rate > KEPT_S:
            self._kept.popleft()
