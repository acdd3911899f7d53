"""Long rollouts: one face talks for minutes in one stream, and the last stretch is compared with the first.

The stretches say different things, but the last says again what the first said, so that the two can be compared.
Pictures are read as they come and thrown away. The ablation of the identity sinks (AHIS) runs the same stream with
other numbers of sink frames, and with the portrait channels of the network's input zeroed.

This module does not know how a cache works, nor what figures are good enough.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from livetalk.distill.portraits import Poses
from livetalk.distill.sheets import contact_sheet
from livetalk.distill.speech import HELD_OUT_VOICES
from livetalk.eval.cases import Case, cut, find_set, read_set
from livetalk.eval.figures import Figures, mean, plain, table
from livetalk.eval.plots import Line, line_plot, stacked
from livetalk.eval.report import write_page
from livetalk.eval.sets import fresh_seed
from livetalk.eval.truth import CasePlan, draw_case, require_renderer
from livetalk.eval.watch import Watch, find_probe, judge, perform
from livetalk.hub import Models, load_models
from livetalk.model.cache import KVCache
from livetalk.model.conditions import Conditions
from livetalk.model.transformer import CausalDiT
from livetalk.rulers import Probe
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_SECOND, LiveTalkError

log = logging.getLogger(__name__)

AHIS_WINDOW_FRAMES = 15
AHIS_SINKS = (0, 3, 9, 12)
COMPARED = ("identity", "sharp_eyes", "sharp_mouth", "flicker", "sync_r")
SHEET_COLUMNS = 16


@dataclass(frozen=True)
class LongPlan:
    """How long and how often.

    Attributes:
        stretches: parts of a rollout, the last one like the first.
        stretch_s: length of each; None = as long as the set's long clips (60 s).
        faces: rollouts.
        sinks: sink frames to try with a window of ``AHIS_WINDOW_FRAMES``, with and without portrait channels;
            empty = the model as it is.
    """

    stretches: int = 10
    stretch_s: float | None = None
    faces: int = 1
    sinks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One way to run the model. ``sinks`` None = as its preset says."""

    name: str
    sinks: int | None = None
    portrait: bool = True


