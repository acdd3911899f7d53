"""The memory a preset needs, counted: the promises for 512 x 512, and that the count is one of what really lives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from livetalk.config import LIVETALK_1_3B, LIVETALK_1_3B_720P, MINI
from livetalk.engine import ENGINES, Engine
from livetalk.eval.budget import HELD_CHUNKS, Living, budget
from livetalk.model import rotary
from livetalk.stream.performer import Performer
from livetalk.types import AudioChunk, SpeechEnd
from tests.live import HandClock, babble, tiny_identity, tiny_models

GB = 1e9


def test_talking_takes_no_more_than_twelve_gigabytes() -> None:
    plain = budget(LIVETALK_1_3B)
    assert plain.peak <= 12 * GB
    assert plain.network == 2 * 1_421_187_232
    # keys and values of 15 frames of 1024 tokens in 30 layers, and the un-rotated keys of the 6 that roll
    assert plain.cache == 30 * 1536 * 1024 * 2 * (15 + 15 + 6)
    assert plain.undo == HELD_CHUNKS * 30 * 1536 * 1024 * 2 * (3 + 3)


def test_the_small_mode_needs_no_more_than_eight() -> None:
    small = budget(LIVETALK_1_3B, engine=ENGINES["8gb"])
    assert small.needed <= 8 * GB
    assert small.network < 1.5 * GB and small.decoder < 0.1 * GB


def test_counting_leaves_nothing_behind() -> None:
    """Tables of rotations are kept for good; they must be real ones, for who makes pictures later."""
    rotary._moment_turns.cache_clear()
    budget.cache_clear()
    budget(MINI)
    assert rotary._moment_turns(14.0, MINI.model.rotary[0]).device.type == "cpu"


def test_more_pictures_or_numbers_need_more() -> None:
    plain, tiny = budget(LIVETALK_1_3B), budget(LIVETALK_1_3B, engine=Engine(decoder="tiny"))
    wide, exact = budget(LIVETALK_1_3B_720P, engine=Engine(decoder="tiny")), budget(LIVETALK_1_3B, torch.float32)
    assert tiny.peak < plain.peak < exact.peak < 2 * plain.peak
    assert wide.cache / tiny.cache == pytest.approx(3600 / 1024)
    assert budget(MINI).peak < 0.1 * GB


def test_what_has_left_is_not_counted() -> None:
    with torch.inference_mode(), torch.device("meta"), Living() as living:
        layer = nn.Linear(10, 10, bias=False)
        assert living.now == 4 * 100
        _, most, left = living.count(lambda: layer(layer(layer(torch.empty(5, 10)))).sum())
    assert most == 4 * 50 * 2 and left == 4, "a layer's input and output live at a time, then the sum alone"


def test_a_live_stream_holds_no_more_chunks_than_are_counted() -> None:
    clock = HandClock()
    performer = Performer(tiny_models(), tiny_identity(), clock=clock, overlap=True)
    for second in range(12):
        performer.push(AudioChunk(babble(0.5)) if second % 3 else SpeechEnd())
        for _ in range(8):
            for _ in performer.pictures():
                pass
            assert len(performer._takes) <= HELD_CHUNKS
            clock.now_s += 0.0625
    performer.close()
