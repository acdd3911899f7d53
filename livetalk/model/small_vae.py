"""A video VAE that is small enough for a CPU: 8x smaller in space, 4x in time, 16 channels.

It keeps the layout of the Wan VAE (1 + 4k pictures <-> 1 + k latent frames, causal), so that everything above it is
the same for both. A latent frame is a group of four pictures; the first picture of a stream is a group of itself four
times over, so a portrait's latent is also the latent of four still pictures. Encoder and decoder are a linear map
of 8x8x4 patches (its first values are a principal component analysis, see ``livetalk.distill.vae``) plus a
convolutional residual whose last layer starts at zero. The encoder looks at one group at a time; the decoder also
remembers earlier pictures.

This module does not know where weights come from, how they are trained or how pictures are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from livetalk.config import VaeConfig
from livetalk.types import PICTURES_PER_LATENT, LiveTalkError

PATCH_PIXELS = 8
"""A latent covers this many pixels in height and in width."""

FOLD_PIXELS = 2
"""The convolutions see squares of this many pixels folded into channels."""

FOLDED_CHANNELS = 3 * FOLD_PIXELS**2
DEFAULT_DECODER_WIDTHS = (64, 48, 24)
DEFAULT_ENCODER_WIDTHS = (32, 48, 64)
BLOCKS_PER_STAGE = (3, 2, 2)
"""Memory blocks of the decoder, coarse to fine; the coarse ones are nearly free."""


@dataclass(frozen=True)
class DecoderState:
    """What the decoder remembers between chunks: per memory block the features of the last picture ``[B, C, H, W]``.

    Never changed in place, so an old state stays valid and a caller can go back to it.
    """

    memories: tuple[Tensor, ...]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input; activation before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[N, C, H, W]`` to the same shape."""
        hidden = self.first(functional.relu(features))
        return features + self.second(functional.relu(hidden))


class MemoryBlock(nn.Module):
    """A residual block that also sees the same block's input at the step before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2 * width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor, steps: int, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """One pass over ``steps`` consecutive steps.

        Args:
            features: ``[B * steps, C, H, W]``, steps running fastest.
            memory: the last step seen ``[B, C, H, W]``; None = the stream starts, the past is like the first step.

        Returns:
            New features, and the last step of ``features`` to remember.
        """
        active = functional.relu(features).permute(0, 2, 3, 1)  # channels run fastest: joining costs one plain copy
        rows = active.unflatten(0, (-1, steps))
        before = rows[:, :1] if memory is None else memory.permute(0, 2, 3, 1).unsqueeze(1)
        earlier = torch.cat([before, rows[:, :-1]], dim=1).flatten(0, 1)
        hidden = self.first(torch.cat([active, earlier], dim=-1).permute(0, 3, 1, 2))
        return features + self.second(functional.relu(hidden)), rows[:, -1].clone().permute(0, 3, 1, 2)


class ResidualEncoder(nn.Module):
    """What the linear map of a group of pictures misses, as a correction of its latent."""

    def __init__(self, widths: tuple[int, int, int], latent_channels: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.layers = nn.Sequential(
            nn.Conv2d(PICTURES_PER_LATENT * FOLDED_CHANNELS, fine, 3, padding=1),
            ResidualBlock(fine),
            nn.Conv2d(fine, middle, 2, stride=2),
            ResidualBlock(middle),
            ResidualBlock(middle),
            nn.Conv2d(middle, coarse, 2, stride=2),
            ResidualBlock(coarse),
            ResidualBlock(coarse),
            nn.ReLU(),
        )
        self.out = nn.Conv2d(coarse, latent_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(self, groups: Tensor) -> Tensor:
        """Groups of pictures ``[N, 4 * 3, H, W]`` to corrections ``[N, C, H / 8, W / 8]``."""
        folded = functional.pixel_unshuffle(groups, FOLD_PIXELS)
        return self.out(self.layers(folded))


class ResidualDecoder(nn.Module):
    """What the linear map back to pictures misses; grows 2x in time and space twice, then unfolds pixels."""

    def __init__(self, widths: tuple[int, int, int], latent_channels: int) -> None:
        super().__init__()
        coarse, middle, fine = widths
        self.latent_in = nn.Conv2d(latent_channels, coarse, 3, padding=1)
        self.linear_in = nn.Conv2d(FOLDED_CHANNELS, fine, 3, padding=1)
        self.grow = nn.ModuleList([nn.Conv2d(coarse, 8 * middle, 1), nn.Conv2d(middle, 8 * fine, 1)])
        self.stages = nn.ModuleList(
            nn.ModuleList(MemoryBlock(width) for _ in range(blocks))
            for width, blocks in zip(widths, BLOCKS_PER_STAGE, strict=True)
        )
        self.out = nn.Conv2d(fine, FOLDED_CHANNELS, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(
        self, latents: Tensor, linear: Tensor, frames: int, memories: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Corrections of ``linear`` and the memories after the last picture.

        Args:
            latents: ``[B * F, C, h, w]``, frames running fastest.
            linear: pictures of the linear map, folded ``[B * F * 4, 12, 4h, 4w]``.
            frames: F.
            memories: of the call before, None at the start of a stream.
        """
        kept: list[Tensor] = []
        features, steps = self.latent_in(latents), frames
        for index, stage in enumerate(self.stages):
            if index > 0:
                features, steps = _grow(self.grow[index - 1](features)), 2 * steps
            if index == len(self.stages) - 1:
                features = features + self.linear_in(linear)
            for block in stage.children():
                features, memory = block(features, steps, None if memories is None else memories[len(kept)])
                kept.append(memory)
        return self.out(functional.relu(features)), tuple(kept)


