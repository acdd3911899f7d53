"""Drawing held-out cases: the only place of the measurements that needs the renderer and the speech engines.

Made here: cases from seeds, what the rulers say of their true pictures, the same through a model's VAE, and the
ceiling: the mouth that the audio encoder predicts, drawn and sent through the VAE. No generator that hears through
that encoder and shows through that VAE can be expected to do better.

This module does not know any generator.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from livetalk.distill.data import drawable
from livetalk.distill.portraits import MOODS, MOTIONS, Face, Poses, animate, caption, draw_clip, landmarks
from livetalk.distill.speech import HELD_OUT_SEED, HELD_OUT_VOICES, speech_clip
from livetalk.eval.cases import SET_FILE, Case, CaseSet, Kind, Reference, fingerprint, read_set, write_set, write_truth
from livetalk.eval.figures import Figures
from livetalk.eval.watch import Watch, distributions, plain_figures
from livetalk.hub import Models
from livetalk.rulers import MOUTH, Probe, Reading, motion_diversity, psnr, still_cells, sync
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_LATENT, PICTURES_PER_SECOND, LiveTalkError

log = logging.getLogger(__name__)

SHIPPED_SEED = HELD_OUT_SEED + 77_000_000
SHIPPED_VOICES = (*HELD_OUT_VOICES, *HELD_OUT_VOICES, "flite:rms", HELD_OUT_VOICES[1], HELD_OUT_VOICES[0], "flite:awb")
"""Voices of the talking cases in turn; flite's rms and awb are known from training, their sentences are not."""

SEGMENT_PICTURES = 20 * PICTURES_PER_SECOND + 1
LIPS_ACROSS, LIPS_DOWN = 0.075, 0.05
"""Half the width and height of the box around the mouth, in picture sides."""

_CHUNK_FRAMES = 3


@dataclass(frozen=True)
class CasePlan:
    """A case to draw; see ``Case``. ``voice`` None = drawn from the seed among those never trained on."""

    name: str
    seed: int
    kind: Kind
    seconds: float
    motion: str
    mood: str
    voice: str | None = None


@dataclass(frozen=True)
class SetPlan:
    """How much is drawn.

    Attributes:
        first_seed: cases take the seeds from there on; at least ``HELD_OUT_SEED``.
        talks, seconds: talking cases and their length.
        longs, long_seconds: long cases and theirs.
        words, words_seconds: neutral faces for captions, and theirs.
        voices: in turn; None in it = as the seed says.
    """

    first_seed: int
    talks: int = 8
    seconds: float = 12.0
    longs: int = 2
    long_seconds: float = 60.0
    words: int = 4
    words_seconds: float = 4.0
    voices: tuple[str | None, ...] = (None,)


def shipped_plan() -> SetPlan:
    """What the repository carries: about four minutes of speech."""
    return SetPlan(first_seed=SHIPPED_SEED, voices=SHIPPED_VOICES)


def case_plans(plan: SetPlan) -> list[CasePlan]:
    """The cases of a set: motions and moods in turn, so that every word is asked for.

    Raises:
        LiveTalkError: a seed may have been trained on.
    """
    if plan.first_seed < HELD_OUT_SEED:
        raise LiveTalkError(f"Seed {plan.first_seed} may have been trained on. Give one of at least {HELD_OUT_SEED}.")
    motions, rows = list(MOTIONS), []
    sizes: tuple[tuple[Kind, int, float], ...] = (
        ("talk", plan.talks, plan.seconds),
        ("long", plan.longs, plan.long_seconds),
        ("words", plan.words, plan.words_seconds),
    )
    seed = plan.first_seed
    for kind, count, seconds in sizes:
        for number in range(count):
            motion = "gentle" if kind == "words" else motions[(number + 1) % len(motions)]
            asked = "neutral" if kind == "words" else MOODS[number % len(MOODS)]
            voice = plan.voices[number % len(plan.voices)]
            rows.append(CasePlan(f"{kind}-{number}", seed, kind, seconds, motion, asked, voice))
            seed += 1
    return rows


def draw_set(models: Models, probe: Probe, plan: SetPlan, source: str) -> CaseSet:
    """Draw a whole set for a model: its picture size, its look-ahead, and its encoders' figures.

    Raises:
        LiveTalkError: the renderer or a speech engine is missing, or a seed is not held out.
    """
    require_renderer()
    drawn = []
    for wanted in case_plans(plan):
        log.info("drawing %s, %g s", wanted.name, wanted.seconds)
        drawn.append(draw_case(wanted, models, probe))
    return _as_set(drawn, models, source)


