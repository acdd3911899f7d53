"""First reading of a video: light, cuts and faces, and the stretches that may become clips.

Pictures are seen small and let go at once; what stays are a few numbers a picture. This module does not judge what a
face looks like, nor hear anything.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livetalk.distill.curate.faces import Cut, FaceBox, FaceFinder, badly_framed, cut_around, opencv
from livetalk.distill.curate.limits import Limits, Reason
from livetalk.media.videos import VideoFacts, video_blocks, video_facts
from livetalk.rulers import luminance

SCAN_SIDE = 512
THUMB = 32
_AROUND = 8


@dataclass(frozen=True)
class Scan:
    """What a first reading tells.

    Attributes:
        facts: size and sound of the file.
        light: mean light of every picture, float32 ``[T]``, 0..255.
        change: mean change of a thumbnail from the picture before, float32 ``[T]``; the first is 0.
        faces: faces found in pixels of the file's pictures, by picture; pictures not searched are missing.
    """

    facts: VideoFacts
    light: np.ndarray
    change: np.ndarray
    faces: dict[int, list[FaceBox]]


@dataclass(frozen=True)
class Stretch:
    """Pictures ``first .. first + pictures`` of a file; ``wrong`` says why they are no clip, else ``cut`` and ``face``.

    Attributes:
        first: index of the first picture.
        pictures: number of pictures.
        wrong: first thing that is wrong with it.
        cut: part of the picture to show.
        face: where the face is in the file's pictures (median).
        figures: what was measured.
    """

    first: int
    pictures: int
    wrong: Reason | None
    cut: Cut | None
    face: FaceBox | None
    figures: dict[str, float]


def scan(path: Path, finder: FaceFinder, limits: Limits) -> Scan:
    """Read a video once.

    Raises:
        LiveTalkError: it cannot be read to its end.
    """
    cv = opencv()
    facts = video_facts(path)
    light: list[np.ndarray] = []
    change: list[np.ndarray] = []
    faces: dict[int, list[FaceBox]] = {}
    before: np.ndarray | None = None
    for block in video_blocks(path, largest_side=SCAN_SIDE):
        small = [cv.resize(one, (THUMB, THUMB), interpolation=cv.INTER_AREA) for one in block.pictures]
        thumbs = np.stack(small).astype(np.float32)
        chain = np.concatenate([thumbs[:1] if before is None else before, thumbs])
        change.append(np.abs(np.diff(chain, axis=0)).mean(axis=(1, 2, 3)))
        light.append(luminance(thumbs).mean(axis=(1, 2)))
        before = thumbs[-1:]
        factor = facts.height / block.pictures.shape[1]
        for at in range(-block.first_picture % limits.face_every, len(thumbs), limits.face_every):
            found = finder.find(block.pictures[at])
            faces[block.first_picture + at] = [face.scaled(factor) for face in found]
    return Scan(facts, np.concatenate(light), np.concatenate(change), faces)


def cuts(change: np.ndarray, limits: Limits) -> list[int]:
    """First pictures of shots after the first: sudden changes that stand out from those around them."""
    found = []
    for at in np.flatnonzero(change > limits.cut_change):
        around = np.concatenate([change[max(1, at - _AROUND) : at], change[at + 1 : at + 1 + _AROUND]])
        usual = float(np.median(around)) if len(around) else 0.0
        if change[at] > limits.cut_ratio * usual:
            found.append(int(at))
    return found


def stretches(seen: Scan, pictures: int, wanted: tuple[int, int], limits: Limits) -> list[Stretch]:
    """Every stretch of a file that could be a clip of ``pictures``, in order, and what is wrong with it so far.

    Clips do not overlap and never span a cut; shots that are too short for one clip are stretches, too.

    Args:
        seen: the first reading.
        pictures: length of a clip.
        wanted: height and width of its pictures.
        limits: what is asked.
    """
    edges = [0, *cuts(seen.change, limits), len(seen.light)]
    found = []
    for start, stop in itertools.pairwise(edges):
        if stop - start < pictures:
            figures = _light_figures(seen.light[start:stop])
            found.append(Stretch(start, stop - start, _wrong_light(figures, limits) or "short", None, None, figures))
        for first in range(start, stop - pictures + 1, pictures):
            found.append(_judged(seen, first, pictures, wanted, limits))
    return found


def _judged(seen: Scan, first: int, pictures: int, wanted: tuple[int, int], limits: Limits) -> Stretch:
    faces = [found for at, found in sorted(seen.faces.items()) if first <= at < first + pictures]
    largest = [found[0] for found in faces if found]
    count = max(1, len(faces))
    second = sum(len(found) > 1 and found[1].side > limits.second_side * found[0].side for found in faces)
    figures = {
        **_light_figures(seen.light[first : first + pictures]),
        "found_share": len(largest) / count,
        "second_share": second / count,
    }
    wrong = _wrong_light(figures, limits) or ("no_face" if figures["found_share"] < limits.found_share else None)
    if not largest:
        return Stretch(first, pictures, wrong, None, None, figures)
    places = np.array([(face.column, face.row, face.side) for face in largest])
    face = FaceBox(*(float(middle) for middle in np.median(places, axis=0)))
    low, high = np.percentile(places[:, :2], (10, 90), axis=0)
    cut = cut_around(face, (seen.facts.height, seen.facts.width), wanted, limits)
    figures["travel"] = float((high - low).max() / face.side)
    figures["face_share"] = face.side / min(cut.height, cut.width)
    figures["cut_height"] = float(cut.height)
    if wrong is None and figures["second_share"] > limits.second_share:
        wrong = "several_faces"
    wrong = wrong or badly_framed(cut, face, wanted, limits)
    if wrong is None and figures["travel"] > limits.most_travel:
        wrong = "restless"
    return Stretch(first, pictures, wrong, cut, face, figures)


def _light_figures(light: np.ndarray) -> dict[str, float]:
    return {"light": float(light.mean()), "darkest": float(light.min())}


def _wrong_light(figures: dict[str, float], limits: Limits) -> Reason | None:
    if figures["darkest"] < limits.black_light:
        # a whole clip that is hardly brighter is dark rather than interrupted
        return "dark" if limits.black_light / 2 < figures["light"] < 2 * limits.black_light else "black"
    if figures["light"] < limits.dark_light / 2:
        return "dark"
    return "bright" if figures["light"] > limits.bright_light else None
