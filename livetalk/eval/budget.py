"""What a preset needs of a GPU's memory: counted, without a GPU and without computing a number.

The networks run once over a chunk on torch's *meta* device, where tensors have shapes and no content, and every
tensor that lives is counted. So weights, caches, activations and the states of the decoder are those of the real code.
What streams hold for a change of mind is added. Not counted: CUDA's own context, work space of its libraries, and what
its allocator cannot use; ``OVERHEAD`` and ``ROOM`` allow for that.

This module does not know machines, nor how fast anything is.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from livetalk.config import Preset
from livetalk.engine import Engine
from livetalk.hub import PLAIN, Models, random_models
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions, image_condition
from livetalk.rollout import new_cache
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_LATENT

HELD_CHUNKS = 3
"""Chunks of a live stream that can be unmade: on screen, leaving, made ahead."""
OVERHEAD = 1.05
ROOM = 0.5e9


@dataclass(frozen=True)
class Budget:
    """Memory of one live stream on its device, in bytes.

    Attributes:
        network: weights of the transformer.
        encoders: weights of the VAE and of the audio encoder.
        prompt: keys and values of the words.
        cache: keys and values of the window.
        undo: what chunks that can be unmade have overwritten in the cache.
        decoder: state of the decoder between two chunks.
        denoise, decode, listen: the most that each stage takes beside all that while it runs.
    """

    network: int
    encoders: int
    prompt: int
    cache: int
    undo: int
    decoder: int
    denoise: int
    decode: int
    listen: int

    @property
    def peak(self) -> int:
        """Most that lives at a time: decoding runs beside denoising."""
        held = self.network + self.encoders + self.prompt + self.cache + self.undo + self.decoder
        return held + self.decode + max(self.denoise, self.listen)

    @property
    def needed(self) -> float:
        """Memory that should be free, allowances included."""
        return OVERHEAD * self.peak + ROOM


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still there; also attention as a GPU does it.

    Attributes:
        now: bytes that live.
        most: the most that lived since counting began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def count(self, work: Callable[[], Any]) -> tuple[Any, int, int]:
        """What ``work`` gives, the most that lived meanwhile beside what lived before, and what it left behind."""
        before = self.most = self.now
        result = work()
        return result, self.most - before, self.now - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._seen:
            return

        def leave(_: object) -> None:
            self.now -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, leave)
        self.now += size
        self.most = max(self.most, self.now)


class FusedAttention(TorchFunctionMode):
    """Attention that keeps no scores, as its kernels on GPUs do; on the meta device torch would count them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@functools.cache
@torch.inference_mode()
def budget(preset: Preset, dtype: torch.dtype = torch.bfloat16, engine: Engine = PLAIN) -> Budget:
    """Memory of one live stream of a preset.

    Args:
        preset: which.
        dtype: number format of the networks.
        engine: how they are run; compiled layers need no more than plain ones.
    """
    engine = dataclasses.replace(engine, compile="off")
    with Living() as living, FusedAttention():
        models = random_models(preset, device="meta", dtype=dtype, engine=engine)
        cond = _conditions(models)
        cond, _, prompt = living.count(lambda: models.transformer.prepare(cond))
        cache = _full_cache(models)
        undo = _undo_bytes(models, cache) * (1 if engine.undo == "host" else HELD_CHUNKS)  # one while it is copied
        denoise, decode, decoder, listen = _stages(models, cache, cond, living)
    return Budget(
        network=_nbytes(models.transformer),
        encoders=_nbytes(models.vae) + _nbytes(models.audio),
        prompt=prompt,
        cache=cache.bytes(),
        undo=undo,
        decoder=decoder,
        denoise=denoise,
        decode=decode,
        listen=listen,
    )


def _conditions(models: Models) -> Conditions:
    """Conditions of a later chunk."""
    config, frames = models.preset.model, models.preset.rollout.chunk_frames
    shape = models.preset.latent_shape(frames)
    with torch.device("meta"):
        portrait = torch.empty(1, shape.channels, 1, shape.height, shape.width)
        rows = torch.empty(1, frames * PICTURES_PER_LATENT, config.audio_width)
        text = torch.empty(1, config.text_tokens, config.text_width)
    return Conditions(image_condition(portrait, frames, 1), rows, text)


def _full_cache(models: Models) -> KVCache:
    settings = models.preset.rollout
    cache = new_cache(models.transformer, settings, models.preset.latent_shape(settings.chunk_frames))
    while cache.stored_frames < settings.window_frames:
        cache.advance(settings.chunk_frames)
    return cache


def _undo_bytes(models: Models, cache: KVCache) -> int:
    point = cache.restore_point(models.preset.rollout.chunk_frames)
    return sum(tensor.nbytes for tensor in (*point.keys, *point.values))


def _stages(models: Models, cache: KVCache, cond: Conditions, living: Living) -> tuple[int, int, int, int]:
    """The most that denoising and decoding take, the decoder's state between chunks, the most that listening takes."""
    frames = models.preset.rollout.chunk_frames
    shape = models.preset.latent_shape(frames)
    audio, rows = models.audio, frames * PICTURES_PER_LATENT
    samples = audio.past_samples + rows * MODEL_SAMPLES_PER_PICTURE + audio.look_ahead_samples
    with torch.device("meta"):  # inputs only: tables that are kept for good must not be made on it
        noise, t = torch.empty(1, shape.channels, frames, shape.height, shape.width), torch.empty(1)
        sound = torch.empty(1, samples)
    latents, denoise, _ = living.count(lambda: models.transformer(noise, t, cond, cache=cache))
    # the first frame of a stream is one picture, and the second one still finds little of the past
    state, decoder = None, 0
    for frame in range(2):
        state, _, added = living.count(lambda at=frame, old=state: _decoded(models, latents, at, old))  # type: ignore[misc]
        decoder += added
    _, decode, _ = living.count(lambda: _decoded(models, latents, 2, state))
    _, listen, _ = living.count(lambda: audio(sound, rows))
    return denoise, decode, decoder, listen


def _decoded(models: Models, latents: Tensor, frame: int, state: Any) -> Any:
    """The decoder's state after one latent frame, written over the one before it."""
    return models.vae.decode_chunk(latents[:, :, frame : frame + 1], state, spend=True)[1]


def _nbytes(module: Any) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
