"""What the rulers say of a student in the ablation: clips judged one by one, kept on disk, then resampled together.

All students perform the same clips, and every resampling takes the same clips (and trainings) of all of them, so
that the interval of a difference knows that they were measured on the same things.

This module does not know how students were trained, nor what the paper says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from livetalk.distill.ranks import Team
from livetalk.eval.cases import CaseSet, read_set
from livetalk.eval.figures import Figures
from livetalk.eval.report import SHEET_COLUMNS, SHEET_EVERY
from livetalk.eval.watch import Watch, find_probe, judge, perform_case
from livetalk.hub import load_models
from livetalk.rulers import Gaussian, clip_features, frechet_distance, gaussian

ROUNDS = 200
"""Resamplings of clips and seeds."""

MEANS = (
    "sync_r",
    "sync_r_best",
    "width_r",
    "amplitude",
    "sharp_eyes",
    "sharp_mouth",
    "identity",
    "flicker",
    "black_frames",
    "movement",
)
"""Figures of ``judge`` whose mean over clips is a ruler."""

LOWEST_CEILING = 0.1
"""Below it encoders let nothing through, and a share of it would say nothing."""

Statistics = dict[str, np.ndarray]
"""Each ruler over all clips, then over every resampling: float64 ``[ROUNDS + 1]``."""


@dataclass(frozen=True)
class Judged:
    """What was seen of one student, a clip after the other.

    Attributes:
        figures: see ``livetalk.eval.watch.judge``.
        features: of the probe, ``[T, 48]`` each.
        shown: some pictures, uint8 ``[N, H, W, 3]`` each.
    """

    figures: tuple[Figures, ...]
    features: tuple[np.ndarray, ...]
    shown: tuple[np.ndarray, ...]


def judge_clips(model: Path, cases: Path, folder: Path) -> None:
    """A student performs its share of the clips, and what is seen is written; call it once in every rank.

    Args:
        model: folder that ``load_models`` reads.
        cases: folder of the set.
        folder: receives a file for each clip; those that are there are kept.
    """
    team, talks = Team.join("ranks"), read_set(cases).of_kind("talk")
    models, probe = load_models(model, "cpu"), find_probe()
    folder.mkdir(parents=True, exist_ok=True)
    for case in talks[team.rank :: team.ranks]:
        path = _file_of(folder, case.name)
        if path.is_file():
            continue
        watch = Watch(probe, case.portrait, case.reference.still if case.reference else None)
        shown = watch.see_all(perform_case(models, case), keep_every=SHEET_EVERY)
        figures = {f"figure.{name}": np.array([value]) for name, value in judge(watch, case).items()}
        partial = path.with_suffix(".partial")
        kept = {"features": watch.reading.features, "shown": shown[:SHEET_COLUMNS]}
        save_file({name: np.ascontiguousarray(value) for name, value in (kept | figures).items()}, str(partial))
        partial.replace(path)


def is_judged(folder: Path, cases: CaseSet) -> bool:
    """Whether all clips are there."""
    return all(_file_of(folder, case.name).is_file() for case in cases.of_kind("talk"))


def read_judged(folder: Path, cases: CaseSet) -> Judged:
    """What ``judge_clips`` wrote, in the order of the cases."""
    found = [load_file(str(_file_of(folder, case.name))) for case in cases.of_kind("talk")]
    head = "figure."
    return Judged(
        tuple({k.removeprefix(head): float(v[0]) for k, v in one.items() if k.startswith(head)} for one in found),
        tuple(one["features"] for one in found),
        tuple(one["shown"] for one in found),
    )


def resamplings(count: int, seed: int) -> np.ndarray:
    """Numbers ``0..count - 1`` as they are, then drawn with replacement: ``[ROUNDS + 1, count]``."""
    drawn = np.random.default_rng(seed).integers(0, count, (ROUNDS, count))
    return np.concatenate([np.arange(count)[None], drawn])


def statistics_of(judged: Judged, cases: CaseSet) -> Statistics:
    """Every ruler over all clips and over the resamplings, which are the same for every student."""
    draws = resamplings(len(judged.figures), seed=0)
    values = {name: np.array([one[name] for one in judged.figures]) for name in MEANS}
    found = {name: value[draws].mean(axis=1) for name, value in values.items()}
    if all("ceiling" in one for one in judged.figures):
        ceiling = np.array([one["ceiling"] for one in judged.figures])
        reached = ceiling[draws].mean(axis=1)
        if (reached > LOWEST_CEILING).all():
            found["share_of_ceiling"] = found["sync_r"] / reached
    windows = [clip_features(features) for features in judged.features]
    known = {"frechet_pictures": (judged.features, cases.pictures_seen), "frechet_clips": (windows, cases.clips_seen)}
    for name, (rows, truth) in known.items():
        if truth is not None:
            found[name] = np.array([_distance(rows, chosen, truth) for chosen in draws])
    return found


def over_seeds(trained: Sequence[Statistics]) -> Statistics:
    """Mean over seeds of training, which are resampled too; the same ones for every student."""
    draws = resamplings(len(trained), seed=1)
    rounds = np.arange(ROUNDS + 1)[:, None]
    return {name: np.stack([one[name] for one in trained], axis=1)[rounds, draws].mean(axis=1) for name in trained[0]}


def interval(rounds: np.ndarray) -> tuple[float, float]:
    """95 % of the resamplings of a ruler, or of the difference of two students, ``[ROUNDS + 1]``."""
    low, high = np.quantile(rounds[1:], [0.025, 0.975])
    return float(low), float(high)


def _distance(rows: Sequence[np.ndarray], chosen: np.ndarray, truth: Gaussian) -> float:
    return frechet_distance(gaussian(np.concatenate([rows[k] for k in chosen])), truth)


def _file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
