"""Line plots with Pillow alone, for reports: measuring a model needs no plotting package.

This module does not know what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f5fa8", "#d1552b", "#2c8c4b", "#8a4fae", "#b8860b", "#4a4a4a", "#c2407e", "#2a9aa0")
GRID, INK = "#e2e2e2", "#333333"
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 34, 36
_TICKS = 5

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name, and numbers ``[N]`` each; nan leaves a gap."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


def line_plot(
    lines: Sequence[Line],
    title: str,
    x_name: str = "",
    y_name: str = "",
    size: tuple[int, int] = (720, 300),
    y_range: tuple[float, float] | None = None,
) -> Image.Image:
    """A plot of some lines over one pair of axes.

    Args:
        lines: what to draw; their names make the legend.
        title: above the plot.
        x_name, y_name: of the axes.
        size: width and height in pixels.
        y_range: lowest and highest value shown; None = as the lines need.

    Returns:
        RGB picture of ``size``.
    """
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()
    x_range = _range([line.x for line in lines])
    frame = _Frame(size, x_range, y_range or _range([line.y for line in lines], margin=0.05))
    _draw_axes(pen, font, frame, x_name, y_name)
    pen.text((_LEFT, 4), title, fill=INK, font=font)
    place = _LEFT
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        _draw_line(pen, frame, line, colour)
        pen.line((place, 25, place + 14, 25), fill=colour, width=3)
        pen.text((place + 18, 19), line.name, fill=INK, font=font)
        place += 30 + round(pen.textlength(line.name, font=font))
    return picture


def stacked(plots: Sequence[Image.Image]) -> Image.Image:
    """Plots of one width, one below the other."""
    sheet = Image.new("RGB", (max(plot.width for plot in plots), sum(plot.height for plot in plots)), "white")
    top = 0
    for plot in plots:
        sheet.paste(plot, (0, top))
        top += plot.height
    return sheet


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie in the picture."""

    size: tuple[int, int]
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point; what lies outside the range is drawn at its edge."""
        across = min(max((x - self.x[0]) / (self.x[1] - self.x[0]), 0.0), 1.0)
        up = min(max((y - self.y[0]) / (self.y[1] - self.y[0]), 0.0), 1.0)
        width, height = self.size[0] - _LEFT - _RIGHT, self.size[1] - _TOP - _BOTTOM
        return _LEFT + across * width, _TOP + (1.0 - up) * height


def _range(tracks: Sequence[Sequence[float] | np.ndarray], margin: float = 0.0) -> tuple[float, float]:
    """Smallest and largest finite number, with a margin; never empty."""
    numbers = [float(value) for track in tracks for value in track if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    if high - low < 1e-12:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within a range."""
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next((factor for factor in (1, 2, 5) if unit * factor >= rough), 10)
    first = math.ceil(low / step)
    return [step * (first + count) for count in range(math.floor(high / step + 1e-9) - first + 1)]


def _draw_axes(pen: ImageDraw.ImageDraw, font: Font, frame: _Frame, x_name: str, y_name: str) -> None:
    bottom, right = frame.size[1] - _BOTTOM, frame.size[0] - _RIGHT
    for tick in _ticks(*frame.y):
        row = frame.place(frame.x[0], tick)[1]
        pen.line((_LEFT, row, right, row), fill=GRID)
        pen.text((_LEFT - 6, row), f"{tick:.4g}", fill=INK, font=font, anchor="rm")
    for tick in _ticks(*frame.x):
        column = frame.place(tick, frame.y[0])[0]
        pen.line((column, _TOP, column, bottom), fill=GRID)
        pen.text((column, bottom + 4), f"{tick:.4g}", fill=INK, font=font, anchor="mt")
    pen.rectangle((_LEFT, _TOP, right, bottom), outline=INK)
    pen.text((right, frame.size[1] - 4), x_name, fill=INK, font=font, anchor="rs")
    pen.text((right, 4), y_name, fill=INK, font=font, anchor="rt")


def _draw_line(pen: ImageDraw.ImageDraw, frame: _Frame, line: Line, colour: str) -> None:
    before: tuple[float, float] | None = None
    alone = len(line.x) == 1
    for x, y in zip(line.x, line.y, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            before = None
            continue
        here = frame.place(float(x), float(y))
        if alone:
            pen.ellipse((here[0] - 3, here[1] - 3, here[0] + 3, here[1] + 3), fill=colour)
        if before is not None:
            pen.line((*before, *here), fill=colour, width=2)
        before = here
