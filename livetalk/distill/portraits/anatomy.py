"""Where the parts of a face are, how they turn with the head, and the colours of skin in light and shadow.

Coordinates are the head's: the origin is its centre, one unit the picture's side. It draws nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livetalk.distill.portraits.brush import Brush
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose

BLACK, WHITE, WARM = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.95, 0.86)
MOUTH_Y, EYE_Y, BROW_Y = 0.176, -0.004, -0.073


def shade(face: Face) -> tuple[float, ...]:
    """Colour of the skin in shadow: darker and warmer."""
    r, g, b = face.skin
    return (r * 0.76, g * 0.66, b * 0.64)


def glare(face: Face) -> float:
    """How strongly light shows on this skin: less on dark skin, where a pale spot would look like paint."""
    return float(min(1.0, 0.10 + 0.36 * sum(face.skin)))


def place(face: Face, pose: Pose, x: float, y: float, depth: float = 1.0) -> tuple[float, float, float]:
    """Where a point of the resting face goes when the head turns: x, y and how narrow it is seen."""
    radius = face.width * 1.2
    rest, turn = float(np.arcsin(x / radius)), 0.23 * pose.yaw * depth
    return radius * np.sin(rest + turn), y + 0.040 * pose.pitch * depth, float(np.cos(rest + turn) / np.cos(rest))


def outline(brush: Brush, face: Face, pose: Pose) -> Any:
    """The face's edge; the chin follows the jaw."""
    w, h = face.width, face.length
    drop = 0.022 * pose.open
    jaw_y, chin = 0.60 * h + 0.6 * drop, face.chin * w
    right = [
        (0.0, -h),
        (0.58 * w, -0.86 * h),
        (0.93 * w, -0.46 * h),
        (w, -0.02 * h),
        (0.97 * face.cheek * w, 0.28 * h),
        ((0.25 + 0.75 * face.jaw) * 0.93 * w, jaw_y),
        (chin + 0.14 * w, 0.90 * h + drop),
        (chin * 0.35, h + drop),
    ]
    left = [(-x, y) for x, y in reversed(right[1:])]
    lean = 0.032 * pose.yaw
    return brush.curve([(x + lean * (0.4 + max(y, 0.0) * 2.2), y + 0.008 * pose.pitch) for x, y in right + left])
