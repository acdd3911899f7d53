"""The page and the API: ``python app.py`` serves LiveTalk.

Environment: ``LIVETALK_PRESET`` (mini), ``LIVETALK_DEVICE`` (auto), ``LIVETALK_TALKER`` (auto), ``LIVETALK_PLACES`` (as
many as the machine carries), ``LIVETALK_SESSION_LIMIT_S``, on ZeroGPU ``LIVETALK_GPU_CALL_S`` (30), how networks are
run (``livetalk.engine``), and Gradio's own ``GRADIO_SERVER_NAME`` and ``GRADIO_SERVER_PORT``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from livetalk.resources import THREADS_VARIABLE, page_threads

if THREADS_VARIABLE not in os.environ:  # read once, when torch is imported
    os.environ[THREADS_VARIABLE] = str(page_threads())

import spaces  # noqa: F401  # on ZeroGPU it must come before torch; elsewhere it does nothing

from livetalk import Avatar, LiveTalkError, load
from livetalk.hub import load_models
from livetalk.ui.lending import is_lent
from livetalk.ui.page import build, launch_options

MALLOC_ARENA_MAX = -8
"""Of glibc's ``mallopt``."""

TRIM_EVERY_S = 30.0


def _keep_memory_small() -> None:
    """Two pools of memory for all threads, and what is free in them goes back to the system from time to time.

    Whichever worker is free makes pictures, and each would keep a pool of its own; what sessions leave behind in a pool
    is in small holes between what is used.
    """
    with contextlib.suppress(OSError, AttributeError):  # other systems have no such pools
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MALLOC_ARENA_MAX, 2)
        threading.Thread(target=_trim, args=(libc.malloc_trim,), name="livetalk-memory", daemon=True).start()


def _trim(trim: Callable[[int], int]) -> None:
    while True:
        time.sleep(TRIM_EVERY_S)
        trim(0)


def _avatar() -> Avatar:
    """The model, warmed up; where GPUs are lent there is none yet to warm up, and workers inherit the weights."""
    preset, device = os.environ.get("LIVETALK_PRESET", "mini"), os.environ.get("LIVETALK_DEVICE", "auto")
    if is_lent():
        return Avatar(load_models(preset, device))
    avatar = load(preset, device)
    avatar.warm_up_together()
    return avatar


def main() -> int:
    """Loads the model and serves until stopped.

    Returns:
        Exit status: 2 after a problem that a person can act on, told in one sentence.
    """
    _keep_memory_small()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that temporary files are cleared away
    try:
        build(_avatar()).launch(**launch_options())
    except LiveTalkError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
