"""Words every room shares: what travels between the rooms, and the shape alphabet.

Shape letters used in every docstring and comment of this package:
``B`` batch, ``C`` channels, ``F`` latent frames, ``T`` pictures, ``H W`` height and width (latent
or picture, as the text says), ``N`` tokens, ``D`` network width, ``S`` audio rows (one per picture),
``A`` audio feature width, ``L`` text rows.

Time is counted in samples and frames. Pictures come at ``PICTURES_PER_SECOND``; the network hears
``MODEL_RATE`` samples a second, people hear ``PLAYBACK_RATE``. Both are whole multiples of the picture rate,
so a picture always spans a whole number of samples.

This module knows nothing of models, files, networks or pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

PICTURES_PER_SECOND = 16
MODEL_RATE = 16_000
PLAYBACK_RATE = 24_000
MODEL_SAMPLES_PER_PICTURE = MODEL_RATE // PICTURES_PER_SECOND
PLAYBACK_SAMPLES_PER_PICTURE = PLAYBACK_RATE // PICTURES_PER_SECOND
PICTURES_PER_LATENT = 4


class LiveTalkError(Exception):
    """A problem a person can act on. The message says what happened, what was expected, what to do."""


@dataclass(frozen=True)
class LatentShape:
    """Shape of one clip of latents: channels, latent frames, latent height and width."""

    channels: int
    frames: int
    height: int
    width: int

    def tokens_per_frame(self, patch: tuple[int, int, int]) -> int:
        """Number of tokens one latent frame becomes under ``patch`` (time, rows, columns)."""
        return (self.height // patch[1]) * (self.width // patch[2])


def pictures_of(latent_frames: int) -> int:
    """Pictures covered by the first ``latent_frames`` latent frames of a clip (``4F - 3``; 0 for none)."""
    return max(0, PICTURES_PER_LATENT * latent_frames - (PICTURES_PER_LATENT - 1))


def picture_span(first_frame: int, frames: int) -> tuple[int, int]:
    """Half-open picture range ``[start, stop)`` that latent frames ``first_frame ...`` cover."""
    return pictures_of(first_frame), pictures_of(first_frame + frames)


@dataclass(frozen=True)
class AudioChunk:
    """A packet of speech: mono float32 samples in -1..1, any length, at ``sample_rate`` Hz."""

    samples: np.ndarray
    sample_rate: int = PLAYBACK_RATE


@dataclass(frozen=True)
class SpeechEnd:
    """The speech pushed so far is complete: what follows is silence until the next packet."""


@dataclass(frozen=True)
class TextDelta:
    """A piece of text a talker says."""

    text: str


@dataclass(frozen=True)
class Identity:
    """Who is drawn: the portrait's latent ``[1, C, 1, H, W]`` and the prompt's rows ``[1, L, text_width]``.

    CPU tensors, so that a session can cross a process border.
    """

    portrait_latent: Tensor
    text: Tensor


@dataclass(frozen=True)
class Pictures:
    """Pictures with the sound they belong to, as the performer hands them out.

    Attributes:
        first_picture: index of the first picture, counted from the start of the stream.
        pictures: uint8 ``[T, H, W, 3]``.
        sound: float32 playback sound ``[T * PLAYBACK_SAMPLES_PER_PICTURE]``.
        generation: number of the cancel scope they belong to; stale generations are never sent.
        speaking: whether any of it is speech rather than idle silence.
    """

    first_picture: int
    pictures: np.ndarray
    sound: np.ndarray
    generation: int
    speaking: bool

    @property
    def start_sample(self) -> int:
        """Position of the first sound sample in the stream, in samples at ``PLAYBACK_RATE``."""
        return self.first_picture * PLAYBACK_SAMPLES_PER_PICTURE


@dataclass(frozen=True)
class Fragment:
    """One message to a player: pictures (encoded) and PCM of the same stretch of time.

    Attributes:
        index: running number of the fragment within its session.
        first_picture: index of its first picture in the stream.
        pictures: number of pictures in it.
        generation: cancel generation it belongs to.
        state: what the avatar is doing ("idle", "speaking", ...).
        payload: bytes for the player: header and parts, see ``livetalk.media.packets``.
    """

    index: int
    first_picture: int
    pictures: int
    generation: int
    state: str
    payload: bytes
