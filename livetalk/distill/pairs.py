"""Pairs for ODE regression: the teacher's trajectories over stored clips, on disk (spec sections 9 and 10.1).

For each clip the samples at the noise levels of a rollout are kept, and the clean end. A pair is a stored clip with one
tensor more (``trajectory``), so ``ClipStore`` and everything that reads clips reads pairs too. The teacher's guidance
is in the pairs; who learns from them needs none. This module does not know losses or how a teacher is trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from livetalk.config import Preset, to_dict
from livetalk.distill.data import ClipStore, driven_rows
from livetalk.distill.ranks import Team
from livetalk.distill.sampling import TEACHER_STEPS, chunks_trajectory, clip_trajectory
from livetalk.distill.scores import Guidance, Score
from livetalk.flow import FlowSchedule
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import step_sigmas
from livetalk.types import LiveTalkError, pictures_of

log = logging.getLogger(__name__)

ABOUT_PAIRS = "pairs.json"


@dataclass(frozen=True)
class PairConfig:
    """How pairs are made.

    Attributes:
        clips: stored clips to make a pair of, from the first one on.
        frames: latent frames of a pair; 21 = 5 s.
        batch: clips sampled together, which is also a file.
        steps: of the sampler, a multiple of 4.
        order: of the sampler, see ``integrate``.
        text_scale: guidance of the caption, 1 = none; see ``Guidance``.
        audio_scale: guidance of the sound, 1 = none; a rollout with ``audio_guidance`` g has 1 + g.
        causal: a causal teacher (``chunks_trajectory``) instead of the bidirectional one.
        true_past: the causal teacher goes on from the true latents, not from its own.
        together: the calls of guidance in one batch, for a GPU that is not full.
        seed: of the noise, which also depends on the clip's own seed.
        dtype: number format of the network; samples are float32.
    """

    clips: int = 200
    frames: int = 21
    batch: int = 4
    steps: int = TEACHER_STEPS
    order: int = 1
    text_scale: float = 1.5
    audio_scale: float = 1.75
    causal: bool = False
    true_past: bool = False
    together: bool = False
    seed: int = 0
    dtype: str = "float32"


def cut_clip(clip: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The first ``frames`` latent frames of a stored clip.

    Raises:
        LiveTalkError: the clip is shorter.
    """
    if clip["latents"].shape[1] < frames:
        raise LiveTalkError(
            f"A stored clip has {clip['latents'].shape[1]} latent frames, {frames} are wanted. Ask for shorter pairs "
            "or make longer clips."
        )
    pictures = pictures_of(frames)
    tracks: dict[str, Tensor] = {
        key: clip[key][:pictures] for key in ("audio", "poses", "sway", "spots") if key in clip
    }
    return {"latents": clip["latents"][:, :frames], "text": clip["text"], **tracks}


def clip_conditions(clips: Sequence[dict[str, Tensor]], drive_width: int, device: torch.device) -> Conditions:
    """Conditions of stored clips of one length: portrait, packed audio rows (with the true drive), caption."""
    portraits = torch.stack([clip["latents"][:, :1].float() for clip in clips])
    rows = torch.stack([driven_rows(clip, drive_width) for clip in clips])
    text = torch.stack([clip["text"].float() for clip in clips])
    image = image_condition(portraits, clips[0]["latents"].shape[1])
    return Conditions(image.to(device), pack_audio(rows).to(device), text.to(device))


def clip_noise(clip_seed: int, seed: int, shape: Sequence[int]) -> Tensor:
    """Noise of one clip, the same whatever it is batched with."""
    mixed = (clip_seed * 1_000_003 + seed * 7_919 + 1) % 2**32
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(mixed))


