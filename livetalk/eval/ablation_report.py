"""The ablation for people: a table "ours | paper", plots side by side, pictures, and a sentence for every step.

What a step changed is a difference of two students on the same clips with its 95 % interval. It "agrees" with the paper
only if the interval leaves out 0 on the paper's side; where 0 is inside, nothing can be told apart, and the sentence
says so. Not every figure has a counterpart: our Frechet distances are in our probe's space, our lips are compared with
the truth instead of SyncNet's opinion, and nothing of ours measures what IQA and ASE do.

This module does not train or measure.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from livetalk.distill.sheets import contact_sheet
from livetalk.eval.ablation_measure import Statistics, interval
from livetalk.eval.figures import plain, table, write_json
from livetalk.eval.plots import Line, line_plot, stacked
from livetalk.types import LiveTalkError

JSON_FILE, PAGE_FILE, PLOT_FILE, SHEET_FILE = "ablation.json", "ablation.md", "ablation.png", "pictures.png"
PAPER_COLUMNS = ("FID", "FVD", "Sync-C", "Sync-D", "IQA", "ASE")
PAPER_ROWS: dict[str, tuple[float, ...]] = {
    "baseline": (27.10, 338.08, 3.13, 11.77, 3.95, 2.38),
    "+ curated conditions": (14.90, 217.68, 3.53, 11.47, 3.99, 2.31),
    "+ converged ODE": (11.67, 169.75, 4.15, 11.19, 4.18, 2.56),
    "+ 2x learning rate": (12.10, 179.73, 4.29, 11.07, 4.15, 2.53),
    "+ stronger guidance": (13.68, 190.07, 4.50, 11.00, 4.13, 2.52),
    "final recipe, uncurated": (23.89, 261.19, 3.85, 11.42, 4.06, 2.47),
}
"""The paper's table: HDTF, 100 random clips of 5 s, no intervals."""

TITLES = {
    "sync_r": "lips",
    "share_of_ceiling": "share of the ceiling",
    "frechet_pictures": "Frechet distance, pictures",
    "frechet_clips": "Frechet distance, clips",
    "sharp_eyes": "sharpness, eyes",
    "sharp_mouth": "sharpness, mouth",
    "identity": "distance to the portrait",
    "flicker": "flicker",
    "amplitude": "opening of the mouth",
    "movement": "movement of the head",
}
"""Rulers in the table, in their order."""

WITH_INTERVAL = ("sync_r", "frechet_pictures", "frechet_clips")
SHEET_CASES = 2
_WHEN = {"after_ode": "ODE", "after_dmd": "DMD"}


@dataclass(frozen=True)
class Counterpart:
    """A figure of the paper and the ruler of ours that comes closest; both are better in the same direction."""

    ruler: str
    paper: str


COUNTERPARTS = (
    Counterpart("frechet_pictures", "FID"),
    Counterpart("frechet_clips", "FVD"),
    Counterpart("sync_r", "Sync-C"),
)
"""Sync-D tells the same as Sync-C in every step of the paper's table."""

VERDICTS = {
    "agrees": "agrees with the paper on",
    "contradicts": "contradicts the paper on",
    "open": "cannot be told from no change on",
}


@dataclass(frozen=True)
class Change:
    """A ruler of one recipe minus that of the one before, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.3g}, {self.low:+.3g}..{self.high:+.3g}"


Arms = Mapping[str, Mapping[str, Statistics]]
"""Name of a recipe to its statistics "after_ode" and "after_dmd"."""


def write_ablation(
    folder: Path, about: Mapping[str, Any], arms: Arms, shown: Sequence[Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Write ``ablation.json``, ``ablation.md``, a plot and pictures; returns what is in the JSON.

    Args:
        folder: receives them.
        about: what was run, with ``settings`` of every recipe.
        arms: what was measured.
        shown: pictures of every recipe, clip by clip, uint8 ``[N, H, W, 3]``.

    Raises:
        LiveTalkError: the folder cannot be written.
    """
    result = plain({**about, "arms": [_arm(name, whens) for name, whens in arms.items()], "steps": steps(arms)})
    sheet = contact_sheet(clip_rows(shown), columns=max(len(clip) for clips in shown for clip in clips))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot(arms).save(folder / PLOT_FILE)
        sheet.save(folder / SHEET_FILE)
        (folder / PAGE_FILE).write_text(page(result), encoding="utf-8")
        write_json(folder / JSON_FILE, result)
    except OSError as error:
        raise LiveTalkError(f"The report could not be written to {folder}: {error}. Give another --out.") from error
    return result


