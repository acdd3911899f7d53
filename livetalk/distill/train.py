"""The recipe, stage by stage: from nothing to a folder that ``livetalk.load`` opens.

``rulers`` trains what measures, ``audio`` and ``vae`` the two encoders, ``data`` makes the clips and stores them
through the frozen encoders, ``reader`` learns to see mouth and mood in them, ``teacher`` trains the many-step network,
``ode`` turns it into a few-step causal student, ``dmd`` teaches that student on its own rollouts, ``export`` writes the
weights people load. Every stage leaves its result in the run's folder, takes those of earlier stages from there, and
goes on where it was stopped.

This module knows the order. It does not know how a stage works, nor its budget (``recipes``).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from livetalk.config import to_dict
from livetalk.distill import audio, dmd, ode, reader, rulers, teacher
from livetalk.distill.data import CLIPS_PER_SHARD, ClipStore, Encoders, write_shards
from livetalk.distill.learner import save_tensors
from livetalk.distill.loop import LOG_FILE, Loop, LoopConfig, code_version
from livetalk.distill.pairs import write_pairs
from livetalk.distill.ranks import Engine, Team, default_ranks, one_thread, run_ranks, run_shares, training_device
from livetalk.distill.recipes import Recipe, recipe
from livetalk.distill.sheets import rollout_sheet
from livetalk.distill.speech import HELD_OUT_SEED
from livetalk.distill.vae import train_vae
from livetalk.engine import fast_dtype
from livetalk.hub import read_checkpoint, save_models
from livetalk.model.mel import MelAudioEncoder
from livetalk.model.originals import load_vae, read_tensors
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.model.storage import load_part
from livetalk.model.text import WordsTextEncoder
from livetalk.model.transformer import CausalDiT
from livetalk.model.vae import WanVideoVAE
from livetalk.model.weights import load_transformer_state, original_state
from livetalk.rulers import PROBE_FILE
from livetalk.types import PICTURES_PER_LATENT, LiveTalkError

log = logging.getLogger(__name__)

Stage = Literal["rulers", "audio", "vae", "data", "reader", "teacher", "ode", "dmd", "export"]
STAGES: tuple[Stage, ...] = ("rulers", "audio", "vae", "data", "reader", "teacher", "ode", "dmd", "export")
SHARED: tuple[Stage, ...] = ("teacher", "ode", "dmd")
"""Stages that several ranks of ``accelerate launch`` work on together."""

LAUNCHED = "ACCELERATE_MIXED_PRECISION"
"""What ``accelerate launch`` leaves in the environment."""

NEW_COLUMNS = 0.25
"""Size of the weights that a base gets for driven columns it does not know; those it knows have about as much."""

RESULT = "model.safetensors"
"""In the folder of each stage that trains the generator: its moving average, float32."""

Figures = dict[str, Any]
ConfigT = TypeVar("ConfigT", teacher.TeacherConfig, ode.OdeConfig, dmd.DmdConfig)


def run(stage: str, config: str = "mini", folder: Path = Path("runs/mini"), base: Path | None = None) -> Figures:
    """Run one stage, or all of them.

    Args:
        stage: one of ``STAGES``, or "all".
        config: name of a recipe, or a JSON file with one.
        folder: the run's folder.
        base: a finished model to go on from, see ``Recipe.base``; None = as the recipe says.

    Returns:
        Figures of the stages, plain data.

    Raises:
        LiveTalkError: unknown stage or recipe, a missing earlier stage, or missing tools.
    """
    if stage != "all" and stage not in STAGES:
        raise LiveTalkError(f"There is no stage {stage!r}. Stages: {', '.join(STAGES)}, all.")
    chosen = recipe(config) if base is None else replace(recipe(config), base=str(base))
    return run_recipe(chosen, folder, STAGES if stage == "all" else [name for name in STAGES if name == stage])


def run_recipe(chosen: Recipe, folder: Path, stages: Sequence[Stage] = STAGES) -> Figures:
    """Run stages of a recipe in their order; see ``run``. Under ``accelerate launch`` it trains with accelerate."""
    if LAUNCHED in os.environ:
        loops = {name: getattr(chosen, name) for name in ("teacher_loop", "ode_loop", "dmd_loop")}
        chosen = replace(chosen, **{name: replace(loop, engine="accelerate") for name, loop in loops.items()})
    team = Team.join(chosen.dmd_loop.engine)
    folder.mkdir(parents=True, exist_ok=True)
    if team.rank == 0:
        (folder / "recipe.json").write_text(json.dumps(to_dict(chosen), indent=1) + "\n")
        with (folder / "stages.jsonl").open("a") as file:
            file.write(json.dumps({"stages": list(stages), "commit": code_version()}) + "\n")
    figures: Figures = {}
    for name in stages:
        if team.ranks > 1 and name not in SHARED and chosen.given is None:
            raise LiveTalkError(
                f"The stage {name!r} is not shared by several ranks. Run it without 'accelerate launch'; these are: "
                f"{', '.join(SHARED)}."
            )
        log.info("stage %s", name)
        if team.rank == 0 or name in SHARED:
            with one_thread() if chosen.ranks == 1 else nullcontext():
                figures[name] = _RUNNERS[name](chosen, folder)
        team.wait()
    return figures


def _train_rulers(chosen: Recipe, folder: Path) -> Figures:
    if chosen.given is not None:
        return _nothing("the rulers know drawn faces only")
    if chosen.base:
        (folder / "model").mkdir(exist_ok=True)
        shutil.copyfile(_given(Path(chosen.base) / PROBE_FILE.name), folder / "model" / PROBE_FILE.name)
        return _nothing(f"taken from {chosen.base}")
    return {"held_out": rulers.run(folder / "model" / PROBE_FILE.name, chosen.rulers)}


def _train_audio(chosen: Recipe, folder: Path) -> Figures:
    if chosen.given is not None:
        return _nothing("wav2vec2 is given")
    (folder / "audio").mkdir(exist_ok=True)
    encoder = MelAudioEncoder(chosen.preset.audio, chosen.preset.model.heard_width)
    if chosen.base:
        return _take_encoder(chosen, encoder, "audio", folder)
    return {"open_wide_teeth": audio.run(folder / "audio", chosen.audio, encoder)}


def _train_vae(chosen: Recipe, folder: Path) -> Figures:
    if chosen.given is not None:
        return _nothing("the VAE is given")
    (folder / "vae").mkdir(exist_ok=True)
    if chosen.base:
        return _take_encoder(chosen, SmallVideoVAE(chosen.preset.vae), "vae", folder)
    return {"weights": str(train_vae(folder / "vae", chosen.preset.vae, chosen.vae))}


def _take_encoder(chosen: Recipe, module: nn.Module, part: str, folder: Path) -> Figures:
    """An encoder of the base takes the place of a trained one."""
    save_tensors(folder / part / f"{part}.safetensors", _from_base(chosen, module, part).state_dict())
    return _nothing(f"taken from {chosen.base}")


def _from_base(chosen: Recipe, module: nn.Module, part: str) -> nn.Module:
    """``module`` with the weights that the base has for it."""
    preset, state = read_checkpoint(Path(chosen.base))
    missing = chosen.preset.model.drive_width - preset.model.drive_width
    if missing > 0:
        name = "transformer.audio_proj.proj.weight"
        state[name] = _with_columns(state[name], missing)
    load_part(module, part, state, chosen.base)
    return module


def _with_columns(weight: Tensor, count: int) -> Tensor:
    """An audio projection that also takes ``count`` more driven columns; small random values, from 0 it learns late."""
    rows = weight.unflatten(1, (PICTURES_PER_LATENT, -1))
    fresh = torch.randn(*rows.shape[:2], count, generator=torch.Generator().manual_seed(0))
    return torch.cat((rows, NEW_COLUMNS * fresh), dim=2).flatten(1)


def _make_data(chosen: Recipe, folder: Path) -> Figures:
    """Make clips in several processes; shards that exist already are kept."""
    if chosen.clips == 0 and not list((folder / "clips").glob("shard-*")):
        raise LiveTalkError(
            f"There are no clips in {folder / 'clips'}. This recipe learns from real ones: make them with "
            "'python -m livetalk curate'."
        )
    wanted = {"clips": range(chosen.clips), "held-out": range(HELD_OUT_SEED, HELD_OUT_SEED + chosen.sheet_clips)}
    shares = [
        (chosen, folder, name, seeds[first : first + CLIPS_PER_SHARD])
        for name, seeds in wanted.items()
        for first in range(0, len(seeds), CLIPS_PER_SHARD)
        if chosen.clips
    ]
    run_shares(chosen.ranks or default_ranks(), _make_shard, shares, "shards of clips", not sys.stderr.isatty())
    return {"clips": len(ClipStore(folder / "clips"))}


def _make_shard(share: tuple[Recipe, Path, str, range]) -> None:
    """One share of the data, made in a process of its own."""
    chosen, folder, name, seeds = share
    text = WordsTextEncoder(chosen.preset.model.text_tokens, chosen.preset.model.text_width)
    vae = _small_vae(chosen, folder).prepare_for_inference(fast_dtype(training_device("ranks")))
    encoders = Encoders(vae, _ear(chosen, folder), text)
    write_shards(folder / name, seeds, chosen.clip_frames, chosen.preset, encoders)


def _train_reader(chosen: Recipe, folder: Path) -> Figures:
    if not (chosen.teacher.reader_weight or chosen.ode.reader_weight or chosen.dmd.reader_weight):
        return _nothing("nothing here is weighed by a reader")
    _need(folder / "clips", "data")
    return _in_ranks(chosen, folder, "reader", chosen.reader_loop, _reader_rank)


def _reader_rank(chosen: Recipe, folder: Path) -> None:
    _keep(reader.train(folder / "clips", folder / "reader", chosen.reader_loop))


def _reader(weight: float, folder: Path) -> reader.Reader | None:
    return reader.load_reader(_need(folder / "reader" / RESULT, "reader")) if weight else None


def _train_teacher(chosen: Recipe, folder: Path) -> Figures:
    if chosen.given is not None:
        return _take_given(chosen, folder)
    _need(folder / "clips", "data")
    return _in_ranks(chosen, folder, "teacher", chosen.teacher_loop, _teacher_rank)


def _teacher_rank(chosen: Recipe, folder: Path) -> None:
    plan, loop = _fast(chosen.teacher, chosen.teacher_loop), chosen.teacher_loop
    place, look = folder / "teacher", _sheets(chosen, folder, loop.engine)
    begin = None
    if chosen.base:
        begin = _from_base(chosen, CausalDiT(chosen.preset.model), "transformer").state_dict()
    vae, seen = _small_vae(chosen, folder), _reader(plan.reader_weight, folder)
    _keep(teacher.train(chosen.preset, folder / "clips", place, vae, loop, plan, look, begin, seen))


def _take_given(chosen: Recipe, folder: Path) -> Figures:
    """The given network of the student's size takes the place of a trained teacher: trajectories, first weights."""
    assert chosen.given is not None
    path = _given(folder / chosen.given.student)
    student = CausalDiT(chosen.preset.model)
    load_transformer_state(student, original_state(read_tensors(path)), str(path))
    if Team.join(chosen.dmd_loop.engine).rank == 0:
        (folder / "teacher").mkdir(exist_ok=True)
        save_tensors(folder / "teacher" / RESULT, student.state_dict())
    return {"parameters": sum(weight.numel() for weight in student.parameters())}


