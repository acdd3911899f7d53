"""Training of the small video VAE on drawn faces: closed-form start, then encoder and decoder, then decoder alone.

The first values of the two linear maps are a principal component analysis of 8x8x4 patches, weighted towards mouth
and eyes; it costs seconds and is already better than an hour of training from random values. The convolutional
residuals then learn what a linear map loses, above all the motion inside a group of four pictures; Muon trains their
kernels. Noise on the latents takes the place of a KL term. Afterwards the latents are normalised, the encoder is
frozen, and the decoder may go on alone.

This module does not know the generator, sound, or how faces are drawn: it reads a pool of clips from disk.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from livetalk.config import VaeConfig
from livetalk.distill.clip_pool import ClipPool, CropSettings, draw_pool
from livetalk.distill.learner import save_tensors
from livetalk.distill.loop import Loop, LoopConfig, run_ranks
from livetalk.distill.optimisers import convolutions
from livetalk.model.small_vae import FOLD_PIXELS, FOLDED_CHANNELS, PATCH_PIXELS, SmallVideoVAE
from livetalk.types import PICTURES_PER_LATENT

log = logging.getLogger(__name__)

MOTION_WEIGHT = 12.0
"""Weight of a pixel per unit of its deviation from its mean over the clip; a mouth's pixels reach about 4."""


@dataclass(frozen=True)
class VaeTraining:
    """How one part of the training goes.

    Attributes:
        loop: length and rates; "Muon" is for the convolutions' kernels.
        freeze_encoder: train the decoder alone.
        crops: how batches are cut from the clips.
        latent_noise: largest standard deviation of the noise on normalised latents; each clip draws its own below it.
    """

    loop: LoopConfig
    freeze_encoder: bool = False
    crops: CropSettings = field(default_factory=CropSettings)
    latent_noise: float = 0.10


def start_from_components(
    vae: SmallVideoVAE, pool: ClipPool, clips: int = 400, motion_gain: float = 2.5, seed: int = 0
) -> Tensor:
    """Set both linear maps to the principal components of weighted 8x8x4 patches, and the latents' scale.

    Args:
        vae: changed in place.
        pool: clips to take patches from.
        clips: number of crops.
        motion_gain: how much louder motion inside a group counts than what stands still. With 1, almost all components
            are still pictures, and training hardly ever finds its way from there to lips that move.
        seed: which crops.

    Returns:
        Share of the weighted variance that each component explains, largest first, ``[768]``.
    """
    rng = np.random.default_rng(seed)
    side = min(CropSettings.pixels, *pool.pictures.shape[2:4])
    one = CropSettings(batch=1, pixels=side, pictures=min(CropSettings.pictures, pool.pictures.shape[1]))
    rows, weights = [], []
    for _ in range(clips):
        video, weight = pool.crops(rng, one)
        groups = _groups(video)
        rows.append(functional.pixel_unshuffle(groups, PATCH_PIXELS).permute(0, 2, 3, 1).flatten(0, 2))
        mean_weight = functional.avg_pool2d(_groups(weight).mean(1, keepdim=True), PATCH_PIXELS)
        weights.append(mean_weight.flatten())
    patches, weight = torch.cat(rows), torch.cat(weights)
    weight = (weight / weight.sum())[:, None]
    average = (weight * patches).sum(0)
    centred = _scale_motion(patches - average, motion_gain) * weight.sqrt()
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values, vectors = values.flip(0).clamp_min(1e-9), vectors.flip(1)
    basis = vectors[:, : vae.std.shape[1]].T
    _set_linear_maps(vae, average, _scale_motion(basis, motion_gain), _scale_motion(basis, 1.0 / motion_gain))
    with torch.no_grad():
        vae.mean.zero_()
        vae.std.copy_(values[: len(basis)].sqrt().reshape(vae.std.shape))
    return values / values.sum()


def _scale_motion(patches: Tensor, gain: float) -> Tensor:
    """Patches ``[N, 768]`` whose deviation from the mean of the four pictures is ``gain`` times as large."""
    pictures = patches.unflatten(1, (PICTURES_PER_LATENT, -1))
    still = pictures.mean(1, keepdim=True)
    return (still + gain * (pictures - still)).flatten(1)


@torch.no_grad()
def _set_linear_maps(vae: SmallVideoVAE, average: Tensor, forth: Tensor, back: Tensor) -> None:
    """Encoder ``forth (x - average)`` and decoder ``average + back^T z``; both maps ``[C, 768]``."""
    vae.linear_encoder.weight.copy_(forth[:, :, None, None])
    vae.linear_encoder.bias.copy_(-(forth @ average))  # type: ignore[union-attr]
    order = _decoder_order()
    vae.linear_decoder.weight.copy_(back.T[order][:, :, None, None])
    vae.linear_decoder.bias.copy_(average[order])  # type: ignore[union-attr]


