"""Settings of the ablations in miniature: what each recipe has, how long it trains, at which rates.

The paper's baseline is Self-Forcing with its defaults; every recipe adds one thing. What goes beyond the paper is tried
one thing at a time, each against the same recipe. Lengths are steps. This module does
not know how a stage works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from livetalk.distill import dmd, ode
from livetalk.distill.loop import LoopConfig
from livetalk.distill.optimisers import Rates
from livetalk.distill.pairs import PairConfig
from livetalk.eval.ablation_conditions import FaultShares
from livetalk.types import LiveTalkError

Fields = tuple[tuple[str, Any], ...]
"""Names of a configuration's fields with their values in one recipe."""


@dataclass(frozen=True)
class Arm:
    """One recipe: what it has of the paper's, and where its stages differ from ``AblationPlan``."""

    name: str
    curated: bool = False
    converged: bool = False
    fast: bool = False
    guided: bool = False
    pairs: Fields = ()
    regression: Fields = ()
    matching: Fields = ()


ARMS = (
    Arm("baseline"),
    Arm("+ curated conditions", curated=True),
    Arm("+ converged ODE", curated=True, converged=True),
    Arm("+ 2x learning rate", curated=True, converged=True, fast=True),
    Arm("+ stronger guidance", curated=True, converged=True, fast=True, guided=True),
)
FINAL_UNCURATED = Arm("final recipe, uncurated", converged=True, fast=True, guided=True)
"""The paper's last row; it stands apart from the others."""


def _beyond(name: str, pairs: Fields = (), regression: Fields = (), matching: Fields = ()) -> Arm:
    return Arm(name, curated=True, converged=True, pairs=pairs, regression=regression, matching=matching)


BEYOND = (
    _beyond("+ converged ODE"),
    _beyond("all chunks before, no window", regression=(("windowed", False),), matching=(("windowed", False),)),
    _beyond("rollouts no longer than the window", matching=(("frames", (15,)), ("scored_frames", 15))),
    _beyond("pairs of a causal teacher", pairs=(("causal", True),)),
    _beyond("mouth and eyes count as the rest", matching=(("mouth_weight", 0.0), ("eye_weight", 0.0))),
    _beyond("a reader looks at the lips", matching=(("reader_weight", 0.5),)),
    _beyond("no noise on the past", matching=(("past_noise", 0.0),)),
    _beyond("a flawed past in ODE", regression=(("past_share", 0.25), ("flawed_share", 0.15))),
)
"""What goes beyond the paper: the first is the recipe that every other one changes in one thing. It has the window and
sinks of inference, rollouts longer than the window, weights at mouth and eyes, and noise on the past."""


def pair_config() -> PairConfig:
    """How trajectories are made: a dozen steps of second order, the guidance of the recipe."""
    return PairConfig(clips=72, batch=4, steps=12, order=2, text_scale=1.5, audio_scale=1.75)


def ode_loop() -> LoopConfig:
    """Length (of the converged training) and rates of ODE initialisation."""
    return LoopConfig(
        steps=200,
        learning_rate=3e-4,
        matrix_rate=0.002,
        warmup_steps=8,
        average_decay=0.98,
        late_average_decay=0.99,
        log_every=5,
    )


def dmd_config() -> dmd.DmdConfig:
    """What distribution matching looks like, with the default guidance."""
    critic = Rates(learning_rate=2e-5, last_rate=1.0, betas=(0.0, 0.999), warmup_steps=0, clip_norm=10.0)
    return dmd.DmdConfig(
        batch=2,
        every=2,
        alone=15,
        exit="clip",
        past_noise=0.05,
        text_scale=1.5,
        audio_scale=1.75,
        mouth_weight=3.0,
        eye_weight=3.0,
        critic=critic,
    )