@dataclass(frozen=True)
class Talk:
    """What one long rollout says: cases of one length in their order; the face is the first one's."""

    parts: tuple[Case, ...]

    @property
    def whole(self) -> Case:
        """The face with the truth of all parts."""
        values = np.concatenate([part.poses.values for part in self.parts])
        return replace(self.parts[0], poses=Poses(values))

    @property
    def part_pictures(self) -> int:
        """Pictures of a part."""
        return self.parts[0].pictures

    def packets(self) -> Iterator[np.ndarray]:
        """The sound, second by second, and a little silence to hear the end."""
        for part in self.parts:
            samples = part.samples[: part.pictures * MODEL_SAMPLES_PER_PICTURE]
            yield from np.array_split(samples, max(1, part.pictures // PICTURES_PER_SECOND))
        yield np.zeros(PICTURES_PER_SECOND * MODEL_SAMPLES_PER_PICTURE, np.float32)


def run(
    preset: str = "mini",
    device: str = "auto",
    data: str | None = None,
    seed: int | None = None,
    plan: LongPlan | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """``evaluate long`` by the name of a model, for the command line.

    Args:
        preset: name or folder of a model.
        device: "auto", "cpu" or "cuda".
        data: None = the shipped set, whose long clips are said in turn; "fresh" = newly drawn and spoken; or a folder.
        seed: first seed of fresh cases.
        plan: how long, how often, and whether to try other sinks.
        report: folder for the report.

    Raises:
        LiveTalkError: no such model or set, the renderer is missing, or the plan does not fit.
    """
    plan = plan or LongPlan()
    check_plan(plan)
    models, probe = load_models(preset, device), find_probe()
    if data == "fresh" or seed is not None:
        talks = [fresh_talk(models, probe, fresh_seed(seed) + 1_000 * face, plan) for face in range(plan.faces)]
    else:
        cases = read_set(find_set(Path(data) if data else None, models.preset.weights.folder)).of_kind("long")
        talks = talks_from(cases, plan, models.preset.audio.look_ahead_samples)
    return evaluate_long(models, probe, talks, variants(plan), report)


def check_plan(plan: LongPlan) -> None:
    """Refuse what cannot be run.

    Raises:
        LiveTalkError: too few stretches, no face, or sinks that leave no room for a chunk.
    """
    if plan.stretches < 2:
        raise LiveTalkError(f"{plan.stretches} stretch cannot be compared with itself. Give --minutes of at least 2.")
    if plan.faces < 1:
        raise LiveTalkError(f"{plan.faces} faces were asked for. Give at least one.")
    wrong = [sinks for sinks in plan.sinks if not 0 <= sinks <= AHIS_WINDOW_FRAMES - 3 or sinks % 3]
    if wrong:
        raise LiveTalkError(
            f"{wrong[0]} sink frames do not fit a window of {AHIS_WINDOW_FRAMES}: expected a multiple of 3 from 0 to"
            f" {AHIS_WINDOW_FRAMES - 3}."
        )


def variants(plan: LongPlan) -> list[Variant]:
    """The model as it is, or every number of sinks with and without the portrait channels."""
    if not plan.sinks:
        return [Variant("as shipped")]
    return [
        Variant(f"{sinks} sinks{'' if portrait else ', no portrait'}", sinks, portrait)
        for portrait in (True, False)
        for sinks in plan.sinks
    ]


def talks_from(cases: Sequence[Case], plan: LongPlan, look_ahead_samples: int) -> list[Talk]:
    """Long rollouts out of the long clips of a set: each face begins with its own and says the others in turn.

    Raises:
        LiveTalkError: the set has too few long clips.
    """
    if len(cases) < plan.faces:
        raise LiveTalkError(f"The set has {len(cases)} long clips, {plan.faces} faces were asked for. Ask for fewer.")
    pictures = min(case.pictures for case in cases)
    seconds = min(plan.stretch_s or 1e9, pictures / PICTURES_PER_SECOND)
    parts = [cut(case, seconds, look_ahead_samples) for case in cases]
    talks = []
    for face in range(plan.faces):
        said = [parts[(face + number) % len(parts)] for number in range(plan.stretches - 1)]
        talks.append(Talk((*said, parts[face])))
    return talks


def fresh_talk(models: Models, probe: Probe, seed: int, plan: LongPlan) -> Talk:
    """A newly drawn face with newly spoken sentences in one voice.

    Raises:
        LiveTalkError: the renderer or a speech engine is missing.
    """
    require_renderer()
    voice, seconds = HELD_OUT_VOICES[seed % len(HELD_OUT_VOICES)], plan.stretch_s or 60.0
    parts = []
    for number in range(plan.stretches - 1):
        kind = "words" if number else "long"  # true pictures of the first stretch are enough
        wanted = CasePlan(f"part-{number}", seed + number, cast("Any", kind), seconds, "gentle", "neutral", voice)
        parts.append(draw_case(wanted, models, probe)[0])
    return Talk((*parts, parts[0]))


def evaluate_long(
    models: Models, probe: Probe, talks: Sequence[Talk], ways: Sequence[Variant], folder: Path | None = None
) -> dict[str, Any]:
    """Run every talk in every way.

    Returns:
        Plain data: for each variant ``last_over_first`` (ratios, 1 = nothing changed), ``identity_growth`` (levels of
        255), ``stretches`` (means over faces, one row each).
    """
    rows, sheets, shown = [], [], []
    for way in ways:
        changed = varied(models, way)
        faces = []
        for talk in talks:
            figures, pictures = roll_out(changed, probe, talk)
            log.info("%s, %s: sync_r %.3f at the end", way.name, talk.parts[0].name, figures[-1]["sync_r"])
            faces.append(figures)
            sheets.append(pictures)
            shown.append(way.name)
        rows.append(_row(way, faces))
    first = talks[0].parts[0]
    result = plain(
        {
            "model": models.preset.name,
            "seconds": len(talks[0].parts) * talks[0].part_pictures / PICTURES_PER_SECOND,
            "faces": len(talks),
            "voices": [talk.parts[0].voice for talk in talks],
            "first_seed": first.seed,
            "window_frames": AHIS_WINDOW_FRAMES if ways[0].sinks is not None else models.preset.rollout.window_frames,
            "variants": rows,
        }
    )
    if folder is not None:
        _write(folder, result, sheets, shown)
    return result


def roll_out(models: Models, probe: Probe, talk: Talk) -> tuple[list[Figures], np.ndarray]:
    """One long stream.

    Returns:
        Figures of every part, and some pictures spread over the whole, uint8 ``[N, H, W, 3]``.
    """
    whole, count = talk.whole, talk.part_pictures
    watch = Watch(probe, whole.portrait, whole.reference.still if whole.reference else None)
    pieces = perform(models, whole.portrait, whole.text, talk.packets(), whole.pictures, whole.seed)
    kept = watch.see_all(pieces, keep_every=max(1, whole.pictures // SHEET_COLUMNS))
    rows = []
    for start in range(0, whole.pictures, count):
        rows.append(watch.figures(start, start + count) | judge(watch, whole, start, start + count))
    return rows, kept[:SHEET_COLUMNS]


def varied(models: Models, way: Variant) -> Models:
    """The same weights, run another way."""
    preset = models.preset
    if way.sinks is not None:
        rollout = replace(preset.rollout, window_frames=AHIS_WINDOW_FRAMES, sink_frames=way.sinks)
        preset = replace(preset, rollout=rollout)
    network = models.transformer if way.portrait else cast("CausalDiT", WithoutPortrait(models.transformer))
    return replace(models, preset=preset, transformer=network)


class WithoutPortrait:
    """A network whose portrait channels are zero; the mask stays.

    Only the input is changed: a network that predicts what to add to the portrait latent still has it added, and the
    first latent frame of a stream still is the portrait.
    """

    def __init__(self, network: CausalDiT) -> None:
        self._network = network
        self.config, self.dtype, self.device = network.config, network.dtype, network.device

    def prepare(self, cond: Conditions) -> Conditions:
        """See ``CausalDiT.prepare``."""
        return self._network.prepare(cond)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditions, *, cache: KVCache) -> Tensor:
        """See ``CausalDiT.forward``."""
        return self._network(x, t, _hidden(cond), cache=cache)

    def write_context(self, latents: Tensor, t: Tensor, cond: Conditions, cache: KVCache) -> None:
        """See ``CausalDiT.write_context``."""
        self._network.write_context(latents, t, _hidden(cond), cache)


def _hidden(cond: Conditions) -> Conditions:
    image = torch.cat((torch.zeros_like(cond.image[:, :-1]), cond.image[:, -1:]), dim=1)
    return dataclasses.replace(cond, image=image)


def _row(way: Variant, faces: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    """One variant: means over faces, stretch by stretch, and the last stretch over the first."""
    names = [name for name in faces[0][0] if all(name in part for face in faces for part in face)]
    parts = [{name: mean(face[number][name] for face in faces) for name in names} for number in range(len(faces[0]))]
    there = [name for name in COMPARED if name in names]
    return {
        "variant": way.name,
        "sink_frames": way.sinks,
        "portrait_channels": way.portrait,
        **{name: mean(part[name] for part in parts) for name in there},
        "last_over_first": {name: parts[-1][name] / max(parts[0][name], 1e-9) for name in there},
        "identity_growth": parts[-1].get("identity", np.nan) - parts[0].get("identity", np.nan),
        "stretches": parts,
    }


def _write(folder: Path, result: dict[str, Any], sheets: Sequence[np.ndarray], names: Sequence[str]) -> None:
    rows = [{**row, **{f"{k} last/first": v for k, v in row["last_over_first"].items()}} for row in result["variants"]]
    there = [name for name in COMPARED if name in rows[0]]
    pictures: dict[str, Image.Image] = {"faces.png": contact_sheet(sheets, columns=max(map(len, sheets)))}
    plots = [_plot(result["variants"], name) for name in there]
    pictures["over-time.png"] = stacked(plots)
    parts = [
        f"Model {result['model']}, {result['seconds']:g} s in one rollout, {result['faces']} face(s)."
        " The last stretch says again what the first said.",
        table(rows, ("variant", *there, *[f"{name} last/first" for name in there], "identity_growth")),
        "![over time](over-time.png)",
        f"From the beginning to the end, one row a rollout: {', '.join(names)}.",
        "![faces](faces.png)",
    ]
    write_page(folder, "A long rollout", parts, pictures, result)


def _plot(rows: Sequence[dict[str, Any]], name: str) -> Image.Image:
    lines = [
        Line(
            row["variant"],
            list(range(1, len(row["stretches"]) + 1)),
            [np.nan if part[name] is None else part[name] for part in row["stretches"]],
        )
        for row in rows
    ]
    return line_plot(lines, name, "stretch", size=(1000, 240))
