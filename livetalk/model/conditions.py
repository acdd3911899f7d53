"""What a clip is conditioned on: image, audio and text in the shapes the network takes (spec section 4).

Knows shapes and their slicing by latent frame. Does not know encoders, files or weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from livetalk.types import PICTURES_PER_LATENT, LiveTalkError


def pack_audio(rows: Tensor) -> Tensor:
    """Rows per picture as four rows per latent frame: three copies of row 0 in front (spec section 4.3.7).

    Args:
        rows: ``[B, 4F - 3, A]``.

    Returns:
        ``[B, 4F, A]``.
    """
    return torch.cat((rows[:, :1].expand(-1, PICTURES_PER_LATENT - 1, -1), rows), dim=1)


def image_condition(portrait_latent: Tensor, frames: int, first_frame: int = 0) -> Tensor:
    """Portrait on every frame plus the mask: 0 on frame 0 of the clip, else 1 (spec section 4.1.6).

    Args:
        portrait_latent: ``[B, C, 1, H, W]``.
        frames: latent frames wanted.
        first_frame: place of the first of them in the clip.

    Returns:
        ``[B, C + 1, frames, H, W]``.
    """
    batch, _, _, height, width = portrait_latent.shape
    mask = portrait_latent.new_ones(batch, 1, frames, height, width)
    if first_frame == 0:
        mask[:, :, 0] = 0
    return torch.cat((portrait_latent.expand(-1, -1, frames, -1, -1), mask), dim=1)


@dataclass(frozen=True)
class AudioVectors:
    """Audio as the layers add it: ``vectors`` ``[projections, B, F, D]``."""

    vectors: Tensor


@dataclass(frozen=True)
class FewKeys:
    """Keys and values so few that the projections on either side of an attention are folded into them.

    Attributes:
        keys: ``[B, heads * L, D]`` float32, zero outside their head: queries of all heads times them are the scores.
        outputs: ``[B, heads * L, D]`` float32: the values behind the output projection.
    """

    keys: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class TextKeys:
    """Keys (normalised) and values of the text, one ``[B, heads, L, d]`` per layer.

    ``pooled`` ``[B, D]`` is added to the time embedding of networks that have ``pooled_text``. ``few`` is the same
    folded, or empty; it serves packed weights only. ``levels`` is the network's own: what it made of noise levels
    under these words.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    pooled: Tensor | None = None
    few: tuple[FewKeys, ...] = ()
    levels: dict[float, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Conditions:
    """What a clip or chunk is conditioned on.

    Attributes:
        image: portrait latent and mask, ``[B, 17, F, H, W]``.
        audio: packed rows ``[B, 4F, A]``; None = all zeros, "no audio"; or prepared vectors.
        text: rows ``[B, L, text_width]`` or prepared keys and values.
    """

    image: Tensor
    audio: Tensor | AudioVectors | None
    text: Tensor | TextKeys

    def frames(self, start: int, stop: int) -> Conditions:
        """The same for latent frames ``start:stop`` only."""
        audio = self.audio
        if isinstance(audio, AudioVectors):
            audio = AudioVectors(audio.vectors[:, :, start:stop])
        elif audio is not None:
            audio = audio[:, PICTURES_PER_LATENT * start : PICTURES_PER_LATENT * stop]
        return dataclasses.replace(self, image=self.image[:, :, start:stop], audio=audio)

    def silent(self, drive_width: int) -> Conditions:
        """The same without sound: heard columns of the audio rows are zero, driven ones stay.

        Args:
            drive_width: ``ModelConfig.drive_width``.

        Raises:
            LiveTalkError: the audio is prepared already, and what was heard cannot be told from what was driven.
        """
        if self.audio is None or drive_width == 0:
            return dataclasses.replace(self, audio=None)
        if isinstance(self.audio, AudioVectors):
            raise LiveTalkError("Prepared audio cannot be silenced. Silence the rows first, then prepare them.")
        kept = torch.zeros(self.audio.shape[-1], device=self.audio.device, dtype=self.audio.dtype)
        kept[-drive_width:] = 1
        return dataclasses.replace(self, audio=self.audio * kept)

    @property
    def portrait(self) -> Tensor:
        """Portrait latent on every frame, ``[B, 16, F, H, W]``."""
        return self.image[:, :-1]
