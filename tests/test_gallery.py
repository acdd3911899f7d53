"""The faces behind "Surprise me": enough of them, small, held out from training, and what the command draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from livetalk.distill import speech
from livetalk.distill.examples import HELD_OUT_SEED, PORTRAITS
from livetalk.distill.gallery import FACES, SIDE, write_gallery

FOLDER = Path(__file__).parents[1] / "examples" / "portraits" / "more"


def test_there_are_many_small_faces_that_training_never_sees():
    files = sorted(FOLDER.iterdir())
    assert {file.name for file in files} == {f"face-{offset}.webp" for offset in FACES}
    assert len(files) >= 48 and sum(file.stat().st_size for file in files) <= 1_000_000
    assert HELD_OUT_SEED == speech.HELD_OUT_SEED and not set(FACES) & set(PORTRAITS.values()) and min(FACES) >= 0
    for file in files:
        with Image.open(file) as image:
            assert image.format == "WEBP" and image.size == (SIDE, SIDE)


def test_the_command_draws_the_shipped_faces(tmp_path, monkeypatch):
    pytest.importorskip("skia", exc_type=ImportError)
    monkeypatch.setattr("livetalk.distill.gallery.FACES", FACES[:1])
    (path,) = write_gallery(tmp_path)
    drawn, shipped = (np.asarray(Image.open(file), np.float32) for file in (path, FOLDER / path.name))
    assert np.abs(drawn - shipped).mean() < 2.0
