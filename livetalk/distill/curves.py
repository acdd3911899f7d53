"""Loss curves of a training run, drawn from its log. This module does not know what the figures mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NOT_CURVES = ("step", "trained_s")
COLUMNS = 3
CELL_INCHES = (4.2, 2.6)


def read_log(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of every figure in a run's log (one JSON object a line), in order of appearance."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for name in entry.keys() - set(NOT_CURVES):
            found.setdefault(name, []).append((entry["step"], entry[name]))
    order = sorted(found, key=lambda name: (name != "loss", name))
    return {name: (np.array(found[name])[:, 0], np.array(found[name])[:, 1]) for name in order}


def smoothed(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean over ``share`` of all values (at least one), shorter at the start."""
    width = max(1, round(share * len(values)))
    total = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - width)
    return (total[stop] - total[start]) / (stop - start)


def draw_curves(log: Path, picture: Path) -> bool:
    """One small plot per figure of a run's log, each with its running mean.

    Args:
        log: ``log.jsonl`` of the run.
        picture: PNG to write.

    Returns:
        False if there is nothing to draw yet, or matplotlib is not installed.
    """
    curves = read_log(log) if log.is_file() else {}
    if not any(len(steps) > 1 for steps, _ in curves.values()):
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * CELL_INCHES[0], rows * CELL_INCHES[1]))
    figure.subplots_adjust(0.04, 0.25 / rows, 0.99, 1 - 0.25 / rows, wspace=0.16, hspace=0.35)
    for place, (name, (steps, values)) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.plot(steps, values, color="#9bb7d4", linewidth=0.6)
        axes.plot(steps, smoothed(values), color="#1f4e79", linewidth=1.4)
        if _spread(values) > 30:
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=90)
    return True


def fell(values: Sequence[float] | np.ndarray, share: float = 0.25) -> float:
    """Mean of the last ``share`` of the values over the mean of the first: below 1, the curve fell."""
    values = np.asarray(values, np.float64)
    count = max(1, round(share * len(values)))
    return float(values[-count:].mean() / values[:count].mean())


def _spread(values: np.ndarray) -> float:
    """Largest over smallest value; 0 where a logarithm would make no sense."""
    finite = values[np.isfinite(values)]
    return float(finite.max() / finite.min()) if len(finite) and finite.min() > 0 else 0.0
