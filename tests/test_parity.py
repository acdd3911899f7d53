"""The network, its cache, the rollout and the noise schedule against numbers recorded from the public reference.

Every size, window, sink, number of chunks and scale is read from the files (see ``tests/parity.py``), so that the same
tests run on a folder with another geometry. What a folder lacks is skipped by name.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from livetalk.config import ModelConfig, RolloutConfig
from livetalk.distill.sampling import integrate
from livetalk.distill.scores import Guidance, Score
from livetalk.flow import FlowSchedule, add_noise, dmd_timestep, guide
from livetalk.model.conditions import AudioVectors, Conditions, TextKeys, image_condition, pack_audio
from livetalk.model.transformer import CausalDiT, ChunkMask
from livetalk.model.weights import config_from_shapes, load_transformer_state, original_state
from livetalk.rollout import commit_chunk, denoise_chunk, new_cache, rollout, step_sigmas
from livetalk.types import LatentShape, LiveTalkError
from tests.parity import assert_close, load, load_json, pad_rows, rms_error, tolerance_of

TEXT_ROWS = 512
BFLOAT16_RMS = 0.02


@pytest.fixture(scope="module")
def model() -> CausalDiT:
    description, state = load("dit_weights")
    config = config_from_shapes(state, heads=description["config"]["num_heads"])
    network = CausalDiT(config).eval().requires_grad_(False)
    load_transformer_state(network, state)
    return network


def chunk_frames_of(description: dict[str, Any]) -> int:
    if "frames_per_block" in description:
        return description["frames_per_block"]
    return int(re.search(r"blocks of (\d+)", description["what"])[1])


def whole_clip(tensors: dict[str, Tensor], prefix: str = "in.", frames: int | None = None) -> Conditions:
    """Conditions from recorded inputs: an image condition, or an image latent on ``frames`` frames."""
    rows = tensors[f"{prefix}audio_raw"]
    if frames is not None:
        rows = rows[:, : 4 * frames - 3]
        image = image_condition(tensors[f"{prefix}image_latent"], frames)
    else:
        image = tensors[f"{prefix}y"]
    return Conditions(image, pack_audio(rows), pad_rows(tensors[f"{prefix}context_rows"], TEXT_ROWS))


def latent_shape(x: Tensor) -> LatentShape:
    return LatentShape(x.shape[1], x.shape[2], x.shape[3], x.shape[4])


# --- weights -----------------------------------------------------------------------------------------------------


def test_sizes_are_read_from_shapes(model):
    config = load_json("dit_weights")["config"]
    expected = {
        "width": config["dim"],
        "layers": config["num_layers"],
        "ffn_width": config["ffn_dim"],
        "text_width": config["text_dim"],
        "freq_width": config["freq_dim"],
        "in_channels": config["in_dim"],
        "out_channels": config["out_dim"],
        "audio_bottleneck": config["audio_hidden_size"],
        "audio_width": load_json("dit_weights")["audio_input_dim"],
        "patch": tuple(config["patch_size"]),
    }
    assert {name: getattr(model.config, name) for name in expected} == expected


@pytest.mark.parametrize("wrap", ["generator_ema", "generator", "model"])
def test_wrapped_and_prefixed_names_are_understood(model, wrap):
    _, state = load("dit_weights")
    wrapped = {wrap: {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}}
    assert original_state(wrapped).keys() == state.keys()
    inner = {name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."): t for name, t in state.items()}
    assert original_state(inner).keys() == state.keys()


@pytest.mark.parametrize("trouble", ["missing", "surplus", "shape"])
def test_weights_that_do_not_fit_are_named(model, trouble):
    _, state = load("dit_weights")
    state = dict(state)
    name = "blocks.0.norm3.bias"
    if trouble == "missing":
        del state[name]
    elif trouble == "surplus":
        name = "blocks.0.norm4.bias"
        state[name] = torch.zeros(3)
    else:
        state[name] = torch.zeros(state[name].shape[0] + 1)
    with pytest.raises(LiveTalkError, match=re.escape(name)):
        load_transformer_state(CausalDiT(model.config), state)


def test_weights_of_another_kind_are_refused():
    with pytest.raises(LiveTalkError, match=r"patch_embedding\.weight"):
        config_from_shapes({"encoder.weight": torch.zeros(2, 2)})
    with pytest.raises(LiveTalkError, match="no tensors"):
        original_state({"epoch": 3})


# --- block-causal forward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [False, True])
def test_block_causal_forward(model, gradients):
    description, tensors = load("dit_train")
    tolerance, chunk = tolerance_of(description, 1e-5), chunk_frames_of(description)
    cond = whole_clip(tensors)
    cases = {"out.flow": ("in.timestep", None), "out.flow_perframe": ("in.timestep_perframe", None)}
    for name in tensors:
        if window := re.fullmatch(r"out\.flow_local(\d+)", name):
            cases[name] = ("in.timestep", int(window[1]))
    with torch.set_grad_enabled(gradients):
        for name, (timestep, window_frames) in cases.items():
            out = model(tensors["in.x"], tensors[timestep], cond, block_mask=ChunkMask(chunk, window_frames))
            assert_close(out, tensors[name], tolerance)


def test_intermediate_tensors(model):
    description, tensors = load("dit_train")
    modules = {"audio_proj": model.audio_proj, "time_embedding": model.time_embedding}
    modules |= {"text_embedding": model.text_embedding, "time_projection": model.time_projection, "head": model.head}
    modules |= {f"audio_cond_proj{i}": module for i, module in enumerate(model.audio_cond_projs)}
    for i, block in enumerate(model.blocks):
        modules |= {f"block{i}": block, f"block{i}.self_attn": block.self_attn}
        modules[f"block{i}.cross_attn"] = block.cross_attn
    seen: dict[str, Tensor] = {}
    hooks = [
        # A copy: without gradients the next layer writes over its input.
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.detach().clone()))
        for name, module in modules.items()
        if f"mid.{name}" in tensors
    ]
    with torch.no_grad():
        mask = ChunkMask(chunk_frames_of(description))
        model(tensors["in.x"], tensors["in.timestep"], whole_clip(tensors), block_mask=mask)
    for hook in hooks:
        hook.remove()
    assert seen
    for name, value in seen.items():
        recorded = tensors[f"mid.{name}"]
        if name == "text_embedding":
            value = value[:, : recorded.shape[1]]
        assert_close(value.reshape(recorded.shape), recorded, tolerance_of(description, 1e-5))


def test_block_causal_forward_in_bfloat16(model):
    description, tensors = load("dit_train")
    half = CausalDiT(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    mask = ChunkMask(chunk_frames_of(description))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            out = half(tensors["in.x"], tensors["in.timestep"], whole_clip(tensors), block_mask=mask)
        assert rms_error(out.detach(), tensors["out.flow"]) < BFLOAT16_RMS


# --- cache -------------------------------------------------------------------------------------------------------


def cached_layers(description: dict[str, Any], case: str, recorded: int, layers: int) -> list[int]:
    """Which layers' caches were recorded: the JSON says it in words."""
    given = description["cases"][case].get("cache_layers")
    words = re.search(rf"case {case}: layers? ([\d, ]+)", description["axes"]["out.cache_k/v"])
    if given is None and words:
        given = [int(number) for number in words[1].strip(" ,").split(",")]
    return given if given is not None and len(given) == recorded else list(range(layers))[:recorded]


