"""Published weights as one folder of files that are safe and mapped into memory: written once, read ever after.

    config.json              format, preset, where each file came from, sizes in bytes
    transformer.safetensors  flat names
    vae.safetensors          names of Wan2.1_VAE.pth
    text.safetensors         names of models_t5_umt5-xxl-enc-bf16.pth
    audio/                   config.json and model.safetensors of wav2vec2
    tokenizer/               of umT5

Names and number formats stay the published ones, so nothing is rounded and ``originals`` reads the folder. A file that
needs no change is a second name of the published one (a hard link) and takes no space. Neither writing nor reading
copies weights through memory: both work on mapped files.

This module does not know where published files come from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from livetalk.config import Preset
from livetalk.model.originals import OriginalFiles, load_original, read_tensors
from livetalk.model.storage import write_whole
from livetalk.model.text import load_umt5
from livetalk.model.weights import original_state
from livetalk.types import LiveTalkError

CONVERTED_FORMAT = 2
DESCRIPTION = "config.json"
KEYS = {"format", "preset", "sources", "bytes"}


@dataclass(frozen=True)
class Converted:
    """A converted folder that is whole.

    Attributes:
        preset: name of the preset.
        sources: repository -> commit (or "local-...") the files came from.
        files: where the parts are.
    """

    preset: str
    sources: dict[str, str]
    files: OriginalFiles


def converted_files(folder: Path) -> OriginalFiles:
    """Where the parts of a converted folder are."""
    return OriginalFiles(
        transformer=folder / "transformer.safetensors",
        vae=folder / "vae.safetensors",
        text=folder / "text.safetensors",
        tokenizer=folder / "tokenizer",
        audio=folder / "audio",
    )


def is_converted(folder: Path) -> bool:
    """The folder's description is one of this format, whatever else is right or wrong with it."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and set(described) >= KEYS


def read_sources(folder: Path) -> dict[str, str]:
    """Commits (or "local-...") a converted folder came from, whether it is whole or not; empty if there is none."""
    if not is_converted(folder):
        return {}
    return dict(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["sources"])


def read_converted(folder: Path) -> Converted:
    """A converted folder; every file must have the length it was written with.

    Raises:
        LiveTalkError: no description, one of another version, or a file that is missing or cut short.
    """
    path = folder / DESCRIPTION
    if not is_converted(folder):
        raise LiveTalkError(f"{path} describes no converted weights. Run `python -m livetalk download` again.")
    described = json.loads(path.read_text(encoding="utf-8"))
    if described["bytes"] is None:
        raise LiveTalkError(f"{folder} is not finished. Run `python -m livetalk download` again.")
    if described["format"] != CONVERTED_FORMAT:
        raise LiveTalkError(
            f"{path} has format {described['format']}, this version reads {CONVERTED_FORMAT}."
            " Run `python -m livetalk download` again, or update LiveTalk."
        )
    for name, size in described["bytes"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise LiveTalkError(
                f"{file} is missing or does not have its {size} bytes. Run `python -m livetalk download` again."
            )
    return Converted(described["preset"], dict(described["sources"]), converted_files(folder))


def describe(folder: Path, preset: str, sources: Mapping[str, str], sizes: Mapping[str, int] | None = None) -> None:
    """Write a converted folder's description; without ``sizes`` it only holds on to the commits of what will be there.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {"format": CONVERTED_FORMAT, "preset": preset, "sources": dict(sources), "bytes": sizes}
    write_whole(folder / DESCRIPTION, (json.dumps(described, indent=2) + "\n").encode())


def convert(
    files: OriginalFiles,
    config: Preset,
    sources: Mapping[str, str],
    folder: Path,
    progress: Callable[[str], None],
) -> Converted:
    """Write a converted folder; its description is finished last, so that it is never half there.

    Args:
        files: published files; pickles are read through torch's weights-only reader.
        config: preset of the model.
        sources: repository -> commit, kept in the description.
        folder: made if need be; what is there is replaced.
        progress: told the name of each part before it is written.

    Raises:
        LiveTalkError: a file is damaged or does not fit; the message names it.
        OSError: the folder cannot be written, or the disk is full.
    """
    places = converted_files(folder)
    describe(folder, config.name, sources)
    for place in (places.audio, places.tokenizer):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    for name, choose in (("transformer", original_state), ("vae", _tensors_alone), ("text", _tensors_alone)):
        progress(name)
        _settle(getattr(files, name), getattr(places, name), choose)
    progress("audio")
    for file in ("config.json", "model.safetensors"):
        _share(files.audio / file, places.audio / file)
    for path in files.tokenizer.iterdir() if files.tokenizer.is_dir() else ():
        if path.is_file():
            _share(path, places.tokenizer / path.name)
    progress("check")
    load_original(places, config, torch.device("cpu"), None)
    load_umt5(_tensors_alone(read_tensors(places.text)))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    del sizes[DESCRIPTION]
    describe(folder, config.name, sources, sizes)
    return Converted(config.name, dict(sources), places)


def _settle(source: Path, target: Path, choose: Callable[[Mapping[str, Any]], Mapping[str, Tensor]]) -> None:
    """One weight file: shared if it is what is wanted already, else written anew."""
    loaded = read_tensors(source)
    wanted = choose(loaded)
    if source.suffix == ".safetensors" and wanted.keys() == loaded.keys():
        _share(source, target)
        return
    unfinished = target.with_name(target.name + ".part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in wanted.items()}, unfinished)
        unfinished.replace(target)
    except SafetensorError as error:  # how the library says that a file could not be written
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _share(source: Path, target: Path) -> None:
    """A second name for a file; where the disk has none, or it is another disk, a copy.

    Raises:
        LiveTalkError: there is no such file.
    """
    if not source.is_file():
        raise LiveTalkError(f"{source} is missing. Fetch it again.")
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        unfinished = target.with_name(target.name + ".part")
        try:
            shutil.copyfile(source, unfinished)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def _tensors_alone(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
