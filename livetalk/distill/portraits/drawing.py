"""Puts a face, a pose and its surroundings together into pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from livetalk.distill.portraits import anatomy, eyes, features, hair, mouth, surroundings
from livetalk.distill.portraits.brush import Brush
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose

HEAD_X, HEAD_Y, NECK = 0.5, 0.49, 0.34


def draw(face: Face, pose: Pose, size: int) -> np.ndarray:
    """One picture: uint8 [size, size, 3]."""
    return draw_clip(face, [pose], size)[0]


def draw_clip(face: Face, poses: Iterable[Pose], size: int) -> np.ndarray:
    """Pictures of one face in many poses: uint8 [T, size, size, 3].

    Needs skia-python (and with it libEGL and libGL); the background is drawn once.
    """
    brush = Brush(size)
    surroundings.draw_background(brush, face)
    background = brush.pixels.copy()
    pictures = []
    for pose in poses:
        brush.pixels[...] = background
        _person(brush, face, pose)
        pictures.append(brush.pixels[..., :3].copy())
    return np.stack(pictures)


def landmarks(face: Face, poses: Iterable[Pose], size: int) -> np.ndarray:
    """Where the mouth, the left and the right eye of the picture are: float32 [T, 3, 2], (column, row) in pixels."""
    spots = ((0.0, anatomy.MOUTH_Y, 1.15), (-face.eye_gap, anatomy.EYE_Y, 1.0), (face.eye_gap, anatomy.EYE_Y, 1.0))
    found = []
    for pose in poses:
        sin, cos = float(np.sin(pose.roll)), float(np.cos(pose.roll))
        for x, y, depth in spots:
            u, v, _ = anatomy.place(face, pose, x, y, depth)
            column = pose.dx + NECK * sin + cos * u - sin * v
            row = pose.dy + NECK * (1.0 - cos) + sin * u + cos * v
            found.append((HEAD_X + face.offset_x + face.scale * column, HEAD_Y + face.offset_y + face.scale * row))
    return (np.asarray(found, np.float32) * size).reshape(-1, len(spots), 2)


def _person(brush: Brush, face: Face, pose: Pose) -> None:
    """Body first, then the head, turned about the base of the neck."""
    sin, cos = float(np.sin(pose.roll)), float(np.cos(pose.roll))
    lean_x = pose.dx + NECK * sin
    with brush.moved(HEAD_X + face.offset_x, HEAD_Y + face.offset_y, face.scale, face.scale):
        if face.style in ("long", "wavy"):
            with brush.moved(lean_x, pose.dy + NECK * (1.0 - cos), roll=pose.roll):
                hair.draw_back_hair(brush, face, pose)
        surroundings.draw_neck(brush, face, 0.0, lean_x * 0.8)
        surroundings.draw_body(brush, face, 0.0)
        with brush.moved(lean_x, pose.dy + NECK * (1.0 - cos), roll=pose.roll):
            _head(brush, face, pose)


def _head(brush: Brush, face: Face, pose: Pose) -> None:
    if face.style not in ("long", "wavy"):
        hair.draw_back_hair(brush, face, pose)
    surroundings.draw_ears(brush, face, pose)
    edge = anatomy.outline(brush, face, pose)
    features.draw_skin(brush, face, pose, edge)
    hair.hair_shadow(brush, face, pose, edge)
    features.draw_beard(brush, face, pose, edge)
    features.draw_nose(brush, face, pose)
    mouth.draw_mouth(brush, face, pose)
    eyes.draw_eyes(brush, face, pose)
    eyes.draw_brows(brush, face, pose)
    hair.draw_front_hair(brush, face, pose)
    features.draw_glasses(brush, face, pose)
