"""Watching pictures as they are made: the rulers read every piece, and only numbers are kept.

``perform`` makes pictures through the same ``Performer`` as the page; ``Watch`` reads them; ``judge`` compares what was
read with the truth of a case. A clip of any length costs some numbers a picture.

This module does not know where cases come from, nor what figures are good enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from livetalk.eval.cases import Case
from livetalk.eval.figures import Figures
from livetalk.hub import Models, checkpoint_roots
from livetalk.rulers import (
    EYES,
    MOUTH,
    PROBE_FILE,
    Gaussian,
    Probe,
    Reading,
    black_frames,
    blinks_per_minute,
    clip_features,
    closed_in_silence,
    correlation,
    flicker,
    gaussian,
    identity,
    mood,
    motion_amount,
    sharpness,
    shifted_correlation,
    sync,
)
from livetalk.stream.performer import Performer
from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND, AudioChunk, LiveTalkError, SpeechEnd

_PIECE_FIGURES = ("sharp_eyes", "sharp_mouth", "identity", "flicker", "black_frames")


def find_probe() -> Probe:
    """The shipped probe.

    Raises:
        LiveTalkError: its weights are missing.
    """
    places = [root / PROBE_FILE for root in checkpoint_roots()]
    return Probe.load(next((place for place in places if place.is_file()), places[0]))


def perform(
    models: Models, portrait: np.ndarray, text: str, sound: Iterable[np.ndarray], pictures: int, seed: int
) -> Iterator[np.ndarray]:
    """A portrait says something; the pictures come in pieces, so that nothing grows.

    Args:
        models: networks and preset.
        portrait: uint8 ``[H, W, 3]`` of the model's size.
        text: caption.
        sound: packets of speech at ``MODEL_RATE``, float32, any length.
        pictures: how many are wanted at most.
        seed: of the stream.

    Yields:
        uint8 ``[T, H, W, 3]``.

    Raises:
        LiveTalkError: the portrait has another size than the model's pictures.
    """
    wanted = models.preset.height, models.preset.width
    if portrait.shape[:2] != wanted:
        found = "x".join(map(str, portrait.shape[:2]))
        raise LiveTalkError(
            f"The portrait is {found}, the model makes {wanted[0]}x{wanted[1]}. Measure it on cases of its own size:"
            " '--data fresh', or a set made with 'evaluate make-set'."
        )
    face = torch.from_numpy(np.array(portrait)).permute(2, 0, 1).float() / 127.5 - 1.0
    yield from stream(Performer(models, models.identity(face, text), seed=seed), sound, pictures)


def stream(performer: Performer, sound: Iterable[np.ndarray], pictures: int) -> Iterator[np.ndarray]:
    """The first ``pictures`` pictures of a performer that hears ``sound``, in pieces; it is closed afterwards."""
    left = pictures
    try:
        for packet in _with_end(sound):
            performer.push(packet)
            for piece in performer.pictures():
                if left > 0:
                    yield piece.pictures[:left]
                left -= len(piece.pictures)
    finally:
        performer.close()


def perform_case(models: Models, case: Case) -> Iterator[np.ndarray]:
    """The pictures of a case, in pieces; the stream's seed is the case's."""
    return perform(models, case.portrait, case.text, packets_of(case.samples), case.pictures, case.seed)


def packets_of(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Speech in packets of a second."""
    return (samples[at : at + MODEL_RATE] for at in range(0, len(samples), MODEL_RATE))


@dataclass(frozen=True)
class _Piece:
    """Figures of some neighbouring pictures."""

    first: int
    pictures: int
    figures: Figures


class Watch:
    """Reads pictures piece by piece.

    Args:
        probe: what reads mouths, eyes and heads.
        portrait: uint8 ``[H, W, 3]``, which the pictures should stay like.
        still: bool ``[16, 16]``, cells that do not move; None = identity and flicker are not measured.
    """

    def __init__(self, probe: Probe, portrait: np.ndarray, still: np.ndarray | None = None) -> None:
        self._probe, self._portrait, self._still = probe, portrait, still
        self._readings: list[Reading] = []
        self._pieces: list[_Piece] = []
        self._last: np.ndarray | None = None
        self.pictures = 0

    def see(self, pictures: np.ndarray) -> None:
        """Take the next pictures, uint8 ``[T, H, W, 3]``."""
        if not len(pictures):
            return
        figures = {
            "sharp_eyes": sharpness(pictures, EYES),
            "sharp_mouth": sharpness(pictures, MOUTH),
            "black_frames": black_frames(pictures, self._portrait),
        }
        if self._still is not None:
            joined = pictures if self._last is None else np.concatenate([self._last, pictures])
            figures["identity"] = float(identity(pictures, self._portrait, self._still).mean())
            figures["flicker"] = flicker(joined, self._still) if len(joined) > 1 else math.nan
        self._readings.append(self._probe.read(pictures))
        self._pieces.append(_Piece(self.pictures, len(pictures), figures))
        self._last = pictures[-1:].copy()
        self.pictures += len(pictures)

    def see_all(self, pieces: Iterable[np.ndarray], keep_every: int = 0) -> np.ndarray:
        """Take all pieces; returns every ``keep_every``-th picture uint8 ``[N, H, W, 3]`` (0 = none)."""
        kept = [np.zeros((0, *self._portrait.shape), np.uint8)]
        for piece in pieces:
            first = self.pictures
            self.see(piece)
            if keep_every:
                kept.append(piece[-first % keep_every :: keep_every].copy())
        return np.concatenate(kept)

    @property
    def reading(self) -> Reading:
        """Everything the probe read so far."""
        return Reading.joined(self._readings)

    def figures(self, start: int = 0, stop: int | None = None) -> Figures:
        """Means over the pieces that begin in pictures ``start..stop``."""
        pieces = [p for p in self._pieces if p.first >= start and (stop is None or p.first < stop)]
        return {name: _weighted(pieces, name) for name in _PIECE_FIGURES if any(name in p.figures for p in pieces)}

    def over_time(self, name: str) -> tuple[list[float], list[float]]:
        """A figure piece by piece: seconds of the pieces' middles, and values."""
        pieces = [piece for piece in self._pieces if name in piece.figures]
        return [(p.first + p.pictures / 2) / PICTURES_PER_SECOND for p in pieces], [p.figures[name] for p in pieces]


