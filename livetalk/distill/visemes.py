"""From phonemes to a mouth: (open, wide, teeth) at the middle of every picture.

``open`` 0..1: 0 = lips together, 1 = as far open as speech goes. ``wide`` 0..1: 0 = rounded (oo), 0.5 = at rest,
1 = spread (ee). ``teeth`` 0..1: how much of them shows. Each sound has a target; targets are joined linearly between
sound centres and smoothed; consonants borrow from the vowels around them (coarticulation). The module knows
IPA and flite's phones, but nothing of pictures or of how the sound was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND

REST = (0.0, 0.5, 0.0)
GRID_HZ = 200
SMOOTHING_S = 0.020
CLOSURE_S = 0.056
REACH_S = 0.30  # how far a consonant looks for vowels to lean on
REST_MARGIN_S = 0.055  # a pause starts and ends with a moving mouth


@dataclass(frozen=True)
class Sound:
    """Target of one sound; ``firm`` 1 keeps it whatever the neighbours, 0 follows the vowels around it."""

    open: float
    wide: float
    teeth: float
    firm: float = 1.0
    vowel: bool = False
    closed: bool = False


def _vowel(open_: float, wide: float, teeth: float) -> Sound:
    return Sound(open_, wide, teeth, vowel=True)


_SOUNDS: dict[str, Sound] = {
    **dict.fromkeys("aɑ", _vowel(0.98, 0.52, 0.30)),
    "æ": _vowel(0.88, 0.74, 0.45),
    "ɐ": _vowel(0.72, 0.50, 0.28),
    "ʌ": _vowel(0.72, 0.48, 0.28),
    "ɛ": _vowel(0.64, 0.76, 0.48),
    "e": _vowel(0.52, 0.86, 0.50),
    "ɪ": _vowel(0.40, 0.80, 0.52),
    "i": _vowel(0.28, 1.00, 0.60),
    "ɨ": _vowel(0.32, 0.72, 0.45),
    "ə": _vowel(0.42, 0.50, 0.30),
    "ɜ": _vowel(0.46, 0.36, 0.35),
    "ɚ": _vowel(0.40, 0.30, 0.35),
    "ɔ": _vowel(0.74, 0.16, 0.12),
    "ɒ": _vowel(0.84, 0.30, 0.18),
    "o": _vowel(0.56, 0.06, 0.06),
    "ʊ": _vowel(0.36, 0.12, 0.10),
    "u": _vowel(0.24, 0.00, 0.02),
    "y": _vowel(0.24, 0.04, 0.10),
    "ø": _vowel(0.42, 0.08, 0.12),
    "œ": _vowel(0.58, 0.14, 0.18),
    **dict.fromkeys("pbm", Sound(0.0, 0.50, 0.0, firm=0.3, closed=True)),
    **dict.fromkeys("fvɱ", Sound(0.10, 0.56, 0.85, firm=0.7)),
    **dict.fromkeys("βʋ", Sound(0.14, 0.50, 0.40, firm=0.5)),
    **dict.fromkeys("θðɗ", Sound(0.26, 0.56, 0.65, firm=0.5)),
    **dict.fromkeys("sz", Sound(0.16, 0.78, 0.95, firm=0.7)),
    **dict.fromkeys("ʃʒɕʑ", Sound(0.24, 0.14, 0.85, firm=0.85)),
    **dict.fromkeys("tdnɾʔ", Sound(0.24, 0.60, 0.55, firm=0.35)),
    **dict.fromkeys("lɫʎ", Sound(0.32, 0.56, 0.45, firm=0.35)),
    **dict.fromkeys("kɡgŋxɣqcɟçɲ", Sound(0.30, 0.52, 0.30, firm=0.2)),
    **dict.fromkeys("rɹʁɻʀ", Sound(0.32, 0.26, 0.30, firm=0.55)),
    "w": Sound(0.16, 0.00, 0.02, firm=0.95),
    "ɥ": Sound(0.16, 0.04, 0.05, firm=0.9),
    "j": Sound(0.26, 0.92, 0.50, firm=0.8),
    "h": Sound(0.36, 0.50, 0.25, firm=0.0),
}

# flite's phones (CMU, US English) in IPA; two letters are two halves of the sound.
_FLITE = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "b": "b", "ch": "tʃ",
    "d": "d", "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "l", "em": "m", "en": "n", "er": "ɜɹ", "ey": "eɪ", "f": "f",
    "g": "ɡ", "hh": "h", "hv": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n",
    "ng": "ŋ", "nx": "n", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ",
    "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": "", "ssil": "", "sil": "",
}  # fmt: skip
_UNKNOWN = Sound(0.36, 0.5, 0.3, firm=0.5)

Phoneme = tuple[float, float, str]


def mouth_track(phonemes: Sequence[Phoneme], samples: np.ndarray, pictures: int, flite: bool = False) -> np.ndarray:
    """Mouth of every picture.

    Args:
        phonemes: (start_s, end_s, symbol) in order; time not covered is silence.
        samples: the sound at ``MODEL_RATE`` they belong to, for its loudness.
        pictures: number of pictures T.
        flite: symbols are flite's phones rather than IPA.

    Returns:
        float32 [T, 3]: (open, wide, teeth) at the middle of every picture.
    """
    ticks = np.arange(int(np.ceil(pictures / PICTURES_PER_SECOND * GRID_HZ)) + 1) / GRID_HZ
    placed = _place(phonemes, flite)
    if not placed:
        return np.tile(np.asarray(REST, np.float32), (pictures, 1))
    times, targets = _keys(placed, float(ticks[-1]))
    curves = np.stack([_smooth(np.interp(ticks, times, targets[:, k])) for k in range(3)], axis=1)
    curves[:, 0] *= _loudness_scale(samples, ticks)
    curves[:, 0] *= _closure(placed, ticks)
    middles = (np.arange(pictures) + 0.5) / PICTURES_PER_SECOND
    mouth = np.stack([np.interp(middles, ticks, curves[:, k]) for k in range(3)], axis=1)
    return np.clip(mouth, 0, 1).astype(np.float32)


def _place(phonemes: Sequence[Phoneme], flite: bool) -> list[tuple[float, float, Sound | None]]:
    """Sounds with their times; None = pause. Diphthongs become two sounds; gaps become pauses."""
    placed: list[tuple[float, float, Sound | None]] = []
    clock_s = 0.0
    for start_s, end_s, symbol in phonemes:
        if start_s - clock_s > 0.02:
            placed.append((clock_s, start_s, None))
        clock_s = end_s
        ipa = _FLITE.get(symbol, "?") if flite else symbol
        # Marks of length, stress, tie and nasality are no sounds of their own.
        letters = [_SOUNDS.get(c, _UNKNOWN) for c in ipa if c in _SOUNDS or c == "?"]
        if not ipa:
            placed.append((start_s, end_s, None))
        step = (end_s - start_s) / max(1, len(letters))
        placed += [(start_s + k * step, start_s + (k + 1) * step, sound) for k, sound in enumerate(letters)]
    return placed


def _keys(placed: list[tuple[float, float, Sound | None]], end_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Times [K] and targets [K, 3] to interpolate between; the mouth rests before and after."""
    vowels = [((start + end) / 2, sound) for start, end, sound in placed if sound is not None and sound.vowel]
    centres = np.array([centre for centre, _ in vowels])
    shapes = np.array([(sound.open, sound.wide, sound.teeth) for _, sound in vowels])
    keys: list[tuple[float, tuple[float, float, float]]] = [(0.0, REST)]
    for start_s, stop_s, sound in placed:
        if sound is None:
            margin = min(REST_MARGIN_S, (stop_s - start_s) / 2.5)
            keys += [(start_s + margin, REST), (stop_s - margin, REST)]
        else:
            middle = (start_s + stop_s) / 2
            keys.append((middle, _lean(sound, middle, centres, shapes)))
    last_s = placed[-1][1]
    keys += [(last_s + REST_MARGIN_S, REST), (max(end_s, last_s + 0.1), REST)]
    return np.array([t for t, _ in keys]), np.array([target for _, target in keys])


