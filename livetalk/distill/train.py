"""The recipe, stage by stage: from nothing to a folder that ``livetalk.load`` opens.

``vae`` and ``audio`` train the two encoders, ``probe`` the ruler, ``data`` makes the clips and stores them through the
frozen encoders, ``pretrain`` trains the generator, ``export`` writes the weights people load. Every stage leaves its
result in the run's folder, takes those of earlier stages from there, and goes on where it was stopped.

This module knows the order and the budgets. It does not know how a stage works.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from livetalk.config import MINI, Preset, to_dict
from livetalk.distill import audio, rulers
from livetalk.distill.clip_pool import CropSettings
from livetalk.distill.data import ClipStore, Encoders, write_shards
from livetalk.distill.loop import CHECKPOINT, Loop, LoopConfig, LoopState, flat_weights, run_ranks, write_weights
from livetalk.distill.pretrain import PretrainConfig, pretrain
from livetalk.distill.sheets import rollout_sheet
from livetalk.distill.speech import HELD_OUT_SEED
from livetalk.distill.vae import VaeRecipe, VaeTraining, train_vae
from livetalk.hub import fast_dtype, save_models
from livetalk.model.mel import MelAudioEncoder
from livetalk.model.small_vae import SmallVideoVAE
from livetalk.model.storage import Storage
from livetalk.model.text import WordsTextEncoder
from livetalk.model.transformer import CausalDiT
from livetalk.types import LiveTalkError

log = logging.getLogger(__name__)

Stage = Literal["vae", "audio", "probe", "data", "pretrain", "export"]
STAGES: tuple[Stage, ...] = ("vae", "audio", "probe", "data", "pretrain", "export")
SHEET_CLIPS = 3


@dataclass(frozen=True)
class Recipe:
    """Budgets of one run.

    Attributes:
        preset: the model.
        clips: clips to train the generator on, with seeds 0, 1, ...
        clip_frames: latent frames of each.
        ranks: processes of one thread that train the generator together; 0 = one per core, at most four.
        storage: number format of the exported matrices.
    """

    preset: Preset
    clips: int = 3_000
    clip_frames: int = 30
    ranks: int = 0
    vae: VaeRecipe = field(default_factory=VaeRecipe)
    audio: audio.EarTraining = field(default_factory=audio.EarTraining)
    probe: rulers.ProbeTraining = field(default_factory=rulers.ProbeTraining)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(budget_s=9_000.0, matrix_rate=0.01))
    storage: Storage = "float16"


def recipe(name: str) -> Recipe:
    """The recipe of that name: "mini" as shipped, "smoke" to see in a minute that every stage runs.

    Raises:
        LiveTalkError: no such recipe.
    """
    if name == "mini":
        return Recipe(MINI)
    if name == "smoke":
        return _smoke()
    raise LiveTalkError(f"There is no recipe {name!r}. Known recipes: mini, smoke.")


def run(stage: str, config: str = "mini", folder: Path = Path("runs/mini")) -> dict[str, Any]:
    """Run one stage, or all of them.

    Args:
        stage: one of ``STAGES``, or "all".
        config: name of a recipe.
        folder: the run's folder.

    Returns:
        Figures of the stages, plain data.

    Raises:
        LiveTalkError: unknown stage or recipe, a missing earlier stage, or missing tools.
    """
    if stage != "all" and stage not in STAGES:
        raise LiveTalkError(f"There is no stage {stage!r}. Stages: {', '.join(STAGES)}, all.")
    chosen = recipe(config)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"recipe": config, "commit": _commit(), "preset": to_dict(chosen.preset)}
    (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")
    wanted = STAGES if stage == "all" else [name for name in STAGES if name == stage]
    figures: dict[str, Any] = {}
    for name in wanted:
        log.info("stage %s", name)
        figures[name] = _RUNNERS[name](chosen, folder)
    return figures


def _train_vae(chosen: Recipe, folder: Path) -> dict[str, Any]:
    (folder / "vae").mkdir(exist_ok=True)
    return {"weights": str(train_vae(folder / "vae", chosen.preset.vae, chosen.vae))}


def _train_audio(chosen: Recipe, folder: Path) -> dict[str, Any]:
    (folder / "audio").mkdir(exist_ok=True)
    encoder = MelAudioEncoder(chosen.preset.audio, chosen.preset.model.heard_width)
    return {"open_wide_teeth": audio.run(folder / "audio", chosen.audio, encoder)}


def _train_probe(chosen: Recipe, folder: Path) -> dict[str, Any]:
    return {"open_wide_teeth_eyes": rulers.run(folder / "model" / "probe.safetensors", chosen.probe)}


def _make_data(chosen: Recipe, folder: Path) -> dict[str, Any]:
    encoders = _encoders(chosen, folder)
    write_shards(folder / "clips", range(chosen.clips), chosen.clip_frames, chosen.preset, encoders)
    held_out = range(HELD_OUT_SEED, HELD_OUT_SEED + SHEET_CLIPS)
    write_shards(folder / "held-out", held_out, chosen.clip_frames, chosen.preset, encoders)
    return {"clips": len(ClipStore(folder / "clips"))}


def _pretrain(chosen: Recipe, folder: Path) -> dict[str, Any]:
    _need(folder / "clips", "data")
    ranks = chosen.ranks or min(4, os.cpu_count() or 1)
    run_ranks(ranks, _pretrain_rank, chosen, folder)
    last = (folder / "pretrain" / "log.jsonl").read_text().splitlines()[-1]
    return dict(json.loads(last))


def _pretrain_rank(chosen: Recipe, folder: Path) -> None:
    """One rank of the generator's training."""
    vae = _vae(chosen, folder)

    def look(loop: Loop) -> None:
        model = CausalDiT(chosen.preset.model)
        loop.load_average(model)
        sheet = rollout_sheet(model, vae, ClipStore(folder / "held-out"), chosen.preset)
        sheet.save(folder / "pretrain" / f"step-{loop.state.step:06d}.png")

    plan = replace(chosen.pretrain, dtype=str(fast_dtype(torch.device("cpu"))).removeprefix("torch."))
    pretrain(chosen.preset, folder / "clips", folder / "pretrain", vae, chosen.loop, plan, look)


