"""Videos in: any file PyAV reads, as pictures at 16 a second and mono sound at 16 kHz, in lockstep.

Time 0 is the first picture of the file. Picture k is what a viewer sees at (k + 1/2) / 16 s, its sound are the 1000
samples from k / 16 s on, wherever the container has put them; where there is no sound there are zeros. One block is
held at a time, so that an hour costs no more memory than a second. This module does not know what is to be seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from livetalk.media.sound import StreamResampler
from livetalk.types import MODEL_RATE, MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_SECOND, LiveTalkError

EXPECTED = "Expected a video file with a talking person (MP4, MOV, MKV, WebM, AVI, ...)."
MISSING_S = 1.0
"""A file whose pictures end this much before the length it states is cut off."""

LONGEST_GAP_S = 600.0
"""Tracks with longer holes have broken time stamps."""

_JITTER_S = 0.02
_SIZE_STEP = 2


@dataclass(frozen=True)
class VideoBlock:
    """A stretch of a video.

    Attributes:
        first_picture: index of its first picture, counted from the start of the file.
        pictures: uint8 ``[T, H, W, 3]``, upright.
        sound: float32 ``[T * 1000]`` at ``MODEL_RATE``.
    """

    first_picture: int
    pictures: np.ndarray
    sound: np.ndarray


@dataclass(frozen=True)
class VideoFacts:
    """What a file says about itself: upright size in pixels, length (None if it does not say) and sound."""

    height: int
    width: int
    length_s: float | None
    has_sound: bool


def video_facts(path: str | Path) -> VideoFacts:
    """Size, length and sound of a video, from its first picture and its header.

    Raises:
        LiveTalkError: no such file, empty, no video or no picture in it.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        first = next((_upright(picture) for picture in _decoded(path, container, stream)), None)
        if first is None:
            raise _unreadable(path, "no picture can be decoded")
        seconds = None if container.duration is None else container.duration / av.time_base
        return VideoFacts(first.shape[0], first.shape[1], seconds, bool(container.streams.audio))


def video_blocks(
    path: str | Path, pictures: int = PICTURES_PER_SECOND, largest_side: int | None = None
) -> Iterator[VideoBlock]:
    """The video in blocks of ``pictures`` pictures and their sound; the last one may be shorter.

    Args:
        path: any container and codec PyAV reads.
        pictures: pictures of a block.
        largest_side: pictures with a longer side are shrunk to it, which is cheaper than doing so later.

    Raises:
        LiveTalkError: no such file, empty, no video in it, damaged, or cut off (its pictures end more than
            ``MISSING_S`` before the length it states); the blocks before that point have been given.
    """
    sound = _Sound(path)
    gathered: list[np.ndarray] = []
    first = 0
    for picture in _pictures(path, largest_side):
        gathered.append(picture)
        if len(gathered) == pictures:
            yield VideoBlock(first, np.stack(gathered), sound.take(len(gathered)))
            first, gathered = first + len(gathered), []
    if gathered:
        yield VideoBlock(first, np.stack(gathered), sound.take(len(gathered)))


def _pictures(path: str | Path, largest_side: int | None) -> Iterator[np.ndarray]:
    """Upright pictures at ``PICTURES_PER_SECOND``: for every tick the last one whose time has come."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shown: Any = None
        start_s = end_s = 0.0
        given = 0
        for frame in _decoded(path, container, stream):
            at_s = end_s if frame.time is None else float(frame.time)
            if shown is None:
                start_s = end_s = at_s
            if at_s - end_s > LONGEST_GAP_S:
                raise _unreadable(path, f"its pictures jump by {at_s - end_s:.0f} s")
            due = _ticks_before(at_s - start_s)
            if shown is not None and given < due:
                yield from itertools.repeat(_upright(shown, largest_side), due - given)
                given = due
            shown = frame
            lasts_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            end_s = max(end_s, at_s + (lasts_s or 1 / float(stream.average_rate or PICTURES_PER_SECOND)))
        if shown is None:
            raise _unreadable(path, "no picture can be decoded")
        yield from itertools.repeat(_upright(shown, largest_side), _ticks_before(end_s - start_s) - given)
        stated_s = _stated_s(container, stream)
        if stated_s is not None and end_s - start_s < stated_s - MISSING_S:
            raise _unreadable(path, f"it is cut off: {stated_s:.1f} s are stated, {end_s - start_s:.1f} s can be read")


def _ticks_before(length_s: float) -> int:
    """How many pictures have their middle before that time."""
    return max(0, math.ceil(length_s * PICTURES_PER_SECOND - 0.5))


def _stated_s(container: Any, stream: Any) -> float | None:
    """Length of the picture track, else of the file."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


