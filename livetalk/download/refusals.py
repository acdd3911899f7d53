"""What went wrong with the Hub, in one sentence each: what happened, what was expected, what to do.

This module does not know which files were wanted, nor why.
"""

from __future__ import annotations

import errno

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from livetalk.types import LiveTalkError

HUB_ERRORS = (OSError, httpx2.HTTPError, EntryNotFoundError, ValueError)
"""Everything huggingface_hub raises when a file or a listing cannot be had."""

REVISIONS_VARIABLE = "LIVETALK_REVISIONS"


def unreachable(error: Exception) -> bool:
    """The Hub did not answer (no network, offline mode, an outage), so what the cache holds is the best there is."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(_cause(error), (httpx2.TransportError, ConnectionError, TimeoutError))


def refusal(error: Exception, name: str, revision: str) -> LiveTalkError:
    """The sentence for an error that came up while ``name`` was read at ``revision``.

    Args:
        error: one of ``HUB_ERRORS``.
        name: "owner/name" of the repository.
        revision: branch, tag or commit that was asked for.
    """
    error = _cause(error)
    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, HfHubHTTPError):
        return LiveTalkError(_answered(error, page, revision))
    if isinstance(error, OfflineModeIsEnabled):
        return LiveTalkError(
            f"Files of {page} are not all in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch them."
            " Unset it for one run of `python -m livetalk download`."
        )
    if isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError)):
        return LiveTalkError(
            f"{page} could not be reached ({type(error).__name__}), and its files are not all in"
            f" {constants.HF_HUB_CACHE}. Connect to the network and try again; what was fetched is kept."
        )
    if isinstance(error, OSError):
        return LiveTalkError(not_written(error, constants.HF_HUB_CACHE))
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return LiveTalkError(f"Files of {page} could not be fetched: {reason}. Check its name and revision.")


def not_written(error: OSError, place: str) -> str:
    """The sentence for a file that could not be written below ``place``."""
    if error.errno == errno.ENOSPC:
        return (
            f"The disk that holds {place} is full. Free some space, or set HF_HOME to a folder on a larger one,"
            " and try again; what was fetched is kept."
        )
    return (
        f"Files could not be written to {place}: {error.strerror or error}."
        " Make it writable, or set HF_HOME to another folder."
    )


def _answered(error: HfHubHTTPError, page: str, revision: str) -> str:
    """The sentence for an answer that is a refusal."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return (
            f"{page} is gated: its owner wants its terms accepted first. Accept them on that page, then log in with"
            " `hf auth login` or set HF_TOKEN to a token of that account."
        )
    # who sends no token is told 401 for what does not exist
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return (
            f"There is no repository {page}, or it is private. If it is yours, log in with `hf auth login` or set"
            " HF_TOKEN; else check HF_ENDPOINT."
        )
    if isinstance(error, RevisionNotFoundError):
        newest = f"{page.removeprefix(constants.ENDPOINT + '/')}@main"
        return f"{page} has no revision {revision!r}. Set {REVISIONS_VARIABLE} to one it has; {newest} is the newest."
    if isinstance(error, EntryNotFoundError):
        return f"{page} lacks a file at {revision} that it listed. Try again, or choose another {REVISIONS_VARIABLE}."
    if status in (401, 403):
        return (
            f"The Hub refused this machine's token for {page} (status {status}). Log in again with `hf auth login`, or"
            " set HF_TOKEN to a valid token with read access, or unset it."
        )
    return f"{page} answered with status {status} instead of its files. Try again later; what was fetched is kept."


def _cause(error: Exception) -> Exception:
    """What is behind "not in the local cache", which huggingface_hub says whenever a request failed."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error
