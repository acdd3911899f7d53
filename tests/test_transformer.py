"""The network without cache: batches, masks, positions, gradients, number formats, packed weights, refusals."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from livetalk.model import kernels
from livetalk.model.attention import EPS
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.rotary import rotary_table
from livetalk.model.transformer import CausalDiT, ChunkMask
from livetalk.types import LiveTalkError
from tests.parity import relative_error, rms_error
from tests.tiny import TINY

CONFIG = TINY.model
SIDE = 4


@pytest.fixture
def model() -> CausalDiT:
    torch.manual_seed(1)
    return CausalDiT(CONFIG).eval()


def conditions(frames: int, batch: int = 1, seed: int = 0) -> Conditions:
    draw = torch.Generator().manual_seed(seed)
    portrait = torch.randn(batch, CONFIG.out_channels, 1, SIDE, SIDE, generator=draw)
    rows = torch.randn(batch, 4 * frames - 3, CONFIG.audio_width, generator=draw)
    text = torch.randn(batch, CONFIG.text_tokens, CONFIG.text_width, generator=draw)
    return Conditions(image_condition(portrait, frames), pack_audio(rows), text)


def latents(frames: int, batch: int = 1, seed: int = 7) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CONFIG.out_channels, frames, SIDE, SIDE, generator=draw)


def sample(cond: Conditions, index: int) -> Conditions:
    part = slice(index, index + 1)
    return Conditions(cond.image[part], cond.audio[part], cond.text[part])


MASKS = [None, ChunkMask(3), ChunkMask(3, 6), ChunkMask(3, 6, 2), ChunkMask(3, 7, 3, bounded=True)]


@pytest.mark.parametrize("mask", MASKS)
def test_a_batch_of_two_equals_two_alone(model, mask):
    x, cond, t = latents(12, batch=2), conditions(12, batch=2), torch.tensor([[900.0] * 12, [300.0] * 12])
    with torch.no_grad():
        together = model(x, t, cond, block_mask=mask)
        alone = [model(x[i : i + 1], t[i : i + 1], sample(cond, i), block_mask=mask) for i in range(2)]
    assert relative_error(together, torch.cat(alone)) < 1e-5
    assert relative_error(alone[0], alone[1]) > 0.1


def test_one_noise_level_equals_the_same_for_every_frame(model):
    x, cond = latents(6), conditions(6)
    with torch.no_grad():
        once = model(x, torch.tensor([640.0]), cond, block_mask=ChunkMask(3))
        each = model(x, torch.full((1, 6), 640.0), cond, block_mask=ChunkMask(3))
    assert relative_error(once, each) < 1e-5


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (ChunkMask(3), {0: {0}, 3: {0, 1, 2, 3}}),
        (ChunkMask(3, 6), {1: {0, 1}, 3: {2, 3}}),
        (ChunkMask(3, 9, 3), {2: {0, 1, 2}, 3: {0, 2, 3}}),
    ],
)
def test_a_chunk_sees_its_window_and_nothing_else(mask, seen):
    # One layer: with more, what a neighbour saw arrives through the neighbour.
    torch.manual_seed(1)
    single = CausalDiT(dataclasses.replace(CONFIG, layers=1, audio_layers=(0, 0)))
    for chunk, visible in seen.items():
        x = latents(12).requires_grad_()
        out = single(x, torch.tensor([500.0]), conditions(12), block_mask=mask)
        out[:, :, 3 * chunk : 3 * chunk + 3].square().sum().backward()
        strength = x.grad.abs().amax(dim=(0, 1, 3, 4)).view(4, 3).amax(dim=1)
        assert set(torch.nonzero(strength).flatten().tolist()) == visible


def test_only_distances_in_time_matter(model):
    x, cond, t = latents(6), conditions(6), torch.tensor([500.0])
    with torch.no_grad():
        near = model(x, t, cond, block_mask=ChunkMask(3))
        far = model(x, t, cond, block_mask=ChunkMask(3), positions=torch.arange(6) + 10_000)
        spread = model(x, t, cond, block_mask=ChunkMask(3), positions=torch.tensor([0, 1, 2, 9, 10, 11]))
    assert relative_error(far, near) < 1e-5
    assert relative_error(spread, near) > 1e-3


def test_bounded_mask_puts_the_sinks_before_the_window(model):
    x, cond, t = latents(9), conditions(9), torch.tensor([500.0])
    with torch.no_grad():
        bounded = model(x, t, cond, block_mask=ChunkMask(3, 6, 3, bounded=True))
        absolute = model(x, t, cond, block_mask=ChunkMask(3, 6, 3))
    assert torch.equal(bounded[:, :, :6], absolute[:, :, :6])
    assert relative_error(bounded[:, :, 6:], absolute[:, :, 6:]) > 1e-4


def test_no_audio_means_zero_features(model):
    x, cond, t = latents(6), conditions(6), torch.tensor([500.0])
    with torch.no_grad():
        none = model(x, t, dataclasses.replace(cond, audio=None))
        zeros = model(x, t, dataclasses.replace(cond, audio=torch.zeros_like(cond.audio)))
        heard = model(x, t, cond)
    assert torch.equal(none, zeros)
    assert relative_error(heard, none) > 1e-3


def test_prepared_conditions_give_the_same(model):
    x, cond, t = latents(6), conditions(6), torch.tensor([500.0])
    with torch.no_grad():
        prepared = model.prepare(cond)
        assert torch.equal(model(x, t, prepared), model(x, t, cond))
        assert model.prepare(prepared).text is prepared.text
        part = prepared.frames(3, 6)
        assert relative_error(part.audio.vectors, model.prepare(cond.frames(3, 6)).audio.vectors) < 1e-5
        assert torch.equal(part.image, cond.image[:, :, 3:6])


# --- gradients ---------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_plain_operations(model, monkeypatch):
    x, cond, t = latents(6, batch=2), conditions(6, batch=2), torch.tensor([900.0, 100.0])

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(x, t, cond, block_mask=ChunkMask(3)).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    ours = gradients()
    monkeypatch.setattr(kernels._Rotate, "apply", kernels._turn)
    plain = torch.nn.functional.rms_norm
    monkeypatch.setattr(kernels._RMSNorm, "apply", lambda x, gain, eps: plain(x, x.shape[-1:], gain, eps))
    theirs = gradients()
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize("autocast", [False, True])
def test_training_in_bfloat16(model, autocast):
    x, cond, t = latents(6, batch=2), conditions(6, batch=2), torch.tensor([900.0, 100.0])
    exact = model(x, t, cond, block_mask=ChunkMask(3)).detach()
    if not autocast:
        model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = model(x, t, cond, block_mask=ChunkMask(3))
    out.float().square().mean().backward()
    assert rms_error(out.detach(), exact) < 0.03
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 60.0, 400.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_bfloat16_attention_with_any_scores(scale, batch, monkeypatch):
    # 400: scores far beyond what a power of two can hold, which takes the guarded way.
    monkeypatch.setattr(kernels, "_SCORES", 700)
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(batch, 3, n, 16, generator=draw).bfloat16() for n in (40, 70, 70))
    q = q * (scale * 16**-0.5)
    with torch.no_grad():
        out = kernels.attend(q * kernels.SCORE_SCALE, k, v)
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=1.0)
    assert torch.isfinite(out).all()
    if scale == 1.0:
        # the exponential by bits costs 1.9 % of a single attention's random values, rounding the rest
        assert rms_error(out, exact) < 0.025
    # Sharp attention picks single values: most of them must be the right ones.
    assert float(((out - exact).abs() < 0.1).float().mean()) > 0.9


def test_scores_of_minus_infinity_size_do_not_vanish():
    q = torch.full((1, 1, 2, 4), -40.0).bfloat16()
    k, v = torch.full((1, 1, 3, 4), 40.0).bfloat16(), torch.randn(1, 1, 3, 4).bfloat16()
    for size in (1.0, kernels.SCORE_SCALE):
        with torch.no_grad():
            out = kernels.attend(q * size, k, v)
        assert rms_error(out, v.mean(dim=2, keepdim=True).expand_as(out)) < 0.02


def test_weights_by_bits_follow_the_exponential():
    octaves = torch.linspace(-90.0, 5.0, 700)
    # two keys: one of score 0 with value 0, one of the score in question with value 1
    q = torch.stack((octaves * 128, torch.zeros_like(octaves)), dim=-1)[None, None].bfloat16()
    k = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[None, None].bfloat16()
    v = torch.tensor([[0.0, 0.0], [1.0, 1.0]])[None, None].bfloat16()
    with torch.no_grad():
        share = kernels.attend(q, k, v)[0, 0, :, 0].double()
    exact = torch.sigmoid(q[0, 0, :, 0].double() / kernels.SCORE_SCALE)
    # one of the two keys sits on a power of two, where the line touches: 6.2 % at most, and roundings
    assert float((share / exact - 1).abs().max()) < 0.08


def test_rotation_keeps_lengths_and_goes_back():
    table = rotary_table(range(3), (2, 2), (8, 4, 4), torch.device("cpu"))
    x = torch.randn(1, 2, 12, 16)
    turned = kernels.rotate(x, table)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.allclose(kernels.rotate(turned, table.conj().resolve_conj()), x, atol=1e-5)


def test_a_frame_turns_the_same_in_any_company():
    many = rotary_table(range(5, 12), (2, 3), (8, 4, 4), torch.device("cpu")).view(7, 6, -1)
    for index, time in enumerate(range(5, 12)):
        assert torch.equal(rotary_table([time], (2, 3), (8, 4, 4), torch.device("cpu")), many[index])


def test_norm_is_over_the_whole_width():
    x, gain = torch.randn(2, 5, 24), torch.rand(24)
    expected = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert torch.allclose(kernels.rms_norm(x, gain, EPS), expected, atol=1e-6)


# --- packed weights ----------------------------------------------------------------------------------------------


def packs(model: CausalDiT) -> int:
    return sum(len(getattr(module, "_packs", ())) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2])
def test_few_words_are_folded_into_the_projections(model, dtype, rows):
    ours = copy.deepcopy(model).prepare_for_inference(dtype)
    attention, width = ours.blocks[0].cross_attn, ours.config.width
    few_rows = width // (2 * attention.heads)
    words, many = (torch.randn(rows, count, width, dtype=dtype) for count in (min(few_rows, 5), few_rows + 1))
    tokens = torch.randn(rows, 12, width, dtype=dtype)
    with torch.inference_mode():
        keys, values = attention.keys_values(words)
        few = attention.folded(keys, values)
        assert attention.folded(*attention.keys_values(many)) is None, "with many words folding is more work"
        if not packs(ours):  # this machine's torch has no packed products in this number format
            assert few is None
            return
        plain = attention(tokens, keys, values)
        folded = attention(tokens, keys, values, few)
    exact = model.blocks[0].cross_attn(tokens.float(), *model.blocks[0].cross_attn.keys_values(words.float()))
    limit = 1e-5 if dtype == torch.float32 else 0.02
    assert rms_error(folded, exact.detach()) < limit
    assert rms_error(folded, plain.float()) < 2 * limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_compute_the_same(model, dtype):
    x, cond, t = latents(6), conditions(6), torch.tensor([500.0])
    with torch.no_grad():
        exact = model(x, t, cond)
        model.prepare_for_inference(dtype, tokens=24)
        out = model(x, t, cond)
    assert not any(p.requires_grad for p in model.parameters())
    assert rms_error(out, exact) < (1e-5 if dtype == torch.float32 else 0.02)


def test_packed_copies_never_outlive_their_weights(model):
    x, cond, t = latents(3), conditions(3), torch.tensor([500.0])
    other = CausalDiT(CONFIG).eval()
    model.prepare_for_inference(torch.float32)
    if not packs(model):
        pytest.skip("this torch has no packed products")
    assert packs(copy.deepcopy(model)) == 0
    model.load_state_dict(other.state_dict())
    assert packs(model) == 0
    with torch.no_grad():
        assert torch.equal(model(x, t, cond), other(x, t, cond))
    for change in (lambda m: m.to(torch.bfloat16), lambda m: m.train()):
        model.prepare_for_inference(torch.float32)
        assert packs(model)
        change(model)
        assert packs(model) == 0


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 5}, "heads"),
        ({"rotary_split": None}, "rotary_split"),
        ({"rotary_split": (8, 6, 4)}, "rotary_split"),
        ({"audio_layers": (1, 3)}, "do not exist"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, words):
    with pytest.raises(LiveTalkError, match=words):
        CausalDiT(dataclasses.replace(CONFIG, **change))


def test_inputs_that_do_not_fit_are_refused(model):
    x, cond, t = latents(6), conditions(6), torch.tensor([500.0])
    cases = itertools.chain(
        [(x[..., :3], t, dataclasses.replace(cond, image=cond.image[..., :3]), {}, "multiples of 16")],
        [(x, torch.tensor([500]), cond, {}, "floating point")],
        [(x, t, cond.frames(0, 3), {}, "image condition")],
        [(x, t, cond, {"block_mask": ChunkMask(4)}, "whole number of chunks")],
        [(x, t, cond, {"block_mask": ChunkMask(3, 4, 2)}, "at least 5")],
    )
    for latent, level, given, options, words in cases:
        with pytest.raises(LiveTalkError, match=words):
            model(latent, level, given, **options)
