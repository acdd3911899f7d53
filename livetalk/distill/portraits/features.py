"""Skin, nose, beard and glasses: what of the face follows the head's turn but does not speak.

Coordinates are the head's. Eyes and mouth have modules of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livetalk.distill.portraits.anatomy import BLACK, EYE_Y, MOUTH_Y, WARM, glare, place, shade
from livetalk.distill.portraits.brush import Brush, Colour, fade, mix
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose


def draw_skin(brush: Brush, face: Face, pose: Pose, edge: Any) -> None:
    """Skin with light from one side, blush, forehead glow, freckles and the lines of age."""
    dark, light = shade(face), mix(face.skin, WARM, 0.34 * glare(face))
    w, h = face.width, face.length
    centre = (face.light * 0.38 * w + 0.02 * pose.yaw, -0.24 * h)
    brush.fill(
        edge,
        brush.radial(centre, 1.55 * h, [light, face.skin, mix(face.skin, dark, 0.45), dark], (0.0, 0.36, 0.72, 1.0)),
    )
    with brush.clipped(edge):
        brush.glow(-face.light * w * 1.02, 0.05 * h, 0.62 * w, 1.1 * h, dark, 0.42)
        cheeks = face.blush + 0.16 * max(pose.smile, 0.0)
        for side in (-1, 1):
            x, y, narrow = place(face, pose, side * 0.135, 0.098 - 0.012 * max(pose.smile, 0.0))
            brush.glow(x, y, 0.068 * narrow, 0.050, (0.86, 0.34, 0.30), cheeks * glare(face))
            brush.glow(x, y - 0.028, 0.04 * narrow, 0.022, WARM, 0.20 * glare(face))
        if face.freckles:
            rng = np.random.default_rng(face.seed)
            for u, v in rng.uniform(-1, 1, (26, 2)):
                x, y, _ = place(face, pose, 0.15 * u, 0.085 + 0.035 * v)
                brush.oval(x, y, 0.0034, 0.0034, fade(dark, 0.40))
    _age_lines(brush, face, pose)


def _age_lines(brush: Brush, face: Face, pose: Pose) -> None:
    line = fade(mix(shade(face), BLACK, 0.2), 0.12 + 0.42 * max(face.age - 0.25, 0.0) + 0.12 * abs(pose.smile))
    for side in (-1, 1):
        x, y, narrow = place(face, pose, side * 0.070, 0.118)
        out = side * narrow * (0.024 + 0.010 * max(pose.smile, 0.0))
        brush.stroke(
            brush.cubics(
                (x, y), (x + out, y + 0.012, x + out * 1.4, y + 0.03, x + out * 1.25, y + 0.046), closed=False
            ),
            line,
            0.005,
        )
    if face.age > 0.5:
        for k in (0, 1):
            x, y, _ = place(face, pose, 0.0, -0.135 - 0.028 * k - 0.006 * pose.brow)
            brush.stroke(
                brush.cubics((x - 0.07, y), (x - 0.03, y - 0.008, x + 0.03, y - 0.008, x + 0.07, y), closed=False),
                line,
                0.0035,
            )


def draw_nose(brush: Brush, face: Face, pose: Pose) -> None:
    """Bridge by its shadow, tip by its light, nostrils."""
    dark = mix(shade(face), BLACK, 0.12)
    tip_x, tip_y, _ = place(face, pose, 0.0, 0.090 * face.nose_length, 1.4)
    top_x, top_y, _ = place(face, pose, 0.0, -0.022, 1.05)
    half = 0.032 * face.nose_width
    side = -face.light
    bridge = brush.cubics(
        (top_x + side * 0.016, top_y),
        (
            top_x + side * 0.010,
            top_y + 0.04,
            tip_x + side * 0.016,
            tip_y - 0.04,
            tip_x + side * half * 1.02,
            tip_y + 0.006,
        ),
        (tip_x + side * 0.018, tip_y + 0.004, tip_x + side * 0.006, tip_y - 0.03, top_x + side * 0.004, top_y),
    )
    brush.fill(bridge, brush.linear((0, top_y), (0, tip_y), [fade(dark, 0.10), fade(dark, 0.42)]))
    brush.glow(tip_x, tip_y + 0.018, half * 1.5, 0.016, dark, 0.45)
    brush.glow(tip_x + face.light * 0.006, tip_y - 0.010, 0.026, 0.024, WARM, 0.60 * glare(face) ** 1.5)
    brush.glow(
        (tip_x + top_x) / 2 + face.light * 0.004,
        (tip_y + top_y) / 2 - 0.01,
        0.011,
        0.046,
        WARM,
        0.34 * glare(face) ** 1.5,
    )
    nostril = fade(mix(dark, BLACK, 0.45), 0.80)
    for s in (-1, 1):
        brush.oval(tip_x + s * half * 0.46, tip_y + 0.0135, 0.0082 * face.nose_width, 0.0042, nostril)
        wing = brush.cubics(
            (tip_x + s * half * 0.86, tip_y - 0.010),
            (
                tip_x + s * half * 1.22,
                tip_y - 0.004,
                tip_x + s * half * 1.12,
                tip_y + 0.014,
                tip_x + s * half * 0.78,
                tip_y + 0.013,
            ),
            closed=False,
        )
        brush.stroke(wing, fade(dark, 0.70), 0.0048)


def draw_beard(brush: Brush, face: Face, pose: Pose, edge: Any) -> None:
    """Stubble, full beard, goatee or moustache; drawn before the mouth."""
    if face.beard == "none":
        return
    x, y, narrow = place(face, pose, 0.0, MOUTH_Y, 1.15)
    tone = mix(face.hair, BLACK, 0.12)
    h, drop = face.length, 0.03 * pose.open
    if face.beard in ("full", "stubble"):
        _full_beard(brush, face, (x, y), tone, edge)
        return
    if face.beard == "goatee":
        with brush.clipped(edge):
            brush.fill(
                brush.curve(
                    [
                        (x - 0.075, y - 0.002),
                        (x - 0.045, y + 0.035),
                        (x, y + 0.032),
                        (x + 0.045, y + 0.035),
                        (x + 0.075, y - 0.002),
                        (x + 0.078, y + 0.06 + drop),
                        (x + 0.05, h + drop + 0.02),
                        (x - 0.05, h + drop + 0.02),
                        (x - 0.078, y + 0.06 + drop),
                    ]
                ),
                fade(tone, 0.92),
            )
    lift = 0.30 * 0.112 * pose.open
    brush.fill(
        brush.curve(
            [
                (x, y - 0.046 - lift),
                (x + 0.05 * narrow, y - 0.043 - lift * 0.8),
                (x + 0.093 * narrow, y - 0.002),
                (x + 0.05 * narrow, y - 0.020 - lift * 0.8),
                (x, y - 0.022 - lift),
                (x - 0.05 * narrow, y - 0.020 - lift * 0.8),
                (x - 0.093 * narrow, y - 0.002),
                (x - 0.05 * narrow, y - 0.043 - lift * 0.8),
            ]
        ),
        fade(tone, 0.95),
    )


def _full_beard(brush: Brush, face: Face, mouth: tuple[float, float], tone: Colour, edge: Any) -> None:
    """Beard or stubble over the jaw, from the ears under the nose, inside the face's edge."""
    x, y = mouth
    w, h = face.width, face.length
    alpha = 0.30 if face.beard == "stubble" else 0.94
    with brush.clipped(edge):
        shape = brush.curve(
            [
                (-w * 1.1, -0.02),
                (-w * 0.90, 0.07),
                (x - 0.125, y - 0.035),
                (x - 0.066, y - 0.046),
                (x, y - 0.040),
                (x + 0.066, y - 0.046),
                (x + 0.125, y - 0.035),
                (w * 0.90, 0.07),
                (w * 1.1, -0.02),
                (w * 1.2, h * 1.3),
                (-w * 1.2, h * 1.3),
            ]
        )
        brush.fill(
            shape,
            brush.linear(
                (0, 0.02),
                (0, h),
                [fade(tone, alpha * 0.70), fade(tone, alpha), fade(mix(tone, BLACK, 0.25), alpha)],
            ),
        )


