"""Speech in: any sound file or samples, as mono float32 blocks at the rate the caller wants.

WAV, FLAC and OGG are read by soundfile, everything else by PyAV. Reading and resampling hold one block at a time, so
a clip of any length costs constant memory. The resampler gives the same samples however its input was split.
This module does not know what the speech is for.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr

from livetalk.types import PICTURES_PER_SECOND, LiveTalkError

BLOCK_S = 1.0
UNKNOWN_FRAMES = 2**60
"""Counts from here on mean that a stream does not say how long it is."""
SHORTEST_S = 1.0 / PICTURES_PER_SECOND
EXPECTED = "Expected a sound file with speech (WAV, FLAC, OGG, MP3, M4A, WebM, ...)."

SpeechSource = str | Path | bytes | tuple[np.ndarray, int]


class StreamResampler:
    """Mono float32 samples from one rate to another, packet by packet.

    The concatenated output is bit for bit independent of how the input was split into packets.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self.source_rate, self.target_rate = source_rate, target_rate
        self._stream = (
            None if source_rate == target_rate else soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32")
        )

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Output that ``samples`` (float32 ``[n]``) made available; some stays inside until more comes."""
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        if self._stream is None:
            return samples
        return self._stream.resample_chunk(samples) if samples.size else samples

    def finish(self) -> np.ndarray:
        """The rest of the output; the resampler starts anew afterwards."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        self._stream = soxr.ResampleStream(self.source_rate, self.target_rate, 1, dtype="float32")
        return rest


def speech_blocks(source: SpeechSource, rate: int, limit_s: float | None = None) -> Iterator[np.ndarray]:
    """Speech as mono float32 blocks of about a second at ``rate`` Hz, in constant memory.

    Args:
        source: path, the bytes of a file, or ``(samples, sample_rate)`` with samples ``[n]`` or ``[n, channels]``
            (integers are scaled to -1..1).
        rate: wanted sample rate in Hz.
        limit_s: longest speech accepted, in seconds; None = any length.

    Raises:
        LiveTalkError: unreadable, empty, shorter than one picture, not finite, or beyond ``limit_s``.
    """
    name = _name(source)
    resampler: StreamResampler | None = None
    heard_s = 0.0
    _check_limit(name, duration_s(source), limit_s)  # what the file says first: hours need not be read to be refused
    try:
        for samples, source_rate in _raw_blocks(source):
            mono = _mono(samples)
            if not np.isfinite(mono).all():
                raise LiveTalkError(
                    f"{name} contains samples that are not finite numbers (NaN or infinity). "
                    "Expected sound between -1 and 1. Export it again from the program that made it."
                )
            heard_s += len(mono) / source_rate
            _check_limit(name, heard_s, limit_s)
            if resampler is None:
                resampler = StreamResampler(source_rate, rate)
            yield np.clip(resampler.push(mono), -1.0, 1.0)
    except (soundfile.LibsndfileError, av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise LiveTalkError(f"{name} could not be read as sound ({error}). {EXPECTED}") from error
    if heard_s < SHORTEST_S:
        raise LiveTalkError(
            f"{name} holds {1000 * heard_s:.0f} ms of sound. Expected at least {1000 * SHORTEST_S:.0f} ms, "
            "the length of one picture. Give a longer clip."
        )
    if resampler is not None:
        yield np.clip(resampler.finish(), -1.0, 1.0)


def load_speech(source: SpeechSource, rate: int, limit_s: float | None = None) -> np.ndarray:
    """All of :func:`speech_blocks` as one array ``[n]``; for clips that fit into memory."""
    return np.concatenate(list(speech_blocks(source, rate, limit_s)))


def duration_s(source: SpeechSource) -> float | None:
    """Length of the speech in seconds as the container says it, else None; it may be wrong in a damaged file."""
    if isinstance(source, tuple):
        return len(source[0]) / source[1] if source[1] > 0 else None
    try:
        found = soundfile.info(_opened(source))
        return found.frames / found.samplerate if found.frames < UNKNOWN_FRAMES else None
    except (soundfile.LibsndfileError, OSError, ValueError, ZeroDivisionError):
        pass
    try:
        with av.open(_opened(source), "r") as container:
            return None if container.duration is None else container.duration / av.time_base
    except (av.FFmpegError, OSError, ValueError):
        return None


def write_speech(path: str | Path, samples: np.ndarray, rate: int) -> None:
    """Write mono float32 samples ``[n]`` as WAV, FLAC or OGG, by the file name's ending."""
    try:
        soundfile.write(str(path), samples, rate)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        raise LiveTalkError(f"Could not write sound to {path} ({error}). Use .wav, .flac or .ogg.") from error


def _check_limit(name: str, length_s: float | None, limit_s: float | None) -> None:
    if limit_s is not None and length_s is not None and length_s > limit_s:
        raise LiveTalkError(
            f"{name} is longer than the limit of {_spoken_length(limit_s)}. Cut it into shorter clips, "
            "or use the command line (python -m livetalk render), which takes any length."
        )


def _name(source: SpeechSource) -> str:
    return f"The speech file {Path(source).name!r}" if isinstance(source, (str, Path)) else "The speech"


def _spoken_length(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"


def _opened(source: str | Path | bytes) -> str | BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _mono(samples: np.ndarray) -> np.ndarray:
    """Mono float32 of ``[n]`` or ``[n, channels]``; integers are scaled by their type's range."""
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)
    samples = samples.astype(np.float32, copy=False)
    return samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)


def _raw_blocks(source: SpeechSource) -> Iterable[tuple[np.ndarray, int]]:
    """Blocks ``([n] or [n, channels], sample_rate)`` as they are in the source."""
    if isinstance(source, tuple):
        samples, rate = np.asarray(source[0]), int(source[1])
        if rate <= 0 or samples.ndim not in (1, 2):
            raise ValueError(f"samples of shape {samples.shape} at {rate} Hz")
        step = max(1, int(rate * BLOCK_S))
        return ((samples[at : at + step], rate) for at in range(0, len(samples), step))
    if isinstance(source, bytes) and not source:
        raise ValueError("it is empty")
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_file():
            raise ValueError("there is no such file")
        if path.stat().st_size == 0:
            raise ValueError("the file is empty, 0 bytes")
    try:
        soundfile.info(_opened(source))
    except soundfile.LibsndfileError:
        return _pyav_blocks(source)
    return _soundfile_blocks(source)


def _soundfile_blocks(source: str | Path | bytes) -> Iterator[tuple[np.ndarray, int]]:
    with soundfile.SoundFile(_opened(source)) as file:
        for block in file.blocks(int(file.samplerate * BLOCK_S), dtype="float32"):
            yield block, file.samplerate


def _pyav_blocks(source: str | Path | bytes) -> Iterator[tuple[np.ndarray, int]]:
    with av.open(_opened(source), "r") as container:
        if not container.streams.audio:
            raise ValueError("it has no sound track")
        resampler = av.AudioResampler(format="flt", layout="mono")
        for frame in container.decode(audio=0):
            for mono in resampler.resample(frame):
                yield mono.to_ndarray().reshape(-1), mono.sample_rate
