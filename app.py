"""The page and the API: ``python app.py`` serves LiveTalk.

Environment: ``LIVETALK_PRESET`` (mini), ``LIVETALK_DEVICE`` (auto), ``LIVETALK_SESSION_LIMIT_S``, and Gradio's own
``GRADIO_SERVER_NAME`` and ``GRADIO_SERVER_PORT``.
"""

from __future__ import annotations

import importlib.util
import os

if importlib.util.find_spec("spaces"):
    import spaces  # noqa: F401  # on ZeroGPU it must come before torch; elsewhere it does nothing

import gradio as gr

from livetalk import load
from livetalk.ui.page import build, launch_options


def main() -> gr.Blocks:
    """Loads the model, warms it up with one chunk, and serves until stopped."""
    avatar = load(os.environ.get("LIVETALK_PRESET", "mini"), device=os.environ.get("LIVETALK_DEVICE", "auto"))
    avatar.warm_up()
    page = build(avatar)
    page.launch(**launch_options())
    return page


if __name__ == "__main__":
    main()
