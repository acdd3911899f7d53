"""Second reading of a video: every stretch that is left is cut out, judged, and made into a training clip.

Pictures and sound of one stretch at a time are held, at the size of the preset. Picture 0 of a clip is its reference,
as a portrait is what generation starts from; the clip's own pictures follow. This module does not know shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetalk.distill.curate.captions import Rewriter, measured_caption
from livetalk.distill.curate.faces import FaceBox, FaceFinder, spots_of
from livetalk.distill.curate.judge import (
    MARGIN_PICTURES,
    SyncRuler,
    picture_figures,
    sound_figures,
    sync_figures,
    wrong,
)
from livetalk.distill.curate.limits import Limits, Reason
from livetalk.distill.curate.reference import Reference, Restorer, choose_reference, restored
from livetalk.distill.curate.scan import Stretch
from livetalk.distill.data import Clip
from livetalk.distill.portraits import POSE_FIELDS, Poses, sway_of_poses
from livetalk.media.videos import VideoBlock, video_blocks
from livetalk.rulers import Reading
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, LiveTalkError

log = logging.getLogger(__name__)

CAPTION_ENDING = ".txt"
READ_FIELDS = {
    "open": "open", "teeth": "teeth", "blink": "eyes_shut", "yaw": "yaw", "pitch": "pitch", "roll": "roll",
    "brow": "brow", "brow_angle": "brow_angle", "smile": "smile", "eye_wide": "eye_wide",
}  # fmt: skip
"""Fields of a pose that a probe reads, and its names for them; width is read on another scale, place and gaze not."""

_SHOWN = 9
_BLOCK_PICTURES = 4


@dataclass(frozen=True)
class Tools:
    """What curation works with.

    Attributes:
        finder: finds faces.
        sync: reads mouths; None = there is no ruler for these faces and lips are not checked.
        restorer: mends poor references; None = they are refused.
        rewriter: rewrites captions; None = captions say what was measured.
        label: names all of them, so that a change of tools is noticed.
    """

    finder: FaceFinder
    sync: SyncRuler | None = None
    restorer: Restorer | None = None
    rewriter: Rewriter | None = None
    label: str = ""


@dataclass(frozen=True)
class Candidate:
    """A stretch of a video and what became of it.

    Attributes:
        first: index of its first picture in the file.
        pictures: how many.
        wrong: why it is not used; None = it is.
        figures: what was measured.
        clip: for the shard, if it is used.
        known: 1 for every field of the clip's poses that was read, 0 for those that nobody knows, float32 [fields].
        seed: names the clip.
        caption: its sentence.
        reference: index in the clip of the picture that became picture 0.
        seen: some of its pictures, for a contact sheet.
    """

    first: int
    pictures: int
    wrong: Reason | None
    figures: dict[str, Any]
    clip: Clip | None = None
    known: Tensor = field(default_factory=lambda: torch.zeros(len(POSE_FIELDS)))
    seed: int = 0
    caption: str = ""
    reference: int = 0
    seen: np.ndarray | None = None


@dataclass(frozen=True)
class Order:
    """How clips are to be made.

    Attributes:
        size: height and width of the pictures.
        ahead_samples: sound a clip has beyond its last picture.
        seed: of the file.
        said: caption that came with the file, "" if none did.
    """

    size: tuple[int, int]
    ahead_samples: int
    seed: int
    said: str


class Gathered:
    """Pictures and sound of a stretch, filled in as the file is read; what the file does not have is silent."""

    def __init__(self, stretch: Stretch, size: tuple[int, int]) -> None:
        self.stretch = stretch
        self.pictures = np.zeros((stretch.pictures, *size, 3), np.uint8)
        self.sound = np.zeros((stretch.pictures + 2 * MARGIN_PICTURES) * MODEL_SAMPLES_PER_PICTURE, np.float32)

    def take(self, block: VideoBlock) -> None:
        """Keep what belongs to the stretch and its margins."""
        assert self.stretch.cut is not None
        before = block.first_picture - self.stretch.first
        first, stop = max(0, before), min(self.stretch.pictures, before + len(block.pictures))
        if first < stop:
            wanted = block.pictures[first - before : stop - before]
            self.pictures[first:stop] = self.stretch.cut.of(wanted, *self.pictures.shape[1:3])
        start = (before + MARGIN_PICTURES) * MODEL_SAMPLES_PER_PICTURE
        low, high = max(0, start), min(len(self.sound), start + len(block.sound))
        if low < high:
            self.sound[low:high] = block.sound[low - start : high - start]

    def samples(self, late_pictures: int, ahead_samples: int) -> np.ndarray:
        """The clip's sound and some more, moved so that pictures which come late by that much fit it."""
        start = (MARGIN_PICTURES - late_pictures) * MODEL_SAMPLES_PER_PICTURE
        return self.sound[start : start + self.stretch.pictures * MODEL_SAMPLES_PER_PICTURE + ahead_samples]


def candidates(path: Path, plan: Sequence[Stretch], order: Order, tools: Tools, limits: Limits) -> Iterator[Candidate]:
    """Every stretch of a plan, judged: those already found wrong first, the others in order of time.

    After ``limits.most_clips`` good ones the rest of the file is not looked at.

    Raises:
        LiveTalkError: the file cannot be read.
    """
    yield from (Candidate(one.first, one.pictures, one.wrong, dict(one.figures)) for one in plan if one.wrong)
    kept = 0
    for gathered in _gathered(path, [one for one in plan if one.wrong is None], order.size):
        candidate = _judged(gathered, order, tools, limits)
        kept += candidate.wrong is None
        yield candidate
        if kept == limits.most_clips:
            return


