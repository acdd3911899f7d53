"""One repository of the Hub on this disk: what is wanted of it, what is there, fetching and checking the rest.

Files lie in the ordinary cache of huggingface_hub, and its variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE) mean what they always mean. Two things are added to it: a file goes on where it stopped, even after the
program was ended, and it comes into the cache only when its hash is the Hub's. Xet is not needed.

This module does not know what the files are for.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from huggingface_hub.utils import tqdm as progress_bar

from livetalk.config import RepositoryConfig
from livetalk.download.refusals import HUB_ERRORS, REVISIONS_VARIABLE, refusal, unreachable
from livetalk.types import LiveTalkError

BY_HAND = "local-"
"""How versions begin that are no commits: of files somebody put there."""

COMMIT = re.compile(r"[0-9a-f]{40}")
HASHED_AT_ONCE_BYTES = 1 << 22


@dataclass(frozen=True)
class WantedFile:
    """A file of a repository.

    Attributes:
        name: path inside the repository.
        size_bytes: its length.
        digest: SHA-256 of a large file, git's object name of a small one; "" where nobody told it.
    """

    name: str
    size_bytes: int
    digest: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The wanted files of a repository at one commit, fetched or not.

    Attributes:
        repository: what was wanted.
        version: commit, or "local-..." for a folder that somebody filled by hand.
        folder: the files under their names.
        files: what matches ``repository.files``.
    """

    repository: RepositoryConfig
    version: str
    folder: Path
    files: tuple[WantedFile, ...]

    @property
    def missing(self) -> list[WantedFile]:
        """Files that are not there in their whole length."""
        return [file for file in self.files if _length(self.folder / file.name) != file.size_bytes]

    @property
    def missing_bytes(self) -> int:
        """What is still to fetch, beginnings of files left out."""
        here = (min(_length(_blob(self, file)), file.size_bytes) for file in self.missing)
        begun = (min(_length(_partial(self, file)), file.size_bytes) for file in self.missing)
        return sum(file.size_bytes - max(a, b) for file, a, b in zip(self.missing, here, begun, strict=True))


def cache_folder(name: str) -> Path:
    """Folder of the repository ``name`` in the Hub's cache."""
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / repo_folder_name(repo_id=name, repo_type="model")


def pinned_revision(name: str, environment: str) -> str | None:
    """Revision of the repository ``name`` in the value of ``LIVETALK_REVISIONS``: "owner/name@commit", by spaces.

    Raises:
        LiveTalkError: an entry has no "@".
    """
    for entry in re.split(r"[\s,]+", environment.strip()) if environment.strip() else ():
        repository, at, revision = entry.partition("@")
        if not (at and revision):
            raise LiveTalkError(
                f"{REVISIONS_VARIABLE} holds {entry!r}. Expected owner/name@commit, with spaces between."
            )
        if repository == name:
            return revision
    return None


def local_snapshot(repository: RepositoryConfig, folder: Path) -> Snapshot:
    """What a folder filled by hand holds of ``repository``; its version changes when a file does."""
    files = _files_on_disk(repository, folder)
    facts = "".join(f"{file.name}:{file.size_bytes}:{(folder / file.name).stat().st_mtime_ns};" for file in files)
    return Snapshot(repository, f"{BY_HAND}{hashlib.sha256(facts.encode()).hexdigest()[:16]}", folder, files)


def hub_snapshot(repository: RepositoryConfig, revision: str) -> Snapshot:
    """What the Hub lists at ``revision``; where it cannot be reached, what the cache holds of it. Fetches nothing.

    Raises:
        LiveTalkError: neither, or the repository lacks one of the wanted files.
    """
    name = repository.name
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        commit = info.sha or revision
        files = tuple(
            WantedFile(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else entry.blob_id or "")
            for entry in info.siblings or ()
            if _wanted(repository, entry.rfilename)
        )
        snapshot = Snapshot(repository, commit, cache_folder(name) / "snapshots" / commit, files)
        if info.gated and snapshot.missing:  # anybody may list a gated repository, so ask for a file
            get_hf_file_metadata(hf_hub_url(name, snapshot.missing[0].name, revision=commit), token=None)
    except HUB_ERRORS as error:
        found = cached_snapshot(repository, revision) if unreachable(error) else None
        if found is None:
            raise refusal(error, name, revision) from error
        return found
    if lacking := _unmatched(repository, files):
        raise LiveTalkError(
            f"{constants.ENDPOINT}/{name} at {commit[:12]} has no {lacking}. Expected {', '.join(repository.files)}."
            f" Choose another commit with {REVISIONS_VARIABLE}."
        )
    return snapshot


