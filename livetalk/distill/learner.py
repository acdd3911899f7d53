"""A network under training: float32 master weights in one vector, optimiser, moving average, all of it on disk.

This module does not know how long a run lasts, when it is saved, or what is learned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from livetalk.distill.optimisers import (
    MatrixRule,
    Rates,
    adamw_step,
    in_blocks,
    learning_rate,
    matrix_shape,
    muon_step,
)
from livetalk.distill.ranks import Team
from livetalk.types import LiveTalkError

log = logging.getLogger(__name__)

BatchLoss = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, float]]]
"""Draws a batch with the generator and returns its loss (a scalar with gradient) and figures for the log.

It must also run without gradient, must take all its randomness from the generator (which lives on the CPU), and moves
the batch to where the network is.
"""


@dataclass
class LoopState:
    """Everything of a network that changes during a run: flat float32 vectors over what is trained, and the clock."""

    weights: Tensor
    average: Tensor
    first_moment: Tensor
    second_moment: Tensor
    step: int = 0
    trained_s: float = 0.0

    @classmethod
    def start(cls, weights: Tensor) -> LoopState:
        """State before the first step."""
        return cls(weights, weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights))

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """What a checkpoint keeps, every name with ``prefix`` in front."""
        clock = torch.tensor([float(self.step), self.trained_s], dtype=torch.float64)
        vectors = {name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {prefix + name: value for name, value in (vectors | {"clock": clock}).items()}

    @classmethod
    def load(cls, path: Path, like: Tensor, prefix: str = "") -> LoopState:
        """State from the checkpoint ``path``, for weights as many and where ``like`` is.

        Raises:
            LiveTalkError: the checkpoint belongs to a network of another size.
        """
        found = load_file(path, device=str(like.device))
        names = ("weights", "average", "first_moment", "second_moment", "clock")
        data = {name: found[prefix + name] for name in names if prefix + name in found}
        stored = data["weights"].numel() if "weights" in data else 0
        if stored != like.numel():
            raise LiveTalkError(
                f"The checkpoint {path} has {stored} weights, the network {like.numel()}. "
                "Train into another folder, or with the configuration the run began with."
            )
        step, trained_s = data.pop("clock").tolist()
        return cls(**data, step=int(step), trained_s=trained_s)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in one go: a reader never sees half of it."""
    partial = path.with_name(path.name + ".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(path)


def flat_weights(model: nn.Module, matrices: MatrixRule = in_blocks) -> Tensor:
    """Float32 copy of all trained parameters as one vector, matrices first, then by name."""
    return torch.cat([p.detach().float().flatten() for _, p in trained_parameters(model, matrices)])


def write_weights(model: nn.Module, vector: Tensor, matrices: MatrixRule = in_blocks) -> None:
    """Copy one vector (see ``flat_weights``) into the parameters, rounding to their dtype."""
    first = 0
    with torch.no_grad():
        for _, parameter in trained_parameters(model, matrices):
            parameter.copy_(vector[first : first + parameter.numel()].view(parameter.shape))
            first += parameter.numel()


def trained_parameters(model: nn.Module, matrices: MatrixRule) -> list[tuple[str, nn.Parameter]]:
    """All trained parameters, matrices first, then by name: no edit of the network reorders a vector."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return sorted(named, key=lambda pair: (not matrices(*pair), pair[0]))


class Learner:
    """A network under training: its loss, its optimiser, its state.

    Args:
        model: in the number format to compute in; starts with the weights it has.
        batch_loss: see ``BatchLoss``; called once a step on every rank, each with draws of its own.
        rates: how it is trained.
        matrices: which parameters Muon trains, if ``rates.matrix_rate`` is not 0.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss, rates: Rates, matrices: MatrixRule = in_blocks) -> None:
        self.model, self.batch_loss, self.rates, self.rule = model, batch_loss, rates, matrices
        self.state = LoopState.start(flat_weights(model, matrices))
        named = trained_parameters(model, matrices) if rates.matrix_rate else []
        self._matrices = [matrix_shape(parameter) for name, parameter in named if matrices(name, parameter)]

    def move(self, device: torch.device) -> None:
        """Network and state to ``device``."""
        self.model.to(device)
        self.state = LoopState.start(flat_weights(self.model, self.rule))

    def resume(self, path: Path, prefix: str) -> None:
        """Take up the state in a checkpoint."""
        self.state = LoopState.load(path, self.state.weights, prefix)
        write_weights(self.model, self.state.weights, self.rule)

    def step(self, draws: torch.Generator, progress: float, team: Team) -> dict[str, float]:
        """One optimiser step over the batches of all ranks; returns figures for the log."""
        with team.autocast():
            loss, figures = self.batch_loss(self.model, draws)
        loss.backward()
        named = trained_parameters(self.model, self.rule)
        gradient = team.mean(torch.cat([_gradient(parameter) for _, parameter in named]))
        self.model.zero_grad(set_to_none=True)
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            log.warning("step %d skipped: its gradient is not finite", self.state.step)
            gradient.zero_()
        elif norm > self.rates.clip_norm:
            gradient *= self.rates.clip_norm / norm
        rate = learning_rate(self.rates, self.state.step, progress)
        self._optimise(gradient, rate)
        write_weights(self.model, self.state.weights, self.rule)
        return {"loss": float(loss.detach()), "norm": norm, "rate": rate, **figures}

    def _optimise(self, gradient: Tensor, rate: float) -> None:
        """Muon on the matrices, which come first, AdamW on the rest."""
        state, rates = self.state, self.rates
        state.step += 1
        split = sum(shape.numel() for shape in self._matrices)
        if split:
            share = rate / rates.learning_rate
            muon_step(state.weights[:split], state.first_moment[:split], gradient[:split], share, rates, self._matrices)
        moments = state.first_moment[split:], state.second_moment[split:]
        adamw_step(state.weights[split:], *moments, gradient[split:], rate, state.step, rates)

    def follow(self, decay: float) -> None:
        """Let the moving average follow the weights, faster during the first steps."""
        decay = min(decay, self.state.step / (self.state.step + 10))
        self.state.average.lerp_(self.state.weights, 1 - decay)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), device=parameter.device)
    return parameter.grad.float().flatten()
