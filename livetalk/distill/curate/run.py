"""The books of a curation: which files, what became of every candidate, and the shards.

A file's clips become one shard (none if nothing is left), its candidates lines of ``curation.jsonl`` beside the shards;
the file's own line comes last and says that it is done. So a run that was stopped goes on with the next file, and a
file that changed, or other settings, are done again. The same files and settings give the same shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from livetalk.config import to_dict
from livetalk.distill.curate.candidates import CAPTION_ENDING, Candidate, Order, Tools, candidates
from livetalk.distill.curate.limits import SENTENCES, Limits
from livetalk.distill.curate.scan import scan, stretches
from livetalk.distill.data import Encoders, encode_clip
from livetalk.distill.sheets import contact_sheet
from livetalk.distill.speech import HELD_OUT_SEED
from livetalk.hub import Models
from livetalk.media.videos import video_facts
from livetalk.types import PICTURES_PER_SECOND, LiveTalkError, pictures_of

log = logging.getLogger(__name__)

BOOK = "curation.jsonl"
ENDINGS = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts",
    ".webm", ".wmv",
)  # fmt: skip
_SEALED_BYTES = 1 << 20
Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a run is given.

    Attributes:
        folder: videos, searched with all folders in it; a caption may lie beside each, as ``name.txt``.
        out: receives shards and book.
        models: the preset and its frozen encoders.
        tools: face finder, ruler, restorer, rewriter.
        limits: what is asked of a clip.
        frames: latent frames of a clip.
        report: folder for contact sheets; None = none are drawn.
    """

    folder: Path
    out: Path
    models: Models
    tools: Tools
    limits: Limits = field(default_factory=Limits)
    frames: int = 21
    report: Path | None = None

    def settings(self) -> Line:
        """Everything but the files that decides about the result."""
        return {
            "limits": to_dict(self.limits),
            "frames": self.frames,
            "preset": self.models.preset.name,
            "tools": self.tools.label,
        }