def _lean(sound: Sound, at_s: float, centres: np.ndarray, shapes: np.ndarray) -> tuple[float, float, float]:
    """Target of a sound after it borrowed from the vowels within ``REACH_S``, near ones more."""
    own = (sound.open, sound.wide, sound.teeth)
    if sound.vowel or sound.firm >= 1 or not len(centres):
        return own
    weights = np.clip(1 - np.abs(centres - at_s) / REACH_S, 0, None)
    if weights.sum() <= 0:
        return own
    around = (weights[:, None] * shapes).sum(0) / weights.sum()
    loose = 1 - sound.firm
    opened = own[0] if sound.closed else own[0] + 0.5 * loose * (float(around[0]) * 0.8 - own[0])
    return opened, sound.firm * own[1] + loose * float(around[1]), own[2] + 0.3 * loose * (float(around[2]) - own[2])


def _smooth(curve: np.ndarray, sigma_s: float = SMOOTHING_S) -> np.ndarray:
    reach = int(np.ceil(3 * sigma_s * GRID_HZ))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma_s * GRID_HZ)) ** 2)
    return np.convolve(np.pad(curve, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def _loudness_scale(samples: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """0.6 (25 dB under the loud parts) .. 1.12 (as loud as they), over 50 ms, smoothed."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    centres = np.round(ticks * MODEL_RATE).astype(int)
    half = MODEL_RATE // 40
    low, high = np.clip(centres - half, 0, len(samples)), np.clip(centres + half, 0, len(samples))
    level_db = 10 * np.log10((energy[high] - energy[low]) / (2 * half) + 1e-9)
    loud = level_db[level_db > -55]
    reference_db = np.percentile(loud, 90) if len(loud) else 0.0
    return _smooth(0.6 + 0.52 * np.clip(1 + (level_db - reference_db) / 25, 0, 1), 0.03)


def _closure(placed: list[tuple[float, float, Sound | None]], ticks: np.ndarray) -> np.ndarray:
    """0 for 56 ms around every p, b, m (lips together), 1 elsewhere, with 20 ms ramps."""
    allowed = np.ones_like(ticks)
    for start_s, end_s, sound in placed:
        if sound is not None and sound.closed:
            distance = np.abs(ticks - (start_s + end_s) / 2) - CLOSURE_S / 2
            allowed = np.minimum(allowed, np.clip(distance / 0.02, 0, 1))
    return allowed
