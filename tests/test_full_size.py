"""The published sizes: fingerprints, the full network on the meta device, a thinned one all the way to pictures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from livetalk.config import LIVETALK_1_3B, PRESETS, ModelConfig, Preset
from livetalk.hub import load_models, plan_weights
from livetalk.model.audio import BASE_960H, Wav2Vec2AudioEncoder
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.text import load_umt5
from livetalk.model.transformer import CausalDiT
from livetalk.model.weights import config_from_shapes, load_transformer_state, original_state
from livetalk.rollout import chunk_noise, rollout
from livetalk.types import LatentShape
from tests import published_files as made
from tests.test_download import Online, online  # noqa: F401  # a fixture

STUDENT = LIVETALK_1_3B.model
TEACHER = dataclasses.replace(STUDENT, width=5120, heads=40, layers=40, ffn_width=13824)
CHUNKS = 2


def network_shapes(model: ModelConfig) -> made.Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in CausalDiT(model).state_dict().items()}


@pytest.mark.parametrize(
    ("model", "tensors", "parameters", "expected"),
    [
        (STUDENT, 857, 1_421_187_232, "2bf9513c7a3e908015f11a800fc9b820"),
        (TEACHER, 1137, 14_293_426_336, "883a90b12576b9b8693a08cf690998dd"),
    ],
    ids=["1.3B", "14B"],
)
def test_fingerprints(model: ModelConfig, tensors: int, parameters: int, expected: str) -> None:
    shapes = network_shapes(model)
    assert made.transformer_shapes(model) == shapes
    assert len(shapes) == tensors and sum(map(math.prod, shapes.values())) == parameters
    assert made.fingerprint(shapes) == expected


def test_fingerprint_of_plain_wan() -> None:
    """Without the audio and with 16 input channels it is the network the student was made from."""
    shapes = network_shapes(dataclasses.replace(STUDENT, in_channels=16))
    plain = {name: shape for name, shape in shapes.items() if not name.startswith("audio_")}
    assert len(plain) == 825 and made.fingerprint(plain) == "9269f8db9040a9d860eaca435be61814"


def test_sizes_told_before_the_hub_is_asked() -> None:
    """``size_gb`` of the preset is what the shapes give: float32, the text encoder bfloat16."""
    text = made.text_shapes(24, 256_384, 4096, 64, 10_240)
    with torch.device("meta"):
        assert len(load_umt5({n: torch.empty(s, dtype=torch.bfloat16) for n, s in text.items()}).state_dict())
        vae = AutoencoderKLWan().state_dict()
        ears = Wav2Vec2AudioEncoder(LIVETALK_1_3B.audio, BASE_960H)
    counts = (
        4 * sum(map(math.prod, made.transformer_shapes(STUDENT).values())),
        2 * sum(map(math.prod, text.values())) + 4 * sum(tensor.numel() for tensor in vae.values()),
        4 * sum(tensor.numel() for tensor in ears.state_dict().values()),
    )
    told = [repository.size_gb for repository in LIVETALK_1_3B.weights.repositories]
    assert [round(count / 1e9, 2) for count in counts] == pytest.approx(told, abs=0.015)


def test_sizes_are_read_from_the_tensors() -> None:
    """A full checkpoint of a training framework, names wrapped, fits exactly the network its shapes ask for."""
    shapes = made.transformer_shapes(STUDENT)
    wrapped = {f"model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    state = original_state({"generator_ema": wrapped})
    found = config_from_shapes(state, text_tokens=STUDENT.text_tokens)
    assert found == STUDENT
    with torch.device("meta"):
        load_transformer_state(CausalDiT(found), state)


def conditions(portrait: Tensor, rows: Tensor, text: Tensor) -> Conditions:
    """Of ``CHUNKS`` chunks; ``rows`` ``[1, pictures, A]``."""
    return Conditions(image=image_condition(portrait, 3 * CHUNKS), audio=pack_audio(rows), text=text)


def noise(preset: Preset, latent: LatentShape) -> Tensor:
    steps = len(preset.rollout.timesteps)
    return torch.stack([chunk_noise(0, chunk, latent, steps) for chunk in range(CHUNKS)])


@torch.no_grad()
def test_the_full_network_rolls_out_on_the_meta_device() -> None:
    """Every shape of two chunks at 512 x 512, caches included, without computing a number."""
    latent = LIVETALK_1_3B.latent_shape(3)
    with torch.device("meta"):
        network = CausalDiT(STUDENT).to(torch.bfloat16)
        portrait = torch.empty(1, latent.channels, 1, latent.height, latent.width)
        cond = conditions(portrait, torch.empty(1, 21, STUDENT.audio_width), torch.empty(1, 512, 4096))
    made_latents = rollout(network, cond, noise(LIVETALK_1_3B, latent), LIVETALK_1_3B.rollout)
    assert made_latents.shape == (1, 16, 3 * CHUNKS, 64, 64) and made_latents.device.type == "meta"


@torch.no_grad()
def test_a_thinned_checkpoint_goes_from_the_hub_to_pictures(online: Online, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    """Real widths, four layers: fetched, checked, converted, mapped, and two chunks of 128 x 128 pictures."""
    remote = tmp_path / "thinned"
    config = made.write_thinned(remote, layers=4)
    monkeypatch.setitem(PRESETS, "published", config)
    for repository in online.server.repositories.values():
        repository.folder = remote / repository.folder.name
    plan_weights("published").carry_out()
    models = load_models("published", device="cpu", dtype="bfloat16")
    assert models.preset.model == dataclasses.replace(STUDENT, layers=4)
    identity = models.identity(torch.rand(3, 128, 128) * 2 - 1, "happy")
    rows = models.audio.offline(torch.sin(torch.arange(21_000) / 9)[None], 21)
    cond = conditions(identity.portrait_latent, rows, identity.text)
    latents = rollout(models.transformer, cond, noise(config, LatentShape(16, 3, 16, 16)), config.rollout)
    pictures = models.vae.decode(latents)
    assert pictures.shape == (1, 3, 21, 128, 128) and bool(torch.isfinite(latents).all())
    assert latents[:, :, 1:].std() > 0.1
