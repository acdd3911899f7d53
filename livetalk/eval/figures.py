"""Small things all reports share: plain data for JSON, means that skip what is not known, tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Figures = dict[str, float]


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are known, rounded for people; nan if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else math.nan


def shared(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the measured numbers (floats) that all rows have."""
    numbers = [key for key, value in (rows[0] if rows else {}).items() if isinstance(value, float)]
    return [key for key in numbers if all(key in row for row in rows)]


def plain(value: Any) -> Any:
    """Data as JSON has it: numbers of numpy become Python's, what is not known (nan) becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table; numbers with three digits behind the point, what a row lacks as an empty cell."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """The result as a JSON file."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        return "..".join(_cell(item) for item in value)
    return "" if value is None else str(value)
