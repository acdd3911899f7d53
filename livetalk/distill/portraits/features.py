"""The face itself: outline, nose, eyes, brows, mouth, beard, glasses. Everything here follows the pose.

Coordinates are the head's: the origin is its centre, one unit the picture's side. It knows no hair and no background.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livetalk.distill.portraits.brush import Brush, fade, mix
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
    right = [(0.0, -h), (0.58 * w, -0.86 * h), (0.93 * w, -0.46 * h), (w, -0.02 * h), (0.97 * face.cheek * w, 0.28 * h),
             ((0.25 + 0.75 * face.jaw) * 0.93 * w, jaw_y), (chin + 0.14 * w, 0.90 * h + drop), (chin * 0.35, h + drop)]  # fmt: skip
    left = [(-x, y) for x, y in reversed(right[1:])]
    lean = 0.032 * pose.yaw
    return brush.curve([(x + lean * (0.4 + max(y, 0.0) * 2.2), y + 0.008 * pose.pitch) for x, y in right + left])


def draw_skin(brush: Brush, face: Face, pose: Pose, edge: Any) -> None:
    """Skin with light from one side, blush, forehead glow, freckles and the lines of age."""
    dark, light = shade(face), mix(face.skin, WARM, 0.34 * glare(face))
    w, h = face.width, face.length
    centre = (face.light * 0.38 * w + 0.02 * pose.yaw, -0.24 * h)
    brush.fill(edge, brush.radial(centre, 1.55 * h, [light, face.skin, mix(face.skin, dark, 0.45), dark], (0.0, 0.36, 0.72, 1.0)))
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
        brush.stroke(brush.cubics((x, y), (x + out, y + 0.012, x + out * 1.4, y + 0.03, x + out * 1.25, y + 0.046), closed=False), line, 0.005)
    if face.age > 0.5:
        for k in (0, 1):
            x, y, _ = place(face, pose, 0.0, -0.135 - 0.028 * k - 0.006 * pose.brow)
            brush.stroke(brush.cubics((x - 0.07, y), (x - 0.03, y - 0.008, x + 0.03, y - 0.008, x + 0.07, y), closed=False), line, 0.0035)


def draw_nose(brush: Brush, face: Face, pose: Pose) -> None:
    """Bridge by its shadow, tip by its light, nostrils."""
    dark = mix(shade(face), BLACK, 0.12)
    tip_x, tip_y, _ = place(face, pose, 0.0, 0.090 * face.nose_length, 1.4)
    top_x, top_y, _ = place(face, pose, 0.0, -0.022, 1.05)
    half = 0.032 * face.nose_width
    side = -face.light
    bridge = brush.cubics((top_x + side * 0.016, top_y), (top_x + side * 0.010, top_y + 0.04, tip_x + side * 0.016, tip_y - 0.04, tip_x + side * half * 1.02, tip_y + 0.006),
                          (tip_x + side * 0.018, tip_y + 0.004, tip_x + side * 0.006, tip_y - 0.03, top_x + side * 0.004, top_y))  # fmt: skip
    brush.fill(bridge, brush.linear((0, top_y), (0, tip_y), [fade(dark, 0.10), fade(dark, 0.42)]))
    brush.glow(tip_x, tip_y + 0.018, half * 1.5, 0.016, dark, 0.45)
    brush.glow(tip_x + face.light * 0.006, tip_y - 0.010, 0.026, 0.024, WARM, 0.60 * glare(face) ** 1.5)
    brush.glow((tip_x + top_x) / 2 + face.light * 0.004, (tip_y + top_y) / 2 - 0.01, 0.011, 0.046, WARM, 0.34 * glare(face) ** 1.5)
    nostril = fade(mix(dark, BLACK, 0.45), 0.80)
    for s in (-1, 1):
        brush.oval(tip_x + s * half * 0.46, tip_y + 0.0135, 0.0082 * face.nose_width, 0.0042, nostril)
        wing = brush.cubics((tip_x + s * half * 0.86, tip_y - 0.010), (tip_x + s * half * 1.22, tip_y - 0.004, tip_x + s * half * 1.12, tip_y + 0.014, tip_x + s * half * 0.78, tip_y + 0.013), closed=False)
        brush.stroke(wing, fade(dark, 0.70), 0.0048)


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
    inner_lid, outer_lid = high * (1.0 + 0.28 * min(pose.brow_angle, 0.0)), high * (1.0 - 0.22 * max(pose.brow_angle, 0.0))
    shut = pose.blink
    a, b = (-h * 1.32 * (1.0 - shut) + low * 1.15 * shut for h in (inner_lid, outer_lid))
    lid = (-w * 0.62, a, w * 0.48, b, w, outer)
    bottom = (w * 0.52, low * 1.3, -w * 0.52, low * 1.3, -w, 0.002)
    gap = brush.cubics((-w, 0.002), lid, bottom)
    if shut < 0.97:
        _ball(brush, face, pose, gap, side, w, high)
    crease = -(high * 1.62) * (1.0 - 0.35 * shut) - 0.004
    lid_skin = mix(face.skin, shade(face), 0.34 + 0.16 * shut)
    upper = brush.cubics((-w, 0.002), lid, (w * 0.50, crease * 1.28, -w * 0.62, crease * 1.22, -w, 0.002))
    brush.fill(upper, fade(lid_skin, 0.55 + 0.40 * shut))
    brush.stroke(brush.cubics((-w * 0.92, -0.008), (-w * 0.6, crease * 1.2, w * 0.5, crease * 1.25, w * 1.02, outer - 0.006), closed=False),
                 fade(mix(shade(face), BLACK, 0.25), 0.55), 0.0040)  # fmt: skip
    lash = mix(mix(face.hair, BLACK, 0.72), (0.08, 0.05, 0.05), 0.5)
    brush.stroke(brush.cubics((-w, 0.002), lid, closed=False), lash, 0.0078 + 0.0032 * face.feminine)
    if face.feminine > 0.5:
        tip = -0.011 * (1.0 - shut) + 0.009 * shut
        brush.stroke(brush.cubics((w * 0.8, outer + (b * 0.3)), (w, outer, w * 1.08, outer, w * 1.20, outer + tip), closed=False), lash, 0.0060)
    brush.stroke(brush.cubics((w, outer), bottom, closed=False), fade(mix(shade(face), BLACK, 0.3), 0.50), 0.0036)


def _ball(brush: Brush, face: Face, pose: Pose, gap: Any, side: int, w: float, high: float) -> None:
    brush.fill(gap, brush.linear((0, -high), (0, 0.018), [(0.80, 0.78, 0.80), (0.99, 0.98, 0.97)]))
    x, y = side * 0.0165 * pose.gaze_x - 0.001, -0.0035 + 0.0095 * pose.gaze_y
    r = 0.0265 * face.eye_size
    with brush.clipped(gap):
        rim = mix(face.eye, BLACK, 0.62)
        brush.oval(x, y, r, r, brush.radial((x, y + 0.35 * r), r * 1.35, [mix(face.eye, WHITE, 0.36), face.eye, rim], (0.0, 0.48, 1.0)))
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
            brush.fill(brush.cubics((-0.054, inner + 0.006), (-0.030, inner * 0.7 - 0.55 * arch, 0.020, -arch + outer * 0.4, 0.064, outer + 0.010),
                                    (0.022, -arch + outer * 0.4 + 1.7 * t, -0.024, inner * 0.7 - 0.5 * arch + 2.0 * t, -0.051, inner + 0.006 + 1.5 * t)), tone)  # fmt: skip


def draw_mouth(brush: Brush, face: Face, pose: Pose) -> None:
    """Lips around a dark inside with teeth and tongue; continuous in openness, width, teeth and smile."""
    x, y, narrow = place(face, pose, 0.0, MOUTH_Y, 1.15)
    wide = 1.0 + 0.27 * pose.wide + 0.10 * max(pose.smile, 0.0) - 0.08 * pose.open
    w = face.mouth_width * wide * narrow
    gap = 0.112 * pose.open**0.9 if pose.open > 0 else 0.0
    corner = -0.0225 * pose.smile - 0.0025 + 0.20 * gap
    pout = max(-pose.wide, 0.0)
    rest = 0.0015 + 0.0065 * pose.smile
    up, down = rest - 0.30 * gap, rest + 0.76 * gap
    thick_up, thick_down = (0.0165 + 0.005 * pout) * face.lip_full, (0.0215 + 0.006 * pout) * face.lip_full
    inner = ((-w * 0.97, corner), (-w * 0.52, up * 1.33 - 0.33 * corner, w * 0.52, up * 1.33 - 0.33 * corner, w * 0.97, corner),
             (w * 0.56, down * 1.33 - 0.33 * corner, -w * 0.56, down * 1.33 - 0.33 * corner, -w * 0.97, corner))  # fmt: skip
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
    upper = brush.cubics((-w, corner), (-w * 0.62, top * 1.18 - lift * 0.5, -w * 0.30, top * 1.16 - 0.003, 0.0, top + 0.0035),
                         (w * 0.30, top * 1.16 - 0.003, w * 0.62, top * 1.18 - lift * 0.5, w, corner),
                         (w * 0.52, up * 1.33 - lift + 0.006, -w * 0.52, up * 1.33 - lift + 0.006, -w, corner))  # fmt: skip
    lower = brush.cubics((-w, corner), (-w * 0.60, low * 1.33 - lift, w * 0.60, low * 1.33 - lift, w, corner),
                         (w * 0.52, up * 1.33 - lift, -w * 0.52, up * 1.33 - lift, -w, corner))  # fmt: skip
    brush.fill(lower, brush.linear((0, down), (0, low), [mix(face.lip, WHITE, 0.10), mix(face.lip, BLACK, 0.12)]))
    brush.fill(upper, upper_lip)
    brush.glow(face.light * 0.15 * w, down + 0.45 * thick[1], 0.34 * w, 0.26 * thick[1], WHITE, 0.40)


def _teeth_and_tongue(brush: Brush, pose: Pose, w: float, up: float, down: float, corner: float) -> None:
    height = down - up
    tongue = float(np.clip((pose.open - 0.22) / 0.4, 0.0, 1.0))
    if tongue > 0:
        brush.oval(0.0, down + 0.022 - 0.020 * tongue, w * 0.60, 0.030, brush.radial((0, down - 0.012), 0.05, [(0.86, 0.42, 0.42), (0.66, 0.24, 0.28)]))
    strip = min(0.55 * height, 0.010 + 0.014 * pose.teeth) * (0.35 + 0.65 * pose.teeth) + 0.12 * height * pose.teeth
    rim = up * 1.0 - 0.02
    brush.fill(brush.cubics((-w * 0.90, rim), (-w * 0.3, rim, w * 0.3, rim, w * 0.90, rim),
                            (w * 0.82, max(up, 0.4 * corner) + strip * 1.25, -w * 0.82, max(up, 0.4 * corner) + strip * 1.25, -w * 0.90, rim)),
               brush.linear((0, up), (0, up + 0.03), [(0.90, 0.89, 0.87), (0.985, 0.98, 0.965)]))  # fmt: skip


def draw_beard(brush: Brush, face: Face, pose: Pose, edge: Any) -> None:
    """Stubble, full beard, goatee or moustache; drawn before the mouth."""
    if face.beard == "none":
        return
    x, y, narrow = place(face, pose, 0.0, MOUTH_Y, 1.15)
    tone = mix(face.hair, BLACK, 0.12)
    w, h, drop = face.width, face.length, 0.03 * pose.open
    if face.beard in ("full", "stubble"):
        alpha = 0.30 if face.beard == "stubble" else 0.94
        with brush.clipped(edge):
            shape = brush.curve([(-w * 1.1, -0.02), (-w * 0.90, 0.07), (x - 0.125, y - 0.035), (x - 0.066, y - 0.046), (x, y - 0.040), (x + 0.066, y - 0.046),
                                 (x + 0.125, y - 0.035), (w * 0.90, 0.07), (w * 1.1, -0.02), (w * 1.2, h * 1.3), (-w * 1.2, h * 1.3)])  # fmt: skip
            brush.fill(shape, brush.linear((0, 0.02), (0, h), [fade(tone, alpha * 0.70), fade(tone, alpha), fade(mix(tone, BLACK, 0.25), alpha)]))
        return
    if face.beard == "goatee":
        with brush.clipped(edge):
            brush.fill(brush.curve([(x - 0.075, y - 0.002), (x - 0.045, y + 0.035), (x, y + 0.032), (x + 0.045, y + 0.035), (x + 0.075, y - 0.002), (x + 0.078, y + 0.06 + drop), (x + 0.05, h + drop + 0.02),
                                    (x - 0.05, h + drop + 0.02), (x - 0.078, y + 0.06 + drop)]), fade(tone, 0.92))  # fmt: skip
    lift = 0.30 * 0.112 * pose.open
    brush.fill(brush.curve([(x, y - 0.046 - lift), (x + 0.05 * narrow, y - 0.043 - lift * 0.8), (x + 0.093 * narrow, y - 0.002), (x + 0.05 * narrow, y - 0.020 - lift * 0.8), (x, y - 0.022 - lift),
                            (x - 0.05 * narrow, y - 0.020 - lift * 0.8), (x - 0.093 * narrow, y - 0.002), (x - 0.05 * narrow, y - 0.043 - lift * 0.8)]), fade(tone, 0.95))  # fmt: skip


def draw_glasses(brush: Brush, face: Face, pose: Pose) -> None:
    """Frames that turn with the head, with a light glint."""
    if face.glasses == "none":
        return
    ends = []
    for side in (-1, 1):
        x, y, narrow = place(face, pose, side * (face.eye_gap + 0.002), EYE_Y + 0.004, 1.2)
        rx, ry = 0.080 * narrow, 0.062 if face.glasses == "round" else 0.050
        if face.glasses == "round":
            rim = brush.oval_path(x, y, rx * 0.94, ry)
        elif face.glasses == "square":
            rim = brush.box_path(x, y, rx, ry, 0.018)
        else:
            rim = brush.curve([(x + side * rx * 1.08, y - ry * 1.05), (x + side * rx * 0.8, y + ry * 0.75), (x, y + ry), (x - side * rx * 0.9, y + ry * 0.5), (x - side * rx * 0.85, y - ry * 0.7)])
        brush.fill(rim, (1.0, 1.0, 1.0, 0.10))
        with brush.clipped(rim):
            brush.stroke(brush.lines([(x + 0.03, y - 0.06), (x - 0.04, y + 0.06)], False), (1, 1, 1, 0.16), 0.018)
        brush.stroke(rim, face.frame, 0.0085)
        temple_x = side * face.width * 0.985
        brush.stroke(brush.lines([(x + side * rx * 0.96, y - 0.012), (temple_x, y - 0.018 - 0.01 * pose.pitch)], False), face.frame, 0.0070)
        ends.append((x - side * rx * 0.93, y - 0.010))
    (ax, ay), (bx, by) = ends
    brush.stroke(brush.cubics((ax, ay), (ax + 0.006, ay - 0.014, bx - 0.006, by - 0.014, bx, by), closed=False), face.frame, 0.0085)
