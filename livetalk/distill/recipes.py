"""What each run is made of: sizes, budgets and rates of every stage, by name.

``mini`` is the embedded model, from nothing on two CPU cores. ``smoke`` is the same in a minute, for tests.
``livetalk-1.3b`` is the paper's student on a cluster. This module does not know how a stage works.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from livetalk.config import LIVETALK_1_3B, MINI, Preset, from_dict
from livetalk.distill.audio import EarTraining
from livetalk.distill.clip_pool import CropSettings
from livetalk.distill.dmd import DmdConfig, critic_rates
from livetalk.distill.loop import LoopConfig
from livetalk.distill.ode import OdeConfig
from livetalk.distill.pairs import PairConfig
from livetalk.distill.rulers import ProbeTraining
from livetalk.distill.sizes import TINY
from livetalk.distill.teacher import TeacherConfig
from livetalk.distill.vae import VaeRecipe, VaeTraining
from livetalk.model.storage import Storage
from livetalk.types import LiveTalkError

OMNIAVATAR_14B = replace(LIVETALK_1_3B.model, width=5_120, heads=40, layers=40, ffn_width=13_824)
"""Sizes of the paper's teacher, a Wan2.1-T2V-14B with audio."""


@dataclass(frozen=True)
class GivenWeights:
    """Published networks a run starts from instead of training them; paths inside the run's folder.

    Attributes:
        student: bidirectional network of the student's size: makes the trajectories, starts student and critic.
        teacher: the larger network whose score is matched.
        vae: for contact sheets; none are drawn if the file is not there.
    """

    student: str = "given/student.safetensors"
    teacher: str = "given/teacher.safetensors"
    vae: str = "given/Wan2.1_VAE.pth"


