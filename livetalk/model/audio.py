"""Speech to features: what every audio encoder promises, the published wav2vec2 features, the streaming window.

Features are rows ``[B, S, A]``, one per picture. In a stream an encoder is called on a *fixed* stretch of sound
around a chunk of pictures: some past, the chunk, a little look-ahead. So a feature is a function of the samples
around it and never of how they arrived. ``AudioWindow`` says which stretch; whoever streams keeps the sound.

This module does not know what the rows are used for (the network packs four of them into a latent frame), nor where
weights come from; ``mel`` is the CPU-sized encoder.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from livetalk.config import AudioConfig
from livetalk.model.mel import MelAudioEncoder
from livetalk.model.storage import check_fit
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, LiveTalkError

CONV_STRIDE_SAMPLES = 320
"""Sound samples from one step of wav2vec2's convolutions to the next."""

NORMALISATION_EPS = 1e-7
DITHER_AMPLITUDE = 10 ** (-60 / 20)
"""Faint noise under a streaming window (-60 dBFS): digital silence is something wav2vec2 never heard."""

QUIET_LEVEL = 10 ** (-45 / 20)
"""A window quieter than this is not blown up to full loudness, or pauses would become loud noise."""

BASE_960H: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
"""Sizes of ``facebook/wav2vec2-base-960h`` (spec section 4.3); everything else is the library's default."""


class AudioEncoder(Protocol):
    """What the rest of the house asks of an audio encoder.

    Attributes:
        feature_width: A, numbers per row.
        past_samples: sound needed before the first picture, at ``MODEL_RATE``.
        look_ahead_samples: sound needed after the last picture, at ``MODEL_RATE``.
    """

    feature_width: int
    past_samples: int
    look_ahead_samples: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""

    def __call__(self, window: Tensor, rows: int) -> Tensor:
        """Rows ``[B, rows, A]`` from sound ``[B, past + rows * 1000 + look_ahead]`` at ``MODEL_RATE``."""


def build_audio_encoder(config: AudioConfig, feature_width: int) -> nn.Module:
    """The audio encoder a preset names, with random weights.

    Raises:
        LiveTalkError: the encoder's features are not ``feature_width`` wide.
    """
    if config.kind == "mel":
        return MelAudioEncoder(config, feature_width)
    encoder = Wav2Vec2AudioEncoder(config, BASE_960H)
    if encoder.feature_width != feature_width:
        raise LiveTalkError(
            f"wav2vec2 gives {encoder.feature_width} features a picture, the network wants {feature_width}."
            " Set the network's audio_width to match."
        )
    return encoder


class Wav2Vec2AudioEncoder(nn.Module):
    """Stacked hidden states of wav2vec2 at the picture rate (spec section 4.3).

    Args:
        config: the sound around a chunk.
        sizes: fields of transformers' ``Wav2Vec2Config`` that differ from its defaults.
    """

    def __init__(self, config: AudioConfig, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        # masking is for training only; without it the model has no unused mask vector
        library = Wav2Vec2Config(**{**sizes, "mask_time_prob": 0.0, "mask_feature_prob": 0.0})
        self.net: Any = Wav2Vec2Model(library).eval().requires_grad_(False)
        self.feature_width = (library.num_hidden_layers + 2) * library.hidden_size
        self.past_samples = config.past_samples
        self.look_ahead_samples = config.look_ahead_samples

    def load_original(self, state: Mapping[str, Tensor]) -> Wav2Vec2AudioEncoder:
        """Take the weights of a Hugging Face wav2vec2 file; returns self.

        The prefix ``wav2vec2.``, the speech-to-text head and the mask vector are dropped, both names of the weight
        normalisation are known.

        Raises:
            LiveTalkError: a tensor is missing, not known, or of another shape; the message names it.
        """
        own = self.net.state_dict()
        found = {_current_name(name): tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
        found.pop("masked_spec_embed", None)
        check_fit({name: tensor.shape for name, tensor in own.items()}, found, "wav2vec2")
        self.net.load_state_dict(found)
        return self

    def forward(self, window: Tensor, rows: int) -> Tensor:
        """Rows of a chunk inside a stream.

        The transformer sees the whole window at the picture rate: a row stands at the start of its picture, as
        offline (there the aligned ends shift later rows by up to 25 ms).

        Args:
            window: ``[B, past + rows * 1000 + look_ahead]`` at ``MODEL_RATE``.
            rows: pictures in the chunk.

        Returns:
            ``[B, rows, A]``.
        """
        dithered = window + _dither(window.shape[1]).to(window)
        centred = dithered - dithered.mean(dim=1, keepdim=True)
        level = (centred.square().mean(dim=1, keepdim=True) + QUIET_LEVEL**2).sqrt()
        steps = self.convolutions(centred / level)
        past_rows = self.past_samples // MODEL_SAMPLES_PER_PICTURE
        all_rows = past_rows + rows + self.look_ahead_samples // MODEL_SAMPLES_PER_PICTURE
        first = self.past_samples - past_rows * MODEL_SAMPLES_PER_PICTURE
        samples = first + MODEL_SAMPLES_PER_PICTURE * torch.arange(all_rows, device=window.device)
        resampled = _interpolate_at(steps, samples.to(steps.dtype) / CONV_STRIDE_SAMPLES)
        return self.stack(resampled)[:, past_rows : past_rows + rows]

    def offline(self, waveform: Tensor, pictures: int) -> Tensor:
        """Rows of a whole clip, exactly as published (spec section 4.3).

        Sound shorter than the clip is stretched over it, as published; pad it before if that is not wanted.

        Args:
            waveform: ``[B, samples]`` at ``MODEL_RATE``; what is longer than the clip is cut.
            pictures: ``S = 4F - 3``.

        Returns:
            ``[B, pictures, A]``.
        """
        waveform = waveform[:, : (pictures - 1) * MODEL_SAMPLES_PER_PICTURE]
        return self.stack(self.resample(self.convolutions(self.normalise(waveform)), pictures))

    def normalise(self, waveform: Tensor) -> Tensor:
        """Each waveform ``[B, samples]`` at zero mean and unit variance."""
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + NORMALISATION_EPS).sqrt()

    def convolutions(self, normalised: Tensor) -> Tensor:
        """Steps ``[B, floor((samples - 400) / 320) + 1, 512]`` of a normalised waveform ``[B, samples]``."""
        weight = self.net.feature_extractor.conv_layers[0].conv.weight
        return self.net.feature_extractor(normalised.to(weight.dtype)).transpose(1, 2)

    def resample(self, steps: Tensor, pictures: int) -> Tensor:
        """Linear resampling of ``[B, steps, C]`` to ``[B, pictures, C]`` with aligned ends."""
        channels_first = steps.transpose(1, 2)
        return functional.interpolate(channels_first, pictures, mode="linear", align_corners=True).transpose(1, 2)

    def stack(self, rows: Tensor) -> Tensor:
        """Transformer over resampled rows ``[B, S, C]``; all states side by side ``[B, S, A]``, the last one first too.

        The layers are called one by one because the library's encoder no longer returns its hidden states.
        """
        projected, _ = self.net.feature_projection(rows)
        encoder = self.net.encoder
        hidden = encoder.layer_norm(projected + encoder.pos_conv_embed(projected))
        states = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden)
            states.append(hidden[0] if isinstance(hidden, tuple) else hidden)
            hidden = states[-1]
        return torch.cat([states[-1], *states], dim=-1)


