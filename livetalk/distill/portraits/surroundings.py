"""What is around the face: background, clothes, neck, ears, earrings and hair.

Backgrounds and clothes are in picture coordinates, the rest in the head's. It knows no expression.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livetalk.distill.portraits.brush import Brush, fade, mix
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.features import BLACK, WARM, WHITE, shade
from livetalk.distill.portraits.motion import Pose


def draw_background(brush: Brush, face: Face) -> None:
    """The still backdrop: soft light, plain, bokeh, window, sun or hills."""
    near, far = face.back_near, face.back_far
    square = brush.lines([(0, 0), (1, 0), (1, 1), (0, 1)])
    brush.fill(square, brush.linear((0.5 - 0.3 * face.light, 0), (0.5 + 0.3 * face.light, 1), [near, mix(near, far, 0.5), far]))
    rng = np.random.default_rng([face.seed, 1])
    glow = mix(near, WHITE, 0.45)
    if face.backdrop in ("soft", "window"):
        brush.glow(0.5 + 0.28 * face.light, 0.30, 0.62, 0.62, glow, 0.75)
    if face.backdrop == "bokeh":
        for x, y, r in rng.uniform(0, 1, (11, 3)):
            brush.oval(x, y * 0.9, 0.03 + 0.075 * r, 0.03 + 0.075 * r, fade(glow, 0.10 + 0.16 * r))
    elif face.backdrop == "window":
        x = 0.5 + face.light * 0.36
        for i in (-1, 1):
            for j in (-1, 1):
                brush.fill(brush.box_path(x + i * 0.066, 0.24 + j * 0.088, 0.060, 0.082, 0.006), fade(glow, 0.62))
    elif face.backdrop == "sun":
        brush.oval(0.5, 0.44, 0.43, 0.43, fade(glow, 0.50))
        brush.oval(0.5, 0.44, 0.36, 0.36, fade(glow, 0.35))
    elif face.backdrop == "hills":
        for k, base in enumerate((0.58, 0.70)):
            a, b, c = base + rng.uniform(-0.07, 0.07, 3)
            ridge = brush.cubics((0, a), (0.3, b - 0.14, 0.6, c + 0.10, 1.0, b), (1, 1, 1, 1, 1, 1), (0, 1, 0, 1, 0, 1))
            brush.fill(ridge, fade(mix(far, BLACK, 0.12 * k), 0.75))


def draw_body(brush: Brush, face: Face, x: float) -> None:
    """Shoulders and clothes around the neck's axis `x` (head coordinates, below the chin)."""
    wide, top = 0.43 - 0.03 * face.feminine, 0.405
    dark, light = mix(face.cloth, BLACK, 0.34), mix(face.cloth, WHITE, 0.14)
    body = brush.cubics((x - wide - 0.08, 0.75), (x - wide - 0.02, 0.52, x - 0.30, 0.455, x - 0.13, top), (x - 0.06, 0.43, x + 0.06, 0.43, x + 0.13, top),
                        (x + 0.30, 0.455, x + wide + 0.02, 0.52, x + wide + 0.08, 0.75))  # fmt: skip
    brush.fill(body, brush.linear((x + face.light * 0.4, 0.38), (x - face.light * 0.4, 0.62), [light, face.cloth, dark]))
    skin = mix(face.skin, shade(face), 0.40)
    trim = face.trim
    if face.collar == "crew":
        brush.stroke(brush.cubics((x - 0.132, top), (x - 0.08, 0.452, x + 0.08, 0.452, x + 0.132, top), closed=False), mix(face.cloth, BLACK, 0.22), 0.020)
    elif face.collar == "scoop":
        brush.fill(brush.cubics((x - 0.15, top - 0.01), (x - 0.13, 0.52, x + 0.13, 0.52, x + 0.15, top - 0.01)), skin)
    elif face.collar == "vneck":
        brush.fill(brush.lines([(x - 0.125, top - 0.01), (x, 0.535), (x + 0.125, top - 0.01)]), skin)
        brush.stroke(brush.lines([(x - 0.13, top), (x, 0.54), (x + 0.13, top)], False), mix(face.cloth, BLACK, 0.22), 0.012)
    elif face.collar == "turtle":
        brush.fill(brush.box_path(x, 0.375, 0.122, 0.058, 0.03), brush.linear((x - 0.12, 0), (x + 0.12, 0), [mix(face.cloth, BLACK, 0.15), light, dark]))
    elif face.collar == "hoodie":
        for s in (-1, 1):
            brush.fill(brush.curve([(x + s * 0.10, 0.37), (x + s * 0.20, 0.40), (x + s * 0.17, 0.46), (x + s * 0.02, 0.50), (x + s * 0.07, 0.43)]), mix(face.cloth, BLACK, 0.22))
            brush.stroke(brush.lines([(x + s * 0.055, 0.47), (x + s * 0.060, 0.60)], False), trim, 0.010)
    else:
        if face.collar == "blazer":
            brush.fill(brush.lines([(x - 0.13, top), (x, 0.64), (x + 0.13, top)]), trim)
        brush.fill(brush.lines([(x - 0.085, top), (x, 0.475), (x + 0.085, top)]), skin)
        leaf = mix(face.cloth, BLACK, 0.28) if face.collar == "blazer" else mix(trim, face.cloth, 0.10)
        for s in (-1, 1):
            flap = [(x + s * 0.125, 0.372), (x + s * 0.004, 0.478), (x + s * 0.085, 0.545), (x + s * 0.165, 0.430)]
            brush.fill(brush.lines(flap), leaf)
            brush.stroke(brush.lines(flap), fade(BLACK, 0.18), 0.004)


