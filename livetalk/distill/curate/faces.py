"""Finds faces, and the part of a picture that shows one the way portraits are framed.

Faces are found by the cascades inside OpenCV's wheel (Viola and Jones 2001), which see photographs and drawings and
need no download. They know frontal faces only, which is what a talking head is, and miss dark skin in soft light more
often than light skin; for large collections give the file of OpenCV's YuNet. This module does not know videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from livetalk.distill.curate.limits import Limits, Reason
from livetalk.types import LiveTalkError

SEARCH_SIDE = 256
"""Pictures are searched at this longer side."""

SMALLEST_FACE = 24
"""Least side of a face in the searched picture; the cascade's own window is 20."""

SPOTS_IN_BOX = ((0.496, 0.783), (0.297, 0.416), (0.700, 0.417))
"""Column and row of mouth, left eye and right eye in the cascade's box: means over 120 drawn faces; the places
scatter by .02 to .05 of a box side."""

YUNET_SCORE = 0.7
_NEIGHBOURS = 3
_STEP = 1.1


@dataclass(frozen=True)
class FaceBox:
    """A square around a face: column and row of its middle and its side, in pixels."""

    column: float
    row: float
    side: float

    def scaled(self, factor: float) -> FaceBox:
        """The same face in a picture ``factor`` times as large."""
        return FaceBox(self.column * factor, self.row * factor, self.side * factor)

    def of(self, pictures: np.ndarray) -> np.ndarray:
        """The part of ``pictures`` ``[T, H, W, ...]`` inside the box."""
        height, width = pictures.shape[1:3]
        top, left = (max(0, round(middle - self.side / 2)) for middle in (self.row, self.column))
        side = round(self.side)
        return pictures[:, top : min(height, top + side), left : min(width, left + side)]


class FaceFinder(Protocol):
    """What curation asks of a face detector."""

    def find(self, picture: np.ndarray) -> list[FaceBox]:
        """Faces in a picture uint8 ``[H, W, 3]``, the largest first."""

    def eyes(self, picture: np.ndarray, face: FaceBox) -> int:
        """Open eyes seen in a face, 0 to 2."""


class CascadeFinder:
    """Faces and eyes by OpenCV's cascades.

    Raises:
        LiveTalkError: OpenCV is missing, or is one without cascades.
    """

    def __init__(self) -> None:
        self._cv: Any = opencv()
        self._faces = self._cascade("haarcascade_frontalface_alt2.xml")
        self._eyes = self._cascade("haarcascade_eye.xml")
        # without this, dark skin in soft light is missed in every second picture
        self._even = self._cv.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4))

    def find(self, picture: np.ndarray) -> list[FaceBox]:
        """See ``FaceFinder``."""
        grey = self._cv.cvtColor(picture, self._cv.COLOR_RGB2GRAY)
        factor = min(1.0, SEARCH_SIDE / max(grey.shape))
        if factor < 1:
            grey = self._cv.resize(grey, None, fx=factor, fy=factor, interpolation=self._cv.INTER_AREA)
        even, least = self._even.apply(grey), (SMALLEST_FACE, SMALLEST_FACE)
        found = self._faces.detectMultiScale(even, _STEP, _NEIGHBOURS, minSize=least)
        boxes = [FaceBox(x + side / 2, y + side / 2, float(side)).scaled(1 / factor) for x, y, side, _ in found]
        return sorted(boxes, key=lambda box: (-box.side, box.column, box.row))

    def eyes(self, picture: np.ndarray, face: FaceBox) -> int:
        """See ``FaceFinder``."""
        grey = self._cv.cvtColor(np.ascontiguousarray(face.of(picture[None])[0]), self._cv.COLOR_RGB2GRAY)
        upper = self._even.apply(grey)[: round(0.6 * len(grey))]
        return min(2, len(self._eyes.detectMultiScale(upper, 1.05, _NEIGHBOURS)))

    def _cascade(self, name: str) -> Any:
        return self._cv.CascadeClassifier(self._cv.data.haarcascades + name)


