"""How well a model talks: held-out faces say held-out speech, and the rulers read the pictures.

Every clip goes through the same ``Performer`` as the page. Truth comes from the renderer, so drawing (skia-python)
and speaking (espeak-ng, flite) are needed here. Figures that are to be believed want seeds nobody has looked at.

This module does not know how the model was trained, nor what figures are good enough.
"""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from livetalk.distill.data import Clip, make_clip
from livetalk.distill.sheets import contact_sheet
from livetalk.distill.speech import HELD_OUT_SEED
from livetalk.hub import Models, checkpoint_roots, load_models
from livetalk.rulers import (
    EYES,
    MOUTH,
    PROBE_FILE,
    Probe,
    amplitude_ratio,
    best_lag,
    blinks_per_minute,
    bootstrap_interval,
    correlation,
    darkest,
    flicker,
    identity_distance,
    openness_in_silence,
    sharpness,
    shifted_correlation,
    still_cells,
)
from livetalk.stream.performer import Performer
from livetalk.types import (
    MODEL_RATE,
    MODEL_SAMPLES_PER_PICTURE,
    PICTURES_PER_SECOND,
    AudioChunk,
    LiveTalkError,
    SpeechEnd,
)

Figures = dict[str, float]

UNSEEN_SEEDS = 1_000_000_000
SILENCE_S = 60.0
EDGE_S = 10.0
"""Length of the stretches at both ends of a long clip that are compared."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        first_seed: seed of the first clip, at least ``HELD_OUT_SEED``; clips take the seeds from there on.
        clips: number of short clips.
        seconds: their length.
        long_clips: number of long clips.
        long_seconds: their length.
        silent_clips: faces that listen to silence for a minute.
    """

    first_seed: int = HELD_OUT_SEED
    clips: int = 8
    seconds: float = 10.0
    long_clips: int = 2
    long_seconds: float = 60.0
    silent_clips: int = 2


def run(
    preset: str = "mini",
    device: str = "auto",
    seed: int | None = None,
    clips: int = 8,
    seconds: float = 10.0,
    long: int = 2,
    report: Path | None = None,
) -> dict[str, object]:
    """``evaluate`` by the name of a model, for the command line.

    Args:
        preset: name or folder of a model.
        device: "auto", "cpu" or "cuda".
        seed: first held-out seed; None = one that nobody has looked at, named in the result.
        clips, seconds: short clips and their length.
        long: clips of a minute.
        report: folder for ``report.json`` and a contact sheet.
    """
    first = HELD_OUT_SEED + secrets.randbelow(UNSEEN_SEEDS) if seed is None else seed
    plan = Plan(first_seed=first, clips=clips, seconds=seconds, long_clips=long, silent_clips=min(2, clips))
    return evaluate(load_models(preset, device), plan, report)


