"""Illustrated talking portraits with exact ground truth: what the embedded model is trained and measured on.

`Face.sample(seed)` says who, `animate(mouth, seed, motion, mood)` how they move,
`draw_clip(face, poses, size)` makes the pictures, `caption` a sentence about them. Only drawing needs
skia-python, which is imported when the first picture is made.
"""

from livetalk.distill.portraits.drawing import draw, draw_clip, landmarks
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import (
    MOODS,
    MOTIONS,
    POSE_FIELDS,
    Pose,
    Poses,
    animate,
    caption,
    sway_of_clip,
    sway_of_poses,
)

__all__ = [
    "MOODS",
    "MOTIONS",
    "POSE_FIELDS",
    "Face",
    "Pose",
    "Poses",
    "animate",
    "caption",
    "draw",
    "draw_clip",
    "landmarks",
    "sway_of_clip",
    "sway_of_poses",
]