class SmallVideoVAE(nn.Module):
    """Pictures to normalised latents and back; see the module's docstring for the layout.

    Args:
        config: ``widths`` (decoder, coarse to fine) and ``encoder_widths`` (fine to coarse), three each; empty =
            the defaults of this module.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.latent_channels
        values = PICTURES_PER_LATENT * 3 * PATCH_PIXELS**2
        self.linear_encoder = nn.Conv2d(values, channels, 1)
        self.linear_decoder = nn.Conv2d(channels, values, 1)
        self.encoder = ResidualEncoder(_three(config.encoder_widths or DEFAULT_ENCODER_WIDTHS), channels)
        self.decoder = ResidualDecoder(_three(config.widths or DEFAULT_DECODER_WIDTHS), channels)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def prepare_for_inference(self, dtype: torch.dtype) -> SmallVideoVAE:
        """Convert the convolutions once to ``dtype`` and the memory layout that CPUs like; returns self.

        The two linear maps stay in float32: they are cheap, and pictures rounded to 8 bits of mantissa show bands.
        """
        self.requires_grad_(False).eval()
        self.encoder.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.decoder.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def encode(self, video: Tensor) -> Tensor:
        """Latents of a clip, the same for the same pictures (nothing is sampled).

        Args:
            video: ``[B, 3, 1 + 4k, H, W]`` in -1..1; height and width multiples of 8.

        Returns:
            ``[B, C, 1 + k, H / 8, W / 8]`` of about zero mean and unit variance in each channel.

        Raises:
            LiveTalkError: wrong number of pictures or wrong size.
        """
        _check_video(video)
        batch = video.shape[0]
        still = video[:, :, :1].expand(-1, -1, PICTURES_PER_LATENT - 1, -1, -1)
        groups = torch.cat([still, video], dim=2).transpose(1, 2).unflatten(1, (-1, PICTURES_PER_LATENT))
        groups = groups.flatten(0, 1).flatten(1, 2)
        folded = functional.pixel_unshuffle(groups, PATCH_PIXELS)
        raw = self.linear_encoder(folded.to(self.linear_encoder.weight.dtype))
        work = self.encoder.out.weight.dtype
        raw = raw.float() + self.encoder(_channels_last(groups.to(work))).float()
        normal = (raw - self.mean.float()) / self.std.float()
        return normal.unflatten(0, (batch, -1)).transpose(1, 2)

    def encode_image(self, image: Tensor) -> Tensor:
        """Latent ``[B, C, 1, h, w]`` of one picture ``[B, 3, H, W]`` in -1..1: a clip of that picture alone."""
        return self.encode(image.unsqueeze(2))

    def decode_chunk(
        self,
        latents: Tensor,
        state: DecoderState | None,
        *,
        spend: bool = False,  # noqa: ARG002 (states are small here)
    ) -> tuple[Tensor, DecoderState]:
        """Pictures of the next latent frames of a stream.

        Args:
            latents: ``[B, C, F, h, w]`` as ``encode`` gives them.
            state: what the previous call returned; None = the stream starts, and its first frame is one picture.

        Returns:
            Float32 pictures ``[B, 3, T, 8h, 8w]`` in -1..1 (``T = 4F``, or ``4F - 3`` at the start), and the new state.
        """
        batch, frames = latents.shape[0], latents.shape[2]
        normal = latents.float().transpose(1, 2).flatten(0, 1)
        raw = normal * self.std.float() + self.mean.float()
        linear = functional.pixel_shuffle(
            self.linear_decoder(raw.to(self.linear_decoder.weight.dtype)), PATCH_PIXELS // FOLD_PIXELS
        )
        linear = linear.reshape(-1, FOLDED_CHANNELS, *linear.shape[-2:])
        work = self.decoder.out.weight.dtype
        memories = None if state is None else state.memories
        coarse, fine = _channels_last(normal.to(work)), _channels_last(linear.to(work))
        residual, kept = self.decoder(coarse, fine, frames, memories)
        folded = linear.float() + residual.float()
        pictures = functional.pixel_shuffle(folded, FOLD_PIXELS).unflatten(0, (batch, -1)).transpose(1, 2)
        if state is None:
            pictures = pictures[:, :, PICTURES_PER_LATENT - 1 :]
        if not self.training:
            pictures = pictures.clamp(-1.0, 1.0)
        return pictures, DecoderState(kept)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[B, 3, 4F - 3, 8h, 8w]`` of a whole clip of latents ``[B, C, F, h, w]``."""
        return self.decode_chunk(latents, None)[0]


