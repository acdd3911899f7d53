"""Fragments for a player: H.264 packets (or JPEG pictures) and PCM16 of the same stretch of time, in one message.

A message is ``u32 header length (little endian) | JSON header | picture parts | PCM16``. There is no container: the
page feeds the packets to ``VideoDecoder`` (Annex B, parameter sets in front of every key picture) and the samples to
its sound clock, so nothing is muxed, primed or delayed, and fragments join without a seam.

Header keys: ``index, generation, first`` (first picture), ``pictures, flush, state, codec, size, fps, rate, parts``
(``[bytes, is_key]`` per picture), ``pcm`` (bytes of sound), ``facts`` (free, for display).

This module knows nothing of sessions, pacing or pages.
"""

from __future__ import annotations

import io
import json
import struct
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, Fragment, Pictures

Codec = Literal["h264", "jpeg"]

H264_CODEC = "avc1.42c01f"
"""Constrained baseline, level 3.1: what every browser that has WebCodecs decodes."""

_KEY_INTERVAL = 60 * PICTURES_PER_SECOND
_SMALL_SIDE = 256
_HEADER = struct.Struct("<I")


def pcm16(sound: np.ndarray) -> bytes:
    """Float samples in -1..1 as little-endian PCM16; what is louder is clipped, what is not finite is silent."""
    finite = np.nan_to_num(sound, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.round(np.clip(finite, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def unpack(payload: bytes) -> tuple[dict[str, Any], list[bytes], bytes]:
    """Header, picture parts and PCM16 bytes of one message (the inverse of what a ``Packer`` writes)."""
    (length,) = _HEADER.unpack_from(payload)
    at = _HEADER.size + length
    header = json.loads(payload[_HEADER.size : at])
    parts = []
    for size, _ in header["parts"]:
        parts.append(payload[at : at + size])
        at += size
    return header, parts, payload[at : at + header["pcm"]]


class Packer:
    """Turns ``Pictures`` into ``Fragment`` messages; one per session and viewer, because it owns the encoder.

    Pictures whose sides are below 256 are sent at twice their size: chroma then keeps the resolution it was drawn
    with, which a person sees and 4:2:0 would halve.

    Args:
        height: picture height, even.
        width: picture width, even.
        codec: "h264", or "jpeg" for players without WebCodecs.
    """

    def __init__(self, height: int, width: int, codec: Codec = "h264") -> None:
        scale = 2 if max(height, width) < _SMALL_SIDE else 1
        self._picture_size = height, width
        self.height, self.width = height * scale, width * scale
        self.codec = codec
        self._encoder = self._open_encoder() if codec == "h264" else None
        self._generation: int | None = None
        self._encoded = 0
        self._index = 0

    def pack(self, pictures: Pictures, state: str, facts: dict[str, Any] | None = None) -> Fragment:
        """One message with ``pictures`` and their sound; its first picture is a key picture after a new generation.

        Raises:
            ValueError: the pictures are not of the size this packer was made for.
        """
        size = pictures.pictures.shape[1:3]
        if size != self._picture_size:
            raise ValueError(f"Pictures are {size}, this packer was made for {self._picture_size}.")
        fresh = pictures.generation != self._generation
        self._generation = pictures.generation
        parts = [
            self._encode(picture, key=fresh and position == 0) for position, picture in enumerate(pictures.pictures)
        ]
        sound = pcm16(pictures.sound)
        return self._message(pictures.generation, pictures.first_picture, state, parts, sound, facts)

    def flush(self, generation: int, first_picture: int, state: str) -> Fragment:
        """A message without pictures: "drop what you hold"; to be sent at once after an interruption."""
        self._generation = None
        return self._message(generation, first_picture, state, [], b"", None)

    def _message(
        self,
        generation: int,
        first_picture: int,
        state: str,
        parts: list[tuple[bytes, bool]],
        sound: bytes,
        facts: dict[str, Any] | None,
    ) -> Fragment:
        header: dict[str, Any] = {
            "index": self._index,
            "generation": generation,
            "first": first_picture,
            "pictures": len(parts),
            "flush": not parts,
            "state": state,
            "codec": H264_CODEC if self.codec == "h264" else "jpeg",
            "size": [self.width, self.height],
            "fps": PICTURES_PER_SECOND,
            "rate": PLAYBACK_RATE,
            "parts": [[len(data), int(key)] for data, key in parts],
            "pcm": len(sound),
            "facts": facts or {},
        }
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
        payload = b"".join([_HEADER.pack(len(text)), text, *(data for data, _ in parts), sound])
        self._index += 1
        return Fragment(header["index"], first_picture, len(parts), generation, state, payload)

    def _encode(self, picture: np.ndarray, key: bool) -> tuple[bytes, bool]:
        """One picture ``[H, W, 3]`` as (bytes, is a key picture)."""
        if self._encoder is None:
            buffer = io.BytesIO()
            image = Image.fromarray(picture)
            if image.size != (self.width, self.height):
                image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
            image.save(buffer, "JPEG", quality=80)
            return buffer.getvalue(), True
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            self.width, self.height, "yuv420p", dst_colorspace="itu709", interpolation="BICUBIC"
        )
        frame.pts, frame.time_base = self._encoded, Fraction(1, PICTURES_PER_SECOND)
        frame.pict_type = av.video.frame.PictureType.I if key else av.video.frame.PictureType.NONE
        self._encoded += 1
        packets = self._encoder.encode(frame)
        return b"".join(bytes(packet) for packet in packets), any(packet.is_keyframe for packet in packets)

    def _open_encoder(self) -> av.VideoCodecContext:
        """x264 without any delay: one picture in, one packet out, parameter sets repeated at key pictures."""
        encoder = av.VideoCodecContext.create("libx264", "w")
        encoder.width, encoder.height = self.width, self.height
        encoder.pix_fmt = "yuv420p"
        encoder.framerate = Fraction(PICTURES_PER_SECOND)
        encoder.time_base = Fraction(1, PICTURES_PER_SECOND)
        encoder.gop_size = _KEY_INTERVAL
        encoder.thread_count = 1
        quality = 18 if max(self.height, self.width) <= 2 * _SMALL_SIDE else 21
        encoder.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": str(quality),
            "forced-idr": "1",
            "x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off",
        }
        return encoder
