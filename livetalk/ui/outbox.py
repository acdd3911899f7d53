"""A place for files on their way to a visitor, which empties itself. This module does not know what is in them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from pathlib import Path

KEPT_S = 600.0


class Outbox:
    """A folder for finished files; what is older than ten minutes is deleted, whether anybody asks or not.

    Args:
        kept_s: seconds after it was last written until a file is deleted.
    """

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="livetalk-")
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def path(self, name: str) -> Path:
        """A fresh path ending in ``name``; its folder exists."""
        with self._lock:
            path = Path(tempfile.mkdtemp(dir=self._folder.name)) / name
            self._wind()
        return path

    def files(self) -> list[Path]:
        """What is there now."""
        return [path for path in Path(self._folder.name).glob("*/*") if path.is_file()]

    def _wind(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._kept_s / 4, self._sweep)
            self._timer.daemon = True
            self._timer.start()

    def _sweep(self) -> None:
        """Delete what is old; a folder without files may be waiting for one that is still made."""
        with self._lock:
            self._timer = None
            for old in self.files():
                with contextlib.suppress(OSError):  # somebody else may have deleted it
                    if time.time() - old.stat().st_mtime > self._kept_s:
                        old.unlink()
                        old.parent.rmdir()
            if self.files():
                self._wind()
