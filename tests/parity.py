"""Recorded numbers of the public reference: where they are, how they are compared.

The folder comes from the environment variable ``LIVETALK_PARITY`` (default: the compact copy in the repository). Any
other folder with files of the same names will do: tests take every size from the files, and skip a file that is not
there by its name.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

DEFAULT = Path(__file__).parent / "data" / "parity"


def folder() -> Path:
    """The folder with the recorded numbers."""
    return Path(os.environ.get("LIVETALK_PARITY") or DEFAULT)


@functools.cache
def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def _read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def load_json(name: str) -> dict[str, Any]:
    """``NAME.json``; skips the test when the folder lacks it."""
    path = folder() / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {path.parent}")
    return _read_json(path)


def load(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``NAME.json`` and the tensors of ``NAME.safetensors``; skips the test when the folder lacks one of them."""
    description = load_json(name)
    path = folder() / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {path.parent}")
    return description, _read_tensors(path)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``max|a - b| / max|b|``, the measure of all tolerances."""
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, recorded {list(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


def rms_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of the recorded numbers; the measure for bfloat16."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail unless ``actual`` is within ``tolerance`` (see ``relative_error``); NaN always fails."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"differs by {error:.2e} of the largest recorded number; {tolerance:.0e} is allowed"


def tolerance_of(description: dict[str, Any], default: float) -> float:
    """The float32 tolerance a JSON states."""
    value = description.get("tolerance", {})
    return float(value.get("float32_cpu", default)) if isinstance(value, dict) else default


def pad_rows(rows: Tensor, length: int) -> Tensor:
    """Text rows ``[B, n, W]`` with zero rows appended up to ``length``: files keep the non-zero rows only."""
    return torch.cat((rows, rows.new_zeros(rows.shape[0], length - rows.shape[1], rows.shape[2])), dim=1)
