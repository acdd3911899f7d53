"""All weights of a published preset: what is there, what it takes, fetching it and making it ready once.

Each repository is looked for in ``checkpoints/<preset>/<repository>`` first, where people put files by hand, else on
the Hub. The result lies in the Hub's cache beside the snapshots of the first repository, and remembers the commit of
every repository: as long as nobody asks for another one, the Hub is not asked again.

This module does not know what the weights compute, nor who wants them.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from tqdm import tqdm

from livetalk.config import Preset, RepositoryConfig
from livetalk.download.refusals import REVISIONS_VARIABLE, not_written
from livetalk.download.repository import (
    BY_HAND,
    COMMIT,
    Snapshot,
    cache_folder,
    cached_snapshot,
    fetch,
    hub_snapshot,
    local_snapshot,
    pinned_revision,
)
from livetalk.model.converted import Converted, convert, describe, read_converted, read_sources
from livetalk.model.originals import OriginalFiles
from livetalk.types import LiveTalkError

logger = logging.getLogger(__name__)

READY_FOLDER = "livetalk"
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Plan:
    """What making a preset's weights ready takes; nothing is fetched or written until ``carry_out``.

    Attributes:
        config: the preset.
        folder: where the converted weights are or will be; None for a preset whose weights come with the program.
        ready: the converted weights, if they are there and nobody asks for others.
        snapshots: the wanted files of each repository; empty when nothing is wanted.
    """

    config: Preset
    folder: Path | None
    ready: Converted | None = None
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def sources(self) -> dict[str, str]:
        """Repository -> commit (or "local-...")."""
        return {snapshot.repository.name: snapshot.version for snapshot in self.snapshots}

    @property
    def fetch_bytes(self) -> int:
        """What is still to fetch."""
        return sum(snapshot.missing_bytes for snapshot in self.snapshots)

    @property
    def convert_bytes(self) -> int:
        """What the converted files will take beside the fetched ones."""
        return sum(file.size_bytes for one in self.snapshots for file in one.files if file.name.endswith(".pth"))

    @property
    def free_bytes(self) -> int:
        """Free space on the disk of the cache."""
        place = Path(constants.HF_HUB_CACHE).expanduser().resolve()
        return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free

    def report(self) -> str:
        """Files, sizes, commits, licences and space as lines of text."""
        if self.folder is None:
            return f"{self.config.title} comes with the program ({self.config.weights.licence}): nothing to fetch."
        if self.ready is not None:
            commits = [f"  {name} at {version}" for name, version in self.ready.sources.items()]
            return "\n".join([f"{self.config.title} is ready in {self.folder}: nothing to fetch.", *commits])
        lines = [f"{self.config.title}, licence: {self.config.weights.licence}"]
        for snapshot in self.snapshots:
            repository, missing = snapshot.repository, {file.name for file in snapshot.missing}
            lines.append(f"{repository.name} at {snapshot.version} ({repository.licence})")
            lines += [
                f"  {_amount(file.size_bytes):>9}  {file.name}{'' if file.name in missing else '  (there)'}"
                for file in snapshot.files
            ]
        return "\n".join(
            [
                *lines,
                f"to fetch: {_amount(self.fetch_bytes)}; to write when converted: {_amount(self.convert_bytes)};"
                f" free: {_amount(self.free_bytes)} in {constants.HF_HUB_CACHE}",
            ]
        )

    def check_space(self) -> None:
        """See that it all fits.

        Raises:
            LiveTalkError: it does not; the message says how much is missing.
        """
        _require(self.fetch_bytes + self.convert_bytes, self)

    def carry_out(self) -> Path | None:
        """Fetch, check and convert what is not there yet; the folder of the converted weights.

        Raises:
            LiveTalkError: one sentence for whatever stands in the way.
        """
        if self.folder is None or self.ready is not None:
            return self.folder
        self.check_space()
        try:
            _settle_commits(self, self.folder)
            _convert(self, _fetched(self), self.folder)
        except OSError as error:
            raise LiveTalkError(not_written(error, str(self.folder))) from error
        return self.folder


def plan_download(config: Preset, roots: Sequence[Path]) -> Plan:
    """What making the weights of ``config`` ready takes.

    Args:
        config: a preset.
        roots: folders in which ``<preset folder>/<repository>`` is looked for.

    Raises:
        LiveTalkError: a repository is neither there nor can it be listed.
    """
    if not config.weights.repositories:
        return Plan(config, None)
    folder = ready_folder(config)
    if (ready := find_ready(config, roots)) is not None:
        return Plan(config, folder, ready)
    settled = read_sources(folder)
    snapshots = []
    for repository in config.weights.repositories:
        local = _local(config, repository, roots)
        if local is not None:
            snapshots.append(local_snapshot(repository, local))
        else:
            snapshots.append(hub_snapshot(repository, _revision(repository, settled.get(repository.name))))
    _check_transformer(config, snapshots[0], roots)
    return Plan(config, folder, _matching(folder, snapshots), tuple(snapshots))


def ready_folder(config: Preset) -> Path:
    """Where the converted weights of a published preset lie: beside the snapshots of its first repository."""
    return cache_folder(config.weights.repositories[0].name) / READY_FOLDER


def find_ready(config: Preset, roots: Sequence[Path]) -> Converted | None:
    """Converted weights that can be used without asking the Hub; None if others are asked for, or they are damaged.

    Raises:
        LiveTalkError: ``LIVETALK_REVISIONS`` cannot be read.
    """
    folder = ready_folder(config)
    sources = read_sources(folder)
    for repository in config.weights.repositories:
        version = sources.get(repository.name, "")
        local = _local(config, repository, roots)
        wanted = _revision(repository, version) if local is None else local_snapshot(repository, local).version
        if not version or version != wanted:
            return None
    try:
        return read_converted(folder)
    except LiveTalkError as error:
        logger.info("%s", error)
        return None


def published_files(config: Preset, roots: Sequence[Path]) -> OriginalFiles:
    """Files of a published model, ready to be loaded: converted if they can be, fetched before if need be.

    A disk that is full or must not be written is no reason to fail when the published files themselves are there.

    Raises:
        LiveTalkError: files are missing, damaged or do not fit, and cannot be fetched.
    """
    plan = plan_download(config, roots)
    if plan.ready is not None:
        return plan.ready.files
    if plan.fetch_bytes:
        logger.warning("%s", plan.report())
    _require(plan.fetch_bytes, plan)
    folder = ready_folder(config)
    try:
        if plan.free_bytes < plan.fetch_bytes + plan.convert_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _settle_commits(plan, folder)
        return _convert(plan, _fetched(plan), folder).files
    except OSError as error:
        logger.warning("%s The published files are read as they are.", not_written(error, str(folder)))
        return _fetched(plan, check=False)


def tiny_decoder_file(config: Preset, roots: Sequence[Path]) -> Path:
    """The small decoder of a preset, fetched if it is not on this disk.

    Raises:
        LiveTalkError: the preset has none, or it cannot be fetched.
    """
    repository = config.weights.tiny_decoder
    if repository is None:
        raise LiveTalkError(f"There is no tiny decoder for {config.title}. Use LIVETALK_DECODER=full.")
    local = _local(config, repository, roots)
    if local is not None:
        return local / repository.files[0]
    revision = _revision(repository, None)
    snapshot = cached_snapshot(repository, revision) or hub_snapshot(repository, revision)
    if snapshot.missing:
        fetch(snapshot)
    return snapshot.folder / snapshot.files[0].name


def _fetched(plan: Plan, check: bool = True) -> OriginalFiles:
    """The published files, all of them on this disk; those that were there before are checked if so wished."""
    for snapshot in plan.snapshots:
        if not snapshot.version.startswith(BY_HAND) and (check or snapshot.missing):
            fetch(snapshot)
    student, shared, speech = plan.snapshots
    text_name, vae_name, tokenizer = shared.repository.files
    return OriginalFiles(
        transformer=student.folder / student.files[0].name,
        vae=shared.folder / vae_name,
        text=shared.folder / text_name,
        tokenizer=(shared.folder / tokenizer).parent,
        audio=speech.folder,
    )


def _settle_commits(plan: Plan, folder: Path) -> None:
    """Hold on to the commits before anything is fetched: who goes on tomorrow gets the rest of the same files."""
    folder.parent.joinpath("snapshots").mkdir(parents=True, exist_ok=True)  # else ``hf cache`` takes it for damaged
    describe(folder, plan.config.name, plan.sources)


def _convert(plan: Plan, files: OriginalFiles, folder: Path) -> Converted:
    """The converted folder, with a bar in terminals."""
    with tqdm(total=5, desc="convert", disable=None, bar_format="{desc} {n_fmt}/{total_fmt} {elapsed}") as bar:

        def progress(part: str) -> None:
            bar.set_description(f"convert {part}")
            bar.update()

        return convert(files, plan.config, plan.sources, folder, progress)


def _revision(repository: RepositoryConfig, recorded: str | None) -> str:
    """What is asked of the Hub: the pin, else the preset's commit, else the commit of last time, else its branch."""
    pinned = pinned_revision(repository.name, os.environ.get(REVISIONS_VARIABLE, ""))
    if pinned is not None:
        return pinned
    if COMMIT.fullmatch(repository.revision) or not COMMIT.fullmatch(recorded or ""):
        return repository.revision
    return recorded or repository.revision


