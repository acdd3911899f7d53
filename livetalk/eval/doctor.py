"""What this machine can run, and why: device, memory, presets with the speed to expect, talkers, tools, advice.

It looks and measures for a second or two; it downloads nothing and loads no weights but mini's. Figures to quote come
from ``livetalk bench``.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from ctypes.util import find_library
from dataclasses import dataclass, field
from typing import Any

import torch

from livetalk import engine, resources, voice
from livetalk._version import __version__
from livetalk.config import PRESETS, Preset
from livetalk.eval import capability
from livetalk.eval.capability import GIB
from livetalk.stream.pace import CONVERSATION_FACTOR
from livetalk.stream.talkers import registry
from livetalk.types import LiveTalkError

NARROWEST, WIDEST = 80, 120
GROUPS = {"machine": "", "presets": "preset ", "talkers": "talker ", "tools": "optional "}
"""Groups of findings, and what stands before a finding's name in the report."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        group: one of ``GROUPS``.
        name: what was looked at.
        fine: whether it is there, fits or works.
        text: what that means.
        advice: what to install or change, if something is missing that a conversation here would profit from.
        facts: the same for programs, plain data.
    """

    group: str
    name: str
    fine: bool
    text: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine(measure: bool = True) -> list[Finding]:
    """Everything worth knowing before the first run, in the order people ask.

    Args:
        measure: False = no speed; then it takes no time.
    """
    presets = [_preset(preset, measure) for preset in PRESETS.values()]
    return [_software(), _device(), _memory(), *presets, *_talkers(), *_tools()]


def report(findings: Iterable[Finding], columns: int | None = None) -> str:
    """The findings as text for a terminal, then the advice.

    Args:
        findings: of ``examine``.
        columns: of the terminal; None = asked, within limits that can be read.
    """
    columns = columns or min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))
    rows = [(finding, GROUPS[finding.group] + finding.name) for finding in findings]
    margin = max(len(name) for _, name in rows) + 5
    said = [
        _hanging(f"{'ok' if finding.fine else '--'} {name}".ljust(margin), finding.text, columns)
        for finding, name in rows
    ]
    wanted = advice(finding for finding, _ in rows)
    if wanted:
        said += ["", "What would help here:", *(_hanging("  * ", one, columns) for one in wanted)]
    return "\n".join(said)


def advice(findings: Iterable[Finding]) -> list[str]:
    """What to install or change, each once, most important first."""
    return list(dict.fromkeys(finding.advice for finding in findings if finding.advice))


def as_data(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings as plain data: by group and name ``fine``, ``text`` and facts; and ``advice``."""
    found = list(findings)
    data: dict[str, Any] = {group: {} for group in GROUPS}
    for one in found:
        data[one.group][one.name] = {"fine": one.fine, "text": one.text, **one.facts}
    return {**data, "advice": advice(found)}