def draw_neck(brush: Brush, face: Face, x: float, lean: float) -> None:
    """Neck from the head (moved by `lean`) to the body at `x`, with the chin's shadow."""
    w = 0.098 + 0.022 * (1.0 - face.feminine)
    dark = shade(face)
    neck = brush.cubics((lean - w, 0.10), (lean - w, 0.30, x - w, 0.36, x - w - 0.035, 0.415), (x - 0.06, 0.465, x + 0.06, 0.465, x + w + 0.035, 0.415),
                        (x + w, 0.36, lean + w, 0.30, lean + w, 0.10))  # fmt: skip
    brush.fill(neck, brush.linear((0, 0.26), (0, 0.43), [mix(dark, BLACK, 0.14), mix(face.skin, dark, 0.72), mix(face.skin, dark, 0.40)]))


def draw_ears(brush: Brush, face: Face, pose: Pose) -> None:
    """Ears (one hides when the head turns) and earrings."""
    dark = shade(face)
    for side in (-1, 1):
        x, y, r = side * face.width * 1.005 - 0.014 * pose.yaw, 0.022 - 0.012 * pose.pitch, 0.031 * face.ears
        with brush.moved(x, y, 1.62, 1.0, roll=side * 0.16):
            brush.oval(0, 0, r, r, mix(face.skin, dark, 0.38))
            brush.oval(side * 0.001, 0.001, r * 0.62, r * 0.68, fade(dark, 0.62))
        if face.earrings:
            brush.oval(x + side * 0.004, y + 0.060, 0.0115, 0.0115, (0.98, 0.82, 0.42))
            brush.oval(x + side * 0.004 - 0.003, y + 0.057, 0.004, 0.004, (1.0, 0.97, 0.85))


def _tones(face: Face) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return mix(face.hair, BLACK, 0.42), mix(face.hair, WARM, 0.26)


def _blobs(brush: Brush, face: Face, centres: list[tuple[float, float]], radius: float) -> None:
    dark, light = _tones(face)
    for x, y in centres:
        brush.oval(x, y, radius, radius, brush.radial((x + face.light * 0.3 * radius, y - 0.4 * radius), radius * 1.7, [mix(light, face.hair, 0.35), face.hair, mix(dark, face.hair, 0.30)]))


