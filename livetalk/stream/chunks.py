"""Making chunks, and unmaking them: latents, cache and decoder of one stream, with a way back for every chunk.

A chunk goes through two stages. Denoising reads the cache; the clean pass that writes the chunk into it is put off
until the next chunk is made, so that the first picture does not wait for it. Decoding (``livetalk.stream.decoding``)
needs only the latents and the decoder's state before the chunk; it is put off until pictures are wanted, or runs in a
thread beside the denoising of the next chunk, with the same bits.

What a chunk changed is kept with it (a restore point of the cache, the decoder state before it), so that the newest
chunks can be taken back and made again with other sound. The noise of a chunk depends on nothing but the seed and the
chunk's number. From a chunk on the stream may get another look: other words (the window's keys are computed again from
its latents, the sinks stay) or another face (sinks and decoder are warmed up with a few silent chunks).

This module knows nothing of sound, time or who wants a chunk remade.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetalk.hub import Models
from livetalk.model.cache import KVCache, RestorePoint
from livetalk.model.conditions import AudioVectors, Conditions, image_condition, pack_audio
from livetalk.model.drive import driven
from livetalk.model.parking import HostMemory
from livetalk.rollout import chunk_noise, commit_chunk, denoise_chunk, new_cache
from livetalk.stream.decoding import Decoded, Decoding
from livetalk.stream.pace import StageTimes
from livetalk.stream.past import Committed, Past
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, Identity, picture_span

REMEMBERED_LOOKS = 4


@dataclass(frozen=True)
class Look:
    """Who is drawn, and how, from a chunk on.

    Attributes:
        identity: face and words.
        images: condition channels of the first chunk of a stream and of later ones.
        cache: warmed-up cache of a new face and the point after its warm-up, used by one stream only; None = go on
            with the one there is.
        past: what that cache was filled with.
        decoder: the last chunk of the warm-up.
    """

    identity: Identity
    images: tuple[Tensor, Tensor] = field(repr=False)
    cache: tuple[KVCache, RestorePoint] | None = field(default=None, repr=False)
    past: Past = field(default=Past(), repr=False)
    decoder: Decoding | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Before:
    """The state of a stream before a chunk.

    Attributes:
        cache: the cache, and the point in it to come back to.
        decoder: the chunk before; None = the stream starts.
        past: what the cache was filled with.
        look: who was drawn.
        text: the words as the network takes them.
    """

    cache: tuple[KVCache, RestorePoint] = field(repr=False)
    decoder: Decoding | None = field(repr=False)
    past: Past = field(repr=False)
    look: Look
    text: Any = field(repr=False)


@dataclass
class Take:
    """One chunk as it was made, and what is needed to unmake it.

    Attributes:
        index: number of the chunk in the stream.
        first, stop: its pictures.
        cond: what it was made from.
        latents: ``[1, C, F, h, w]``, clean.
        decoded: its pictures, as far as they are decoded.
        before: the state before it.
    """

    index: int
    first: int
    stop: int
    cond: Conditions
    latents: Tensor
    decoded: Decoding = field(repr=False)
    before: Before = field(repr=False)

    def pictures(self, first: int, stop: int) -> np.ndarray:
        """Those from ``first`` to before ``stop`` of the stream, uint8 ``[T, H, W, 3]``; waits for the decoder."""
        return self.decoded.pictures(first - self.first, stop - self.first)


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
        self._cache = self._new_cache()
        self._past = Past()
        self._look = Look(identity, self._images(identity))
        self._looks = [(0, self._look)]
        self._text: Any = identity.text.to(models.device)
        self._newest: Take | None = None
        self._decoding: Decoding | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="livetalk-decode") if overlap else None
        beside = overlap and models.device.type == "cuda"
        self._stream = torch.cuda.Stream(models.device) if beside else None
        self._parking = HostMemory(models.device, self._stream) if models.device.type == "cuda" else None

    def change_look(self, index: int, look: Look) -> None:
        """From chunk ``index`` on, which was not made yet, the stream has another look."""
        self._looks = [*(known for known in self._looks if known[0] < index), (index, look)][-REMEMBERED_LOOKS:]

    def look(self, identity: Identity) -> Look:
        """How a face is drawn, for ``change_look``; may run in any thread.

        One that is not the newest is warmed up, which takes as long as some chunks.
        """
        newest = self._looks[-1][1]
        if torch.equal(identity.portrait_latent, newest.identity.portrait_latent):
            return Look(identity, newest.images)
        return self._other_face(identity)

    @torch.inference_mode()
    def _other_face(self, identity: Identity) -> Look:
        """A look with another face, warmed up with silent chunks until it has its sinks."""
        warm = ChunkMaker(self._models, identity, self._seed, StageTimes(time.perf_counter), overlap=False)
        chunks = max(1, self._settings.sink_frames // self._frames)
        for index in range(chunks):
            first, stop = picture_span(index * self._frames, self._frames)
            warm.make(index, self._models.audio(self._silence(stop - first), stop - first))
        warm._commit_newest()
        if warm._decoding is not None:
            warm._decoding.put_away()
        begun = warm._cache, warm._cache.restore_point()
        return dataclasses.replace(warm._look, cache=begun, past=warm._past, decoder=warm._decoding)

    @torch.inference_mode()
    def make(self, index: int, rows: Tensor) -> Take:
        """Make the next chunk.

        Args:
            index: its number; one more than that of the newest chunk.
            rows: audio feature rows ``[1, T, A]`` of its pictures.
        """
        self._commit_newest()
        before = self._before()
        self._take_look(index)
        cond = self._conditions(index, self._driven(index, rows))
        noise = chunk_noise(self._seed, index, self._shape, len(self._settings.timesteps))
        with self._times.stage("denoise"):
            latents = denoise_chunk(self._models.network, self._cache, cond, noise, self._settings)
        first, stop = picture_span(index * self._frames, self._frames)
        decoded = Decoding(latents, self._decoding, partial(self._decode, self._made()), self._thread, self._parking)
        take = Take(index, first, stop, cond, latents, decoded, before)
        self._newest, self._decoding = take, decoded
        return take

    def unmake(self, take: Take) -> None:
        """Go back to before ``take``, which must be the newest chunk not yet unmade."""
        before = take.before
        self._cache, point = before.cache
        self._cache.restore(point)
        self._newest, self._decoding = None, before.decoder
        self._past, self._look, self._text = before.past, before.look, before.text

    @torch.inference_mode()
    def take_up(self, past: Past) -> None:
        """Go on behind chunks that another maker made of this face, before anything else was made.

        Their keys are computed again, the window's as if it had begun with the stream; the decoder's memory comes
        from the newest latents when the first pictures are wanted.
        """
        words: dict[int, Any] = {}
        for chunk in past:
            chunk = chunk.on(self._models.device)
            words[id(chunk.text)] = self._tell(chunk, words.get(id(chunk.text), chunk.text))
            self._past = self._past.then(chunk, self._settings)
        if past.sinks or past.recent:
            newest = self._past.newest_latents(self._settings)
            self._decoding = Decoding(newest, None, partial(self._decode, self._made()), self._thread, self._parking)

    def past(self, take: Take | None) -> tuple[Identity, Past]:
        """Whose face the stream had before ``take``, and what the cache was filled with; None = up to now."""
        if take is not None:
            return take.before.look.identity, take.before.past
        past = self._past
        if self._newest is not None:
            past = past.then(self._committed(self._newest), self._settings)
        return self._look.identity, past

    @property
    def wanted(self) -> Identity:
        """The face and words that the stream has from some chunk on, or has already."""
        return self._looks[-1][1].identity

    def close(self) -> None:
        """End the decoding thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def nbytes(self, takes: Iterable[Take]) -> int:
        """Bytes of the cache, and of latents and conditions of the chunks that are held."""
        held = {id(take): take for take in (*takes, *([self._newest] if self._newest else []))}
        return self._cache.bytes() + sum(take.latents.nbytes for take in held.values())

    def _new_cache(self) -> KVCache:
        on_host = self._models.engine.undo == "host"
        return new_cache(self._models.network, self._settings, self._shape, undo_on_host=on_host)

    def _commit_newest(self) -> None:
        """Write the newest chunk into the cache, if that was not done."""
        take, self._newest = self._newest, None
        if take is None:
            return
        with self._times.stage("commit"):
            commit_chunk(self._models.network, self._cache, take.latents, take.cond)
        self._past = self._past.then(self._committed(take), self._settings)

    def _before(self) -> Before:
        cache = self._cache, self._cache.restore_point()
        return Before(cache, self._decoding, self._past, self._look, self._text)

    def _take_look(self, index: int) -> None:
        """Change to the look that the stream has from chunk ``index`` on, if it is another one."""
        look = next(look for first, look in reversed(self._looks) if first <= index or look is self._looks[0][1])
        if look is self._look:
            return
        self._look, self._text = look, look.identity.text.to(self._models.device)
        if look.cache is not None:
            self._cache, begun = look.cache
            self._cache.restore(begun)  # it may have been used and unmade before
            self._past, self._decoding = look.past, look.decoder
        elif self._cache.stored_frames > self._settings.sink_frames:
            self._retell()

    def _retell(self) -> None:
        """Compute the rolling window's keys again from its latents, under the words there are now; sinks stay."""
        cache = self._new_cache()
        cache.take_sinks(self._cache)
        self._cache = cache
        text = self._look.identity.text
        told = tuple(dataclasses.replace(chunk, text=text) for chunk in self._past.recent)
        for chunk in told:
            self._text = self._tell(chunk, self._text)
        self._past = dataclasses.replace(self._past, recent=told)

    def _tell(self, chunk: Committed, text: Any) -> Any:
        """Write a finished chunk into the cache under ``text``; returns the words as the network takes them."""
        image = self._look.images[0 if self._cache.next_frame == 0 else 1]
        cond = Conditions(image=image, audio=AudioVectors(chunk.audio), text=text)
        cond = self._models.network.prepare(cond)
        with self._times.stage("retell"):
            commit_chunk(self._models.network, self._cache, chunk.latents, cond)
        return cond.text

    def _committed(self, take: Take) -> Committed:
        assert isinstance(take.cond.audio, AudioVectors)
        return Committed(take.latents, take.cond.audio.vectors, self._look.identity.text)

    def _images(self, identity: Identity) -> tuple[Tensor, Tensor]:
        portrait = identity.portrait_latent.to(self._models.device)
        first, later = (image_condition(portrait, self._frames, first_frame=frame) for frame in (0, 1))
        return first, later

    def _silence(self, pictures: int) -> Tensor:
        """Silent sound of so many pictures, as the audio encoder takes it."""
        encoder = self._models.audio
        samples = encoder.past_samples + pictures * MODEL_SAMPLES_PER_PICTURE + encoder.look_ahead_samples
        return torch.zeros(1, samples, device=self._models.device)

    def _driven(self, index: int, rows: Tensor) -> Tensor:
        """Rows with what is not heard but drawn from the seed, where the network was trained with it."""
        width = self._models.network.config.drive_width
        first, stop = picture_span(index * self._frames, self._frames)
        columns = torch.from_numpy(driven(self._seed, first, stop - first, width)).to(rows)
        return torch.cat((rows, columns.expand(len(rows), -1, -1)), dim=2)

    def _conditions(self, index: int, rows: Tensor) -> Conditions:
        packed = pack_audio(rows) if index == 0 else rows
        image = self._look.images[0 if self._cache.next_frame == 0 else 1]
        return self._worded(Conditions(image=image, audio=packed, text=self._text))

    def _worded(self, cond: Conditions) -> Conditions:
        """Conditions as the network takes them; the words' keys are computed once."""
        prepared = self._models.network.prepare(cond)
        self._text = prepared.text
        return prepared

    def _made(self) -> torch.cuda.Event | None:
        """On CUDA: the latents that were asked for so far are made."""
        return None if self._stream is None else torch.cuda.current_stream(self._models.device).record_event()

    @torch.inference_mode()
    def _decode(self, made: torch.cuda.Event | None, latents: Tensor, state: Any, spend: bool) -> Decoded:
        with self._times.stage("decode"), self._on_stream(latents, made):
            pictures, state = self._models.vae.decode_chunk(latents, state, spend=spend)
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
