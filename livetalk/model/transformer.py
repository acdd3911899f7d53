"""CausalDiT: the one network of student, teacher and critic (spec sections 1 to 6).

``forward`` has three modes: bidirectional (teacher, critic), block-causal with a ``ChunkMask`` (training on known
clips) and cached (rollout). It does not know noise schedules, prediction targets, chunks in time or where conditions
come from. Parameter names are those of the original checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk.config import ModelConfig
from livetalk.model.attention import EPS, AttentionContext, ChunkMask, ClipContext, CrossAttention, SelfAttention
from livetalk.model.batching import CacheBatch, PassBatch
from livetalk.model.cache import CachePass, KVCache
from livetalk.model.conditions import AudioVectors, Conditions, FewKeys, TextKeys, image_condition, pack_audio
from livetalk.model.embedding import PatchEmbedding, sinusoid
from livetalk.model.kernels import gelu, gelu_form
from livetalk.model.packing import Packable
from livetalk.types import PICTURES_PER_LATENT, LiveTalkError

__all__ = ["AudioVectors", "CausalDiT", "ChunkMask", "Conditions", "TextKeys", "image_condition", "pack_audio"]

AUDIO_NORM_EPS = 1e-5


class AudioProjection(nn.Module):
    """Four picture rows of a latent frame to one small vector (spec section 4.3.8)."""

    def __init__(self, audio_width: int, bottleneck: int) -> None:
        super().__init__()
        self.proj = nn.Linear(PICTURES_PER_LATENT * audio_width, bottleneck)
        self.norm_out = nn.LayerNorm(bottleneck, eps=AUDIO_NORM_EPS)

    def forward(self, packed: Tensor) -> Tensor:
        """``[B, 4F, A]`` to ``[B, F, bottleneck]``."""
        return self.norm_out(self.proj(packed.unflatten(1, (-1, PICTURES_PER_LATENT)).flatten(2)))


class FeedForward(Packable):
    """Two linear layers with a tanh-GELU between them; named 0 and 2 as in the original checkpoint."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.add_module("0", nn.Linear(inputs, hidden))
        self.add_module("2", nn.Linear(hidden, outputs))

    def pack_groups(self) -> dict[str, tuple[nn.Linear, ...]]:
        """See ``Packable``."""
        return {name: (cast("nn.Linear", self.get_submodule(name)),) for name in ("0", "2")}

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out, any number of leading dimensions."""
        widen, narrow = self.packed("0"), self.packed("2")
        if widen is None or narrow is None:
            return self.get_submodule("2")(gelu(self.get_submodule("0")(x)))
        return narrow(widen.gelu(x, gelu_form(x)))


class DiTBlock(nn.Module):
    """One layer: self-attention, text attention, feed-forward (spec section 5.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / math.sqrt(width))
        self.self_attn = SelfAttention(width, config.heads)
        self.cross_attn = CrossAttention(width, config.heads)
        self.norm3 = nn.LayerNorm(width, eps=EPS)
        self.ffn = FeedForward(width, config.ffn_width, width)

    def modulations(self, projection: Tensor) -> tuple[Tensor, ...]:
        """What a noise level does in this layer: shift, factor and gate of each half, ``[B, F, 1, D]`` each.

        Args:
            projection: time embedding projected to ``[B, F, 6, D]``.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + projection).unsqueeze(-2).unbind(2)
        return shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2

    def forward(
        self,
        x: Tensor,
        modulations: tuple[Tensor, ...],
        text: tuple[Tensor, Tensor, FewKeys | None],
        layer: int,
        context: AttentionContext,
    ) -> Tensor:
        """One layer.

        Args:
            x: tokens ``[B, F, P, D]``; written over when gradients are off.
            modulations: see ``modulations``.
            text: keys and values of this layer, and the same folded where they are few.
            layer: number of this layer.
            context: what self-attention sees.
        """
        shift1, factor1, gate1, shift2, factor2, gate2 = modulations
        attended = self.self_attn(modulate(x, shift1, factor1).flatten(1, 2), layer, context)
        x = add(x, attended.view(x.shape), gate1)
        x = add(x, self.cross_attn(self.norm3(x).flatten(1, 2), *text).view(x.shape))
        return add(x, self.ffn(modulate(x, shift2, factor2)), gate2)

    def write_keys(
        self, x: Tensor, modulations: tuple[Tensor, ...], layer: int, context: CachePass | PassBatch
    ) -> None:
        """Only what a later chunk needs of this layer, when nothing behind it is wanted: keys and values."""
        context.write(layer, *self.self_attn.keys_values(modulate(x, *modulations[:2]).flatten(1, 2)))


def add(x: Tensor, y: Tensor, gate: Tensor | None = None) -> Tensor:
    """``x + y`` or ``x + gate * y``; into the memory of ``x`` when no gradient needs it and nobody compiles."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x + y if gate is None else torch.addcmul(x, gate, y)
    return x.add_(y) if gate is None else x.addcmul_(gate, y)


