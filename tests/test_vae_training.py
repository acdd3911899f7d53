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
from livetalk.distill.curves import read_log
from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.optimisers import convolutions
from livetalk.distill.vae import VaeLoss, VaeRecipe, VaeTraining, normalise_latents, start_from_components, train_vae
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.types import LiveTalkError

TINY = VaeConfig(kind="small", widths=(16, 16, 16), encoder_widths=(16, 16, 16))
LOOP = LoopConfig(steps=4, learning_rate=2e-3, matrix_rate=0.005, warmup_steps=1, log_every=1, curves=False)
TRAINING = VaeTraining(LOOP, crops=CropSettings(batch=2, pixels=16, pictures=5))
FROZEN = dataclasses.replace(TRAINING, freeze_encoder=True)


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


def test_the_loss_falls_and_a_frozen_encoder_stays(pool: ClipPool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = SmallVideoVAE(TINY)
    torch.nn.init.constant_(vae.linear_decoder.bias, 1.0)  # something plain to learn: pictures are too bright
    video = _whole(pool)[:1]
    latents = vae.encode(video).detach()
    vae.encoder.requires_grad_(False)
    vae.linear_encoder.requires_grad_(False)
    Loop(vae, VaeLoss(pool, FROZEN), LOOP, tmp_path / "decoder", matrices=convolutions).run()
    assert torch.equal(vae.encode(video).detach(), latents)
    fixed = read_log(tmp_path / "decoder" / "log.jsonl")["fixed"][1]
    assert fixed[-1] < fixed[0]
    vae.requires_grad_(True)
    Loop(vae, VaeLoss(pool, TRAINING), LOOP, tmp_path / "joint", matrices=convolutions).run()
    assert not torch.equal(vae.encode(video).detach(), latents)


def test_a_resumed_run_continues_exactly(pool: ClipPool, tmp_path: Path) -> None:
    def run(folder: Path, stop_after: int | None = None) -> Loop:
        torch.manual_seed(0)
        loop = Loop(SmallVideoVAE(TINY), VaeLoss(pool, TRAINING), LOOP, folder, matrices=convolutions)
        loop.run(stop_after=stop_after)
        return loop

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", stop_after=2)
    part = run(tmp_path / "part")
    assert torch.equal(whole.state.weights, part.state.weights)
    assert torch.equal(whole.state.average, part.state.average)


def test_rescaling_keeps_the_pictures(pool: ClipPool) -> None:
    torch.manual_seed(0)
    vae = SmallVideoVAE(TINY)
    start_from_components(vae, pool, clips=20)
    torch.nn.init.normal_(vae.decoder.out.weight, std=0.05)
    vae.eval()
    video = _whole(pool)
    before = vae.decode(vae.encode(video)).detach()
    normalise_latents(vae, pool, clips=8)
    latents = vae.encode(video).detach()
    after = vae.decode(latents).detach()
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
    assert len(pool.pictures) == 8
    recipe = VaeRecipe(start_crops=40, ranks=1, joint=TRAINING, decoder=FROZEN)
    weights = load_file(train_vae(tmp_path, TINY, recipe))
    frozen = load_file(tmp_path / "encoder.safetensors")
    assert torch.equal(weights["linear_encoder.weight"], frozen["linear_encoder.weight"])
    assert not torch.equal(weights["linear_decoder.weight"], frozen["linear_decoder.weight"])
    first = (tmp_path / "encoder.safetensors").stat().st_mtime_ns
    again = load_file(train_vae(tmp_path, TINY, recipe))
    assert (tmp_path / "encoder.safetensors").stat().st_mtime_ns == first
    assert all(torch.equal(again[name], weights[name]) for name in weights)
