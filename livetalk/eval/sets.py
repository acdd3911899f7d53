"""Sets of cases by command: a seed nobody has looked at, the shipped set drawn anew, and the VAE measured alone.

This module does not know any generator.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from livetalk.distill.speech import HELD_OUT_SEED, HELD_OUT_VOICES
from livetalk.eval.cases import SET_FOLDER
from livetalk.eval.figures import plain
from livetalk.eval.truth import SetPlan, case_plans, draw_case, make_set, require_renderer, vae_figures
from livetalk.eval.watch import find_probe
from livetalk.hub import Models, find_checkpoint, load_models
from livetalk.types import LiveTalkError

UNSEEN_SEEDS = 1_000_000_000


def fresh_seed(seed: int | None) -> int:
    """``seed``, or one that nobody has looked at."""
    return HELD_OUT_SEED + secrets.randbelow(UNSEEN_SEEDS) if seed is None else seed


def run_vae(preset: str, device: str, seed: int | None, clips: int, seconds: float) -> dict[str, Any]:
    """``evaluate vae`` by the name of a model: ``vae_figures`` on newly drawn faces.

    Raises:
        LiveTalkError: no such model, the renderer is missing, or nothing to measure.
    """
    if clips < 1 or not 1.0 <= seconds <= 60.0:
        raise LiveTalkError(f"{clips} clips of {seconds:g} s: expected at least one, of 1 to 60 seconds.")
    require_renderer()
    models, first = load_models(preset, device), fresh_seed(seed)
    drawn = case_plans(SetPlan(first, talks=clips, seconds=seconds, longs=0, words=0, voices=HELD_OUT_VOICES))
    probe = find_probe()
    # "words": the true pictures are drawn once, where they are compared
    cases = [draw_case(replace(plan, kind="words"), models, probe)[0] for plan in drawn]
    return plain(
        {"model": models.preset.name, "first_seed": first, "clips": clips, **vae_figures(models, probe, cases)}
    )


def run_make_set(preset: str, device: str, folder: Path | None) -> dict[str, Any]:
    """``evaluate make-set``: draw the shipped set anew; to be done whenever the VAE or the audio encoder changed.

    Raises:
        LiveTalkError: no such model, or the renderer is missing.
    """
    require_renderer()
    models = load_models(preset, device)
    target = folder or _beside_weights(preset, models)
    cases = make_set(models, find_probe(), target)
    sizes = [path.stat().st_size for path in target.iterdir()]
    return {"folder": str(target), "cases": len(cases.cases), "files": len(sizes), "bytes": sum(sizes)}


def _beside_weights(preset: str, models: Models) -> Path:
    own = Path(preset)
    if own.is_dir():
        return own / SET_FOLDER
    found = find_checkpoint(models.preset)
    if found is None:
        raise LiveTalkError(f"The weights of {preset!r} are not in a folder of this machine. Say where with --out.")
    return found / SET_FOLDER
