"""Training of the small VAE: a good closed-form start, a step that learns, exact resumption, harmless rescaling."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from livetalk.config import VaeConfig
from livetalk.distill.clip_pool import ClipPool, CropSettings, babble, spot_weights
from livetalk.distill.vae import (
    VaeRecipe,
    VaeTrainer,
    VaeTraining,
    normalise_latents,
    start_from_components,
    train_vae,
    training_step,
)
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.types import LiveTalkError

TINY = VaeConfig(kind="small", widths=(16, 16, 16), encoder_widths=(16, 16, 16))
TRAINING = VaeTraining(budget_s=1e9, crops=CropSettings(batch=2, pixels=16, pictures=5), warm_up_steps=1)


@pytest.fixture()
def pool(tmp_path: Path) -> ClipPool:
    """Eight clips of a soft disc that moves and pulses over a plain colour."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    pictures = np.zeros((8, 9, 32, 32, 3), np.uint8)
    for clip in range(8):
        ground, colour = rng.uniform(30, 220, (2, 3))
        for index in range(9):
            distance = np.hypot(rows - 20, columns - 12 - index) / (4 + 2 * np.sin(index + clip))
            inside = 1 / (1 + np.exp(4 * (distance - 1)))[..., None]
            pictures[clip, index] = ground + inside * (colour - ground)
    spots = np.full((8, 9, 3, 2), 16.0, np.float32)
    folder = tmp_path / "pool"
    folder.mkdir()
    np.save(folder / "pictures.npy", pictures)
    np.save(folder / "spots.npy", spots)
    return ClipPool.open(folder)


def _whole(pool: ClipPool) -> torch.Tensor:
    return torch.from_numpy(np.array(pool.pictures)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


@torch.no_grad()
def _error(vae: SmallVideoVAE, video: torch.Tensor) -> float:
    return float((vae.decode(vae.encode(video)) - video).abs().mean())


def test_principal_components_are_a_good_start(pool: ClipPool) -> None:
    torch.manual_seed(0)
    vae = SmallVideoVAE(TINY)
    before = _error(vae, _whole(pool))
    shares = start_from_components(vae, pool, clips=60)
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-3)
    assert _error(vae, _whole(pool)) < 0.05 < before


def test_training_lowers_the_loss_and_a_frozen_encoder_stays(pool: ClipPool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = SmallVideoVAE(TINY)
    start_from_components(vae, pool, clips=40)
    torch.nn.init.constant_(vae.linear_decoder.bias, 1.0)  # something plain to learn: pictures are too bright
    video, weight = pool.crops(np.random.default_rng(3), TRAINING.crops)

    def loss() -> float:
        torch.manual_seed(1)
        return float(training_step(vae, video, weight, frozen).detach())

    frozen = dataclasses.replace(TRAINING, freeze_encoder=True)
    trainer = VaeTrainer(vae, pool, frozen, tmp_path)
    before, latents = loss(), vae.encode(video).detach()
    for _ in range(8):
        trainer.advance()
    assert loss() < before
    assert torch.equal(vae.encode(video).detach(), latents)
    joint = VaeTrainer(vae, pool, TRAINING, tmp_path)
    joint.advance()
    assert not torch.equal(vae.encode(video).detach(), latents)


def test_a_resumed_run_continues_exactly(pool: ClipPool, tmp_path: Path) -> None:
    def fresh() -> VaeTrainer:
        torch.manual_seed(0)
        return VaeTrainer(SmallVideoVAE(TINY), pool, TRAINING, tmp_path)

    trainer = fresh()
    trainer.advance()
    trainer.save()
    expected = trainer.advance()
    resumed = fresh()
    resumed.resume()
    assert resumed.step == 1
    assert resumed.advance() == expected


def test_saved_weights_load_and_rescaling_keeps_the_pictures(pool: ClipPool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = SmallVideoVAE(TINY)
    start_from_components(vae, pool, clips=20)
    VaeTrainer(vae, pool, TRAINING, tmp_path).save()
    loaded = SmallVideoVAE(TINY)
    loaded.load_state_dict(load_file(tmp_path / "vae.safetensors"))
    torch.nn.init.normal_(loaded.decoder.out.weight, std=0.05)
    loaded.eval()
    video = _whole(pool)
    before = loaded.decode(loaded.encode(video)).detach()
    normalise_latents(loaded, pool, clips=8)
    latents = loaded.encode(video).detach()
    after = loaded.decode(latents).detach()
    assert float(latents.mean((0, 2, 3, 4)).abs().max()) < 1e-3
    assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-2)
    assert float((after - before).abs().mean()) < 5e-3  # not zero: borders are padded with another zero


def test_weights_are_highest_at_the_mouth() -> None:
    spots = np.array([[[20.0, 40.0], [10.0, 16.0], [30.0, 16.0]]], np.float32)
    weight = spot_weights(spots, 64, 64, picture_pixels=64)
    assert weight.shape == (1, 1, 64, 64)
    assert int(weight[0, 0].argmax()) // 64 in (39, 40)
    assert weight[0, 0, 60, 60] == pytest.approx(1.0, abs=1e-2)


def test_babble_is_a_mouth() -> None:
    mouth = babble(np.random.default_rng(5), 40)
    assert mouth.shape == (40, 3)
    assert mouth[:, [0, 2]].min() >= 0.0
    assert mouth.max() <= 1.0
    assert mouth.min() >= -1.0


def test_a_missing_pool_is_explained(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match=r"pictures\.npy"):
        ClipPool.open(tmp_path)


def test_the_recipe_runs_through_and_is_not_done_twice(pool: ClipPool, tmp_path: Path) -> None:
    short = dataclasses.replace(TRAINING, budget_s=0.2)
    recipe = VaeRecipe(joint=short, decoder=dataclasses.replace(short, freeze_encoder=True))
    weights = load_file(train_vae(tmp_path, TINY, recipe))
    frozen = load_file(tmp_path / "encoder.safetensors")
    assert torch.equal(weights["linear_encoder.weight"], frozen["linear_encoder.weight"])
    assert not torch.equal(weights["linear_decoder.weight"], frozen["linear_decoder.weight"])
    first = (tmp_path / "encoder.safetensors").stat().st_mtime_ns
    again = load_file(train_vae(tmp_path, TINY, recipe))
    assert (tmp_path / "encoder.safetensors").stat().st_mtime_ns == first
    assert all(torch.equal(again[name], weights[name]) for name in weights)
