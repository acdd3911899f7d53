"""Making chunks, and unmaking them: latents, cache and decoder of one stream, with a way back for every chunk.

A chunk goes through two stages. Denoising reads the cache; the clean pass that writes the chunk into it is put off
until the next chunk is made, so that the first picture does not wait for it. Decoding needs only the latents and the
decoder's state before the chunk; it can run in a thread beside the denoising of the next chunk, with the same bits.

What a chunk changed is kept with it (a restore point of the cache, the decoder state before it), so that the newest
chunks can be taken back and made again with other sound. The noise of a chunk depends on nothing but the seed and the
chunk's number.

This module knows nothing of sound, time or who wants a chunk remade.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetalk.hub import Models
from livetalk.model.cache import RestorePoint
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.drive import driven
from livetalk.rollout import chunk_noise, commit_chunk, denoise_chunk, new_cache
from livetalk.stream.pace import StageTimes
from livetalk.types import Identity, picture_span

Decoded = tuple[np.ndarray, Any]
"""Pictures uint8 ``[T, H, W, 3]`` and the decoder's state after them."""


@dataclass
class Take:
    """One chunk as it was made, and what is needed to unmake it.

    Attributes:
        index: number of the chunk in the stream.
        first, stop: its pictures.
        cond: what it was made from.
        latents: ``[1, C, F, h, w]``, clean.
        decoder_before: decoder state before it (None at the start of the stream), possibly still being computed.
        decoded: its pictures and the decoder state after it, possibly still being computed.
        restore_point: the cache before the chunk.
    """

    index: int
    first: int
    stop: int
    cond: Conditions
    latents: Tensor
    decoder_before: Future[Decoded] | None
    decoded: Future[Decoded] = field(repr=False)
    restore_point: RestorePoint = field(repr=False)

    def pictures(self) -> np.ndarray:
        """uint8 ``[stop - first, H, W, 3]``; waits for the decoder."""
        return self.decoded.result()[0]


class ChunkMaker:
    """Makes the chunks of one stream in order; the newest can be unmade.

    Args:
        models: networks and preset; shared, never changed.
        identity: whose face, and the prompt.
        seed: of the noise.
        times: where stages are timed.
        overlap: decode in a thread of its own.
    """

    def __init__(self, models: Models, identity: Identity, seed: int, times: StageTimes, overlap: bool) -> None:
        self._models, self._seed, self._times = models, seed, times
        self._settings = models.preset.rollout
        self._frames = self._settings.chunk_frames
        self._shape = models.preset.latent_shape(self._frames)
        self._cache = new_cache(models.transformer, self._settings, self._shape)
        portrait = identity.portrait_latent.to(models.device)
        self._images = [image_condition(portrait, self._frames, first_frame=frame) for frame in (0, 1)]
        self._text: Any = identity.text.to(models.device)
        self._newest: Take | None = None
        self._decoder_state: Future[Decoded] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="livetalk-decode") if overlap else None
        beside = overlap and models.device.type == "cuda"
        self._stream = torch.cuda.Stream(models.device) if beside else None

    @torch.inference_mode()
    def make(self, index: int, rows: Tensor) -> Take:
        """Make the next chunk.

        Args:
            index: its number; one more than that of the newest chunk.
            rows: audio feature rows ``[1, T, A]`` of its pictures.
        """
        self._commit_newest()
        cond = self._conditions(index, self._driven(index, rows))
        point = self._cache.restore_point()
        with self._times.stage("denoise"):
            noise = chunk_noise(self._seed, index, self._shape, len(self._settings.timesteps))
            latents = denoise_chunk(self._models.transformer, self._cache, cond, noise, self._settings)
        first, stop = picture_span(index * self._frames, self._frames)
        before = self._decoder_state
        made = None if self._stream is None else torch.cuda.current_stream(self._models.device).record_event()
        decoded = self._start(lambda: self._decode(latents, before, made))
        take = Take(index, first, stop, cond, latents, before, decoded, point)
        self._newest, self._decoder_state = take, take.decoded
        return take

    def unmake(self, take: Take) -> None:
        """Go back to before ``take``, which must be the newest chunk not yet unmade."""
        self._cache.restore(take.restore_point)
        self._newest, self._decoder_state = None, take.decoder_before

    def close(self) -> None:
        """End the decoding thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def nbytes(self, takes: Iterable[Take]) -> int:
        """Bytes of the cache, and of latents and conditions of the chunks that are held."""
        held = {id(take): take for take in (*takes, *([self._newest] if self._newest else []))}
        return self._cache.bytes() + sum(take.latents.nbytes for take in held.values())

    def _commit_newest(self) -> None:
        """Write the newest chunk into the cache, if that was not done."""
        take, self._newest = self._newest, None
        if take is None:
            return
        with self._times.stage("commit"):
            commit_chunk(self._models.transformer, self._cache, take.latents, take.cond)

    def _driven(self, index: int, rows: Tensor) -> Tensor:
        """Rows with what is not heard but drawn from the seed, where the network was trained with it."""
        width = self._models.transformer.config.drive_width
        first, stop = picture_span(index * self._frames, self._frames)
        columns = torch.from_numpy(driven(self._seed, first, stop - first, width)).to(rows)
        return torch.cat((rows, columns.expand(len(rows), -1, -1)), dim=2)

    def _conditions(self, index: int, rows: Tensor) -> Conditions:
        packed = pack_audio(rows) if index == 0 else rows
        cond = Conditions(image=self._images[min(index, 1)], audio=packed, text=self._text)
        # Audio stays as rows: guidance silences what is heard in them.
        self._text = self._models.transformer.prepare(cond).text
        return dataclasses.replace(cond, text=self._text)

    @torch.inference_mode()
    def _decode(self, latents: Tensor, before: Future[Decoded] | None, made: torch.cuda.Event | None) -> Decoded:
        state = None if before is None else before.result()[1]
        with self._times.stage("decode"), self._on_stream(latents, made):
            pictures, state = self._models.vae.decode_chunk(latents, state)
            levels = ((pictures[0].float() + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
            return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy(), state

    @contextmanager
    def _on_stream(self, latents: Tensor, made: torch.cuda.Event | None) -> Iterator[None]:
        """On CUDA the decoder works on a stream of its own, once the latents are ``made``; elsewhere nothing."""
        if self._stream is None or made is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(made)
            latents.record_stream(self._stream)
            yield

    def _start(self, work: Callable[[], Decoded]) -> Future[Decoded]:
        """Run ``work`` in the decoding thread, or here and now."""
        if self._thread is not None:
            return self._thread.submit(work)
        done: Future[Decoded] = Future()
        done.set_result(work())
        return done