def draw_back_hair(brush: Brush, face: Face, pose: Pose) -> None:
    """Hair behind the head."""
    w, h = face.width, face.length
    dark, _ = _tones(face)
    shift = -0.016 * pose.yaw
    deep = brush.linear((0, -h), (0, 0.45), [face.hair, dark])
    falls = {"long": (0.055, 0.50, 0.075), "wavy": (0.075, 0.40, 0.11), "bob": (0.065, 0.22, 0.060), "fringe": (0.050, 0.30, 0.062)}
    if face.style in falls:
        out, low, flare = falls[face.style]
        points = [(0, -h - 0.055), (0.72 * w, -0.90 * h), (w + out * 0.85, -0.35 * h), (w + out, 0.08), (w + flare, low * 0.72), (w * 0.80 + flare, low)]
        if face.style == "wavy":
            points[3:] = [(w + 0.045, 0.02), (w + 0.095, 0.14), (w + 0.055, 0.25), (w + 0.085, 0.36), (w * 0.7, 0.42)]
        brush.fill(brush.curve([(x + shift, y) for x, y in points + [(-x, y) for x, y in reversed(points[1:])]]), deep)
    elif face.style == "bun":
        _blobs(brush, face, [(shift * 2, -h - 0.085 + 0.01 * pose.pitch)], 0.088)
    elif face.style == "ponytail":
        s = face.parting
        tail = [(0, -h - 0.03), (s * 0.20, -h + 0.01), (s * (w + 0.085), -0.10), (s * (w + 0.075), 0.16), (s * (w + 0.02), 0.36), (s * (w - 0.02), 0.20), (s * (w - 0.05), -0.08)]
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
    edge = [(shift + wide * r * float(np.cos(t)), -0.075 + high * r * float(np.sin(t))) for r, t in zip(reach, turn)]
    shape = brush.curve(edge)
    brush.fill(shape, brush.radial((face.light * 0.12, -0.28), 0.62, [light, face.hair, dark], (0.0, 0.42, 1.0)))
    with brush.clipped(shape):
        for r, t in zip(np.sqrt(rng.uniform(0.55, 1.0, 34)), rng.uniform(0, 2 * np.pi, 34)):
            x, y, s = shift + 0.93 * wide * r * float(np.cos(t)), -0.075 + 0.93 * high * r * float(np.sin(t)), 0.020 if afro else 0.032
            arc = brush.cubics((x - s, y + 0.3 * s), (x - s, y - s, x + s, y - s, x + s, y + 0.3 * s), closed=False)
            brush.stroke(arc, fade(light if t > np.pi else dark, 0.42), 0.0075)


def _hairline(face: Face) -> list[tuple[float, float]]:
    """Lower edge of the cap from the right temple to the left, for a head parted on the right (x > 0)."""
    w, h = face.width, face.length
    side = [(w * 0.935, -0.085), (w * 0.85, -0.46 * h)]
    lines = {
        "short": side + [(w * 0.62, -0.72 * h), (w * 0.22, -0.69 * h), (-w * 0.12, -0.74 * h), (-w * 0.50, -0.66 * h), (-w * 0.85, -0.46 * h)],
        "parted": side + [(w * 0.42, -0.78 * h), (-w * 0.10, -0.58 * h), (-w * 0.62, -0.42 * h), (-w * 0.88, -0.22 * h)],
        "long": [(w * 0.99, 0.02), (w * 0.80, -0.40 * h), (w * 0.30, -0.82 * h), (-w * 0.25, -0.68 * h), (-w * 0.74, -0.36 * h)],
        "bob": [(w * 0.99, 0.04), (w * 0.82, -0.36 * h), (w * 0.36, -0.78 * h), (-w * 0.20, -0.64 * h), (-w * 0.74, -0.36 * h)],
        "wavy": [(w * 1.0, 0.02), (w * 0.80, -0.34 * h), (w * 0.10, -0.86 * h), (-w * 0.10, -0.84 * h), (-w * 0.80, -0.34 * h)],
        "fringe": [(w * 0.99, 0.06), (w * 0.87, -0.28 * h), (w * 0.50, -0.36 * h), (0, -0.37 * h), (-w * 0.50, -0.36 * h), (-w * 0.87, -0.28 * h)],
        "swept": side + [(w * 0.46, -0.62 * h), (0.05 * w, -0.80 * h), (-w * 0.45, -0.72 * h), (-w * 0.86, -0.48 * h)],
        "buzz": side + [(w * 0.50, -0.70 * h), (0, -0.74 * h), (-w * 0.50, -0.70 * h), (-w * 0.84, -0.50 * h)],
    }  # fmt: skip
    middle = side + [(w * 0.44, -0.72 * h), (0, -0.79 * h), (-w * 0.44, -0.72 * h), (-w * 0.84, -0.50 * h)]
    lasts = {"long": (-w * 0.99, 0.02), "bob": (-w * 0.99, 0.04), "wavy": (-w * 1.0, 0.02), "fringe": (-w * 0.99, 0.06)}
    return lines.get(face.style, middle) + [lasts.get(face.style, (-w * 0.935, -0.085))]


