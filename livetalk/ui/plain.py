"""What a visitor sent, checked; and errors as sentences: nothing a visitor does becomes a traceback.

This module does not know sessions or the page.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta

from livetalk.types import LiveTalkError

PROMPT_LIMIT = 2_000
WORD_LIMIT = 100
SEED_LIMIT = 2**31 - 1

ParamsT = ParamSpec("ParamsT")
ReturnT = TypeVar("ReturnT")
_UPLOADED = re.compile(r"[^\s'\"]*[/\\][0-9a-f]{64}[/\\]")
_log = logging.getLogger(__name__)


def sentence(error: BaseException) -> str:
    """What to tell a visitor about ``error``; one that nobody expected goes to the log with its traceback."""
    if isinstance(error, LiveTalkError):
        return _UPLOADED.sub("", str(error))  # the file's own name is enough; where we keep it is our business
    _log.error("unexpected error while serving a visitor", exc_info=error)
    return f"Something went wrong on the server ({type(error).__name__}). Please try again; the server's log has more."


def plain(function: Callable[ParamsT, ReturnT]) -> Callable[ParamsT, ReturnT]:
    """``function`` with every error turned into a ``gr.Error`` that carries a sentence."""

    @functools.wraps(function)
    def wrapper(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ReturnT:
        try:
            return function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return wrapper


def plain_async(function: Callable[ParamsT, Awaitable[ReturnT]]) -> Callable[ParamsT, Awaitable[ReturnT]]:
    """The same for a coroutine function."""

    @functools.wraps(function)
    async def wrapper(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ReturnT:
        try:
            return await function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return wrapper


def plain_stream(function: Callable[ParamsT, Iterator[ReturnT]]) -> Callable[ParamsT, Iterator[ReturnT]]:
    """The same for a generator function."""

    @functools.wraps(function)
    def wrapper(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> Iterator[ReturnT]:
        try:
            yield from function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return wrapper


def uploaded(value: Any, what: str) -> Path:
    """Path of a file that came with a request; Gradio has checked that it was uploaded, not merely named.

    Raises:
        LiveTalkError: it is no uploaded file.
    """
    if not is_file_obj_with_meta(value):
        raise LiveTalkError(f"The {what} is missing. Expected a file: pass gradio_client.handle_file(path).")
    return Path(value["path"])


def chosen(value: Any, examples: dict[str, Path], what: str) -> Path:
    """Path of what a Picker holds: one of our examples or the visitor's own file.

    Raises:
        LiveTalkError: nothing was chosen, or the upload failed.
    """
    if isinstance(value, dict) and "failed" in value:
        raise LiveTalkError(f"{str(value['failed'])[:300]} Choose another file.")
    if isinstance(value, dict) and value.get("name") in examples:
        return examples[value["name"]]
    if not is_file_obj_with_meta(value):
        raise LiveTalkError(f"No {what} is chosen. Pick one of the examples or add your own file.")
    return Path(value["path"])


def checked_prompt(value: Any) -> str:
    """The prompt, stripped.

    Raises:
        LiveTalkError: no text, or longer than ``PROMPT_LIMIT`` characters.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LiveTalkError("The prompt is no text. Expected a sentence such as 'a person speaks calmly'.")
    if len(value) > PROMPT_LIMIT:
        raise LiveTalkError(
            f"The prompt has {len(value):,} characters. Up to {PROMPT_LIMIT:,} are read: shorten it, "
            "one or two sentences are enough."
        )
    return value.strip()


def checked_text(value: Any) -> str:
    """Words to answer; None is "".

    Raises:
        LiveTalkError: no text.
    """
    if value is not None and not isinstance(value, str):
        raise LiveTalkError("The question is no text. Expected a sentence such as 'What is LiveTalk?'.")
    return value or ""


def checked_word(value: Any, what: str, limit: int = WORD_LIMIT) -> str:
    """A short name, stripped; None is "".

    Raises:
        LiveTalkError: no text, or longer than ``limit`` characters.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit:
        raise LiveTalkError(f"The {what} is not usable. Expected a name of up to {limit} characters, or nothing.")
    return value.strip()


def checked_seed(value: Any) -> int:
    """The seed as an int; None is 0.

    Raises:
        LiveTalkError: not a whole number from 0 to ``SEED_LIMIT``.
    """
    if value is None:
        return 0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= SEED_LIMIT or value != int(value):
        raise LiveTalkError(f"The seed is {str(value)[:40]!r}. Expected a whole number from 0 to {SEED_LIMIT:,}.")
    return int(value)
