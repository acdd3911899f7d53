"""How well a model talks: held-out faces say held-out speech, and the rulers read the pictures.

Every clip goes through the same ``Performer`` as the page. The cases are those that come with the checkpoints (nothing
is drawn then) or freshly drawn ones from seeds that nobody has looked at; figures that are to be believed want these.

This module does not know how the model was trained, nor what figures are good enough.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.distill.portraits import Poses
from livetalk.distill.speech import HELD_OUT_VOICES
from livetalk.eval.cases import Case, CaseSet, cut, find_set, fingerprint, read_set
from livetalk.eval.figures import Figures, mean, plain, shared
from livetalk.eval.report import SHEET_COLUMNS, SHEET_EVERY, Seen, write_clips_report
from livetalk.eval.sets import fresh_seed
from livetalk.eval.truth import (
    SetPlan,
    draw_pictures,
    draw_set,
)
from livetalk.eval.watch import Watch, distributions, find_probe, judge, perform, perform_case
from livetalk.eval.words import measure_words
from livetalk.hub import Models, load_models
from livetalk.model.drive import lids
from livetalk.rulers import (
    Probe,
    blinks_per_minute,
    correlation,
    frechet_distance,
    longest_still_s,
    motion_amount,
    motion_diversity,
    over_clips,
)
from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND, LiveTalkError

log = logging.getLogger(__name__)

EDGE_S = 10.0
"""Length of the stretches at both ends of a long clip that are compared."""


@dataclass(frozen=True)
class Plan:
    """What is measured; a set that has less is refused where a number was given.

    Attributes:
        clips: talking cases; None = all there are.
        seconds: their length; None = whole.
        long_clips: long cases; None = all there are.
        silent_clips: faces that listen to silence, and for how long.
        words: faces that are told every mood and motion; None = all there are.
    """

    clips: int | None = None
    seconds: float | None = None
    long_clips: int | None = None
    silent_clips: int = 8
    silent_s: float = 30.0
    words: int | None = None


@dataclass
class _Found:
    """What a run has gathered: figures for the JSON, and what the report shows."""

    clips: list[dict[str, Any]] = field(default_factory=list)
    long: list[dict[str, Any]] = field(default_factory=list)
    silence: list[dict[str, Any]] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    draw_truth: bool = False


def run(
    preset: str = "mini",
    device: str = "auto",
    data: str | None = None,
    seed: int | None = None,
    plan: Plan | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """``evaluate clips`` by the name of a model, for the command line.

    Args:
        preset: name or folder of a model.
        device: "auto", "cpu" or "cuda".
        data: None = the shipped set, "fresh" = newly drawn, else the folder of a set.
        seed: first seed of freshly drawn cases; None = one that nobody has looked at, named in the result.
        plan: how much.
        report: folder for the report.

    Raises:
        LiveTalkError: no such model or set, the renderer is missing, or the plan does not fit.
    """
    plan = plan or Plan()
    _check_plan(plan)
    if data not in (None, "fresh") and seed is not None:
        raise LiveTalkError("A set of cases has its own seeds. Give either --data with a folder, or --seed.")
    models = load_models(preset, device)
    probe = find_probe()
    if data == "fresh" or seed is not None:
        return evaluate(models, probe, fresh_cases(models, probe, seed, plan), plan, report, draw_truth=True)
    cases = read_set(find_set(Path(data) if data else None, models.preset.weights.folder))
    return evaluate(models, probe, cases, plan, report)


def fresh_cases(models: Models, probe: Probe, seed: int | None, plan: Plan) -> CaseSet:
    """Newly drawn cases for a plan; ``seed`` None = a seed that nobody has looked at.

    Raises:
        LiveTalkError: the renderer or a speech engine is missing, or the seed is not held out.
    """
    wanted = SetPlan(first_seed=fresh_seed(seed), voices=HELD_OUT_VOICES)
    sizes = {"talks": plan.clips, "seconds": plan.seconds, "longs": plan.long_clips, "words": plan.words}
    wanted = replace(wanted, **{name: size for name, size in sizes.items() if size is not None})  # type: ignore[arg-type]
    return draw_set(models, probe, wanted, f"drawn for this run, seeds from {wanted.first_seed}")


def evaluate(
    models: Models,
    probe: Probe,
    cases: CaseSet,
    plan: Plan | None = None,
    folder: Path | None = None,
    draw_truth: bool = False,
) -> dict[str, Any]:
    """Figures of a model on a set of cases.

    Args:
        models: what is measured.
        probe: reads the pictures.
        cases: who says what.
        plan: how much of it.
        folder: for the report; None = none is written.
        draw_truth: show true pictures in the report (needs the renderer).

    Returns:
        Plain data for JSON: ``summary`` (means and intervals), ``clips``, ``long``, ``silence``, ``words``.

    Raises:
        LiveTalkError: the plan asks for more than there is, or the cases do not fit the model.
    """
    plan = plan or Plan()
    known = cases.encoders == fingerprint(models)
    look_ahead = models.preset.audio.look_ahead_samples
    talks = _some(cases.of_kind("talk"), plan.clips, "talking clips")
    if plan.seconds is not None:
        talks = [cut(case, plan.seconds, look_ahead) for case in talks]
    longs = _some(cases.of_kind("long"), plan.long_clips, "long clips")
    found = _Found(draw_truth=draw_truth and folder is not None)
    for case in talks:
        found.clips.append(_talk(models, probe, _trusted(case, known), found))
    for case in longs:
        found.long.append(_talk(models, probe, _trusted(case, known), found))
    for case in [*talks, *longs][: plan.silent_clips]:
        found.silence.append(_listen(models, probe, case, plan.silent_s))
    words = measure_words(models, probe, _some(cases.of_kind("words"), plan.words, "faces for words"))
    result: dict[str, Any] = {
        "model": models.preset.name,
        "audio_guidance": models.preset.rollout.audio_guidance,
        "data": cases.source,
        "encoders_known": known,
        "summary": summary(found.clips, found.long, found.silence)
        | _distributions(found.watches[: len(talks)], cases)
        | {name: words[name] for name in ("mood_share", "motion_ordered") if name in words},
        "clips": found.clips,
        "long": found.long,
        "silence": found.silence,
        "words": words,
    }
    result = plain(result)
    if folder is not None:
        write_clips_report(folder, result, found.seen)
    return result


def summary(
    short: Sequence[dict[str, Any]], long: Sequence[dict[str, Any]], silence: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Means over all talking clips (short and long weigh alike), by kind of voice, over long ones, over silent ones."""
    talking = [*short, *long]
    means: dict[str, Any] = {"clips": len(talking)} | {key: mean(c[key] for c in talking) for key in shared(talking)}
    if talking:
        interval = over_clips([c["sync_r"] for c in talking])
        means["sync_r_interval"] = [round(interval.low, 4), round(interval.high, 4)]
    if "ceiling" in means:
        means["share_of_ceiling"] = round(means["sync_r"] / max(means["ceiling"], 1e-9), 4)
    for engine in ("espeak", "flite"):
        group = [c["sync_r"] for c in talking if c["voice"].startswith(engine)]
        if group:
            means[f"sync_r_{engine}"] = mean(group)
    known = [c["sync_r"] for c in talking if c["voice"] not in HELD_OUT_VOICES]
    if known:
        means["sync_r_known_voices"] = mean(known)
        means["sync_r_new_voices"] = mean(c["sync_r"] for c in talking if c["voice"] in HELD_OUT_VOICES)
    for name, rows in (("long", long), ("silent", silence)):
        means |= {f"{name}_{key}": mean(c[key] for c in rows) for key in shared(rows)}
    return means


