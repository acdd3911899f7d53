"""The loop every training stage shares: master weights, optimiser, average, checkpoints, log.

A stage gives a network and a function that draws a batch and returns its loss. The loop trains float32 master weights
behind a network that may compute in bfloat16, averages gradients over the ranks of a process group, keeps a moving
average (what is evaluated and shipped), and writes checkpoints from which a run goes on exactly as if it had never
stopped: every draw depends on (seed, step, rank) only. The learning rate follows steps or, on a machine whose speed
nobody can promise, the seconds spent, so that the annealing always completes.

This module does not know what is trained, on what data, or what good pictures look like.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing, nn

from livetalk.types import LiveTalkError

log = logging.getLogger(__name__)

BatchLoss = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, float]]]
"""Draws a batch with the generator and returns its loss (a scalar with gradient) and figures for the log."""

CHECKPOINT = "checkpoint.safetensors"
LOG_FILE = "log.jsonl"


@dataclass(frozen=True)
class LoopConfig:
    """How long and how a network is trained.

    Attributes:
        steps: length of the run in steps; None = ``budget_s`` decides.
        budget_s: length of the run in seconds of training, pauses between a stop and its resume not counted.
        average_decay: decay of the moving average, smaller during the first steps.
        late_average_decay: decay in the last third of the run, when the learning rate is small.
        last_rate: learning rate at the very end, as a share of ``learning_rate``.
        checkpoint_every_s: seconds between checkpoints; a last one is always written.
        matrix_rate: learning rate of the matrices inside the blocks by Muon, see ``muon_step``; 0 = all by AdamW.
        matrix_momentum: Muon's momentum.
    """

    steps: int | None = None
    budget_s: float = 60.0
    learning_rate: float = 1.5e-3
    last_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 60
    clip_norm: float = 1.0
    average_decay: float = 0.995
    late_average_decay: float = 0.999
    checkpoint_every_s: float = 180.0
    log_every: int = 10
    seed: int = 0
    matrix_rate: float = 0.0
    matrix_momentum: float = 0.95


@dataclass
class LoopState:
    """Everything that changes during a run: flat float32 vectors over all trained parameters, and the clock."""

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

    def save(self, path: Path) -> None:
        """Write the state in one go: a reader never sees half a file."""
        partial = path.with_suffix(".partial")
        clock = torch.tensor([float(self.step), self.trained_s], dtype=torch.float64)
        vectors = {key: value.contiguous() for key, value in vars(self).items() if isinstance(value, Tensor)}
        save_file({**vectors, "clock": clock}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, like: Tensor) -> LoopState:
        """State from ``path``, for weights as many and where ``like`` is.

        Raises:
            LiveTalkError: the checkpoint belongs to a network of another size.
        """
        data = load_file(path, device=str(like.device))
        if data["weights"].shape != like.shape:
            raise LiveTalkError(
                f"The checkpoint {path} has {data['weights'].numel()} weights, the network {like.numel()}. "
                "Train into another folder, or with the configuration the run began with."
            )
        step, trained_s = data.pop("clock").tolist()
        return cls(**data, step=int(step), trained_s=trained_s)


def flat_weights(model: nn.Module) -> Tensor:
    """Float32 copy of all trained parameters as one vector, matrices of the blocks first."""
    return torch.cat([p.detach().float().flatten() for p in _trained(model)])


def write_weights(model: nn.Module, vector: Tensor) -> None:
    """Copy one vector (see ``flat_weights``) into the parameters, rounding to their dtype."""
    first = 0
    with torch.no_grad():
        for parameter in _trained(model):
            parameter.copy_(vector[first : first + parameter.numel()].view_as(parameter))
            first += parameter.numel()


class Loop:
    """One training run of ``model`` into ``folder``; goes on from the folder's checkpoint if there is one.

    Args:
        model: network in the dtype and on the device to compute in.
        batch_loss: see ``BatchLoss``; called once a step on every rank, each with draws of its own.
        config: see ``LoopConfig``.
        folder: for checkpoint, log and configuration.
        describe: more plain data to save beside the run (stage, preset, data).
    """

    def __init__(
        self,
        model: nn.Module,
        batch_loss: BatchLoss,
        config: LoopConfig,
        folder: Path,
        describe: dict[str, object] | None = None,
    ) -> None:
        self.model, self.batch_loss, self.config, self.folder = model, batch_loss, config, folder
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        weights = flat_weights(model)
        self._matrices = block_matrices(model) if config.matrix_rate else []
        path = folder / CHECKPOINT
        self.state = LoopState.load(path, weights) if path.exists() else LoopState.start(weights)
        write_weights(model, self.state.weights)
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            about = {"loop": asdict(config), "ranks": self.ranks, **(describe or {})}
            (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        if self.config.steps is not None:
            return min(1.0, self.state.step / self.config.steps)
        return min(1.0, self.state.trained_s / self.config.budget_s)

    def run(self, on_checkpoint: Callable[[Loop], None] | None = None, stop_after: int | None = None) -> None:
        """Train to the end of the run, or ``stop_after`` steps from now.

        Args:
            on_checkpoint: called on rank 0 after every checkpoint (contact sheets, exports).
            stop_after: pause after so many steps with a checkpoint, to go on later.
        """
        last_save_s = self.state.trained_s
        done = 0
        while self.progress < 1.0 and done != stop_after:
            began = time.monotonic()
            self._step()
            self.state.trained_s += self._agreed(time.monotonic() - began)
            done += 1
            if self.state.trained_s - last_save_s >= self.config.checkpoint_every_s:
                last_save_s = self.state.trained_s
                self._checkpoint(on_checkpoint)
        self._checkpoint(on_checkpoint)

    def load_average(self, model: nn.Module) -> None:
        """Copy the moving average into ``model``, which has the same parameters."""
        write_weights(model, self.state.average)

    def _step(self) -> None:
        """One optimiser step over the batches of all ranks."""
        state = self.state
        draws = torch.Generator().manual_seed(_seed(self.config.seed, state.step, self.rank))
        loss, figures = self.batch_loss(self.model, draws)
        loss.backward()
        gradient = torch.cat([_gradient(p) for p in _trained(self.model)])
        self.model.zero_grad(set_to_none=True)
        if self.ranks > 1:
            distributed.all_reduce(gradient)
            gradient /= self.ranks
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            log.warning("step %d skipped: its gradient is not finite", state.step)
            gradient.zero_()
        elif norm > self.config.clip_norm:
            gradient *= self.config.clip_norm / norm
        rate = learning_rate(self.config, state.step, self.progress)
        optimise(state, gradient, rate, self.config, self._matrices)
        late = self.progress > 2 / 3
        decay = self.config.late_average_decay if late else self.config.average_decay
        state.average.lerp_(state.weights, 1 - min(decay, state.step / (state.step + 10)))
        write_weights(self.model, state.weights)
        if self.rank == 0 and (state.step - 1) % self.config.log_every == 0:
            self._write_log({"loss": float(loss.detach()), "norm": norm, "rate": rate, **figures})

    def _agreed(self, seconds: float) -> float:
        """Rank 0's time, so that all ranks see the same progress."""
        if self.ranks == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64)
        distributed.broadcast(clock, 0)
        return float(clock)

    def _checkpoint(self, on_checkpoint: Callable[[Loop], None] | None) -> None:
        if self.rank == 0:
            self.state.save(self.folder / CHECKPOINT)
            if on_checkpoint is not None:
                on_checkpoint(self)
        if self.ranks > 1:
            distributed.barrier()

    def _write_log(self, figures: dict[str, float]) -> None:
        line = {"step": self.state.step, "trained_s": round(self.state.trained_s, 1)}
        rounded = {key: float(f"{value:.5g}") for key, value in figures.items()}
        with (self.folder / LOG_FILE).open("a") as file:
            file.write(json.dumps({**line, **rounded}) + "\n")