class _Sound:
    """The sound track of a file from the time of its first picture on, taken picture by picture."""

    def __init__(self, path: str | Path) -> None:
        self._blocks = _placed_sound(path)
        self._held = np.zeros(0, np.float32)

    def take(self, pictures: int) -> np.ndarray:
        """The next ``pictures * 1000`` samples, zeros behind the end of the track."""
        wanted = pictures * MODEL_SAMPLES_PER_PICTURE
        parts, count = [self._held], len(self._held)
        while count < wanted:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros(wanted - count, np.float32)
            parts.append(block)
            count += len(block)
        joined = np.concatenate(parts)
        self._held = joined[wanted:]
        return joined[:wanted]


def _placed_sound(path: str | Path) -> Iterator[np.ndarray]:
    """Mono samples at ``MODEL_RATE`` on the pictures' clock: gaps are filled with zeros, overlaps dropped."""
    with _opened(path) as container:
        if not container.streams.audio:
            return
        start_s = _first_picture_s(path)
        to_mono = av.AudioResampler(format="flt", layout="mono")
        resampler: StreamResampler | None = None
        placed = 0
        for frame in _decoded(path, container, container.streams.audio[0]):
            rate = frame.sample_rate
            resampler = resampler or StreamResampler(rate, MODEL_RATE)
            samples = np.concatenate([part.to_ndarray().reshape(-1) for part in to_mono.resample(frame)] or [_NOTHING])
            ahead = 0 if frame.time is None else round((float(frame.time) - start_s) * rate) - placed
            if ahead > LONGEST_GAP_S * rate:
                raise _unreadable(path, f"its sound jumps by {ahead / rate:.0f} s")
            if abs(ahead) > _JITTER_S * rate:  # less is rounding of time stamps
                samples = np.concatenate([np.zeros(ahead, np.float32), samples]) if ahead > 0 else samples[-ahead:]
            placed += len(samples)
            yield np.clip(np.nan_to_num(resampler.push(samples)), -1.0, 1.0)
        if resampler is not None:
            yield resampler.finish()


_NOTHING = np.zeros(0, np.float32)


def _first_picture_s(path: str | Path) -> float:
    with _opened(path) as container:
        stream = container.streams.video[0]
        for frame in _decoded(path, container, stream):
            return 0.0 if frame.time is None else float(frame.time)
    return 0.0


def _upright(frame: Any, largest_side: int | None = None) -> np.ndarray:
    """Pixels ``[H, W, 3]`` of a decoded picture, turned as the file asks."""
    height, width = frame.height, frame.width
    shrink = 1.0 if largest_side is None else min(1.0, largest_side / max(height, width))
    if shrink < 1.0:
        height, width = (max(_SIZE_STEP, _SIZE_STEP * round(side * shrink / _SIZE_STEP)) for side in (height, width))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA" if shrink < 1 else None)
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _opened(path: str | Path) -> Any:
    """The container, with at least one video track.

    Raises:
        LiveTalkError: no such file, empty, or no video.
    """
    try:
        if Path(path).stat().st_size == 0:
            raise _unreadable(path, "the file is empty, 0 bytes")
        container = av.open(str(path), "r")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    if not container.streams.video:
        container.close()
        raise _unreadable(path, "it has no pictures")
    return container


def _decoded(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a track, decoder's errors as sentences."""
    try:
        yield from container.decode(stream)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, f"it is damaged: {getattr(error, 'strerror', None) or error}") from error


def _unreadable(path: str | Path, reason: str) -> LiveTalkError:
    return LiveTalkError(f"The video {Path(path).name!r} could not be read ({reason}). {EXPECTED}")
