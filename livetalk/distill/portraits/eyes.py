"""Eyes with lids, lashes and gaze, and the brows above them.

They follow the pose's blink, gaze, brows and mood. Coordinates are the head's.
"""

from __future__ import annotations

from typing import Any

from livetalk.distill.portraits.anatomy import BLACK, BROW_Y, EYE_Y, WHITE, place, shade
from livetalk.distill.portraits.brush import Brush, fade, mix
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose


def draw_eyes(brush: Brush, face: Face, pose: Pose) -> None:
    """Both eyes with lids, iris, light and lashes."""
    for side in (-1, 1):
        x, y, narrow = place(face, pose, side * face.eye_gap, EYE_Y)
        brush.glow(x, y - 0.008, 0.075 * narrow, 0.048, shade(face), 0.42)
        with brush.moved(x, y, 1.0, side * narrow):
            _eye(brush, face, pose, side)


def _eye(brush: Brush, face: Face, pose: Pose, side: int) -> None:
    """One eye; x grows towards the outer corner."""
    w = 0.0515 * face.eye_size
    happy = max(pose.smile, 0.0)
    high = (0.0285 * face.eye_tall + 0.0105 * pose.eye_wide) * face.eye_size
    low = (0.0185 + 0.003 * pose.eye_wide - 0.0055 * happy) * face.eye_size
    # sad lids droop outside, angry lids press down inside
    outer = -face.eye_tilt + 0.006 * pose.brow_angle
    inner_lid, outer_lid = (
        high * (1.0 + 0.28 * min(pose.brow_angle, 0.0)),
        high * (1.0 - 0.22 * max(pose.brow_angle, 0.0)),
    )
    shut = pose.blink
    a, b = (-h * 1.32 * (1.0 - shut) + low * 1.15 * shut for h in (inner_lid, outer_lid))
    lid = (-w * 0.62, a, w * 0.48, b, w, outer)
    bottom = (w * 0.52, low * 1.3, -w * 0.52, low * 1.3, -w, 0.002)
    gap = brush.cubics((-w, 0.002), lid, bottom)
    if shut < 0.97:
        _ball(brush, face, pose, gap, side, high)
    crease = -(high * 1.62) * (1.0 - 0.35 * shut) - 0.004
    lid_skin = mix(face.skin, shade(face), 0.34 + 0.16 * shut)
    upper = brush.cubics((-w, 0.002), lid, (w * 0.50, crease * 1.28, -w * 0.62, crease * 1.22, -w, 0.002))
    brush.fill(upper, fade(lid_skin, 0.55 + 0.40 * shut))
    brush.stroke(
        brush.cubics(
            (-w * 0.92, -0.008), (-w * 0.6, crease * 1.2, w * 0.5, crease * 1.25, w * 1.02, outer - 0.006), closed=False
        ),
        fade(mix(shade(face), BLACK, 0.25), 0.55),
        0.0040,
    )
    lash = mix(mix(face.hair, BLACK, 0.72), (0.08, 0.05, 0.05), 0.5)
    brush.stroke(brush.cubics((-w, 0.002), lid, closed=False), lash, 0.0078 + 0.0032 * face.feminine)
    if face.feminine > 0.5:
        tip = -0.011 * (1.0 - shut) + 0.009 * shut
        brush.stroke(
            brush.cubics(
                (w * 0.8, outer + (b * 0.3)), (w, outer, w * 1.08, outer, w * 1.20, outer + tip), closed=False
            ),
            lash,
            0.0060,
        )
    brush.stroke(brush.cubics((w, outer), bottom, closed=False), fade(mix(shade(face), BLACK, 0.3), 0.50), 0.0036)


def _ball(brush: Brush, face: Face, pose: Pose, gap: Any, side: int, high: float) -> None:
    brush.fill(gap, brush.linear((0, -high), (0, 0.018), [(0.80, 0.78, 0.80), (0.99, 0.98, 0.97)]))
    x, y = side * 0.0165 * pose.gaze_x - 0.001, -0.0035 + 0.0095 * pose.gaze_y
    r = 0.0265 * face.eye_size
    with brush.clipped(gap):
        rim = mix(face.eye, BLACK, 0.62)
        brush.oval(
            x,
            y,
            r,
            r,
            brush.radial((x, y + 0.35 * r), r * 1.35, [mix(face.eye, WHITE, 0.36), face.eye, rim], (0.0, 0.48, 1.0)),
        )
        brush.oval(x, y, r * 0.47, r * 0.47, (0.03, 0.025, 0.03))
        brush.oval(x + side * face.light * 0.36 * r, y - 0.38 * r, r * 0.27, r * 0.27, (1.0, 1.0, 1.0, 0.96))
        brush.oval(x - side * face.light * 0.34 * r, y + 0.42 * r, r * 0.13, r * 0.13, (1.0, 1.0, 1.0, 0.55))


def draw_brows(brush: Brush, face: Face, pose: Pose) -> None:
    """Tapered brows; they rise, and tilt with anger or sorrow."""
    tone = fade(mix(face.hair, (0.16, 0.10, 0.08), 0.45 if sum(face.hair) > 1.2 else 0.15), 0.92)
    for side in (-1, 1):
        x, y, narrow = place(face, pose, side * face.eye_gap, BROW_Y - face.brow_lift - 0.024 * pose.brow, 1.05)
        inner, outer = -0.022 * pose.brow_angle, 0.014 * pose.brow_angle
        t, arch = 0.0105 * face.brow_thick, 0.017 * face.brow_arch + 0.006 * max(pose.brow, 0.0)
        with brush.moved(x, y, 1.0, side * narrow):
            brush.fill(
                brush.cubics(
                    (-0.054, inner + 0.006),
                    (-0.030, inner * 0.7 - 0.55 * arch, 0.020, -arch + outer * 0.4, 0.064, outer + 0.010),
                    (
                        0.022,
                        -arch + outer * 0.4 + 1.7 * t,
                        -0.024,
                        inner * 0.7 - 0.5 * arch + 2.0 * t,
                        -0.051,
                        inner + 0.006 + 1.5 * t,
                    ),
                ),
                tone,
            )