@pytest.mark.parametrize("case", ["a", "b"])
def test_cached_forward(model, case):
    description, tensors = load("dit_cache")
    if case not in description["cases"]:
        pytest.skip(f"dit_cache has no case {case}")
    facts, chunk = description["cases"][case], description["frames_per_block"]
    tolerance, steps = tolerance_of(description, 1e-5), description["timesteps"]
    settings = RolloutConfig(
        chunk_frames=chunk,
        window_frames=facts["local_attn_size_frames"],
        sink_frames=facts["sink_size_frames"],
        positions="absolute",
    )
    source = f"{case}.in." if f"{case}.in.image_latent" in tensors else "a.in."
    cond = model.prepare(whole_clip(tensors, source, facts["blocks"] * chunk))
    final = f"{source}x.b{{}}.s{len(steps) - 1}"
    cache = new_cache(model, settings, latent_shape(tensors[final.format(0)]))
    compared = 0
    with torch.no_grad():
        for block in range(facts["blocks"]):
            part = cond.frames(block * chunk, (block + 1) * chunk)
            for step, t in enumerate(steps):
                recorded = tensors.get(f"{case}.out.flow.b{block}.s{step}")
                if recorded is not None:
                    out = model(tensors[f"{source}x.b{block}.s{step}"], torch.tensor([t]), part, cache=cache)
                    assert_close(out, recorded, tolerance)
                    compared += 1
            commit_chunk(model, cache, tensors[final.format(block)], part)
            tokens = facts["indices_after_block_global_local"][block]
            per_frame = description["tokens_per_frame"]
            assert [cache.next_frame * per_frame, cache.stored(0)[0].shape[1]] == tokens
    assert compared
    if (recorded_keys := tensors.get(f"{case}.out.cache_k")) is not None:
        layers = cached_layers(description, case, len(recorded_keys), model.config.layers)
        for place, layer in enumerate(layers):
            keys, values = cache.stored(layer)
            assert_close(keys, recorded_keys[place], tolerance)
            assert_close(values, tensors[f"{case}.out.cache_v"][place], tolerance)


