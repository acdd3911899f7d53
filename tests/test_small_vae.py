"""What the small VAE promises: streamed = whole, causality, states that stay valid, and that it learns."""

from __future__ import annotations

import pytest
import torch

from livetalk.config import VaeConfig
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.types import LiveTalkError, pictures_of

TINY = VaeConfig(kind="small", widths=(8, 8, 8), encoder_widths=(8, 8, 8))


@pytest.fixture()
def vae() -> SmallVideoVAE:
    """A tiny VAE with random weights everywhere, the residuals' last layers included."""
    torch.manual_seed(0)
    model = SmallVideoVAE(TINY)
    for half in (model.encoder, model.decoder):
        torch.nn.init.normal_(half.out.weight, std=0.1)
    model.mean.normal_()
    model.std.uniform_(0.5, 2.0)
    return model.eval().requires_grad_(False)


def _clip(pictures: int, batch: int = 1, size: tuple[int, int] = (32, 24)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(pictures)
    return torch.rand(batch, 3, pictures, *size, generator=generator) * 2 - 1


def test_shapes(vae: SmallVideoVAE) -> None:
    latents = vae.encode(_clip(9, batch=2))
    assert latents.shape == (2, 16, 3, 4, 3)
    assert vae.decode(latents).shape == (2, 3, 9, 32, 24)
    assert vae.decode(latents[:, :, :1]).shape == (2, 3, 1, 32, 24)


def test_streamed_decoding_is_whole_decoding(vae: SmallVideoVAE) -> None:
    latents = vae.encode(_clip(33))
    whole = vae.decode(latents)
    for sizes in ((3, 3, 3), (1, 1, 1, 1, 1, 1, 1, 1, 1), (2, 5, 2)):
        state, parts, first = None, [], 0
        for frames in sizes:
            pictures, state = vae.decode_chunk(latents[:, :, first : first + frames], state)
            assert pictures.shape[2] == pictures_of(first + frames) - pictures_of(first)
            parts.append(pictures)
            first += frames
        torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=0)


def test_old_states_stay_valid(vae: SmallVideoVAE) -> None:
    latents = vae.encode(_clip(33))
    _, state = vae.decode_chunk(latents[:, :, :3], None)
    once, _ = vae.decode_chunk(latents[:, :, 3:6], state)
    vae.decode_chunk(latents[:, :, 6:9], state)
    again, _ = vae.decode_chunk(latents[:, :, 3:6], state)
    assert torch.equal(once, again)


def test_nothing_depends_on_the_future(vae: SmallVideoVAE) -> None:
    video = _clip(13)
    changed = video.clone()
    changed[:, :, 9:] = 0.0
    latents, other = vae.encode(video), vae.encode(changed)
    torch.testing.assert_close(latents[:, :, :3], other[:, :, :3], atol=1e-5, rtol=0)
    assert not torch.allclose(latents[:, :, 3], other[:, :, 3])
    torch.testing.assert_close(vae.decode(latents)[:, :, :9], vae.decode(other)[:, :, :9], atol=1e-5, rtol=0)


def test_a_picture_is_a_clip_of_one(vae: SmallVideoVAE) -> None:
    video = _clip(9)
    alone = vae.encode_image(video[:, :, 0])
    torch.testing.assert_close(alone, vae.encode(video)[:, :, :1], atol=1e-5, rtol=0)
    still = vae.encode(video[:, :, :1].expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(still[:, :, 1:], alone, atol=1e-5, rtol=0)


def test_batch_rows_do_not_meet(vae: SmallVideoVAE) -> None:
    video = _clip(9, batch=3)
    latents = vae.encode(video)
    pictures = vae.decode(latents)
    for row in range(3):
        alone = vae.encode(video[row : row + 1])
        torch.testing.assert_close(alone, latents[row : row + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(vae.decode(alone), pictures[row : row + 1], atol=1e-4, rtol=0)


def test_half_precision_is_close(vae: SmallVideoVAE) -> None:
    video = _clip(9)
    latents = vae.encode(video)
    pictures = vae.decode(latents)
    vae.prepare_for_inference(torch.bfloat16)
    assert vae.decode(latents).dtype == torch.float32
    assert (vae.decode(latents) - pictures).abs().mean() < 0.02
    assert (vae.encode(video) - latents).abs().mean() < 0.02


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 32), (1, 3, 5, 30, 32), (3, 5, 32, 32)])
def test_clips_that_do_not_fit_are_refused(vae: SmallVideoVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(LiveTalkError):
        vae.encode(torch.zeros(shape))


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LiveTalkError, match="three"):
        SmallVideoVAE(VaeConfig(kind="small", widths=(8, 8)))
