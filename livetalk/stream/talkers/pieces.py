"""Sound of a clause, or a stream of it, cut into pieces of speech that carry their words.

No piece is longer than ``LONGEST_PIECE_S``. The words of a clause are spread over its sound by their letters, which is
as good as it gets without marks from the voice. This module does not know where the sound comes from.
"""

from __future__ import annotations

import re

import numpy as np

from livetalk.stream.talkers.protocol import LONGEST_PIECE_S, SpeechPiece

LETTERS_PER_SECOND = 15.0
"""How fast people and voices speak, about; used while the length of a clause's sound is not known."""

_TAIL_S = 0.04
_PCM_LIMIT = 32768.0


class PieceCutter:
    """One clause's sound, in packets of any size, to pieces with the words that end in them.

    Args:
        sample_rate: of the sound, in Hz.
        text: the words of the clause with their spaces; all of them are in the pieces, in order.
        expected_s: length of the whole sound; None = guessed from the text.
    """

    def __init__(self, sample_rate: int, text: str = "", expected_s: float | None = None) -> None:
        self.sample_rate = sample_rate
        self._longest = int(LONGEST_PIECE_S * sample_rate)
        self._words = re.findall(r"\s*\S+\s*", text)
        self._letters_said, self._letters = 0, max(1, len(text))
        self._expected = (expected_s or len(text) / LETTERS_PER_SECOND) * sample_rate
        self._held = np.zeros(0, np.float32)
        self._tail = int(_TAIL_S * sample_rate) if self._words else 0
        self._sent = 0

    def push(self, samples: np.ndarray) -> list[SpeechPiece]:
        """Pieces that ``samples`` (float32 ``[n]``) made available.

        With words, the last moment of the sound stays inside, so that there is a piece to put the last words on.
        """
        self._held = np.concatenate([self._held, samples.astype(np.float32, copy=False)])
        return self._cut(len(self._held) - self._tail)

    def finish(self) -> list[SpeechPiece]:
        """The rest of the sound, with the rest of the words."""
        pieces = self._cut(len(self._held))
        if pieces and self._words:
            last = pieces.pop()
            pieces.append(SpeechPiece(last.samples, self.sample_rate, last.text + "".join(self._words)))
            self._words = []
        return pieces

    def _cut(self, available: int) -> list[SpeechPiece]:
        pieces = []
        while available > 0:
            count = min(available, self._longest)
            samples, self._held = self._held[:count], self._held[count:]
            available -= count
            self._sent += count
            pieces.append(SpeechPiece(samples, self.sample_rate, self._words_until(self._sent)))
        return pieces

    def _words_until(self, sample: int) -> str:
        """Words not yet given away that end before ``sample``."""
        said = ""
        while self._words:
            end = (self._letters_said + len(self._words[0])) / self._letters * self._expected
            if end > sample:
                break
            word = self._words.pop(0)
            self._letters_said += len(word)
            said += word
        return said


class PcmReader:
    """Little-endian 16-bit PCM in packets that may end in the middle of a sample."""

    def __init__(self) -> None:
        self._odd = b""

    def read(self, data: bytes) -> np.ndarray:
        """Samples (float32 ``[n]`` in -1..1) that ``data`` completed."""
        data = self._odd + data
        whole = len(data) // 2 * 2
        self._odd = data[whole:]
        return np.frombuffer(data[:whole], "<i2").astype(np.float32) / _PCM_LIMIT


def to_pcm(samples: np.ndarray) -> bytes:
    """Float samples ``[n]`` in -1..1 as little-endian 16-bit PCM."""
    return (np.clip(samples, -1.0, 1.0) * (_PCM_LIMIT - 1)).round().astype("<i2").tobytes()
