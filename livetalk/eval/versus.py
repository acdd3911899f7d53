"""The student against its teacher, on the same faces and speech, in one process and with the same threads.

The student streams through the ``Performer``; the teacher samples each clip whole, in many steps with the guidance the
student was distilled with. Both get the same sound, caption and driven columns. Compared are agreement of lips and
speech, Frechet distances to the true pictures and clips, and time: of the network alone, of all stages, and until the
first picture.

This module does not know how either was trained.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from livetalk.distill.recipes import recipe
from livetalk.distill.sampling import TEACHER_STEPS, sample_clip
from livetalk.distill.scores import Guidance, Score
from livetalk.distill.sheets import contact_sheet
from livetalk.eval.bench import machine
from livetalk.eval.cases import Case, CaseSet, find_set, read_set
from livetalk.eval.figures import Figures, mean, plain, table
from livetalk.eval.report import SHEET_COLUMNS, SHEET_EVERY, write_page
from livetalk.eval.sets import fresh_seed
from livetalk.eval.truth import SetPlan, draw_set
from livetalk.eval.watch import Watch, find_probe, judge, stream
from livetalk.flow import FlowSchedule
from livetalk.hub import CONFIG_NAME, WEIGHTS_NAME, Models, load_models
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.drive import driven
from livetalk.model.transformer import CausalDiT
from livetalk.rollout import chunk_noise
from livetalk.rulers import Gaussian, Probe, Reading, clip_features, frechet_distance, gaussian, over_clips
from livetalk.stream.performer import Performer
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_SECOND, LiveTalkError, pictures_of

log = logging.getLogger(__name__)

CLIP_FRAMES = 21
"""Latent frames of a teacher's clip: 81 pictures, 5 s."""

BOOTSTRAP_ROUNDS = 200
COMPARED = ("sync_r", "sync_r_best", "width_r", "amplitude", "sharp_eyes", "sharp_mouth", "flicker", "identity")
TIMED = ("generator_s", "all_stages_s", "first_picture_s")


@dataclass(frozen=True)
class VersusPlan:
    """What is compared.

    Attributes:
        clips: how many.
        frames: latent frames of a clip.
        steps: of the teacher.
        text_guidance, audio_guidance: of the teacher, 1 = none; by default what mini is distilled with.
    """

    clips: int = 24
    frames: int = CLIP_FRAMES
    steps: int = TEACHER_STEPS
    text_guidance: float = field(default_factory=lambda: recipe("mini").dmd.text_scale)
    audio_guidance: float = field(default_factory=lambda: recipe("mini").dmd.audio_scale)


@dataclass
class _Side:
    """What one of the two did."""

    figures: list[Figures] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    times: list[Figures] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)


