"""Rulers: what a frozen probe network reads off pictures, and plain measures on tracks and pictures.

``Probe`` reads pictures of the embedded model's illustrated people into a ``Reading``; everything else is arithmetic.
Pictures are uint8 [T, H, W, 3]; tracks are one number per picture.

This room does not know how pictures were made or what was said; training the probe is ``distill.rulers``.
"""

from livetalk.rulers.frechet import Gaussian, clip_features, frechet_distance, gaussian
from livetalk.rulers.motion import motion_amount, motion_diversity, motion_spread, motion_tracks
from livetalk.rulers.pictures import (
    CELLS,
    EYES,
    MOUTH,
    Box,
    black_frames,
    brightness,
    cell_means,
    darkest,
    flicker,
    flicker_ratio,
    identity,
    identity_distance,
    longest_still_s,
    luminance,
    psnr,
    sharpness,
    sharpness_ratio,
    still_cells,
)
from livetalk.rulers.probe import MOODS, PROBE_FILE, PROBE_SIZE, Probe, Reading, mood
from livetalk.rulers.tracks import (
    Interval,
    Sync,
    amplitude_ratio,
    best_lag,
    blinks_per_minute,
    bootstrap_interval,
    closed_in_silence,
    correlation,
    longest_run,
    over_clips,
    shifted_correlation,
    sync,
)

__all__ = [
    "CELLS",
    "EYES",
    "MOODS",
    "MOUTH",
    "PROBE_FILE",
    "PROBE_SIZE",
    "Box",
    "Gaussian",
    "Interval",
    "Probe",
    "Reading",
    "Sync",
    "amplitude_ratio",
    "best_lag",
    "black_frames",
    "blinks_per_minute",
    "bootstrap_interval",
    "brightness",
    "cell_means",
    "clip_features",
    "closed_in_silence",
    "correlation",
    "darkest",
    "flicker",
    "flicker_ratio",
    "frechet_distance",
    "gaussian",
    "identity",
    "identity_distance",
    "longest_run",
    "longest_still_s",
    "luminance",
    "mood",
    "motion_amount",
    "motion_diversity",
    "motion_spread",
    "motion_tracks",
    "over_clips",
    "psnr",
    "sharpness",
    "sharpness_ratio",
    "shifted_correlation",
    "still_cells",
    "sync",
]