def make_pairs(
    network: CausalDiT, preset: Preset, stored: Sequence[dict[str, Tensor]], config: PairConfig
) -> dict[str, Tensor]:
    """One file of pairs.

    Args:
        network: the teacher.
        preset: prediction, noise levels and (for a causal teacher) window of the rollout.
        stored: clips of a ``ClipStore``.
        config: see ``PairConfig``.

    Returns:
        The clips' tensors cut to ``config.frames``, ``seeds``, and ``trajectory`` float16
        ``[n, levels + 1, C, F, h, w]``, noisy to clean.
    """
    guidance = Guidance(config.text_scale, config.audio_scale)
    score = Score(network, preset.rollout.prediction, guidance, together=config.together)
    clips = [cut_clip(clip, config.frames) for clip in stored]
    seeds = torch.stack([clip["seeds"] for clip in stored])
    shape = clips[0]["latents"].shape
    noise = torch.stack([clip_noise(int(seed), config.seed, shape) for seed in seeds]).to(network.device)
    cond = clip_conditions(clips, preset.model.drive_width, network.device)
    schedule, sigmas = FlowSchedule(config.steps, preset.rollout.shift), step_sigmas(preset.rollout)
    if config.causal:
        truth = torch.stack([clip["latents"].float() for clip in clips]).to(network.device)
        past = truth if config.true_past else None
        entries = chunks_trajectory(score, cond, noise, schedule, preset.rollout, sigmas, past, config.order)
    else:
        entries = clip_trajectory(score, cond, noise, schedule, sigmas, config.order)
    kept = {key: torch.stack([clip[key] for clip in clips]) for key in clips[0]}
    return {**kept, "seeds": seeds, "trajectory": entries.transpose(0, 1).half().cpu()}


def write_pairs(
    preset: Preset, clips: Path, folder: Path, teacher: Path, config: PairConfig, team: Team | None = None
) -> None:
    """Make the pairs of a folder of clips; files that exist already are kept. Call it once in every rank.

    Each rank takes every n-th file. A file is written in one go, so a run may be stopped at any time.

    Args:
        preset: of teacher and student.
        clips: folder of shards, see ``livetalk.distill.data``.
        folder: receives ``shard-<number of the first clip>.safetensors`` files, which ``ClipStore`` reads.
        teacher: its weights, safetensors with the names of ``CausalDiT``.
        config: see ``PairConfig``.
        team: the processes that share the work; None = those of ``run_ranks``.

    Raises:
        LiveTalkError: the folder holds pairs that were made in another way, or clips are too short.
    """
    team = team or Team.join("ranks")
    store = ClipStore(clips)
    _agree_about(folder, config, team)
    network = CausalDiT(preset.model)
    network.load_state_dict(load_file(teacher))
    tokens = config.frames * preset.latent_shape(1).tokens_per_frame(preset.model.patch)
    network.to(team.device or "cpu").prepare_for_inference(getattr(torch, config.dtype), tokens)
    count = min(config.clips, len(store))
    mine = list(range(0, count, config.batch))[team.rank :: team.ranks]
    for first in tqdm(mine, desc="pairs", disable=None if team.rank == 0 else True, leave=False):
        path = folder / f"shard-{first:08d}.safetensors"
        if path.exists():
            continue
        chosen = store.clips(range(first, min(first + config.batch, count)))
        pairs = make_pairs(network, preset, chosen, config)
        partial = path.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in pairs.items()}, partial)
        partial.replace(path)
        log.info("%s: %d pairs", path.name, len(chosen))


def _agree_about(folder: Path, config: PairConfig, team: Team) -> None:
    """Write how the pairs of a folder are made, or compare with what is written; their number may grow."""
    path = folder / ABOUT_PAIRS
    about = {key: value for key, value in to_dict(config).items() if key != "clips"}
    if path.exists() and json.loads(path.read_text("utf-8")) != about:
        raise LiveTalkError(
            f"{folder} holds pairs that were made with other settings; {ABOUT_PAIRS} tells which. "
            "Use another folder, or the settings it was begun with."
        )
    team.wait()
    if team.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    team.wait()
