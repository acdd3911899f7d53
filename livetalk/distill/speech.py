"""Endless labelled speech: sentences spoken by many synthetic voices, with the mouth that says them.

Words, voice and pauses of a clip follow from its seed. Its samples and phoneme times do so only nearly: espeak-ng
carries oscillators from one utterance to the next, which moves sounds by some hundredths of a second; the labels
always belong to the very samples they come with. Voices and sentences of the held-out set are never trained on.
The module knows nothing of pictures or networks; it needs espeak-ng and flite (see ``livetalk.voice``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import soxr

from livetalk.distill.lexicon import sentence
from livetalk.distill.visemes import REST, Phoneme, mouth_track
from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND
from livetalk.voice import speak

HELD_OUT_SEED = 9_000_000  # seeds from here on are for evaluation only
HELD_OUT_VOICES = ("flite:slt", "espeak:en-us+m7")
FLITE_SHARE = 0.45
SILENT_SHARE = 0.03
_FLITE_TRAINING = ("rms", "awb", "kal16")
_ESPEAK_ENGLISH = ("en-us", "en-us", "en-us", "en-gb", "en-gb-scotland")
_ESPEAK_VARIANTS = (
    "", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m8", "+Alicia", "+Andy",
    "+Annie", "+Denis", "+Hugo", "+Lee", "+Mario", "+Michael", "+belinda", "+boris", "+john", "+linda", "+steph",
    "+edward", "+anika", "+grandma", "+grandpa", "+rob", "+victor",
)  # fmt: skip
_ESPEAK_FOREIGN = {"de": "de", "fr": "fr-fr", "es": "es", "it": "it"}


@dataclass(frozen=True)
class SpeechClip:
    """Speech with its mouth.

    Attributes:
        samples: float32 [seconds * MODEL_RATE], -1..1.
        mouth: float32 [T, 3] (open, wide, teeth) at the middle of every picture, see ``visemes``.
        voice: name of the voice, "" for a clip without speech.
        text: what is said.
    """

    samples: np.ndarray
    mouth: np.ndarray
    voice: str
    text: str


@dataclass(frozen=True)
class Speaker:
    """A voice with its manner. ``tract`` > 1 plays it faster and higher: a smaller person; tempo is kept."""

    voice: str
    language: str
    rate_wpm: float
    pitch: float
    tract: float


def speech_clip(seed: int, seconds: float, held_out: bool = False, voice: str | None = None) -> SpeechClip:
    """A clip of exactly ``seconds`` seconds: lead-in silence, sentences, pauses.

    Args:
        seed: everything follows from it; below ``HELD_OUT_SEED`` for training, from there on for evaluation.
        seconds: length, rounded to whole pictures.
        held_out: sentences (and, unless ``voice`` is given, a voice) that training never uses.
        voice: speak with this voice instead of a random one.

    Raises:
        ValueError: the seed is on the wrong side of ``HELD_OUT_SEED``.
        LiveTalkError: the speech engine is missing.
    """
    if held_out != (seed >= HELD_OUT_SEED):
        raise ValueError(f"seed {seed}: held-out clips use seeds from {HELD_OUT_SEED}, training clips smaller ones")
    rng = random.Random(seed)
    pictures = round(seconds * PICTURES_PER_SECOND)
    samples = np.zeros(pictures * MODEL_RATE // PICTURES_PER_SECOND, np.float32)
    if not held_out and voice is None and rng.random() < SILENT_SHARE:
        return _silent_clip(samples, pictures, rng)
    speaker = _choose_speaker(rng, held_out, voice)
    phonemes: list[Phoneme] = []
    said: list[str] = []
    clock_s = rng.uniform(1.0, 2.5) if rng.random() < 0.08 else rng.uniform(0.1, 0.6)
    while clock_s < seconds:
        text = sentence(rng, speaker.language, held_out)
        sound, times = say(speaker, text)
        start = round(clock_s * MODEL_RATE)
        part = sound[: max(0, len(samples) - start)]
        samples[start : start + len(part)] += part
        phonemes += [(clock_s + a, clock_s + b, symbol) for a, b, symbol in times]
        said.append(text)
        clock_s += len(sound) / MODEL_RATE + (rng.uniform(0.2, 0.6) if rng.random() < 0.7 else rng.uniform(0.6, 1.5))
    mouth = mouth_track(phonemes, samples, pictures, flite=speaker.voice.startswith("flite"))
    return SpeechClip(samples, mouth, speaker.voice, " ".join(said))


def say(speaker: Speaker, text: str) -> tuple[np.ndarray, list[Phoneme]]:
    """Sound at ``MODEL_RATE`` (float32) and phoneme times of a text in a speaker's manner."""
    spoken = speak(text, speaker.voice, speaker.rate_wpm / speaker.tract, speaker.pitch)
    if speaker.tract == 1:
        return spoken.samples, spoken.phonemes
    samples = soxr.resample(spoken.samples, MODEL_RATE * speaker.tract, MODEL_RATE)
    times = [(a / speaker.tract, b / speaker.tract, symbol) for a, b, symbol in spoken.phonemes]
    return samples.astype(np.float32), times


