"""ODE initialisation: the student learns where the teacher's trajectories end, from their noisy samples (spec 10.1).

Each chunk is shown at one of the four noise levels of a rollout, block-causal, and the loss is on the clean end. The
student starts from the teacher's weights; the teacher's guidance is in the pairs (``distill.pairs``), so the student
needs none. This module does not know how a teacher is trained, how pairs are made or how results look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk.config import Preset, to_dict
from livetalk.distill.data import ClipStore, channel_weights
from livetalk.distill.loop import Loop, LoopConfig
from livetalk.distill.pairs import clip_conditions
from livetalk.distill.reader import Reader
from livetalk.distill.scores import output_to_x0, with_portrait
from livetalk.distill.teacher import Network, TeacherConfig, TeacherLoss
from livetalk.flow import add_noise
from livetalk.model.attention import ChunkMask
from livetalk.model.conditions import Conditions
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import step_sigmas


@dataclass(frozen=True)
class OdeConfig:
    """What a batch of the regression looks like and what counts in it.

    Attributes:
        batch: pairs a step and rank.
        windowed: chunks see the window and sinks of a rollout; False = all chunks before, as published.
        sinks: sink frames, one of these for each batch; () = the preset's.
        past_share: chunks given clean and without loss: the past as a rollout has it.
        flawed_share: chunks given with a little noise that the network is not told of, and without loss: a past to
            recover from.
        flaw: strongest noise level of these.
        real_share: steps that train on true clips instead, as the teacher was, so that nothing is forgotten; they also
            pull back from what guidance has made of the pairs.
        real_clips: folder of their shards; "" = the clips the pairs were made of.
        real: what batches of true clips look like, and how much mouth and eyes count.
        level_floor: chunks at noise level s count 1 / (s^2 + floor); None = all the same, as published.
        plain: every latent counts the same, frame 0 included, as published; False = as ``real`` weighs them.
        reader_weight: weight of what a reader (``livetalk.distill.reader``) sees of mouth, eyes and mood, compared with
            the true clip instead of the trajectory's end; 0 = none.
        dtype: number format to compute in; master weights are always float32.
    """

    batch: int = 4
    windowed: bool = True
    sinks: tuple[int, ...] = ()
    past_share: float = 0.0
    flawed_share: float = 0.0
    flaw: float = 0.15
    real_share: float = 0.0
    real_clips: str = ""
    real: TeacherConfig = field(default_factory=lambda: TeacherConfig(whole_share=0.0))
    level_floor: float | None = None
    plain: bool = False
    reader_weight: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Given:
    """What the network is given of a batch of trajectories, and what counts.

    Attributes:
        entries: number of each chunk's entry, ``[B, chunks]``; the last entry is the clean one.
        flaws: noise level added to a clean entry without a word, ``[B, chunks]``.
        counted: 1 for chunks with loss, ``[B, chunks]``.
    """

    entries: Tensor
    flaws: Tensor
    counted: Tensor


class OdeRegression:
    """Draws batches of pairs and gives their loss; see the module's docstring.

    Args:
        store: pairs to learn from.
        preset: noise levels, window and sinks of the rollout.
        config: see ``OdeConfig``.
        channel_weights: ``[C]``, see ``livetalk.distill.data.channel_weights``.
        real: true clips to mix in; None = those of the pairs.
        network: what to call instead of the model itself (a compiled twin with the same weights).
        reader: frozen; needed if ``config.reader_weight`` or that of true clips is not 0.
    """

    def __init__(
        self,
        store: ClipStore,
        preset: Preset,
        config: OdeConfig,
        channel_weights: Tensor,
        real: ClipStore | None = None,
        network: Network | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.store, self.preset, self.config, self.network = store, preset, config, network
        self.reader = reader
        self.real = TeacherLoss(real or store, preset, config.real, channel_weights, network, reader)
        self.channel_weights = channel_weights.view(1, -1, 1, 1, 1)
        self.chunk = preset.rollout.chunk_frames
        # the clean entry is told and taken as noise level 0
        self.timesteps = torch.tensor([*preset.rollout.timesteps, 0.0])
        self.sigmas = torch.tensor([*step_sigmas(preset.rollout), 0.0])

    def __call__(self, model: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of a fresh batch (a ``BatchLoss``)."""
        if float(torch.rand((), generator=draws)) < self.config.real_share:
            loss, figures = self.real(model, draws)
            return loss, {f"real_{name}": value for name, value in figures.items()}
        device = next(model.parameters()).device
        clips = self.store.clips(torch.randint(len(self.store), (self.config.batch,), generator=draws).tolist())
        trajectory = torch.stack([clip["trajectory"] for clip in clips]).to(device, torch.float32)
        cond = clip_conditions(clips, self.preset.model.drive_width, device)
        given = self.given(len(clips), trajectory.shape[3] // self.chunk, draws)
        noise = torch.randn(trajectory[:, 0].shape, generator=draws).to(device)
        network = model if self.network is None else self.network
        x0 = self.denoise(network, trajectory, cond, given, noise, self.mask(draws))
        loss, figures = self.loss(
            x0, trajectory[:, -1], given, None if self.config.plain else self.weights(clips, device)
        )
        if self.reader is not None and self.config.reader_weight:
            truth = torch.stack([clip["latents"].float() for clip in clips]).to(device)
            counted = self.strength(given).repeat_interleave(self.chunk, dim=1)
            counted[:, 0] = 0
            read = self.reader.distance(x0, truth, cond.portrait, counted.to(device))
            loss, figures["read"] = loss + self.config.reader_weight * read, float(read.detach())
        return loss, figures

    def given(self, batch: int, chunks: int, draws: torch.Generator) -> Given:
        """A level for every chunk; some are past instead, but never the last chunk."""
        config, shape = self.config, (batch, chunks)
        entries = torch.randint(len(self.sigmas) - 1, shape, generator=draws)
        kind = torch.rand(shape, generator=draws)
        kind[:, -1] = 1
        flaws = config.flaw * torch.rand(shape, generator=draws)
        is_past = kind < config.past_share + config.flawed_share
        return Given(
            entries=torch.where(is_past, len(self.sigmas) - 1, entries),
            flaws=torch.where(is_past & (kind >= config.past_share), flaws, 0.0),
            counted=(~is_past).float(),
        )

    def mask(self, draws: torch.Generator) -> ChunkMask:
        """What chunks of this batch see: the window of a rollout, or all that came before."""
        if not self.config.windowed:
            return ChunkMask(self.chunk)
        settings = self.preset.rollout
        kinds = self.config.sinks or (settings.sink_frames,)
        sinks = kinds[int(torch.randint(len(kinds), (), generator=draws))]
        return ChunkMask(self.chunk, settings.window_frames, sinks, settings.positions == "bounded")

    def denoise(
        self,
        network: Network,
        trajectory: Tensor,
        cond: Conditions,
        given: Given,
        noise: Tensor,
        mask: ChunkMask,
    ) -> Tensor:
        """Clean latents the network sees in samples of trajectories.

        Args:
            network: block-causal student.
            trajectory: ``[B, levels + 1, C, F, h, w]``, noisy to clean.
            cond: of the whole clips.
            given: which entry each chunk shows.
            noise: for flaws, ``[B, C, F, h, w]``.
            mask: what chunks see.

        Returns:
            float32 ``[B, C, F, h, w]``.
        """
        entries = given.entries.repeat_interleave(self.chunk, dim=1)
        frames = torch.arange(trajectory.shape[3], device=trajectory.device)
        batch = torch.arange(len(trajectory), device=trajectory.device)[:, None]
        # indices apart from the slice come out in front: [B, F, C, h, w]
        chosen = trajectory[batch, entries.to(trajectory.device), :, frames].transpose(1, 2)
        flaws = given.flaws.repeat_interleave(self.chunk, dim=1).to(chosen).view(len(chosen), 1, -1, 1, 1)
        x = with_portrait(add_noise(chosen, noise, flaws), cond.portrait)
        t, sigma = self.timesteps[entries].to(x), self.sigmas[entries].to(x).view(flaws.shape)
        output = network(x, t, cond, block_mask=mask).float()
        return output_to_x0(output, x, sigma, cond.portrait, self.preset.rollout.prediction)

    def strength(self, given: Given) -> Tensor:
        """How much every chunk counts, ``[B, chunks]``."""
        if self.config.level_floor is None:
            return given.counted
        return given.counted / (self.sigmas[given.entries].square() + self.config.level_floor)

    def weights(self, clips: Sequence[dict[str, Tensor]], device: torch.device) -> Tensor:
        """How much each latent of a batch counts, ``[B, C, F, h, w]``: channels, mouth and eyes; 0 on frame 0."""
        frames, (height, width) = torch.arange(clips[0]["latents"].shape[1]), clips[0]["latents"].shape[-2:]
        spots = torch.stack([self.real.spot_weights(clip, frames, height, width) for clip in clips])
        return (spots[:, None] * self.channel_weights).to(device)

    def loss(
        self, x0: Tensor, clean: Tensor, given: Given, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean squared distance to the clean ends; figures: the plain distance, for each level and over all.

        Args:
            x0: ``[B, C, F, h, w]``, see ``denoise``.
            clean: the same shape.
            given: which chunks count.
            weights: broadcast over latents; None = all the same (spec section 10.1).
        """
        square = (x0 - clean).square()
        per_frame = self.strength(given).repeat_interleave(self.chunk, dim=1).to(square).view(len(square), 1, -1, 1, 1)
        loss = (square * per_frame if weights is None else square * per_frame * weights).mean()
        with torch.no_grad():
            plain = square.mean(dim=(1, 3, 4)).unflatten(1, (-1, self.chunk)).mean(-1).cpu()
            figures = {"mse": float(plain[given.counted > 0].mean())}
            for entry, t in enumerate(self.preset.rollout.timesteps):
                if (given.entries == entry).any():
                    figures[f"mse_{t:.0f}"] = float(plain[given.entries == entry].mean())
        return loss, figures


def train(  # noqa: PLR0913  # a stage's settings
    preset: Preset,
    pairs: Path,
    folder: Path,
    vae: nn.Module | None,
    loop: LoopConfig,
    config: OdeConfig | None = None,
    on_checkpoint: Callable[[Loop], None] | None = None,
    start: Mapping[str, Tensor] | None = None,
    reader: Reader | None = None,
) -> Loop:
    """Train a student on pairs, or go on with the run in ``folder``. Call it once in every rank.

    Args:
        preset: the model to train and how it will be rolled out.
        pairs: folder made by ``write_pairs``.
        folder: for checkpoint and log.
        vae: the frozen VAE of the latents; tells how much each latent channel counts. None = all the same.
        loop: length, rates.
        config: what a batch looks like.
        on_checkpoint: see ``Loop.run``.
        start: weights to begin with, by name: the teacher's. None = random ones, which learn nothing useful soon.
        reader: see ``OdeRegression``.

    Returns:
        The finished loop; its moving average is the result. It is meant to be rolled out without guidance.
    """
    config = config or OdeConfig()
    store = ClipStore(pairs)
    real = ClipStore(Path(config.real_clips)) if config.real_clips else None
    some = torch.stack([clip["latents"][:, :7] for clip in store.clips(range(min(len(store), 4)))]).float()
    channels = torch.ones(some.shape[1]) if vae is None else channel_weights(vae, some)
    loss = OdeRegression(store, preset, config, channels, real, reader=reader)
    torch.manual_seed(loop.seed)
    model = CausalDiT(preset.model)
    if start is not None:
        model.load_state_dict(dict(start))
    describe = {"stage": "ode", "preset": to_dict(preset), "ode": to_dict(config), "pairs": len(store)}
    run = Loop(model.to(getattr(torch, config.dtype)), loss, loop, folder, describe)
    run.run(on_checkpoint)
    return run
