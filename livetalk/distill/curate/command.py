"""The command ``python -m livetalk curate``: tools by name, then ``run.curate``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livetalk.config import from_dict
from livetalk.distill.curate.candidates import Tools
from livetalk.distill.curate.captions import Rewriter, hosted_rewriter
from livetalk.distill.curate.faces import CascadeFinder, YuNetFinder
from livetalk.distill.curate.judge import SyncRuler
from livetalk.distill.curate.limits import Limits
from livetalk.distill.curate.reference import Restorer, hosted_restorer, sharpen
from livetalk.distill.curate.run import Job, curate
from livetalk.hub import Models, checkpoint_roots, inference_client, load_models
from livetalk.model.mel import MelAudioEncoder
from livetalk.rulers import PROBE_FILE, Probe
from livetalk.types import LiveTalkError


@dataclass(frozen=True)
class Options:
    """Choices of a run.

    Attributes:
        preset: whose encoders and picture size are used: a name, or a folder with a model.
        frames: latent frames of a clip, 1 + 3k for whole chunks or as the training wants them.
        report: folder for contact sheets.
        limits: JSON file with those ``Limits`` that differ from the defaults.
        faces: file of OpenCV's YuNet; None = the cascades of its wheel.
        restore: "none", "plain" (sharpening), or an image-to-image model to ask.
        rewrite: chat model that rewrites captions; None = none does.
        see: show the chat model pictures.
        server: address of a local server for both models; None = the Hub.
    """

    preset: str = "mini"
    frames: int = 21
    report: Path | None = None
    limits: Path | None = None
    faces: Path | None = None
    restore: str = "none"
    rewrite: str | None = None
    see: bool = False
    server: str | None = None


def run(folder: Path, out: Path, options: Options) -> dict[str, Any]:
    """Curate a folder of videos into a folder of shards; returns the figures of ``curate``.

    Raises:
        LiveTalkError: no such folder, model or tool, or limits that cannot be read.
    """
    if options.frames < 2:
        raise LiveTalkError(f"A clip of {options.frames} latent frames does not move. Give --frames 2 or more.")
    limits = read_limits(options.limits) if options.limits is not None else Limits()
    finder = CascadeFinder() if options.faces is None else YuNetFinder(options.faces)
    models = load_models(options.preset, device="cpu", dtype="float32")
    tools = Tools(finder, sync_ruler(models), *_helpers(options), label=_label(options))
    return curate(Job(folder, out, models, tools, limits, options.frames, options.report))


def read_limits(file: Path) -> Limits:
    """Limits from a JSON object of those that differ from the defaults.

    Raises:
        LiveTalkError: the file cannot be read, or names a limit there is not.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LiveTalkError(f"The limits {file} could not be read ({error}). Expected a JSON object.") from error
    if not isinstance(values, dict):
        raise LiveTalkError(f"The limits {file} are a {type(values).__name__}. Expected a JSON object.")
    return from_dict(Limits, values)


def sync_ruler(models: Models) -> SyncRuler | None:
    """The ruler of illustrated faces, if the model draws those and its ear can tell mouths; else None."""
    files = (root / PROBE_FILE for root in checkpoint_roots())
    file = next((file for file in files if file.is_file()), None)
    if file is None or models.preset.portraits != "illustrated" or not isinstance(models.audio, MelAudioEncoder):
        return None
    return SyncRuler(Probe.load(file), models.audio)


def _helpers(options: Options) -> tuple[Restorer | None, Rewriter | None]:
    """Restorer and rewriter by name."""
    client = inference_client(options.server) if options.rewrite or options.restore not in ("none", "plain") else None
    named = {"none": None, "plain": sharpen}
    restorer = named[options.restore] if options.restore in named else hosted_restorer(client, options.restore)
    rewriter = hosted_rewriter(client, options.rewrite, options.see) if options.rewrite else None
    return restorer, rewriter


def _label(options: Options) -> str:
    finder = "cascade" if options.faces is None else options.faces.name
    models = f"rewrite {options.rewrite}, see {options.see}, server {options.server}"
    return f"faces {finder}, restore {options.restore}, {models}"
