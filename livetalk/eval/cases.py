"""Cases: who says what, with the truth as numbers, so that a model can be measured without drawing anything.

A case holds a portrait, its speech, the caption and the true tracks of the face. What rulers say of the true pictures
(sharpness, flicker, movement; before and after the VAE) stands in its reference instead of the pictures themselves. A
set of cases is a folder of small files: portraits as PNG, speech as OGG, tracks as safetensors, the rest as JSON.

This module does not know how cases are made (``truth``) nor how a model does on them (``clips``).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from livetalk.distill.portraits import POSE_FIELDS, Poses
from livetalk.eval.figures import Figures
from livetalk.hub import Models, checkpoint_roots
from livetalk.media.sound import load_speech, write_speech
from livetalk.rulers import Gaussian
from livetalk.types import MODEL_RATE, MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_SECOND, LiveTalkError

FORMAT = 1
SET_FOLDER = "held-out"
SET_FILE, TRUTH_FILE = "set.json", "truth.safetensors"
MAKE_AGAIN = "Make the set again with 'python -m livetalk evaluate make-set' (needs the renderer)."

Kind = Literal["talk", "long", "words"]


@dataclass(frozen=True)
class Reference:
    """What the rulers say of a case's true pictures.

    Attributes:
        still: bool ``[16, 16]``, cells that do not move.
        truth: figures of the pictures as drawn.
        through: figures of the same pictures through the VAE; empty = not known for this VAE.
    """

    still: np.ndarray
    truth: Figures
    through: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Who says what.

    Attributes:
        name: of its files and in reports.
        seed: of the face, its motion and the generated stream.
        kind: "talk", "long", or "words" (a neutral face whose caption is chosen while measuring).
        portrait: uint8 ``[H, W, 3]``, picture 0 of the truth.
        samples: float32 ``[T * 1000 + look-ahead]`` at ``MODEL_RATE``.
        poses: truth of all T pictures.
        text: caption.
        mood, motion: what the caption asks for.
        voice: of the speech.
        reference: what rulers say of the truth; None where the pictures were never drawn.
    """

    name: str
    seed: int
    kind: Kind
    portrait: np.ndarray
    samples: np.ndarray
    poses: Poses
    text: str
    mood: str
    motion: str
    voice: str
    reference: Reference | None = None

    @property
    def pictures(self) -> int:
        """T."""
        return len(self.poses)

    @property
    def engine(self) -> str:
        """Who made the voice: "espeak" or "flite"."""
        return self.voice.partition(":")[0]


@dataclass(frozen=True)
class CaseSet:
    """Cases with what they have in common.

    Attributes:
        cases: all of them.
        source: where they come from, for the report.
        pictures_seen: distribution of the probe's features over true pictures of the talking cases; None = not known.
        clips_seen: the same over windows of a second.
        diversity: ``motion_diversity`` of the true talking cases.
        encoders: fingerprint of the VAE and audio encoder of the ``through`` figures; "" = none.
    """

    cases: tuple[Case, ...]
    source: str
    pictures_seen: Gaussian | None = None
    clips_seen: Gaussian | None = None
    diversity: float = math.nan
    encoders: str = ""

    def of_kind(self, kind: Kind) -> list[Case]:
        """The cases of one kind, in order."""
        return [case for case in self.cases if case.kind == kind]


def cut(case: Case, seconds: float, look_ahead_samples: int) -> Case:
    """The first ``seconds`` of a case; its reference stays that of the whole clip."""
    count = min(case.pictures, max(2, round(seconds * PICTURES_PER_SECOND)))
    samples = case.samples[: count * MODEL_SAMPLES_PER_PICTURE + look_ahead_samples]
    return replace(case, samples=samples, poses=Poses(case.poses.values[:count]))


def fingerprint(models: Models) -> str:
    """Short hash of the weights of VAE and audio encoder, the same in any number format they are loaded in."""
    sha = hashlib.sha256()
    for module in (cast("nn.Module", models.vae), cast("nn.Module", models.audio)):
        state = module.state_dict()
        for name in sorted(state):
            # bfloat16 is the coarsest format weights are used in; all others are rounded to it
            rounded = state[name].detach().cpu().to(torch.bfloat16).contiguous()
            sha.update(name.encode() + rounded.view(torch.int16).numpy().tobytes())
    return sha.hexdigest()[:16]


