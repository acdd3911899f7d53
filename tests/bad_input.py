"""Awkward portraits, speech, prompts: made on the spot, each with what should become of it.

``outcome`` is "works", or a word that the sentence must contain.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

Make = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Case:
    """One awkward file: ``make(folder, good_file)`` writes it and returns its path."""

    name: str
    make: Make
    outcome: str


def _image(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def _bytes(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _face(good: Path) -> Image.Image:
    return Image.open(good).convert("RGB").resize((256, 256))


def _sixteen_bit(folder: Path, good: Path) -> Path:
    grey = np.asarray(_face(good).convert("L")).astype(np.uint16) * 257
    return _image(folder, "sixteen.png", Image.fromarray(grey))


def _animated(folder: Path, good: Path) -> Path:
    face = _face(good)
    return _image(folder, "moving.gif", face, save_all=True, append_images=[face.rotate(90)], duration=100)


def _rotated(folder: Path, good: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _image(folder, "rotated.jpg", _face(good).rotate(90), exif=exif)


def _transparent(folder: Path, good: Path) -> Path:
    face = _face(good)
    face.putalpha(Image.linear_gradient("L").resize(face.size))
    return _image(folder, "alpha.png", face)


PORTRAITS = [
    Case("empty", lambda d, g: _bytes(d, "empty.png", b""), "empty"),
    Case("truncated", lambda d, g: _bytes(d, "cut.png", g.read_bytes()[:2000]), "picture"),
    Case("text", lambda d, g: _bytes(d, "text.png", b"this is not a picture " * 40), "picture"),
    Case("sound", lambda d, g: _tone(d, "tone.png", 1.0), "picture"),
    Case("one pixel", lambda d, g: _image(d, "one.png", Image.new("RGB", (1, 1))), "small"),
    Case("huge", lambda d, g: _image(d, "huge.png", Image.new("1", (20_000, 20_000))), "40 megapixels"),
    Case("missing", lambda d, g: d / "none.png", "no such file"),
    Case("cmyk", lambda d, g: _image(d, "cmyk.jpg", _face(g).convert("CMYK")), "works"),
    Case("16 bit", _sixteen_bit, "works"),
    Case("alpha", _transparent, "works"),
    Case("animated", _animated, "works"),
    Case("exif rotated", _rotated, "works"),
]


def _samples(seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.2 * np.sin(np.arange(int(seconds * rate)) * (2 * np.pi * 220 / rate)).astype(np.float32)


def _tone(folder: Path, name: str, seconds: float) -> Path:
    data = io.BytesIO()
    soundfile.write(data, _samples(seconds), 16_000, format="WAV")
    return _bytes(folder, name, data.getvalue())


def _wav(folder: Path, name: str, samples: np.ndarray, rate: int) -> Path:
    soundfile.write(folder / name, samples, rate, subtype="FLOAT")
    return folder / name


def _stereo_8k(folder: Path, _: Path) -> Path:
    return _wav(folder, "stereo.wav", np.stack([_samples(1, 8000)] * 2, 1), 8000)


def _six_channels(folder: Path, _: Path) -> Path:
    return _wav(folder, "six.wav", np.stack([_samples(1, 96_000)] * 6, 1), 96_000)


def _two_hours(folder: Path, _: Path) -> Path:
    """Two hours of silence: 115 MB as PCM, a few hundred kB as FLAC."""
    path = folder / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(8000 * 60, np.float32))
    return path


def _truncated(folder: Path, _: Path) -> Path:
    """A header that promises more than there is: what is there is used."""
    return _bytes(folder, "cut.wav", _tone(folder, "whole.wav", 2.0).read_bytes()[:32_044])


def _header_only(folder: Path, _: Path) -> Path:
    with wave.open(str(folder / "header.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    return folder / "header.wav"


SPEECH = [
    Case("empty", lambda d, g: _bytes(d, "empty.wav", b""), "empty"),
    Case("text as wav", lambda d, g: _bytes(d, "text.wav", b"hello, this is text " * 99), "sound"),
    Case("picture", lambda d, g: _bytes(d, "face.mp3", g.read_bytes()), "sound"),
    Case("header only", _header_only, "0 ms"),
    Case("nan", lambda d, g: _wav(d, "nan.wav", np.full(16_000, np.nan, np.float32), 16_000), "finite"),
    Case("5 ms", lambda d, g: _wav(d, "short.wav", _samples(0.005), 16_000), "5 ms"),
    Case("missing", lambda d, g: d / "none.wav", "no such file"),
    Case("truncated", _truncated, "works"),
    Case("silent", lambda d, g: _wav(d, "silent.wav", np.zeros(16_000, np.float32), 16_000), "works"),
    Case("stereo 8 kHz", _stereo_8k, "works"),
    Case("6 channels 96 kHz", _six_channels, "works"),
]

TOO_LONG = Case("2 hours", _two_hours, "5 minutes")  # page and API only; the command line takes any length

PROMPTS = {
    "100 kB": "she speaks happily " * 5_300,
    "emoji": "🙂🎤 she speaks 你好 \u202e\x00",
    "blank": "   ",
}