class YuNetFinder(CascadeFinder):
    """Faces by YuNet (Wu et al. 2023), a small network that OpenCV runs; eyes by the cascade.

    Args:
        file: ``face_detection_yunet_*.onnx`` of OpenCV's model zoo, which does not come with the wheel.

    Raises:
        LiveTalkError: OpenCV cannot load the file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        try:
            self._network = self._cv.FaceDetectorYN.create(str(file), "", (SEARCH_SIDE, SEARCH_SIDE), YUNET_SCORE)
        except self._cv.error as error:
            raise LiveTalkError(
                f"OpenCV could not load {file} as a face detector. Expected face_detection_yunet_*.onnx of its zoo."
            ) from error

    def find(self, picture: np.ndarray) -> list[FaceBox]:
        """See ``FaceFinder``."""
        factor = min(1.0, 2 * SEARCH_SIDE / max(picture.shape[:2]))
        small = self._cv.resize(picture, None, fx=factor, fy=factor, interpolation=self._cv.INTER_AREA)
        self._network.setInputSize((small.shape[1], small.shape[0]))
        _, found = self._network.detect(self._cv.cvtColor(small, self._cv.COLOR_RGB2BGR))
        boxes = [box_of_points(row[4:14].reshape(5, 2)).scaled(1 / factor) for row in ([] if found is None else found)]
        return sorted(boxes, key=lambda box: (-box.side, box.column, box.row))


def box_of_points(points: np.ndarray) -> FaceBox:
    """The box the cascade would give, from both eyes, nose and both corners of the mouth ``[5, 2]``."""
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    spots = np.array(SPOTS_IN_BOX)
    middle = spots[1:].mean(axis=0)
    across = float(np.linalg.norm(points[0] - points[1])) / float(spots[2, 0] - spots[1, 0])
    down = float(np.linalg.norm(mouth - eyes)) / float(spots[0, 1] - middle[1])
    side = max(across, down)  # a turned head brings the eyes together, a nod eyes and mouth
    return FaceBox(float(eyes[0] + mouth[0]) / 2, float(eyes[1]) + (0.5 - float(middle[1])) * side, side)


def opencv() -> Any:
    """OpenCV's module.

    Raises:
        LiveTalkError: it is not installed, or too new to find faces.
    """
    try:
        import cv2
    except ImportError as problem:
        raise LiveTalkError(
            f"Curating videos needs OpenCV, which could not be loaded ({problem})."
            " Install it with 'pip install -r requirements-train.txt'."
        ) from problem
    if not hasattr(cv2, "CascadeClassifier"):
        raise LiveTalkError(
            f"OpenCV {cv2.__version__} has no face cascades. Expected a version 4."
            " Install it with 'pip install -r requirements-train.txt'."
        )
    return cv2


@dataclass(frozen=True)
class Cut:
    """Part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pictures: np.ndarray, height: int, width: int) -> np.ndarray:
        """That part of ``pictures`` uint8 ``[T, H, W, 3]`` scaled to ``[T, height, width, 3]``."""
        cv = opencv()
        inside = pictures[:, self.top : self.top + self.height, self.left : self.left + self.width]
        if inside.shape[1:3] == (height, width):
            return np.ascontiguousarray(inside)
        way = cv.INTER_AREA if self.height > height else cv.INTER_CUBIC
        return np.stack([cv.resize(np.ascontiguousarray(one), (width, height), interpolation=way) for one in inside])

    def place(self, face: FaceBox, height: int) -> FaceBox:
        """Where a face lies in the cut after scaling to ``height``."""
        return FaceBox(face.column - self.left, face.row - self.top, face.side).scaled(height / self.height)


def cut_around(face: FaceBox, size: tuple[int, int], wanted: tuple[int, int], limits: Limits) -> Cut:
    """The part of a picture that shows a face as a portrait is framed, inside the picture.

    A picture whose middle is framed well enough already is taken whole: every further cut costs detail.

    Args:
        face: in pixels of the picture.
        size: height and width of the picture.
        wanted: height and width of the result; only their ratio counts.
        limits: framing.
    """
    aspect = wanted[1] / wanted[0]
    tallest = min(size[0], size[1] / aspect)
    whole = _cut((size[0] - tallest) / 2, (size[1] - tallest * aspect) / 2, tallest, aspect)
    if _framing(whole, face, limits, slack=0.7) is None:
        return whole
    height = min(tallest, face.side / limits.face_share / min(1.0, aspect))
    width = height * aspect
    top = min(max(0.0, face.row - limits.face_row * height), size[0] - height)
    left = min(max(0.0, face.column - limits.face_column * width), size[1] - width)
    return _cut(top, left, height, aspect)


def badly_framed(cut: Cut, face: FaceBox, wanted: tuple[int, int], limits: Limits) -> Reason | None:
    """Why a face cannot be shown as a portrait: too small, too large or not in the middle; None if it can."""
    if cut.height < limits.smallest_cut * wanted[0]:
        return "small_face"
    return _framing(cut, face, limits)


def spots_of(face: FaceBox, height: int, width: int) -> np.ndarray:
    """Mouth, left and right eye of a face in a picture of that size, in picture sides: float32 ``[3, 2]``."""
    corner = np.array([face.column - face.side / 2, face.row - face.side / 2])
    return ((corner + face.side * np.array(SPOTS_IN_BOX)) / np.array([width, height])).astype(np.float32)


def _cut(top: float, left: float, height: float, aspect: float) -> Cut:
    # rounded down, so that the cut stays inside the picture
    return Cut(*(int(edge + 1e-6) for edge in (top, left, height, height * aspect)))


def _framing(cut: Cut, face: FaceBox, limits: Limits, slack: float = 1.0) -> Reason | None:
    share = face.side / min(cut.height, cut.width)
    wanted = limits.face_share
    if share < wanted - slack * (wanted - limits.smallest_share):
        return "small_face"
    if share > wanted + slack * (limits.largest_share - wanted):
        return "large_face"
    across = abs((face.column - cut.left) / cut.width - limits.face_column)
    down = abs((face.row - cut.top) / cut.height - limits.face_row)
    return "off_centre" if max(across, down) > slack * limits.most_off else None