def _talk(models: Models, probe: Probe, case: Case, found: _Found) -> dict[str, Any]:
    """Figures of one talking clip; what the report needs goes into ``found``."""
    watch = Watch(probe, case.portrait, case.reference.still if case.reference else None)
    shown = watch.see_all(perform_case(models, case), keep_every=SHEET_EVERY)
    figures = judge(watch, case)
    if models.preset.model.drive_width:
        asked = lids(case.seed, 0, watch.pictures)
        figures["blink_r"] = correlation(watch.reading.eyes_shut, asked) if asked.any() else math.nan
    if case.pictures >= 3 * EDGE_S * PICTURES_PER_SECOND:
        figures |= _drift(watch, case)
    found.watches.append(watch)
    truth = _moments(case, models.preset.height) if found.draw_truth else None
    found.seen.append(Seen(case, watch, shown[:SHEET_COLUMNS], truth))
    log.info("%s: sync_r %.3f", case.name, figures["sync_r"])
    return {"name": case.name, "seed": case.seed, "voice": case.voice, "text": case.text, **figures}


def _moments(case: Case, size: int) -> np.ndarray:
    """The true pictures that a contact sheet shows."""
    shown = case.poses.values[::SHEET_EVERY][:SHEET_COLUMNS]
    return draw_pictures(replace(case, poses=Poses(shown)), size)


