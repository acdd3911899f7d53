"""What is around the head: background, clothes, neck, ears and earrings.

The background is in picture coordinates, the rest in the head's. It knows no expression.
"""

from __future__ import annotations

import numpy as np

from livetalk.distill.portraits.anatomy import BLACK, WHITE, shade
from livetalk.distill.portraits.brush import Brush, fade, mix
from livetalk.distill.portraits.face import Face
from livetalk.distill.portraits.motion import Pose


def draw_background(brush: Brush, face: Face) -> None:
    """The still backdrop: soft light, plain, bokeh, window, sun or hills."""
    near, far = face.back_near, face.back_far
    square = brush.lines([(0, 0), (1, 0), (1, 1), (0, 1)])
    brush.fill(
        square, brush.linear((0.5 - 0.3 * face.light, 0), (0.5 + 0.3 * face.light, 1), [near, mix(near, far, 0.5), far])
    )
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
    body = brush.cubics(
        (x - wide - 0.08, 0.75),
        (x - wide - 0.02, 0.52, x - 0.30, 0.455, x - 0.13, top),
        (x - 0.06, 0.43, x + 0.06, 0.43, x + 0.13, top),
        (x + 0.30, 0.455, x + wide + 0.02, 0.52, x + wide + 0.08, 0.75),
    )
    brush.fill(
        body, brush.linear((x + face.light * 0.4, 0.38), (x - face.light * 0.4, 0.62), [light, face.cloth, dark])
    )
    _collar(brush, face, x, top)


def _collar(brush: Brush, face: Face, x: float, top: float) -> None:
    dark, light = mix(face.cloth, BLACK, 0.34), mix(face.cloth, WHITE, 0.14)
    skin = mix(face.skin, shade(face), 0.40)
    trim = face.trim
    if face.collar == "crew":
        brush.stroke(
            brush.cubics((x - 0.132, top), (x - 0.08, 0.452, x + 0.08, 0.452, x + 0.132, top), closed=False),
            mix(face.cloth, BLACK, 0.22),
            0.020,
        )
    elif face.collar == "scoop":
        brush.fill(brush.cubics((x - 0.15, top - 0.01), (x - 0.13, 0.52, x + 0.13, 0.52, x + 0.15, top - 0.01)), skin)
    elif face.collar == "vneck":
        brush.fill(brush.lines([(x - 0.125, top - 0.01), (x, 0.535), (x + 0.125, top - 0.01)]), skin)
        brush.stroke(
            brush.lines([(x - 0.13, top), (x, 0.54), (x + 0.13, top)], False), mix(face.cloth, BLACK, 0.22), 0.012
        )
    elif face.collar == "turtle":
        brush.fill(
            brush.box_path(x, 0.375, 0.122, 0.058, 0.03),
            brush.linear((x - 0.12, 0), (x + 0.12, 0), [mix(face.cloth, BLACK, 0.15), light, dark]),
        )
    elif face.collar == "hoodie":
        for s in (-1, 1):
            brush.fill(
                brush.curve(
                    [
                        (x + s * 0.10, 0.37),
                        (x + s * 0.20, 0.40),
                        (x + s * 0.17, 0.46),
                        (x + s * 0.02, 0.50),
                        (x + s * 0.07, 0.43),
                    ]
                ),
                mix(face.cloth, BLACK, 0.22),
            )
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
    neck = brush.cubics(
        (lean - w, 0.10),
        (lean - w, 0.30, x - w, 0.36, x - w - 0.035, 0.415),
        (x - 0.06, 0.465, x + 0.06, 0.465, x + w + 0.035, 0.415),
        (x + w, 0.36, lean + w, 0.30, lean + w, 0.10),
    )
    brush.fill(
        neck,
        brush.linear(
            (0, 0.26), (0, 0.43), [mix(dark, BLACK, 0.14), mix(face.skin, dark, 0.72), mix(face.skin, dark, 0.40)]
        ),
    )


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
