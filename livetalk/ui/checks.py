"""What a live visitor sends, checked: secret names, modes, packets of speech. This module does not know sessions."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import numpy as np

from livetalk.stream.session import MODES
from livetalk.types import LiveTalkError

PACKET_LIMIT_S = 10.0
RATES_HZ = 8_000, 96_000
_SID = re.compile(r"[A-Za-z0-9_-]{16,128}")


def check_sid(sid: Any) -> str:
    """``sid`` if nobody can guess it by trying.

    Raises:
        LiveTalkError: it is not a string of 16 to 128 letters, digits, ``-`` and ``_``, or nearly all the same.
    """
    if not isinstance(sid, str) or not _SID.fullmatch(sid) or len(set(sid)) < 6:
        raise LiveTalkError(
            "The sid names your session and keeps others out of it, so it must be hard to guess: 16 to 128 letters, "
            "digits, '-' or '_'. Make one with uuid.uuid4().hex."
        )
    return sid


def check_mode(mode: Any) -> None:
    """Raises:
    LiveTalkError: the mode is unknown.
    """
    if mode not in MODES:
        raise LiveTalkError(f"There is no mode {str(mode)[:40]!r}. Known modes: {', '.join(MODES)}.")


def decoded_pcm16(pcm16_base64: Any, rate: Any) -> np.ndarray:
    """float32 samples ``[n]`` in -1..1 of base64 PCM16.

    Raises:
        LiveTalkError: rate out of range, not base64, an odd number of bytes, or longer than ``PACKET_LIMIT_S``.
    """
    low, high = RATES_HZ
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not low <= rate <= high or rate != int(rate):
        raise LiveTalkError(f"The rate is {str(rate)[:40]!r}. Expected a whole number of Hz from {low} to {high}.")
    if not isinstance(pcm16_base64, str):
        raise LiveTalkError("The speech is no text. Expected base64 of little-endian mono PCM16.")
    if len(pcm16_base64) > PACKET_LIMIT_S * rate * 2 * 4 / 3 + 4:
        raise LiveTalkError(f"This packet is longer than {PACKET_LIMIT_S:g} s. Send speech in packets of 0.1 to 1 s.")
    try:
        data = base64.b64decode(pcm16_base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LiveTalkError("The speech is not valid base64. Expected base64 of little-endian mono PCM16.") from error
    if len(data) % 2:
        raise LiveTalkError("The speech has an odd number of bytes. Expected 16-bit samples, two bytes each.")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
