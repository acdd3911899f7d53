"""What this machine can run, and why: versions, device, number formats, memory, checkpoints, optional tools.

Only looks; it loads no weights and measures no speed (``livetalk bench`` does).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from ctypes.util import find_library
from dataclasses import dataclass

import torch

from livetalk import config, hub
from livetalk._version import __version__

GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, whether it is fine, and what it means."""

    name: str
    fine: bool
    text: str


def examine() -> list[Finding]:
    """Everything worth knowing before the first run, in the order people ask."""
    return [_software(), _device(), _memory(), *_checkpoints(), *_tools()]


def report(findings: list[Finding]) -> str:
    """The findings as lines of text for a terminal."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join(f"{'ok ' if f.fine else '-- '} {f.name:<{width}}  {f.text}" for f in findings)


def _software() -> Finding:
    return Finding(
        "software", True, f"livetalk {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _device() -> Finding:
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        free, total = torch.cuda.mem_get_info(0)
        return Finding("device", True, f"CUDA: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    dtype = hub.fast_dtype(torch.device("cpu"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    why = (
        "bf16 arithmetic in hardware, so weights are bf16"
        if dtype == torch.bfloat16
        else "no bf16 arithmetic in hardware, so weights are float32: expect about half the speed"
    )
    return Finding("device", True, f"CPU with {cores} cores, {torch.get_num_threads()} threads; {why}")


def _memory() -> Finding:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return Finding("memory", True, "could not be read on this system; mini needs 1 GiB")
    fine = free >= GIB
    return Finding(
        "memory", fine, f"{free / GIB:.1f} GiB free; mini needs 1 GiB" + ("" if fine else ": close programs")
    )


def _checkpoints() -> list[Finding]:
    findings = []
    for preset in config.PRESETS.values():
        folder = hub.find_weights(preset)
        if folder is None:
            text = "no weights on this machine"
            if preset.weights.repositories:
                text += f": python -m livetalk download --preset {preset.name}"
        else:
            size_mb = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
            text = f"{size_mb:.1f} MB in {folder}"
        needs_gpu = preset.model.width > 512
        if needs_gpu and not torch.cuda.is_available():
            text += "; this preset wants a CUDA GPU, and there is none"
        findings.append(
            Finding(f"preset {preset.name}", folder is not None, f"{text} (licence: {preset.weights.licence})")
        )
    return findings


def _tools() -> list[Finding]:
    skia = importlib.util.find_spec("skia") is not None
    egl = find_library("EGL") is not None and find_library("GL") is not None
    chromium = shutil.which("chromium")
    return [
        _tool("flite", shutil.which("flite") is not None, "a voice for training and tests", "Debian package flite"),
        _tool(
            "espeak-ng",
            find_library("espeak-ng") is not None,
            "voices for training and tests",
            "Debian package espeak-ng",
        ),
        _tool(
            "renderer",
            skia and egl,
            "draws the training portraits",
            "pip install -r requirements-train.txt, Debian packages libegl1 libgl1",
        ),
        _tool("chromium", chromium is not None, "browser tests and benchmark", "Debian package chromium"),
    ]


def _tool(name: str, there: bool, use: str, package: str) -> Finding:
    return Finding(f"optional {name}", there, f"{use}" if there else f"missing; only for: {use} ({package})")