def steps(arms: Arms) -> list[dict[str, Any]]:
    """What each recipe changed against the one before, after distribution matching, and a sentence about it."""
    names = list(arms)
    # the paper's last row takes something away from its final recipe, which is the row before
    return [_step(name, before, arms) for before, name in itertools.pairwise(names)]


def changes_of(before: Statistics, after: Statistics) -> dict[str, Change]:
    """Differences of all rulers, resampling by resampling."""
    rounds = {name: after[name] - before[name] for name in after if name in before}
    return {name: Change(float(one[0]), *interval(one)) for name, one in rounds.items()}


def verdict(change: Change, ours: Counterpart, before: str, name: str) -> str:
    """A change of ours beside the paper's from one recipe to another: a key of ``VERDICTS``."""
    column = PAPER_COLUMNS.index(ours.paper)
    theirs = PAPER_ROWS[name][column] - PAPER_ROWS[before][column]
    if not change.clear:
        return "open"
    return "agrees" if change.value * theirs > 0 else "contradicts"


def page(result: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    rows: list[dict[str, Any]] = []
    for arm, before in zip(result["arms"], [None, *result["arms"]], strict=False):
        # recipes that differ in distribution matching only have one student before it
        shared = before is not None and arm["after_ode"] == before["after_ode"]
        rows += [_row(arm, when) for when in _WHEN if when == "after_dmd" or not shared]
    there = [name for name in TITLES if name in result["arms"][0]["after_dmd"]]
    parts = [
        "# The paper's ablation in miniature",
        _about(result),
        "Ours | paper (HDTF, 100 clips of 5 s, no intervals):",
        table(rows, ("setting", "after", *there, "|", *PAPER_COLUMNS)),
        ". ".join(f"`{name}`: {TITLES[name]}" for name in there)
        + ". Sharpness, opening and movement are shares of the truth's; Frechet distances are in our probe's space.",
        "Step by step, after distribution matching:",
        "\n".join(f"* {step['sentence']}" for step in result["steps"]),
        f"![ours and the paper's]({PLOT_FILE})",
        _beside_settings(result["settings"]),
        table([_written(one) for one in result["settings"]], tuple(result["settings"][0])),
        f"{SHEET_CASES} people, a row for every recipe in the order of the table:",
        f"![pictures]({SHEET_FILE})",
    ]
    return "\n\n".join(parts) + "\n"


def _about(result: Mapping[str, Any]) -> str:
    spread, luck = "clips and trainings", ""
    if result["seeds"] == 1:
        spread, luck = "clips", " There is one training of every recipe, and how much luck is in one is not known."
    return (
        f"Model {result['model']}, {result['clips']} new people, {result['clip_s']:.1f} s each; trainings of every"
        f" recipe: {result['seeds']}; numbers of steps times {result['scale']:g}. Intervals are 95 % over resampled"
        f" {spread}; one in twenty leaves out 0 by chance.{luck}"
    )


def _written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with numbers of any size."""
    return {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in settings.items()}


def _beside_settings(settings: Sequence[Mapping[str, Any]]) -> str:
    """Our settings beside the paper's, from the baseline to its final recipe."""
    first, last = settings[0], [one for one in settings if one["setting"].startswith("+")][-1]
    return (
        f"Settings, ours | paper: {first['conditions'].split()[0]} conditions | 4000; {first['ode_steps']}, then"
        f" {last['ode_steps']} steps of ODE initialisation | 4k, then 20k; {first['dmd_steps']} steps of distribution"
        f" matching | 1k; the student's rate {first['learning_rate']:g}, then {last['learning_rate']:g} | 2e-6, then"
        f" 4e-6; guidance {first['text_guidance']:.3g} (text) and {first['audio_guidance']:.3g} (sound), then"
        f" {last['text_guidance']:.3g} and {last['audio_guidance']:.3g} | 4, then 6."
    )


def plot(arms: Arms) -> Image.Image:
    """Ours on the left, the paper's on the right; recipes are numbered from the left.

    The corridor is what can be told from recipe 1 after distribution matching: its figure and the ends of the
    interval of the change since then.
    """
    names = [name for name in arms if name == "baseline" or name.startswith("+")]
    numbers = range(1, len(names) + 1)
    rows = []
    for ruler, columns in (
        ("frechet_pictures", ("FID",)),
        ("frechet_clips", ("FVD",)),
        ("sync_r", ("Sync-C",)),
        ("sharp_eyes", ("IQA", "ASE")),
    ):
        if ruler not in arms[names[0]]["after_dmd"]:
            continue
        lines = []
        for when, short in _WHEN.items():
            tracks = [arms[name][when][ruler] for name in names]
            lines.append(Line(f"after {short}", numbers, [float(track[0]) for track in tracks]))
        first = arms[names[0]]["after_dmd"][ruler]
        ends = [interval(arms[name]["after_dmd"][ruler] - first) for name in names]
        for k, end in enumerate(("low", "high")):
            lines.append(Line(f"1 + {end} end of the change", numbers, [float(first[0]) + pair[k] for pair in ends]))
        ours = line_plot(lines, f"ours: {TITLES[ruler]}", "recipe", size=(560, 220))
        theirs = [
            Line(name, numbers, [PAPER_ROWS[row][PAPER_COLUMNS.index(name)] for row in names]) for name in columns
        ]
        rows.append(_beside(ours, line_plot(theirs, f"paper: {', '.join(columns)}", "recipe", size=(440, 220))))
    return stacked(rows)


def _arm(name: str, whens: Mapping[str, Statistics]) -> dict[str, Any]:
    """Figures of a recipe with their intervals, and the paper's."""
    figures = {
        when: {
            **{ruler: float(rounds[0]) for ruler, rounds in found.items()},
            **{f"{ruler}_interval": list(interval(rounds)) for ruler, rounds in found.items()},
        }
        for when, found in whens.items()
    }
    return {"setting": name, **figures, "paper": dict(zip(PAPER_COLUMNS, PAPER_ROWS[name], strict=True))}


def _step(name: str, before: str, arms: Arms) -> dict[str, Any]:
    """One step as data, with its sentence."""
    early, late = (changes_of(arms[before][when], arms[name][when]) for when in _WHEN)
    compared = {one.ruler: verdict(late[one.ruler], one, before, name) for one in COUNTERPARTS if one.ruler in late}
    clauses = []
    for key, words in VERDICTS.items():
        said = [_beside_paper(one, late, before, name) for one in COUNTERPARTS if compared.get(one.ruler) == key]
        clauses += [f"{words} {', '.join(said)}"] if said else []
    sentence = f"**{name}** (against: {before}): {'; '.join(clauses)}."
    beside = _clear(late, leave_out=set(compared))
    sentence += f" Clear changes without a counterpart: {', '.join(beside)}." if beside else ""
    already = _clear(early)
    sentence += f" Clear right after ODE initialisation: {', '.join(already)}." if already else ""
    figures = {ruler: [change.value, change.low, change.high] for ruler, change in late.items()}
    return {"setting": name, "against": before, "changes": figures, "verdicts": compared, "sentence": sentence}


def _beside_paper(one: Counterpart, changes: Mapping[str, Change], before: str, name: str) -> str:
    old, new = (PAPER_ROWS[row][PAPER_COLUMNS.index(one.paper)] for row in (before, name))
    return f"{TITLES[one.ruler]} ({changes[one.ruler]}; {one.paper} {old:g} -> {new:g})"


def _clear(changes: Mapping[str, Change], leave_out: Set[str] = frozenset()) -> list[str]:
    """Rulers in the table that changed clearly."""
    wanted = [ruler for ruler in TITLES if ruler in changes and ruler not in leave_out]
    return [f"{TITLES[ruler]} ({changes[ruler]})" for ruler in wanted if changes[ruler].clear]


def _row(arm: Mapping[str, Any], when: str) -> dict[str, Any]:
    """A line of the table; the paper's figures stand beside the finished student."""
    figures = arm[when]
    row: dict[str, Any] = {"setting": arm["setting"], "after": _WHEN[when], "|": ""}
    for ruler in TITLES:
        if ruler in figures:
            low, high = figures[f"{ruler}_interval"]
            row[ruler] = figures[ruler]
            if ruler in WITH_INTERVAL:
                row[ruler] = f"{figures[ruler]:.3f} ({low:.3f}..{high:.3f})"
    if when == "after_dmd":
        row |= {name: f"{value:g}" for name, value in arm["paper"].items()}
    return row


def clip_rows(shown: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Rows of the sheet: clip by clip, every recipe."""
    clips = min(SHEET_CASES, *(len(one) for one in shown))
    return [recipe[clip] for clip in range(clips) for recipe in shown]


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both