def learning_rate(config: LoopConfig, step: int, progress: float) -> float:
    """Linear warm-up over steps, then a cosine over the run's progress down to ``last_rate``."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warm * (config.last_rate + (1 - config.last_rate) * cosine)


def optimise(
    state: LoopState, gradient: Tensor, rate: float, config: LoopConfig, matrices: Sequence[torch.Size] = ()
) -> None:
    """One optimiser step on the flat vectors: Muon on ``matrices``, which come first, AdamW on the rest."""
    state.step += 1
    split = sum(shape.numel() for shape in matrices)
    if split:
        share = rate / config.learning_rate
        muon_step(state.weights[:split], state.first_moment[:split], gradient[:split], share, config, matrices)
    moments = state.first_moment[split:], state.second_moment[split:]
    adamw_step(state.weights[split:], *moments, gradient[split:], rate, state.step, config)


def adamw_step(
    weights: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rate: float, step: int, config: LoopConfig
) -> None:
    """AdamW (Loshchilov and Hutter 2019) in place; ``first`` and ``second`` are the moments, steps count from 1."""
    beta_first, beta_second = config.betas
    first.lerp_(gradient, 1 - beta_first)
    second.mul_(beta_second).addcmul_(gradient, gradient, value=1 - beta_second)
    spread = (second / (1 - beta_second**step)).sqrt_().add_(1e-8)
    weights.mul_(1 - rate * config.weight_decay)
    weights.addcdiv_(first, spread, value=-rate / (1 - beta_first**step))


def muon_step(
    weights: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    share: float,
    config: LoopConfig,
    matrices: Sequence[torch.Size],
) -> None:
    """Muon (Jordan 2024) in place: the momentum of every matrix made orthogonal, a step of ``share`` times its rate.

    Matrices of one shape go through the Newton-Schulz iteration together.
    """
    momentum.lerp_(gradient, 1 - config.matrix_momentum)
    wanted = gradient.lerp(momentum, config.matrix_momentum)
    stops = list(itertools.accumulate(shape.numel() for shape in matrices))
    places = [slice(stop - shape.numel(), stop) for stop, shape in zip(stops, matrices, strict=True)]
    rate = share * config.matrix_rate
    weights.mul_(1 - rate * config.weight_decay)
    for shape in sorted(set(matrices)):
        alike = [place for place, own in zip(places, matrices, strict=True) if own == shape]
        turned = orthogonal(torch.stack([wanted[place].view(shape) for place in alike]))
        scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
        for place, update in zip(alike, turned, strict=True):
            weights[place].sub_(update.flatten(), alpha=scale)


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of ``matrices`` ``[n, rows, columns]``, in float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.transpose(1, 2) if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


def block_matrices(model: nn.Module) -> list[torch.Size]:
    """Shapes of the matrices inside ``model.blocks``, as they lie at the start of ``flat_weights``."""
    return [parameter.shape for name, parameter in _named(model) if _in_block(name, parameter)]


def _in_block(name: str, parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and name.startswith("blocks.") and parameter.ndim == 2


def _trained(model: nn.Module) -> list[nn.Parameter]:
    """All trained parameters, matrices of the blocks first, then by name: no edit of the network reorders a vector."""
    return [parameter for _, parameter in _named(model)]


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return sorted(named, key=lambda pair: (not _in_block(*pair), pair[0]))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), device=parameter.device)
    return parameter.grad.float().flatten()


def _seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every (run, step, rank)."""
    return (seed * 1_000_003 + step * 1_009 + rank) % (2**63)


def run_ranks(ranks: int, work: Callable[..., None], *arguments: object) -> None:
    """Run ``work(*arguments)`` in ``ranks`` processes of one thread each that average their gradients (gloo).

    One thread each because two thread teams on a busy processor wait for each other. ``work`` is a function of a
    module; with one rank it runs in this process.
    """
    if ranks == 1:
        work(*arguments)
        return
    with tempfile.TemporaryDirectory(prefix="livetalk-") as folder:
        multiprocessing.spawn(_rank, (ranks, f"file://{folder}/meeting", work, arguments), nprocs=ranks)


def _rank(rank: int, ranks: int, meeting: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    try:
        work(*arguments)
    finally:
        distributed.destroy_process_group()
