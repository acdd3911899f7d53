"""Hair: what falls behind the head, the cap over the forehead, strands, curls and the shadow they throw.

Coordinates are the head's; hair turns a little less than the face. It knows no expression.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from livetalk.distill.portraits.anatomy import BLACK, WARM, shade
from livetalk.distill.portraits.brush import Brush, fade, mix
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose


def _tones(face: Face) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return mix(face.hair, BLACK, 0.42), mix(face.hair, WARM, 0.26)


def _blobs(brush: Brush, face: Face, centres: list[tuple[float, float]], radius: float) -> None:
    dark, light = _tones(face)
    for x, y in centres:
        brush.oval(
            x,
            y,
            radius,
            radius,
            brush.radial(
                (x + face.light * 0.3 * radius, y - 0.4 * radius),
                radius * 1.7,
                [mix(light, face.hair, 0.35), face.hair, mix(dark, face.hair, 0.30)],
            ),
        )


def draw_back_hair(brush: Brush, face: Face, pose: Pose) -> None:
    """Hair behind the head."""
    w, h = face.width, face.length
    dark, _ = _tones(face)
    shift = -0.016 * pose.yaw
    deep = brush.linear((0, -h), (0, 0.45), [face.hair, dark])
    falls = {
        "long": (0.055, 0.50, 0.075),
        "wavy": (0.075, 0.40, 0.11),
        "bob": (0.065, 0.22, 0.060),
        "fringe": (0.050, 0.30, 0.062),
    }
    if face.style in falls:
        out, low, flare = falls[face.style]
        points = [
            (0, -h - 0.055),
            (0.72 * w, -0.90 * h),
            (w + out * 0.85, -0.35 * h),
            (w + out, 0.08),
            (w + flare, low * 0.72),
            (w * 0.80 + flare, low),
        ]
        if face.style == "wavy":
            points[3:] = [(w + 0.045, 0.02), (w + 0.095, 0.14), (w + 0.055, 0.25), (w + 0.085, 0.36), (w * 0.7, 0.42)]
        brush.fill(brush.curve([(x + shift, y) for x, y in points + [(-x, y) for x, y in reversed(points[1:])]]), deep)
    elif face.style == "bun":
        _blobs(brush, face, [(shift * 2, -h - 0.085 + 0.01 * pose.pitch)], 0.088)
    elif face.style == "ponytail":
        s = face.parting
        tail = [
            (0, -h - 0.03),
            (s * 0.20, -h + 0.01),
            (s * (w + 0.085), -0.10),
            (s * (w + 0.075), 0.16),
            (s * (w + 0.02), 0.36),
            (s * (w - 0.02), 0.20),
            (s * (w - 0.05), -0.08),
        ]
        brush.fill(brush.curve([(x + 2 * shift, y) for x, y in tail]), deep)
    elif face.style in ("curly", "afro"):
        _cloud(brush, face, shift)


def _cloud(brush: Brush, face: Face, shift: float) -> None:
    """Curls behind the head: one bumpy outline, then locks with a little light on each."""
    afro = face.style == "afro"
    wide, high, bumps, deep = (face.width * 1.40, 0.345, 26, 0.030) if afro else (face.width * 1.24, 0.330, 15, 0.055)
    dark, light = _tones(face)
    rng = np.random.default_rng([face.seed, 2])
    turn = np.linspace(0, 2 * np.pi, 2 * bumps, endpoint=False)
    reach = 1.0 + deep * np.where(np.arange(2 * bumps) % 2, 1.0, -1.0) * rng.uniform(0.7, 1.3, 2 * bumps)
    edge = [
        (shift + wide * r * float(np.cos(t)), -0.075 + high * r * float(np.sin(t)))
        for r, t in zip(reach, turn, strict=True)
    ]
    shape = brush.curve(edge)
    brush.fill(shape, brush.radial((face.light * 0.12, -0.28), 0.62, [light, face.hair, dark], (0.0, 0.42, 1.0)))
    with brush.clipped(shape):
        for r, t in zip(np.sqrt(rng.uniform(0.55, 1.0, 34)), rng.uniform(0, 2 * np.pi, 34), strict=True):
            x, y, s = (
                shift + 0.93 * wide * r * float(np.cos(t)),
                -0.075 + 0.93 * high * r * float(np.sin(t)),
                0.020 if afro else 0.032,
            )
            arc = brush.cubics((x - s, y + 0.3 * s), (x - s, y - s, x + s, y - s, x + s, y + 0.3 * s), closed=False)
            brush.stroke(arc, fade(light if t > np.pi else dark, 0.42), 0.0075)


def _hairline(face: Face) -> list[tuple[float, float]]:
    """Lower edge of the cap from the right temple to the left, for a head parted on the right (x > 0)."""
    w, h = face.width, face.length
    side = [(w * 0.935, -0.085), (w * 0.85, -0.46 * h)]
    lines = {
        "short": [
            *side,
            (w * 0.62, -0.72 * h),
            (w * 0.22, -0.69 * h),
            (-w * 0.12, -0.74 * h),
            (-w * 0.5, -0.66 * h),
            (-w * 0.85, -0.46 * h),
        ],
        "parted": [*side, (w * 0.42, -0.78 * h), (-w * 0.1, -0.58 * h), (-w * 0.62, -0.42 * h), (-w * 0.88, -0.22 * h)],
        "long": [
            (w * 0.99, 0.02),
            (w * 0.80, -0.40 * h),
            (w * 0.30, -0.82 * h),
            (-w * 0.25, -0.68 * h),
            (-w * 0.74, -0.36 * h),
        ],
        "bob": [
            (w * 0.99, 0.04),
            (w * 0.82, -0.36 * h),
            (w * 0.36, -0.78 * h),
            (-w * 0.20, -0.64 * h),
            (-w * 0.74, -0.36 * h),
        ],
        "wavy": [
            (w * 1.0, 0.02),
            (w * 0.80, -0.34 * h),
            (w * 0.10, -0.86 * h),
            (-w * 0.10, -0.84 * h),
            (-w * 0.80, -0.34 * h),
        ],
        "fringe": [
            (w * 0.99, 0.06),
            (w * 0.87, -0.28 * h),
            (w * 0.50, -0.36 * h),
            (0, -0.37 * h),
            (-w * 0.50, -0.36 * h),
            (-w * 0.87, -0.28 * h),
        ],
        "swept": [*side, (w * 0.46, -0.62 * h), (0.05 * w, -0.8 * h), (-w * 0.45, -0.72 * h), (-w * 0.86, -0.48 * h)],
        "buzz": [*side, (w * 0.5, -0.7 * h), (0, -0.74 * h), (-w * 0.5, -0.7 * h), (-w * 0.84, -0.5 * h)],
    }
    middle = [*side, (w * 0.44, -0.72 * h), (0, -0.79 * h), (-w * 0.44, -0.72 * h), (-w * 0.84, -0.5 * h)]
    lasts = {"long": (-w * 0.99, 0.02), "bob": (-w * 0.99, 0.04), "wavy": (-w * 1.0, 0.02), "fringe": (-w * 0.99, 0.06)}
    return [*lines.get(face.style, middle), lasts.get(face.style, (-w * 0.935, -0.085))]


def draw_front_hair(brush: Brush, face: Face, pose: Pose) -> None:
    """The cap of hair over the forehead, with strands and a shine, and what stands on it."""
    if face.style == "bald":
        return
    w, h = face.width, face.length
    lift = {"buzz": 0.008, "short": 0.042, "spiky": 0.030, "swept": 0.070, "bun": 0.026, "ponytail": 0.028}.get(
        face.style, 0.046
    )
    dark, light = _tones(face)
    s, turn = face.parting, 0.026 * pose.yaw
    out = 0.012 if face.style in ("short", "buzz", "bun", "ponytail", "spiky") else 0.026
    tip = 0.02 if face.style in ("long", "bob", "wavy", "fringe") else -0.035
    top = [
        (-w - out * 0.5, tip),
        (-w - out, -0.40 * h),
        (-0.74 * w, -0.86 * h - lift * 0.7),
        (-0.1 * w, -h - lift),
        (0.45 * w, -h - lift * 0.72),
        (0.82 * w, -0.76 * h - lift * 0.4),
        (w + out, -0.34 * h),
        (w + out * 0.5, tip),
    ]
    low = [(x + turn / s * (1.0 if abs(x) < 0.9 * w else 0.2), y + 0.026 * pose.pitch) for x, y in _hairline(face)]
    with brush.moved(0.006 * pose.yaw, 0.0, 1.0, s):
        cap = brush.curve(top + low)
        alpha = 0.62 if face.style == "buzz" else 1.0
        brush.fill(
            cap,
            brush.linear(
                (0, -h - lift),
                (0, 0.02),
                [fade(mix(face.hair, light, 0.45), alpha), fade(face.hair, alpha), fade(dark, alpha)],
            ),
        )
        if face.style != "buzz":
            with brush.clipped(cap):
                _strands(brush, face, lift)
        if face.style == "spiky":
            _spikes(brush, face)
    if face.style in ("curly", "afro"):
        _front_curls(brush, face, low)


def _spikes(brush: Brush, face: Face) -> None:
    w, h = face.width, face.length
    _, light = _tones(face)
    spikes = [(x * w, -h * (1.0 - 0.42 * x * x) + 0.015) for x in np.linspace(-0.88, 0.88, 8)]
    for (ax, ay), (bx, by) in pairwise(spikes):
        mid = (0.62 * (ax + bx), min(ay, by) - 0.062)
        brush.fill(
            brush.cubics(
                (ax - 0.02, ay + 0.055),
                (ax, ay, mid[0] - 0.01, mid[1] + 0.03, *mid),
                (mid[0] + 0.008, mid[1] + 0.04, bx, by, bx + 0.02, by + 0.055),
            ),
            brush.linear(mid, (mid[0], mid[1] + 0.11), [light, face.hair]),
        )


def _front_curls(brush: Brush, face: Face, low: list[tuple[float, float]]) -> None:
    r = 0.044 if face.style == "curly" else 0.030
    spots = [
        (low[i][0] * (1 - k) + low[i + 1][0] * k, low[i][1] * (1 - k) + low[i + 1][1] * k - 0.012)
        for i in range(len(low) - 1)
        for k in (0.0, 0.5)
    ]
    _blobs(
        brush,
        face,
        [
            (x * face.parting * 0.97, y)
            for x, y in spots + [(0.5 * a, -0.245 - 0.02 * (a == 0)) for a in (-0.28, 0, 0.28)]
        ],
        r,
    )


def _strands(brush: Brush, face: Face, lift: float) -> None:
    w, h = face.width, face.length
    dark, light = _tones(face)
    parted = face.style in ("parted", "long", "bob", "wavy", "swept")
    root_x, spread = (0.34 * w, 0.10) if parted else (0.0, 0.62)
    for i, u in enumerate(np.linspace(-0.96, 0.96, 12)):
        start = (root_x + u * spread * w, -h - lift * 0.9)
        end = (u * w * 1.02, -0.02 - 0.50 * h * (1.0 - u * u))
        bend = (start[0] * 0.35 + end[0] * 0.85, -0.88 * h)
        tone = fade(light if i % 2 else dark, 0.24)
        brush.stroke(
            brush.cubics(start, (*bend, end[0], (bend[1] + end[1]) / 2, *end), closed=False),
            tone,
            0.006 + 0.003 * (i % 3),
        )
    brush.glow(face.light * face.parting * 0.36 * w, -0.88 * h, 0.56 * w, 0.070, light, 0.62)


def hair_shadow(brush: Brush, face: Face, pose: Pose, edge: Any) -> None:
    """Shadow the fringe throws on the forehead."""
    if face.style in ("bald", "buzz"):
        return
    low = _hairline(face)
    with brush.clipped(edge), brush.moved(0.0, 0.022, 1.0, face.parting):
        turn = 0.026 * pose.yaw / face.parting
        shape = [(x + turn, y + 0.026 * pose.pitch) for x, y in low] + [
            (-face.width * 1.1, -face.length * 1.2),
            (face.width * 1.1, -face.length * 1.2),
        ]
        brush.fill(brush.curve(shape), fade(shade(face), 0.55))
