"""Reports for people: a page of tables with contact sheets and plots beside it, and the same numbers as JSON.

This module does not measure anything and does not know what figures are good enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from livetalk.distill.sheets import contact_sheet
from livetalk.eval.cases import Case
from livetalk.eval.figures import table, write_json
from livetalk.eval.plots import Line, line_plot, stacked
from livetalk.eval.watch import Watch
from livetalk.types import PICTURES_PER_SECOND, LiveTalkError

REPORT_NAME, JSON_NAME = "report.md", "report.json"
SHEET_EVERY, SHEET_COLUMNS = 7, 16
PLOTTED_CLIPS, PLOTTED_S = 6, 20.0
_CLIP_COLUMNS = (
    "name",
    "voice",
    "sync_r",
    "ceiling",
    "width_r",
    "amplitude",
    "silence_open",
    "sharp_eyes",
    "sharp_mouth",
    "identity",
    "flicker_ratio",
    "blinks_per_minute",
)


@dataclass(frozen=True)
class Seen:
    """What a report shows of one clip.

    Attributes:
        case: who says what.
        watch: what was read off the generated pictures.
        shown: some of them, every ``SHEET_EVERY``-th, uint8 ``[N, H, W, 3]``.
        truth: the true pictures of the same moments, where they could be drawn.
    """

    case: Case
    watch: Watch
    shown: np.ndarray
    truth: np.ndarray | None = None


def write_clips_report(folder: Path, result: Mapping[str, Any], seen: Sequence[Seen]) -> None:
    """The report of ``evaluate clips``: tables, a contact sheet, openness and sharpness as plots."""
    pictures: dict[str, Image.Image] = {}
    if seen:
        rows = [row for one in seen for row in (one.truth, one.shown) if row is not None]
        pictures = {
            "clips.png": contact_sheet(rows, columns=max(map(len, rows))),
            "openness.png": stacked([_openness(one) for one in seen[:PLOTTED_CLIPS]]),
            "time.png": stacked([_over_time(seen, name) for name in ("sharp_eyes", "sharp_mouth")]),
        }
    summary = [{"measure": name, "value": value} for name, value in result["summary"].items()]
    drawn = any(one.truth is not None for one in seen)
    parts = [
        f"Model {result['model']}; cases: {result['data']}.",
        table(summary, ("measure", "value")),
        "## Clips",
        table([*result["clips"], *result["long"]], _CLIP_COLUMNS),
        "Two rows a clip: the truth, and what was generated." if drawn else "One row a clip, every 7th picture.",
        "![pictures](clips.png)",
        "Openness of the mouth, read from the pictures, and the truth:",
        "![openness](openness.png)",
        "Sharpness over time, 1 = the mean of the true pictures:",
        "![sharpness](time.png)",
        "## Words and silence",
        _words(result["words"]),
        table(result["silence"], ("name", "open", "blinks_per_minute", "movement")),
    ]
    write_page(folder, "How well it talks", parts, pictures, result)


def write_page(
    folder: Path, title: str, parts: Sequence[str], pictures: Mapping[str, Image.Image], result: Mapping[str, Any]
) -> None:
    """A Markdown page with its pictures, and the result as JSON beside it.

    Raises:
        LiveTalkError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            picture.save(folder / name)
        there = [part for part in parts if part and (not part.startswith("![") or _file_of(part) in pictures)]
        (folder / REPORT_NAME).write_text("\n\n".join([f"# {title}", *there]) + "\n", encoding="utf-8")
        write_json(folder / JSON_NAME, result)
    except OSError as error:
        raise LiveTalkError(f"The report could not be written to {folder}: {error}. Give another --report.") from error


def _file_of(image_part: str) -> str:
    return image_part.rpartition("(")[2].rstrip(")")


def _openness(one: Seen) -> Image.Image:
    count = min(one.case.pictures, int(PLOTTED_S * PICTURES_PER_SECOND))
    seconds = np.arange(count) / PICTURES_PER_SECOND
    told, truth = one.watch.reading.open[:count], one.case.poses.track("open")[:count]
    lines = [Line("truth", seconds, truth), Line("read", seconds[: len(told)], told)]
    title = f"{one.case.name}: {one.case.voice}, {one.case.mood}, {one.case.motion}"
    return line_plot(lines, title, "seconds", "openness", size=(900, 170), y_range=(0.0, 1.0))


def _over_time(seen: Sequence[Seen], name: str) -> Image.Image:
    lines = []
    for one in seen:
        if one.case.reference is not None:
            seconds, values = one.watch.over_time(name)
            lines.append(Line(one.case.name, seconds, np.asarray(values) / one.case.reference.truth[name]))
    return line_plot(lines, name.replace("sharp_", "sharpness of the "), "seconds", "of the truth", size=(900, 240))


def _words(words: Mapping[str, Any]) -> str:
    if not words:
        return ""
    asked = list(words["moods"])
    rows = [{"asked": mood, **words["moods"][mood]} for mood in asked]
    movement = ", ".join(f"{motion} {value}" for motion, value in words["movement"].items())
    return f"Moods read back (rows: asked, columns: read):\n\n{table(rows, ['asked', *asked])}\n\nMovement: {movement}."