def _decoder_order() -> Tensor:
    """For each output of the linear decoder, which input of the linear encoder holds the same pixel."""
    values = PICTURES_PER_LATENT * 3 * PATCH_PIXELS**2
    index = torch.arange(values, dtype=torch.float32).reshape(1, values, 1, 1)
    pixels = functional.pixel_shuffle(index, PATCH_PIXELS).reshape(PICTURES_PER_LATENT, 3, PATCH_PIXELS, PATCH_PIXELS)
    folded = functional.pixel_unshuffle(pixels, FOLD_PIXELS).reshape(1, PICTURES_PER_LATENT * FOLDED_CHANNELS, 4, 4)
    return functional.pixel_unshuffle(folded, PATCH_PIXELS // FOLD_PIXELS).flatten().long()


def _groups(video: Tensor) -> Tensor:
    """Groups of four as the encoder sees them: ``[B, C, 1 + 4k, H, W]`` to ``[B * (1 + k), 4 * C, H, W]``."""
    still = video[:, :, :1].expand(-1, -1, PICTURES_PER_LATENT - 1, -1, -1)
    whole = torch.cat([still, video], dim=2).transpose(1, 2)
    return whole.unflatten(1, (-1, PICTURES_PER_LATENT)).flatten(0, 1).flatten(1, 2)


def reconstruction_loss(pictures: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 + 2 L2 + 0.5 L1 of edges + 0.5 L1 of the change from picture to picture; moving pixels weigh more.

    Args:
        pictures: ``[B, 3, T, H, W]``.
        truth: the same shape.
        weight: ``[B, 1, T, H, W]``.
    """
    error = pictures - truth
    moving = (truth - truth.mean(2, keepdim=True)).abs().mean(1, keepdim=True)
    weight = weight + MOTION_WEIGHT * moving
    total = weight.mean()
    plain = (weight * (error.abs() + 2.0 * error.square())).mean()
    down = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
    across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    change = (weight[:, :, 1:] * error.diff(dim=2).abs()).mean()
    return (plain + 0.5 * (down + across) + 0.5 * change) / total


class VaeLoss:
    """Draws crops from a pool and gives the loss of encoding, noise and decoding (a ``BatchLoss``).

    Args:
        pool: training clips.
        training: see ``VaeTraining``.
    """

    def __init__(self, pool: ClipPool, training: VaeTraining) -> None:
        self.pool, self.training = pool, training

    def __call__(self, vae: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a fresh batch; the figure is the mean error of a picture, 0..2."""
        assert isinstance(vae, SmallVideoVAE)
        video, weight = self.pool.crops(_numpy_draws(draws), self.training.crops)
        strength = self.training.latent_noise * torch.rand(len(video), 1, 1, 1, 1, generator=draws)
        device = vae.mean.device
        video, weight = video.to(device), weight.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training.freeze_encoder):
                latents = vae.encode(video)
            noise = strength * torch.randn(latents.shape, generator=draws)
            pictures = vae.decode(latents + noise.to(device))
        loss = reconstruction_loss(pictures.float(), video, weight)
        if not self.training.freeze_encoder:
            loss = loss + 0.01 * _scale_penalty(latents.float())
        return loss, {"error": float((pictures.detach().float() - video).abs().mean())}


def _numpy_draws(draws: torch.Generator) -> np.random.Generator:
    """A numpy generator that follows from a torch one."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=draws)))


def _scale_penalty(latents: Tensor) -> Tensor:
    """Keeps the latents' size where the noise expects it: grows when a channel leaves zero mean and unit variance."""
    mean, variance = latents.mean((0, 2, 3, 4)), latents.var((0, 2, 3, 4))
    return mean.square().mean() + variance.clamp_min(1e-4).log().square().mean()


@dataclass(frozen=True)
class VaeRecipe:
    """The whole recipe.

    Attributes:
        clips: clips of the pool, with seeds from ``first_seed`` on.
        clip_pictures: pictures of a clip.
        picture_pixels: side of a picture.
        start_crops: crops the principal components are taken from.
        ranks: processes that train together; 0 = see ``run_ranks``.
        joint: encoder and decoder together; afterwards the encoder is frozen and the latents normalised.
        decoder: the decoder alone, on longer crops that lie anywhere more often: hair and backgrounds get crisp.
            None = leave it out.
    """

    clips: int = 1400
    clip_pictures: int = 17
    picture_pixels: int = 128
    first_seed: int = 200_000
    start_crops: int = 400
    ranks: int = 2
    joint: VaeTraining = field(default_factory=lambda: VaeTraining(_loop(budget_s=3_000.0)))
    decoder: VaeTraining | None = None


def _loop(budget_s: float) -> LoopConfig:
    """Length and rates that proved good on a pool of 128-pixel clips, with two ranks of eight crops."""
    return LoopConfig(
        budget_s=budget_s,
        learning_rate=1e-3,
        matrix_rate=0.005,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        warmup_steps=20,
        last_rate=0.02,
        average_decay=0.99,
        late_average_decay=0.995,
        checkpoint_every_s=120.0,
    )


def train_vae(folder: Path, config: VaeConfig, recipe: VaeRecipe) -> Path:
    """All parts one after the other; what ``folder`` already holds is not done again.

    Returns:
        The weights, ``vae.safetensors`` in ``folder``; those of the frozen encoder are ``encoder.safetensors``.
    """
    if not (folder / "pool" / "spots.npy").is_file():
        seeds = range(recipe.first_seed, recipe.first_seed + recipe.clips)
        draw_pool(folder / "pool", seeds, recipe.clip_pictures, recipe.picture_pixels)
    pool = ClipPool.open(folder / "pool")
    start, frozen, result = (folder / f"{name}.safetensors" for name in ("start", "encoder", "vae"))
    vae = SmallVideoVAE(config)
    if not start.is_file():
        torch.manual_seed(recipe.joint.loop.seed)
        vae = SmallVideoVAE(config)
        shares = start_from_components(vae, pool, recipe.start_crops, seed=recipe.joint.loop.seed)
        log.info("principal components explain %.3f", float(shares[: config.latent_channels].sum()))
        save_tensors(start, vae.state_dict())
    if not frozen.is_file():
        run_ranks(recipe.ranks, train_part, folder, "joint", start, config, recipe.joint)
        vae.load_state_dict(load_file(folder / "joint" / "vae.safetensors"))
        normalise_latents(vae, pool, clips=min(64, len(pool.pictures)))
        save_tensors(frozen, vae.state_dict())
    last = frozen
    if recipe.decoder is not None:
        run_ranks(recipe.ranks, train_part, folder, "decoder", frozen, config, recipe.decoder)
        last = folder / "decoder" / "vae.safetensors"
    save_tensors(result, load_file(last))
    return result


def train_part(folder: Path, part: str, start: Path, config: VaeConfig, training: VaeTraining) -> None:
    """One part of the training, or what is left of it. Call it once in every rank.

    Args:
        folder: of the VAE; its ``pool`` is trained on, its folder ``part`` receives the run and ``vae.safetensors``.
        part: name of the run.
        start: weights to begin with.
        config: sizes.
        training: how.
    """
    vae = SmallVideoVAE(config)
    vae.load_state_dict(load_file(start))
    vae.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for module in (vae.linear_encoder, vae.encoder):
        module.requires_grad_(not training.freeze_encoder)
    describe: dict[str, object] = {"stage": f"vae, {part}", "vae": asdict(config), "training": asdict(training)}
    loss = VaeLoss(ClipPool.open(folder / "pool"), training)
    loop = Loop(vae, loss, training.loop, folder / part, describe, matrices=convolutions)
    loop.run(lambda now: save_tensors(folder / part / "vae.safetensors", now.averaged()))


@torch.no_grad()
def normalise_latents(vae: SmallVideoVAE, pool: ClipPool, clips: int) -> None:
    """Set the latents' scale from whole clips: zero mean and unit variance in each channel.

    The residual half of the decoder reads normalised latents, so its first layer is rescaled to see what it saw before.
    """
    sums, squares, count = torch.zeros(()), torch.zeros(()), 0
    for clip in np.linspace(0, len(pool.pictures) - 1, clips).round().astype(int):
        video = torch.from_numpy(np.array(pool.pictures[clip])).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        latents = vae.encode(video).transpose(0, 1).flatten(1)
        sums, squares, count = sums + latents.sum(1), squares + latents.square().sum(1), count + latents.shape[1]
    mean = sums / count
    std = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
    rescale_latents(vae, mean, std)


@torch.no_grad()
def rescale_latents(vae: SmallVideoVAE, mean: Tensor, std: Tensor) -> None:
    """Make ``(latent - mean) / std`` (each ``[C]``, in today's units) the new latent; pictures stay as they are,

    except at the border, where the decoder's first layer pads with the new zero.
    """
    first = vae.decoder.latent_in
    first.bias.add_((first.weight * mean[None, :, None, None]).sum((1, 2, 3)))  # type: ignore[union-attr]
    first.weight.mul_(std[None, :, None, None])
    vae.mean.add_(vae.std * mean.reshape(vae.mean.shape))
    vae.std.mul_(std.reshape(vae.std.shape))