def modulate(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """Layer norm without parameters, times ``factor``, plus ``shift``, one each per latent frame or for all."""
    if factor.numel() == x.shape[-1] and not torch.is_grad_enabled():
        return F.layer_norm(x, x.shape[-1:], factor.flatten(), shift.flatten(), EPS)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), factor)


@dataclass(frozen=True)
class Level:
    """A noise level as the network takes it: of every layer, and of the head; see ``DiTBlock.modulations``."""

    layers: tuple[tuple[Tensor, ...], ...]
    head: tuple[Tensor, ...]


class Head(Packable):
    """Last norm, modulation and projection to patches (spec section 5.4)."""

    def __init__(self, width: int, patch_numbers: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, width) / math.sqrt(width))
        self.head = nn.Linear(width, patch_numbers)

    def pack_groups(self) -> dict[str, tuple[nn.Linear, ...]]:
        """See ``Packable``."""
        return {"head": (self.head,)}

    def modulations(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Shift and factor for a time embedding ``[B, F, D]``, ``[B, F, 1, D]`` each."""
        shift, scale = (self.modulation + embedding.unsqueeze(2)).unsqueeze(-2).unbind(2)
        return shift, 1 + scale

    def forward(self, x: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """Tokens ``[B, F, P, D]`` to ``[B, F, P, patch numbers]``."""
        return (self.packed("head") or self.head)(modulate(x, *modulations))


class CausalDiT(nn.Module):
    """Causal audio-driven diffusion transformer (spec sections 2 and 5).

    Args:
        config: sizes.

    Raises:
        LiveTalkError: sizes that cannot work together.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        width = config.width
        self.patch_embedding = PatchEmbedding(config.in_channels, width, config.patch)
        self.text_embedding = FeedForward(config.text_width, width, width)
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_width, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.layers))
        self.head = Head(width, config.out_channels * math.prod(config.patch))
        if config.pooled_text:
            self.text_pool = nn.Linear(width, width)
        self.audio_proj = AudioProjection(config.audio_width, config.audio_bottleneck)
        self.audio_cond_projs = nn.ModuleList(
            nn.Linear(config.audio_bottleneck, width) for _ in config.audio_layer_range
        )

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def prepare_for_inference(self, dtype: torch.dtype, tokens: int = 192) -> CausalDiT:
        """Freeze the network in one number format and, on a CPU, lay its weights out for speed.

        Args:
            dtype: number format of weights and activations.
            tokens: tokens of one chunk, for which the layout is chosen; any number works.
        """
        self.requires_grad_(False).eval().to(dtype)
        for module in self.modules():
            if isinstance(module, Packable):
                module.pack(tokens)
        return self

    def prepare(self, cond: Conditions) -> Conditions:
        """Conditions with text keys/values of all layers and audio vectors computed once.

        Parts that are prepared already stay as they are. Differentiable when gradients are on.
        """
        return dataclasses.replace(cond, audio=self._audio_vectors(cond), text=self._text_keys(cond.text))

    def _block(self, layer: int) -> DiTBlock:
        return cast("DiTBlock", self.blocks[layer])

    def _text_keys(self, text: Tensor | TextKeys) -> TextKeys:
        if isinstance(text, TextKeys):
            return text
        embedded = self.text_embedding(text.to(self.device, self.dtype))
        pairs = [self._block(layer).cross_attn.keys_values(embedded) for layer in range(self.config.layers)]
        pooled = self.text_pool(embedded.mean(1)) if self.config.pooled_text else None
        keys, values = (tuple(part.contiguous() for part in parts) for parts in zip(*pairs, strict=True))
        folded = [self._block(layer).cross_attn.folded(*pair) for layer, pair in enumerate(pairs)]
        return TextKeys(keys, values, pooled, tuple(few for few in folded if few is not None))

    def _audio_vectors(self, cond: Conditions) -> AudioVectors:
        if isinstance(cond.audio, AudioVectors):
            return cond.audio
        batch, _, frames = cond.image.shape[:3]
        rows = cond.audio
        if rows is None:
            rows = cond.image.new_zeros(batch, PICTURES_PER_LATENT * frames, self.config.audio_width)
        narrow = self.audio_proj(rows.to(self.device, self.dtype))
        return AudioVectors(torch.stack([project(narrow) for project in self.audio_cond_projs]))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Conditions,
        *,
        block_mask: ChunkMask | None = None,
        cache: KVCache | CacheBatch | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Raw network output for noisy latents.

        Args:
            x: noisy latents ``[B, 16, F, H, W]``.
            t: noise level 0..1000 as floats, ``[B]`` or per frame ``[B, F]``.
            cond: conditions of these frames, prepared or not.
            block_mask: block-causal training without cache; None (and no cache) = bidirectional.
            cache: rollout: attend to it and write the chunk's keys into the chunk's slot; or those of several streams.
            positions: time positions of the frames ``[F]``; default 0..F-1. Not with a cache, which knows them.

        Returns:
            ``[B, 16, F, H, W]`` in the dtype of ``x``.

        Raises:
            LiveTalkError: sizes that do not fit together.
        """
        cond = self.prepare(cond)
        tokens, level = self._enter(x, t, cond)
        context: AttentionContext
        if cache is None:
            times = range(x.shape[2]) if positions is None else positions.tolist()
            context = ClipContext(times, self._grid(x), self.config.rotary, self.device, block_mask)
        else:
            context = cache.open(x.shape[2])
        for layer, block in enumerate(self.blocks):
            tokens = block(self._hear(tokens, layer, cond), level.layers[layer], _text_of(cond, layer), layer, context)
        return self._unpatch(self.head(tokens, level.head), x)

    def write_context(self, latents: Tensor, t: Tensor, cond: Conditions, cache: KVCache | CacheBatch) -> None:
        """Write keys and values of clean latents into the cache and move on; stops at the last layer's keys.

        Args:
            latents: ``[B, 16, f, H, W]``, the chunk that stands at the cache's place.
            t: noise level the network is told, ``[B]`` or ``[B, f]``; 0 for clean latents.
            cond: conditions of the chunk.
            cache: where to write; or those of several streams.
        """
        with torch.no_grad():
            cond = self.prepare(cond)
            tokens, level = self._enter(latents, t, cond)
            context = cache.open(latents.shape[2])
            context.is_last = True
            last = len(self.blocks) - 1
            for layer, block in enumerate(self.blocks):
                tokens = self._hear(tokens, layer, cond)
                if layer == last:
                    self._block(layer).write_keys(tokens, level.layers[layer], layer, context)
                else:
                    tokens = block(tokens, level.layers[layer], _text_of(cond, layer), layer, context)
            cache.advance(latents.shape[2])

    def _hear(self, tokens: Tensor, layer: int, cond: Conditions) -> Tensor:
        """Add the audio of each latent frame to its tokens, in the layers that hear."""
        hearing = self.config.audio_layer_range
        if layer not in hearing:
            return tokens
        assert isinstance(cond.audio, AudioVectors)
        return add(tokens, cond.audio.vectors[layer - hearing.start].unsqueeze(2))

    def _enter(self, x: Tensor, t: Tensor, cond: Conditions) -> tuple[Tensor, Level]:
        """Tokens ``[B, F, P, D]`` and the noise level."""
        frames, image = x.shape[2], cond.image
        if image.shape[2] != frames:
            raise LiveTalkError(f"The image condition has {image.shape[2]} frames, the latents have {frames}.")
        rows, columns = self._grid(x)
        channels = torch.cat((x.to(self.dtype), image.to(self.device, self.dtype)), dim=1)
        tokens = self.patch_embedding(channels).unflatten(1, (frames, rows * columns))
        if not t.is_floating_point():
            raise LiveTalkError("Noise levels must be floating point numbers: whole numbers lose the time embedding.")
        assert isinstance(cond.text, TextKeys)
        return tokens, self._level(t if t.dim() == 2 else t[:, None], cond.text)

    def _level(self, t: Tensor, text: TextKeys) -> Level:
        """Noise levels ``[B, F]``, or ``[B, 1]`` for all frames, as the layers take them.

        A rollout has a handful of them: with packed weights, which are known not to change, they are computed once
        under the same words.
        """
        lasts = t.numel() == 1 and self.head.packed("head") is not None
        key = float(t) if lasts else math.nan
        if lasts and key in text.levels:
            return text.levels[key]
        embedding = self.time_embedding(sinusoid(t.to(self.device), self.config.freq_width).to(self.dtype))
        if text.pooled is not None:
            embedding = embedding + text.pooled.unsqueeze(1)
        projection = self.time_projection(embedding).unflatten(-1, (6, -1))
        layers = tuple(self._block(layer).modulations(projection) for layer in range(self.config.layers))
        level = Level(layers, self.head.modulations(embedding))
        if lasts:
            text.levels[key] = level
        return level

    def _unpatch(self, numbers: Tensor, x: Tensor) -> Tensor:
        """Patch numbers ``[B, F, P, (row, column, channel)]`` to latents like ``x``."""
        rows, columns = self._grid(x)
        _, high, wide = self.config.patch
        patches = numbers.unflatten(-1, (high, wide, -1)).unflatten(2, (rows, columns))
        # Pixels first, then channels: two copies of long runs are twice as fast as one of single numbers.
        pixels = patches.transpose(3, 4).reshape(x.shape[0], -1, x.shape[1])
        return pixels.transpose(1, 2).contiguous().view(x.shape).to(x.dtype)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of latents ``[B, C, F, H, W]``.

        Raises:
            LiveTalkError: the picture is not a whole number of patches.
        """
        (height, width), (_, high, wide) = x.shape[-2:], self.config.patch
        if height % high or width % wide:
            raise LiveTalkError(
                f"Latents of {height} x {width} are not a whole number of patches of {high} x {wide}: "
                f"picture sides must be multiples of {8 * high} and {8 * wide}."
            )
        return height // high, width // wide


def _text_of(cond: Conditions, layer: int) -> tuple[Tensor, Tensor, FewKeys | None]:
    """Text keys and values of one layer of prepared conditions."""
    text = cond.text
    assert isinstance(text, TextKeys)
    return text.keys[layer], text.values[layer], text.few[layer] if text.few else None


def check_config(config: ModelConfig) -> None:
    """Refuse sizes that cannot work together.

    Raises:
        LiveTalkError: what does not fit, and what would.
    """
    if config.width % config.heads:
        raise LiveTalkError(f"Width {config.width} is not a whole number of {config.heads} heads.")
    if sum(config.rotary) != config.head_width or any(size % 2 for size in config.rotary):
        raise LiveTalkError(
            f"Heads of {config.head_width} channels cannot rotate as {config.rotary} (time, rows, columns): the parts "
            "must be even and add up to the head. Give rotary_split in the model configuration."
        )
    hearing = config.audio_layer_range
    if len(hearing) and not 0 <= hearing.start <= hearing[-1] < config.layers:
        raise LiveTalkError(f"Audio layers {hearing.start}..{hearing[-1]} do not exist in {config.layers} layers.")
