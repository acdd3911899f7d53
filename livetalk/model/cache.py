"""KVCache: keys and values of what was said before: identity sinks and a rolling window (spec section 6.3).

The first ``sink_frames`` frames stay for ever, the others live in a ring; nothing is ever moved, and every counter is
a Python number on the host. Memory starts as NaN, so that reading what was never written shows. The cache knows frames
and positions; it does not know noise, conditions or what a network does with it.

Positions (``RolloutConfig.positions``): "absolute" stores rotated keys, as published. "bounded" keeps the ring's keys
un-rotated as well and rotates them once per chunk to where they then stand: sinks at 0, window directly behind, the
current chunk last, so that no distance exceeds the window.
"""

from __future__ import annotations

import functools
import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk.config import ModelConfig, RolloutConfig
from livetalk.model.attention import check_window
from livetalk.model.kernels import attend, rotate, rotate_in_place
from livetalk.model.parking import HostMemory
from livetalk.model.rotary import rotary_table
from livetalk.types import LatentShape, LiveTalkError

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class RestorePoint:
    """The state of a cache before a chunk: a number, and what the chunk will overwrite.

    Attributes:
        first_frame: frames the cache held, which is the number of the chunk's first frame.
        frames: length of the chunk.
        spans: token spans saved.
        keys: their keys, ``[layers, B, heads, tokens, d]`` per span (un-rotated when positions are bounded).
        values: their values.
    """

    first_frame: int
    frames: int
    spans: tuple[Span, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class KVCache:
    """Keys and values of all layers for one stream (or a batch of streams in step).

    Args:
        config: sizes of the network.
        settings: window, sinks, chunk and positions.
        shape: latent height and width of the stream (frames are not looked at).
        batch: streams in step.
        dtype: number format of the network.
        device: where the network is.
        start_frame: latent frame at which the stream starts (the first frames stored become the sinks).
        undo_on_host: restore points keep what they hold in the machine's memory.

    Raises:
        LiveTalkError: the window cannot hold the sinks and a chunk.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: RolloutConfig,
        shape: LatentShape,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        start_frame: int = 0,
        undo_on_host: bool = False,
    ) -> None:
        check_window(settings.window_frames, settings.sink_frames, settings.chunk_frames)
        self.batch = batch
        self.start_frame = start_frame
        self.stored_frames = 0
        self._chunk = settings.chunk_frames
        self._window = settings.window_frames
        self._sinks = settings.sink_frames
        self._bounded = settings.positions == "bounded"
        self._split = config.rotary
        self._device = torch.device(device)
        self._set_aside = HostMemory(self._device).park if undo_on_host else torch.clone
        self._grid = shape.height // config.patch[1], shape.width // config.patch[2]
        self._tokens = self._grid[0] * self._grid[1]

        def memory(frames: int) -> Tensor:
            size = (config.layers, batch, config.heads, frames * self._tokens, config.head_width)
            with torch.inference_mode(False):
                return torch.full(size, float("nan"), dtype=dtype, device=self._device)

        self._keys, self._values = memory(self._window), memory(self._window)
        self._raw_keys = memory(self._window - self._sinks) if self._bounded else None
        self._shift_of_layer: list[int | None] = [0] * config.layers
        self._points: list[weakref.ref[RestorePoint]] = []
        self._pass: CachePass | None = None

    @property
    def next_frame(self) -> int:
        """Latent frame of the stream at which the next chunk starts."""
        return self.start_frame + self.stored_frames

    def bytes(self) -> int:
        """Memory of keys and values, in bytes; constant over the stream's length."""
        buffers = (self._keys, self._values, self._raw_keys)
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers if buffer is not None)

    def take_sinks(self, other: KVCache) -> None:
        """Begin with the sinks of another cache of the same kind, as if only they had been written.

        Raises:
            LiveTalkError: something was written already, or the other cache has not all of its sinks yet.
        """
        if self.stored_frames or other.stored_frames < self._sinks:
            raise LiveTalkError("Sinks are taken from a cache that has them all into one that is empty.")
        tokens = self._sinks * self._tokens
        self._keys[..., :tokens, :] = other._keys[..., :tokens, :]
        self._values[..., :tokens, :] = other._values[..., :tokens, :]
        self.stored_frames = self._sinks

    def open(self, frames: int) -> CachePass:
        """A pass of the network over the chunk of ``frames`` latent frames that comes next.

        Passes over the same chunk share one object until ``advance``.
        """
        if self._pass is None or self._pass.frames != frames:
            check_window(self._window, self._sinks, frames)
            self._pass = CachePass(self, frames)
        return self._pass

    def advance(self, frames: int) -> None:
        """The chunk of ``frames`` frames just written is part of the past from now on."""
        self.stored_frames += frames
        self._pass = None

    def _spans(self, first: int, stop: int) -> tuple[Span, ...]:
        """Token spans in the memory of stored frames ``first:stop``, in that order; neighbours merged."""
        spans: list[Span] = []
        for frame in range(first, stop):
            slot = frame
            if frame >= self._sinks:
                slot = self._sinks + (frame - self._sinks) % (self._window - self._sinks)
            begin, end = slot * self._tokens, (slot + 1) * self._tokens
            if spans and spans[-1][1] == begin:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((begin, end))
        return tuple(spans)

    def _recent(self, stop: int) -> int:
        """First frame of the rolling window that ends before frame ``stop``."""
        return max(self._sinks, stop - (self._window - self._sinks))

    def _undoable(self) -> tuple[Tensor, int]:
        """The memory of keys that passes overwrite for good, and its offset in tokens."""
        return (self._keys, 0) if self._raw_keys is None else (self._raw_keys, self._sinks * self._tokens)

    def restore_point(self, frames: int | None = None) -> RestorePoint:
        """A point to come back to after the next chunk, or several, were written.

        Costs a copy of what the next chunk overwrites (nothing until the window is full). It is good as long as the
        points of all chunks begun since are still held.

        Args:
            frames: latent frames of the next chunk; default: the settings' chunk.

        Raises:
            LiveTalkError: the next chunk was begun already, so what it overwrites is gone.
        """
        frames = self._chunk if frames is None else frames
        alive = [held for ref in self._points if (held := ref()) is not None]
        for held in alive:
            if held.first_frame == self.stored_frames and held.frames == frames:
                return held
        if self._pass is not None:
            raise LiveTalkError("A restore point must be taken before the first pass over its chunk.")
        keys, offset = self._undoable()
        spans = self._spans(max(self._window, self.stored_frames), self.stored_frames + frames)
        point = RestorePoint(
            self.stored_frames,
            frames,
            spans,
            tuple(self._set_aside(keys[..., begin - offset : end - offset, :]) for begin, end in spans),
            tuple(self._set_aside(self._values[..., begin:end, :]) for begin, end in spans),
        )
        self._points = [weakref.ref(held) for held in alive if held.first_frame < self.stored_frames]
        self._points.append(weakref.ref(point))
        return point

    def restore(self, point: RestorePoint) -> None:
        """Undo every chunk written since ``point`` was taken. The point stays good.

        Raises:
            LiveTalkError: the point is not one of this cache's, or a chunk since then has no restore point any more.
        """
        alive = [held for ref in self._points if (held := ref()) is not None]
        undo = [held for held in alive if held.first_frame >= point.first_frame]
        stops = [held.first_frame + held.frames for held in undo]
        unbroken = all(stop == after.first_frame for stop, after in zip(stops, undo[1:], strict=False))
        if point not in undo or not unbroken or stops[-1] < self.stored_frames:
            raise LiveTalkError(
                "This restore point cannot be reached: it belongs to another cache, or the point of a later chunk "
                "was dropped. Hold the points of all chunks that may be undone."
            )
        keys, offset = self._undoable()
        with torch.no_grad():
            for held in reversed(undo):
                for (begin, end), old_keys, old_values in zip(held.spans, held.keys, held.values, strict=True):
                    keys[..., begin - offset : end - offset, :] = old_keys
                    self._values[..., begin:end, :] = old_values
        self._points = [weakref.ref(held) for held in alive if held.first_frame <= point.first_frame]
        self._shift_of_layer = [None] * len(self._shift_of_layer)
        self.stored_frames = point.first_frame
        self._pass = None

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer in the order of their frames, ``[B, tokens, heads * d]`` each.

        Keys are rotated as the last pass saw them. A copy, for looking at; the network does not use it.
        """
        sinks, stop = min(self._sinks, self.stored_frames), self.stored_frames
        spans = self._spans(0, sinks) + self._spans(min(self._recent(stop), stop), stop)
        keys, values = (
            torch.cat([memory[layer][:, :, begin:end] for begin, end in spans], dim=2).transpose(1, 2).flatten(2)
            for memory in (self._keys, self._values)
        )
        return keys, values


class CachePass:
    """Passes of the network over one chunk: where it stands and what it sees. Made by ``KVCache.open``."""

    def __init__(self, cache: KVCache, frames: int) -> None:
        first, stop = cache.stored_frames, cache.stored_frames + frames
        self.frames = frames
        self.is_last = True
        """Whether later chunks may see what this pass writes; noisy passes need not keep what only they would read."""
        self._cache = cache
        done, own = 0, []
        for begin, end in cache._spans(first, stop):
            own.append(((begin, end), slice(done, done + end - begin)))
            done += end - begin
        # Where the chunk's tokens go in the cache, and which of them.
        self._own: tuple[tuple[Span, slice], ...] = tuple(own)
        self._valid = min(stop, cache._window) * cache._tokens
        # How far the ring's keys stand before their place in the stream.
        self._shift = max(0, stop - cache._window) if cache._bounded else 0
        origin = -self._shift if cache._bounded else cache.start_frame
        table = functools.partial(rotary_table, grid=cache._grid, split=cache._split, device=cache._device)
        self._table = table(range(origin + first, origin + stop))
        moved = cache._recent(stop), first
        self._moved: tuple[Span, ...] = ()
        if cache._bounded and moved[0] < moved[1]:
            self._moved = cache._spans(*moved)
            self._moved_table = table(range(moved[0] - self._shift, moved[1] - self._shift))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, largest: float = math.inf) -> Tensor:
        """See ``AttentionContext``. Without gradients the chunk's keys and values go to the cache on the way."""
        if torch.is_grad_enabled():
            return attend(rotate(q, self._table), *self._with_past(layer, k, v))
        q = rotate_in_place(q, self._table)
        return attend(q, *self.write(layer, k, v), largest)

    @functools.cached_property
    def turns(self) -> Tensor:
        """Cosines and sines ``[N, d / 2, 2]`` by which the chunk's queries and keys are rotated."""
        return torch.view_as_real(self._table)

    def attend_rotated(self, layer: int, q: Tensor, rotated: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``attend`` without gradients for who rotates queries and keys by ``turns``; ``k`` is not rotated."""
        self._settle(layer)
        for (begin, _), part in self._own:
            self._keep_raw(layer, k[:, :, part], begin)
        return attend(q, *self._put(layer, rotated, v))

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the chunk's keys (normalised, not rotated) and values into its slot; all that the layer then sees.

        Keys in float32 are written over.
        """
        self._settle(layer)
        for (begin, _), part in self._own:
            self._keep_raw(layer, k[:, :, part], begin)
        return self._put(layer, rotate_in_place(k, self._table), v)

    def _put(self, layer: int, rotated: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values into the chunk's slot; all that the layer then sees."""
        keys, values = self._cache._keys[layer], self._cache._values[layer]
        for (begin, end), part in self._own:
            keys[:, :, begin:end] = rotated[:, :, part]
            values[:, :, begin:end] = v[:, :, part]
        return keys[:, :, : self._valid], values[:, :, : self._valid]

    def _keep_raw(self, layer: int, k: Tensor, begin: int) -> None:
        """Store un-rotated keys of the span that begins at token ``begin``, as far as it lies in the ring."""
        if self._cache._raw_keys is None or not self.is_last:
            return
        place = begin - self._cache._sinks * self._cache._tokens
        k, place = k[:, :, max(0, -place) :], max(0, place)
        self._cache._raw_keys[layer][:, :, place : place + k.shape[2]] = k

    def _settle(self, layer: int) -> None:
        """Rotate the ring's keys to where they stand for this chunk, once per layer."""
        cache = self._cache
        if cache._raw_keys is None or cache._shift_of_layer[layer] == self._shift:
            return
        offset, done = cache._sinks * cache._tokens, 0
        with torch.no_grad():
            for begin, end in self._moved:
                turned = self._moved_table[done : done + end - begin]
                raw = cache._raw_keys[layer][:, :, begin - offset : end - offset]
                cache._keys[layer][:, :, begin:end] = rotate(raw, turned)
                done += end - begin
        cache._shift_of_layer[layer] = self._shift

    def _with_past(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All that the layer sees, with gradients to the chunk's own keys and values only.

        The past is a constant and a copy: later chunks write over it while the graph still needs it.
        """
        self._settle(layer)
        keys, values, rotated = self._cache._keys[layer], self._cache._values[layer], rotate(k, self._table)
        parts: list[tuple[int, Tensor, Tensor]] = []
        free = 0
        for begin, end in sorted(span for span, _ in self._own):
            parts.append((free, keys[:, :, free:begin], values[:, :, free:begin]))
            free = end
        parts.append((free, keys[:, :, free : self._valid], values[:, :, free : self._valid]))
        for (begin, _), part in self._own:
            parts.append((begin, rotated[:, :, part].to(keys.dtype), v[:, :, part].to(values.dtype)))
        parts.sort(key=lambda placed: placed[0])
        return torch.cat([part[1] for part in parts], dim=2), torch.cat([part[2] for part in parts], dim=2)