def augment(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another microphone, room and distance: gain, equaliser, reverberation and noise. Labels stay true.

    Args:
        samples: float32 [samples] at ``MODEL_RATE``.
        rng: source of all choices.

    Returns:
        float32 [samples], -1..1.
    """
    sound: np.ndarray = samples.astype(np.float32)
    count = len(sound)
    if rng.random() < 0.75:
        spectrum = np.fft.rfft(sound, count + MODEL_RATE // 4) * _equaliser(rng, (count + MODEL_RATE // 4) // 2 + 1)
        if rng.random() < 0.5:
            spectrum *= np.fft.rfft(_room(rng), count + MODEL_RATE // 4)
        sound = np.fft.irfft(spectrum, count + MODEL_RATE // 4)[:count].astype(np.float32)
    level = float(np.sqrt(np.mean(np.square(sound)))) + 1e-4
    if rng.random() < 0.65:
        sound = sound + _noise(rng, count) * np.float32(level * 10 ** (-rng.uniform(8, 45) / 20))
    sound = sound * np.float32(10 ** (rng.uniform(-18, 10) / 20))
    return np.clip(sound, -1, 1).astype(np.float32)


def _choose_speaker(rng: random.Random, held_out: bool, voice: str | None) -> Speaker:
    rate_wpm = rng.uniform(130, 190)
    pitch = 2 ** rng.uniform(-0.4, 0.4)
    if held_out or voice is not None:
        name = voice or rng.choice(HELD_OUT_VOICES)
        return Speaker(name, "en", rate_wpm, 2 ** rng.uniform(-0.1, 0.1), 1.0)
    if rng.random() < FLITE_SHARE:
        # Only three recorded speakers to train on: make smaller and larger people out of them.
        return Speaker(f"flite:{rng.choice(_FLITE_TRAINING)}", "en", rate_wpm, pitch, rng.uniform(0.9, 1.25))
    tract = rng.uniform(0.93, 1.08)
    if rng.random() < 0.2:
        language = rng.choice(sorted(_ESPEAK_FOREIGN))
        variant = rng.choice(_ESPEAK_VARIANTS)
        return Speaker(f"espeak:{_ESPEAK_FOREIGN[language]}{variant}", language, rate_wpm, pitch, tract)
    name = rng.choice(_ESPEAK_ENGLISH) + rng.choice(_ESPEAK_VARIANTS)
    return Speaker(f"espeak:{name}", "en", rate_wpm, pitch, tract)


def _silent_clip(samples: np.ndarray, pictures: int, rng: random.Random) -> SpeechClip:
    """Nobody speaks: digital silence or faint noise; the mouth stays shut."""
    if rng.random() < 0.6:
        noise = _noise(np.random.default_rng(rng.getrandbits(32)), len(samples))
        samples = (noise * 10 ** (rng.uniform(-80, -35) / 20)).astype(np.float32)
    return SpeechClip(samples, np.tile(np.asarray(REST, np.float32), (pictures, 1)), "", "")


def _noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Noise of unit level, from white (slope 0) to red (slope 1 on the amplitude)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum *= (np.arange(len(spectrum)) + 20.0) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, count)
    return (noise / (noise.std() + 1e-12)).astype(np.float32)


def _equaliser(rng: np.random.Generator, bins: int) -> np.ndarray:
    """Smooth gain curve over frequency: +-7 dB at seven points, at times the band of a telephone."""
    hz = np.linspace(0, MODEL_RATE / 2, bins)
    points_hz = np.array([60, 150, 400, 1000, 2200, 4200, 7500])
    gain_db = np.interp(np.log(hz + 1), np.log(points_hz), rng.uniform(-7, 7, len(points_hz)))
    if rng.random() < 0.15:
        gain_db = gain_db - 35 * np.clip((hz - rng.uniform(3000, 4500)) / 600, 0, 1)
    return 10 ** (gain_db / 20)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response: direct sound, then noise fading by 60 dB within 0.08 to 0.35 s."""
    decay_s = rng.uniform(0.08, 0.35)
    t = np.arange(int(0.24 * MODEL_RATE)) / MODEL_RATE
    tail = rng.standard_normal(len(t)) * np.exp(-6.9 * t / decay_s)
    tail *= rng.uniform(0.1, 0.7) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    tail[0] = 1.0
    return tail