def curate(job: Job) -> Line:
    """Take what is usable from a folder of videos.

    Returns:
        Figures: number of files, clips and kept clips, seconds kept, and clips by reason of rejection.

    Raises:
        LiveTalkError: there is no such folder, or no video in it. Bad files are noted in the book and passed over.
    """
    if not job.folder.is_dir():
        raise LiveTalkError(f"{job.folder} is no folder. Expected a folder with videos of talking people.")
    files = sorted(path for path in job.folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise LiveTalkError(f"There are no videos in {job.folder}. Expected files like {', '.join(ENDINGS)}.")
    job.out.mkdir(parents=True, exist_ok=True)
    book = job.out / BOOK
    lines = _finished(book)
    names = {path.relative_to(job.folder).as_posix(): path for path in files}
    for name, path in tqdm(names.items(), desc="curate", unit="file", disable=None):
        seal = _seal(path, job.settings())
        if name in lines and lines[name][-1]["seal"] == seal:
            continue
        lines[name] = [*_curate_file(name, path, job), {"file": name, "done": True, "seal": seal}]
        with book.open("a", encoding="utf-8") as writer:
            writer.write("".join(json.dumps(line) + "\n" for line in lines[name]))
    # files of another time stay in the shards' folder and so in the book
    _write_book(book, lines)
    return _summary([line for name in names for line in lines[name][:-1]], len(files))


def _curate_file(name: str, path: Path, job: Job) -> list[Line]:
    """Judge one file, write its shard; returns a line per candidate."""
    shard = job.out / f"shard-curated-{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
    shard.unlink(missing_ok=True)
    found: list[Candidate] = []
    rows: list[dict[str, Tensor]] = []
    problem = None
    try:
        for candidate in _candidates(name, path, job):
            found.append(replace(candidate, clip=None))
            if candidate.clip is not None:
                rows.append(_row(candidate, job))
    except LiveTalkError as error:
        problem = {"file": name, "kept": False, "reason": "unreadable", "sentence": str(error)}
        log.warning("%s", error)
    if rows:
        partial = shard.with_suffix(".partial")
        save_file({key: torch.stack([row[key] for row in rows]) for key in rows[0]}, partial)
        partial.replace(shard)
    found.sort(key=lambda candidate: candidate.first)
    if job.report is not None:
        _draw_sheet(found, job.report / f"{shard.stem.removeprefix('shard-curated-')}.png")
    lines = [_line(name, candidate, shard.name) for candidate in found]
    for row, line in enumerate(line for line in lines if line["kept"]):
        line["row"] = row
    log.info("%s: %d of %d clips kept", name, len(rows), len(found))
    return lines if problem is None else [*lines, problem]


def _candidates(name: str, path: Path, job: Job) -> Iterator[Candidate]:
    """Every candidate of a file, judged.

    Raises:
        LiveTalkError: the file cannot be read.
    """
    if not video_facts(path).has_sound:
        yield Candidate(first=0, pictures=0, wrong="no_sound", figures={})
        return
    preset = job.models.preset
    size = preset.height, preset.width
    seen = scan(path, job.tools.finder, job.limits)
    plan = stretches(seen, pictures_of(job.frames), size, job.limits)
    beside = path.with_suffix(CAPTION_ENDING)
    said = beside.read_text(encoding="utf-8", errors="replace").strip() if beside.is_file() else ""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % HELD_OUT_SEED
    order = Order(size, preset.audio.look_ahead_samples, seed, said)
    yield from candidates(path, plan, order, job.tools, job.limits)


@torch.no_grad()
def _row(candidate: Candidate, job: Job) -> dict[str, Tensor]:
    """What the shard keeps of a clip: the tensors of drawn clips, and which of the poses were read."""
    assert candidate.clip is not None
    encoders = Encoders(job.models.vae, job.models.audio, job.models.text)
    row = encode_clip(candidate.clip, encoders)
    return {**row, "poses_known": candidate.known, "seeds": torch.tensor(candidate.seed)}


def _line(name: str, candidate: Candidate, shard: str) -> Line:
    line: Line = {
        "file": name,
        "start_s": round(candidate.first / PICTURES_PER_SECOND, 3),
        "seconds": round(candidate.pictures / PICTURES_PER_SECOND, 3),
        "kept": candidate.wrong is None,
        "reason": candidate.wrong,
        "figures": {key: _plain(value) for key, value in candidate.figures.items()},
    }
    if candidate.wrong is not None:
        return {**line, "sentence": SENTENCES[candidate.wrong]}
    return {**line, "caption": candidate.caption, "reference": candidate.reference, "shard": shard}


def _plain(value: Any) -> Any:
    return round(float(value), 4) if isinstance(value, float) else value


def _draw_sheet(found: list[Candidate], path: Path) -> None:
    """A row per clip that was cut out: its reference, then pictures of it; rejected ones are darkened."""
    rows = [one.seen if one.wrong is None else one.seen // 2 for one in found if one.seen is not None]
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows, max(len(row) for row in rows)).save(path)


def _seal(path: Path, settings: Line) -> str:
    """Hash of the settings, the file's size, start and end, and of the caption beside it."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(f"{size}".encode() + file.read(_SEALED_BYTES))
        file.seek(max(0, size - _SEALED_BYTES))
        digest.update(file.read())
    beside = path.with_suffix(CAPTION_ENDING)
    digest.update(beside.read_bytes() if beside.is_file() else b"")
    return digest.hexdigest()[:24]


def _finished(book: Path) -> dict[str, list[Line]]:
    """Lines of the files that are done, by file; what a stopped run left half written is forgotten."""
    finished: dict[str, list[Line]] = {}
    gathered: list[Line] = []
    for text in book.read_text(encoding="utf-8").splitlines() if book.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        gathered = [*(other for other in gathered if other["file"] == line["file"]), line]
        if line.get("done"):
            finished[line["file"]], gathered = gathered, []
    return finished


def _write_book(book: Path, lines: dict[str, list[Line]]) -> None:
    partial = book.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for name in sorted(lines) for line in lines[name]), "utf-8")
    partial.replace(book)


def _summary(lines: list[Line], files: int) -> Line:
    kept = [line for line in lines if line["kept"]]
    return {
        "files": files,
        "clips": len(lines),
        "kept": len(kept),
        "kept_s": round(sum(line["seconds"] for line in kept), 2),
        "rejected": dict(Counter(line["reason"] for line in lines if not line["kept"]).most_common()),
    }
