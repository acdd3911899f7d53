"""Clips out: pictures and sound into one mp4 (H.264 + AAC), written as they come.

A clip appears under its name only when it is whole. This module does not know where pictures come from.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, LiveTalkError


class ClipWriter:
    """Writes an mp4 of 16 pictures a second with sound; use as a context manager.

    The file is written beside its final place and moved there on success, so that nothing half-written is ever seen.
    Sound and picture are equally long within one picture.

    Raises:
        LiveTalkError: the place cannot be written, or the disk is full.
    """

    def __init__(self, path: str | Path, height: int, width: int, sound_rate: int = PLAYBACK_RATE) -> None:
        self.path = Path(path)
        self._size = (height, width)
        self._sound_rate = sound_rate
        self._pictures = 0
        self._samples = 0

    def __enter__(self) -> ClipWriter:
        if self.path.is_dir():
            raise LiveTalkError(f"{self.path} is a folder. Expected the name of an .mp4 file to write.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, self._partial = tempfile.mkstemp(suffix=".mp4", prefix=".", dir=self.path.parent)
            os.close(handle)
            self._container = av.open(self._partial, "w", format="mp4", options={"movflags": "+faststart"})
        except (OSError, av.FFmpegError) as error:
            raise self._unwritable(error) from error
        self._video = self._container.add_stream("libx264", rate=PICTURES_PER_SECOND)
        self._video.height, self._video.width = self._size
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"crf": "17", "preset": "veryfast"}
        self._sound = self._container.add_stream("aac", rate=self._sound_rate, layout="mono", bit_rate=96_000)
        return self

    def write(self, pictures: np.ndarray, sound: np.ndarray) -> None:
        """Append pictures (uint8 ``[T, H, W, 3]``) and the sound that belongs to them (float32 ``[n]``)."""
        try:
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts = self._pictures
                frame.time_base = Fraction(1, PICTURES_PER_SECOND)
                self._pictures += 1
                self._container.mux(self._video.encode(frame))
            if len(sound):
                block = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound, dtype=np.float32)[None], format="fltp", layout="mono"
                )
                block.sample_rate = self._sound_rate
                block.pts = self._samples
                block.time_base = Fraction(1, self._sound_rate)
                self._samples += len(sound)
                self._container.mux(self._sound.encode(block))
        except (OSError, av.FFmpegError) as error:
            raise self._unwritable(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._video.encode(None))
                self._container.mux(self._sound.encode(None))
            with contextlib.suppress(OSError, av.FFmpegError) if kind else contextlib.nullcontext():
                self._container.close()
            if kind is None:
                Path(self._partial).chmod(0o644)
                Path(self._partial).replace(self.path)
        except (OSError, av.FFmpegError) as failure:
            raise self._unwritable(failure) from failure
        finally:
            with contextlib.suppress(OSError):
                Path(self._partial).unlink()

    def _unwritable(self, error: Exception) -> LiveTalkError:
        return LiveTalkError(
            f"Could not write {self.path} ({getattr(error, 'strerror', None) or error}). Expected a writable folder "
            "with free space. Choose another place with --out, or make room on the disk."
        )


def write_clip(path: str | Path, pictures: np.ndarray, sound: np.ndarray, sound_rate: int = PLAYBACK_RATE) -> None:
    """Write pictures (uint8 ``[T, H, W, 3]``) with sound (float32 ``[n]``) as one mp4."""
    with ClipWriter(path, pictures.shape[1], pictures.shape[2], sound_rate) as writer:
        writer.write(pictures, sound)