def dmd_loop() -> LoopConfig:
    """Length and the student's rates of distribution matching."""
    return LoopConfig(
        steps=55,
        learning_rate=1e-5,
        last_rate=0.1,
        betas=(0.0, 0.999),
        warmup_steps=0,
        clip_norm=10.0,
        average_decay=0.97,
        late_average_decay=0.97,
        log_every=5,
    )


@dataclass(frozen=True)
class AblationPlan:
    """How much is trained and judged. As it stands, about half an hour on two cores that have nothing else to do.

    Attributes:
        seeds: trainings of every recipe; pairs and judged clips are the same for all.
        scale: multiplies all numbers of steps.
        clips: people who are judged.
        final_uncurated: also the paper's last row, the final recipe on uncurated conditions.
        beyond: what goes beyond the paper instead of the paper's own recipes.
        frames: latent frames of conditions, rollouts and judged clips; fewer where the run's clips are shorter.
        pairs: how trajectories are made, and of how many conditions; matching has the same conditions.
        ode, ode_loop: ODE initialisation until it has converged.
        short: share of its steps that the baseline has (the paper: 4k of 20k).
        matching, matching_loop: distribution matching of the baseline.
        faster: what the learning rates of student and critic are multiplied with (the paper: 2).
        stronger: what the strength of the guidance beyond none is multiplied with (the paper: 4 to 6, so 3 to 5).
        faults: what is wrong with uncurated conditions.
    """

    seeds: int = 1
    scale: float = 1.0
    clips: int = 32
    final_uncurated: bool = False
    beyond: bool = False
    frames: int = 21
    pairs: PairConfig = field(default_factory=pair_config)
    ode: ode.OdeConfig = field(default_factory=lambda: ode.OdeConfig(batch=2))
    ode_loop: LoopConfig = field(default_factory=ode_loop)
    short: float = 0.2
    matching: dmd.DmdConfig = field(default_factory=dmd_config)
    matching_loop: LoopConfig = field(default_factory=dmd_loop)
    faster: float = 2.0
    stronger: float = 5 / 3
    faults: FaultShares = field(default_factory=FaultShares)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The recipes: each with one thing more than the one before, or (beyond) one thing other than the first."""
        if self.beyond:
            return BEYOND
        return (*ARMS, FINAL_UNCURATED) if self.final_uncurated else ARMS

    def steps(self, count: float) -> int:
        """A number of steps, scaled."""
        return max(1, round(self.scale * count))

    def initialisation(self, arm: Arm, seed: int) -> LoopConfig:
        """Loop of a recipe's ODE initialisation."""
        steps = (self.ode_loop.steps or 1) * (1.0 if arm.converged else self.short)
        return replace(self.ode_loop, steps=self.steps(steps), seed=seed)

    def distillation(self, arm: Arm, seed: int) -> tuple[dmd.DmdConfig, LoopConfig]:
        """Settings of a recipe's distribution matching."""
        base, more = self.matching, self.stronger if arm.guided else 1.0
        config = replace(
            base,
            frames=(self.frames,),
            scored_frames=self.frames,
            alone=self.steps(base.alone),
            rate_factor=self.faster if arm.fast else 1.0,
            text_scale=1 + more * (base.text_scale - 1),
            audio_scale=1 + more * (base.audio_scale - 1),
        )
        config = replace(config, **dict(arm.matching))
        return config, replace(self.matching_loop, steps=self.steps(self.matching_loop.steps or 1), seed=seed)


def check_plan(plan: AblationPlan) -> None:
    """Refuse what cannot be run.

    Raises:
        LiveTalkError: no seed, too few clips, or a scale that is not positive.
    """
    wrong: Sequence[tuple[bool, str]] = (
        (plan.seeds < 1, f"{plan.seeds} seeds were asked for. Give --seeds of at least 1."),
        (plan.clips < 2, f"{plan.clips} clips have no spread. Give --clips of at least 2."),
        (not plan.scale > 0, f"The scale {plan.scale:g} leaves no steps. Give --scale above 0."),
    )
    for holds, sentence in wrong:
        if holds:
            raise LiveTalkError(sentence)