def _drift(watch: Watch, case: Case) -> Figures:
    """The last ten seconds against the first ten."""
    edge = int(EDGE_S * PICTURES_PER_SECOND)
    first, last = judge(watch, case, 0, edge), judge(watch, case, case.pictures - edge)
    ends = watch.figures(0, edge), watch.figures(case.pictures - edge)
    growth = {f"{name}_growth": ends[1][name] / ends[0][name] for name in ("sharp_eyes", "sharp_mouth")}
    return growth | {
        "identity_growth": last.get("identity", math.nan) - first.get("identity", math.nan),
        "sync_r_first": first["sync_r"],
        "sync_r_last": last["sync_r"],
    }


def _listen(models: Models, probe: Probe, case: Case, seconds: float) -> dict[str, Any]:
    """A face that hears silence: is its mouth shut, does it blink and move?"""
    count = round(seconds * PICTURES_PER_SECOND)
    packets = (np.zeros(MODEL_RATE, np.float32) for _ in range(math.ceil(seconds) + 1))
    watch = Watch(probe, case.portrait)
    pictures = np.concatenate(list(perform(models, case.portrait, case.text, packets, count, case.seed)))
    watch.see_all([pictures])
    reading = watch.reading
    return {
        "name": case.name,
        "seed": case.seed,
        "open": float(reading.open.mean()),
        "blinks_per_minute": blinks_per_minute(reading.eyes_shut),
        "movement": motion_amount(reading),
        "longest_still_s": longest_still_s(pictures),
    }


def _distributions(watches: Sequence[Watch], cases: CaseSet) -> Figures:
    """Frechet distances in the probe's feature space to the true pictures and clips, and diversity of motion."""
    readings = [watch.reading for watch in watches]
    if not readings:
        return {}
    figures: Figures = {}
    true = cases.pictures_seen, cases.clips_seen
    for name, ours, truth in zip(("pictures", "clips"), distributions(readings), true, strict=True):
        if ours is not None and truth is not None:
            figures[f"frechet_{name}"] = round(frechet_distance(ours, truth), 4)
    if len(readings) > 1 and cases.diversity > 0:
        figures["motion_diversity"] = round(motion_diversity(readings) / cases.diversity, 4)
    return figures


def _trusted(case: Case, encoders_known: bool) -> Case:
    """The case without figures that belong to another VAE or audio encoder."""
    if encoders_known or case.reference is None:
        return case
    return replace(case, reference=replace(case.reference, through={}))


def _some(cases: list[Case], wanted: int | None, what: str) -> list[Case]:
    """The first ``wanted`` cases.

    Raises:
        LiveTalkError: there are fewer.
    """
    if wanted is not None and wanted > len(cases):
        raise LiveTalkError(
            f"{wanted} {what} were asked for, the set has {len(cases)}. Ask for fewer, or draw new ones with"
            " '--data fresh'."
        )
    return cases[:wanted]


def _check_plan(plan: Plan) -> None:
    counts = {"clips": plan.clips, "long clips": plan.long_clips, "faces for words": plan.words}
    for name, count in counts.items():
        if count is not None and count < 0:
            raise LiveTalkError(f"The number of {name} is {count}; expected 0 or more.")
    if plan.clips == 0 and plan.long_clips == 0 and plan.words == 0:
        raise LiveTalkError("Nothing to measure: no clips, no long clips, no words. Ask for at least one.")
    if plan.seconds is not None and not 1.0 <= plan.seconds <= 600.0:
        raise LiveTalkError(f"A clip of {plan.seconds:g} s cannot be measured. Give 1 to 600 seconds.")