def _train_ode(chosen: Recipe, folder: Path) -> Figures:
    _need(folder / "teacher" / RESULT, "teacher")
    return _in_ranks(chosen, folder, "ode", chosen.ode_loop, _ode_rank)


def _ode_rank(chosen: Recipe, folder: Path) -> None:
    loop, plan = chosen.ode_loop, _fast(chosen.ode, chosen.ode_loop)
    start = folder / "teacher" / RESULT
    pairs = folder / "pairs"
    write_pairs(chosen.preset, folder / "clips", pairs, start, chosen.pairs, Team.join(loop.engine))
    vae = None if plan.plain else _small_vae(chosen, folder)
    look = _sheets(chosen, folder, loop.engine)
    seen = _reader(plan.reader_weight or plan.real.reader_weight, folder)
    _keep(ode.train(chosen.preset, pairs, folder / "ode", vae, loop, plan, look, load_file(start), seen))


def _train_dmd(chosen: Recipe, folder: Path) -> Figures:
    _need(folder / "ode" / RESULT, "ode")
    return _in_ranks(chosen, folder, "dmd", chosen.dmd_loop, _dmd_rank)


def _dmd_rank(chosen: Recipe, folder: Path) -> None:
    loop, plan = chosen.dmd_loop, _fast(chosen.dmd, chosen.dmd_loop)
    begin = folder / "teacher" / RESULT
    judge = begin if chosen.given is None else _given(folder / chosen.given.teacher)
    weights = dmd.StartWeights(student=folder / "ode" / RESULT, teacher=judge, critic=begin)
    look = _sheets(chosen, folder, loop.engine)
    seen = _reader(plan.reader_weight, folder)
    _keep(dmd.train(chosen.preset, folder / "clips", folder / "dmd", weights, loop, plan, look, reader=seen))


