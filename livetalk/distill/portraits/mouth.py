"""The mouth: lips around a dark inside with teeth and tongue, continuous in all that moves it.

Coordinates are the head's. It knows nothing of sound.
"""

from __future__ import annotations

import numpy as np

from livetalk.distill.portraits.anatomy import BLACK, MOUTH_Y, WHITE, place, shade
from livetalk.distill.portraits.brush import Brush, fade, mix
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose


def draw_mouth(brush: Brush, face: Face, pose: Pose) -> None:
    """Lips around a dark inside with teeth and tongue; continuous in openness, width, teeth and smile."""
    x, y, narrow = place(face, pose, 0.0, MOUTH_Y, 1.15)
    wide = 1.0 + (0.27 if pose.wide > 0 else 0.36) * pose.wide + 0.10 * max(pose.smile, 0.0) - 0.08 * pose.open
    w = face.mouth_width * wide * narrow
    gap = 0.112 * pose.open**0.9 if pose.open > 0 else 0.0
    corner = -0.0225 * pose.smile - 0.0025 + 0.20 * gap
    pout = max(-pose.wide, 0.0)
    rest = 0.0015 + 0.0065 * pose.smile
    up, down = rest - 0.30 * gap, rest + 0.76 * gap
    thick_up, thick_down = (0.0165 + 0.005 * pout) * face.lip_full, (0.0215 + 0.006 * pout) * face.lip_full
    inner = (
        (-w * 0.97, corner),
        (-w * 0.52, up * 1.33 - 0.33 * corner, w * 0.52, up * 1.33 - 0.33 * corner, w * 0.97, corner),
        (w * 0.56, down * 1.33 - 0.33 * corner, -w * 0.56, down * 1.33 - 0.33 * corner, -w * 0.97, corner),
    )
    with brush.moved(x, y):
        brush.glow(0.0, down + thick_down + 0.014, 0.05, 0.014, shade(face), 0.55)
        _lips(brush, face, w, (corner, up, down), (thick_up, thick_down))
        inside = brush.cubics(*inner)
        if gap > 0.0:
            brush.fill(inside, brush.linear((0, up), (0, up + 0.10), [(0.17, 0.03, 0.05), (0.34, 0.07, 0.09)]))
            with brush.clipped(inside):
                _teeth_and_tongue(brush, pose, w, up, down, corner)
        seam = fade(mix(face.lip, (0.16, 0.03, 0.04), 0.74), 0.95)
        brush.stroke(brush.cubics(inner[0], inner[1], closed=False), seam, 0.0062)
        for side in (-1, 1):
            brush.glow(side * w, corner, 0.012, 0.010, mix(shade(face), BLACK, 0.35), 0.55)


def _lips(brush: Brush, face: Face, w: float, lines: tuple[float, float, float], thick: tuple[float, float]) -> None:
    corner, up, down = lines
    top, low = up - thick[0], down + thick[1]
    upper_lip = mix(face.lip, BLACK, 0.10)
    lift = 0.33 * corner
    upper = brush.cubics(
        (-w, corner),
        (-w * 0.62, top * 1.18 - lift * 0.5, -w * 0.30, top * 1.16 - 0.003, 0.0, top + 0.0035),
        (w * 0.30, top * 1.16 - 0.003, w * 0.62, top * 1.18 - lift * 0.5, w, corner),
        (w * 0.52, up * 1.33 - lift + 0.006, -w * 0.52, up * 1.33 - lift + 0.006, -w, corner),
    )
    lower = brush.cubics(
        (-w, corner),
        (-w * 0.60, low * 1.33 - lift, w * 0.60, low * 1.33 - lift, w, corner),
        (w * 0.52, up * 1.33 - lift, -w * 0.52, up * 1.33 - lift, -w, corner),
    )
    brush.fill(lower, brush.linear((0, down), (0, low), [mix(face.lip, WHITE, 0.10), mix(face.lip, BLACK, 0.12)]))
    brush.fill(upper, upper_lip)
    brush.glow(face.light * 0.15 * w, down + 0.45 * thick[1], 0.34 * w, 0.26 * thick[1], WHITE, 0.40)


def _teeth_and_tongue(brush: Brush, pose: Pose, w: float, up: float, down: float, corner: float) -> None:
    height = down - up
    tongue = float(np.clip((pose.open - 0.22) / 0.4, 0.0, 1.0))
    if tongue > 0:
        brush.oval(
            0.0,
            down + 0.022 - 0.020 * tongue,
            w * 0.60,
            0.030,
            brush.radial((0, down - 0.012), 0.05, [(0.86, 0.42, 0.42), (0.66, 0.24, 0.28)]),
        )
    strip = min(0.55 * height, 0.010 + 0.014 * pose.teeth) * (0.35 + 0.65 * pose.teeth) + 0.12 * height * pose.teeth
    rim = up * 1.0 - 0.02
    brush.fill(
        brush.cubics(
            (-w * 0.90, rim),
            (-w * 0.3, rim, w * 0.3, rim, w * 0.90, rim),
            (
                w * 0.82,
                max(up, 0.4 * corner) + strip * 1.25,
                -w * 0.82,
                max(up, 0.4 * corner) + strip * 1.25,
                -w * 0.90,
                rim,
            ),
        ),
        brush.linear((0, up), (0, up + 0.03), [(0.90, 0.89, 0.87), (0.985, 0.98, 0.965)]),
    )
