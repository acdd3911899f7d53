"""Video VAEs behind one door: what every VAE promises, and the Wan 2.1 VAE of the published model.

A VAE turns 1 + 4k pictures into 1 + k latent frames, 8x smaller in space, and back, causally in time. Latents are
normalised (about zero mean, unit variance per channel). Decoding is a function of latents and a state that the caller
keeps, so that two streams never meet and any earlier state can be taken up again.

This module does not know where weights come from, nor how pictures are shown; ``small_vae`` is the CPU-sized VAE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from livetalk.config import VaeConfig
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.model.storage import check_fit
from livetalk.types import PICTURES_PER_LATENT, LiveTalkError

WAN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
"""Mean of each latent channel of the Wan 2.1 VAE (spec section 4.1)."""

WAN_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""Standard deviation of each latent channel of the Wan 2.1 VAE (spec section 4.1)."""


class VideoVAE(Protocol):
    """What the rest of the house asks of a video VAE. Shapes: latents ``[B, C, F, h, w]``, pictures -1..1."""

    def encode_image(self, image: Tensor) -> Tensor:
        """Latent ``[B, C, 1, h, w]`` of one picture ``[B, 3, H, W]``."""

    def encode(self, video: Tensor) -> Tensor:
        """Latents of a clip ``[B, 3, 1 + 4k, H, W]``; nothing is sampled."""

    def decode_chunk(self, latents: Tensor, state: Any, *, spend: bool = False) -> tuple[Tensor, Any]:
        """Pictures ``[B, 3, T, 8h, 8w]`` of the next latent frames, and the state for the frames after them.

        ``state`` is None at the start of a stream, where the first latent frame is one picture and all others are
        four. It is never changed, unless ``spend`` says that nobody needs it again; that saves memory.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of a whole clip of latents."""

    def prepare_for_inference(self, dtype: torch.dtype) -> Any:
        """Freeze the weights and convert the heavy part to ``dtype`` once; returns self."""


def build_vae(config: VaeConfig) -> nn.Module:
    """The VAE a preset names, with random weights."""
    return SmallVideoVAE(config) if config.kind == "small" else WanVideoVAE(base_dim=config.base_width)


class WanVideoVAE(nn.Module):
    """The Wan 2.1 VAE (diffusers ``AutoencoderKLWan``) with states handed in and out (spec sections 4.4, 14).

    Args:
        mean, std: normalisation of each latent channel.
        sizes: constructor arguments of ``AutoencoderKLWan``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = WAN_MEAN, std: Sequence[float] = WAN_STD, **sizes: Any) -> None:
        super().__init__()
        from diffusers import AutoencoderKLWan

        self.net = cast("Any", AutoencoderKLWan(**sizes))
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1, 1), persistent=False)
        self._encoder_slots = _causal_convolutions(self.net.encoder)
        self._decoder_slots = _causal_convolutions(self.net.decoder)

    @classmethod
    def from_original(
        cls, state: Mapping[str, Tensor], mean: Sequence[float] = WAN_MEAN, std: Sequence[float] = WAN_STD
    ) -> WanVideoVAE:
        """The VAE in a state dict with the names of ``Wan2.1_VAE.pth``; sizes are read from it.

        Raises:
            LiveTalkError: a tensor is missing, not known, or of another shape; the message names it.
        """
        sizes = _sizes_from_names(state)
        with torch.device("meta"):
            vae = cls(mean, std, **sizes)
        converted = {_library_name(name, sizes["num_res_blocks"]): tensor for name, tensor in state.items()}
        check_fit({name: tensor.shape for name, tensor in vae.net.state_dict().items()}, converted, "Wan2.1_VAE.pth")
        vae.net.load_state_dict(converted, assign=True)
        vae.mean = torch.tensor(mean).view(1, -1, 1, 1, 1)
        vae.std = torch.tensor(std).view(1, -1, 1, 1, 1)
        return vae.requires_grad_(False).eval()

    def prepare_for_inference(self, dtype: torch.dtype) -> WanVideoVAE:
        """Freeze the weights and convert the network to ``dtype``; normalisation stays float32. Returns self."""
        self.requires_grad_(False).eval()
        nn.Module.to(self.net, dtype)  # the library's own warns of an empty list
        return self

    def without_decoder(self) -> WanVideoVAE:
        """Drop what only decoding needs, which then cannot be done any more; returns self."""
        self.net.decoder = nn.Identity()
        return self

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def encode(self, video: Tensor) -> Tensor:
        """Normalised posterior mean of a clip.

        Args:
            video: ``[B, 3, 1 + 4k, H, W]`` in -1..1; height and width multiples of 8.

        Returns:
            Float32 ``[B, C, 1 + k, H / 8, W / 8]``.

        Raises:
            LiveTalkError: wrong number of pictures or wrong size.
        """
        if video.ndim != 5 or video.shape[2] % PICTURES_PER_LATENT != 1 or video.shape[3] % 8 or video.shape[4] % 8:
            raise LiveTalkError(
                f"A clip must be [B, 3, 1 + 4k, H, W] with sides that are multiples of 8, this one is"
                f" {list(video.shape)}. Cut and resize it."
            )
        memory: list[Any] = [None] * self._encoder_slots
        groups = [1] + [PICTURES_PER_LATENT] * (video.shape[2] // PICTURES_PER_LATENT)
        steps = [
            self.net.encoder(group, feat_cache=memory, feat_idx=[0])
            for group in video.to(self._dtype).split(groups, dim=2)
        ]
        moments = self.net.quant_conv(torch.cat(steps, dim=2)).float()
        return (moments.chunk(2, dim=1)[0] - self.mean) / self.std

    def encode_image(self, image: Tensor) -> Tensor:
        """Latent ``[B, C, 1, h, w]`` of one picture ``[B, 3, H, W]`` in -1..1."""
        return self.encode(image.unsqueeze(2))

    def decode_chunk(
        self, latents: Tensor, state: list[Any] | None, *, spend: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Pictures of the next latent frames of a stream, one latent frame at a time.

        Args:
            latents: ``[B, C, F, h, w]``, normalised.
            state: what the previous call returned; None at the start of a stream.
            spend: the state is turned into the new one, slot by slot, instead of staying beside it.

        Returns:
            Float32 pictures ``[B, 3, T, 8h, 8w]`` in -1..1 and the new state. The library puts new tensors into the
            list it is given and never writes into old ones, so a copied list leaves the earlier state valid.
        """
        starts = state is None
        memory: list[Any] = [None] * self._decoder_slots if state is None else state if spend else list(state)
        latents = self.net.post_quant_conv((latents.float() * self.std + self.mean).to(self._dtype))
        pictures = [
            self.net.decoder(
                latents[:, :, frame : frame + 1],
                feat_cache=memory,
                feat_idx=[0],
                first_chunk=starts and frame == 0,
            )
            for frame in range(latents.shape[2])
        ]
        return torch.cat(pictures, dim=2).float().clamp(-1.0, 1.0), memory

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[B, 3, 4F - 3, 8h, 8w]`` of a whole clip of latents ``[B, C, F, h, w]``."""
        return self.decode_chunk(latents, None)[0]


def _causal_convolutions(network: nn.Module) -> int:
    """Number of memory slots the library's frame-by-frame pass uses: one for each causal convolution."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return sum(isinstance(module, WanCausalConv3d) for module in network.modules())


