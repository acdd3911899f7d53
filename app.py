"""The page and the API: ``python app.py`` serves LiveTalk.

Environment: ``LIVETALK_PRESET`` (mini), ``LIVETALK_DEVICE`` (auto), ``LIVETALK_TALKER`` (auto), ``LIVETALK_PLACES`` (as
many as the machine carries), ``LIVETALK_SESSION_LIMIT_S``, and Gradio's own ``GRADIO_SERVER_NAME`` and
``GRADIO_SERVER_PORT``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys

from livetalk.resources import THREADS_VARIABLE, page_threads

if THREADS_VARIABLE not in os.environ:  # read once, when torch is imported
    os.environ[THREADS_VARIABLE] = str(page_threads())

if importlib.util.find_spec("spaces"):
    import spaces  # noqa: F401  # on ZeroGPU it must come before torch; elsewhere it does nothing

from livetalk import LiveTalkError, load
from livetalk.ui.page import build, launch_options

MALLOC_ARENA_MAX = -8
"""Of glibc's ``mallopt``."""


def _share_memory() -> None:
    """Two pools of memory for all threads: whichever worker is free makes pictures, and each would keep its own."""
    with contextlib.suppress(OSError, AttributeError):  # other systems have no such pools
        ctypes.CDLL("libc.so.6").mallopt(MALLOC_ARENA_MAX, 2)


def main() -> int:
    """Loads the model (which warms it up) and serves until stopped.

    Returns:
        Exit status: 2 after a problem that a person can act on, told in one sentence.
    """
    _share_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that temporary files are cleared away
    try:
        avatar = load(os.environ.get("LIVETALK_PRESET", "mini"), device=os.environ.get("LIVETALK_DEVICE", "auto"))
        build(avatar).launch(**launch_options())
    except LiveTalkError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