def test_text_keys_and_audio_vectors(model):
    description, tensors = load("dit_cache")
    tolerance = tolerance_of(description, 1e-5)
    frames = description["cases"]["a"]["blocks"] * description["frames_per_block"]
    cond = model.prepare(whole_clip(tensors, "a.in.", frames))
    assert isinstance(cond.text, TextKeys)
    for name, made in (("a.out.cross_k0", cond.text.keys[0]), ("a.out.cross_v0", cond.text.values[0])):
        if name in tensors:
            rows = made.transpose(1, 2).flatten(2)[:, : tensors[name].shape[1]]
            assert_close(rows, tensors[name], tolerance)
    if "a.mid.audio_cond" in tensors:
        assert isinstance(cond.audio, AudioVectors)
        assert_close(cond.audio.vectors[:, 0], tensors["a.mid.audio_cond"][:, :, 0, 0], tolerance)


def test_cached_forward_far_from_the_start(model):
    description, tensors = load("dit_cache")
    if "c.in.x" not in tensors:
        pytest.skip("dit_cache has no case c")
    facts = description["cases"]["c"]
    offset = int(re.search(r"offset (\d+)", facts if isinstance(facts, str) else str(facts))[1])
    x, chunk = tensors["c.in.x"], tensors["c.in.x"].shape[2]
    settings = RolloutConfig(chunk_frames=chunk, window_frames=4 * chunk, sink_frames=chunk, positions="absolute")
    text = pad_rows(tensors["c.in.context_rows"], TEXT_ROWS)
    # Recorded audio vectors are [projections, F, 1, 1, D] of one sample.
    cond = Conditions(tensors["c.in.y"], AudioVectors(tensors["c.in.audio_cond"][:, :, 0, 0][:, None]), text)
    cache = new_cache(model, settings, latent_shape(x), start_frame=offset)
    with torch.no_grad():
        errors = []
        for t in description["timesteps"]:
            out = model(x, torch.tensor([t]), cond, cache=cache)
            errors.append(float((out - tensors["c.out.flow"]).abs().max() / tensors["c.out.flow"].abs().max()))
    # Which of the timesteps it was recorded at is not written down; exactly one fits.
    assert min(errors) < tolerance_of(description, 1e-5), errors
    cache.advance(chunk)
    if "c.out.cache_k0" in tensors and errors.index(min(errors)) == len(errors) - 1:
        assert_close(cache.stored(0)[0], tensors["c.out.cache_k0"], tolerance_of(description, 1e-5))


def test_chunks_through_the_cache_equal_the_block_causal_forward(model):
    description, tensors = load("dit_train")
    chunk, x = chunk_frames_of(description), tensors["in.x"]
    frames, cond = x.shape[2], whole_clip(tensors)
    settings = RolloutConfig(chunk_frames=chunk, window_frames=frames, sink_frames=0, positions="absolute")
    clean = torch.zeros(x.shape[0])
    cache = new_cache(model, settings, latent_shape(x[:, :, :chunk]))
    parts = []
    with torch.no_grad():
        whole = model(x, clean, cond, block_mask=ChunkMask(chunk))
        for start in range(0, frames, chunk):
            part, latents = cond.frames(start, start + chunk), x[:, :, start : start + chunk]
            parts.append(model(latents, clean, part, cache=cache))
            commit_chunk(model, cache, latents, part)
    assert_close(torch.cat(parts, dim=2), whole, 1e-5)


# --- rollout -----------------------------------------------------------------------------------------------------