def _grow(features: Tensor) -> Tensor:
    """Channels into two steps in time and 2x2 in space: ``[N, 8C, H, W]`` to ``[2N, C, 2H, 2W]``."""
    count, channels, height, width = features.shape
    split = features.permute(0, 2, 3, 1).reshape(count, height, width, 2, 2, 2, channels // 8)
    # axes: N H W time row column C -> N time H row W column C, which is channels_last of the grown picture
    moved = split.permute(0, 3, 1, 4, 2, 5, 6).reshape(2 * count, 2 * height, 2 * width, channels // 8)
    return moved.permute(0, 3, 1, 2)


def _channels_last(features: Tensor) -> Tensor:
    return features.contiguous(memory_format=torch.channels_last)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _three(widths: tuple[int, ...]) -> tuple[int, int, int]:
    """The three widths of a half of the VAE.

    Raises:
        LiveTalkError: another number of widths.
    """
    if len(widths) != 3:
        raise LiveTalkError(f"The small VAE has three widths in each half, the config gives {widths}. Give three.")
    return widths[0], widths[1], widths[2]


def _check_video(video: Tensor) -> None:
    """Refuse clips the layout has no latents for."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise LiveTalkError(f"A clip must be [B, 3, T, H, W], this one is {list(video.shape)}. Reorder its axes.")
    pictures, height, width = video.shape[2:]
    if pictures % PICTURES_PER_LATENT != 1:
        raise LiveTalkError(f"A clip must have 1 + 4k pictures, this one has {pictures}. Cut it to fit.")
    if height % PATCH_PIXELS or width % PATCH_PIXELS:
        raise LiveTalkError(
            f"Pictures must have sides that are multiples of {PATCH_PIXELS}, these are {height}x{width}. Resize them."
        )
