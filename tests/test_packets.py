"""Fragments for the player: complete, decodable from every new generation on, one packet a picture."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from livetalk.media.packets import Packer, unpack
from livetalk.types import PLAYBACK_SAMPLES_PER_PICTURE, Pictures


def moving(first: int, count: int, generation: int = 0) -> Pictures:
    drawn = np.full((count, 128, 128, 3), (30, 60, 200), np.uint8)
    for row in range(count):
        left = (first + row) * 5 % 100
        drawn[row, 40:80, left : left + 28] = (250, 200, 20)
    sound = np.linspace(-1.2, 1.2, count * PLAYBACK_SAMPLES_PER_PICTURE, dtype=np.float32)
    return Pictures(first, drawn, sound, generation, True)


def test_every_generation_can_be_decoded_alone():
    packer = Packer(128, 128)
    pieces = [moving(0, 9), moving(9, 12), moving(18, 12, generation=1), moving(30, 12, generation=1)]
    payloads = [packer.pack(piece, "speaking", {"real_time_factor": 2.0}).payload for piece in pieces]
    for wanted, sources in ((payloads[:2], pieces[:2]), (payloads[2:], pieces[2:])):
        decoder = av.CodecContext.create("h264", "r")
        decoded = []
        for payload in wanted:
            _, parts, _ = unpack(payload)
            for part in parts:
                decoded += decoder.decode(av.Packet(part))
        decoded += decoder.decode(None)
        truth = np.concatenate([source.pictures for source in sources])
        assert len(decoded) == len(truth)
        for frame, picture in zip(decoded, truth, strict=True):
            shown = frame.to_ndarray(format="rgb24")[::2, ::2].astype(int)
            assert np.abs(shown - picture).mean() < 6
    keys = [[key for _, key in unpack(payload)[0]["parts"]] for payload in payloads]
    assert keys[0][0] == keys[2][0] == 1 and sum(map(sum, keys)) == 2


def test_header_and_sound():
    packer = Packer(128, 128, "jpeg")
    fragment = packer.pack(moving(4, 4), "speaking")
    header, parts, pcm = unpack(fragment.payload)
    assert (header["index"], header["first"], header["pictures"], header["codec"]) == (0, 4, 4, "jpeg")
    assert Image.open(io.BytesIO(parts[0])).size == (256, 256)
    samples = np.frombuffer(pcm, "<i2")
    assert len(samples) == 4 * PLAYBACK_SAMPLES_PER_PICTURE and samples.min() == -32767 and samples.max() == 32767
    flush = packer.flush(3, 8, "idle")
    header, parts, pcm = unpack(flush.payload)
    assert header["flush"] and not parts and not pcm and (header["index"], header["generation"]) == (1, 3)


def test_sound_that_is_no_number_is_silent():
    piece = moving(0, 1)
    piece.sound[:3] = np.nan, np.inf, -np.inf
    samples = np.frombuffer(unpack(Packer(128, 128, "jpeg").pack(piece, "idle").payload)[2], "<i2")
    assert list(samples[:3]) == [0, 32767, -32767]


def test_wrong_size_is_refused():
    with pytest.raises(ValueError, match="made for"):
        Packer(64, 64).pack(moving(0, 1), "idle")
