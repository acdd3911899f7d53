"""Where the pictures of a stream lie: which chunk and which latent frame, and what can still be made in time.

This module knows nothing of how chunks are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from livetalk.stream.pace import Playback
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_LATENT, PICTURES_PER_SECOND, picture_span

SAFETY_PICTURES = 2
"""After an interruption at least so many pictures after the one on screen stay: new ones must be made and arrive."""


@dataclass(frozen=True)
class Grid:
    """Chunks of ``frames`` latent frames; the first frame of the stream is one picture, later ones four.

    Attributes:
        frames: latent frames of a chunk.
        look_ahead: samples at ``MODEL_RATE`` that a chunk hears beyond its pictures.
    """

    frames: int
    look_ahead: int = 0

    def span(self, chunk: int) -> tuple[int, int]:
        """First picture of a chunk, and the one after its last."""
        return picture_span(chunk * self.frames, self.frames)

    def sound_stop(self, chunk: int) -> int:
        """Position after the last sample that a chunk hears."""
        return self.span(chunk)[1] * MODEL_SAMPLES_PER_PICTURE + self.look_ahead

    def chunk_of(self, picture: int) -> int:
        """The chunk that holds ``picture``."""
        return _latent_frame(picture) // self.frames

    def frame_of(self, picture: int) -> int:
        """Which latent frame of its chunk holds ``picture``."""
        return _latent_frame(picture) % self.frames

    def frame_stop(self, picture: int) -> int:
        """First picture after the latent frame that holds ``picture``."""
        return picture_span(_latent_frame(picture), 1)[1]

    def soonest(self, playback: Playback, making_s: Callable[[int], float], allowance: float) -> int:
        """First picture from which on everything can be made anew in time: in its chunk, and then in the one behind.

        Args:
            playback: what is on screen.
            making_s: seconds to make a chunk and to decode so many of its latent frames.
            allowance: factor on it, for the first of the two chunks: hardly ever are both made slowly.
        """
        picture = math.ceil(playback.position_s * PICTURES_PER_SECOND)
        while True:
            stop = self.span(self.chunk_of(picture))[1]
            if playback.ahead_s(picture) < allowance * making_s(self.frame_of(picture) + 1):
                picture += 1
            elif playback.ahead_s(stop) < allowance * making_s(self.frames) + making_s(1):
                picture = stop
            else:
                return picture


def _latent_frame(picture: int) -> int:
    return (picture + PICTURES_PER_LATENT - 1) // PICTURES_PER_LATENT
