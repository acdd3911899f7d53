"""Settings of a talker from the environment: one variable per field of its dataclass.

``LIVETALK_HOSTED_CHAT_MODEL=...`` sets ``chat_model`` of the settings read with the prefix ``LIVETALK_HOSTED_``.
This module does not know what the settings mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from livetalk.types import LiveTalkError

T = TypeVar("T")

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def from_environment(kind: type[T], prefix: str, environment: Mapping[str, str] | None = None) -> T:
    """A settings dataclass whose fields are text, numbers or yes/no, with defaults for all of them.

    Args:
        kind: the dataclass.
        prefix: of the variables' names, such as ``LIVETALK_HOSTED_``.
        environment: None = that of this process.

    Raises:
        LiveTalkError: a variable with the prefix belongs to no field, or its value does not fit.
    """
    environment = os.environ if environment is None else environment
    known = {f"{prefix}{one.name.upper()}": one for one in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(prefix):
            continue
        if name not in known:
            raise LiveTalkError(f"The environment sets {name}, which is unknown. Known are: {', '.join(known)}.")
        values[known[name].name] = _value(name, text.strip(), known[name].default)
    return kind(**values)


def _value(name: str, text: str, default: object) -> object:
    """``text`` as the type of ``default``.

    Raises:
        LiveTalkError: it does not fit.
    """
    if isinstance(default, bool):
        if text.lower() not in _YES + _NO:
            raise LiveTalkError(f"{name} is {text!r}. Expected one of {', '.join(_YES + _NO)}.")
        return text.lower() in _YES
    try:
        return type(default)(text)  # type: ignore[call-arg]
    except ValueError as error:
        raise LiveTalkError(f"{name} is {text!r}. Expected a number such as {default}.") from error
