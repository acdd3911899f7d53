"""The paper's ablation in miniature: five recipes of distillation, each with one thing more, judged by our rulers.

The paper (arXiv 2512.23576) starts from Self-Forcing's settings and adds curated conditions, converged ODE
initialisation, twice the learning rate and stronger guidance. Here the same is done to the teacher of a finished run of
``distill``, in steps instead of days: a student per recipe, judged after ODE initialisation and after distribution
matching on newly drawn people. Lengths are counted in steps, so that a busy machine comes to the same result. Every
stage leaves its result in a folder named after its settings: recipes that differ only later share it, and a run that
was stopped goes on.

This module knows the recipes and their order. It does not know how a stage works, nor what its figures mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from livetalk.config import Preset, to_dict
from livetalk.distill import dmd, ode
from livetalk.distill.data import ClipStore
from livetalk.distill.learner import save_tensors
from livetalk.distill.loop import CHECKPOINT, Loop, LoopConfig
from livetalk.distill.pairs import ABOUT_PAIRS, write_pairs
from livetalk.distill.ranks import one_thread, run_ranks, training_device
from livetalk.distill.reader import load_reader
from livetalk.distill.recipes import Recipe, recipe
from livetalk.distill.speech import HELD_OUT_SEED, HELD_OUT_VOICES
from livetalk.engine import fast_dtype
from livetalk.eval.ablation_beyond import write_beyond
from livetalk.eval.ablation_conditions import FAULTLESS, write_conditions
from livetalk.eval.ablation_measure import Statistics, is_judged, judge_clips, over_seeds, read_judged, statistics_of
from livetalk.eval.ablation_plan import AblationPlan, Arm, check_plan
from livetalk.eval.ablation_report import write_ablation
from livetalk.eval.cases import SET_FILE, CaseSet, read_set, write_set
from livetalk.eval.figures import plain
from livetalk.eval.truth import SetPlan, draw_set
from livetalk.eval.watch import find_probe
from livetalk.hub import CONFIG_NAME, WEIGHTS_NAME, load_models, save_models
from livetalk.model.mel import MelAudioEncoder
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.model.transformer import CausalDiT
from livetalk.types import PICTURES_PER_SECOND, LiveTalkError, pictures_of

log = logging.getLogger(__name__)

FIRST_SEED = HELD_OUT_SEED + 55_000_000
"""Of the people who are judged: the same in every run, never trained on, and on no contact sheet."""

RANKS = 2
RECIPE_FILE = "recipe.json"
RUN_FILES = ("teacher/model.safetensors", "vae/vae.safetensors", "audio/audio.safetensors")


@dataclass(frozen=True)
class FinishedRun:
    """A folder that ``distill`` left: clips, encoders, a teacher, and the recipe they were made by."""

    folder: Path
    recipe: Recipe

    @property
    def preset(self) -> Preset:
        """The student; the guidance is in its weights, so that it needs none."""
        own = self.recipe.preset
        return replace(own, rollout=replace(own.rollout, audio_guidance=0.0))

    @property
    def clips(self) -> Path:
        """Folder of the training clips."""
        return self.folder / "clips"

    @property
    def teacher(self) -> Path:
        """The teacher's weights, which student and critic start from, too."""
        return self.folder / RUN_FILES[0]

    @property
    def reader(self) -> Path:
        """Weights of the reader.

        Raises:
            LiveTalkError: the run has none.
        """
        file = self.folder / "reader" / WEIGHTS_NAME
        if not file.is_file():
            raise LiveTalkError(
                f"{file} is missing: one recipe is trained by a reader. Make it with 'python -m livetalk distill reader"
                f" --out {self.folder}' and the recipe of that run."
            )
        return file

    @property
    def ranks(self) -> int:
        """Processes that train together: the same number everywhere, because it is part of the batch."""
        return self.recipe.ranks or RANKS

    def vae(self) -> SmallVideoVAE:
        """The frozen VAE of the clips."""
        vae = SmallVideoVAE(self.preset.vae)
        vae.load_state_dict(load_file(self.folder / RUN_FILES[1]))
        return vae.eval().requires_grad_(False)

    def ear(self) -> MelAudioEncoder:
        """The frozen audio encoder of the clips."""
        ear = MelAudioEncoder(self.preset.audio, self.preset.model.heard_width)
        ear.load_state_dict(load_file(self.folder / RUN_FILES[2]))
        return ear.eval().requires_grad_(False)

    def named(self, *settings: Any) -> str:
        """Short name of some settings on the weights and clips of this run."""
        weights = [hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in RUN_FILES]
        told = json.dumps([to_dict(self.preset), *weights, *settings], default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def run(folder: Path, out: Path, plan: AblationPlan | None = None) -> dict[str, Any]:
    """Train and judge every recipe, or go on with what ``out`` holds.

    Args:
        folder: a finished run of ``distill``, see ``FinishedRun``.
        out: receives all stages, ``ablation.json``, ``ablation.md``, a plot and pictures.
        plan: how much.

    Returns:
        Plain data: ``arms`` with their figures after ODE initialisation and after distribution matching, and the
        paper's; ``steps`` with what changed from one recipe to the next, and a sentence about it.

    Raises:
        LiveTalkError: the run is not finished, the plan makes no sense, or the renderer is missing.
    """
    plan = plan or AblationPlan()
    check_plan(plan)
    work = _Work(open_run(folder), out, plan)
    if plan.beyond:
        _ = work.given.reader  # tell now what would be missing in an hour
    with one_thread():
        cases_folder, cases = work.cases()
        found: dict[str, list[dict[str, Path]]] = {arm.name: [] for arm in plan.arms}
        for seed in range(plan.seeds):
            for arm in plan.arms:
                log.info("%s, seed %d", arm.name, seed)
                started = work.initialised(arm, seed)
                folders = {"after_ode": started, "after_dmd": work.distilled(arm, seed, started)}
                for stage in folders.values():
                    work.judge(stage, cases_folder, cases)
                found[arm.name].append(folders)
        return _report(out, plan, work, cases, found)


def open_run(folder: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        LiveTalkError: something of it is missing, or it started from published weights.
    """
    for name in (RECIPE_FILE, *RUN_FILES):
        if not (folder / name).is_file():
            raise LiveTalkError(
                f"{folder / name} is missing. The ablation starts from a run with clips, encoders and a teacher: make"
                f" one with 'python -m livetalk distill all --config mini --out {folder}'."
            )
    chosen = recipe(str(folder / RECIPE_FILE))
    if chosen.given is not None:
        raise LiveTalkError(
            f"The run in {folder} starts from published weights, and nothing here can read its pictures. Take a run of"
            " the recipe 'mini'."
        )
    return FinishedRun(folder, chosen)


@dataclass(frozen=True)
class _Work:
    """Stages of the ablation, each with a folder that is named after what is done there; see ``run``."""

    given: FinishedRun
    out: Path
    plan: AblationPlan

    @property
    def dtype(self) -> str:
        """Number format that the machine is fast at."""
        return str(fast_dtype(training_device("ranks"))).removeprefix("torch.")

    @property
    def frames(self) -> int:
        """Latent frames of a clip, a whole number of chunks."""
        chunk = self.given.preset.rollout.chunk_frames
        return min(self.plan.frames, self.given.recipe.clip_frames) // chunk * chunk

    def cases(self) -> tuple[Path, CaseSet]:
        """People who are judged, drawn once, and what the rulers say of their true pictures."""
        seconds = pictures_of(self.frames) / PICTURES_PER_SECOND
        folder = self.out / f"people-{self.given.named(self.plan.clips, seconds)}"
        if not (folder / SET_FILE).is_file():
            teacher = self.out / f"teacher-{self.given.named()}"
            self._export(self.given.teacher, teacher)
            wanted = SetPlan(
                FIRST_SEED, talks=self.plan.clips, seconds=seconds, longs=0, words=0, voices=HELD_OUT_VOICES
            )
            source = f"drawn for the ablation, seeds from {FIRST_SEED}"
            write_set(folder, draw_set(load_models(teacher, "cpu"), find_probe(), wanted, source))
        return folder, read_set(folder)

    def conditions(self, arm: Arm) -> Path:
        """Conditions of a recipe."""
        shares = FAULTLESS if arm.curated else self.plan.faults
        count = self.plan.pairs.clips
        key = self.given.named(to_dict(shares), count, self.frames)
        folder = self.out / f"{_source(arm)}-{key}"
        write_conditions(folder, self.given.clips, count, self.frames, (self.given.vae(), self.given.ear()), shares)
        return folder

    def trajectories(self, arm: Arm) -> Path:
        """The teacher's trajectories over the conditions of a recipe."""
        conditions = self.conditions(arm)
        config = replace(self.plan.pairs, frames=self.frames, dtype=self.dtype, **dict(arm.pairs))
        folder = self.out / f"pairs-{_source(arm)}-{self.given.named(conditions.name, to_dict(config))}"
        files = -(-len(ClipStore(conditions)) // config.batch)
        if not (folder / ABOUT_PAIRS).is_file() or len(list(folder.glob("shard-*.safetensors"))) < files:
            log.info("sampling %s", folder.name)
            arguments = (self.given.preset, conditions, folder, self.given.teacher, config)
            run_ranks(self.given.ranks, write_pairs, *arguments)
        return folder

    def initialised(self, arm: Arm, seed: int) -> Path:
        """Folder of the student of a recipe after ODE initialisation."""
        pairs, loop = self.trajectories(arm), self.plan.initialisation(arm, seed)
        config = replace(self.plan.ode, dtype=self.dtype, **dict(arm.regression))
        key = self.given.named(pairs.name, to_dict(config), to_dict(loop))
        folder = self.out / f"ode-{_source(arm)}-{loop.steps}-seed{seed}-{key}"
        self._train(folder, _ode_rank, (self.given, pairs, folder, loop, config))
        return folder

    def distilled(self, arm: Arm, seed: int, started: Path) -> Path:
        """Folder of the student of a recipe after distribution matching."""
        config, loop = replace(self.plan, frames=self.frames).distillation(arm, seed)
        config, conditions = replace(config, dtype=self.dtype), self.conditions(arm)
        key = self.given.named(started.name, conditions.name, to_dict(config), to_dict(loop))
        what = f"{_source(arm)}-x{config.rate_factor:g}-g{config.audio_scale:.3g}"
        folder = self.out / f"dmd-{what}-seed{seed}-{key}"
        self._train(folder, _dmd_rank, (self.given, conditions, folder, started / WEIGHTS_NAME, loop, config))
        return folder

    def judge(self, stage: Path, cases_folder: Path, cases: CaseSet) -> None:
        """Let the student of a stage perform, if it has not."""
        if not is_judged(stage / "judged", cases):
            log.info("judging %s", stage.name)
            run_ranks(self.given.ranks, judge_clips, stage / "model", cases_folder, stage / "judged")

    def _train(self, folder: Path, work: Any, arguments: tuple[object, ...]) -> None:
        """Train a stage, if it is not done, and leave a model that ``load_models`` opens."""
        if not (folder / WEIGHTS_NAME).is_file():
            log.info("training %s", folder.name)
            run_ranks(self.given.ranks, work, *arguments)
        self._export(folder / WEIGHTS_NAME, folder / "model")

    def _export(self, weights: Path, folder: Path) -> None:
        if (folder / CONFIG_NAME).is_file():
            return
        network = CausalDiT(self.given.preset.model)
        network.load_state_dict(load_file(weights))
        modules = {"transformer": network, "vae": self.given.vae(), "audio": self.given.ear()}
        save_models(folder, self.given.preset, modules)


def _ode_rank(given: FinishedRun, pairs: Path, folder: Path, loop: LoopConfig, config: ode.OdeConfig) -> None:
    start = load_file(given.teacher)
    _keep(ode.train(given.preset, pairs, folder, given.vae(), loop, config, start=start))


def _dmd_rank(
    given: FinishedRun, clips: Path, folder: Path, student: Path, loop: LoopConfig, config: dmd.DmdConfig
) -> None:
    weights = dmd.StartWeights(student=student, teacher=given.teacher, critic=given.teacher)
    seen = load_reader(given.reader) if config.reader_weight else None
    _keep(dmd.train(given.preset, clips, folder, weights, loop, config, reader=seen))


def _keep(loop: Loop) -> None:
    """Write the result of a stage; what only a stopped training needs is thrown away."""
    if loop.team.rank == 0:
        save_tensors(loop.folder / WEIGHTS_NAME, loop.averaged())
        (loop.folder / CHECKPOINT).unlink(missing_ok=True)
    loop.team.wait()


def _source(arm: Arm) -> str:
    return "curated" if arm.curated else "uncurated"


def _report(
    out: Path, plan: AblationPlan, work: _Work, cases: CaseSet, found: dict[str, list[dict[str, Path]]]
) -> dict[str, Any]:
    """Read what was judged and write the report."""
    known: dict[Path, Statistics] = {}
    shown = []
    statistics: dict[str, dict[str, Statistics]] = {}
    for name, seeds in found.items():
        shown.append(read_judged(seeds[0]["after_dmd"] / "judged", cases).shown)
        for stage in {stage for folders in seeds for stage in folders.values()} - known.keys():
            known[stage] = statistics_of(read_judged(stage / "judged", cases), cases)
        statistics[name] = {when: over_seeds([known[folders[when]] for folders in seeds]) for when in seeds[0]}
    about = {
        "run": str(work.given.folder),
        "model": work.given.preset.name,
        "seeds": plan.seeds,
        "scale": plan.scale,
        "clips": len(cases.of_kind("talk")),
        "clip_s": pictures_of(work.frames) / PICTURES_PER_SECOND,
        "settings": [_settings(plan, work, arm) for arm in plan.arms],
    }
    write = write_beyond if plan.beyond else write_ablation
    return write(out, plain(about), statistics, shown)


def _settings(plan: AblationPlan, work: _Work, arm: Arm) -> dict[str, Any]:
    """What a recipe is, in numbers."""
    config, loop = plan.distillation(arm, 0)
    return {
        "setting": arm.name,
        "conditions": f"{len(ClipStore(work.conditions(arm)))} {_source(arm)}",
        "ode_steps": plan.initialisation(arm, 0).steps,
        "dmd_steps": loop.steps,
        "learning_rate": loop.learning_rate * config.rate_factor,
        "critic_rate": config.critic.learning_rate * config.rate_factor,
        "text_guidance": config.text_scale,
        "audio_guidance": config.audio_scale,
    }
