"""Pieces of speech: bounded, complete, with their words in order."""

from __future__ import annotations

import numpy as np
import pytest

from livetalk.stream.talkers.pieces import PcmReader, PieceCutter, to_pcm
from livetalk.stream.talkers.protocol import LONGEST_PIECE_S

RATE = 8000
TEXT = "One two three four. "


def pieces_of(sound, packets, text=TEXT, expected_s=None):
    cutter = PieceCutter(RATE, text, expected_s)
    pieces = [piece for packet in np.array_split(sound, packets) for piece in cutter.push(packet)]
    return pieces + cutter.finish()


@pytest.mark.parametrize("packets", [1, 2, 7, 100])
@pytest.mark.parametrize("expected_s", [None, 2.0, 0.1, 60.0])
def test_sound_and_words_are_complete(packets, expected_s):
    """However wrong the guess of its length was."""
    sound = np.arange(2 * RATE, dtype=np.float32)
    pieces = pieces_of(sound, packets, TEXT, expected_s)
    assert "".join(piece.text for piece in pieces) == TEXT
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), sound)
    assert all(0 < len(piece.samples) <= LONGEST_PIECE_S * RATE for piece in pieces)


def test_words_end_where_their_letters_do():
    pieces = pieces_of(np.zeros(2 * RATE, np.float32), 1, TEXT, 2.0)
    assert [piece.text for piece in pieces] == ["One ", "two ", "three ", "", "four. "]


def test_without_words_nothing_is_held_back():
    cutter = PieceCutter(RATE)
    assert [len(piece.samples) for piece in cutter.push(np.zeros(5000, np.float32))] == [4000, 1000]
    assert cutter.finish() == []


def test_pcm_may_be_cut_anywhere():
    sound = np.linspace(-1, 1, 999).astype(np.float32)
    data, reader = to_pcm(sound), PcmReader()
    read = np.concatenate([reader.read(data[at : at + 7]) for at in range(0, len(data), 7)])
    np.testing.assert_allclose(read, sound, atol=1e-4)
    assert to_pcm(np.array([2.0, -2.0], np.float32)) == to_pcm(np.array([1.0, -1.0], np.float32))
