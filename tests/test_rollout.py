"""Cache and rollout: any distance, any length, batches, restore points, streams side by side, gradients."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch import Tensor

from livetalk.config import RolloutConfig
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.transformer import CausalDiT, ChunkMask
from livetalk.rollout import chunk_noise, commit_chunk, denoise_chunk, new_cache, rollout
from livetalk.types import LatentShape, LiveTalkError
from tests.parity import relative_error
from tests.tiny import TINY

CONFIG = TINY.model
SIDE = 4
CHUNK = 3
SHAPE = LatentShape(CONFIG.out_channels, CHUNK, SIDE, SIDE)
SETTINGS = RolloutConfig(CHUNK, 9, 3, timesteps=(1000.0, 750.0), sigmas=(1.0, 0.75), prediction="portrait_residual")
CLEAN = torch.zeros(1)


@pytest.fixture(scope="module")
def model() -> CausalDiT:
    torch.manual_seed(1)
    return CausalDiT(CONFIG).eval().requires_grad_(False)


def conditions(frames: int, batch: int = 1, seed: int = 0) -> Conditions:
    draw = torch.Generator().manual_seed(seed)
    portrait = torch.randn(batch, CONFIG.out_channels, 1, SIDE, SIDE, generator=draw)
    rows = torch.randn(batch, 4 * frames - 3, CONFIG.audio_width, generator=draw)
    text = torch.randn(batch, CONFIG.text_tokens, CONFIG.text_width, generator=draw)
    return Conditions(image_condition(portrait, frames), pack_audio(rows), text)


def noise(chunks: int, seed: int = 5, batch: int = 1) -> Tensor:
    return torch.stack([chunk_noise(seed, chunk, SHAPE, 2, batch) for chunk in range(chunks)])


def part(cond: Conditions, chunk: int) -> Conditions:
    return cond.frames(CHUNK * chunk, CHUNK * (chunk + 1))


# --- where frames stand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1020, 10_000])
def test_absolute_positions_have_no_end(model, offset):
    settings = dataclasses.replace(SETTINGS, positions="absolute")
    outs = []
    for start in (0, offset):
        cache, cond = new_cache(model, settings, SHAPE, start_frame=start), conditions(9)
        with torch.no_grad():
            for chunk in range(2):
                commit_chunk(model, cache, noise(2)[chunk, 0], part(cond, chunk))
            outs.append(model(noise(1)[0, 0], torch.tensor([700.0]), part(cond, 2), cache=cache))
        assert cache.next_frame == start + 6
    assert relative_error(outs[1], outs[0]) < 1e-5


def test_bounded_equals_absolute_until_the_first_eviction(model):
    made = [
        rollout(model, conditions(15), noise(5), dataclasses.replace(SETTINGS, positions=positions))
        for positions in ("absolute", "bounded")
    ]
    window = SETTINGS.window_frames
    assert torch.equal(made[0][:, :, :window], made[1][:, :, :window])
    assert relative_error(made[0][:, :, window:], made[1][:, :, window:]) > 1e-5


def test_chunk_6_and_chunk_3400_are_equal():
    """With equal sinks, window and inputs. Two layers: what stands in the window depends on four chunks."""
    torch.manual_seed(2)
    small = CausalDiT(dataclasses.replace(CONFIG, layers=2, audio_layers=(1, 1))).eval().requires_grad_(False)
    with torch.inference_mode():
        cond = small.prepare(dataclasses.replace(conditions(3, seed=9), image=conditions(6).image[:, :, 3:]))
        first, *recent, last = noise(6, seed=1)[:, 0]
        anything = torch.randn(1, CONFIG.heads, CHUNK * 4, CONFIG.head_width)

        def stream(chunks: int) -> tuple[Tensor, int]:
            cache = new_cache(small, SETTINGS, SHAPE)
            size = cache.bytes()
            commit_chunk(small, cache, first, cond)
            for _ in range(1, chunks - len(recent)):
                # Long gone when it matters, so it need not come from the network.
                for layer in range(2):
                    cache.open(CHUNK).write(layer, anything, anything)
                cache.advance(CHUNK)
            for latents in recent:
                commit_chunk(small, cache, latents, cond)
            assert cache.next_frame == CHUNK * chunks
            assert cache.bytes() == size
            return small(last, torch.tensor([750.0]), cond, cache=cache), size

        sixth, size = stream(6)
        seventh, _ = stream(7)
        late, late_size = stream(3400)
    assert torch.equal(late, sixth)
    assert late_size == size
    # Elsewhere in the ring the same sums are taken in another order.
    assert relative_error(seventh, sixth) < 1e-5


@pytest.mark.parametrize("positions", ["absolute", "bounded"])
@pytest.mark.parametrize(("window", "sinks"), [(9, 3), (9, 2), (7, 4), (8, 0), (3, 0), (12, 5)])
def test_ring_equals_the_mask(model, positions, window, sinks):
    """Sinks and windows that are not whole chunks included: clean chunks one by one, and all at once."""
    settings = dataclasses.replace(SETTINGS, window_frames=window, sink_frames=sinks, positions=positions)
    x, cond = noise(7)[:, 0], model.prepare(conditions(21))
    cache, outs = new_cache(model, settings, SHAPE), []
    with torch.no_grad():
        for chunk in range(7):
            outs.append(model(x[chunk], CLEAN, part(cond, chunk), cache=cache))
            commit_chunk(model, cache, x[chunk], part(cond, chunk))
        mask = ChunkMask(CHUNK, window, sinks, bounded=positions == "bounded")
        whole = model(torch.cat(list(x), dim=2), CLEAN, cond, block_mask=mask)
    assert relative_error(torch.cat(outs, dim=2), whole) < 1e-5


def test_memory_that_was_never_written_is_never_read(model):
    cache = new_cache(model, SETTINGS, SHAPE)
    assert torch.isnan(cache._keys).all()
    assert torch.isnan(cache._values).all()
    out = rollout(model, conditions(18), noise(6), SETTINGS, cache)
    assert torch.isfinite(out).all()
    cache = new_cache(model, SETTINGS, SHAPE)
    commit_chunk(model, cache, noise(1)[0, 0], part(conditions(3), 0))
    keys, values = cache.stored(0)
    assert keys.shape == values.shape == (1, CHUNK * 4, CONFIG.width)
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()


# --- the loop ----------------------------------------------------------------------------------------------------


def test_a_batch_of_two_equals_two_alone(model):
    cond, start = conditions(15, batch=2), noise(5, batch=2)
    together = rollout(model, cond, start, SETTINGS)
    for index in range(2):
        one = slice(index, index + 1)
        alone = Conditions(cond.image[one], cond.audio[one], cond.text[one])
        assert relative_error(rollout(model, alone, start[:, :, one], SETTINGS), together[one]) < 1e-5


def test_two_streams_interleaved_equal_two_alone(model):
    conds = [model.prepare(conditions(18, seed=s)) for s in (0, 1)]
    starts = [noise(6, seed=s) for s in (0, 1)]
    alone = [rollout(model, cond, start, SETTINGS) for cond, start in zip(conds, starts, strict=True)]
    caches = [new_cache(model, SETTINGS, SHAPE) for _ in range(2)]
    made: list[list[Tensor]] = [[], []]
    for chunk in range(6):
        for one in (0, 1) if chunk % 2 else (1, 0):
            cond = part(conds[one], chunk)
            made[one].append(denoise_chunk(model, caches[one], cond, starts[one][chunk], SETTINGS))
            commit_chunk(model, caches[one], made[one][-1], cond)
    for one in range(2):
        assert torch.equal(torch.cat(made[one], dim=2), alone[one])


def test_denoising_again_gives_the_same_bits(model):
    cache, cond = new_cache(model, SETTINGS, SHAPE), conditions(15)
    rollout(model, cond.frames(0, 12), noise(4), SETTINGS, cache)
    outs = [denoise_chunk(model, cache, part(cond, 4), noise(5)[4], SETTINGS) for _ in range(2)]
    assert torch.equal(*outs)
    assert cache.next_frame == 12


@pytest.mark.parametrize("prediction", ["velocity", "portrait_residual"])
def test_the_first_frame_is_the_portrait(model, prediction):
    cond = conditions(6)
    out = rollout(model, cond, noise(2), dataclasses.replace(SETTINGS, prediction=prediction))
    assert torch.equal(out[:, :, 0], cond.portrait[:, :, 0])
    assert not torch.equal(out[:, :, 3], cond.portrait[:, :, 3])


def test_the_residual_is_added_to_the_portrait():
    torch.manual_seed(1)
    still = CausalDiT(CONFIG).eval().requires_grad_(False)
    still.head.head.weight.zero_()
    still.head.head.bias.zero_()
    cond = conditions(6)
    assert torch.equal(rollout(still, cond, noise(2), SETTINGS), cond.portrait)


def test_audio_guidance(model):
    cond = conditions(6)
    plain = rollout(model, cond, noise(2), SETTINGS)
    guided = dataclasses.replace(SETTINGS, audio_guidance=1.0)
    assert relative_error(rollout(model, cond, noise(2), guided), plain) > 1e-4
    silent = dataclasses.replace(cond, audio=None)
    without = rollout(model, silent, noise(2), SETTINGS)
    assert relative_error(rollout(model, silent, noise(2), guided), without) < 1e-5


def test_commit_stops_at_the_last_keys(model):
    cond, latents = part(conditions(3), 0), noise(1)[0, 0]
    reached: list[str] = []
    last = model.blocks[-1]
    watched = {
        "head": model.head,
        "text attention": last.cross_attn,
        "feed-forward": last.ffn,
        "output": last.self_attn.o,
    }
    watched["first layer"] = model.blocks[0].ffn
    hooks = [
        module.register_forward_hook(lambda *_, name=name: reached.append(name)) for name, module in watched.items()
    ]
    caches = [new_cache(model, SETTINGS, SHAPE) for _ in range(2)]
    commit_chunk(model, caches[0], latents, cond)
    for hook in hooks:
        hook.remove()
    assert reached == ["first layer"]
    with torch.no_grad():
        model(latents, CLEAN, cond, cache=caches[1])
    caches[1].advance(CHUNK)
    for layer in range(CONFIG.layers):
        for ours, full in zip(caches[0].stored(layer), caches[1].stored(layer), strict=True):
            assert torch.equal(ours, full)


def test_noise_depends_on_seed_and_chunk_only():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = chunk_noise(11, 4, SHAPE, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (3, 1, SHAPE.channels, CHUNK, SIDE, SIDE)
    assert first.dtype == torch.float32
    torch.manual_seed(4)
    assert torch.equal(chunk_noise(11, 4, SHAPE, 3), first)
    others = [(11, 5), (12, 4), (4, 11), (11 + 2**32, 4), (0, 0), (-1, 4)]
    drawn = [first, *(chunk_noise(seed, chunk, SHAPE, 3) for seed, chunk in others)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert abs(float(torch.stack(drawn).mean())) < 0.05
    assert abs(float(torch.stack(drawn).std()) - 1) < 0.05


def test_noise_for_other_steps_is_refused(model):
    with pytest.raises(LiveTalkError, match="3 steps"):
        denoise_chunk(model, new_cache(model, SETTINGS, SHAPE), conditions(3), chunk_noise(0, 0, SHAPE, 3), SETTINGS)
    with pytest.raises(LiveTalkError, match="at least 6"):
        new_cache(model, dataclasses.replace(SETTINGS, window_frames=5), SHAPE)


# --- restore points ----------------------------------------------------------------------------------------------


def run(model: CausalDiT, cache: KVCache, cond: Conditions, start: Tensor, chunks: range, points: list) -> list[Tensor]:
    """Chunks one after another, a restore point before each."""
    made = []
    for chunk in chunks:
        points.append(cache.restore_point())
        made.append(denoise_chunk(model, cache, part(cond, chunk), start[chunk], SETTINGS))
        commit_chunk(model, cache, made[-1], part(cond, chunk))
    return made


@pytest.mark.parametrize("positions", ["absolute", "bounded"])
@pytest.mark.parametrize(("window", "sinks"), [(9, 2), (9, 3)])
@pytest.mark.parametrize("back_to", [1, 5])
def test_restored_streams_go_on_as_before(model, positions, window, sinks, back_to):
    settings = dataclasses.replace(SETTINGS, window_frames=window, sink_frames=sinks, positions=positions)
    cond, other = (model.prepare(conditions(24, seed=seed)) for seed in (0, 1))
    start, points = noise(8), []
    cache = new_cache(model, settings, SHAPE)
    straight = run(model, cache, cond, start, range(8), points)
    kept = [cache.stored(layer) for layer in range(CONFIG.layers)]
    cache.restore(points[back_to])
    assert cache.next_frame == CHUNK * back_to
    # Something else is said, given up in the middle of a chunk, and what was said before comes again.
    later: list = []
    run(model, cache, other, start, range(back_to, 7), later)
    denoise_chunk(model, cache, part(other, 7), start[7], SETTINGS)
    cache.restore(points[back_to])
    again = run(model, cache, cond, start, range(back_to, 8), points)
    assert all(torch.equal(a, b) for a, b in zip(again, straight[back_to:], strict=True))
    for layer, pair in enumerate(kept):
        assert all(torch.equal(a, b) for a, b in zip(cache.stored(layer), pair, strict=True))


def test_restore_points_are_small(model):
    cond, start, points = conditions(21), noise(7), []
    cache = new_cache(model, SETTINGS, SHAPE)
    run(model, cache, cond, start, range(7), points)
    sizes = [sum(t.numel() * t.element_size() for t in (*p.keys, *p.values)) for p in points]
    slot = 2 * CONFIG.layers * CHUNK * 4 * CONFIG.width * 4
    assert sizes == [0, 0, 0, slot, slot, slot, slot]


def test_unreachable_restore_points_are_refused(model):
    cond, start, points = conditions(21), noise(7), []
    cache = new_cache(model, SETTINGS, SHAPE)
    run(model, cache, cond, start, range(6), points)
    stranger = new_cache(model, SETTINGS, SHAPE).restore_point()
    with pytest.raises(LiveTalkError, match="cannot be reached"):
        cache.restore(stranger)
    del points[4]
    gc.collect()
    with pytest.raises(LiveTalkError, match="cannot be reached"):
        cache.restore(points[3])
    denoise_chunk(model, cache, part(cond, 6), start[6], SETTINGS)
    with pytest.raises(LiveTalkError, match="before the first pass"):
        cache.restore_point()


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["absolute", "bounded"])
def test_gradients_go_through_the_exit_step_only(positions):
    torch.manual_seed(1)
    student = CausalDiT(CONFIG)
    settings = dataclasses.replace(SETTINGS, window_frames=8, sink_frames=1, positions=positions)
    cond, start = conditions(18), noise(6)
    outs, plain = [], []
    for collect, gradients in ((outs, True), (plain, False)):
        cache = new_cache(student, settings, SHAPE)
        for chunk in range(6):
            with torch.set_grad_enabled(gradients):
                exit_step = 1 if gradients else None
                latents = denoise_chunk(student, cache, part(cond, chunk), start[chunk], settings, exit_step=exit_step)
            commit_chunk(student, cache, latents, part(cond, chunk))
            collect.append(latents)
    assert relative_error(torch.cat(outs, dim=2).detach(), torch.cat(plain, dim=2)) < 1e-5
    # The graph of an early chunk survives everything written since.
    (torch.cat(outs, dim=2) ** 2).mean().backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_an_early_exit_leaves_out_the_later_steps(model):
    cond, start = conditions(3), noise(1)[0]
    early = denoise_chunk(model, new_cache(model, SETTINGS, SHAPE), cond, start, SETTINGS, exit_step=0)
    one = dataclasses.replace(SETTINGS, timesteps=SETTINGS.timesteps[:1], sigmas=SETTINGS.sigmas[:1])
    assert torch.equal(early, denoise_chunk(model, new_cache(model, one, SHAPE), cond, start[:1], one))
