"""Where the streams of one process meet: passes that wait for the network together run as one.

Sessions live in threads of their own, and the network runs one pass at a time. What is asked for in the meantime waits
in line; when the pass has ended, the first in line takes all that fit with it and runs them as one. Nobody waits for
some milliseconds in the hope of company. But the passes over one chunk follow each other with next to nothing between
them, so who is in the middle of a chunk is waited for (``over_a_chunk``): streams that met go on in step instead of
taking turns. A stream that is alone is never held up, and calls the network as if nothing stood between.

On CUDA a pass that several streams wait for has ended when the GPU has done it, not when it was launched: otherwise the
line would be short in Python and long on the GPU, and nobody would meet.

This module does not know noise, sessions, or where in time a chunk stands.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from livetalk.config import ModelConfig
from livetalk.model.batching import CacheBatch, join_conditions, join_text
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions, TextKeys
from livetalk.model.transformer import CausalDiT

MOST_STREAMS = 4
"""In one pass. Compiled layers are compiled for each number, and a GPU that is full gains nothing by more."""


class CachedNetwork(Protocol):
    """What a rollout asks of a network; see ``CausalDiT``, which is one."""

    @property
    def config(self) -> ModelConfig:
        """Sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def prepare(self, cond: Conditions) -> Conditions:
        """See ``CausalDiT.prepare``."""

    def __call__(self, x: Tensor, t: Tensor, cond: Conditions, *, cache: KVCache) -> Tensor:
        """See ``CausalDiT.forward``."""

    def write_context(self, latents: Tensor, t: Tensor, cond: Conditions, cache: KVCache) -> None:
        """See ``CausalDiT.write_context``."""


@dataclass(eq=False)
class _Pass:
    """One stream's pass, as it waits: its arguments, who waits for it, and what came of it."""

    commits: bool
    x: Tensor
    t: Tensor
    cond: Conditions
    cache: KVCache
    owner: int = field(default_factory=threading.get_ident)
    done: bool = False
    output: Tensor | None = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        assert isinstance(self.cond.text, TextKeys)
        self.text, self.stream = self.cond.text, id(self.cache)
        self.kind = (
            self.commits,
            (self.x.shape[1:], self.x.dtype, self.x.device),
            (self.t.shape[1:], self.t.dtype),
            (self.cond.image.shape[1:], self.cond.image.dtype, self.cond.image.device),
            (self.text.keys[0].shape[1:], len(self.text.few)),
            torch.is_inference_mode_enabled(),
            torch.cuda.current_stream(self.x.device) if self.x.device.type == "cuda" else None,
        )


