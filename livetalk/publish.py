"""This clone as a Space of the Hugging Face Hub: which of its files belong there, and sending them.

A Space gets what git tracks, as it is in the working tree; untracked files (weights, runs, secrets) never leave the
machine. Beside ``hub``, which fetches, this is the only module that talks to the Hub's library: it alone writes there.
It does not know what the files do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from livetalk.types import LiveTalkError

CLONE = Path(__file__).resolve().parent.parent
NEEDED = ("README.md", "app.py", "requirements.txt")
"""Without these the Hub cannot start a Space (the first holds its configuration)."""
LEFT_OUT = ("tests/", ".ci/", "checkpoints/mini/held-out/")
"""Tracked, but of no use to a running Space: tests, and the set that ``evaluate clips`` measures."""
TOKEN_PAGE = "https://huggingface.co/settings/tokens"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.))(?=.{{1,96}}$){_NAME}/{_NAME}")
"""The Hub's rule: no "--" or "..", no "-" or "." at either end, 96 characters in all."""
_GIT_TIMEOUT_S = 60.0
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Plan:
    """What goes where.

    Attributes:
        repository: "user/name" of the Space.
        root: folder with the files.
        sizes: bytes of each file by its path below ``root`` ("/" between folders), sorted.
    """

    repository: str
    root: Path
    sizes: dict[str, int]

    @property
    def address(self) -> str:
        """Where the Space is looked at."""
        return f"{constants.ENDPOINT}/spaces/{self.repository}"

    def listing(self) -> str:
        """Files and megabytes (10^6 bytes) of every top-level folder, then of all, as lines of text."""
        files: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for path, size in self.sizes.items():
            folder, slash, _ = path.partition("/")
            name = folder + slash if slash else "outside of folders"
            files[name] += 1
            sizes[name] += size
        rows = [(files[name], size, name) for name, size in sizes.most_common()]
        rows.append((files.total(), sizes.total(), f"in all, for {self.address}"))
        return "\n".join(f"{count:>6} files  {size / 1e6:>7.2f} MB  {name}" for count, size, name in rows)


def plan(repository: str, root: Path = CLONE) -> Plan:
    """What publishing would send. Asks nobody.

    Args:
        repository: "user/name" or "organisation/name".
        root: top folder of a clone of this repository.

    Raises:
        LiveTalkError: no such name is possible, or ``root`` is no clone.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise LiveTalkError(
            f"{repository[:80]!r} cannot be a Space. Expected user/name, letters, digits, '-', '_' and '.' in both, "
            "such as ada/livetalk."
        )
    return Plan(repository, root, {path: (root / path).stat().st_size for path in space_files(root)})


def space_files(root: Path = CLONE) -> list[str]:
    """Files a Space needs: what git tracks and is there, without ``LEFT_OUT``; paths below ``root``, sorted.

    Raises:
        LiveTalkError: git is not installed, or ``root`` is no clone of this repository.
    """
    command = ["git", "-C", str(root), "ls-files", "-z"]
    try:
        told = subprocess.run(command, capture_output=True, check=True, timeout=_GIT_TIMEOUT_S)
    except FileNotFoundError as error:
        raise LiveTalkError(
            "A Space gets the files that git tracks, and git is not installed. Install it ('apt install git')."
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines() or [str(error)]
        raise LiveTalkError(
            f"git cannot say which files it tracks in {root}: {_sentence(said[0])} Publish from a clone of LiveTalk."
        ) from error
    # a set, because git repeats files in the middle of a merge
    tracked = {path for path in told.stdout.decode("utf-8", "surrogateescape").split("\0") if path}
    found = sorted(path for path in tracked if not path.startswith(LEFT_OUT) and (root / path).is_file())
    absent = [name for name in NEEDED if name not in found]
    if absent:
        raise LiveTalkError(
            f"git tracks no {', '.join(absent)} in {root}, and a Space needs it. Publish from a clone of LiveTalk."
        )
    return found


def publish(chosen: Plan, private: bool = False) -> str:
    """Make the Space if there is none and send the files in one commit; what else is in it stays.

    Args:
        chosen: see :func:`plan`.
        private: only its owner sees a new Space; one that is there keeps its visibility.

    Returns:
        Its address.

    Raises:
        LiveTalkError: no or no valid token, no right to write there, no network, or the Hub refused.
    """
    token = huggingface_hub.get_token()
    if token is None:
        raise LiveTalkError(
            "There is no Hugging Face token on this machine, and publishing needs one that may write. Make one at "
            f"{TOKEN_PAGE} and set HF_TOKEN to it, or call 'hf auth login'."
        )
    hub = huggingface_hub.HfApi(token=token)
    with _told(chosen.repository, ""):
        owner = hub.whoami()["name"]
    with _told(chosen.repository, owner), _staged(chosen) as folder:
        hub.create_repo(
            chosen.repository, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
        )
        hub.upload_folder(
            repo_id=chosen.repository, repo_type="space", folder_path=folder, commit_message="Publish LiveTalk"
        )
    return chosen.address


@contextmanager
def _staged(chosen: Plan) -> Iterator[Path]:
    """A passing folder that holds the files and nothing else: the uploader takes whole folders."""
    with tempfile.TemporaryDirectory(prefix="livetalk-space-") as name:
        folder = Path(name)
        for path in chosen.sizes:
            target = folder / PurePosixPath(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(chosen.root / path, target)
        yield folder


@contextmanager
def _told(repository: str, owner: str) -> Iterator[None]:
    """Turns what the Hub's library raises into one sentence.

    Args:
        repository: of the Space.
        owner: of the token; "" = not known yet.

    Raises:
        LiveTalkError: always, if the body raises.
    """
    try:
        yield
    except Exception as error:  # refused, unreachable, broken off in the uploader's own code: many types
        causes = list(_chain(error))
        refused = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
        if refused is not None:
            raise LiveTalkError(_refusal(refused, repository, owner)) from error
        if any(isinstance(cause, httpx2.TransportError | OfflineModeIsEnabled) for cause in causes):
            raise LiveTalkError(
                f"The Hub at {constants.ENDPOINT} cannot be reached: {_first_line(error)} Check the "
                "network and try again; files that have arrived are not sent twice."
            ) from error
        raise LiveTalkError(f"{repository} could not be published: {_first_line(error)}") from error


def _refusal(error: HfHubHTTPError, repository: str, owner: str) -> str:
    """What an answer of the Hub means for the person who publishes."""
    status = error.response.status_code
    if status == 401 and not owner:
        return (
            "The Hub does not accept this machine's token (HF_TOKEN, else the stored login). Make a new one that may "
            f"write at {TOKEN_PAGE}."
        )
    if status in (401, 403, 404):
        return (
            f"The token of {owner!r} may not write to the Space {repository}: the name belongs to somebody else, or "
            f"the token can only read. Publish as {owner}/{repository.partition('/')[2]}, or use a token that may "
            f"write ({TOKEN_PAGE})."
        )
    if status == 402:
        return (
            f"The Hub wants a paid plan for the Space {repository}: {_first_line(error)} See "
            "https://huggingface.co/pricing, or publish for an organisation that has one."
        )
    return f"The Hub refused the Space {repository} (status {status}): {_first_line(error)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """What a server or a library said, in a line; the server's own words come first."""
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return _sentence(" ".join(said.split()))


def _sentence(text: str) -> str:
    short = text[:_LONGEST_REASON].strip()
    return short if short.endswith((".", "!", "?")) else f"{short}."
