"""Small operations of the DiT written for speed on CPUs: the same numbers in fewer passes over memory.

Each is a pure function of tensors. On a CPU the many small steps around the matrix products decide whether bfloat16 is
worth it; figures are those of one AVX-512 core. This module knows no layer, no cache and no configuration.
"""

from __future__ import annotations

import itertools
import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG2_E = math.log2(math.e)
# Row sums of 2^score within this range lost nothing to overflow or underflow.
_SAFE_SUM = 2.0**100
# Attention scores held at a time: about what a core's own cache holds in bfloat16.
_SCORES = 800_000


class _RMSNorm(torch.autograd.Function):
    """RMS norm with a backward pass of six elementwise steps; autograd's own needs more than twice as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, inverse, gain = ctx.saved_tensors
        product = gradients[0] * unit
        rows = product.flatten(0, -2)
        along = torch.mv(rows, gain).mul_(1 / gain.shape[0]).view(inverse.shape)
        return (gradients[0] * gain).addcmul_(unit, along, value=-1).mul_(inverse), rows.sum(0), None


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * gain`` over the last dimension; statistics in float32."""
    gain = gain.to(x.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, gain, eps)
    return F.rms_norm(x, x.shape[-1:], gain, eps)


class _Rotate(torch.autograd.Function):
    """Rotation whose backward pass is the rotation back; autograd would keep float32 copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.table = table
        return _turn(x, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _turn(gradients[0], ctx.table.conj().resolve_conj()), None


def _turn(x: Tensor, table: Tensor) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs.

    Args:
        x: ``[B, heads, N, head_width]``.
        table: complex64 ``[N, head_width // 2]`` (or 1 row for all).

    Returns:
        Same shape and dtype as ``x``.
    """
    return _Rotate.apply(x, table) if torch.is_grad_enabled() else _turn(x, table)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, to the precision of the number format.

    torch's tanh is slow on CPUs. In bfloat16 the erf form is four times faster and differs by less than a tenth of
    one rounding.
    """
    return F.gelu(x, approximate="none" if x.device.type == "cpu" and x.dtype == torch.bfloat16 else "tanh")


class _Workspaces(threading.local):
    """Memory of each thread for large intermediate results: fresh memory costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}


_workspaces = _Workspaces()


def _workspace(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory of ``shape``, valid until the next call with the same name in this thread."""
    size, key = math.prod(shape), (name, like.dtype)
    memory = _workspaces.memory.get(key)
    if memory is None or memory.numel() < size:
        with torch.inference_mode(False):
            memory = _workspaces.memory[key] = torch.empty(size, dtype=like.dtype)
    return memory[:size].view(shape)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v without mask; queries come scaled.

    Args:
        q: ``[B, heads, N, d]``, already divided by sqrt(d).
        k: ``[B, heads, K, d]``, ``v`` the same.

    Returns:
        ``[B, heads, N, d]``, laid out so that heads and channels of a token are neighbours.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    # Without AMX the fused CPU kernel is slower in bfloat16 than three plain products.
    if torch.is_grad_enabled():
        return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)), dim=-1), v)
    batch, heads, tokens, width = q.shape
    out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
    powers = torch.mul(q, _LOG2_E, out=torch.empty(q.shape, dtype=q.dtype))
    rows = min(tokens, max(1, _SCORES // k.shape[2]))
    group = min(heads, max(1, _SCORES // (rows * k.shape[2])))
    for sample, head, row in itertools.product(range(batch), range(0, heads, group), range(0, tokens, rows)):
        part = sample, slice(head, head + group), slice(row, row + rows)
        _attend_powers(powers[part], k[part[:2]], v[part[:2]], out[part])
    return out


def _attend_powers(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Some heads and rows of one sample into ``out``: powers of two, not shifted by each row's maximum.

    The shift only guards against overflow. bfloat16 has float32's range, so the row sums tell afterwards whether it
    was needed; then the guarded way is taken.
    """
    scores = _workspace("scores", (q.shape[0], q.shape[1], k.shape[1]), q)
    weights = torch.bmm(q, k.transpose(1, 2), out=scores).exp2_()
    total = weights.sum(dim=-1, keepdim=True)
    least, most = total.aminmax()
    if least.item() > 1 / _SAFE_SUM and most.item() < _SAFE_SUM:
        torch.bmm(weights, v, out=out).div_(total)
    else:
        scores = torch.bmm(q, k.transpose(1, 2)) / _LOG2_E
        torch.bmm(torch.softmax(scores, dim=-1), v, out=out)
