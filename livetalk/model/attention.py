"""Attention of the causal DiT: projections, norms, and which frames a chunk sees (spec sections 5.2, 6).

Self-attention asks a *context* what its queries attend to: ``ClipContext`` here (bidirectional or block-causal over a
whole clip), ``CachePass`` in ``model.cache`` (rollout). This module does not know rings, noise or time steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from livetalk.model.conditions import FewKeys
from livetalk.model.kernels import SCORE_SCALE, attend, attend_few, rms_norm, rotate, scaled_rows
from livetalk.model.packing import Packable
from livetalk.model.rotary import rotary_table, time_shift
from livetalk.types import LiveTalkError

EPS = 1e-6

ROUNDED = 1.02
"""How much longer rows may become by rounding to bfloat16, at most, twice over."""


@dataclass(frozen=True)
class ChunkSpan:
    """One chunk and its keys, in latent frames: queries ``start:stop``; keys ``0:sinks`` and ``first:stop``.

    Attributes:
        sink_shift: frames by which the sinks move up in time.
    """

    start: int
    stop: int
    sinks: int
    first: int
    sink_shift: int


@dataclass(frozen=True)
class ChunkMask:
    """Which latent frames a chunk sees in a forward pass without cache (spec section 6.2).

    Attributes:
        chunk_frames: latent frames generated together; they see each other.
        window_frames: frames seen in all, sinks and the chunk itself included; None = everything before.
        sink_frames: first frames of the clip, always seen.
        bounded: time distances as in a ``bounded`` cache: the sinks move up to stand directly before the window.
    """

    chunk_frames: int
    window_frames: int | None = None
    sink_frames: int = 0
    bounded: bool = False

    def spans(self, frames: int) -> list[ChunkSpan]:
        """What each chunk of a clip of ``frames`` latent frames sees.

        Raises:
            LiveTalkError: the clip is not a whole number of chunks, or the window cannot hold sinks and chunk.
        """
        if frames % self.chunk_frames:
            raise LiveTalkError(
                f"A clip of {frames} latent frames is not a whole number of chunks of {self.chunk_frames}. "
                "Cut the clip to a multiple."
            )
        if self.window_frames is not None:
            check_window(self.window_frames, self.sink_frames, self.chunk_frames)
        spans = []
        for start in range(0, frames, self.chunk_frames):
            stop = start + self.chunk_frames
            dropped = 0 if self.window_frames is None else max(0, stop - self.window_frames)
            sinks = self.sink_frames if dropped else 0
            spans.append(ChunkSpan(start, stop, sinks, sinks + dropped, dropped if self.bounded else 0))
        return spans


def check_window(window_frames: int, sink_frames: int, chunk_frames: int) -> None:
    """Refuse a window that cannot hold the sinks and a chunk.

    Raises:
        LiveTalkError: it cannot.
    """
    if window_frames < sink_frames + chunk_frames:
        raise LiveTalkError(
            f"A window of {window_frames} latent frames cannot hold {sink_frames} sink frames and a chunk of "
            f"{chunk_frames}. Make the window at least {sink_frames + chunk_frames} frames."
        )


class AttentionContext(Protocol):
    """What queries of one layer attend to."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, largest: float = math.inf) -> Tensor:
        """Attention of the layer's tokens, all ``[B, heads, N, d]``; q (scaled) and k normalised, not rotated.

        Without gradients q and k may be float32 where v is not. No score is larger than ``largest``.
        """


class ClipContext:
    """Attention within one clip, without cache: bidirectional, or block-causal with a mask.

    Args:
        times: time position of each frame.
        grid: rows and columns of the patch grid.
        split: rotary channels of a head for (time, rows, columns).
        device: where the tokens are.
        mask: block-causal mask; None = every token sees every token.
    """

    def __init__(
        self,
        times: Sequence[float],
        grid: tuple[int, int],
        split: tuple[int, int, int],
        device: torch.device,
        mask: ChunkMask | None = None,
    ) -> None:
        self._tokens = grid[0] * grid[1]
        self._table = rotary_table(times, grid, split, device)
        self._spans = None if mask is None else mask.spans(len(times))
        shifts = {span.sink_shift for span in self._spans or () if span.sink_shift}
        self._shifts = {frames: time_shift(frames, split, device) for frames in shifts}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, largest: float = math.inf) -> Tensor:  # noqa: ARG002 (the protocol's)
        """See ``AttentionContext``; the same for every layer."""
        q, k = rotate(q, self._table), rotate(k, self._table).to(v.dtype)
        if self._spans is None:
            return attend(q, k, v, largest)
        return torch.cat([self._attend_span(q, k, v, span, largest) for span in self._spans], dim=2)

    def _attend_span(self, q: Tensor, k: Tensor, v: Tensor, span: ChunkSpan, largest: float) -> Tensor:
        """One chunk over exactly the keys it may see: a dense mask would cost several times more."""
        start, stop, first, sinks = (
            frames * self._tokens for frames in (span.start, span.stop, span.first, span.sinks)
        )
        keys, values = k[:, :, first:stop], v[:, :, first:stop]
        if sinks:
            anchors = k[:, :, :sinks]
            if span.sink_shift:
                anchors = rotate(anchors, self._shifts[span.sink_shift])
            keys = torch.cat((anchors, keys), dim=2)
            values = torch.cat((v[:, :, :sinks], values), dim=2)
        return attend(q[:, :, start:stop], keys, values, largest)