@dataclass(frozen=True)
class Recipe:
    """One run of all stages.

    Attributes:
        preset: the student.
        clips: clips to make, with seeds 0, 1, ...; 0 = the folder ``clips`` holds curated ones.
        clip_frames: latent frames of each.
        sheet_clips: held-out clips that contact sheets show.
        ranks: processes of one thread that train together on a CPU; 0 = one per core, at most four.
        given: networks that are not trained here; None = ``rulers``, ``audio``, ``vae`` and ``teacher`` train them.
        base: folder of a finished model of these sizes to go on from: its probe and encoders are taken as they are, and
            the teacher's training starts from its generator; "" = everything from nothing.
        rulers, audio, vae: settings of these stages.
        reader_loop: length and rates of the reader; it is trained if ``reader_weight`` of a later stage is not 0.
        teacher, teacher_loop: what the teacher's batches look like; length and rates.
        pairs: how the teacher's trajectories are made.
        ode, ode_loop: the same two for ODE initialisation.
        dmd, dmd_loop: the same two for on-policy distillation.
        teacher_blend: share of the teacher's weights in what is exported, 0..1: the student starts from them, and
            between the two lies a network with the student's obedience and the teacher's detail (Wortsman et al. 2022,
            "Robust fine-tuning of zero-shot models").
        storage: number format of the exported matrices.
    """

    preset: Preset
    clips: int = 1_600
    clip_frames: int = 33
    sheet_clips: int = 3
    ranks: int = 0
    given: GivenWeights | None = None
    base: str = ""
    rulers: ProbeTraining = field(default_factory=ProbeTraining)
    audio: EarTraining = field(default_factory=EarTraining)
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    reader_loop: LoopConfig = field(default_factory=LoopConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teacher_loop: LoopConfig = field(default_factory=LoopConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    ode: OdeConfig = field(default_factory=OdeConfig)
    ode_loop: LoopConfig = field(default_factory=LoopConfig)
    dmd: DmdConfig = field(default_factory=DmdConfig)
    dmd_loop: LoopConfig = field(default_factory=LoopConfig)
    teacher_blend: float = 0.0
    storage: Storage = "float16"


def _on_policy(learning_rate: float, budget_s: float) -> LoopConfig:
    """A loop as Self-Forcing's trainer has it (spec section 10.5): constant rate, no momentum in Adam."""
    return LoopConfig(
        budget_s=budget_s,
        learning_rate=learning_rate,
        last_rate=1.0,
        betas=(0.0, 0.999),
        warmup_steps=0,
        clip_norm=10.0,
        average_decay=0.99,
        late_average_decay=0.99,
        average_from_step=200,
    )


def recipe(name: str) -> Recipe:
    """The recipe of that name, or one from a JSON file such as a run's ``recipe.json``.

    Raises:
        LiveTalkError: no such recipe, or the file does not describe one.
    """
    if name.endswith(".json"):
        try:
            return from_dict(Recipe, json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            reason = f"{name} could not be read as a recipe: {error}."
            raise LiveTalkError(f"{reason} Take the recipe.json of a run.") from error
    makers = {"mini": _mini, "smoke": _smoke, "livetalk-1.3b": _livetalk}
    if name not in makers:
        raise LiveTalkError(f"There is no recipe {name!r}. Known recipes: {', '.join(makers)}, or a JSON file.")
    return makers[name]()


def _mini() -> Recipe:
    """The embedded model, from nothing; the budgets are seconds on two cores that have nothing else to do."""
    matrices = LoopConfig(
        learning_rate=1.2e-3,
        matrix_rate=0.01,
        warmup_steps=30,
        average_decay=0.98,
        late_average_decay=0.99,
        checkpoint_every_s=150.0,
    )
    batches = TeacherConfig(
        batch=7,
        whole_batch=3,  # whole clips are dear on a CPU
        whole_share=0.25,
        start_share=0.45,
        change_share=0.5,
        same_level_share=0.3,
        step_share=0.5,
        blink_share=0.4,  # blinks are short and would be learned last
        blink_weight=6.0,
        reader_weight=0.5,
    )
    real = replace(batches, batch=5, whole_share=0.0, same_level_share=0.0, step_share=0.6, sinks=(3, 6, 9))
    ode = OdeConfig(
        batch=2,
        sinks=(3, 6, 9),
        past_share=0.25,
        flawed_share=0.15,
        real_share=0.25,
        real=real,
        level_floor=0.25,
        reader_weight=0.5,
    )
    critic = replace(critic_rates(), learning_rate=2e-5)
    dmd = DmdConfig(
        batch=2,
        every=2,
        alone=15,
        text_scale=1.8,
        audio_scale=1.8,
        mouth_weight=3.0,
        eye_weight=3.0,
        past_noise=0.05,
        critic=critic,
    )
    return Recipe(
        MINI,
        clips=960,
        reader_loop=LoopConfig(
            budget_s=150.0, learning_rate=2e-3, weight_decay=0.02, average_decay=0.98, late_average_decay=0.995
        ),
        teacher=batches,
        teacher_loop=replace(matrices, budget_s=4_000.0),
        pairs=PairConfig(clips=320, steps=12, order=2, text_scale=1.8, audio_scale=1.8, dtype="bfloat16"),
        ode=ode,
        ode_loop=replace(matrices, budget_s=840.0, learning_rate=4e-4, matrix_rate=0.003, warmup_steps=20),
        dmd=dmd,
        dmd_loop=replace(
            _on_policy(learning_rate=1e-5, budget_s=600.0),
            last_rate=0.1,
            average_decay=0.97,
            late_average_decay=0.97,
            average_from_step=0,
        ),
        teacher_blend=0.6,  # less, and still parts flicker; more, and moods are followed less
    )


def _smoke() -> Recipe:
    """Everything tiny and a handful of steps, but every part of mini's networks and losses."""
    model = replace(TINY.model, audio_width=8 + MINI.model.drive_width, drive_width=MINI.model.drive_width)
    preset = replace(TINY, name="smoke", title="Smoke test", model=replace(model, pooled_text=MINI.model.pooled_text))
    loop = LoopConfig(steps=10, warmup_steps=1, log_every=1, learning_rate=2e-3, matrix_rate=0.01, average_decay=0.7)
    patient = replace(loop, steps=80, learning_rate=5e-4, matrix_rate=0.002, average_decay=0.9)
    crops = CropSettings(batch=2, pixels=16, pictures=5)
    teacher = TeacherConfig(batch=3, whole_frames=9, whole_batch=2, sinks=(0, 3), reader_weight=0.1)
    critic = replace(critic_rates(), learning_rate=1e-3)
    return Recipe(
        preset=preset,
        clips=4,
        clip_frames=12,
        sheet_clips=1,
        ranks=1,
        rulers=ProbeTraining(faces=8, pictures_per_face=2, batch=8, steps=12, judged_faces=4),
        audio=EarTraining(clips=8, seconds=2.0, batch=4, evaluation_clips=0, loop=loop),
        vae=VaeRecipe(
            clips=4,
            clip_pictures=9,
            picture_pixels=32,
            start_crops=8,  # a poor start, so that a few steps can be seen to help
            ranks=1,
            joint=VaeTraining(patient, crops=crops),
        ),
        reader_loop=patient,
        teacher=teacher,
        teacher_loop=loop,
        pairs=PairConfig(clips=4, frames=9, batch=2, steps=4),
        ode=OdeConfig(batch=2, real=teacher, reader_weight=0.1),
        ode_loop=loop,
        dmd=DmdConfig(batch=2, frames=(9,), scored_frames=9, every=2, alone=2, critic=critic, reader_weight=0.01),
        dmd_loop=replace(_on_policy(learning_rate=1e-4, budget_s=60.0), steps=8, log_every=1),
    )


def _livetalk() -> Recipe:
    """The paper's run (arXiv 2512.23576, appendix; "configs" = the published configuration files).

    Start it with ``accelerate launch --mixed_precision bf16 -m livetalk distill STAGE --config livetalk-1.3b`` on
    64 processes (GPUs times nodes; batch 1 each, total batch 64 as in paper and configs), or on fewer with a larger
    ``batch``. Master weights, average and two moments of student and critic are kept in float32 on every GPU:
    16 bytes a parameter, 42 GB, beside 28 GB of the frozen 14B teacher in bf16. With some 45 GB for the activations
    of one clip (an estimate; nothing of this was run at full size) that is for GPUs of 141 GB.
    """
    adam = LoopConfig(
        learning_rate=4e-5,  # paper and configs
        last_rate=1.0,  # no annealing is mentioned
        betas=(0.9, 0.999),  # paper and configs
        weight_decay=0.0,  # paper and configs
        warmup_steps=0,
        clip_norm=10.0,  # Self-Forcing's trainer; the LiveTalk trainer is not published
        steps=20_000,  # paper: converged ODE initialisation (its baseline has 4k)
        average_decay=0.99,
        late_average_decay=0.99,
        checkpoint_every_s=1_800.0,
        seed=42,  # configs
        engine="accelerate",
    )
    return Recipe(
        preset=LIVETALK_1_3B,  # velocity, shift 5, timesteps 1000, 936, 832, 624 (configs), absolute positions below
        clips=0,  # paper: 4000 curated conditions, 2000 of Hallo3 and 2000 of HDTF; made by `distill curate`
        clip_frames=21,  # paper: 5 s; configs: 21 x 16 x 64 x 64
        sheet_clips=2,
        given=GivenWeights(),  # merged OmniAvatar-1.3B and -14B (paper), converted to safetensors
        # paper: trajectories of the bidirectional 1.3B, guidance 4.5 (text and audio alike), 48 steps
        pairs=PairConfig(clips=4_000, frames=21, batch=1, steps=48, text_scale=4.5, audio_scale=4.5, dtype="bfloat16"),
        # configs: all chunks before (no window, no sinks); plain mean square, frame 0 included (spec section 10.1)
        ode=OdeConfig(batch=1, windowed=False, plain=True, dtype="bfloat16"),
        ode_loop=adam,
        dmd=DmdConfig(
            batch=1,
            frames=(21,),  # configs; every frame is judged
            scored_frames=21,
            windowed=False,  # configs: unlimited window, no sinks
            # configs: guidance 5 and 5 by the joint formula, whose strength is 5 + 1: the paper's CFG 6 (spec 10.3)
            text_scale=6.0,
            audio_scale=6.0,
            critic=replace(critic_rates(), learning_rate=8e-7, weight_decay=0.01),  # paper and configs
            every=5,  # paper and configs
            alone=20,  # paper: critic-only warm-up
            critic_floor=0.0,
            teacher_model=OMNIAVATAR_14B,
            critic_model=LIVETALK_1_3B.model,  # paper: the critic is an OmniAvatar-1.3B
            dtype="bfloat16",
        ),
        dmd_loop=replace(
            adam,
            steps=1_000,  # paper: best near 1000, more degrades
            learning_rate=4e-6,  # paper and configs (2x of Self-Forcing's)
            betas=(0.0, 0.999),  # paper and configs
            weight_decay=0.01,  # paper
            average_from_step=200,  # configs
            checkpoint_every_s=600.0,
        ),
    )
