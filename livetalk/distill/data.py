"""Training clips: a drawn face says synthetic speech, kept as latents, audio features, caption rows and truth.

A clip follows from its seed alone: who, what is said, how it moves, the caption. Pictures are not kept: a shard is one
safetensors file with what the generator is trained on and the tracks the rulers compare with. Seeds from
``HELD_OUT_SEED`` on are never trained on: their faces, sentences and voices are for evaluation.

This module does not know the generator. Making clips needs skia-python and a speech engine; reading shards does not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from livetalk.config import Preset
from livetalk.distill.portraits import (
    MOODS,
    MOTIONS,
    POSE_FIELDS,
    Face,
    Poses,
    animate,
    caption,
    draw_clip,
    landmarks,
    sway_of_clip,
)
from livetalk.distill.speech import HELD_OUT_SEED, augment, speech_clip
from livetalk.distill.visemes import REST
from livetalk.model.audio import AudioEncoder
from livetalk.model.text import TextEncoder
from livetalk.model.vae import VideoVAE
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_SECOND, LiveTalkError, pictures_of

log = logging.getLogger(__name__)

CLIPS_PER_SHARD = 40
MOTION_SHARES = (0.25, 0.5, 0.25)
MOOD_SHARES = (0.32, 0.17, 0.17, 0.17, 0.17)
HUSH_SHARE = 0.12
"""Share of clips in which the speech breaks off for a while: silence must shut the mouth, the face lives on."""

PLAIN_PROMPT_SHARE = 0.4
"""Share of calm neutral clips that carry the preset's default prompt instead of a caption of their own."""

AUGMENTED_SHARE = 0.5

DRIVEN_FIELDS = ("blink", "gaze_x", "gaze_y")
"""Truth that becomes, before the sway, the driven columns of the audio rows, as ``livetalk.model.drive`` has them."""


@dataclass(frozen=True)
class Clip:
    """A talking face with its truth.

    Attributes:
        pictures: uint8 ``[T, H, W, 3]``; picture 0 is the portrait.
        samples: float32 ``[T * 1000 + look-ahead]`` at ``MODEL_RATE``.
        poses: truth of every picture.
        sway: where the head goes on each of ``livetalk.model.drive.SWAY_AXES``, whatever its size, float32 ``[T, 5]``.
        spots: float32 ``[T, 3, 2]``: column and row of mouth, left and right eye, in picture sides.
        text: caption.
        mood: one of ``MOODS``.
        motion: one of ``MOTIONS``.
        voice: of the speech, "" if there is none.
    """

    pictures: np.ndarray
    samples: np.ndarray
    poses: Poses
    sway: np.ndarray
    spots: np.ndarray
    text: str
    mood: str
    motion: str
    voice: str


@dataclass(frozen=True)
class Encoders:
    """The frozen networks a clip is stored through."""

    vae: VideoVAE
    audio: AudioEncoder
    text: TextEncoder