class WideRMSNorm(nn.Module):
    """RMS norm over the whole width, not per head (spec section 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; statistics in float32."""
        return rms_norm(x, self.weight, EPS)


class Attention(Packable):
    """Projections and norms of self- and cross-attention; names as in the original checkpoint."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = WideRMSNorm(width)
        self.norm_k = WideRMSNorm(width)
        self._gains = torch.empty(0)
        self._largest = math.inf

    def pack(self, rows: int) -> None:
        """See ``Packable``; with the packed copies go the gains of queries and keys, float32 ``[2, D]``.

        The gains bound every score: a normalised row times them is no longer than sqrt(D) times the largest one.
        """
        super().pack(rows)
        if not self._packs:
            return
        with torch.inference_mode(False), torch.no_grad():
            gains = torch.stack((self.norm_q.weight * self._query_scale(), self.norm_k.weight)).float()
            self._gains = gains * math.sqrt(gains.shape[1])
            self._largest = self._gains.abs().amax(1).prod().item() * ROUNDED

    def queries(self, x: Tensor) -> Tensor:
        """Normalised queries as ``attend`` wants them, ``[B, heads, N, d]``, of tokens ``[B, N, D]``."""
        packed = self.packed("q")
        if packed is None:
            return self._heads(rms_norm(self.q(x), self.norm_q.weight * self._query_scale(), EPS))
        return self._heads(scaled_rows(packed(x), self._gains[0], EPS))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised keys and values, each ``[B, heads, N, d]``, of tokens ``[B, N, D]``."""
        return self._heads(self.norm_k(self.k(x))), self._heads(self.v(x))

    def _bound(self) -> float:
        """What no score exceeds; only packed gains are known not to change."""
        return self._largest if self._packs else math.inf

    def _query_scale(self) -> float:
        return SCORE_SCALE * (self.q.out_features // self.heads) ** -0.5

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def output(self, attended: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` of what heads attended to, ``[B, heads, N, d]``."""
        return (self.packed("o") or self.o)(attended.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Self-attention with rotary positions."""

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        """Attend within ``context`` from tokens ``[B, N, D]`` of layer number ``layer``."""
        return self.output(context.attend(layer, *self._projections(x), self._bound()))

    def pack_groups(self) -> dict[str, tuple[nn.Linear, ...]]:
        """See ``Packable``: queries, keys and values are one product."""
        return {"qkv": (self.q, self.k, self.v), "o": (self.o,)}

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = self.packed("qkv")
        if joint is None:
            return self.queries(x), *self.keys_values(x)
        product = joint(x).unflatten(-1, (3, -1))
        q, k = (self._heads(part) for part in scaled_rows(product[:, :, :2], self._gains, EPS).unbind(2))
        return q, k, self._heads(product[:, :, 2])


class CrossAttention(Attention):
    """Attention over the text rows: no rotation, no mask (spec section 5.2, step 2)."""

    def pack_groups(self) -> dict[str, tuple[nn.Linear, ...]]:
        """See ``Packable``: keys and values are made once and stay as they are."""
        return {"q": (self.q,), "o": (self.o,)}

    def folded(self, keys: Tensor, values: Tensor) -> FewKeys | None:
        """Keys and values ``[B, heads, L, d]`` with the projections in them; None if unpacked or if it is more work."""
        batch, heads, count, _ = keys.shape
        width = self.o.out_features
        if self.packed("q") is None or 2 * heads * count > width:
            return None
        own = torch.eye(heads, device=keys.device)[:, None, :, None]
        spread = (own * keys.float().unsqueeze(3)).reshape(batch, heads * count, width)
        outputs = values.float() @ self.o.weight.float().view(width, heads, -1).permute(1, 2, 0)
        return FewKeys(spread * self._gains[0] / SCORE_SCALE, outputs.reshape(batch, heads * count, width))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, few: FewKeys | None = None) -> Tensor:
        """Attend from tokens ``[B, N, D]`` to prepared keys and values ``[B, heads, L, d]``.

        Args:
            x: tokens.
            keys: normalised.
            values: of the same rows.
            few: see ``folded``; then the result is float32.
        """
        packed = self.packed("q")
        if few is None or packed is None:
            return self.output(attend(self.queries(x), keys, values, self._bound()))
        return attend_few(packed(x), few.keys, few.outputs, self.o.bias, self.heads, EPS)
