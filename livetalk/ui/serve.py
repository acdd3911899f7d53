"""The page with several engines behind it: ``python -m livetalk serve``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from livetalk.ui.page import build, launch_options
from livetalk.ui.replicas import ReplicaAvatar, Replicas


def serve(preset: str | Path, device: str, count: int) -> None:
    """Serves until stopped.

    Args:
        preset: see ``livetalk.stream.avatar.load``.
        device: see ``load``.
        count: how many replicas.

    Raises:
        LiveTalkError: Ray is missing or does not start, or the model cannot be loaded.
    """
    with Replicas(preset, device, count) as replicas:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # Ray has set its own
        build(ReplicaAvatar(replicas), elsewhere=replicas).launch(**launch_options())
