"""What a stream goes on from: the chunks its cache was filled with, and the stream at rest.

Latents and conditions of the sinks and of the rolling window are enough to fill another cache, in this process or in
another one: under other words, or where the stream goes on. This module knows nothing of how chunks are made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from livetalk.config import RolloutConfig
from livetalk.types import Identity


@dataclass(frozen=True)
class Committed:
    """A chunk that was written into the cache.

    Attributes:
        latents: ``[1, C, F, h, w]``, clean.
        audio: its sound as the layers add it, ``[projections, 1, F, D]``.
        text: the words it was written under, ``[1, L, text_width]``.
    """

    latents: Tensor
    audio: Tensor
    text: Tensor

    def on_cpu(self) -> Committed:
        """The same in CPU tensors that share memory with nothing else."""
        return Committed(_own(self.latents), _own(self.audio), self.text.cpu())

    def on(self, device: torch.device) -> Committed:
        """The same with latents and sound on ``device``."""
        return Committed(self.latents.to(device), self.audio.to(device), self.text)


@dataclass(frozen=True)
class Past:
    """The chunks whose keys are in the cache, oldest first; a bounded number, however long the stream is.

    Attributes:
        sinks: those that stay for ever.
        recent: those in the rolling window.
    """

    sinks: tuple[Committed, ...] = ()
    recent: tuple[Committed, ...] = ()

    def then(self, chunk: Committed, settings: RolloutConfig) -> Past:
        """The past after one more chunk."""
        if len(self.sinks) * settings.chunk_frames < settings.sink_frames:
            return dataclasses.replace(self, sinks=(*self.sinks, chunk))
        return dataclasses.replace(self, recent=(*self.recent, chunk)[-_window_chunks(settings) :])

    def newest_latents(self, settings: RolloutConfig) -> Tensor:
        """Latents ``[1, C, F, h, w]`` of as many of the newest frames as are known without a gap."""
        whole = len(self.recent) < _window_chunks(settings)  # nothing was dropped between sinks and window
        chunks = (*self.sinks, *self.recent) if whole else self.recent
        return torch.cat([chunk.latents for chunk in chunks], dim=2)

    def on_cpu(self) -> Past:
        """The same in CPU tensors of their own."""
        sinks, recent = (tuple(chunk.on_cpu() for chunk in chunks) for chunks in (self.sinks, self.recent))
        return Past(sinks, recent)

    def __iter__(self) -> Iterator[Committed]:
        yield from self.sinks
        yield from self.recent


@dataclass(frozen=True)
class SoundSnapshot:
    """The sound that pictures still to be made depend on, and speech that is still to be heard.

    Attributes:
        model: float32 at ``MODEL_RATE`` from position ``model_first`` of the stream on.
        playback: float32 at ``PLAYBACK_RATE`` from position ``playback_first`` on.
        model_stop, playback_stop: positions behind the last sample of speech.
    """

    model_first: int
    model: np.ndarray
    model_stop: int
    playback_first: int
    playback: np.ndarray
    playback_stop: int


@dataclass(frozen=True)
class StreamSnapshot:
    """The pictures' side: where the stream stands and what it goes on from.

    Attributes:
        identity: whose face.
        next_identity: another face or other words that were asked for and not drawn yet.
        seed: of everything random about the pictures.
        generation: number of interruptions so far.
        next_picture: first picture that was not handed out.
        next_chunk: number of the chunk to be made next; it may begin before that picture.
        past: what the cache was filled with.
        sound: around the next chunk.
    """

    identity: Identity
    next_identity: Identity | None
    seed: int
    generation: int
    next_picture: int
    next_chunk: int
    past: Past
    sound: SoundSnapshot

    @property
    def wanted(self) -> Identity:
        """The face the visitor wants to see."""
        return self.next_identity or self.identity


def _window_chunks(settings: RolloutConfig) -> int:
    return math.ceil((settings.window_frames - settings.sink_frames) / settings.chunk_frames)


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU without the rest of the memory that a view hangs on to."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
