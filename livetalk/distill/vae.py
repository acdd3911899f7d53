"""Training of the small video VAE on drawn faces: closed-form start, then encoder and decoder, then decoder alone.

The first values of the two linear maps are a principal component analysis of 8x8x4 patches, weighted towards mouth
and eyes; it costs seconds and is already better than an hour of training from random values. The convolutional
residuals then learn what a linear map loses, above all the motion inside a group of four pictures. Noise on the
latents takes the place of a KL term. The learning rate follows the time spent, so a run always anneals to the end
however busy the machine is, and continues exactly where a checkpoint left it.

This module does not know the generator, sound, or how faces are drawn: it reads a pool of clips from disk.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from livetalk.config import VaeConfig
from livetalk.distill.clip_pool import ClipPool, CropSettings, draw_pool
from livetalk.model.small_vae import FOLD_PIXELS, FOLDED_CHANNELS, PATCH_PIXELS, SmallVideoVAE
from livetalk.types import PICTURES_PER_LATENT

LOGGER = logging.getLogger(__name__)

MOTION_WEIGHT = 12.0
"""Weight of a pixel per unit of its deviation from its mean over the clip; a mouth's pixels reach about 4."""


@dataclass(frozen=True)
class VaeTraining:
    """How one stage is trained.

    Attributes:
        budget_s: time the learning rate anneals over; training ends with it.
        freeze_encoder: train the decoder alone.
        crops: how batches are cut from the clips.
        latent_noise: largest standard deviation of the noise on normalised latents; each clip draws its own below it.
        checkpoint_s: time between two checkpoints.
    """

    budget_s: float
    freeze_encoder: bool = False
    learning_rate: float = 1.8e-3
    crops: CropSettings = field(default_factory=CropSettings)
    latent_noise: float = 0.14
    checkpoint_s: float = 120.0
    warm_up_steps: int = 40
    seed: int = 0


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


def training_step(vae: SmallVideoVAE, video: Tensor, weight: Tensor, training: VaeTraining) -> Tensor:
    """Loss of one batch ``[B, 3, T, H, W]`` after encoding, noise and decoding (scalar, with gradient)."""
    with torch.autocast(video.device.type, dtype=torch.bfloat16):
        if training.freeze_encoder:
            with torch.no_grad():
                latents = vae.encode(video)
        else:
            latents = vae.encode(video)
        strength = training.latent_noise * torch.rand(len(video), 1, 1, 1, 1, device=video.device)
        pictures = vae.decode(latents + strength * torch.randn_like(latents))
    loss = reconstruction_loss(pictures.float(), video, weight)
    if training.freeze_encoder:
        return loss
    return loss + 0.01 * _scale_penalty(latents.float())


def _scale_penalty(latents: Tensor) -> Tensor:
    """Keeps the latents' size where the noise expects it: grows when a channel leaves zero mean and unit variance."""
    mean, variance = latents.mean((0, 2, 3, 4)), latents.var((0, 2, 3, 4))
    return mean.square().mean() + variance.clamp_min(1e-4).log().square().mean()