def measure_again(models: Models, probe: Probe, cases: CaseSet) -> CaseSet:
    """The same portraits and speech, measured for another model's encoders or by another probe.

    Raises:
        LiveTalkError: the renderer is missing.
    """
    require_renderer()
    return _as_set([measure_case(case, models, probe) for case in cases.cases], models, cases.source)


def _as_set(drawn: Sequence[tuple[Case, Reading]], models: Models, source: str) -> CaseSet:
    cases = [case for case, _ in drawn]
    readings = [reading for case, reading in drawn if case.kind == "talk"]
    pictures_seen, clips_seen = distributions(readings) if readings else (None, None)
    return CaseSet(
        tuple(cases),
        source,
        pictures_seen=pictures_seen,
        clips_seen=clips_seen,
        diversity=motion_diversity(readings) if len(readings) > 1 else math.nan,
        encoders=fingerprint(models),
    )


def make_set(models: Models, probe: Probe, folder: Path, plan: SetPlan | None = None) -> CaseSet:
    """Draw a set and write it to ``folder``; the shipped one by default.

    Portraits and speech of a set that is there already stay as they are; it is measured again.

    Raises:
        LiveTalkError: the renderer or a speech engine is missing.
    """
    if (folder / SET_FILE).is_file():
        cases = measure_again(models, probe, read_set(folder))
        write_truth(folder, cases)
        return cases
    plan = plan or shipped_plan()
    cases = draw_set(models, probe, plan, f"shipped held-out set, seeds from {plan.first_seed}")
    write_set(folder, cases)
    return cases


def draw_case(plan: CasePlan, models: Models, probe: Probe) -> tuple[Case, Reading]:
    """One case, and what the probe reads off its true pictures (one picture only, if its kind is "words")."""
    preset, count = models.preset, round(plan.seconds * PICTURES_PER_SECOND)
    return measure_case(_spoken(plan, count, preset.audio.look_ahead_samples, preset.height), models, probe)


def measure_case(case: Case, models: Models, probe: Probe) -> tuple[Case, Reading]:
    """A case with its reference, and what the probe reads off its true pictures; see ``draw_case``."""
    if case.kind == "words":
        return case, probe.read(case.portrait[None])
    face = Face.sample(case.seed)
    pictures = draw_clip(face, case.poses, models.preset.height)
    still = still_cells(pictures)
    watch = _watched(probe, case.portrait, still, [pictures])
    truth = plain_figures(watch) | {"probe_r": sync(watch.reading.open, case.poses.track("open")).sync_r}
    through = _through_figures(models, probe, case, face, pictures, still)
    return replace(case, reference=Reference(still, truth, through)), watch.reading


def draw_pictures(case: Case, size: int) -> np.ndarray:
    """The true pictures of a case, uint8 ``[T, size, size, 3]``."""
    require_renderer()
    return draw_clip(Face.sample(case.seed), case.poses, size)


