"""The loop every training stage shares: master weights, optimiser, average, checkpoints, log, curves.

A stage gives a network and a function that draws a batch and returns its loss. The loop trains float32 master weights
behind a network that may compute in bfloat16, averages gradients over a team of ranks, keeps a moving average (what is
evaluated and shipped), and writes checkpoints from which a run goes on exactly as if it had never stopped: every draw
depends on (seed, step, rank) only. The learning rate follows steps or, on a machine whose speed nobody can promise, the
seconds spent, so that the annealing always completes. A partner (the critic of distribution matching) can be trained in
turns with the network, in the same checkpoint.

This module does not know what is trained, on what data, or what good pictures look like.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from livetalk.distill.curves import draw_curves
from livetalk.distill.learner import (
    BatchLoss,
    Learner,
    LoopState,
    flat_weights,
    save_tensors,
    trained_parameters,
    write_weights,
)
from livetalk.distill.optimisers import MatrixRule, Rates, in_blocks
from livetalk.distill.ranks import Engine, Team, run_ranks, training_device

__all__ = [
    "BatchLoss",
    "Learner",
    "Loop",
    "LoopConfig",
    "LoopState",
    "Partner",
    "flat_weights",
    "run_ranks",
    "training_device",
    "write_weights",
]

CHECKPOINT = "checkpoint.safetensors"
LOG_FILE = "log.jsonl"
CURVES = "curves.png"
RUN_FILE = "run.json"
_FIXED_STEP = 1_000_000_007
"""Step whose draws make the batch that is looked at again and again."""


@dataclass(frozen=True)
class LoopConfig(Rates):
    """How long and how a network is trained; see ``Rates`` for the optimiser.

    Attributes:
        steps: length of the run in steps; None = ``budget_s`` decides. With a partner, steps are the partner's.
        budget_s: length of the run in seconds of training, pauses between a stop and its resume not counted.
        average_decay: decay of the moving average, smaller during the first steps.
        late_average_decay: decay in the last third of the run, when the learning rate is small.
        average_from_step: before this step the average is the weights themselves.
        checkpoint_every_s: seconds between checkpoints; a last one is always written.
        log_every: steps between two lines of the log.
        curves: draw the log into the folder at checkpoints.
        seed: of all draws.
        engine: see ``livetalk.distill.ranks.Team.join``.
    """

    steps: int | None = None
    budget_s: float = 60.0
    average_decay: float = 0.995
    late_average_decay: float = 0.999
    average_from_step: int = 0
    checkpoint_every_s: float = 180.0
    log_every: int = 10
    curves: bool = True
    seed: int = 0
    engine: Engine = "ranks"


@dataclass(frozen=True)
class Partner:
    """A second network that is trained in turns with the first, such as the critic of distribution matching.

    Attributes:
        learner: network, loss and rates of the partner.
        every: the first network has its turn in every so many steps; the partner in each, after the first network.
        alone: the partner's first steps, in which the first network has no turn.
    """

    learner: Learner
    every: int = 5
    alone: int = 0

    def first_has_turn(self) -> bool:
        """Whether the coming step also trains the first network."""
        step = self.learner.state.step
        return step >= self.alone and step % self.every == 0


class Loop:
    """One training run of ``model`` into ``folder``; goes on from the folder's checkpoint if there is one.

    Args:
        model: network in the number format to compute in.
        batch_loss: see ``BatchLoss``.
        config: see ``LoopConfig``.
        folder: for checkpoint, log, curves and configuration.
        describe: more plain data to save beside the run (stage, preset, data).
        matrices: which parameters Muon trains.
        partner: a network trained in turns.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_loss: BatchLoss,
        config: LoopConfig,
        folder: Path,
        describe: dict[str, object] | None = None,
        matrices: MatrixRule = in_blocks,
        partner: Partner | None = None,
    ) -> None:
        self.config, self.folder, self.partner = config, folder, partner
        self.team = Team.join(config.engine)
        self.learner = Learner(model, batch_loss, config, matrices)
        self._learners = {"": self.learner} | ({"partner.": partner.learner} if partner is not None else {})
        path = folder / CHECKPOINT
        for prefix, learner in self._learners.items():
            if self.team.device is not None:
                learner.move(self.team.device)
            if path.exists():
                learner.resume(path, prefix)
        if self.team.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _forget_after(folder / LOG_FILE, self.step)
            _describe(folder / RUN_FILE, {"loop": asdict(config), "ranks": self.team.ranks, **(describe or {})})

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.learner.model

    @property
    def state(self) -> LoopState:
        """State of the network."""
        return self.learner.state

    @property
    def step(self) -> int:
        """Steps of the run so far; with a partner, the partner's."""
        return (self.partner.learner if self.partner is not None else self.learner).state.step

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        if self.config.steps is not None:
            return min(1.0, self.step / max(1, self.config.steps))
        return min(1.0, self.state.trained_s / self.config.budget_s)

    def run(self, on_checkpoint: Callable[[Loop], None] | None = None, stop_after: int | None = None) -> None:
        """Train to the end of the run, or ``stop_after`` steps from now.

        Args:
            on_checkpoint: called on rank 0 after every checkpoint (contact sheets, exports).
            stop_after: pause after so many steps with a checkpoint, to go on later.
        """
        last_save_s, done = self.state.trained_s, 0
        if self.step == 0:
            self._look_at_fixed_batch()
        with self._bar() as bar:
            while self.progress < 1.0 and done != stop_after:
                began = time.monotonic()
                figures = self._step()
                self.state.trained_s += self.team.agreed(time.monotonic() - began)
                done += 1
                bar.update((self.step if self.config.steps is not None else self.state.trained_s) - bar.n)
                bar.set_postfix(loss=f"{figures['loss']:.4g}", refresh=False)
                if self.state.trained_s - last_save_s >= self.config.checkpoint_every_s:
                    last_save_s = self.state.trained_s
                    self._checkpoint(on_checkpoint)
        self._checkpoint(on_checkpoint)

    def averaged(self) -> dict[str, Tensor]:
        """State dict to use or ship: float32 on the CPU, the moving average in place of everything trained."""
        values, first = {}, 0
        for name, parameter in trained_parameters(self.model, self.learner.rule):
            values[name] = self.state.average[first : first + parameter.numel()].view(parameter.shape)
            first += parameter.numel()
        state = {name: values.get(name, value) for name, value in self.model.state_dict().items()}
        return {name: value.detach().to("cpu", torch.float32).clone().contiguous() for name, value in state.items()}

    def load_average(self, model: nn.Module) -> None:
        """Copy the moving average into ``model``, which has the same parameters."""
        write_weights(model, self.state.average, self.learner.rule)

    def _step(self) -> dict[str, float]:
        """One step of the run: the network, if it has its turn, then the partner."""
        step, progress, figures = self.step, self.progress, {}
        if self.partner is None or self.partner.first_has_turn():
            figures = self.learner.step(self._draws(step, 0), progress, self.team)
            self.learner.follow(self._decay(progress))
        if self.partner is not None:
            partner = self.partner.learner.step(self._draws(step, 1), progress, self.team)
            self.partner.learner.follow(self._decay(progress))
            figures = {"loss": partner["loss"], **{f"partner_{name}": v for name, v in partner.items()}, **figures}
        if self.team.rank == 0 and step % self.config.log_every == 0:
            self._write_log(figures)
        return figures

    def _decay(self, progress: float) -> float:
        """Decay of the moving averages after the coming step."""
        if self.step < self.config.average_from_step:
            return 0.0
        return self.config.late_average_decay if progress > 2 / 3 else self.config.average_decay

    def _draws(self, step: int, learner: int) -> torch.Generator:
        """Randomness of one network in one step on this rank."""
        seed = (self.config.seed * 1_000_003 + step * 1_009 + self.team.rank + learner * 500_009) % (2**63)
        return torch.Generator().manual_seed(seed)

    def _bar(self) -> Any:
        """Progress on the terminal with the time left, on rank 0."""
        steps = self.config.steps
        counted = "{n_fmt}/{total_fmt} steps" if steps is not None else "{n:.0f}/{total:.0f} s"
        return tqdm(
            total=steps if steps is not None else self.config.budget_s,
            initial=self.step if steps is not None else self.state.trained_s,
            desc=self.folder.name,
            disable=self.team.rank != 0 or not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| " + counted + " [{elapsed}<{remaining}{postfix}]",
        )

    def _look_at_fixed_batch(self) -> None:
        """Log the losses of one batch that is always the same: a curve without the noise of the draws."""
        if self.team.rank != 0:
            return
        figures = {}
        for index, (prefix, learner) in enumerate(self._learners.items()):
            with torch.no_grad(), self.team.autocast():
                loss, _ = learner.batch_loss(learner.model, self._draws(_FIXED_STEP, index))
            figures[prefix.replace(".", "_") + "fixed"] = float(loss)
        self._write_log(figures)

    def _checkpoint(self, on_checkpoint: Callable[[Loop], None] | None) -> None:
        if self.team.rank == 0:
            states = [learner.state.tensors(prefix) for prefix, learner in self._learners.items()]
            save_tensors(self.folder / CHECKPOINT, {name: value for part in states for name, value in part.items()})
            self._look_at_fixed_batch()
            if self.config.curves:
                draw_curves(self.folder / LOG_FILE, self.folder / CURVES)
            if on_checkpoint is not None:
                on_checkpoint(self)
        self.team.wait()

    def _write_log(self, figures: dict[str, float]) -> None:
        line = {"step": self.step, "trained_s": round(self.state.trained_s, 1)}
        rounded = {key: float(f"{value:.5g}") for key, value in figures.items()}
        with (self.folder / LOG_FILE).open("a") as file:
            file.write(json.dumps({**line, **rounded}) + "\n")


def code_version() -> str:
    """Commit of the running code, as far as git knows it, with "+" if files were changed since."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=here).stdout.strip()

    commit = git("rev-parse", "HEAD")
    return (commit + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")) or "unknown"


def _forget_after(path: Path, step: int) -> None:
    """Drop lines of a log that tell of steps after the checkpoint a run goes on from: they will happen again."""
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in lines))


def _describe(path: Path, about: dict[str, Any]) -> None:
    """Write what a run is, with the versions of the code that worked on it, oldest first."""
    before = json.loads(path.read_text()).get("commits", []) if path.is_file() else []
    now = code_version()
    commits = [*before, *([now] if now not in before else [])]
    path.write_text(json.dumps({**about, "commits": commits, "torch": torch.__version__}, indent=1) + "\n")
