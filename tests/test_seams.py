"""Where speech begins, or is cut off, inside a chunk already made: with the embedded model the face does not jump."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from livetalk.hub import checkpoint_roots, load_models
from livetalk.media.pictures import load_portrait
from livetalk.media.sound import load_speech
from livetalk.rulers import MOUTH, PROBE_FILE, Probe
from livetalk.stream.performer import Performer
from livetalk.types import MODEL_RATE, AudioChunk
from tests.live import HandClock, film, live

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CUTS = (25, 28, 31, 38, 43)
"""Pictures that have left when the speech begins: different places inside chunks 2 and 3."""

FACES = ("amara", "felix", "nora", "omar")


@functools.cache
def runs() -> list[tuple[np.ndarray, int, int]]:
    """Films with an onset of speech and an interruption: pictures, seam of the onset, seam of the interruption."""
    models = load_models("mini", device="cpu", dtype="float32")
    speech = load_speech(EXAMPLES / "speech" / "welcome.ogg", MODEL_RATE)
    loud = int(np.argmax(np.abs(speech) > 0.05))
    films = []
    for number, cut in enumerate(CUTS):
        face = EXAMPLES / "portraits" / f"{FACES[number % len(FACES)]}.png"
        portrait = load_portrait(face, models.preset.height, models.preset.width)
        clock = HandClock()
        performer = Performer(models, models.identity(portrait.image, ""), number, clock=clock)
        idle = live(performer, clock, cut)
        onset = performer.next_picture
        performer.push(AudioChunk(speech[loud:], MODEL_RATE))
        spoken = live(performer, clock, onset + 30)
        break_off = performer.clear()
        silent = live(performer, clock, break_off + 12)
        pictures = np.concatenate([film(idle + spoken)[:break_off], film(silent)])
        films.append((pictures, onset, break_off))
    return films


def pose_steps(pictures: np.ndarray) -> np.ndarray:
    """How much everything but the mouth changes from each picture to the next, in levels."""
    height, width = pictures.shape[1:3]
    levels = pictures.astype(np.float32).copy()
    rows = slice(round(MOUTH.top * height), round(MOUTH.bottom * height))
    levels[:, rows, round(MOUTH.left * width) : round(MOUTH.right * width)] = 0
    return np.abs(np.diff(levels, axis=0)).mean(axis=(1, 2, 3))


def mouth_steps(pictures: np.ndarray) -> np.ndarray:
    """How much the mouth's opening changes from each picture to the next, read by the probe."""
    file = next(root / PROBE_FILE for root in checkpoint_roots() if (root / PROBE_FILE).is_file())
    return np.abs(np.diff(Probe.load(file).read(pictures).open))


@pytest.mark.parametrize("measure", [pose_steps, mouth_steps])
@pytest.mark.parametrize("seam", ["onset", "interruption"])
def test_a_seam_changes_at_most_twice_what_neighbours_do(measure, seam: str) -> None:
    """Median over the runs, against the median of all neighbouring pictures while the face speaks."""
    at_seams, usual = [], []
    for pictures, onset, break_off in runs():
        steps = measure(pictures)
        at_seams.append(steps[(onset if seam == "onset" else break_off) - 1])
        usual += list(steps[onset : break_off - 1])
    assert np.median(at_seams) <= 2 * np.median(usual), (at_seams, np.median(usual))
