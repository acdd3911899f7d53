"""A tiny decoder for the latents of the Wan 2.1 VAE: a twenty-fifth of its work, a little less detail.

The network is that of TAEHV (madebyollin/taehv, MIT; weights ``taew2_1``), written anew after its published
description; names are those of its weight file. Convolutions see one picture and what a block saw of the picture
before, so the state between two calls is one small tensor for each block. It takes normalised latents as they are.

This module does not know where weights come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk.model.storage import check_fit
from livetalk.model.vae import WanVideoVAE
from livetalk.types import PICTURES_PER_LATENT

WIDTHS = (256, 128, 64, 64)
"""Channels of the three stages, coarse to fine, and of the last layers."""
TIME_STEPS = (1, 2, 2)
"""How many pictures a stage makes of one; together those of a latent frame."""
BLOCKS = 3
LARGEST_LATENT = 3.0
"""Latents are bent towards this: beyond it the network saw none."""

State = tuple[Tensor, ...]
"""What each block saw last, ``[B, 1, width, height, width]``."""


def _convolution(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class SoftLimit(nn.Module):
    """A smooth limit to the size of latents."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return torch.tanh(x / LARGEST_LATENT) * LARGEST_LATENT


class RememberingBlock(nn.Module):
    """A residual block that sees a picture and the one before it.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [_convolution(2 * width, width), nn.ReLU(), _convolution(width, width), nn.ReLU()]
        self.conv = nn.Sequential(*layers, _convolution(width, width))

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures ``[B, T, C, H, W]`` and the one before them to the same number, and what comes before the next."""
        past = torch.cat((before, x[:, :-1]), dim=1)
        seen = torch.cat((x, past), dim=2).flatten(0, 1)
        return F.relu(self.conv(seen).view(x.shape) + x), x[:, -1:].clone()


class TimeGrowth(nn.Module):
    """One picture becomes several.

    Args:
        width: channels.
        steps: pictures for one.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(width, width * steps, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N * steps, C, H, W]``, pictures in their order."""
        return self.conv(x).unflatten(1, (self.steps, -1)).flatten(0, 1)


class TinyDecoder(nn.Module):
    """Latents to pictures with a state that is handed in and out.

    Args:
        latent_channels: of the VAE.
    """

    def __init__(self, latent_channels: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftLimit(), _convolution(latent_channels, WIDTHS[0]), nn.ReLU()]
        for width, wider, steps in zip(WIDTHS, WIDTHS[1:], TIME_STEPS, strict=False):
            layers += [RememberingBlock(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), TimeGrowth(width, steps), _convolution(width, wider, bias=False)]
        layers += [nn.ReLU(), _convolution(WIDTHS[-1], 3)]
        self.decoder = nn.ModuleList(layers)

    @classmethod
    def from_original(cls, state: Mapping[str, Tensor], source: str) -> TinyDecoder:
        """The decoder in a state dict with the names of ``taew2_1``; its encoder is not needed.

        Args:
            state: of the whole file.
            source: its name, for the message.

        Raises:
            LiveTalkError: a tensor is missing, not known, or of another shape; the message names it.
        """
        with torch.device("meta"):
            network = cls()
        own = network.state_dict()
        found = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
        for name, tensor in found.items():
            if name in own and tensor.shape[0] > own[name].shape[0]:  # a layer that could make more pictures
                found[name] = tensor[-own[name].shape[0] :]
        check_fit({name: tensor.shape for name, tensor in own.items()}, found, source)
        network.load_state_dict(found, assign=True)
        return network.requires_grad_(False).eval()

    def decode_chunk(self, latents: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See ``VideoVAE``; pictures float32 in -1..1."""
        weight = next(self.parameters())
        batch = latents.shape[0]
        x = latents.to(weight.dtype).transpose(1, 2).flatten(0, 1)
        kept: list[Tensor] = []
        for layer in self.decoder:
            if isinstance(layer, RememberingBlock):
                pictures = x.unflatten(0, (batch, -1))
                before = torch.zeros_like(pictures[:, :1]) if state is None else state[len(kept)]
                pictures, after = layer(pictures, before)
                kept.append(after)
                x = pictures.flatten(0, 1)
            else:
                x = layer(x)
        pictures = x.float().clamp(0, 1).mul(2).sub(1).unflatten(0, (batch, -1)).transpose(1, 2)
        return (pictures[:, :, PICTURES_PER_LATENT - 1 :] if state is None else pictures), tuple(kept)


class TinyDecodedVAE(nn.Module):
    """A ``VideoVAE`` whose pictures come from a tiny decoder.

    Args:
        full: whose encoder is used; it loses its decoder.
        tiny: decodes.
    """

    def __init__(self, full: WanVideoVAE, tiny: TinyDecoder) -> None:
        super().__init__()
        self.full, self.tiny = full.without_decoder(), tiny

    def encode_image(self, image: Tensor) -> Tensor:
        """See ``VideoVAE``."""
        return self.full.encode_image(image)

    def encode(self, video: Tensor) -> Tensor:
        """See ``VideoVAE``."""
        return self.full.encode(video)

    def decode_chunk(self, latents: Tensor, state: Any, *, spend: bool = False) -> tuple[Tensor, Any]:  # noqa: ARG002 (states are small)
        """See ``VideoVAE``."""
        return self.tiny.decode_chunk(latents, state)

    def decode(self, latents: Tensor) -> Tensor:
        """See ``VideoVAE``."""
        return self.tiny.decode_chunk(latents, None)[0]

    def prepare_for_inference(self, dtype: torch.dtype) -> TinyDecodedVAE:
        """See ``VideoVAE``."""
        self.full.prepare_for_inference(dtype)
        self.tiny.requires_grad_(False).eval().to(dtype)
        return self
