"""Second reading: what a cut clip looks and sounds like, and whether the mouth belongs to the sound.

Everything is arithmetic on pictures and samples, save the lip-sync check, which needs a probe that reads the mouth off
pictures and an audio encoder that can tell the mouth. There is one for illustrated faces; for photographs there is no
ruler here and the check says so. This module does not know files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from livetalk.distill.curate.faces import FaceBox, opencv
from livetalk.distill.curate.limits import Limits, Reason
from livetalk.media.pictures import looks_illustrated
from livetalk.model.mel import MelAudioEncoder
from livetalk.rulers import Probe, Reading, longest_run, luminance, shifted_correlation
from livetalk.types import MODEL_RATE, MODEL_SAMPLES_PER_PICTURE

MARGIN_PICTURES = 16
"""Pictures' worth of sound kept before and after a clip: what the ear hears before, ahead, and shifts."""

PITCH_HZ = (70, 400)
VOICED = 0.5
_QUIET_DB = -50.0
_BELOW_LOUD_DB = 30.0
_BLUR_TAPS = 9
_BLUR_PICTURES = 8


@dataclass(frozen=True)
class SyncRuler:
    """Reads the mouth off pictures of illustrated faces, and tells it from sound."""

    probe: Probe
    ear: MelAudioEncoder

    def read(self, pictures: np.ndarray) -> Reading | None:
        """Mouth and lids in ``pictures`` uint8 ``[T, H, W, 3]``; None for photographs: nothing here can read them."""
        first = torch.from_numpy(pictures[0]).permute(2, 0, 1).float() / 127.5 - 1.0
        return self.probe.read(pictures) if looks_illustrated(first) else None

    @torch.no_grad()
    def heard(self, sound: np.ndarray, pictures: int) -> np.ndarray:
        """Openness ``[T]`` that the sound of a clip with its margins tells."""
        start = MARGIN_PICTURES * MODEL_SAMPLES_PER_PICTURE - self.ear.past_samples
        stop = (MARGIN_PICTURES + pictures) * MODEL_SAMPLES_PER_PICTURE + self.ear.look_ahead_samples
        window = torch.from_numpy(np.ascontiguousarray(sound[start:stop], np.float32))[None]
        device = self.ear.head.weight.device
        return self.ear.mouth(self.ear(window.to(device), pictures))[0, :, 0].float().cpu().numpy()