def make_clip(
    seed: int, pictures: int, size: int, default_prompt: str, look_ahead_samples: int = 0, *, pauses: bool = True
) -> Clip:
    """Draw and speak the clip of a seed.

    Args:
        seed: decides everything; from ``HELD_OUT_SEED`` on the voice and the sentences are held out too.
        pictures: length.
        size: side of the pictures in pixels.
        default_prompt: caption of some of the calm clips.
        look_ahead_samples: sound to give beyond the last picture.
        pauses: let the speech of some clips break off for a while.
    """
    rng = np.random.default_rng([seed, 0xC11F])
    motion = str(rng.choice(list(MOTIONS), p=MOTION_SHARES))
    mood = str(rng.choice(MOODS, p=MOOD_SHARES))
    extra = -(-look_ahead_samples // MODEL_SAMPLES_PER_PICTURE)
    speech = speech_clip(seed, (pictures + extra) / PICTURES_PER_SECOND, held_out=seed >= HELD_OUT_SEED)
    samples, mouth = speech.samples, speech.mouth
    if rng.random() < HUSH_SHARE and pauses:
        samples, mouth = hush(samples, mouth, rng)
    if seed < HELD_OUT_SEED and rng.random() < AUGMENTED_SHARE:
        samples = augment(samples, rng)
    text = caption(motion, mood, seed)
    if (motion, mood) == ("gentle", "neutral") and rng.random() < PLAIN_PROMPT_SHARE:
        text = default_prompt
    face = Face.sample(seed)
    poses = animate(drawable(mouth[:pictures]), seed, motion, mood)
    return Clip(
        pictures=draw_clip(face, [poses[index] for index in range(pictures)], size),
        samples=samples[: pictures * MODEL_SAMPLES_PER_PICTURE + look_ahead_samples],
        poses=poses,
        sway=sway_of_clip(seed, pictures),
        spots=landmarks(face, poses, 1),
        text=text,
        mood=mood,
        motion=motion,
        voice=speech.voice,
    )


def drawable(mouth: np.ndarray) -> np.ndarray:
    """Mouth tracks ``[T, 3]`` as the portraits want them: width -1..1 with rest 0 instead of 0..1 with rest 0.5."""
    return np.stack([mouth[:, 0], 2.0 * mouth[:, 1] - 1.0, mouth[:, 2]], axis=1).astype(np.float32)


def hush(samples: np.ndarray, mouth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same speech with a stretch of 2.5 s or more (or all of it) silent and the mouth at rest there."""
    count = len(mouth)
    length = int(rng.integers(min(count, int(2.5 * PICTURES_PER_SECOND)), count + 1))
    first = int(rng.integers(0, count - length + 1))
    at = np.arange(count)
    spoken = np.clip(np.maximum(first - at, at - (first + length - 1)) / 2.0, 0.0, 1.0).astype(np.float32)
    rest = np.asarray(REST, np.float32)
    # the fall of the mouth lasts two pictures, the sound is gone at once
    loud = np.repeat((at < first) | (at >= first + length), MODEL_SAMPLES_PER_PICTURE)
    return samples * loud[: len(samples)], rest + (mouth - rest) * spoken[:, None]


@torch.no_grad()
def encode_clip(clip: Clip, encoders: Encoders) -> dict[str, Tensor]:
    """What a shard keeps of a clip, without the leading clip axis.

    Returns:
        ``latents`` float16 ``[C, F, h, w]``, ``audio`` float16 ``[T, A]``, ``text`` float16 ``[L, W]``,
        ``poses`` float32 ``[T, fields]``, ``sway`` float32 ``[T, 5]``, ``spots`` float32 ``[T, 3, 2]``.
    """
    count = len(clip.pictures)
    video = torch.from_numpy(clip.pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
    before = np.zeros(encoders.audio.past_samples, np.float32)
    window = torch.from_numpy(np.concatenate([before, clip.samples.astype(np.float32)]))[None]
    return {
        "latents": encoders.vae.encode(video)[0].to(torch.float16),
        "audio": encoders.audio(window, count)[0].to(torch.float16),
        "text": encoders.text.encode(clip.text)[0].to(torch.float16),
        "poses": torch.from_numpy(clip.poses.values),
        "sway": torch.from_numpy(clip.sway.astype(np.float32)),
        "spots": torch.from_numpy(clip.spots.astype(np.float32)),
    }


def write_shards(folder: Path, seeds: Sequence[int], frames: int, preset: Preset, encoders: Encoders) -> None:
    """Make the clips of ``seeds`` and write them as shards; shards that exist already are kept.

    Args:
        folder: receives ``shard-<first seed>.safetensors`` files, each written in one go.
        seeds: one per clip.
        frames: latent frames of a clip.
        preset: picture size, look-ahead and default prompt.
        encoders: frozen networks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(seeds), CLIPS_PER_SHARD):
        group = seeds[first : first + CLIPS_PER_SHARD]
        path = folder / f"shard-{group[0]:08d}.safetensors"
        if path.exists():
            continue
        rows = [
            encode_clip(
                make_clip(
                    seed,
                    pictures_of(frames),
                    preset.height,
                    preset.stream.default_prompt,
                    preset.audio.look_ahead_samples,
                ),
                encoders,
            )
            for seed in group
        ]
        tensors = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        partial = path.with_suffix(".partial")
        save_file({**tensors, "seeds": torch.tensor(group)}, partial)
        partial.replace(path)
        log.info("%s: %d clips", path.name, len(group))


class ClipStore:
    """All clips of a folder of shards; ``refresh`` finds shards that were added meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[str, dict[str, Tensor]] = {}
        self._rows: list[tuple[str, int]] = []
        self.refresh()
        if not self._rows:
            raise LiveTalkError(f"There are no clips in {folder}. Make some with 'python -m livetalk distill data'.")

    def refresh(self) -> None:
        """Take in new shards, in the order of their names."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name not in self._shards:
                self._shards[path.name] = load_file(path)
                self._rows += [(path.name, row) for row in range(len(self._shards[path.name]["seeds"]))]

    def __len__(self) -> int:
        return len(self._rows)

    def clip(self, index: int) -> dict[str, Tensor]:
        """Tensors of one clip, see ``encode_clip``."""
        name, row = self._rows[index]
        return {key: value[row] for key, value in self._shards[name].items()}

    def clips(self, indices: Iterable[int]) -> list[dict[str, Tensor]]:
        """Tensors of several clips."""
        return [self.clip(index) for index in indices]


def driven_rows(clip: dict[str, Tensor], drive_width: int) -> Tensor:
    """Audio features of a stored clip and its true lids, gaze and sway, float32 ``[T, A + drive_width]``."""
    eyes = clip["poses"][:, [POSE_FIELDS.index(name) for name in DRIVEN_FIELDS]].float()
    driven = eyes if drive_width <= len(DRIVEN_FIELDS) else torch.cat((eyes, clip["sway"].float()), dim=1)
    return torch.cat((clip["audio"].float(), driven[:, :drive_width]), dim=1)


def channel_weights(vae: nn.Module, latents: Tensor, probe_strength: float = 0.3) -> Tensor:
    """How much pictures change with each latent channel, mean 1, between .4 and 2.5.

    Args:
        vae: a trained ``VideoVAE``.
        latents: ``[B, C, F, h, w]`` of true clips.
        probe_strength: standard deviation of the disturbance.

    Returns:
        ``[C]``: root-mean-square change of the pictures when noise is added to that channel alone.
    """
    noise = torch.randn(latents[:, :1].shape, generator=torch.Generator().manual_seed(0)) * probe_strength
    with torch.no_grad():
        still = vae.decode(latents)  # type: ignore[operator]
        changes = []
        for channel in range(latents.shape[1]):
            moved = latents.clone()
            moved[:, channel : channel + 1] += noise
            changes.append((vae.decode(moved) - still).square().mean().sqrt())  # type: ignore[operator]
    sensitivity = torch.stack(changes)
    return (sensitivity / sensitivity.mean()).clamp(0.4, 2.5)