def through_vae(models: Models, pictures: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures uint8 ``[T, H, W, 3]`` encoded and decoded, in pieces; up to three at the end are left out.

    Segments of 20 s are encoded one by one, so that long clips need no more memory.
    """
    for start in range(0, len(pictures), SEGMENT_PICTURES):
        segment = pictures[start : start + SEGMENT_PICTURES]
        whole = (len(segment) - 1) // PICTURES_PER_LATENT * PICTURES_PER_LATENT + 1
        yield from _coded(models, segment[:whole])


def predicted_mouth(models: Models, samples: np.ndarray, pictures: int) -> np.ndarray | None:
    """(open, wide, teeth) as the audio encoder hears them, float32 ``[T, 3]``; None if it has no such head."""
    audio = models.audio
    if not hasattr(audio, "mouth"):
        return None
    wanted = audio.past_samples + pictures * MODEL_SAMPLES_PER_PICTURE + audio.look_ahead_samples
    sound = np.zeros(wanted, np.float32)
    heard = samples[: wanted - audio.past_samples]
    sound[audio.past_samples : audio.past_samples + len(heard)] = heard
    with torch.inference_mode():
        rows = audio(torch.from_numpy(sound[None]).to(models.device), pictures)
        return audio.mouth(rows)[0].float().cpu().clamp(0, 1).numpy()


def vae_figures(models: Models, probe: Probe, cases: Sequence[Case]) -> Figures:
    """What the VAE alone costs, mean over cases.

    Returns:
        ``psnr`` of whole pictures, ``psnr_mouth`` in the rulers' mouth box, ``psnr_lips`` in a tight box that follows
        the mouth (all dB), ``lip_r``: opening read through the VAE against the truth, ``width_r`` and ``blink_r``.
    """
    rows = []
    for case in cases:
        truth = draw_pictures(case, models.preset.height)
        coded = np.concatenate(list(through_vae(models, truth)))
        truth, poses = truth[: len(coded)], Poses(case.poses.values[: len(coded)])
        reading = probe.read(coded)
        spots = landmarks(Face.sample(case.seed), poses, truth.shape[1])[:, 0]
        rows.append(
            {
                "psnr": psnr(coded, truth),
                "psnr_mouth": psnr(coded, truth, MOUTH),
                "psnr_lips": psnr(_around(coded, spots), _around(truth, spots)),
                "lip_r": sync(reading.open, poses.track("open")).sync_r,
                "width_r": sync(reading.wide, poses.track("wide")).sync_r,
                "blink_r": sync(reading.eyes_shut, poses.track("blink")).sync_r,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def require_renderer() -> None:
    """Refuse to go on without the renderer.

    Raises:
        LiveTalkError: skia-python is missing.
    """
    try:
        found = importlib.util.find_spec("skia") is not None
    except ValueError:  # a stand-in without a spec
        found = False
    if not found:
        raise LiveTalkError(
            "Drawing new faces needs the renderer: skia-python is missing. Install it with"
            " 'pip install -r requirements-train.txt' and espeak-ng and flite from your system, or leave out --data"
            " and --seed to use the held-out set that comes with the checkpoints."
        )


def _spoken(plan: CasePlan, count: int, look_ahead_samples: int, size: int) -> Case:
    """The case of a plan without reference."""
    extra = -(-look_ahead_samples // MODEL_SAMPLES_PER_PICTURE)
    speech = speech_clip(plan.seed, (count + extra) / PICTURES_PER_SECOND, held_out=True, voice=plan.voice)
    poses = animate(drawable(speech.mouth[:count]), plan.seed, plan.motion, plan.mood)
    return Case(
        name=plan.name,
        seed=plan.seed,
        kind=plan.kind,
        portrait=draw_clip(Face.sample(plan.seed), [poses[0]], size)[0],
        samples=speech.samples[: count * MODEL_SAMPLES_PER_PICTURE + look_ahead_samples],
        poses=poses,
        text=caption(plan.motion, plan.mood, plan.seed),
        mood=plan.mood,
        motion=plan.motion,
        voice=speech.voice,
    )


def _through_figures(
    models: Models, probe: Probe, case: Case, face: Face, pictures: np.ndarray, still: np.ndarray
) -> Figures:
    """Figures of the truth through the VAE, and the ceiling."""
    figures = plain_figures(_watched(probe, case.portrait, still, through_vae(models, pictures)))
    mouth = predicted_mouth(models, case.samples, case.pictures)
    if mouth is None:
        return figures
    values = case.poses.values.copy()
    values[1:, :3] = drawable(mouth)[1:]  # picture 0 is the portrait
    drawn = draw_clip(face, Poses(values), models.preset.height)
    told = _watched(probe, case.portrait, None, through_vae(models, drawn)).reading.open
    figures["ceiling"] = sync(told, case.poses.track("open")[: len(told)]).sync_r
    figures["heard_r"] = sync(mouth[:, 0], case.poses.track("open")).sync_r
    return figures


def _watched(
    probe: Probe, portrait: np.ndarray, still: np.ndarray | None, pieces: Sequence[np.ndarray] | Iterator[np.ndarray]
) -> Watch:
    watch = Watch(probe, portrait, still)
    watch.see_all(pieces)
    return watch


@torch.inference_mode()
def _coded(models: Models, pictures: np.ndarray) -> Iterator[np.ndarray]:
    video = torch.from_numpy(np.ascontiguousarray(pictures)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
    latents: Tensor = models.vae.encode(video.to(models.device))
    state = None
    for first in range(0, latents.shape[2], _CHUNK_FRAMES):
        part, state = models.vae.decode_chunk(latents[:, :, first : first + _CHUNK_FRAMES], state)
        levels = ((part[0].float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        yield levels.permute(1, 2, 3, 0).cpu().numpy()


def _around(pictures: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """A box of one size around a spot ``[T, 2]`` (column, row in pixels) of every picture."""
    side = pictures.shape[1]
    across, down = math.ceil(LIPS_ACROSS * side), math.ceil(LIPS_DOWN * side)
    rows = np.clip(np.round(spots[:, 1]).astype(int) - down, 0, side - 2 * down)
    columns = np.clip(np.round(spots[:, 0]).astype(int) - across, 0, side - 2 * across)
    boxes = zip(pictures, rows, columns, strict=True)
    return np.stack([picture[r : r + 2 * down, c : c + 2 * across] for picture, r, c in boxes])
