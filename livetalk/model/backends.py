"""Which of torch's attention kernels a GPU runs fastest at a network's own sizes: measured, then preferred.

Flash attention, cuDNN's and the memory-efficient one give the same numbers within rounding, and which is fastest
depends on GPU, driver and sizes. The preference holds for the whole process; what the preferred one cannot do, such as
masks, goes to the next. This module knows no network.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

CANDIDATES = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
ROUNDS = 8

_preferred = contextlib.ExitStack()


def prefer_fastest(heads: int, queries: int, keys: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Measure on a CUDA GPU and prefer the fastest from now on.

    Args:
        heads, queries, keys, width: sizes of the attention that counts most.
        dtype, device: of the network.
    """
    q, k = (torch.randn(1, heads, count, width, dtype=dtype, device=device) for count in (queries, keys))

    def now_s() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    spent_s = times_s(q, k, now_s)
    if spent_s:
        prefer(min(spent_s, key=lambda backend: spent_s[backend]))
        said = ", ".join(f"{backend.name.lower()} {1000 * spent:.2f} ms" for backend, spent in spent_s.items())
        logger.info("attention of %d on %d tokens: %s", queries, keys, said)


@torch.inference_mode()
def times_s(q: Tensor, k: Tensor, timer: Callable[[], float]) -> dict[SDPBackend, float]:
    """Best time of each kernel that can do it at all.

    Args:
        q, k: ``[B, heads, N, d]`` and ``[B, heads, K, d]``; the keys serve as values, too.
        timer: seconds; waits for the device.
    """
    found = {}
    for backend in CANDIDATES:
        spent: list[float] = []
        with contextlib.suppress(RuntimeError), sdpa_kernel(backend):  # not for this GPU, these sizes, this format
            for _ in range(ROUNDS):
                begin_s = timer()
                F.scaled_dot_product_attention(q, k, k)
                spent.append(timer() - begin_s)
        if len(spent) == ROUNDS:
            found[backend] = min(spent)
    return found


def prefer(backend: SDPBackend) -> None:
    """Use a kernel wherever it can work, in the whole process."""
    others = [one for one in (*CANDIDATES, SDPBackend.MATH) if one != backend]
    _preferred.close()
    _preferred.enter_context(sdpa_kernel([backend, *others], set_priority=True))