def picture_figures(pictures: np.ndarray, face: FaceBox, limits: Limits) -> dict[str, float]:
    """Light, contrast, blur and movement of the face in a clip uint8 ``[T, H, W, 3]``."""
    light = luminance(face.of(pictures))
    changes = np.abs(np.diff(light, axis=0)).mean(axis=(1, 2))
    still = changes < limits.still_change
    some = light[:: max(1, len(light) // _BLUR_PICTURES)]
    return {
        "face_light": float(light.mean()),
        "contrast": float(light.std(axis=(1, 2)).mean()),
        "blur": float(np.median([blur_effect(one) for one in some])),
        "still_run": float(longest_run(still)),
        "still_share": float(still.mean()),
    }


def blur_effect(light: np.ndarray) -> float:
    """How little a picture ``[H, W]`` changes when it is blurred again: 0 sharp .. 1 flat (Crete et al. 2007)."""
    cv = opencv()
    worst = 0.0
    for axis, kernel in ((0, (1, _BLUR_TAPS)), (1, (_BLUR_TAPS, 1))):
        own = np.abs(np.diff(light, axis=axis))
        soft = np.abs(np.diff(cv.blur(light, kernel), axis=axis))
        total = float(own.sum())
        lost = float(np.maximum(0.0, own - soft).sum())
        worst = max(worst, (total - lost) / total if total > 0 else 1.0)
    return worst


def sound_figures(samples: np.ndarray) -> dict[str, float]:
    """Level, its spread, share of voiced pictures and of clipped samples of float32 ``[T * 1000]``."""
    levels = levels_db(samples)
    loud = float(np.percentile(levels, 95))
    heard = levels > max(_QUIET_DB, loud - _BELOW_LOUD_DB)
    return {
        "loud_db": loud,
        "level_spread_db": float(np.maximum(levels, loud - 2 * _BELOW_LOUD_DB).std()),
        "voiced_share": float((heard & (periodicity(samples) > VOICED)).mean()),
        "clipped_share": float((np.abs(samples) > 0.999).mean()),
    }


def levels_db(samples: np.ndarray) -> np.ndarray:
    """Level of every picture's sound ``[T]`` in dB of full scale, -120 for digital silence."""
    rows = samples.reshape(-1, MODEL_SAMPLES_PER_PICTURE).astype(np.float64)
    return 10 * np.log10(np.square(rows).mean(axis=1) + 1e-12)


def periodicity(samples: np.ndarray) -> np.ndarray:
    """Highest autocorrelation of every picture's sound at a voice's pitch, ``[T]``: 1 periodic, about 0 noise."""
    rows = samples.reshape(-1, MODEL_SAMPLES_PER_PICTURE).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    taper = np.hanning(MODEL_SAMPLES_PER_PICTURE)
    own = _autocorrelation(rows * taper)
    of_taper = _autocorrelation(taper[None])[0]
    shortest, longest = MODEL_RATE // PITCH_HZ[1], MODEL_RATE // PITCH_HZ[0]
    lags = slice(shortest, longest + 1)
    return (own[:, lags] / (of_taper[lags] / of_taper[0]) / (own[:, :1] + 1e-9)).max(axis=1)


def sync_figures(told: np.ndarray, heard: np.ndarray, limits: Limits) -> dict[str, float]:
    """Best match of two openness tracks ``[T]`` near and far; a positive lag means that the pictures come late."""
    near, reach = limits.sync_pictures, limits.sync_reach
    matches = {lag: shifted_correlation(told, heard, lag) for lag in range(-reach, reach + 1)}
    lag = max((lag for lag in matches if abs(lag) <= near), key=lambda lag: (matches[lag], -abs(lag)))
    far = max(value for shift, value in matches.items() if abs(shift) > near + 1)
    return {"sync_r": matches[lag], "sync_lag": float(lag), "sync_far_r": far}


def wrong(figures: dict[str, float], limits: Limits) -> Reason | None:
    """First thing that is wrong with a clip of these figures; None = it can be used."""
    checks: tuple[tuple[Reason, bool], ...] = (
        ("dark", figures["face_light"] < limits.dark_light),
        ("bright", figures["face_light"] > limits.bright_light),
        ("flat", figures["contrast"] < limits.flat_contrast),
        ("blurred", figures["blur"] > limits.blur),
        ("frozen", figures["still_run"] > limits.still_pictures or figures["still_share"] > limits.still_share),
        ("silent", figures["loud_db"] < limits.silent_db),
        ("no_speech", figures["voiced_share"] < limits.voiced_share),
        ("no_speech", figures["level_spread_db"] < limits.level_spread_db),
        ("clipped", figures["clipped_share"] > limits.clipped_share),
        ("off_sync", "sync_r" in figures and figures["sync_r"] < max(limits.sync_r, figures["sync_far_r"])),
    )
    return next((reason for reason, holds in checks if holds), None)


def head_travel(pictures: np.ndarray, face: FaceBox) -> float:
    """How much eyes and brows move about in a clip: deviation of their shift, in thousandths of a picture side."""
    cv = opencv()
    upper = FaceBox(face.column, face.row - 0.1 * face.side, 0.6 * face.side).of(pictures)
    light = luminance(upper)[:, : round(0.65 * upper.shape[1])]
    taper = cv.createHanningWindow(light.shape[:0:-1], cv.CV_32F)
    middle = np.ascontiguousarray(light[len(light) // 2])
    shifts = [cv.phaseCorrelate(middle, np.ascontiguousarray(one), taper)[0] for one in light]
    return float(1000 * np.hypot(*np.std(shifts, axis=0)) / pictures.shape[1])


def _autocorrelation(rows: np.ndarray) -> Any:
    return np.fft.irfft(np.abs(np.fft.rfft(rows, 2 * rows.shape[1], axis=1)) ** 2, axis=1)
