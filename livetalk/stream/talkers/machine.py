"""Whether a model can live on this machine: its device, its memory, and sentences for what goes wrong there.

This module knows no model and no conversation.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from livetalk.stream.talkers.protocol import TalkerError

P = ParamSpec("P")
T = TypeVar("T")

GIGABYTE = 1e9
HEADROOM_BYTES = 1_500_000_000
"""Beside the weights: activations, the attention cache of a conversation, CUDA itself."""


def once(load: Callable[P, T]) -> Callable[P, T]:
    """Decorator for loaders: a process keeps what was loaded last, and loads it once if several threads ask for it."""
    keep, lock = functools.lru_cache(maxsize=1)(load), threading.Lock()

    @functools.wraps(load)
    def loaded(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return keep(*args, **kwargs)  # type: ignore[arg-type]

    return loaded


def missing(packages: Sequence[str], needed_bytes: float) -> str | None:
    """Why a model cannot run on this machine's GPU, in a sentence; None = it can. Loads nothing.

    Args:
        packages: modules that must be installed.
        needed_bytes: GPU memory for its weights.
    """
    reasons = []
    try:
        check_memory("This talker", needed_bytes, choose_device("auto"))
    except TalkerError as error:  # told first: installing packages would not mend it
        reasons.append(str(error))
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        reasons.append(
            f"{', '.join(absent)} is not installed. Install it with 'pip install -r requirements-extra.txt'."
        )
    return " ".join(reasons) or None


def choose_device(device: str) -> torch.device:
    """The torch device of that name; "auto" = the CUDA GPU.

    Raises:
        TalkerError: "auto", and there is no GPU; or no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            raise TalkerError(
                "A language model on this machine needs a CUDA GPU, and none was found. Choose another talker, or "
                "device 'cpu' if slow answers will do."
            )
        return torch.device("cuda", torch.cuda.current_device())
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise TalkerError(f"There is no device {device!r}. Expected 'auto', 'cpu' or 'cuda:0'.") from error


def number_format(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def check_memory(name: str, needed_bytes: float, device: torch.device) -> None:
    """Refuse weights that do not fit, before they are read.

    Raises:
        TalkerError: less GPU memory is free than the weights and ``HEADROOM_BYTES`` take.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    needed = needed_bytes + HEADROOM_BYTES
    if free < needed:
        raise TalkerError(
            f"{name} needs {needed / GIGABYTE:.1f} GB of free GPU memory; {free / GIGABYTE:.1f} of "
            f"{total / GIGABYTE:.1f} GB are free on {torch.cuda.get_device_name(device)}. Close other programs or "
            "choose a smaller talker."
        )


def bytes_of(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Memory for a module's weights in ``dtype``; works on the meta device, where they take none."""
    return sum(weight.numel() for weight in module.parameters()) * dtype.itemsize


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns what a loader of weights raises into a sentence.

    Raises:
        TalkerError: not installed, not there and no network, no access, damaged, or too large.
    """
    try:
        yield
    except TalkerError:
        raise
    except ImportError as error:
        raise TalkerError(f"{name} needs a package that is not installed: {_first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TalkerError(f"{name} does not fit into the memory. Choose a smaller talker.") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TalkerError(
            f"{name} could not be loaded: {_first_line(error)} It has to be downloaded once: check the network and, "
            "if its page asks for it, accept its terms and log in to the Hugging Face Hub."
        ) from error


def as_talker_error(error: Exception, name: str) -> TalkerError:
    """What a model raised in the middle of a reply, as a sentence."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return TalkerError(f"{name} ran out of memory. Close other programs or choose a smaller talker.")
    # After an error of the driver nothing works in this process any more.
    return TalkerError(f"{name} failed: {_first_line(error)}", lasting="CUDA" in str(error))


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