def _export(chosen: Recipe, folder: Path) -> Figures:
    """Write what the last stage trained; a teacher, too, can be rolled out chunk by chunk, with guidance."""
    results = [folder / stage / RESULT for stage in ("dmd", "ode", "teacher")]
    trained = next((path for path in results if path.is_file()), None) or _need(results[0], "dmd")
    model = CausalDiT(chosen.preset.model)
    weights = load_file(trained)
    if chosen.teacher_blend and trained.parent.name != "teacher":
        teacher_weights = load_file(folder / "teacher" / RESULT)
        weights = {name: value.lerp(teacher_weights[name], chosen.teacher_blend) for name, value in weights.items()}
    model.load_state_dict(weights)
    if chosen.given is not None:
        (folder / "model").mkdir(exist_ok=True)
        save_tensors(folder / "model" / RESULT, {name: value.bfloat16() for name, value in model.state_dict().items()})
    else:
        modules = {"transformer": model, "vae": _small_vae(chosen, folder), "audio": _ear(chosen, folder)}
        # guidance is in the student's weights already: it was in the trajectories and in the teacher's score
        guidance = chosen.preset.rollout.audio_guidance if trained.parent.name == "teacher" else 0.0
        preset = replace(chosen.preset, rollout=replace(chosen.preset.rollout, audio_guidance=guidance))
        save_models(folder / "model", preset, modules, chosen.storage)
    return {"folder": str(folder / "model"), "of": trained.parent.name}


