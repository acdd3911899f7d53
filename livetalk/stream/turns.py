"""One number that tells old work from new: the cancel scope of a conversation.

Whoever makes something for a reply (speech, latents, pictures, packets) writes the generation it works for on it;
whoever sends something asks whether that generation is still the current one. Interrupting is then one call, reaches
every queue at once, and needs no thread to be stopped.

This module knows nothing of sound, networks or pages.
"""

from __future__ import annotations

import threading


class CancelScope:
    """A generation number that only grows. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = 0

    @property
    def generation(self) -> int:
        """The current generation, counted from 0."""
        with self._lock:
            return self._generation

    def cancel(self) -> int:
        """Make everything of the current generation stale; returns the new generation."""
        with self._lock:
            self._generation += 1
            return self._generation

    def is_current(self, generation: int) -> bool:
        """Whether work of ``generation`` may still be sent."""
        return generation == self.generation
