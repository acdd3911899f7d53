"""Whether a face does as the words say: every mood and every motion is asked of the same neutral faces.

The mood is read back by the probe's classifier, which was trained on true pictures; motion is the speed of the head.
This module does not know how the words reach the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from livetalk.distill.portraits import MOODS, MOTIONS, caption
from livetalk.eval.cases import Case
from livetalk.eval.figures import mean
from livetalk.eval.watch import Watch, packets_of, perform
from livetalk.hub import Models
from livetalk.rulers import Probe, Reading, mood, motion_amount


def measure_words(models: Models, probe: Probe, cases: Sequence[Case]) -> dict[str, Any]:
    """Ask every mood (moving gently) and every motion (calmly) of every face.

    Returns:
        ``mood_share``: moods read back as asked; ``moods``: asked -> read -> times; ``movement``: motion -> mean;
        ``motion_ordered``: share of faces that move more with every stronger word. Empty without cases.
    """
    if not cases:
        return {}
    moods: dict[str, dict[str, int]] = {asked: {} for asked in MOODS}
    movement: dict[str, list[float]] = {motion: [] for motion in MOTIONS}
    for case in cases:
        for asked in MOODS:
            reading = _told(models, probe, case, "gentle", asked)
            named = mood(reading)
            moods[asked][named] = moods[asked].get(named, 0) + 1
            if asked == "neutral":
                movement["gentle"].append(motion_amount(reading))
        for motion in ("still", "lively"):
            movement[motion].append(motion_amount(_told(models, probe, case, motion, "neutral")))
    ordered = [a < b < c for a, b, c in zip(*(movement[motion] for motion in MOTIONS), strict=True)]
    right = sum(read.get(asked, 0) for asked, read in moods.items())
    return {
        "faces": len(cases),
        "mood_share": round(right / (len(cases) * len(MOODS)), 4),
        "moods": moods,
        "motion_ordered": round(sum(ordered) / len(ordered), 4),
        "movement": {motion: mean(values) for motion, values in movement.items()},
    }


def _told(models: Models, probe: Probe, case: Case, motion: str, asked: str) -> Reading:
    """What the probe reads off the face of a case when it is told to move and feel like this."""
    text = caption(motion, asked, case.seed)
    watch = Watch(probe, case.portrait)
    watch.see_all(perform(models, case.portrait, text, packets_of(case.samples), case.pictures, case.seed))
    return watch.reading