def _sizes_from_names(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of ``AutoencoderKLWan`` that fit a state dict with the original names.

    A stage of the encoder is some residual layers followed by one resampling layer (none after the last stage); a
    resampling layer that has a ``time_conv`` also halves time.
    """
    try:
        base, latent_channels = state["encoder.conv1.weight"].shape[0], state["conv2.weight"].shape[0]
        layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.downsamples."))
    except (KeyError, ValueError) as error:
        raise LiveTalkError(
            f"This is no Wan VAE: it lacks {error}. Expected the tensors of Wan2.1_VAE.pth. Download the file again."
        ) from error
    widths: list[int] = []
    temporal: list[bool] = []
    residuals = 0
    for layer in range(layers):
        prefix = f"encoder.downsamples.{layer}."
        if prefix + "resample.1.weight" in state:
            temporal.append(prefix + "time_conv.weight" in state)
        elif prefix + "residual.6.weight" in state:
            width = state[prefix + "residual.6.weight"].shape[0]
            if len(widths) == len(temporal):
                widths.append(width)
            residuals += 1
    return {
        "base_dim": base,
        "z_dim": latent_channels,
        "dim_mult": [width // base for width in widths],
        "num_res_blocks": residuals // max(1, len(widths)),
        "temperal_downsample": temporal,
        "latents_mean": [0.0] * latent_channels,
        "latents_std": [1.0] * latent_channels,
    }


_INSIDE_RESIDUAL = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_OUTSIDE = {
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
    "encoder.conv1.": "encoder.conv_in.",
    "decoder.conv1.": "decoder.conv_in.",
    "encoder.head.0.": "encoder.norm_out.",
    "decoder.head.0.": "decoder.norm_out.",
    "encoder.head.2.": "encoder.conv_out.",
    "decoder.head.2.": "decoder.conv_out.",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def _library_name(name: str, residuals_per_stage: int) -> str:
    """Name in diffusers of a tensor of the original file; unknown names pass through and are refused later."""
    for old, new in _OUTSIDE.items():
        if name.startswith(old):
            return new + name[len(old) :]
    match = re.fullmatch(r"(encoder|decoder)\.(downsamples|middle|upsamples)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    half, place, number, rest = match.groups()
    for old, new in _INSIDE_RESIDUAL.items():
        if rest.startswith(old):
            rest = new + rest[len(old) :]
            break
    if place == "downsamples":
        return f"{half}.down_blocks.{number}.{rest}"
    if place == "middle":
        return f"{half}.mid_block.{_MIDDLE.get(number, number)}.{rest}"
    # a decoder stage is one residual layer more than an encoder stage, then one resampling layer
    stage, layer = divmod(int(number), residuals_per_stage + 2)
    inside = f"resnets.{layer}" if layer <= residuals_per_stage else "upsamplers.0"
    return f"{half}.up_blocks.{stage}.{inside}.{rest}"