def _export(chosen: Recipe, folder: Path) -> dict[str, Any]:
    model = CausalDiT(chosen.preset.model)
    state = LoopState.load(_need(folder / "pretrain" / CHECKPOINT, "pretrain"), flat_weights(model))
    write_weights(model, state.average)
    modules = {"transformer": model, "vae": _vae(chosen, folder), "audio": _ear(chosen, folder)}
    save_models(folder / "model", chosen.preset, modules, chosen.storage)
    return {"folder": str(folder / "model"), "steps": state.step}


_RUNNERS: dict[Stage, Callable[[Recipe, Path], dict[str, Any]]] = {
    "vae": _train_vae,
    "audio": _train_audio,
    "probe": _train_probe,
    "data": _make_data,
    "pretrain": _pretrain,
    "export": _export,
}


def _vae(chosen: Recipe, folder: Path) -> SmallVideoVAE:
    vae = SmallVideoVAE(chosen.preset.vae)
    vae.load_state_dict(load_file(_need(folder / "vae" / "vae.safetensors", "vae")))
    return _frozen(vae)


def _ear(chosen: Recipe, folder: Path) -> MelAudioEncoder:
    encoder = MelAudioEncoder(chosen.preset.audio, chosen.preset.model.heard_width)
    encoder.load_state_dict(load_file(_need(folder / "audio" / "audio.safetensors", "audio")))
    return _frozen(encoder)


def _encoders(chosen: Recipe, folder: Path) -> Encoders:
    text = WordsTextEncoder(chosen.preset.model.text_tokens, chosen.preset.model.text_width)
    return Encoders(_vae(chosen, folder), _ear(chosen, folder), text)


def _frozen(module: Any) -> Any:
    assert isinstance(module, nn.Module)
    return module.eval().requires_grad_(False)


def _need(path: Path, stage: Stage) -> Path:
    """``path``, or a sentence that names the stage that makes it."""
    if not path.exists():
        raise LiveTalkError(f"{path} is missing. Run 'python -m livetalk distill {stage}' into the same folder first.")
    return path


def _commit() -> str:
    """Version of the code, as far as git knows it."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"


def _smoke() -> Recipe:
    """Everything small: 64 px, two layers, a handful of steps."""
    model = replace(
        MINI.model,
        width=48,
        heads=2,
        layers=3,
        ffn_width=64,
        audio_width=17,
        drive_width=1,
        audio_bottleneck=16,
        audio_layers=(1, 2),
        rotary_split=(8, 8, 8),
    )
    preset = replace(
        MINI,
        name="smoke",
        height=64,
        width=64,
        model=model,
        vae=replace(MINI.vae, widths=(16, 12, 8), encoder_widths=(8, 12, 16)),
        audio=replace(MINI.audio, widths=(16, 16)),
    )
    crops = CropSettings(batch=2, pixels=32, pictures=5)
    return Recipe(
        preset=preset,
        clips=4,
        clip_frames=15,
        ranks=1,
        vae=VaeRecipe(
            clips=4,
            clip_pictures=9,
            picture_pixels=64,
            joint=VaeTraining(budget_s=2.0, crops=crops),
            decoder=VaeTraining(budget_s=1.0, freeze_encoder=True, crops=crops),
        ),
        audio=audio.EarTraining(clips=8, seconds=2.0, batch=4, steps=4),
        probe=rulers.ProbeTraining(faces=8, pictures_per_face=2, batch=8, steps=4),
        pretrain=PretrainConfig(batch=2),
        loop=LoopConfig(steps=6, warmup_steps=2, log_every=1, matrix_rate=0.01),
    )