_RUNNERS: Mapping[Stage, Callable[[Recipe, Path], Figures]] = {
    "rulers": _train_rulers,
    "audio": _train_audio,
    "vae": _train_vae,
    "data": _make_data,
    "reader": _train_reader,
    "teacher": _train_teacher,
    "ode": _train_ode,
    "dmd": _train_dmd,
    "export": _export,
}


def _in_ranks(chosen: Recipe, folder: Path, stage: str, loop: LoopConfig, work: Callable[..., None]) -> Figures:
    """Train a stage in all ranks; returns the last line of its log that has a loss."""
    if loop.engine == "accelerate":
        work(chosen, folder)
    else:
        run_ranks(chosen.ranks, work, chosen, folder)
    lines = [json.loads(line) for line in (folder / stage / LOG_FILE).read_text().splitlines()]
    return next(line for line in reversed(lines) if "loss" in line)


def _keep(loop: Loop) -> None:
    """Write the result of a stage for the next one."""
    if loop.team.rank == 0:
        save_tensors(loop.folder / RESULT, loop.averaged())
    loop.team.wait()


def _fast(config: ConfigT, loop: LoopConfig) -> ConfigT:
    """The stage's settings with the number format that its device is fast at."""
    return replace(config, dtype=str(fast_dtype(training_device(loop.engine))).removeprefix("torch."))


def _sheets(chosen: Recipe, folder: Path, engine: Engine) -> Callable[[Loop], None] | None:
    """Contact sheets at checkpoints, if there are held-out clips and a VAE to show them with."""
    vae, device = _any_vae(chosen, folder), training_device(engine)
    if vae is None or not list((folder / "held-out").glob("shard-*")):
        return None
    vae.to(device).prepare_for_inference(fast_dtype(device))

    def look(loop: Loop) -> None:
        model = CausalDiT(chosen.preset.model)
        model.load_state_dict(loop.averaged())
        model.to(device).prepare_for_inference(fast_dtype(device))
        sheet = rollout_sheet(model, vae, ClipStore(folder / "held-out"), chosen.preset)
        sheet.save(loop.folder / f"step-{loop.step:06d}.png")

    return look


def _any_vae(chosen: Recipe, folder: Path) -> SmallVideoVAE | WanVideoVAE | None:
    if chosen.given is None:
        return _small_vae(chosen, folder)
    path = folder / chosen.given.vae
    return _frozen(load_vae(path)) if path.is_file() else None


def _small_vae(chosen: Recipe, folder: Path) -> SmallVideoVAE:
    vae = SmallVideoVAE(chosen.preset.vae)
    vae.load_state_dict(load_file(_need(folder / "vae" / "vae.safetensors", "vae")))
    return _frozen(vae)


def _ear(chosen: Recipe, folder: Path) -> MelAudioEncoder:
    encoder = MelAudioEncoder(chosen.preset.audio, chosen.preset.model.heard_width)
    encoder.load_state_dict(load_file(_need(folder / "audio" / "audio.safetensors", "audio")))
    return _frozen(encoder)


def _frozen(module: Any) -> Any:
    assert isinstance(module, nn.Module)
    return module.eval().requires_grad_(False)


def _need(path: Path, stage: Stage) -> Path:
    """``path``, or a sentence that names the stage that makes it."""
    if not path.exists():
        raise LiveTalkError(f"{path} is missing. Run 'python -m livetalk distill {stage}' into the same folder first.")
    return path


def _given(path: Path) -> Path:
    if not path.is_file():
        raise LiveTalkError(f"{path} is missing. This recipe starts from published weights: put them there.")
    return path


def _nothing(reason: str) -> Figures:
    return {"skipped": reason}
