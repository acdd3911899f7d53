"""A small brush over skia: organic paths, gradients and layers on a square canvas whose side is one unit.

It is the only module that imports skia (optional, for training; it needs libEGL and libGL). It knows nothing of faces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from livetalk.types import LiveTalkError

Colour = Sequence[float]
Points = Sequence[tuple[float, float]]


def mix(a: Colour, b: Colour, amount: float) -> tuple[float, ...]:
    """Colour between `a` (amount 0) and `b` (amount 1), channels 0..1."""
    return tuple(float(x + (y - x) * amount) for x, y in zip(a[:3], b[:3], strict=True))


def fade(colour: Colour, alpha: float) -> tuple[float, ...]:
    """The same colour with opacity `alpha` (0..1)."""
    return (*colour[:3], alpha)


@lru_cache(maxsize=8192)
def _argb(colour: tuple[float, ...]) -> int:
    """Channels 0..1 (red, green, blue and perhaps opacity) as skia's 32-bit colour."""
    r, g, b = (min(max(int(v * 255 + 0.5), 0), 255) for v in colour[:3])
    alpha = min(max(int(colour[3] * 255 + 0.5), 0), 255) if len(colour) > 3 else 255
    return alpha << 24 | r << 16 | g << 8 | b


class Brush:
    """Draws antialiased shapes into an RGBA picture. Coordinates: 0..1 over the side, y down.

    Args:
        size: side of the picture in pixels.

    Raises:
        LiveTalkError: skia-python, libEGL or libGL is missing.
    """

    def __init__(self, size: int) -> None:
        try:
            import skia
        except ImportError as problem:
            raise LiveTalkError(
                f"Portraits could not be drawn ({problem}): this needs skia-python with libEGL and libGL; "
                "install requirements-train.txt and, on Debian or Ubuntu, the packages libegl1 and libgl1."
            ) from problem

        self._skia: Any = skia
        self.pixels = np.zeros((size, size, 4), np.uint8)
        self._surface = skia.Surface(self.pixels, colorType=skia.kRGBA_8888_ColorType)
        self.canvas = self._surface.getCanvas()
        self.canvas.scale(size, size)
        self._paints = {}
        for lined in (False, True):
            for shaded in (False, True):
                paint = skia.Paint(AntiAlias=True, StrokeCap=skia.Paint.kRound_Cap, StrokeJoin=skia.Paint.kRound_Join)
                paint.setStyle(skia.Paint.kStroke_Style if lined else skia.Paint.kFill_Style)
                self._paints[lined, shaded] = paint
        self._glows: dict[tuple[Any, ...], Any] = {}

    def curve(self, points: Points, closed: bool = True) -> Any:
        """Smooth path through `points` (Catmull-Rom turned into cubics)."""
        path = self._skia.Path()
        n = len(points)
        path.moveTo(*points[0])
        for i in range(n if closed else n - 1):
            if closed:
                a, b, c, d = points[i - 1], points[i], points[(i + 1) % n], points[(i + 2) % n]
            else:
                a, b, c, d = points[max(i - 1, 0)], points[i], points[i + 1], points[min(i + 2, n - 1)]
            path.cubicTo(
                b[0] + (c[0] - a[0]) / 6,
                b[1] + (c[1] - a[1]) / 6,
                c[0] - (d[0] - b[0]) / 6,
                c[1] - (d[1] - b[1]) / 6,
                c[0],
                c[1],
            )
        if closed:
            path.close()
        return path

    def cubics(self, start: tuple[float, float], *segments: Sequence[float], closed: bool = True) -> Any:
        """Path from `start` through cubic segments of six numbers (two controls and the end)."""
        path = self._skia.Path()
        path.moveTo(*start)
        for segment in segments:
            path.cubicTo(*segment)
        if closed:
            path.close()
        return path

    def lines(self, points: Points, closed: bool = True) -> Any:
        """Straight-edged path through `points`."""
        path = self._skia.Path()
        path.addPoly([self._skia.Point(*p) for p in points], closed)
        return path

    def oval_path(self, x: float, y: float, rx: float, ry: float) -> Any:
        """Ellipse with its centre at (x, y)."""
        path = self._skia.Path()
        path.addOval(self._skia.Rect(x - rx, y - ry, x + rx, y + ry))
        return path

    def box_path(self, x: float, y: float, rx: float, ry: float, round_: float) -> Any:
        """Rounded rectangle with its centre at (x, y), half sides rx and ry, corner radius `round_`."""
        path = self._skia.Path()
        path.addRoundRect(self._skia.Rect(x - rx, y - ry, x + rx, y + ry), round_, round_)
        return path

    def linear(self, start: tuple[float, float], end: tuple[float, float], colours: Sequence[Colour]) -> Any:
        """Shader going straight from `start` to `end` through `colours`."""
        points = [self._skia.Point(*start), self._skia.Point(*end)]
        return self._skia.GradientShader.MakeLinear(points, [_argb(tuple(c)) for c in colours])

    def radial(
        self,
        centre: tuple[float, float],
        radius: float,
        colours: Sequence[Colour],
        stops: Sequence[float] | None = None,
    ) -> Any:
        """Shader going outwards from `centre` through `colours`."""
        skia = self._skia
        values = [_argb(tuple(c)) for c in colours]
        return skia.GradientShader.MakeRadial(skia.Point(*centre), radius, values, list(stops) if stops else None)

    def _paint(self, how: Any, width: float = 0.0) -> Any:
        # four paints are used again and again: making new ones took a tenth of the time
        shaded = not isinstance(how, (tuple, list))
        paint = self._paints[width > 0.0, shaded]
        if shaded:
            paint.setShader(how)
        else:
            paint.setColor(_argb(tuple(how)))
        if width:
            paint.setStrokeWidth(width)
        return paint

    def fill(self, path: Any, how: Any) -> None:
        """Fill `path` with a colour tuple or a shader."""
        self.canvas.drawPath(path, self._paint(how))

    def stroke(self, path: Any, how: Any, width: float) -> None:
        """Draw the outline of `path`, `width` in units of the side."""
        self.canvas.drawPath(path, self._paint(how, width))

    def oval(self, x: float, y: float, rx: float, ry: float, how: Any) -> None:
        """Fill an ellipse."""
        self.canvas.drawOval(self._skia.Rect(x - rx, y - ry, x + rx, y + ry), self._paint(how))

    def glow(self, x: float, y: float, rx: float, ry: float, colour: Colour, alpha: float) -> None:
        """Soft spot: `colour` at the centre with `alpha`, nothing at the rim."""
        if alpha <= 0.0:
            return
        key = (rx, alpha, *colour[:3])
        shader = self._glows.get(key)
        if shader is None:
            colours = [fade(colour, alpha), fade(colour, alpha * 0.55), fade(colour, 0.0)]
            shader = self._glows[key] = self.radial((0, 0), rx, colours, (0.0, 0.5, 1.0))
        canvas = self.canvas
        canvas.save()
        canvas.translate(x, y)
        canvas.scale(1.0, ry / rx)
        self.oval(0, 0, rx, rx, shader)
        canvas.restore()

    @contextmanager
    def moved(
        self, x: float, y: float, scale_y: float = 1.0, scale_x: float = 1.0, roll: float = 0.0
    ) -> Iterator[None]:
        """Draw with the origin moved to (x, y), turned by `roll` radians, scaled."""
        self.canvas.save()
        self.canvas.translate(x, y)
        if roll:
            self.canvas.rotate(float(np.degrees(roll)))
        if scale_x != 1.0 or scale_y != 1.0:
            self.canvas.scale(scale_x, scale_y)
        try:
            yield
        finally:
            self.canvas.restore()

    @contextmanager
    def clipped(self, path: Any) -> Iterator[None]:
        """Draw only inside `path`."""
        self.canvas.save()
        self.canvas.clipPath(path, doAntiAlias=True)
        try:
            yield
        finally:
            self.canvas.restore()
