"""A recording holds what was on screen and heard, once, in sync, and nothing else stays anywhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import numpy as np
import pytest

from livetalk.media.clips import ClipWriter
from livetalk.stream.recorder import Recorder
from livetalk.types import PLAYBACK_RATE, PLAYBACK_SAMPLES_PER_PICTURE, LiveTalkError, Pictures
from tests.test_conversation import Scripted, conversation, say, shown, take

LEAD_S = 0.5


def piece(first: int, count: int, generation: int = 0, level: float = 0.0) -> Pictures:
    """Pictures whose brightness is their number, ten apart, and whose sound is a level."""
    drawn = np.zeros((count, 32, 32, 3), np.uint8)
    drawn += (np.arange(first, first + count) * 4 % 256).astype(np.uint8)[:, None, None, None]
    sound = np.full(count * PLAYBACK_SAMPLES_PER_PICTURE, level, np.float32)
    return Pictures(first, drawn, sound, generation, level > 0)


def void(first: int, generation: int) -> Pictures:
    return Pictures(first, np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.float32), generation, False)


def seen(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of every picture, and the sound."""
    with av.open(str(path)) as clip:
        light = [frame.to_ndarray(format="rgb24").mean() for frame in clip.decode(clip.streams.video[0])]
    with av.open(str(path)) as clip:
        parts = [frame.to_ndarray() for frame in clip.decode(clip.streams.audio[0])]
    return np.array(light), np.concatenate(parts, axis=1)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go; at the end nothing may be there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.rglob("*")) == []


def test_what_is_void_is_replaced(folder) -> None:
    recorder = Recorder(LEAD_S)
    for first in range(0, 40, 4):
        recorder.take(piece(first, 4, level=0.5))
    recorder.take(void(34, 1))
    for first in range(34, 62, 4):
        recorder.take(piece(first, 4, generation=1))
    path = recorder.finish()
    light, sound = seen(path)
    assert np.abs(light - np.arange(62) * 4 % 256).max() < 6, "every picture once, in order"
    loud = np.flatnonzero(np.abs(sound) > 0.25)
    assert loud[-1] == pytest.approx(34 * PLAYBACK_SAMPLES_PER_PICTURE, abs=1500), "no void sound"
    recorder.discard()


def test_pictures_are_held_back_until_they_are_on_screen_and_no_longer(folder) -> None:
    recorder = Recorder(LEAD_S)
    most = 0
    for first in range(0, 400, 4):
        recorder.take(piece(first, 4))
        held = sum(len(kept.pictures) for kept in recorder._held)
        most = max(most, held)
        assert first < 16 or held >= 16, "an interruption reaches back as far as the lead and a little more"
    assert most <= 24, "memory does not grow"
    recorder.discard()


def test_a_void_that_reaches_too_far_back_keeps_time(folder) -> None:
    recorder = Recorder(LEAD_S)
    for first in range(0, 40, 4):
        recorder.take(piece(first, 4))
    written = recorder._written
    recorder.take(void(4, 1))
    for first in range(4, 44, 4):
        recorder.take(piece(first, 4, generation=1))
    assert written > 4
    light, _ = seen(recorder.finish())
    assert len(light) == 44
    recorder.discard()


def test_the_visitor_is_heard_where_the_visitor_spoke(folder) -> None:
    recorder = Recorder(LEAD_S)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3200) / 16_000).astype(np.float32)
    recorder.hear(tone, 16_000)  # nothing is on screen yet
    for first in range(0, 80, 4):
        recorder.take(piece(first, 4))
        if 32 <= first < 48:  # as long as a packet: 4 pictures are 0.25 s
            recorder.hear(np.resize(tone, 4000), 16_000)
    _, sound = seen(recorder.finish())
    loud = np.flatnonzero(np.abs(sound) > 0.1) / PLAYBACK_RATE
    assert loud[0] == pytest.approx(36 / 16 - LEAD_S - 0.25, abs=0.1)
    assert loud[-1] - loud[0] == pytest.approx(1.0, abs=0.06)
    recorder.discard()


def test_a_recording_of_nothing_is_none(folder) -> None:
    recorder = Recorder(LEAD_S)
    recorder.take(void(0, 1))
    assert recorder.finish() is None
    recorder.discard()
    recorder.discard()


def test_a_full_disk_ends_the_recording_only(folder, monkeypatch) -> None:
    recorder = Recorder(LEAD_S)

    def full(self, pictures, sound):
        raise LiveTalkError("Could not write (No space left on device).")

    monkeypatch.setattr(ClipWriter, "write", full)
    for first in range(0, 60, 4):
        recorder.take(piece(first, 4))
    assert "No space left" in recorder.problem
    with pytest.raises(LiveTalkError, match="broken off"):
        recorder.finish()


def test_a_whole_conversation_with_an_interruption(folder) -> None:
    visit, clock = conversation(Scripted())
    recorder = Recorder(visit._performer._playback.lead_s)
    stream = visit.pictures()
    pieces = take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=3.0)
    say(clock, visit, 1.0, after_s=4.0, silence_s=4.0)
    pieces += take(stream, clock, 9.0)
    visit.stop()
    for item in pieces:
        recorder.take(item)
    film = shown(pieces)
    light, sound = seen(recorder.finish())
    assert len(light) == sum(len(part.pictures) for part in film)
    truth = np.concatenate([part.sound for part in film])
    assert np.corrcoef(np.abs(sound[: len(truth)]), np.abs(truth))[0, 1] > 0.9
    recorder.discard()
