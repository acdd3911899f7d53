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

# Attention scores count in this part of 1: a score larger by 128 doubles the weight. One step of a bfloat16's bits.
SCORE_SCALE = 128 * math.log2(math.e)
# The bits of 1.0 in bfloat16: exponent 127, fraction 0.
_ONE_BITS = 127 << 7
# Scores up to this, 100 doublings either way, leave room for the sum of a row.
_SAFE_SCORE = 100 * 128
# Attention scores held at a time: fewer calls pay more than a smaller footprint, up to 3 MB in bfloat16.
_SCORES = 1_600_000


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


def scaled_rows(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """``rms_norm`` without gradients whose result stays float32, so that it is rounded only where it is stored.

    Args:
        x: ``[..., D]``; written over where it is float32.
        gain: float32, times sqrt(D): what the mean has more than the sum.
        eps: of the mean.
    """
    x = x.float()
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return x.mul_(squares.add_(eps * x.shape[-1]).rsqrt_()).mul_(gain)


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


def rotate_in_place(x: Tensor, table: Tensor) -> Tensor:
    """``rotate`` without gradients; writes over ``x`` where it is float32."""
    if x.dtype != torch.float32:
        return _turn(x, table)
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(table)
    return x


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent channel pairs.

    Args:
        x: ``[B, heads, N, head_width]``.
        table: complex64 ``[N, head_width // 2]`` (or 1 row for all).

    Returns:
        Same shape and dtype as ``x``.
    """
    return _Rotate.apply(x, table) if torch.is_grad_enabled() else _turn(x, table)


def gelu_form(x: Tensor) -> str:
    """Form of GELU that equals the tanh form to the precision of the number format.

    torch's tanh is slow on CPUs. In bfloat16 the erf form is four times faster and differs by less than a tenth of
    one rounding.
    """
    return "none" if x.device.type == "cpu" and x.dtype == torch.bfloat16 else "tanh"


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, to the precision of the number format."""
    return F.gelu(x, approximate=gelu_form(x))


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


def attend(q: Tensor, k: Tensor, v: Tensor, largest: float = math.inf) -> Tensor:
    """Attention without mask: weights exp(q k^T / SCORE_SCALE), divided by their sum, times v.

    Args:
        q: ``[B, heads, N, d]``, already multiplied by SCORE_SCALE / sqrt(d); float32 or the dtype of ``k``.
        k: ``[B, heads, K, d]``, ``v`` the same.
        largest: no score is larger than this; where it says too little, queries and keys are looked at.

    Returns:
        ``[B, heads, N, d]``, laid out so that heads and channels of a token are neighbours.
    """
    if k.device.type != "cpu" or k.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q.to(k.dtype), k, v, scale=1 / SCORE_SCALE)
    # Without AMX the fused CPU kernel is slower in bfloat16 than three plain products.
    if torch.is_grad_enabled():
        return torch.matmul(torch.softmax(torch.matmul(q / SCORE_SCALE, k.transpose(-1, -2)), dim=-1), v)
    batch, heads, tokens, width = q.shape
    out = k.new_empty(batch, tokens, heads, width).transpose(1, 2)
    queries = torch.empty(q.shape, dtype=k.dtype).copy_(q)
    for sample in range(batch):
        _attend_sample(queries[sample], k[sample], v[sample], out[sample], largest)
    return out


def attend_few(q: Tensor, keys: Tensor, outputs: Tensor, bias: Tensor, heads: int, eps: float) -> Tensor:
    """Attention to few keys, from projected queries to the output projection's result, in float32.

    Scores are laid out key by key, tokens innermost: torch's softmax over a handful of neighbours is ten times slower.

    Args:
        q: queries ``[B, N, D]``, projected, not normalised.
        keys: ``[B, heads * L, D]`` float32 with the queries' scale and gains in them, zero outside their head; gains
            times sqrt(D), see ``scaled_rows``.
        outputs: ``[B, heads * L, D]`` float32, values behind the output projection.
        bias: of the output projection ``[D]``.
        heads: number of heads.
        eps: of the queries' RMS norm.

    Returns:
        float32 ``[B, N, D]``.
    """
    q = q.float()
    inverse = torch.linalg.vector_norm(q, dim=-1).square_().add_(eps * q.shape[-1]).rsqrt_()
    scores = torch.bmm(keys, q.transpose(1, 2)).mul_(inverse.unsqueeze(1))
    weights = torch.softmax(scores.unflatten(1, (heads, -1)), dim=2).flatten(1, 2)
    return torch.baddbmm(bias.float(), weights.transpose(1, 2), outputs)


def _attend_sample(q: Tensor, k: Tensor, v: Tensor, out: Tensor, largest: float) -> None:
    """One sample into ``out``: all at once where its scores are few enough, else some heads and rows at a time."""
    if largest >= _SAFE_SCORE:
        # |q k| <= |q| |k|, so nothing needs to be looked for in the scores.
        largest = (torch.linalg.vector_norm(q, dim=-1).amax() * torch.linalg.vector_norm(k, dim=-1).amax()).item()
    part = _attend_bits if largest < _SAFE_SCORE else _attend_softmax
    heads, tokens, keys = q.shape[0], q.shape[1], k.shape[1]
    if heads * tokens * keys <= _SCORES:
        part(q, k, v, out)
        return
    rows = min(tokens, max(1, _SCORES // keys))
    group = min(heads, max(1, _SCORES // (rows * keys)))
    for head, row in itertools.product(range(0, heads, group), range(0, tokens, rows)):
        some = slice(head, head + group)
        own = some, slice(row, row + rows)
        part(q[own], k[some], v[some], out[own])


def _attend_bits(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Attention whose exponential is a conversion: a score, as a whole number, is the bits of its weight.

    Bits read as a number go straight from one power of two to the next instead of curving (Schraudolph 1999). Weights
    are off by -3 to 3 % (1.9 % rms) about a common factor, which the division takes out; outputs of the network come
    no further from float32 than with torch's ``exp2``, whose scores and weights are rounded just the same.
    """
    scores = _workspace("scores", (q.shape[0], q.shape[1], k.shape[1]), q)
    torch.bmm(q, k.transpose(1, 2), out=scores)
    bits = scores.view(torch.int16)
    weights = bits.copy_(scores).add_(_ONE_BITS).view(torch.bfloat16)
    total = weights.sum(dim=-1, keepdim=True)
    torch.bmm(weights, v, out=out).div_(total)


def _attend_softmax(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """The same for scores of any size."""
    scores = torch.bmm(q, k.transpose(1, 2)) / SCORE_SCALE
    torch.bmm(torch.softmax(scores, dim=-1), v, out=out)
