"""The teacher's sampler, the pairs it makes and the regression on them: tiny networks, and numbers of the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY
from torch import Tensor

from livetalk.config import RolloutConfig
from livetalk.distill.data import ClipStore
from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.ode import Given, OdeConfig, OdeRegression, train
from livetalk.distill.pairs import PairConfig, clip_conditions, make_pairs, write_pairs
from livetalk.distill.portraits import POSE_FIELDS
from livetalk.distill.sampling import chunks_trajectory, clip_trajectory, entry_steps, integrate, sample_clip
from livetalk.distill.scores import Guidance, Score
from livetalk.distill.teacher import TeacherConfig
from livetalk.flow import FlowSchedule
from livetalk.hub import random_models
from livetalk.model.attention import ChunkMask
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.transformer import CausalDiT
from livetalk.model.weights import config_from_shapes, load_transformer_state
from livetalk.rollout import denoise_chunk, new_cache, step_sigmas
from livetalk.types import LatentShape, LiveTalkError, pictures_of
from tests.parity import DEFAULT, assert_close, folder, load, pad_rows

FRAMES = 12
CLIPS = 4
STEPS = 4


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 1, preset=TINY) -> CausalDiT:
    torch.manual_seed(seed)
    return CausalDiT(preset.model)


def stored_clips(folder: Path, frames: int = FRAMES + 3) -> Path:
    """Clips of noise: nothing has to be drawn or spoken to train on them."""
    folder.mkdir(parents=True, exist_ok=True)
    made, pictures = draws(5), pictures_of(frames)
    random = {
        "latents": torch.randn(CLIPS, 16, frames, 4, 4, generator=made).half(),
        "audio": torch.randn(CLIPS, pictures, TINY.model.heard_width, generator=made).half(),
        "text": torch.randn(CLIPS, TINY.model.text_tokens, TINY.model.text_width, generator=made).half(),
        "poses": torch.rand(CLIPS, pictures, len(POSE_FIELDS), generator=made),
        "sway": torch.rand(CLIPS, pictures, 5, generator=made),
        "spots": torch.rand(CLIPS, pictures, 3, 2, generator=made),
        "seeds": torch.arange(CLIPS) + 10,
    }
    save_file(random, folder / "shard-00000000.safetensors")
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_file(network().state_dict(), path)
    return path


PAIRS = PairConfig(clips=CLIPS, frames=FRAMES, batch=2, steps=STEPS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, clips: Path, teacher: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    write_pairs(TINY, clips, folder, teacher, PAIRS)
    return folder


def conditions(clips: Path, count: int = 2) -> Conditions:
    store = ClipStore(clips)
    return clip_conditions(store.clips(range(count)), TINY.model.drive_width, torch.device("cpu"))


# --- sampler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, shift", [((1.0, 0.9, 0.75, 0.5), 3.0), (None, 5.0)])
def test_noise_levels_of_a_rollout_are_steps_of_the_sampler(levels, shift):
    sigmas = step_sigmas(RolloutConfig(sigmas=levels, shift=shift))
    assert entry_steps(FlowSchedule(48, shift), sigmas) == [0, 12, 24, 36]
    with pytest.raises(LiveTalkError, match="multiple of 4"):
        entry_steps(FlowSchedule(50, shift), sigmas)


def test_a_network_that_knows_the_answer_ends_there():
    truth, noise = torch.randn(2, 3, 4, generator=draws(1)), torch.randn(2, 3, 4, generator=draws(2))
    schedule = FlowSchedule(8, 3.0)

    def flow(x: Tensor, t: Tensor) -> Tensor:
        return (x - truth) / (t.view(-1, 1, 1) / 1000)

    entries = integrate(flow, noise, schedule, steps=[0, 2, 4, 6])
    for entry, sigma in zip(entries, [1.0, 0.9, 0.75, 0.5, 0.0], strict=True):
        torch.testing.assert_close(entry, (1 - sigma) * truth + sigma * noise, atol=1e-5, rtol=1e-5)


def test_the_second_order_sees_a_bend():
    start, schedule = torch.zeros(1, 1), FlowSchedule(12, 3.0)
    euler, bent = (
        float(integrate(lambda x, t: (t / 1000).square().view(1, 1) * 3, start, schedule, order=order)[-1])
        for order in (1, 2)
    )
    assert abs(bent + 1) < 0.4 * abs(euler + 1), "x falls by 1, the integral of 3 s^2"


@pytest.mark.parametrize("causal", [False, True])
def test_the_portrait_stays_and_a_batch_is_its_clips(clips, causal):
    score = Score(network(), "portrait_residual", Guidance(1.5, 2.0))
    schedule, sigmas = FlowSchedule(STEPS, 3.0), step_sigmas(TINY.rollout)
    cond = conditions(clips).frames(0, FRAMES)
    noise = torch.randn(2, 16, FRAMES, 4, 4, generator=draws())

    def sample(cond: Conditions, noise: Tensor) -> Tensor:
        if causal:
            return chunks_trajectory(score, cond, noise, schedule, TINY.rollout, sigmas)
        return clip_trajectory(score, cond, noise, schedule, sigmas)

    both = sample(cond, noise)
    assert both.shape == (len(sigmas) + 1, 2, 16, FRAMES, 4, 4)
    for entry in both:
        assert torch.equal(entry[:, :, :1], cond.portrait[:, :, :1])
    assert torch.equal(both[0, :, :, 1:], noise[:, :, 1:])
    for one in range(2):
        alone = Conditions(*(part[one : one + 1] for part in (cond.image, cond.audio, cond.text)))
        torch.testing.assert_close(sample(alone, noise[one : one + 1]), both[:, one : one + 1], atol=1e-5, rtol=1e-4)


def test_calls_of_guidance_together_or_one_by_one(clips):
    cond, noise = conditions(clips).frames(0, 6), torch.randn(2, 16, 6, 4, 4, generator=draws())
    score = Score(network(), "velocity", Guidance(2.0, 3.0))
    apart, together = (
        sample_clip(s, cond, noise, FlowSchedule(2, 5.0)) for s in (score, replace(score, together=True))
    )
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["portrait_residual", "velocity"])
def test_one_step_of_the_causal_teacher_is_one_step_of_a_rollout(clips, prediction):
    settings = replace(TINY.rollout, timesteps=(1000.0,), sigmas=(1.0,), prediction=prediction, audio_guidance=0.5)
    model, cond = network(), conditions(clips).frames(0, 3)
    noise = torch.randn(2, 16, 3, 4, 4, generator=draws())
    score = Score(model, prediction, Guidance(1.0, 1.5))
    made = chunks_trajectory(score, cond, noise, FlowSchedule(1, 3.0), settings)[-1]
    cache = new_cache(model, settings, LatentShape(16, 3, 4, 4), batch=2)
    with torch.no_grad():
        expected = denoise_chunk(model, cache, cond, noise[None], settings)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


def test_a_causal_teacher_goes_on_from_what_it_is_given(clips):
    score, cond = Score(network(), "portrait_residual"), conditions(clips).frames(0, 6)
    noise, schedule = torch.randn(2, 16, 6, 4, 4, generator=draws()), FlowSchedule(2, 3.0)
    own = chunks_trajectory(score, cond, noise, schedule, TINY.rollout)[-1]
    again, other = (
        chunks_trajectory(score, cond, noise, schedule, TINY.rollout, past=past)[-1] for past in (own, own + 1)
    )
    assert torch.equal(own, again)
    assert torch.equal(own[:, :, :3], other[:, :, :3])
    assert not torch.equal(own[:, :, 3:], other[:, :, 3:])


# --- pairs -------------------------------------------------------------------------------------------------------


def test_pairs_are_clips_with_a_trajectory(pairs, clips, teacher):
    store, source = ClipStore(pairs), ClipStore(clips)
    assert len(store) == CLIPS
    levels = len(TINY.rollout.timesteps) + 1
    for index in range(CLIPS):
        pair, clip = store.clip(index), source.clip(index)
        assert pair["trajectory"].shape == (levels, 16, FRAMES, 4, 4)
        assert torch.equal(pair["latents"], clip["latents"][:, :FRAMES])
        assert torch.equal(pair["audio"], clip["audio"][: pictures_of(FRAMES)])
        assert pair["seeds"] == clip["seeds"]
        assert torch.equal(pair["trajectory"][:, :, :1], clip["latents"][None, :, :1].expand(levels, -1, -1, -1, -1))
    model = network()
    made = make_pairs(model, TINY, [source.clip(3)], replace(PAIRS, batch=1))
    torch.testing.assert_close(made["trajectory"][0], store.clip(3)["trajectory"], atol=1e-2, rtol=1e-2)
    assert all(parameter.grad is None for parameter in model.parameters()), "no gradient reaches the teacher"
    assert not made["trajectory"].requires_grad


def test_pairs_are_resumed_and_never_mixed(pairs, clips, teacher):
    first, second = sorted(pairs.glob("shard-*.safetensors"))
    stamp, content = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    write_pairs(TINY, clips, pairs, teacher, PAIRS)
    assert second.read_bytes() == content
    assert first.stat().st_mtime_ns == stamp, "a file that exists is kept"
    with pytest.raises(LiveTalkError, match="other settings"):
        write_pairs(TINY, clips, pairs, teacher, replace(PAIRS, audio_scale=3.0))


def test_a_short_clip_is_a_sentence(clips, teacher, tmp_path):
    with pytest.raises(LiveTalkError, match="15 latent frames, 21 are wanted"):
        write_pairs(TINY, clips, tmp_path, teacher, replace(PAIRS, frames=21))


def test_a_causal_teacher_makes_pairs_too(clips):
    clip = ClipStore(clips).clip(0)
    free, led = (make_pairs(network(), TINY, [clip], replace(PAIRS, causal=True, true_past=past)) for past in (0, 1))
    assert torch.equal(free["trajectory"][0, :, :, :3], led["trajectory"][0, :, :, :3])
    assert not torch.equal(free["trajectory"][0, :, :, 3:], led["trajectory"][0, :, :, 3:])


# --- regression --------------------------------------------------------------------------------------------------


def regression(pairs: Path, preset=TINY, **settings) -> OdeRegression:
    config = OdeConfig(batch=3, real=TeacherConfig(batch=2, whole_batch=1, sinks=(3,)), **settings)
    return OdeRegression(ClipStore(pairs), preset, config, torch.ones(16))


def test_chunks_are_shown_at_the_levels_of_a_rollout(pairs):
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor, t: Tensor, cond: Conditions, block_mask: ChunkMask) -> Tensor:
        seen.append((x, t))
        assert block_mask == ChunkMask(3, 9, 3, bounded=True)
        return torch.zeros_like(x)

    loss = regression(pairs, past_share=0.3, flawed_share=0.3)
    loss.network = spy
    generator = draws(4)
    for _ in range(6):
        loss(network(), generator)
    store = ClipStore(pairs)
    trajectories = torch.stack([store.clip(index)["trajectory"].float() for index in range(CLIPS)])
    clean = flawed = 0
    for x, t in seen:
        for sample, times in zip(x, t, strict=True):
            clip = int((trajectories[:, 0, :, 0] - sample[:, 0]).abs().amax(dim=(1, 2, 3)).argmin())
            for chunk in range(FRAMES // 3):
                part = slice(3 * chunk, 3 * chunk + 3)
                level = [*TINY.rollout.timesteps, 0.0].index(float(times[3 * chunk]))
                assert (times[part] == times[3 * chunk]).all()
                distance = float((trajectories[clip, level, :, part] - sample[:, part]).abs().max())
                assert distance < (1e-5 if level < 2 else 1.0)
                clean += level == 2 and distance == 0
                flawed += level == 2 and distance > 0
        assert (t[:, -1] > 0).all(), "the last chunk always counts"
    assert clean > 3
    assert flawed > 3


def test_loss_of_a_student_that_knows_the_answer_is_zero(pairs):
    loss = regression(pairs)
    clip = [ClipStore(pairs).clip(0)]
    trajectory = clip[0]["trajectory"][None].float()
    cond = clip_conditions(clip, 0, torch.device("cpu"))
    given = loss.given(1, FRAMES // 3, draws())

    def knows(x: Tensor, t: Tensor, cond: Conditions, block_mask: ChunkMask) -> Tensor:
        return trajectory[:, -1] - cond.portrait

    x0 = loss.denoise(knows, trajectory, cond, given, torch.zeros_like(trajectory[:, 0]), loss.mask(draws()))
    value, figures = loss.loss(x0, trajectory[:, -1], given, loss.weights(clip, torch.device("cpu")))
    assert float(value) < 1e-10
    assert figures["mse"] < 1e-10


@pytest.mark.parametrize("prediction", ["portrait_residual", "velocity"])
def test_the_loss_falls_and_resume_is_exact(pairs, teacher, tmp_path, prediction):
    preset = replace(TINY, rollout=replace(TINY.rollout, prediction=prediction))
    plan = LoopConfig(steps=12, warmup_steps=2, learning_rate=3e-3, matrix_rate=0.01, log_every=1, curves=False)
    settings = {"real_share": 0.3, "past_share": 0.2, "flawed_share": 0.2, "level_floor": 0.04, "sinks": (0, 3)}

    def run(folder: Path, stop_after: int | None = None) -> Loop:
        loop = Loop(network(), regression(pairs, preset, **settings), plan, folder)
        loop.run(stop_after=stop_after)
        return loop

    before, after = network(), network()
    whole = run(tmp_path / "whole")
    whole.load_average(after)
    fixed = regression(pairs, preset)
    with torch.no_grad():
        assert float(fixed(after, draws(9))[0]) < float(fixed(before, draws(9))[0])
    run(tmp_path / "part", stop_after=5)
    resumed = run(tmp_path / "part")
    assert torch.equal(whole.state.weights, resumed.state.weights)
    assert torch.equal(whole.state.average, resumed.state.average)


def test_a_student_starts_from_its_teacher(pairs, clips, tmp_path):
    start = network(3).state_dict()
    config = OdeConfig(batch=2, real_share=0.5, real_clips=str(clips), real=TeacherConfig(batch=2, whole_batch=1))
    plan = LoopConfig(steps=1, learning_rate=1e-12, matrix_rate=0.0, curves=False)
    vae = random_models(TINY, seed=3).vae
    preset = replace(TINY, rollout=replace(TINY.rollout, window_frames=15))
    made = network()
    train(preset, pairs, tmp_path, vae, plan, config, start=start).load_average(made)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, start[name], atol=1e-6, rtol=0)


# --- the reference's numbers -------------------------------------------------------------------------------------


def test_parity_of_the_regression():
    description, tensors = load("dmd")
    if "ode.in.trajectory" not in tensors:
        assert folder() == DEFAULT, "only the compact copy in the repository may lack the regression"
        return
    weights_description, state = load("dit_weights")
    model = CausalDiT(config_from_shapes(state, heads=weights_description["config"]["num_heads"]))
    load_transformer_state(model, state)
    trajectory = tensors["ode.in.trajectory"].transpose(2, 3)
    steps = description["ode_denoising_steps"]
    # the reference takes its noise levels from the 1000-step table (spec section 13)
    sigmas = FlowSchedule(1000, 5.0).sigma([float(t) for t in steps[:-1]]).tolist()
    rollout = RolloutConfig(timesteps=tuple(float(t) for t in steps[:-1]), sigmas=tuple(sigmas))
    preset = replace(TINY, rollout=rollout, model=model.config)
    loss = OdeRegression(object(), preset, OdeConfig(plain=True), torch.ones(trajectory.shape[2]))
    entries = tensors["ode.in.raw_index"][:, :: rollout.chunk_frames]
    cond = Conditions(
        image_condition(tensors["ode.in.image_latent"].transpose(1, 2), trajectory.shape[3]),
        pack_audio(tensors["ode.in.audio_raw"]),
        pad_rows(tensors["ode.in.context_rows"], 512),
    )
    given = Given(entries, torch.zeros(entries.shape), torch.ones(entries.shape))
    noise = torch.zeros_like(trajectory[:, 0])
    x0 = loss.denoise(model, trajectory, cond, given, noise, ChunkMask(rollout.chunk_frames))
    value, _ = loss.loss(x0, trajectory[:, -1], given)
    tolerance = description["tolerance"]
    assert_close(x0.detach().transpose(1, 2), tensors["ode.out.x0"], tolerance["float32_cpu_values"])
    assert_close(value.detach().view(1), tensors["ode.out.loss"], tolerance["float32_cpu_values"])
    value.backward()
    for name, parameter in model.named_parameters():
        if f"ode.grad.{name}" in tensors:
            assert_close(parameter.grad, tensors[f"ode.grad.{name}"], tolerance["float32_cpu_gradients"])