class Gathered:
    """A network that several threads call at once, each for its own stream; a ``CachedNetwork``.

    Args:
        network: frozen; everything but its cached passes is its own business.
        most: streams in one pass, at most.
    """

    def __init__(self, network: CausalDiT, most: int = MOST_STREAMS) -> None:
        self.network, self.most = network, most
        self.config, self.dtype, self.device = network.config, network.dtype, network.device
        self.passes: Counter[int] = Counter()
        """How many passes ran with how many streams in them."""
        self._changed = threading.Condition()
        self._line: list[_Pass] = []
        self._inside: set[int] = set()
        self._running = False
        # What ran last: for which streams, and on CUDA its end.
        self._newest: tuple[frozenset[int], torch.cuda.Event | None] = frozenset(), None
        # The words of the last pass that had several streams.
        self._words: tuple[tuple[TextKeys, ...], TextKeys] | None = None

    def prepare(self, cond: Conditions) -> Conditions:
        """See ``CausalDiT.prepare``; in the caller's thread, beside any pass."""
        return self.network.prepare(cond)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditions, *, cache: KVCache) -> Tensor:
        """See ``CausalDiT.forward``. With gradients it is the network's own."""
        if torch.is_grad_enabled():
            return self.network(x, t, cond, cache=cache)
        output = self._meet(_Pass(False, x, t, self.prepare(cond), cache))
        assert output is not None
        return output

    def write_context(self, latents: Tensor, t: Tensor, cond: Conditions, cache: KVCache) -> None:
        """See ``CausalDiT.write_context``."""
        with torch.no_grad():
            self._meet(_Pass(True, latents, t, self.prepare(cond), cache))

    @contextmanager
    def over_a_chunk(self) -> Iterator[None]:
        """Within it, this thread's passes follow each other at once; others may wait for the next of them."""
        owner = threading.get_ident()
        with self._changed:
            self._inside.add(owner)
        try:
            yield
        finally:
            with self._changed:
                self._inside.discard(owner)
                self._changed.notify_all()

    @torch.inference_mode()
    def warm_up(self, latents: Tensor, cond: Conditions, cache: KVCache) -> None:
        """Run a pass of every number of streams, so that nothing is compiled or chosen while people watch.

        Args:
            latents: of one stream, which stands for all of them: ``[1, C, f, H, W]``.
            cond: its conditions.
            cache: of its own; what is in it afterwards means nothing.
        """
        one = _Pass(False, latents, latents.new_zeros(1), self.prepare(cond), cache)
        for streams in range(2, self.most + 1):
            self._together([one] * streams)
        self._words = None

    def _meet(self, mine: _Pass) -> Tensor | None:
        """Wait until ``mine`` was run by somebody, or run it with all that fit when it is first in line."""
        with self._changed:
            self._line.append(mine)
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: mine.done or self._is_turn_of(mine))
            except BaseException:
                if mine in self._line:
                    self._line.remove(mine)
                self._changed.notify_all()
                raise
            leads = not mine.done
            if leads:
                self._running = True
        if leads:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        return mine.output

    def _is_turn_of(self, mine: _Pass) -> bool:
        """Whether it is first in line, nothing runs, and everybody in the middle of a chunk has come."""
        here = {one.owner for one in self._line}
        return not self._running and bool(self._line) and self._line[0] is mine and self._inside <= here

    def _lead(self, mine: _Pass) -> None:
        """Run ``mine``, the first in line, and all that fit with it."""
        group = [mine]
        try:
            streams, end = self._newest
            if end is not None and streams != {mine.stream}:
                end.synchronize()
            with self._changed:
                group = [one for one in self._line if one.kind == mine.kind][: self.most]
                self._line = [one for one in self._line if one not in group]
            self._run(sorted(group, key=lambda one: one.stream))  # whoever came first: words are joined once
        finally:
            with self._changed:
                # If this thread is ending, the others still want theirs.
                self._line = [one for one in group if not one.done and one is not mine] + [
                    one for one in self._line if one is not mine
                ]
                self._running = False
                self._changed.notify_all()

    def _run(self, group: Sequence[_Pass]) -> None:
        """One pass of the network for all of ``group``; where that fails, one for each, and each has its own error."""
        try:
            outputs = self._alone(group[0]) if len(group) == 1 else self._together(group)
        except Exception as error:
            if len(group) == 1:
                group[0].error, group[0].done = error, True
                return
            # A pass writes nothing that the same pass would not write again, so it may be repeated.
            for one in group:
                self._run([one])
            return
        for one, output in zip(group, outputs, strict=True):
            one.output, one.done = output, True
        self.passes[len(group)] += 1
        event = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        self._newest = frozenset(one.stream for one in group), event

    def _alone(self, one: _Pass) -> Sequence[Tensor | None]:
        self._words = None  # nothing is held for streams that have left
        if one.commits:
            self.network.write_context(one.x, one.t, one.cond, one.cache)
            return [None]
        return [self.network(one.x, one.t, one.cond, cache=one.cache)]

    def _together(self, group: Sequence[_Pass]) -> Sequence[Tensor | None]:
        x, t = torch.cat([one.x for one in group]), torch.cat([one.t for one in group])
        cond = join_conditions([one.cond for one in group], self._text([one.text for one in group]))
        caches = CacheBatch([one.cache for one in group])
        if group[0].commits:
            self.network.write_context(x, t, cond, caches)
            return [None] * len(group)
        return self.network(x, t, cond, cache=caches).split([len(one.x) for one in group])

    def _text(self, texts: Sequence[TextKeys]) -> TextKeys:
        """Words of several streams, joined once while the same streams meet."""
        if self._words is None or [id(text) for text in texts] != [id(text) for text in self._words[0]]:
            self._words = tuple(texts), join_text(texts)
        return self._words[1]


def over_a_chunk(network: Any) -> AbstractContextManager[None]:
    """For the passes over one chunk, whatever network runs them; see ``Gathered.over_a_chunk``."""
    return network.over_a_chunk() if isinstance(network, Gathered) else nullcontext()
