"""What goes beyond the paper's recipe, for people: every recipe beside the one it changes in one thing.

A difference is one of two students on the same clips, with its 95 % interval; it is called clear where the interval
leaves out 0. The paper has no figures for these. This module does not train or measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.distill.sheets import contact_sheet
from livetalk.eval.ablation_measure import Statistics, interval
from livetalk.eval.ablation_report import TITLES, Arms, changes_of, clip_rows
from livetalk.eval.figures import plain, table, write_json
from livetalk.types import LiveTalkError

JSON_FILE, PAGE_FILE, SHEET_FILE = "beyond.json", "beyond.md", "beyond.png"


def write_beyond(
    folder: Path, about: Mapping[str, Any], arms: Arms, shown: Sequence[Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Write ``beyond.json``, ``beyond.md`` and pictures; returns what is in the JSON.

    Args:
        folder: receives them.
        about: what was run, with ``settings`` of every recipe.
        arms: what was measured; the first is what the others are compared with.
        shown: pictures of every recipe, clip by clip, uint8 ``[N, H, W, 3]``.

    Raises:
        LiveTalkError: the folder cannot be written.
    """
    first = next(iter(arms.values()))
    told = [_arm(name, first["after_dmd"], found["after_dmd"]) for name, found in arms.items()]
    result: dict[str, Any] = plain({**about, "arms": told})
    sheet = contact_sheet(clip_rows(shown), columns=max(len(clip) for clips in shown for clip in clips))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / SHEET_FILE)
        (folder / PAGE_FILE).write_text(_page(result), encoding="utf-8")
        write_json(folder / JSON_FILE, result)
    except OSError as error:
        raise LiveTalkError(f"The report could not be written to {folder}: {error}. Give another --out.") from error
    return result


def _arm(name: str, first: Statistics, found: Statistics) -> dict[str, Any]:
    """Figures of a recipe after distribution matching, and what changed against the first one."""
    changes = {ruler: change for ruler, change in changes_of(first, found).items() if ruler in TITLES}
    return {
        "setting": name,
        "figures": {ruler: float(found[ruler][0]) for ruler in TITLES if ruler in found},
        "intervals": {ruler: list(interval(found[ruler])) for ruler in TITLES if ruler in found},
        "changes": {ruler: [change.value, change.low, change.high] for ruler, change in changes.items()},
        "clear": {ruler: str(change) for ruler, change in changes.items() if change.clear},
    }


def _page(result: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    rows = [{"setting": arm["setting"], **arm["figures"]} for arm in result["arms"]]
    first, *others = result["arms"]
    sentences = [
        f"* **{arm['setting']}**: "
        + (", ".join(f"{TITLES[name]} ({change})" for name, change in arm["clear"].items()) or "nothing clear")
        + "."
        for arm in others
    ]
    parts = [
        "# What goes beyond the paper",
        f"Model {result['model']}, {result['clips']} new people, {result['clip_s']:.1f} s each, trainings of every"
        f" recipe: {result['seeds']}, numbers of steps times {result['scale']:g}.",
        table(rows, tuple(rows[0])),
        ". ".join(f"`{name}`: {TITLES[name]}" for name in first["figures"]) + ".",
        f"Clear changes against {first['setting']} (95 % of the resampled clips leave out 0):",
        "\n".join(sentences),
        f"![pictures]({SHEET_FILE})",
    ]
    return "\n\n".join(parts) + "\n"