def find_set(folder: Path | None = None, preset_folder: str = "mini") -> Path:
    """The folder of the shipped set, or ``folder``.

    Raises:
        LiveTalkError: there is none.
    """
    places = [root / preset_folder / SET_FOLDER for root in checkpoint_roots()] if folder is None else [folder]
    found = next((place for place in places if (place / SET_FILE).is_file()), None)
    if found is None:
        raise LiveTalkError(
            f"There is no held-out set in {places[0]}: {SET_FILE} was expected. Fetch the repository with its"
            " checkpoints, or measure on freshly drawn faces with '--data fresh'."
        )
    return found


def write_set(folder: Path, cases: CaseSet) -> None:
    """Write a set of cases: PNG, OGG, safetensors and JSON; numbers of tracks as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases.cases:
        Image.fromarray(case.portrait).save(folder / f"{case.name}.png", optimize=True)
        write_speech(folder / f"{case.name}.ogg", case.samples, MODEL_RATE)
    write_truth(folder, cases)


def write_truth(folder: Path, cases: CaseSet) -> None:
    """The tracks and figures of a set, without its portraits and speech."""
    arrays: dict[str, np.ndarray] = {}
    for case in cases.cases:
        arrays[f"{case.name}.poses"] = case.poses.values.astype(np.float16)
        if case.reference is not None:
            arrays[f"{case.name}.still"] = case.reference.still.astype(np.uint8)
    for name, seen in (("pictures_seen", cases.pictures_seen), ("clips_seen", cases.clips_seen)):
        if seen is not None:
            arrays[f"{name}.mean"] = np.asarray(seen.mean, np.float32)
            arrays[f"{name}.covariance"] = np.asarray(seen.covariance, np.float32)
    save_file(arrays, str(folder / TRUTH_FILE))
    described = {
        "format": FORMAT,
        "source": cases.source,
        "encoders": cases.encoders,
        "diversity": None if math.isnan(cases.diversity) else round(cases.diversity, 6),
        "pose_fields": list(POSE_FIELDS),
        "cases": [_described(case) for case in cases.cases],
    }
    (folder / SET_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def read_set(folder: Path) -> CaseSet:
    """A set that ``write_set`` wrote.

    Raises:
        LiveTalkError: a file is missing or damaged; the message names it.
    """
    try:
        described = json.loads((folder / SET_FILE).read_text(encoding="utf-8"))
        if described["format"] != FORMAT or described["pose_fields"] != list(POSE_FIELDS):
            raise LiveTalkError(f"{folder / SET_FILE} was written by another version. {MAKE_AGAIN}")
        arrays = load_file(str(folder / TRUTH_FILE))
        cases = tuple(_read_case(folder, entry, arrays) for entry in described["cases"])
    except (OSError, ValueError, KeyError, SafetensorError, UnidentifiedImageError) as error:
        raise LiveTalkError(
            f"The held-out set in {folder} could not be read: {error}. Expected {SET_FILE}, {TRUTH_FILE} and a PNG and"
            f" an OGG for every case. Fetch it again, or: {MAKE_AGAIN}"
        ) from error
    return CaseSet(
        cases,
        described["source"],
        _gaussian(arrays, "pictures_seen"),
        _gaussian(arrays, "clips_seen"),
        math.nan if described["diversity"] is None else described["diversity"],
        described["encoders"],
    )


def _described(case: Case) -> dict[str, Any]:
    kept = ("name", "seed", "kind", "text", "mood", "motion", "voice")
    entry: dict[str, Any] = {name: getattr(case, name) for name in kept} | {"samples": len(case.samples)}
    if case.reference is not None:
        about = case.reference
        entry["reference"] = {"truth": _rounded(about.truth), "through": _rounded(about.through)}
    return entry


def _rounded(figures: Figures) -> Figures:
    return {name: round(value, 6) for name, value in figures.items()}


def _read_case(folder: Path, entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Case:
    name = entry["name"]
    portrait = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
    samples = np.zeros(entry["samples"], np.float32)
    heard = load_speech(folder / f"{name}.ogg", MODEL_RATE)[: len(samples)]
    samples[: len(heard)] = heard
    reference = None
    if "reference" in entry:
        still = arrays[f"{name}.still"].astype(bool)
        reference = Reference(still, entry["reference"]["truth"], entry["reference"]["through"])
    kept = {key: entry[key] for key in ("name", "seed", "kind", "text", "mood", "motion", "voice")}
    poses = Poses(arrays[f"{name}.poses"].astype(np.float32))
    return Case(portrait=portrait, samples=samples, poses=poses, reference=reference, **kept)


def _gaussian(arrays: dict[str, np.ndarray], name: str) -> Gaussian | None:
    if f"{name}.mean" not in arrays:
        return None
    return Gaussian(arrays[f"{name}.mean"], arrays[f"{name}.covariance"])