def _current_name(name: str) -> str:
    """Name in today's library of a tensor of a wav2vec2 file of any age."""
    name = name.removeprefix("wav2vec2.")
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = name.replace(f"pos_conv_embed.conv.{old}", f"pos_conv_embed.conv.parametrizations.weight.{new}")
    return name


def _interpolate_at(steps: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation of ``[B, T, C]`` at ``positions`` ``[S]`` in steps, clamped to the ends: ``[B, S, C]``."""
    positions = positions.clamp(0, steps.shape[1] - 1)
    before = positions.floor().long()
    after = (before + 1).clamp(max=steps.shape[1] - 1)
    part = (positions - before).to(steps.dtype)[None, :, None]
    return steps[:, before] * (1 - part) + steps[:, after] * part


@functools.lru_cache(maxsize=4)
def _dither(samples: int) -> Tensor:
    """Always the same faint noise ``[samples]``, even on every machine: a hash of the place in the window."""
    mixed: Any = np.arange(samples, dtype=np.uint64)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)):
        mixed = ((mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    uniform = mixed.astype(np.float64) / 2**31 - 1.0
    return torch.from_numpy((uniform * DITHER_AMPLITUDE * np.sqrt(3.0)).astype(np.float32))


@dataclass(frozen=True)
class AudioWindow:
    """The stretch of a stream's sound that a chunk's features depend on, and those features.

    Positions are absolute samples at ``MODEL_RATE``; sample 0 belongs to the start of picture 0, so a first window
    begins at a negative position. What was never heard (before the stream, gaps, after the end) counts as zeros.

    Attributes:
        encoder: an ``AudioEncoder``; shared, never changed.
    """

    encoder: AudioEncoder

    def span(self, first_picture: int, rows: int) -> tuple[int, int]:
        """Half-open range of samples that the features of ``rows`` pictures from ``first_picture`` on depend on."""
        start = first_picture * MODEL_SAMPLES_PER_PICTURE
        stop = start + rows * MODEL_SAMPLES_PER_PICTURE
        return start - self.encoder.past_samples, stop + self.encoder.look_ahead_samples

    @torch.no_grad()
    def features(self, samples: np.ndarray, rows: int) -> Tensor:
        """Feature rows of a chunk, on the encoder's device.

        Args:
            samples: float32 ``[n]``, exactly the sound of ``span``.
            rows: pictures in the chunk.

        Returns:
            ``[1, rows, A]``.

        Raises:
            ValueError: another number of samples.
        """
        start, stop = self.span(0, rows)
        if samples.shape != (stop - start,):
            raise ValueError(f"{rows} pictures need {stop - start} samples around them, got {samples.shape}")
        window = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)).unsqueeze(0)
        device = next((weight.device for weight in self.encoder.parameters()), window.device)
        return self.encoder(window.to(device), rows)