class VaeTrainer:
    """One run of training: model, optimiser, randomness and time spent, all of it in the checkpoint.

    Args:
        vae: trained in place.
        pool: training clips.
        training: settings.
        folder: receives ``state.pt``, ``vae.safetensors`` and ``log.jsonl``.
    """

    def __init__(self, vae: SmallVideoVAE, pool: ClipPool, training: VaeTraining, folder: Path) -> None:
        self.vae = vae.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.pool, self.training, self.folder = pool, training, folder
        for module in (vae.linear_encoder, vae.encoder):
            module.requires_grad_(not training.freeze_encoder)
        self.parameters = [p for p in vae.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, training.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.rng = np.random.default_rng(training.seed)
        torch.manual_seed(training.seed)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.spent_s = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Train until the budget is spent; continues from ``state.pt`` if there is one."""
        self.resume()
        saved_s, started, losses = self.spent_s, time.monotonic() - self.spent_s, []
        while self.spent_s < self.training.budget_s:
            losses.append(self.advance())
            self.spent_s = time.monotonic() - started
            if self.step % 50 == 0:
                self._log({"step": self.step, "spent_s": round(self.spent_s, 1), "loss": float(np.mean(losses))})
                losses = []
            if self.spent_s - saved_s > self.training.checkpoint_s:
                self.save()
                saved_s = self.spent_s
        self.save()

    def advance(self) -> float:
        """One step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.training.learning_rate * self._rate()
        video, weight = self.pool.crops(self.rng, self.training.crops)
        loss = training_step(self.vae, video, weight, self.training)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(0.995, self.step / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - keep)
        return float(loss.detach())

    def _rate(self) -> float:
        """Share of the learning rate: short warm-up, then half a cosine over the budget down to 2 %."""
        done = min(1.0, self.spent_s / max(self.training.budget_s, 1e-9))
        warm = min(1.0, (self.step + 1) / self.training.warm_up_steps)
        return warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))

    def averaged(self) -> dict[str, Tensor]:
        """Weights to use: the running average of the trained ones, contiguous, on the CPU."""
        values = dict(zip((n for n, p in self.vae.named_parameters() if p.requires_grad), self.average, strict=True))
        state = {name: values.get(name, value) for name, value in self.vae.state_dict().items()}
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

    def save(self) -> None:
        """Write the averaged weights and everything that is needed to go on, each file in one move."""
        weights = self.averaged()
        _replace(self.folder / "vae.safetensors", lambda path: save_file(weights, path))
        state: dict[str, Any] = {
            "vae": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
            "step": self.step,
            "spent_s": self.spent_s,
            "training": asdict(self.training),
        }
        _replace(self.folder / "state.pt", lambda path: torch.save(state, path))

    def resume(self) -> None:
        """Take up ``state.pt`` where it is; nothing happens without one."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        self.vae.load_state_dict(state["vae"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = json.loads(state["numpy_rng"])
        self.step, self.spent_s = state["step"], state["spent_s"]

    def _log(self, entry: dict[str, float]) -> None:
        LOGGER.info("%s", entry)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")


def _replace(path: Path, write: Any) -> None:
    """Write beside ``path`` and move into place, so that a reader never sees half a file."""
    beside = path.with_name(path.name + ".part")
    write(beside)
    beside.replace(path)


@dataclass(frozen=True)
class VaeRecipe:
    """The whole recipe: how many clips, and how long each stage takes on one core.

    Attributes:
        joint_s: encoder and decoder together; afterwards the encoder is frozen and the latents normalised.
        decoder_s: the decoder alone, on longer crops that lie anywhere more often: hair and backgrounds get crisp.
    """

    clips: int = 1400
    clip_pictures: int = 17
    picture_pixels: int = 128
    first_seed: int = 200_000
    joint: VaeTraining = field(default_factory=lambda: VaeTraining(budget_s=1620.0))
    decoder: VaeTraining = field(
        default_factory=lambda: VaeTraining(
            budget_s=2400.0,
            freeze_encoder=True,
            learning_rate=1.2e-3,
            latent_noise=0.16,
            crops=CropSettings(batch=6, pictures=13, face_share=0.5),
            seed=7,
        )
    )


def train_vae(folder: Path, config: VaeConfig, recipe: VaeRecipe) -> Path:
    """All stages one after the other; what ``folder`` already holds is not done again.

    Returns:
        The weights, ``vae.safetensors`` in ``folder``; those of the frozen encoder are ``encoder.safetensors``.
    """
    if not (folder / "pool" / "spots.npy").is_file():
        seeds = range(recipe.first_seed, recipe.first_seed + recipe.clips)
        draw_pool(folder / "pool", seeds, recipe.clip_pictures, recipe.picture_pixels)
    pool = ClipPool.open(folder / "pool")
    vae = SmallVideoVAE(config)
    frozen = folder / "encoder.safetensors"
    if not frozen.is_file():
        start_from_components(vae, pool, seed=recipe.joint.seed)
        trainer = VaeTrainer(vae, pool, recipe.joint, folder / "joint")
        trainer.run()
        vae.load_state_dict(trainer.averaged())
        normalise_latents(vae, pool, clips=min(64, len(pool.pictures)))
        weights = {name: value.contiguous() for name, value in vae.state_dict().items()}
        _replace(frozen, lambda path: save_file(weights, path))
    vae.load_state_dict(load_file(frozen))
    trainer = VaeTrainer(vae, pool, recipe.decoder, folder / "decoder")
    trainer.run()
    refined = trainer.averaged()
    _replace(folder / "vae.safetensors", lambda path: save_file(refined, path))
    return folder / "vae.safetensors"


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