def _matching(folder: Path, snapshots: Sequence[Snapshot]) -> Converted | None:
    """The converted weights, if they are of exactly these versions (a branch was named and has not moved)."""
    try:
        converted = read_converted(folder)
    except LiveTalkError:
        return None
    wanted = {snapshot.repository.name: snapshot.version for snapshot in snapshots}
    return converted if converted.sources == wanted else None


def _local(config: Preset, repository: RepositoryConfig, roots: Sequence[Path]) -> Path | None:
    """Folder that somebody filled by hand with files of a repository."""
    places = [root / config.weights.folder / repository.name.rpartition("/")[2] for root in roots]
    return next((place for place in places if place.is_dir()), None)


def _check_transformer(config: Preset, student: Snapshot, roots: Sequence[Path]) -> None:
    """Refuse a choice of weight files before gigabytes are fetched.

    Raises:
        LiveTalkError: not exactly one; the message lists them.
    """
    if len(student.files) == 1:
        return
    names = ", ".join(file.name for file in student.files) or "none"
    place = roots[0] / config.weights.folder / student.repository.name.rpartition("/")[2]
    raise LiveTalkError(
        f"{student.folder} must hold exactly one .safetensors file; found: {names}."
        f" Keep the transformer only, or put it alone into {place}."
    )


def _require(wanted_bytes: int, plan: Plan) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        LiveTalkError: it does not.
    """
    if wanted_bytes > plan.free_bytes:
        raise LiveTalkError(
            f"{plan.config.title} needs {_amount(wanted_bytes)} in {constants.HF_HUB_CACHE}, and"
            f" {_amount(plan.free_bytes)} are free. Free some space, or set HF_HOME to a folder on a larger disk."
        )


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / GB:.2f} GB" if size_bytes >= GB else f"{size_bytes / MB:.2f} MB"
