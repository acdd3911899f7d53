"""The teacher: one network, trained from nothing on clips with known truth, that is asked in two ways.

Some batches are whole clips at one noise level, every frame seeing every other: the bidirectional teacher of the paper,
that samples in many steps. The others look exactly like a moment of a rollout: the sink chunks and the window of chunks
a stream attends to, at the positions it has there, block-causal. There every chunk has its own noise level, the past
included, so the network learns to go on from a past that is not perfect (Chen et al. 2024, "Diffusion Forcing") at half
the cost of a clean copy of the past. So the same weights are a causal teacher too, and where a student starts from.
Frame 0 is always the clean portrait. The loss is on the clean latents, weighted by noise level, by how much pictures
change with a latent channel, and towards mouth and eyes.

This module does not know how clips are made, how optimisation works, or how results look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk.config import Preset, to_dict
from livetalk.distill.data import ClipStore, channel_weights, driven_rows
from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.portraits import POSE_FIELDS
from livetalk.distill.reader import Reader
from livetalk.model.attention import ChunkMask
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.transformer import CausalDiT
from livetalk.types import PICTURES_PER_LATENT

Network = Callable[..., Tensor]

CHANGES = 0.65
"""A clip whose ``mood_change`` is larger shows in its portrait little of its mood."""


@dataclass(frozen=True)
class TeacherConfig:
    """What a batch looks like and what counts in it.

    Attributes:
        batch: windows a step and rank.
        whole_share: share of steps that take whole clips, bidirectional, instead of windows.
        whole_frames: latent frames of a whole clip.
        whole_batch: whole clips a step and rank.
        sinks: sink frames of a window, one of them drawn for each sample: the network will know them all.
        start_share: share of samples that are the start of a clip; the others have their last chunk anywhere later.
        change_share: starts (of windows and of whole clips) taken from clips whose portrait does not show yet what the
            words say of the mood: there the words must be listened to.
        clean_share: chunks at noise level 0: past to go on from, without loss.
        faint_share: chunks with little noise (below 0.15): a past with flaws.
        step_share: chunks at one of the noise levels of the rollout; the remaining ones lie anywhere between.
        same_level_share: samples with one noise level for all chunks.
        shift: noise levels lie at shift * u / (1 + (shift - 1) * u) for uniform u.
        audio_dropout: samples without sound, which makes audio guidance possible.
        text_dropout: samples without caption.
        both_dropout: samples without either.
        portrait_dropout: samples whose portrait channels are zero: identity must come from the sinks.
        level_floor: noise level s counts 1 / (s^2 + floor): small floors favour fine detail at little noise.
        mouth_weight: additional weight at the mouth.
        eye_weight: additional weight at eyes and brows.
        blink_share: later samples whose last chunk has a blink; blinks are rare and would be learned last.
        blink_weight: how much more eyes count while they are shut.
        reader_weight: weight of what a reader (``livetalk.distill.reader``) sees of mouth, eyes and mood; 0 = none.
        refresh_every: steps between looks for new shards.
        dtype: number format to compute in; master weights are always float32.
    """

    batch: int = 8
    whole_share: float = 0.3
    whole_frames: int = 21
    whole_batch: int = 5
    sinks: tuple[int, ...] = (0, 3, 6, 9, 12)
    start_share: float = 0.2
    change_share: float = 0.0
    clean_share: float = 0.2
    faint_share: float = 0.1
    step_share: float = 0.4
    same_level_share: float = 0.15
    shift: float = 3.0
    audio_dropout: float = 0.1
    text_dropout: float = 0.1
    both_dropout: float = 0.04
    portrait_dropout: float = 0.03
    level_floor: float = 0.25
    mouth_weight: float = 8.0
    eye_weight: float = 8.0
    blink_share: float = 0.5
    blink_weight: float = 3.0
    reader_weight: float = 0.0
    refresh_every: int = 50
    dtype: str = "float32"


@dataclass(frozen=True)
class Windows:
    """A batch as the network sees it, frames in rollout slots.

    Attributes:
        latents: clean ``[B, C, F, h, w]``.
        portraits: ``[B, C, 1, h, w]``.
        shown: portraits as the condition channels show them: some are zero.
        starts: samples whose first frame is the first of the clip, the portrait itself, ``[B]``.
        audio: packed rows ``[B, 4F, A]``.
        text: ``[B, L, W]``.
        weights: what counts where, mean about 1, ``[B, 1, F, h, w]``; 0 on frame 0.
    """

    latents: Tensor
    portraits: Tensor
    shown: Tensor
    starts: Tensor
    audio: Tensor
    text: Tensor
    weights: Tensor


class TeacherLoss:
    """Draws batches from a store and gives their loss; see the module's docstring.

    Args:
        store: clips to learn from.
        preset: window, sinks, noise levels of the rollout.
        config: see ``TeacherConfig``.
        channel_weights: ``[C]``, see ``livetalk.distill.data.channel_weights``.
        network: what to call instead of the model itself (a compiled twin with the same weights).
        reader: frozen; needed if ``config.reader_weight`` is not 0.
    """

    def __init__(
        self,
        store: ClipStore,
        preset: Preset,
        config: TeacherConfig,
        channel_weights: Tensor,
        network: Network | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.store, self.preset, self.config, self.reader = store, preset, config, reader
        self.channel_weights = channel_weights.view(1, -1, 1, 1, 1)
        self.network = network
        self.chunk = preset.rollout.chunk_frames
        self.chunks = preset.rollout.window_frames // self.chunk
        self._calls = 0
        self._changing: list[int] = []
        self._looked_at = 0

    def __call__(self, model: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a fresh batch (a ``BatchLoss``)."""
        self._calls += 1
        if self._calls % self.config.refresh_every == 0:
            self.store.refresh()
        device = next(model.parameters()).device
        whole = float(torch.rand((), generator=draws)) < self.config.whole_share
        windows = self.whole_clips(draws) if whole else self.windows(draws)
        levels = self.levels(len(windows.latents), windows.latents.shape[2] // self.chunk, draws, same=whole)
        noise = torch.randn(windows.latents.shape, generator=draws)
        mask = None if whole else ChunkMask(self.chunk)
        x0 = self.denoise(model if self.network is None else self.network, windows, levels, noise, device, mask)
        return self.loss(x0, windows, levels, device)

    def windows(self, draws: torch.Generator) -> Windows:
        """A random batch of clip windows, some of them without sound, caption or portrait."""
        clips, frames = [], []
        for _ in range(self.config.batch):
            start = float(torch.rand((), generator=draws)) < self.config.start_share
            clips.append(self.draw_clip(draws, start))
            frames.append(self.frames(clips[-1], draws, start))
        return self.cut(clips, frames, draws, self.config.portrait_dropout)

    def whole_clips(self, draws: torch.Generator) -> Windows:
        """A random batch of clips from their beginning, some of them without sound or caption."""
        clips = [self.draw_clip(draws, start=True) for _ in range(self.config.whole_batch)]
        frames = min(self.config.whole_frames, clips[0]["latents"].shape[1]) // self.chunk * self.chunk
        return self.cut(clips, [torch.arange(frames)] * len(clips), draws)

    def cut(
        self,
        clips: list[dict[str, Tensor]],
        frames: list[Tensor],
        draws: torch.Generator,
        portrait_dropout: float = 0.0,
    ) -> Windows:
        """The latent frames ``frames`` of each clip with their conditions, some of which are dropped."""
        config, pairs = self.config, list(zip(clips, frames, strict=True))
        height, width = clips[0]["latents"].shape[-2:]
        kind = torch.rand(len(clips), generator=draws)
        bounds = torch.tensor([config.both_dropout, config.audio_dropout, config.text_dropout]).cumsum(0)
        keep_audio = kind >= bounds[1]
        keep_text = (kind >= bounds[0]) & ((kind < bounds[1]) | (kind >= bounds[2]))
        keep_portrait = torch.rand(len(clips), generator=draws) >= portrait_dropout
        audio = torch.stack([frame_rows(self.rows(clip))[kept].flatten(0, 1) for clip, kept in pairs])
        text = torch.stack([clip["text"].float() for clip in clips])
        audio[..., : self.preset.model.heard_width] *= keep_audio.view(-1, 1, 1)
        weights = torch.stack([self.spot_weights(clip, kept, height, width) for clip, kept in pairs])
        portraits = torch.stack([clip["latents"][:, :1].float() for clip in clips])
        return Windows(
            latents=torch.stack([clip["latents"][:, kept].float() for clip, kept in pairs]),
            portraits=portraits,
            shown=portraits * keep_portrait.view(-1, 1, 1, 1, 1),
            starts=torch.tensor([int(kept[0]) == 0 for _, kept in pairs]),
            audio=audio,
            text=text * keep_text.view(-1, 1, 1),
            weights=weights.unsqueeze(1),
        )

    def rows(self, clip: dict[str, Tensor]) -> Tensor:
        """Rows of a clip as the network takes them, ``[T, audio_width]``: what is heard, then what is driven."""
        return driven_rows(clip, self.preset.model.drive_width)

    def draw_clip(self, draws: torch.Generator, start: bool) -> dict[str, Tensor]:
        """A random clip, to be seen from its start or later."""
        if start and float(torch.rand((), generator=draws)) < self.config.change_share:
            if self._looked_at < len(self.store):
                fresh = range(self._looked_at, len(self.store))
                self._changing += [index for index in fresh if mood_change(self.store.clip(index)) > CHANGES]
                self._looked_at = len(self.store)
            if self._changing:
                return self.store.clip(self._changing[int(torch.randint(len(self._changing), (), generator=draws))])
        return self.store.clip(int(torch.randint(len(self.store), (), generator=draws)))

    def frames(self, clip: dict[str, Tensor], draws: torch.Generator, start: bool) -> Tensor:
        """Latent frames of a sample: sink chunks and the chunks before and with the last one."""
        total = clip["latents"].shape[1] // self.chunk
        kinds = self.config.sinks
        sinks = kinds[int(torch.randint(len(kinds), (), generator=draws))] // self.chunk
        last = self.chunks - 1
        if total > self.chunks and not start:
            later = torch.arange(self.chunks, total)
            if float(torch.rand((), generator=draws)) < self.config.blink_share:
                shut = lids_of_frames(clip)[: total * self.chunk].unflatten(0, (-1, self.chunk)).amax(1) > 0.5
                later = later[shut[later]] if shut[later].any() else later
            last = int(later[torch.randint(len(later), (), generator=draws)])
        chunks = [*range(sinks), *range(last - (self.chunks - sinks) + 1, last + 1)]
        return (torch.tensor(chunks)[:, None] * self.chunk + torch.arange(self.chunk)).flatten()

    def levels(self, batch: int, chunks: int, draws: torch.Generator, same: bool) -> Tensor:
        """Noise level of every chunk, 0..1, ``[B, chunks]``; ``same``: one for all chunks of a sample."""
        config = self.config
        shape = (batch, chunks)
        uniform = torch.rand(shape, generator=draws)
        anywhere = config.shift * uniform / (1 + (config.shift - 1) * uniform)
        steps = torch.tensor(self.preset.rollout.timesteps) / 1000
        at_steps = steps[torch.randint(len(steps), shape, generator=draws)]
        if same:
            return anywhere[:, :1].clamp_min(0.02).expand(shape)
        kind = torch.rand(shape, generator=draws)
        bounds = torch.tensor([config.clean_share, config.faint_share, config.step_share]).cumsum(0)
        levels = torch.where(kind < bounds[2], at_steps, anywhere)
        levels = torch.where(kind < bounds[1], 0.15 * uniform, levels)
        levels = torch.where(kind < bounds[0], torch.zeros(()), levels)
        alike = torch.rand(batch, 1, generator=draws) < config.same_level_share
        return torch.where(alike, anywhere[:, :1].expand(shape), levels)

    def denoise(
        self,
        network: Network,
        windows: Windows,
        levels: Tensor,
        noise: Tensor,
        device: torch.device,
        mask: ChunkMask | None,
    ) -> Tensor:
        """Clean latents the network sees in a noisy batch: float32 ``[B, C, F, h, w]`` on ``device``."""
        sigma = levels.repeat_interleave(self.chunk, dim=1).view(len(levels), 1, -1, 1, 1)
        noisy = (1 - sigma) * windows.latents + sigma * noise
        noisy[windows.starts, :, :1] = windows.portraits[windows.starts]
        image = image_condition(windows.shown, noisy.shape[2])
        image[~windows.starts, -1, 0] = 1
        cond = Conditions(
            image=image.to(device),
            audio=windows.audio.to(device),
            text=windows.text.to(device),
        )
        output = network(noisy.to(device), (1000 * sigma.flatten(1)).to(device), cond, block_mask=mask).float()
        if self.preset.rollout.prediction == "portrait_residual":
            return windows.portraits.to(device) + output
        return noisy.to(device) - sigma.to(device) * output

    def loss(
        self, x0: Tensor, windows: Windows, levels: Tensor, device: torch.device
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted squared error; figures: plain error, and at high, middle and low noise."""
        square = (x0 - windows.latents.to(device)).square()
        noised = (levels > 0).float()
        strength = (noised / (levels.square() + self.config.level_floor)).repeat_interleave(self.chunk, dim=1)
        counted = strength.view(len(levels), 1, -1, 1, 1) * windows.weights
        loss = (square * self.channel_weights.to(device) * counted.to(device)).mean()
        figures: dict[str, float] = {}
        if self.reader is not None and self.config.reader_weight:
            given = windows.starts.view(-1, 1) & (torch.arange(x0.shape[2]) == 0)
            truth, portraits = windows.latents.to(device), windows.portraits.to(device)
            read = self.reader.distance(x0, truth, portraits, (strength * ~given).to(device))
            loss = loss + self.config.reader_weight * read
            figures["read"] = float(read.detach())
        with torch.no_grad():
            plain = square.mean(dim=(1, 3, 4)).unflatten(1, (-1, self.chunk)).mean(-1).cpu()
            figures["mse"] = float(plain[levels > 0].mean())
            for name, low, high in (("high", 0.85, 1.01), ("middle", 0.4, 0.85), ("low", 0.0, 0.4)):
                chosen = (levels > low) & (levels <= high)
                if chosen.any():
                    figures[f"mse_{name}"] = float(plain[chosen].mean())
        return loss, figures

    def spot_weights(self, clip: dict[str, Tensor], frames: Tensor, height: int, width: int) -> Tensor:
        """Weight of every latent ``[F, h, w]``: more at the mouth and at eyes and brows, 0 on the given frame 0.

        Args:
            clip: a stored clip; its ``spots`` are column and row of mouth, left and right eye in picture sides.
            frames: latent frames wanted.
            height, width: of the latents.
        """
        at = frame_rows(clip["spots"].flatten(1)).mean(1).unflatten(1, (3, 2))[frames]
        shut = 1 + self.config.blink_weight * lids_of_frames(clip)[frames].view(-1, 1, 1)
        rows = ((torch.arange(height) + 0.5) / height)[None, :, None]
        columns = ((torch.arange(width) + 0.5) / width)[None, None, :]
        total = torch.ones(len(frames), height, width)
        mouth = (self.config.mouth_weight, 0.0, 0.137, 0.106)
        eye = (self.config.eye_weight, -0.025, 0.08, 0.08)
        for spot, (gain, lift, wide, high) in enumerate((mouth, eye, eye)):
            across = (columns - at[:, spot, 0].view(-1, 1, 1)) / wide
            down = (rows - at[:, spot, 1].view(-1, 1, 1) - lift) / high
            total += gain * torch.exp(-0.5 * (across.square() + down.square())) * (shut if spot else 1)
        total /= total.mean(dim=(1, 2), keepdim=True)
        return total * (frames > 0).view(-1, 1, 1)


def mood_change(clip: dict[str, Tensor]) -> float:
    """How much the mood of a clip differs from that of its portrait, 0 = not at all."""
    fields = [POSE_FIELDS.index(name) for name in ("smile", "brow_angle", "eye_wide")]
    track = clip["poses"][:, fields].float()
    return float((track[1:] - track[0]).mean(0).abs().max())


def lids_of_frames(clip: dict[str, Tensor]) -> Tensor:
    """How far the lids are shut at most within each latent frame ``[F]``."""
    return frame_rows(clip["poses"][:, POSE_FIELDS.index("blink")].float()[:, None]).amax(dim=(1, 2))


def frame_rows(rows: Tensor) -> Tensor:
    """Rows per picture ``[4F - 3, A]`` grouped by latent frame ``[F, 4, A]``, packed as the network packs them."""
    return pack_audio(rows[None])[0].unflatten(0, (-1, PICTURES_PER_LATENT))


def initialise(model: CausalDiT) -> CausalDiT:
    """Values a training from nothing starts with: the picture stands still, words are as loud as everything else."""
    with torch.no_grad():
        model.head.head.weight.zero_()
        model.head.head.bias.zero_()
        # words are unit vectors, so that the usual values would leave them unheard beside the bias
        nn.init.normal_(model.get_parameter("text_embedding.0.weight"))
        if model.config.pooled_text:
            model.text_pool.weight.zero_()
            model.text_pool.bias.zero_()
    return model


def train(  # noqa: PLR0913  # a stage's settings
    preset: Preset,
    clips: Path,
    folder: Path,
    vae: nn.Module,
    loop: LoopConfig,
    config: TeacherConfig | None = None,
    on_checkpoint: Callable[[Loop], None] | None = None,
    start: Mapping[str, Tensor] | None = None,
    reader: Reader | None = None,
) -> Loop:
    """Train a teacher, or go on with the run in ``folder``. Call it once in every rank.

    Args:
        preset: the model to train and how it will be rolled out.
        clips: folder of shards, see ``livetalk.distill.data``.
        folder: for checkpoint and log.
        vae: the frozen VAE the shards were made with; tells how much each latent channel counts.
        loop: length, rates.
        config: what a batch looks like.
        on_checkpoint: see ``Loop.run``.
        start: weights to begin with, by name; None = from nothing.
        reader: see ``TeacherLoss``.

    Returns:
        The finished loop; its moving average is the result.
    """
    config = config or TeacherConfig()
    store = ClipStore(clips)
    some = torch.stack([clip["latents"][:, :7] for clip in store.clips(range(min(len(store), 4)))]).float()
    loss = TeacherLoss(store, preset, config, channel_weights(vae, some), reader=reader)
    torch.manual_seed(loop.seed)
    model = initialise(CausalDiT(preset.model))
    if start is not None:
        model.load_state_dict(dict(start))
    describe = {"stage": "teacher", "preset": to_dict(preset), "teacher": to_dict(config), "clips": len(store)}
    run = Loop(model.to(getattr(torch, config.dtype)), loss, loop, folder, describe)
    run.run(on_checkpoint)
    return run
