"""Configuration: frozen dataclasses, the presets, and reading them from JSON.

What differs between mini and LiveTalk-1.3B is a field here, never an ``if`` on a model's name. Unknown keys are
errors that list the known ones. This module does not know how weights are found (``hub``) or what networks compute.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from livetalk.types import LatentShape, LiveTalkError

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the causal DiT (spec section 1).

    Attributes:
        audio_width: features per picture row before the four rows of a latent frame are packed.
        audio_layers: first and last layer (inclusive) that adds audio; None = 2 .. layers // 2 as published.
        rotary_split: channels of a head for (time, rows, columns); None = the published d - 2(d//3), d//3, d//3.
        drive_width: last columns of the audio rows that are not heard but drawn from the stream's seed: how far the
            lids are shut, where the eyes look, across and down, then where the head sways (``model.drive``).
        pooled_text: the mean of the embedded text is added to the time embedding too, so that the words reach every
            layer's modulation; not in the published network.
    """

    width: int
    heads: int
    layers: int
    ffn_width: int
    text_width: int
    text_tokens: int
    freq_width: int
    audio_width: int
    in_channels: int = 33
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    audio_bottleneck: int = 32
    audio_layers: tuple[int, int] | None = None
    rotary_split: tuple[int, int, int] | None = None
    drive_width: int = 0
    pooled_text: bool = False

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def heard_width(self) -> int:
        """Columns of an audio row that come from the audio encoder."""
        return self.audio_width - self.drive_width

    @property
    def rotary(self) -> tuple[int, int, int]:
        """Channels of a head that rotate with (time, rows, columns)."""
        if self.rotary_split is not None:
            return self.rotary_split
        third = self.head_width // 3
        return self.head_width - 2 * third, third, third

    @property
    def audio_layer_range(self) -> range:
        """Layers that add the audio vector, one projection each."""
        first, last = self.audio_layers if self.audio_layers is not None else (2, self.layers // 2)
        return range(first, last + 1)


@dataclass(frozen=True)
class RolloutConfig:
    """How chunks follow each other (spec sections 6.3, 7, 8).

    Attributes:
        window_frames: latent frames attended to, the current chunk included.
        sink_frames: first latent frames of the stream that are kept for ever.
        positions: "absolute" as published (spec 5.3), or "bounded": sinks first, window directly behind, current
            chunk last, so that no distance exceeds the window and a stream never ends.
        timesteps: what the network is told at each denoising step, 0..1000, falling.
        sigmas: noise level of each step; None = nearest entries of the ``shift`` table with ``len(timesteps)`` rows.
        prediction: "velocity" (network gives noise - x0) or "portrait_residual" (network gives x0 - portrait latent).
        audio_guidance: strength of x0 = with + g (with - without audio) at inference; 0 = one pass per step.
    """

    chunk_frames: int = 3
    window_frames: int = 15
    sink_frames: int = 9
    positions: Literal["absolute", "bounded"] = "bounded"
    timesteps: tuple[float, ...] = (1000.0, 936.0, 832.0, 624.0)
    sigmas: tuple[float, ...] | None = None
    shift: float = 5.0
    prediction: Literal["velocity", "portrait_residual"] = "velocity"
    audio_guidance: float = 0.0


@dataclass(frozen=True)
class VaeConfig:
    """Which video VAE: "wan" (diffusers AutoencoderKLWan) or "small" (our own for CPUs), with its sizes."""

    kind: Literal["wan", "small"] = "wan"
    base_width: int = 96
    widths: tuple[int, ...] = ()
    encoder_widths: tuple[int, ...] = ()
    latent_channels: int = 16


@dataclass(frozen=True)
class AudioConfig:
    """Which audio encoder: "wav2vec2" (published) or "mel" (our own), and the sound it sees around a chunk.

    Attributes:
        past_samples: sound before the chunk's first picture, at MODEL_RATE.
        look_ahead_samples: sound after the chunk's last picture, at MODEL_RATE; what streaming must wait for.
        widths: hidden widths of the "mel" encoder.
    """

    kind: Literal["wav2vec2", "mel"] = "wav2vec2"
    past_samples: int = 48_000
    look_ahead_samples: int = 3_200
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder: "umt5" (published) or "words" (fixed pseudo-random vector per word, no weights)."""

    kind: Literal["umt5", "words"] = "umt5"


@dataclass(frozen=True)
class RepositoryConfig:
    """A repository of the Hugging Face Hub, and what is needed of it.

    Attributes:
        name: "owner/name".
        files: names, or patterns such as "folder/*"; nothing else is fetched.
        size_gb: what they take together, in 10^9 bytes, computed from the shapes; the Hub knows it exactly.
        licence: of these files.
        revision: commit, tag or branch. A branch is resolved to its commit once and stays there (``download``).
    """

    name: str
    files: tuple[str, ...]
    size_gb: float
    licence: str
    revision: str = "main"


@dataclass(frozen=True)
class WeightsConfig:
    """Where weights come from: a folder under ``checkpoints/`` and, if not there, repositories of the Hub.

    Attributes:
        folder: under ``checkpoints/``.
        licence: as the page shows it.
        repositories: of a published model three, in this order: transformer (one file); text encoder, VAE and
            tokenizer; wav2vec2.
        tiny_decoder: one file, a small decoder for the latents of the VAE; fetched only when an engine asks for it.
    """

    folder: str
    licence: str
    repositories: tuple[RepositoryConfig, ...] = ()
    tiny_decoder: RepositoryConfig | None = None


@dataclass(frozen=True)
class StreamConfig:
    """Streaming choices that are not the model's.

    Attributes:
        lead_s: at most this much generated ahead of playback in live use.
        idle_prompt: what the words say when nobody gave a prompt.
    """

    lead_s: float = 0.6
    default_prompt: str = "a person speaks naturally with gentle motion"


@dataclass(frozen=True)
class Preset:
    """One model: network sizes, rollout, encoders, picture size, and where its weights are.

    Attributes:
        portraits: kind of portraits it was trained on; for "illustrated" a photo gets an honest notice.
    """

    name: str
    title: str
    height: int
    width: int
    model: ModelConfig
    weights: WeightsConfig
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    portraits: Literal["illustrated", "any"] = "any"

    def latent_shape(self, frames: int) -> LatentShape:
        """Latents of ``frames`` latent frames at this preset's picture size (8x smaller in space)."""
        return LatentShape(self.model.out_channels, frames, self.height // 8, self.width // 8)


MINI = Preset(
    name="mini",
    title="LiveTalk mini",
    height=128,
    width=128,
    model=ModelConfig(
        width=192,
        heads=3,
        layers=6,
        ffn_width=576,
        text_width=64,
        text_tokens=8,
        freq_width=64,
        audio_width=40,
        drive_width=8,
        in_channels=49,
        out_channels=24,
        pooled_text=True,
        audio_bottleneck=64,
        audio_layers=(1, 5),
        rotary_split=(24, 20, 20),
    ),
    rollout=RolloutConfig(
        window_frames=15,
        sink_frames=9,
        timesteps=(1000.0, 900.0, 750.0, 500.0),
        sigmas=(1.0, 0.9, 0.75, 0.5),
        shift=3.0,
        prediction="portrait_residual",
    ),
    vae=VaeConfig(kind="small", widths=(96, 56, 28), encoder_widths=(40, 64, 96), latent_channels=24),
    audio=AudioConfig(kind="mel", past_samples=8_000, look_ahead_samples=1_600),
    text=TextConfig(kind="words"),
    weights=WeightsConfig(folder="mini", licence="apache-2.0"),
    portraits="illustrated",
)

LIVETALK_1_3B = Preset(
    name="livetalk-1.3b",
    title="LiveTalk-1.3B",
    height=512,
    width=512,
    model=ModelConfig(
        width=1536,
        heads=12,
        layers=30,
        ffn_width=8960,
        text_width=4096,
        text_tokens=512,
        freq_width=256,
        audio_width=10_752,
    ),
    weights=WeightsConfig(
        folder="livetalk-1.3b",
        licence="CC BY-NC-SA 4.0 (LiveTalk-1.3B), Apache-2.0 (Wan VAE, umT5, wav2vec2)",
        repositories=(
            RepositoryConfig("GAIR/LiveTalk-1.3B-V0.1", ("*.safetensors",), 5.69, "CC BY-NC-SA 4.0"),
            RepositoryConfig(
                "Wan-AI/Wan2.1-T2V-1.3B",
                ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/*"),
                11.87,
                "Apache-2.0",
            ),
            RepositoryConfig("facebook/wav2vec2-base-960h", ("config.json", "model.safetensors"), 0.38, "Apache-2.0"),
        ),
        # TAEHV by Ollin Boer Bohan (github.com/madebyollin/taehv), as safetensors
        tiny_decoder=RepositoryConfig("Kijai/WanVideo_comfy", ("taew2_1.safetensors",), 0.02, "MIT"),
    ),
)

LIVETALK_1_3B_720P = dataclasses.replace(
    LIVETALK_1_3B, name="livetalk-1.3b-720p", title="LiveTalk-1.3B at 1280 x 720", height=720, width=1280
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (MINI, LIVETALK_1_3B, LIVETALK_1_3B_720P)}


def preset(name: str) -> Preset:
    """Preset of that name.

    Raises:
        LiveTalkError: no such preset; the message lists the names.
    """
    if name not in PRESETS:
        raise LiveTalkError(f"There is no preset {name!r}. Known presets: {', '.join(PRESETS)}.")
    return PRESETS[name]


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data of a config dataclass, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], data: dict[str, Any]) -> ConfigT:
    """Config dataclass ``cls`` from plain data (nested; lists become tuples).

    Raises:
        LiveTalkError: unknown or missing key; the message lists the known ones.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise LiveTalkError(
            f"{cls.__name__} does not know {', '.join(unknown)}. Known keys: {', '.join(sorted(fields))}."
        )
    hints = typing.get_type_hints(cls)
    values = {name: _convert(hints[name], value) for name, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise LiveTalkError(f"{cls.__name__} is incomplete: {error}. Give every key without a default.") from error


def _convert(hint: Any, value: Any) -> Any:
    """``value`` from JSON as ``hint`` wants it: nested dataclasses and tuples."""
    if value is None:
        return None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(arg for arg in typing.get_args(hint) if arg is not type(None)), value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast("type[Any]", hint), value)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return tuple(_convert(kind, item) for kind, item in zip(kinds, value, strict=True))
    return value