def recorded_rollout(model: CausalDiT, variant: str) -> tuple[Tensor, Tensor, float]:
    """Our latents, the recorded ones (both ``[B, F, C, H, W]``) and the tolerance."""
    description, tensors = load("rollout")
    chunk = description["frames_per_block"]
    key, name = {"A": ("timesteps_A", "out.latents"), "B": ("timesteps_B", "out.latents_rounded_timesteps")}[variant]
    settings = RolloutConfig(
        chunk_frames=chunk,
        window_frames=description["local_attn_size_frames"],
        sink_frames=description["sink_size_frames"],
        positions="absolute",
        timesteps=tuple(description[key]),
    )
    # [B, F, C, H, W] -> [chunk, 1, B, C, f, H, W]; renoise [chunk, step, f, C, H, W] -> [chunk, step, 1, C, f, H, W]
    start = tensors["in.noise"].unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4, 5)[:, None]
    again = tensors["in.renoise"].permute(0, 1, 3, 2, 4, 5)[:, :, None]
    cond = whole_clip(tensors, frames=tensors["in.noise"].shape[1])
    with torch.no_grad():
        latents = rollout(model, cond, torch.cat((start, again), dim=1), settings)
    return latents.transpose(1, 2), tensors[name], tolerance_of(description, 1e-5)


@pytest.mark.parametrize("variant", ["A", "B"])
def test_rollout(model, variant):
    latents, recorded, tolerance = recorded_rollout(model, variant)
    assert_close(latents, recorded, tolerance)