def _gathered(path: Path, plan: Sequence[Stretch], size: tuple[int, int]) -> Iterator[Gathered]:
    """Stretches of a file with their pictures and sound, each as soon as it is complete."""
    waiting, held = list(plan), list[Gathered]()
    for block in video_blocks(path, _BLOCK_PICTURES) if waiting else ():
        stop = block.first_picture + len(block.pictures)
        while waiting and waiting[0].first - MARGIN_PICTURES < stop:
            held.append(Gathered(waiting.pop(0), size))
        for gathered in held:
            gathered.take(block)
        while held and held[0].stretch.first + held[0].stretch.pictures + MARGIN_PICTURES <= stop:
            yield held.pop(0)
        if not waiting and not held:
            return
    yield from held


def _judged(gathered: Gathered, order: Order, tools: Tools, limits: Limits) -> Candidate:
    stretch, pictures = gathered.stretch, gathered.pictures
    assert stretch.cut is not None and stretch.face is not None
    face = stretch.cut.place(stretch.face, order.size[0])
    figures: dict[str, Any] = {**stretch.figures, **picture_figures(pictures, face, limits)}
    figures.update(sound_figures(gathered.samples(0, 0)))
    reading = tools.sync.read(pictures) if tools.sync is not None else None
    if tools.sync is not None and reading is not None:
        figures.update(sync_figures(reading.open, tools.sync.heard(gathered.sound, len(pictures)), limits))
    else:
        figures["sync"] = "no ruler"
    shown = pictures[:: max(1, len(pictures) // _SHOWN)][:_SHOWN].copy()
    found = Candidate(stretch.first, len(pictures), wrong(figures, limits), figures, seen=shown)
    if found.wrong is not None:
        return found
    reference, note = _reference(pictures, face, reading, tools, limits)
    figures.update({**reference.figures, **note})
    if reference.poor:
        return replace(found, wrong="poor_reference")
    shown[0] = reference.picture
    seed = (order.seed + stretch.first) % 2**31
    caption = _caption(pictures, (face, reading), (seed, order.said), tools.rewriter, figures)
    pictures[0] = reference.picture
    poses, known, spots = _truth(len(pictures), face, reading, order.size)
    poses.values[0], spots[0] = poses.values[reference.index], spots[reference.index]
    clip = Clip(
        pictures=pictures,
        samples=gathered.samples(int(figures.get("sync_lag", 0)), order.ahead_samples),
        poses=poses,
        sway=sway_of_poses(poses, str(figures["motion"])),
        spots=spots,
        text=caption,
        mood=str(figures.get("mood", "")),
        motion=str(figures["motion"]),
        voice="",
    )
    return replace(found, clip=clip, known=known, seed=seed, caption=caption, reference=reference.index)


def _reference(
    pictures: np.ndarray, face: FaceBox, reading: Reading | None, tools: Tools, limits: Limits
) -> tuple[Reference, dict[str, str]]:
    """The reference, restored if it is poor and can be; and a note if that failed."""
    reference = choose_reference(pictures, face, reading, tools.finder, limits)
    if not reference.poor or tools.restorer is None:
        return reference, {}
    try:
        return restored(reference, face, tools.restorer, limits), {}
    except LiveTalkError as error:
        log.warning("%s", error)
        return reference, {"restoring": str(error)}


def _caption(
    pictures: np.ndarray,
    person: tuple[FaceBox, Reading | None],
    origin: tuple[int, str],
    rewriter: Rewriter | None,
    figures: dict[str, Any],
) -> str:
    """The clip's sentence; where it came from and what was measured goes into ``figures``."""
    seed, said = origin
    measured, facts = measured_caption(pictures, *person, seed)
    figures.update({**facts, "caption_by": "measured"})
    if rewriter is None:
        return measured
    given = f"{said} {measured}".strip()
    try:
        better = rewriter(given, [pictures[at] for at in (0, len(pictures) // 2, len(pictures) - 1)])
    except LiveTalkError as error:
        log.warning("%s", error)
        figures["rewriting"] = str(error)
        return measured
    figures["caption_by"] = "rewritten"
    return better


def _truth(
    count: int, face: FaceBox, reading: Reading | None, size: tuple[int, int]
) -> tuple[Poses, Tensor, np.ndarray]:
    """Poses as far as they can be read, 0 elsewhere; which fields were; and places of mouth and eyes ``[T, 3, 2]``."""
    values = np.zeros((count, len(POSE_FIELDS)), np.float32)
    known = torch.zeros(len(POSE_FIELDS))
    if reading is None:
        return Poses(values), known, np.repeat(spots_of(face, *size)[None], count, axis=0)
    tracks = {name: getattr(reading, told) for name, told in READ_FIELDS.items()}
    tracks["wide"] = 2.0 * reading.wide - 1.0
    for name, track in tracks.items():
        values[:, POSE_FIELDS.index(name)] = track
        known[POSE_FIELDS.index(name)] = 1.0
    return Poses(values), known, reading.spots.astype(np.float32).copy()