def _software() -> Finding:
    versions = {"livetalk": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return Finding("machine", "software", True, ", ".join(" ".join(one) for one in versions.items()), facts=versions)


def _device() -> Finding:
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        free, total = torch.cuda.mem_get_info(0)
        facts = {"kind": "cuda", "name": name, "free_gib": round(free / GIB, 1), "total_gib": round(total / GIB, 1)}
        return Finding(
            "machine", "device", True, f"CUDA: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free", facts=facts
        )
    is_fast = engine.fast_dtype(torch.device("cpu")) == torch.bfloat16
    cores, threads = resources.usable_cores(), capability.measured_threads()
    numbers = "bf16 in hardware" if is_fast else "no bf16 in hardware, so float32 at about half the speed"
    too_many = threads > cores
    return Finding(
        "machine",
        "device",
        not too_many,
        f"CPU, {_count(cores, 'core')}, {_count(threads, 'thread')} for the network, {numbers}",
        f"Set {resources.THREADS_VARIABLE} to {cores} or unset it: {threads} threads wait for each other on "
        f"{_count(cores, 'core')}."
        if too_many
        else "",
        {"kind": "cpu", "cores": cores, "threads": threads, "bf16": is_fast},
    )


def _memory() -> Finding:
    memory = resources.memory_bytes()
    if memory is None:
        return Finding("machine", "memory", True, "could not be read on this system")
    free, total = (part / GIB for part in memory)
    facts = {"free_gib": round(free, 1), "total_gib": round(total, 1)}
    return Finding("machine", "memory", True, f"{free:.1f} of {total:.1f} GiB free", facts=facts)


def _preset(preset: Preset, measure: bool) -> Finding:
    """Whether it fits, with the speed to expect."""
    try:
        found = capability.fit(preset, measure)
    except LiveTalkError as error:  # its checkpoint is damaged; the sentence says what to do
        return Finding("presets", preset.name, False, str(error), facts={"fits": False})
    needed = f"{found.needed_bytes / GIB:.1f} GiB"
    facts = {
        "fits": found.why_not is None,
        "device": found.device.type,
        "needed_gib": round(found.needed_bytes / GIB, 1),
        "weights_here": found.has_weights,
        "expected_real_time_factor": None if found.factor is None else round(found.factor, 2),
        "licence": preset.weights.licence,
    }
    if found.why_not is not None:
        return Finding("presets", preset.name, False, found.why_not, _larger(found), facts)
    text = f"fits (needs {needed})"
    wanted = ""
    if not found.has_weights:
        text += "; its weights are not here yet"
        name = preset.weights.folder  # that of the preset which brought them
        wanted = f"For the weights of {PRESETS[name].title}: python -m livetalk download --preset {name}"
    if found.factor is None:
        return Finding("presets", preset.name, True, text, wanted, facts)
    short = _too_slow(found.factor)
    text += f"; expect about {found.factor:.1f} x real time" + (f": {short}" if short else "")
    return Finding("presets", preset.name, True, text, wanted or (_faster(found) if short else ""), facts)


def _larger(found: capability.Fit) -> str:
    """What would make a preset fit that wants a GPU; "" where the finding says it all."""
    if found.device.type == "cuda" or not capability.wants_gpu(found.preset):
        return ""
    return f"For {found.preset.title}: a CUDA GPU with {found.needed_bytes / GIB:.1f} GiB of free memory."


def _too_slow(factor: float) -> str:
    """What such a speed means; "" = it is enough."""
    if factor < 1:
        return "pictures come late, clips take longer than they last"
    return "" if factor >= CONVERSATION_FACTOR else "enough for clips, little for a conversation"


def _faster(found: capability.Fit) -> str:
    """What would make a preset fast enough on this device."""
    better = "a larger GPU" if found.device.type == "cuda" else "more cores or a CUDA GPU"
    return (
        f"A conversation with {found.preset.name} wants {CONVERSATION_FACTOR:g} x real time, expected are "
        f"{found.factor:.1f}: close other programs, or take {better}."
    )


def _talkers() -> Iterator[Finding]:
    """Every talker: whether it can work here; what several lack is said once."""
    reasons = {one.name: _why_not(one) for one in registry.CHOICES}
    able = (one for one in registry.CHOICES if one.is_automatic and reasons[one.name] is None)
    automatic = next(able, registry.choice("offline")).name
    told: dict[str, str] = {}
    for one in registry.CHOICES:
        why = reasons[one.name]
        facts = {"works": why is None, "why_not": why, "automatic": one.name == automatic}
        if why is None:
            text = one.label + ('; "auto" chooses it' if one.name == automatic else "")
        else:
            text = f"as {told[why]}" if why in told else why
            told.setdefault(why, one.name)
        yield Finding("talkers", one.name, why is None, text, _talker_advice(one.name, why), facts)


def _why_not(choice: registry.Choice) -> str | None:
    """Why a talker cannot work here, in a sentence; None = it can, as far as one knows without asking anybody."""
    try:
        if choice.name == "offline":  # it works everywhere, if it has a voice
            voice.default_voice()
        return choice.missing(registry.Visitor())
    except LiveTalkError as error:  # no voice; a variable of its settings that does not fit
        return str(error)


def _talker_advice(name: str, why: str | None) -> str:
    """What to do first: only for what one command mends."""
    if name == "offline" and why is not None:
        return "For a voice: apt install flite (or pip install -r requirements-voice.txt)."
    if why is not None and "is not installed" in why and torch.cuda.is_available():
        return "For language models on this GPU: pip install -r requirements-extra.txt."
    return ""


def _tools() -> Iterator[Finding]:
    """What training, tests and benchmarks use; a conversation does not."""
    voices = voice.available_voices()
    skia = importlib.util.find_spec("skia") is not None
    drawing = skia and find_library("EGL") is not None and find_library("GL") is not None
    speaking = "voices for the offline talker, training and tests"
    for name, there, use, package in (
        ("flite", any(one.startswith("flite") for one in voices), speaking, "apt install flite"),
        ("espeak-ng", any(one.startswith("espeak") for one in voices), speaking, "apt install espeak-ng"),
        (
            "renderer",
            drawing,
            "draws training portraits",
            "pip install -r requirements-train.txt; apt install libegl1 libgl1",
        ),
        ("chromium", shutil.which("chromium") is not None, "browser tests and benchmark", "apt install chromium"),
    ):
        yield Finding("tools", name, there, use if there else f"missing, only for: {use} ({package})")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _hanging(head: str, text: str, columns: int) -> str:
    """A line with a head, wrapped behind it."""
    return textwrap.fill(text, columns, initial_indent=head, subsequent_indent=" " * len(head))
