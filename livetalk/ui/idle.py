"""A face that stays alive without a GPU: its last pictures, backwards and forwards again.

Neighbours in the loop are neighbours in the film it was cut from, so nothing jumps, and it can be left where it was
entered: at the newest picture, behind which the film goes on. This module knows nothing of time, sound or pages.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from livetalk.types import Pictures

LOOP_PICTURES = 16
BLEND_PICTURES = 6
HOMEWARD = 2
"""Pictures per step on the way back to the newest one when the film wants to go on."""


class IdleLoop:
    """The loop of one face."""

    def __init__(self) -> None:
        self._ring: deque[tuple[int, np.ndarray]] = deque(maxlen=LOOP_PICTURES)
        self._safe: tuple[np.ndarray, ...] = ()
        self._film: list[np.ndarray] = []
        self._place, self._step = 0, -1
        self._blended_from: np.ndarray | None = None
        self._blended = 0

    def take(self, piece: Pictures) -> None:
        """Pictures of the film as they are shown; those that they replace are forgotten."""
        while self._ring and self._ring[-1][0] >= piece.first_picture:
            self._ring.pop()
        self._ring.extend(enumerate(piece.pictures, piece.first_picture))

    def keep(self) -> None:
        """The film may be taken up again behind its newest picture."""
        self._safe = tuple(picture for _, picture in self._ring)

    def begin(self, lost: bool) -> None:
        """The film has stopped.

        Args:
            lost: it goes on from where it was when ``keep`` was called last; the face gets there softly.
        """
        newest = self._ring[-1][1] if self._ring else None
        if lost and self._safe:
            self._ring.clear()
            self._ring.extend(enumerate(self._safe))
            self._blended_from, self._blended = newest, BLEND_PICTURES
        self._film = [picture for _, picture in self._ring]
        self._place, self._step = len(self._film) - 1, -1

    @property
    def is_empty(self) -> bool:
        """Whether there is no picture yet."""
        return not self._film

    @property
    def is_home(self) -> bool:
        """Whether the film can go on without a jump: the newest picture was shown last."""
        return self.is_empty or (self._place == len(self._film) - 1 and self._blended == 0)

    def pictures(self, count: int, homeward: bool) -> np.ndarray:
        """The next ones, uint8 ``[n, H, W, 3]``.

        Args:
            count: how many at most.
            homeward: hurry to the newest picture and stop there.
        """
        shown: list[np.ndarray] = []
        while len(shown) < count and not (homeward and shown and self.is_home):
            self._move(homeward)
            shown.append(self._picture())
        return np.stack(shown)

    def _move(self, homeward: bool) -> None:
        last = len(self._film) - 1
        if homeward:
            self._place, self._step = min(last, self._place + HOMEWARD), -1
            return
        if not 0 <= self._place + self._step <= last:
            self._step = -self._step
        self._place = min(max(0, self._place + self._step), last)

    def _picture(self) -> np.ndarray:
        picture = self._film[self._place]
        if not self._blended or self._blended_from is None:
            return picture
        share = self._blended / (BLEND_PICTURES + 1)
        self._blended -= 1
        mixed = share * self._blended_from.astype(np.float32) + (1 - share) * picture
        return mixed.round().astype(np.uint8)