def draw_front_hair(brush: Brush, face: Face, pose: Pose) -> None:
    """The cap of hair over the forehead, with strands and a shine, and what stands on it."""
    if face.style == "bald":
        return
    w, h = face.width, face.length
    lift = {"buzz": 0.008, "short": 0.042, "spiky": 0.030, "swept": 0.070, "bun": 0.026, "ponytail": 0.028}.get(face.style, 0.046)
    dark, light = _tones(face)
    s, turn = face.parting, 0.026 * pose.yaw
    out = 0.012 if face.style in ("short", "buzz", "bun", "ponytail", "spiky") else 0.026
    tip = 0.02 if face.style in ("long", "bob", "wavy", "fringe") else -0.035
    top = [(-w - out * 0.5, tip), (-w - out, -0.40 * h), (-0.74 * w, -0.86 * h - lift * 0.7), (-0.1 * w, -h - lift), (0.45 * w, -h - lift * 0.72), (0.82 * w, -0.76 * h - lift * 0.4), (w + out, -0.34 * h), (w + out * 0.5, tip)]
    low = [(x + turn / s * (1.0 if abs(x) < 0.9 * w else 0.2), y + 0.026 * pose.pitch) for x, y in _hairline(face)]
    with brush.moved(0.006 * pose.yaw, 0.0, 1.0, s):
        cap = brush.curve(top + low)
        alpha = 0.62 if face.style == "buzz" else 1.0
        brush.fill(cap, brush.linear((0, -h - lift), (0, 0.02), [fade(mix(face.hair, light, 0.45), alpha), fade(face.hair, alpha), fade(dark, alpha)]))
        if face.style != "buzz":
            with brush.clipped(cap):
                _strands(brush, face, low, lift)
        if face.style == "spiky":
            spikes = [(x * w, -h * (1.0 - 0.42 * x * x) + 0.015) for x in np.linspace(-0.88, 0.88, 8)]
            for (ax, ay), (bx, by) in zip(spikes, spikes[1:]):
                mid = (0.62 * (ax + bx), min(ay, by) - 0.062)
                brush.fill(brush.cubics((ax - 0.02, ay + 0.055), (ax, ay, mid[0] - 0.01, mid[1] + 0.03, *mid), (mid[0] + 0.008, mid[1] + 0.04, bx, by, bx + 0.02, by + 0.055)),
                           brush.linear(mid, (mid[0], mid[1] + 0.11), [light, face.hair]))  # fmt: skip
    if face.style in ("curly", "afro"):
        r = 0.044 if face.style == "curly" else 0.030
        spots = [(low[i][0] * (1 - k) + low[i + 1][0] * k, low[i][1] * (1 - k) + low[i + 1][1] * k - 0.012) for i in range(len(low) - 1) for k in (0.0, 0.5)]
        _blobs(brush, face, [(x * face.parting * 0.97, y) for x, y in spots + [(0.5 * a, -0.245 - 0.02 * (a == 0)) for a in (-0.28, 0, 0.28)]], r)


def _strands(brush: Brush, face: Face, low: list[tuple[float, float]], lift: float) -> None:
    w, h = face.width, face.length
    dark, light = _tones(face)
    parted = face.style in ("parted", "long", "bob", "wavy", "swept")
    root_x, spread = (0.34 * w, 0.10) if parted else (0.0, 0.62)
    for i, u in enumerate(np.linspace(-0.96, 0.96, 12)):
        start = (root_x + u * spread * w, -h - lift * 0.9)
        end = (u * w * 1.02, -0.02 - 0.50 * h * (1.0 - u * u))
        bend = (start[0] * 0.35 + end[0] * 0.85, -0.88 * h)
        tone = fade(light if i % 2 else dark, 0.24)
        brush.stroke(brush.cubics(start, (*bend, end[0], (bend[1] + end[1]) / 2, *end), closed=False), tone, 0.006 + 0.003 * (i % 3))
    brush.glow(face.light * face.parting * 0.36 * w, -0.88 * h, 0.56 * w, 0.070, light, 0.62)


def hair_shadow(brush: Brush, face: Face, pose: Pose, edge: Any) -> None:
    """Shadow the fringe throws on the forehead."""
    if face.style in ("bald", "buzz"):
        return
    low = _hairline(face)
    with brush.clipped(edge), brush.moved(0.0, 0.022, 1.0, face.parting):
        turn = 0.026 * pose.yaw / face.parting
        shape = [(x + turn, y + 0.026 * pose.pitch) for x, y in low] + [(-face.width * 1.1, -face.length * 1.2), (face.width * 1.1, -face.length * 1.2)]
        brush.fill(brush.curve(shape), fade(shade(face), 0.55))