def plain_figures(watch: Watch) -> Figures:
    """Figures of pictures alone, without comparing them with anything; also what a reference is made of."""
    reading = watch.reading
    return {
        **watch.figures(),
        "open_deviation": float(np.std(reading.open)),
        "movement": motion_amount(reading),
        "blinks_per_minute": blinks_per_minute(reading.eyes_shut),
    }


def judge(watch: Watch, case: Case, start: int = 0, stop: int | None = None) -> Figures:
    """What was seen against the truth of the case.

    Args:
        watch: has seen the generated pictures of the case.
        case: the truth; ratios are only there where it has a reference.
        start, stop: stretch of pictures that is judged.
    """
    reading, truth = watch.reading[start:stop], case.poses.values[start:stop]
    opening, width, teeth = truth[:, 0], truth[:, 1], truth[:, 2]
    agreement = sync(reading.open, opening)
    seen = watch.figures(start, stop)
    figures: Figures = {
        "sync_r": agreement.sync_r,
        "sync_r_best": agreement.sync_r_best,
        "av_lag_pictures": float(agreement.av_lag_pictures),
        "width_r": correlation(reading.wide, width),
        "teeth_r": correlation(reading.teeth, teeth),
        "shifted_r": _a_second_apart(reading.open, opening),
        "silence_open": closed_in_silence(reading.open, opening),
        "blinks_per_minute": blinks_per_minute(reading.eyes_shut),
        "mood_read": float(mood(reading) == case.mood),
    }
    figures |= {name: seen[name] for name in ("identity", "flicker", "black_frames") if name in seen}
    return figures | _ratios(figures, seen, reading, case)


def _a_second_apart(told: np.ndarray, truth: np.ndarray) -> float:
    """Correlation with the truth of a second ago, which should be about 0; nan for clips under two seconds."""
    long_enough = len(truth) >= 2 * PICTURES_PER_SECOND
    return shifted_correlation(told, truth, PICTURES_PER_SECOND) if long_enough else math.nan


def _ratios(figures: Figures, seen: Figures, reading: Reading, case: Case) -> Figures:
    """Generated over true, for what has no scale of its own."""
    if case.reference is None:
        return {}
    truth, through = case.reference.truth, case.reference.through
    ratios: Figures = {
        "amplitude": float(np.std(reading.open)) / max(truth["open_deviation"], 1e-9),
        "sharp_eyes": seen["sharp_eyes"] / truth["sharp_eyes"],
        "sharp_mouth": seen["sharp_mouth"] / truth["sharp_mouth"],
        "movement": motion_amount(reading) / max(truth["movement"], 1e-9),
        "probe_r": truth["probe_r"],
    }
    if through:
        ratios["flicker_ratio"] = figures["flicker"] / max(through["flicker"], 1e-9)
        ratios["vae_sharp_eyes"] = through["sharp_eyes"] / truth["sharp_eyes"]
        ratios["vae_sharp_mouth"] = through["sharp_mouth"] / truth["sharp_mouth"]
    if "ceiling" in through:
        ratios |= {name: through[name] for name in ("ceiling", "heard_r") if name in through}
        ratios["share_of_ceiling"] = figures["sync_r"] / max(through["ceiling"], 1e-9)
    return ratios


def distributions(readings: Sequence[Reading]) -> tuple[Gaussian | None, Gaussian | None]:
    """Distributions of the features of pictures, and of windows of a second; None where there is too little."""
    pictures = [reading.features for reading in readings]
    windows = [clip_features(features) for features in pictures]
    found = [gaussian(np.concatenate(rows)) if sum(map(len, rows)) > 1 else None for rows in (pictures, windows)]
    return found[0], found[1]


def _weighted(pieces: list[_Piece], name: str) -> float:
    known = [(p.pictures, p.figures[name]) for p in pieces if not math.isnan(p.figures.get(name, math.nan))]
    weight = sum(count for count, _ in known)
    return sum(count * value for count, value in known) / weight if weight else math.nan


def _with_end(sound: Iterable[np.ndarray]) -> Iterator[AudioChunk | SpeechEnd]:
    for samples in sound:
        yield AudioChunk(samples, MODEL_RATE)
    yield SpeechEnd()