def test_rollout_in_bfloat16(model):
    half = CausalDiT(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    latents, recorded, _ = recorded_rollout(half, "B")
    assert rms_error(latents, recorded) < BFLOAT16_RMS


def test_sigmas_of_the_steps():
    description = load_json("rollout")
    for key in ("timesteps_A", "timesteps_B"):
        made = step_sigmas(RolloutConfig(timesteps=tuple(description[key])))
        assert made == pytest.approx(description["sigmas"], abs=1e-6)


# --- teacher -----------------------------------------------------------------------------------------------------


def scales(words: str) -> tuple[float, float]:
    """Text and audio scale as the JSON's words give them: one number for both, or two."""
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", words)]
    return (numbers[0], numbers[1]) if len(numbers) > 1 else (numbers[0], numbers[0])


def teacher_flows(model: CausalDiT, tensors: dict[str, Tensor], x: Tensor, t: Tensor, image: Tensor) -> list[Tensor]:
    """Flow for (negative text, silent), (text, audio), (text, silent)."""
    audio = pack_audio(tensors["in.audio_raw"])
    positive = pad_rows(tensors["in.context_rows"], TEXT_ROWS)
    negative = pad_rows(tensors["in.context_neg_rows"], TEXT_ROWS)
    choices = ((negative, None), (positive, audio), (positive, None))
    with torch.no_grad():
        return [model(x, t, Conditions(image, sound, text)) for text, sound in choices]


def test_teacher_and_guidance(model):
    description, tensors = load("bidirectional")
    tolerance = tolerance_of(description, 2e-5)
    flows = teacher_flows(model, tensors, tensors["in.x"], tensors["in.timestep"], tensors["in.y"])
    made = dict(zip(("out.neg", "out.pos", "out.pos_noaudio"), flows, strict=True))
    for name in ("out.cfg_joint", "out.cfg_split"):
        made[name] = guide(flows[0], flows[1], *scales(description["notes"][name]), flows[2])
    for name, value in made.items():
        assert_close(value, tensors[name], tolerance)


@pytest.mark.parametrize("loop", ["joint", "split"])
def test_teacher_trajectories(model, loop):
    description, tensors = load("bidirectional")
    if f"loop.{loop}.trajectory" not in tensors:
        pytest.skip(f"bidirectional has no loop {loop}")
    image = tensors.get(f"loop.{loop}.y", tensors["in.y"])
    fixed = tensors[f"loop.{loop}.fixed_latents"]
    given = image[:, -1:, :, :1, :1] == 0
    schedule = FlowSchedule(len(description["loop_sigmas"]), 5.0)
    schedule.sigmas = torch.tensor(description["loop_sigmas"])
    schedule.timesteps = torch.tensor(description["loop_timesteps"])
    guidance = Guidance(*scales(description["notes"][f"loop.{loop}"]))
    score = Score(model, guidance=guidance, negative_text=pad_rows(tensors["in.context_neg_rows"], TEXT_ROWS))
    text = pad_rows(tensors["in.context_rows"], TEXT_ROWS)
    branches = score.branches(Conditions(image, pack_audio(tensors["in.audio_raw"]), text))
    made = integrate(
        lambda x, t: score.flow(x, t, branches),
        tensors["loop.noise"],
        schedule,
        lambda x: torch.where(given, fixed, x),
        range(len(schedule.sigmas)),
    )
    recorded = tensors[f"loop.{loop}.trajectory"]
    assert_close(made[-len(recorded) :], recorded, tolerance_of(description, 2e-5))


def test_one_chunk_of_all_frames_equals_the_teacher(model):
    description, tensors = load("bidirectional")
    x, cond = tensors["in.x"], whole_clip(tensors)
    with torch.no_grad():
        out = model(x, tensors["in.timestep"], cond, block_mask=ChunkMask(x.shape[2]))
    assert_close(out, tensors["out.pos"], tolerance_of(description, 2e-5))


# --- schedule ----------------------------------------------------------------------------------------------------

TABLES = {
    "inference_4_steps_shift5": (4, 5.0),
    "training_1000_steps_shift5": (1000, 5.0),
    "score_models_1000_steps_shift8": (1000, 8.0),
    "teacher_50_steps_shift5": (50, 5.0),
}
LOOKUPS = {"shift5": (1000, 5.0), "shift8": (1000, 8.0), "inference4": (4, 5.0)}


@pytest.mark.parametrize("name", TABLES)
def test_schedule_tables(name):
    recorded = load_json("scheduler").get(name)
    if recorded is None:
        pytest.skip(f"scheduler has no {name}")
    table = FlowSchedule(*TABLES[name])
    made = {"sigmas": table.sigmas, "timesteps": table.timesteps, "weights": table.training_weights()}
    for key, values in recorded.items():
        quantity = made.get(key.split("_")[0])
        if quantity is None:
            continue
        if end := re.search(r"_(first|last)(\d+)$", key):
            quantity = quantity[: int(end[2])] if end[1] == "first" else quantity[-int(end[2]) :]
        if key == "timesteps_bfloat16":
            quantity = quantity.to(torch.bfloat16)
        assert_close(quantity.float(), torch.tensor(values), 1e-6)


@pytest.mark.parametrize("name", LOOKUPS)
def test_nearest_entries(name):
    table = FlowSchedule(*LOOKUPS[name])
    for t, (index, timestep, sigma) in load_json("scheduler")["nearest_lookup"][name].items():
        place = table.nearest(float(t))
        assert int(place) == index
        assert float(table.timesteps[place]) == pytest.approx(timestep, rel=1e-6)
        assert float(table.sigma(float(t))) == pytest.approx(sigma, rel=1e-6)


def test_warped_list_and_weights_and_noise():
    description, table = load_json("scheduler"), FlowSchedule(1000, 5.0)
    warped = description["warp_of_1000_750_500_250_on_the_1000_step_table"]
    assert table.warp((1000, 750, 500, 250)) == pytest.approx(warped, rel=1e-6)
    weights = table.training_weights()
    for t, weight in description["training_weight_lookup"].items():
        assert float(weights[table.nearest(float(t))]) == pytest.approx(weight, rel=1e-5, abs=1e-6)
    for index, t in description["dmd_timestep_warp"]["examples"].items():
        assert float(dmd_timestep(torch.tensor(int(index)))) == pytest.approx(t, rel=1e-6)
    example = description["add_noise"]["example"]
    x0, noise = torch.tensor(example["x0"]), torch.tensor(example["noise"])
    for key, source in (("shift5_table", table), ("inference4_table", FlowSchedule(4, 5.0))):
        sigma = source.sigma(example["timestep"])
        assert float(add_noise(x0, noise, sigma)) == pytest.approx(example[key], rel=1e-6)


def test_denoising_leaves_its_noise_alone(model):
    description, tensors = load("rollout")
    chunk = description["frames_per_block"]
    settings = RolloutConfig(chunk, 2 * chunk, chunk, timesteps=(1000.0,))
    noise = tensors["in.noise"][:, :chunk].transpose(1, 2)[None].contiguous()
    before = noise.clone()
    cond = whole_clip(tensors, frames=chunk)
    with torch.no_grad():
        latents = denoise_chunk(model, new_cache(model, settings, latent_shape(noise[0])), cond, noise, settings)
    assert torch.equal(noise, before)
    assert torch.equal(latents[:, :, :1], tensors["in.image_latent"])


def test_published_sizes_have_the_published_number_of_parameters():
    def count(layers: int) -> tuple[int, int]:
        with torch.device("meta"):
            network = CausalDiT(ModelConfig(1536, 12, layers, 8960, 4096, 512, 256, 10_752))
        return sum(parameter.numel() for parameter in network.parameters()), len(network.state_dict())

    # Two layers and one audio projection more, thirteen times: cheaper than thirty layers.
    (small, few), (large, many) = count(4), count(6)
    numbers, tensors = small + 13 * (large - small), few + 13 * (many - few)
    assert (numbers, tensors) == (1_421_187_232, 857)
