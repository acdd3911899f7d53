"""Ten minutes of mini's network sizes (``make soak``): memory stays where it is after the second minute."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from livetalk.config import MINI
from livetalk.hub import random_models
from livetalk.media.packets import Packer
from livetalk.stream.performer import Performer
from livetalk.types import MODEL_RATE, AudioChunk, SpeechEnd
from tests.live import babble

MINUTES = 10
GROWTH_MB = 16


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc (Linux)")
def test_ten_minutes_do_not_grow() -> None:
    models = random_models(MINI, dtype="auto")
    identity = models.identity(torch.rand(3, MINI.height, MINI.width) * 2 - 1, "a person speaks")
    performer, packer = Performer(models, identity), Packer(MINI.height, MINI.width)
    threads, packet = threading.active_count(), babble(0.25, MODEL_RATE)
    resident = {}
    for second in range(60 * MINUTES):
        for _ in range(4):
            performer.push(AudioChunk(packet, MODEL_RATE))
            for piece in performer.pictures():
                packer.pack(piece, "speaking")
        if second % 60 == 59:
            resident[second // 60 + 1] = resident_mb()
            performer.push(SpeechEnd())
    performer.push(SpeechEnd())
    for piece in performer.pictures():
        packer.pack(piece, "speaking")
    assert performer.next_picture >= 60 * MINUTES * 16
    assert max(resident[minute] for minute in range(3, MINUTES + 1)) - resident[2] <= GROWTH_MB, resident
    assert threading.active_count() == threads