def fetch(snapshot: Snapshot) -> None:
    """Bring every file of the snapshot into the cache; what is there is checked, what was begun goes on.

    Raises:
        LiveTalkError: a file could not be fetched or written, or is not what the Hub says it is.
    """
    name, commit = snapshot.repository.name, snapshot.version
    try:
        for file in snapshot.files:
            _fetch_file(snapshot, file)
        if snapshot.repository.revision != commit:  # so that the branch is found without a network, too
            reference = cache_folder(name) / "refs" / snapshot.repository.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
    except HUB_ERRORS as error:
        raise refusal(error, name, commit) from error


def _fetch_file(snapshot: Snapshot, file: WantedFile) -> None:
    """One file: blob first, then the name that shows it, which is huggingface_hub's work."""
    shown, blob = snapshot.folder / file.name, _blob(snapshot, file)
    if not file.digest:  # a server that tells no hashes, or none was reached
        hf_hub_download(snapshot.repository.name, file.name, revision=snapshot.version)
        return
    if shown.exists():
        if _intact(shown, file):
            return
        shown.unlink()
        blob.unlink(missing_ok=True)
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{file.digest}.lock"
    for folder in (lock.parent, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists() and not _intact(blob, file):
            blob.unlink()
        if not blob.exists():
            _fetch_blob(snapshot, file, blob)
    hf_hub_download(snapshot.repository.name, file.name, revision=snapshot.version)
    if not shown.is_symlink():  # a system without links: the library made a copy
        blob.unlink(missing_ok=True)


def _fetch_blob(snapshot: Snapshot, file: WantedFile, blob: Path) -> None:
    """Content of a file, from where an earlier try stopped.

    Raises:
        LiveTalkError: it ended early, or its hash is another.
    """
    partial = _partial(snapshot, file)
    if _length(partial) > file.size_bytes:
        partial.unlink()
    address = hf_hub_url(snapshot.repository.name, file.name, revision=snapshot.version)
    with partial.open("ab") as target:
        begun = target.tell()
        try:
            http_get(
                address,
                target,
                resume_size=begun,
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                displayed_filename=file.name,
                expected_size=file.size_bytes,
            )
        except OSError as error:
            if error.errno is not None or not str(error).startswith("Consistency check failed"):
                raise
            raise LiveTalkError(
                f"{address} ended after {_length(partial)} of {file.size_bytes} bytes."
                " Run the command again: it goes on from there."
            ) from error
    if not _intact(partial, file):
        partial.unlink()
        raise LiveTalkError(
            f"{address} is damaged: its hash is not {file.digest[:12]}..., which the Hub lists. It was thrown away;"
            " run the command again, and look for a proxy that changes files if it stays so."
        )
    partial.replace(blob)


def _intact(path: Path, file: WantedFile) -> bool:
    """The file on disk has the length and the hash the Hub lists."""
    if _length(path) != file.size_bytes:
        return False
    large = len(file.digest) == 64
    found = hashlib.sha256() if large else hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
    bar = progress_bar(total=file.size_bytes, unit="B", unit_scale=True, desc=f"check {file.name[-40:]}", disable=None)
    with path.open("rb") as content, bar:
        while piece := content.read(HASHED_AT_ONCE_BYTES):
            found.update(piece)
            bar.update(len(piece))
    return found.hexdigest() == file.digest


def cached_snapshot(repository: RepositoryConfig, revision: str) -> Snapshot | None:
    """What the cache holds at ``revision``; None unless it is all there, as far as can be told without the Hub."""
    try:
        folder = Path(
            snapshot_download(
                repository.name, revision=revision, allow_patterns=list(repository.files), local_files_only=True
            )
        )
    except HUB_ERRORS:
        return None
    files = _files_on_disk(repository, folder)
    return None if _unmatched(repository, files) else Snapshot(repository, folder.name, folder, files)


def _files_on_disk(repository: RepositoryConfig, folder: Path) -> tuple[WantedFile, ...]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(WantedFile(name, (folder / name).stat().st_size) for name in names if _wanted(repository, name))


def _wanted(repository: RepositoryConfig, name: str) -> bool:
    """Like a shell: "*.safetensors" does not look into folders."""
    return any(name.count("/") == one.count("/") and fnmatch.fnmatchcase(name, one) for one in repository.files)


def _unmatched(repository: RepositoryConfig, files: tuple[WantedFile, ...]) -> str:
    """First of the wanted names that no file has, or ""."""
    return next((one for one in repository.files if not any(fnmatch.fnmatchcase(f.name, one) for f in files)), "")


def _blob(snapshot: Snapshot, file: WantedFile) -> Path:
    return snapshot.folder.parents[1] / "blobs" / (file.digest or "unknown")


def _partial(snapshot: Snapshot, file: WantedFile) -> Path:
    """Where the beginning of a file is kept; the ending is the one that ``hf cache`` knows and clears away."""
    return _blob(snapshot, file).with_name(f"{file.digest}.incomplete")


def _length(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