def run(
    teacher: Path,
    preset: str = "mini",
    device: str = "auto",
    data: str | None = None,
    seed: int | None = None,
    plan: VersusPlan | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """``evaluate teacher`` by names, for the command line.

    Args:
        teacher: folder with the teacher's weights, see ``load_teacher``.
        preset: name or folder of the student.
        device: "auto", "cpu" or "cuda".
        data: None or "fresh" = newly drawn clips; else the folder of a set with enough talking cases.
        seed: first seed of fresh clips.
        plan: how much, and how the teacher samples.
        report: folder for the report.

    Raises:
        LiveTalkError: weights are missing or do not fit, the renderer is missing, or too few clips.
    """
    plan = plan or VersusPlan()
    models, probe = load_models(preset, device), find_probe()
    network = load_teacher(teacher, models)
    if data in (None, "fresh"):
        seconds = pictures_of(plan.frames) / PICTURES_PER_SECOND
        wanted = SetPlan(fresh_seed(seed), talks=plan.clips, seconds=seconds, longs=0, words=0)
        cases = draw_set(models, probe, wanted, f"drawn for this run, seeds from {wanted.first_seed}")
    else:
        cases = read_set(find_set(Path(data)))
    return compare(models, network, probe, cases, plan, report)


def load_teacher(folder: Path, models: Models) -> CausalDiT:
    """The teacher in a folder: a whole checkpoint, or ``model.safetensors`` of a stage of the recipe.

    Args:
        folder: where it is.
        models: the student; the teacher gets its device and number format, and in a stage's folder its sizes.

    Raises:
        LiveTalkError: no weights there, or they do not fit.
    """
    if (folder / CONFIG_NAME).is_file():
        return load_models(folder, str(models.device), models.dtype).transformer
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise LiveTalkError(
            f"There is no teacher in {folder}: expected {WEIGHTS_NAME}, as 'python -m livetalk distill teacher' leaves"
            " it in its stage's folder."
        )
    network = CausalDiT(models.preset.model)
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise LiveTalkError(f"{path} does not fit the student's network: {reason}. Give the teacher it had.") from error
    return network.to(models.device).prepare_for_inference(models.dtype)


def compare(
    models: Models,
    teacher: CausalDiT,
    probe: Probe,
    cases: CaseSet,
    plan: VersusPlan | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Figures of both on the same clips.

    Returns:
        Plain data: ``student`` and ``teacher`` (means, intervals, Frechet distances, seconds a clip), ``difference``
        (student - teacher, paired over clips), ``ratios`` of time (teacher / student), and what the machine was like.

    Raises:
        LiveTalkError: too few or too short clips.
    """
    plan = plan or VersusPlan()
    clips = [_fitted(case, plan, models) for case in cases.of_kind("talk") if case.pictures >= pictures_of(plan.frames)]
    if len(clips) < max(1, plan.clips):
        raise LiveTalkError(f"{plan.clips} clips are needed, {len(clips)} are long enough. Ask for fewer with --clips.")
    sides = {"student": _Side(), "teacher": _Side()}
    makers: dict[str, Callable[[Case], tuple[np.ndarray, Figures]]] = {
        "student": lambda case: student_clip(models, case),
        "teacher": lambda case: teacher_clip(models, teacher, case, plan),
    }
    for make in makers.values():  # what happens once is not timed
        make(clips[0])
    for case in clips[: plan.clips]:
        for name, make in makers.items():
            _judge(sides[name], probe, case, *make(case))
        log.info("%s: sync_r %s", case.name, [round(side.figures[-1]["sync_r"], 3) for side in sides.values()])
    result = _result(models, cases, plan, sides)
    if folder is not None:
        _write(folder, result, sides)
    return result


def student_clip(models: Models, case: Case) -> tuple[np.ndarray, Figures]:
    """The student's pictures uint8 ``[T, H, W, 3]`` and its times in seconds; the portrait's encoding is not timed.

    On CUDA, work that was only started counts where it is waited for: there ``generator_s`` is a lower bound.
    """
    performer = Performer(models, models.identity(_face(case), case.text), seed=case.seed)
    made: list[np.ndarray] = []
    first_s, begin_s = 0.0, time.perf_counter()
    # all of the sound at once, as the teacher gets it; what the look-ahead would go on to say is not made
    pieces = stream(performer, [case.samples], case.pictures)
    while sum(len(piece) for piece in made) < case.pictures:
        made.append(next(pieces))
        first_s = first_s or time.perf_counter() - begin_s
    all_s = time.perf_counter() - begin_s
    performer.close()
    steps = performer.times.steps_s()
    generator_s = sum(sum(steps.get(name, [])) for name in ("denoise", "commit"))
    return np.concatenate(made), {"generator_s": generator_s, "all_stages_s": all_s, "first_picture_s": first_s}


@torch.inference_mode()
def teacher_clip(models: Models, teacher: CausalDiT, case: Case, plan: VersusPlan) -> tuple[np.ndarray, Figures]:
    """The teacher's pictures and times; its first picture needs the whole clip, then the decoding of one chunk."""
    preset = models.preset
    identity = models.identity(_face(case), case.text)
    shape = preset.latent_shape(plan.frames)
    guidance = Guidance(plan.text_guidance, plan.audio_guidance)
    score = Score(teacher, preset.rollout.prediction, guidance)
    schedule = FlowSchedule(plan.steps, preset.rollout.shift)
    noise = chunk_noise(case.seed, 0, shape, 1)[0].to(models.device)
    _settle(models)
    begin_s = time.perf_counter()
    portrait = identity.portrait_latent.to(models.device)
    cond = Conditions(
        image=image_condition(portrait, plan.frames),
        audio=pack_audio(_rows(models, case)),
        text=identity.text.to(models.device),
    )
    heard_s = time.perf_counter()
    latents = sample_clip(score, cond, noise, schedule)
    _settle(models)
    sampled_s = time.perf_counter()
    made, first_s, state = [], 0.0, None
    for start in range(0, plan.frames, preset.rollout.chunk_frames):
        part, state = models.vae.decode_chunk(latents[:, :, start : start + preset.rollout.chunk_frames], state)
        levels = ((part[0].float() + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
        made.append(levels.permute(1, 2, 3, 0).cpu().numpy())
        first_s = first_s or time.perf_counter() - begin_s
    all_s = time.perf_counter() - begin_s
    times = {"generator_s": sampled_s - heard_s, "all_stages_s": all_s, "first_picture_s": first_s}
    return np.concatenate(made), times


def _fitted(case: Case, plan: VersusPlan, models: Models) -> Case:
    """The case cut to the pictures of the teacher's clip."""
    count = pictures_of(plan.frames)
    stop = count * MODEL_SAMPLES_PER_PICTURE + models.preset.audio.look_ahead_samples
    return replace(case, samples=case.samples[:stop], poses=type(case.poses)(case.poses.values[:count]))


def _face(case: Case) -> Tensor:
    return torch.from_numpy(np.array(case.portrait)).permute(2, 0, 1).float() / 127.5 - 1.0


def _rows(models: Models, case: Case) -> Tensor:
    """Audio rows of the whole clip with the driven columns of the student's stream, ``[1, T, A]``."""
    audio, count = models.audio, case.pictures
    sound = np.zeros(audio.past_samples + count * MODEL_SAMPLES_PER_PICTURE + audio.look_ahead_samples, np.float32)
    heard = case.samples[: len(sound) - audio.past_samples]
    sound[audio.past_samples : audio.past_samples + len(heard)] = heard
    rows = audio(torch.from_numpy(sound[None]).to(models.device), count)
    columns = torch.from_numpy(driven(case.seed, 0, count, models.preset.model.drive_width)).to(rows)
    return torch.cat((rows, columns[None]), dim=2)


def _settle(models: Models) -> None:
    if models.device.type == "cuda":
        torch.cuda.synchronize(models.device)


def _judge(side: _Side, probe: Probe, case: Case, pictures: np.ndarray, times: Figures) -> None:
    watch = Watch(probe, case.portrait, case.reference.still if case.reference else None)
    watch.see(pictures[: case.pictures])
    side.figures.append(judge(watch, case))
    side.readings.append(watch.reading)
    side.times.append(times)
    side.rows.append(pictures[::SHEET_EVERY][:SHEET_COLUMNS])


def _result(models: Models, cases: CaseSet, plan: VersusPlan, sides: dict[str, _Side]) -> dict[str, Any]:
    rows = {name: _side_figures(side, cases) for name, side in sides.items()}
    student, teacher = sides["student"], sides["teacher"]
    pairs = [a["sync_r"] - b["sync_r"] for a, b in zip(student.figures, teacher.figures, strict=True)]
    difference = over_clips(pairs)
    seconds = {
        name: {t: statistics.median(row[t] for row in side.times) for t in TIMED} for name, side in sides.items()
    }
    return plain(
        {
            "model": models.preset.name,
            "data": cases.source,
            "clips": len(pairs),
            "clip_s": pictures_of(plan.frames) / PICTURES_PER_SECOND,
            "steps": plan.steps,
            "guidance": {"text": plan.text_guidance, "audio": plan.audio_guidance},
            "student": rows["student"] | seconds["student"],
            "teacher": rows["teacher"] | seconds["teacher"],
            "difference": {"sync_r": difference.mean, "sync_r_interval": [difference.low, difference.high]}
            | _frechet_differences(student, teacher, cases),
            "ratios": {t.removesuffix("_s"): seconds["teacher"][t] / max(seconds["student"][t], 1e-9) for t in TIMED},
            "threads": torch.get_num_threads(),
            "dtype": str(models.dtype).removeprefix("torch."),
            **machine(models.device),
        }
    )


def _side_figures(side: _Side, cases: CaseSet) -> dict[str, Any]:
    known = [name for name in COMPARED if all(name in row for row in side.figures)]
    figures: dict[str, Any] = {name: mean(row[name] for row in side.figures) for name in known}
    interval = over_clips([row["sync_r"] for row in side.figures])
    figures["sync_r_interval"] = [interval.low, interval.high]
    everything = np.arange(len(side.readings))
    for name, (measure, truth) in _measures(cases).items():

        def distance(chosen: np.ndarray, measure: _Measure = measure, truth: Gaussian = truth) -> float:
            return frechet_distance(gaussian(measure(side, chosen)), truth)

        figures[name] = distance(everything)
        figures[f"{name}_interval"] = np.quantile(_bootstrap(distance, side), [0.025, 0.975]).tolist()
    return figures


def _frechet_differences(student: _Side, teacher: _Side, cases: CaseSet) -> dict[str, Any]:
    """Student - teacher of both Frechet distances, 95 % over resampled clips: below 0 = the student is closer."""
    found = {}
    for name, (measure, truth) in _measures(cases).items():

        def apart(chosen: np.ndarray, measure: _Measure = measure, truth: Gaussian = truth) -> float:
            ours, theirs = (gaussian(measure(side, chosen)) for side in (student, teacher))
            return frechet_distance(ours, truth) - frechet_distance(theirs, truth)

        found[name] = apart(np.arange(len(student.readings)))
        found[f"{name}_interval"] = np.quantile(_bootstrap(apart, student), [0.025, 0.975]).tolist()
    return found


_Measure = Callable[[_Side, np.ndarray], np.ndarray]


def _measures(cases: CaseSet) -> dict[str, tuple[_Measure, Gaussian]]:
    """Features of chosen clips, and their true distribution, by the name of the distance."""

    def pictures(side: _Side, chosen: np.ndarray) -> np.ndarray:
        return np.concatenate([side.readings[k].features for k in chosen])

    def windows(side: _Side, chosen: np.ndarray) -> np.ndarray:
        return np.concatenate([clip_features(side.readings[k].features) for k in chosen])

    known = {"frechet_pictures": (pictures, cases.pictures_seen), "frechet_clips": (windows, cases.clips_seen)}
    return {name: (measure, truth) for name, (measure, truth) in known.items() if truth is not None}


def _bootstrap(statistic: Callable[[np.ndarray], float], side: _Side) -> list[float]:
    rng, count = np.random.default_rng(0), len(side.readings)
    return [statistic(rng.integers(0, count, count)) for _ in range(BOOTSTRAP_ROUNDS)]


def _write(folder: Path, result: dict[str, Any], sides: dict[str, _Side]) -> None:
    rows = [{"": name, **result[name]} for name in sides]
    names = [name for name in rows[0] if name]
    figures = [{"measure": name, **{row[""]: row[name] for row in rows}} for name in names]
    pairs = [row for both in zip(*(side.rows for side in sides.values()), strict=True) for row in both]
    guidance = result["guidance"]
    parts = [
        f"{result['clips']} clips of {result['clip_s']:g} s; teacher: {result['steps']} steps, guidance"
        f" {guidance['text']:g} (text) and {guidance['audio']:g} (sound); {result['threads']} thread(s).",
        table(figures, ("measure", *sides)),
        "Student - teacher over the same clips:",
        table([{"measure": k, "value": v} for k, v in result["difference"].items()], ("measure", "value")),
        "Time, teacher / student:",
        table([{"stage": k, "ratio": v} for k, v in result["ratios"].items()], ("stage", "ratio")),
        "Two rows a clip: student, teacher.",
        "![pictures](versus.png)",
    ]
    pictures = {"versus.png": contact_sheet(pairs, columns=max(map(len, pairs)))}
    write_page(folder, "Student and teacher", parts, pictures, result)
