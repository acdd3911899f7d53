"""The tiny decoder: what the published network computes, in a stream and whole, and where its weights come from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from livetalk.config import LIVETALK_1_3B, MINI, PRESETS, RepositoryConfig
from livetalk.download.weights import tiny_decoder_file
from livetalk.engine import Engine
from livetalk.hub import load_models
from livetalk.model.originals import load_tiny_decoder
from livetalk.model.tiny_decoder import TinyDecodedVAE, TinyDecoder
from livetalk.types import LiveTalkError
from tests.hub_server import Repository
from tests.test_download import Online, online  # noqa: F401  # a fixture

STAGES = ((256, 128, 1), (128, 64, 2), (64, 64, 2))


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``taew2_1``: blocks of three convolutions, growth in time, a convolution; three times."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.0.weight": (64, 3, 3, 3), "encoder.0.bias": (64,)}
    shapes |= {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    place = 3
    for width, wider, _ in STAGES:
        for _ in range(3):
            for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
                shapes[f"decoder.{place}.conv.{layer}.weight"] = (width, inputs, 3, 3)
                shapes[f"decoder.{place}.conv.{layer}.bias"] = (width,)
            place += 1
        shapes[f"decoder.{place + 1}.conv.weight"] = (2 * width, width, 1, 1)  # also where only one picture is wanted
        shapes[f"decoder.{place + 2}.weight"] = (wider, width, 3, 3)
        place += 3
    return shapes | {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2)
        for name, shape in published_shapes().items()
    }


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return 2 * torch.randn(2, 16, 4, 4, 6, generator=torch.Generator().manual_seed(1))


def as_published(state: dict[str, Tensor], latents: Tensor) -> Tensor:
    """All pictures of a whole clip at once, from the published description, -1..1."""
    weight = {name.removeprefix("decoder."): tensor for name, tensor in state.items()}
    batch = latents.shape[0]
    x = (torch.tanh(latents / 3) * 3).transpose(1, 2).flatten(0, 1)
    x = F.relu(F.conv2d(x, weight["1.weight"], weight["1.bias"], padding=1))
    place = 3
    for _, _, steps in STAGES:
        for block in range(place, place + 3):
            clip = x.unflatten(0, (batch, -1))
            past = torch.cat((torch.zeros_like(clip[:, :1]), clip[:, :-1]), 1).flatten(0, 1)
            y = torch.cat((x, past), 1)
            for layer in (0, 2, 4):
                y = F.conv2d(F.relu(y) if layer else y, weight[f"{block}.conv.{layer}.weight"], None, padding=1)
                y = y + weight[f"{block}.conv.{layer}.bias"][:, None, None]
            x = F.relu(x + y)
        grown = weight[f"{place + 4}.conv.weight"][-steps * x.shape[1] :]
        x = F.conv2d(F.interpolate(x, scale_factor=2), grown)
        x = x.reshape(x.shape[0] * steps, -1, *x.shape[2:])
        x = F.conv2d(x, weight[f"{place + 5}.weight"], padding=1)
        place += 6
    x = F.conv2d(F.relu(x), weight["22.weight"], weight["22.bias"], padding=1).clamp(0, 1)
    return x.unflatten(0, (batch, -1)).transpose(1, 2)[:, :, 3:] * 2 - 1


@torch.no_grad()
def test_it_computes_what_is_published(state: dict[str, Tensor], latents: Tensor) -> None:
    decoder = TinyDecoder.from_original(state, "made up")
    pictures, _ = decoder.decode_chunk(latents, None)
    assert pictures.shape == (2, 3, 13, 32, 48) and pictures.std() > 0.1
    assert torch.allclose(pictures, as_published(state, latents), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3])
def test_streamed_is_whole_and_old_states_stay_valid(state: dict[str, Tensor], latents: Tensor, frames: int) -> None:
    decoder = TinyDecoder.from_original(state, "made up")
    whole, _ = decoder.decode_chunk(latents, None)
    before, pieces = None, []
    for first in range(0, latents.shape[2], frames):
        part = latents[:, :, first : first + frames]
        pictures, after = decoder.decode_chunk(part, before)
        assert torch.equal(decoder.decode_chunk(part, before)[0], pictures)
        pieces.append(pictures)
        before = after
    assert torch.allclose(torch.cat(pieces, 2), whole, atol=1e-5)
    assert sum(memory.numel() for memory in after) == 2 * 24 * 3 * (256 + 4 * 128 + 16 * 64)


def test_other_files_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "whole.safetensors")
    load_tiny_decoder(tmp_path / "whole.safetensors")
    save_file({name: tensor for name, tensor in state.items() if "22" not in name}, tmp_path / "less.safetensors")
    with pytest.raises(LiveTalkError, match=r"less\.safetensors.*missing.*decoder\.22"):
        load_tiny_decoder(tmp_path / "less.safetensors")


def test_it_is_found_where_somebody_put_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "livetalk-1.3b" / "WanVideo_comfy"
    folder.mkdir(parents=True)
    save_file(state, folder / "taew2_1.safetensors")
    assert tiny_decoder_file(LIVETALK_1_3B, [tmp_path]) == folder / "taew2_1.safetensors"
    with pytest.raises(LiveTalkError, match=r"no tiny decoder for LiveTalk mini\. Use LIVETALK_DECODER=full"):
        tiny_decoder_file(MINI, [tmp_path])


def test_it_is_fetched_once_and_decodes_what_the_full_one_would(
    online: Online,  # noqa: F811
    state: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (online.remote / "small").mkdir()
    save_file(state, online.remote / "small" / "taew2_1.safetensors")
    (online.remote / "small" / "other.safetensors").write_bytes(b"not wanted")
    online.server.repositories["d/small"] = Repository(online.remote / "small", "d" * 40)
    small = RepositoryConfig("d/small", ("taew2_1.safetensors",), 0.001, "MIT")
    config = dataclasses.replace(online.config, weights=dataclasses.replace(online.config.weights, tiny_decoder=small))
    monkeypatch.setitem(PRESETS, "published", config)
    full = load_models("published", device="cpu", dtype="float32", engine=Engine())
    assert not online.blob_folder("d/small").exists(), "nobody asked for it"
    models = load_models("published", device="cpu", dtype="float32", engine=Engine(decoder="tiny"))
    assert isinstance(models.vae, TinyDecodedVAE) and len(list(online.blob_folder("d/small").iterdir())) == 1
    portrait = torch.rand(3, 64, 64) * 2 - 1
    one, other = full.identity(portrait, "happy").portrait_latent, models.identity(portrait, "happy").portrait_latent
    assert torch.equal(one, other), "portraits are encoded as before"
    with torch.no_grad():
        assert models.vae.decode(one.expand(-1, -1, 2, -1, -1)).shape == (1, 3, 5, 64, 64)
    online.server.repositories.clear()
    load_models("published", device="cpu", dtype="float32", engine=Engine(decoder="tiny"))
