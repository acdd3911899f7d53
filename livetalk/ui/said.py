"""Which words of a reply end on which picture: what captions follow. This module does not know the page."""

from __future__ import annotations

from typing import Any

from livetalk.stream.talk import TalkSession
from livetalk.ui.visit import LiveSession


class SaidNews:
    """Words and pictures of the reply that is being said, told once.

    Args:
        session: whose conversation it is.
    """

    def __init__(self, session: LiveSession) -> None:
        self._session = session
        self._reply, self._told = -1, 0

    def news(self) -> dict[str, Any] | None:
        """``{"reply", "from", "marks": [[characters, picture], ...]}`` since the last call; None = nothing new."""
        reply = self._session.conversation.reply if isinstance(self._session, TalkSession) else None
        if reply is None or not reply.is_sure:
            return None
        said = list(reply.said)
        if reply.number != self._reply or len(said) < self._told:
            self._reply, self._told = reply.number, 0
        if len(said) == self._told:
            return None
        begun, self._told = self._told, len(said)
        stops = [one.stop_picture for one in said[begun:]]
        marks = [[len(reply.heard_before(stop)), stop] for stop in stops]
        return {"reply": reply.number, "from": begun, "marks": marks}
