"""Processes that train one network together: our own on CPUs (gloo), or those that ``accelerate launch`` started.

A team averages gradients and agrees on time. Nothing else is shared: every rank draws its own batches. This module does
not know what is trained.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, multiprocessing
from tqdm import tqdm

from livetalk.types import LiveTalkError

Engine = Literal["ranks", "accelerate"]
MOST_RANKS = 4
"""Ranks on one machine's CPU by default: more of one thread each rarely gain."""


@dataclass(frozen=True)
class Team:
    """The processes of one training run, as one of them sees it.

    Attributes:
        rank: number of this process.
        ranks: how many there are.
        device: where this process trains; None = wherever its network is.
        accelerator: ``accelerate.Accelerator`` if it runs the team.
    """

    rank: int = 0
    ranks: int = 1
    device: torch.device | None = None
    accelerator: Any = None

    @classmethod
    def join(cls, engine: Engine) -> Team:
        """The team this process belongs to.

        Args:
            engine: "ranks" = the process group of ``run_ranks``, if there is one; "accelerate" = what
                ``accelerate launch`` (or a single process) offers: devices, several GPUs, bf16 autocast.

        Raises:
            LiveTalkError: accelerate is wanted but not installed.
        """
        if engine == "accelerate":
            accelerator = _accelerator()
            return cls(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)
        if distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Arithmetic as ``accelerate launch --mixed_precision`` wants it."""
        return self.accelerator.autocast() if self.accelerator is not None else contextlib.nullcontext()

    def mean(self, vector: Tensor) -> Tensor:
        """Mean over the ranks of a vector each of them has."""
        if self.ranks == 1:
            return vector
        if self.accelerator is not None:
            return self.accelerator.reduce(vector, reduction="mean")
        distributed.all_reduce(vector)
        return vector.div_(self.ranks)

    def agreed(self, seconds: float) -> float:
        """Rank 0's time, so that all ranks see the same progress."""
        if self.ranks == 1:
            return seconds
        clock = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        distributed.broadcast(clock, 0)
        return float(clock)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
        elif self.ranks > 1:
            distributed.barrier()


def training_device(engine: Engine) -> torch.device:
    """Where a rank's frozen networks (teacher, VAE) belong."""
    return Team.join(engine).device or torch.device("cpu")


def default_ranks() -> int:
    """One rank per core, at most ``MOST_RANKS``."""
    return min(MOST_RANKS, os.cpu_count() or 1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch computes in one thread; a team of threads on a busy processor waits for its last one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_ranks(ranks: int, work: Callable[..., None], *arguments: object) -> None:
    """Run ``work(*arguments)`` in ``ranks`` processes of one thread each that average their gradients (gloo).

    One thread each, see ``one_thread``. ``work`` is a function of a module; with one rank it runs in this process.
    Arguments are pickled: call with tensors on disk, not in memory.

    Args:
        ranks: how many; 0 = ``default_ranks()``.
        work: what each rank does.
        arguments: for ``work``.
    """
    ranks = ranks or default_ranks()
    if ranks == 1:
        with one_thread():
            work(*arguments)
        return
    with tempfile.TemporaryDirectory(prefix="livetalk-") as folder:
        multiprocessing.spawn(_rank, (ranks, f"file://{folder}/meeting", work, arguments), nprocs=ranks)


def run_shares(processes: int, work: Callable[[Any], Any], shares: Sequence[Any], title: str, quiet: bool) -> None:
    """Call ``work`` once per share, in several processes of one thread each, with a bar that shows the time left.

    Args:
        processes: how many; with one, everything happens in this process.
        work: a function of a module.
        shares: one argument per call, picklable.
        title: of the bar.
        quiet: no bar.
    """
    with tqdm(total=len(shares), desc=title, disable=quiet, leave=False) as bar:
        if processes == 1 or len(shares) < 2:
            for share in shares:
                work(share)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in as_completed([pool.submit(work, share) for share in shares]):
                done.result()
                bar.update()


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise LiveTalkError(
            "Training on several GPUs needs the package accelerate. Install it: pip install -r requirements-train.txt"
        ) from error
    return Accelerator()


def _rank(rank: int, ranks: int, meeting: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    try:
        work(*arguments)
    finally:
        distributed.destroy_process_group()