def evaluate(models: Models, plan: Plan | None = None, folder: Path | None = None) -> dict[str, object]:
    """Figures of a model on held-out clips.

    Args:
        models: what is measured.
        plan: how much, on which seeds.
        folder: for contact sheets; None = none are written.

    Returns:
        Plain data for JSON: ``summary`` (means and intervals), ``clips``, ``long``, ``silence``.

    Raises:
        LiveTalkError: a tool to draw or speak is missing, the probe's weights are missing, or a seed is not held out.
    """
    plan = plan or Plan()
    _require_tools()
    if plan.first_seed < HELD_OUT_SEED:
        raise LiveTalkError(f"Seed {plan.first_seed} may have been trained on. Give one of at least {HELD_OUT_SEED}.")
    probe = find_probe()
    seeds = iter(range(plan.first_seed, plan.first_seed + plan.clips + plan.long_clips + plan.silent_clips))
    short, rows = [], []
    for _ in range(plan.clips):
        figures, pictures, truth = _talk(models, probe, next(seeds), plan.seconds)
        short.append(figures)
        rows += [truth.pictures, pictures]
    long = [_talk(models, probe, next(seeds), plan.long_seconds)[0] for _ in range(plan.long_clips)]
    silence = [_listen(models, probe, next(seeds)) for _ in range(plan.silent_clips)]
    if folder is not None and rows:
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows, columns=16, every=7).save(folder / "clips.png")
    result: dict[str, object] = {
        "model": models.preset.name,
        "audio_guidance": models.preset.rollout.audio_guidance,
        "first_seed": plan.first_seed,
        "summary": summary(short, long, silence),
        "clips": short,
        "long": long,
        "silence": silence,
    }
    if folder is not None:
        (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(short: Sequence[Figures], long: Sequence[Figures], silence: Sequence[Figures]) -> dict[str, object]:
    """Means over all talking clips (short and long weigh alike), over long ones and over silent ones."""
    talking = [*short, *long]
    means: dict[str, object] = {f"{key}": _mean([c[key] for c in talking]) for key in _shared(talking)}
    means["clips"] = len(talking)
    if talking:
        means["sync_r_interval"] = [round(v, 4) for v in bootstrap_interval([c["sync_r"] for c in talking])]
    for name, group in (("short", short), ("long", long), ("silent", silence)):
        own = [key for key in _shared(group) if name != "short" or key == "sync_r"]
        means |= {f"{name}_{key}": _mean([c[key] for c in group]) for key in own}
    return means


def generate(models: Models, clip: Clip, seed: int = 0) -> np.ndarray:
    """Pictures uint8 ``[T, H, W, 3]`` of the clip's portrait saying the clip's speech."""
    height, width = clip.pictures.shape[1:3]
    if (height, width) != (models.preset.height, models.preset.width):
        raise LiveTalkError(
            f"The clip is {height}x{width}, the model makes {models.preset.height}x{models.preset.width}."
        )
    portrait = torch.from_numpy(clip.pictures[0]).permute(2, 0, 1).float() / 127.5 - 1.0
    performer = Performer(models, models.identity(portrait, clip.text), seed=seed)
    made = []
    for start in range(0, len(clip.samples), MODEL_RATE):  # packets of a second: a long clip needs no more memory
        performer.push(AudioChunk(clip.samples[start : start + MODEL_RATE], MODEL_RATE))
        made += [piece.pictures for piece in performer.pictures()]
    performer.push(SpeechEnd())
    made += [piece.pictures for piece in performer.pictures()]
    return np.concatenate(made)[: len(clip.pictures)]


def find_probe() -> Probe:
    """The shipped probe.

    Raises:
        LiveTalkError: its weights are missing.
    """
    places = [root / PROBE_FILE for root in checkpoint_roots()]
    return Probe.load(next((place for place in places if place.is_file()), places[0]))


def _talk(models: Models, probe: Probe, seed: int, seconds: float) -> tuple[Figures, np.ndarray, Clip]:
    """Figures of one talking clip, its pictures, and the true clip."""
    truth = _clip(models, seed, seconds)
    pictures = generate(models, truth, seed)
    figures = measure(pictures, truth, probe) | {"seed": seed, "ceiling": _ceiling(models, truth)}
    if seconds >= 3 * EDGE_S:
        figures |= _drift(pictures, truth, probe)
    return figures, pictures, truth


def measure(pictures: np.ndarray, truth: Clip, probe: Probe) -> Figures:
    """All rulers on one clip.

    Args:
        pictures: generated, uint8 ``[T, H, W, 3]``.
        truth: what the renderer made of the same speech.
        probe: reads pictures.
    """
    told, seen = probe.read(pictures), probe.read(truth.pictures)
    opening, wide = truth.poses.track("open"), truth.poses.track("wide")
    still = still_cells(truth.pictures)
    best, lag = best_lag(told.open, opening)
    return {
        "sync_r": correlation(told.open, opening),
        "sync_r_best": best,
        "lag_pictures": float(lag),
        "width_r": correlation(told.wide, wide),
        "teeth_r": correlation(told.teeth, truth.poses.track("teeth")),
        "amplitude": amplitude_ratio(told.open, seen.open),
        "shifted_r": shifted_correlation(told.open, opening, PICTURES_PER_SECOND),
        "probe_r": correlation(seen.open, opening),
        "silence_open": openness_in_silence(told.open, opening),
        "blinks_per_minute": blinks_per_minute(told.eyes_shut),
        "sharp_eyes": sharpness(pictures, EYES) / sharpness(truth.pictures, EYES),
        "sharp_mouth": sharpness(pictures, MOUTH) / sharpness(truth.pictures, MOUTH),
        "identity": float(identity_distance(pictures, truth.pictures, still).mean()),
        "flicker": flicker(pictures, still),
        "darkest": darkest(pictures) / darkest(truth.pictures),
    }


def _drift(pictures: np.ndarray, truth: Clip, probe: Probe) -> Figures:
    """The last ten seconds against the first ten."""
    edge = int(EDGE_S * PICTURES_PER_SECOND)
    still = still_cells(truth.pictures)
    distance = identity_distance(pictures, truth.pictures, still)
    opening = truth.poses.track("open")
    told = probe.read(pictures).open
    sharp = [sharpness(part, box) for part in (pictures[:edge], pictures[-edge:]) for box in (EYES, MOUTH)]
    return {
        "identity_growth": float(distance[-edge:].mean() - distance[:edge].mean()),
        "sharp_eyes_growth": sharp[2] / sharp[0],
        "sharp_mouth_growth": sharp[3] / sharp[1],
        "sync_r_first": correlation(told[:edge], opening[:edge]),
        "sync_r_last": correlation(told[-edge:], opening[-edge:]),
    }


def _listen(models: Models, probe: Probe, seed: int) -> Figures:
    """A face that hears a minute of silence: is its mouth shut, does it blink and move?"""
    truth = _clip(models, seed, 1.0)
    samples = np.zeros(int(SILENCE_S * MODEL_RATE), np.float32)
    stretched = replace(truth, samples=samples, pictures=np.repeat(truth.pictures[:1], len(samples) // 1000, axis=0))
    pictures = generate(models, stretched, seed)
    told = probe.read(pictures)
    return {
        "seed": float(seed),
        "open": float(told.open.mean()),
        "blinks_per_minute": blinks_per_minute(told.eyes_shut),
        "movement": float(np.abs(np.diff(pictures.astype(np.float32), axis=0)).mean()),
    }


def _ceiling(models: Models, truth: Clip) -> float:
    """Correlation the audio features alone reach: what any generator that hears through them could show at best."""
    audio = models.audio
    if not hasattr(audio, "mouth"):
        return math.nan
    count = len(truth.pictures)
    wanted = audio.past_samples + count * MODEL_SAMPLES_PER_PICTURE + audio.look_ahead_samples
    sound = np.concatenate([np.zeros(audio.past_samples, np.float32), truth.samples, np.zeros(wanted, np.float32)])
    with torch.inference_mode():
        rows = audio(torch.from_numpy(sound[None, :wanted]).to(models.device), count)
        told = audio.mouth(rows)[0, :, 0].cpu().numpy()
    return correlation(told, truth.poses.track("open"))


def _clip(models: Models, seed: int, seconds: float) -> Clip:
    preset = models.preset
    pictures = round(seconds * PICTURES_PER_SECOND)
    look_ahead = preset.audio.look_ahead_samples
    return make_clip(seed, pictures, preset.height, preset.stream.default_prompt, look_ahead, pauses=False)


def _require_tools() -> None:
    if importlib.util.find_spec("skia") is None:
        raise LiveTalkError(
            "Measuring clips needs the renderer: skia-python is missing. Install it with"
            " 'pip install -r requirements-train.txt' and espeak-ng and flite from your system."
        )


def _shared(clips: Sequence[Figures]) -> list[str]:
    """Figures all clips have, but the seed."""
    return [key for key in (clips[0] if clips else {}) if key != "seed" and all(key in clip for clip in clips)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else math.nan