def draw_glasses(brush: Brush, face: Face, pose: Pose) -> None:
    """Frames that turn with the head, with a light glint."""
    if face.glasses == "none":
        return
    ends = []
    for side in (-1, 1):
        x, y, narrow = place(face, pose, side * (face.eye_gap + 0.002), EYE_Y + 0.004, 1.2)
        rx, ry = 0.080 * narrow, 0.062 if face.glasses == "round" else 0.050
        rim = _rim(brush, face, (x, y), (rx, ry), side)
        brush.fill(rim, (1.0, 1.0, 1.0, 0.10))
        with brush.clipped(rim):
            brush.stroke(brush.lines([(x + 0.03, y - 0.06), (x - 0.04, y + 0.06)], False), (1, 1, 1, 0.16), 0.018)
        brush.stroke(rim, face.frame, 0.0085)
        temple_x = side * face.width * 0.985
        brush.stroke(
            brush.lines([(x + side * rx * 0.96, y - 0.012), (temple_x, y - 0.018 - 0.01 * pose.pitch)], False),
            face.frame,
            0.0070,
        )
        ends.append((x - side * rx * 0.93, y - 0.010))
    (ax, ay), (bx, by) = ends
    brush.stroke(
        brush.cubics((ax, ay), (ax + 0.006, ay - 0.014, bx - 0.006, by - 0.014, bx, by), closed=False),
        face.frame,
        0.0085,
    )


def _rim(brush: Brush, face: Face, centre: tuple[float, float], radii: tuple[float, float], side: int) -> Any:
    """Outline of one glass around an eye."""
    (x, y), (rx, ry) = centre, radii
    if face.glasses == "round":
        return brush.oval_path(x, y, rx * 0.94, ry)
    if face.glasses == "square":
        return brush.box_path(x, y, rx, ry, 0.018)
    return brush.curve(
        [
            (x + side * rx * 1.08, y - ry * 1.05),
            (x + side * rx * 0.8, y + ry * 0.75),
            (x, y + ry),
            (x - side * rx * 0.9, y + ry * 0.5),
            (x - side * rx * 0.85, y - ry * 0.7),
        ]
    )
