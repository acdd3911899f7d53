"""Conversations of callers who send files instead of a live stream: each remembers its turns, for a while.

Found by the secret name (sid) that the caller made. A caller without a name is forgotten after one answer. This module
knows neither Gradio nor pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from livetalk.stream.chat import Chat
from livetalk.stream.talkers.registry import Visitor
from livetalk.types import LiveTalkError
from livetalk.ui.checks import check_sid
from livetalk.ui.live import Talk, TalkerChain
from livetalk.ui.shelf import Shelf

KEPT_CHATS = 32
KEPT_S = 600.0


class Chats:
    """The conversations that are remembered, a bounded number of them.

    Args:
        talkers: makes the talkers of one.
        limit: how many; one more forgets the one that was quiet for longest.
        kept_s: seconds after its last answer until one is forgotten.
    """

    def __init__(self, talkers: TalkerChain, limit: int = KEPT_CHATS, kept_s: float = KEPT_S) -> None:
        self._talkers = talkers
        self._shelf: Shelf[tuple[str | None, Chat]] = Shelf(limit, kept_s, lambda kept: kept[1].close())
        self._answering: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, sid: str, talk: Talk) -> Iterator[Chat]:
        """The conversation of that name, a new one if there is none; nobody else uses it meanwhile.

        Another talker begins a new conversation; another voice or character does not.

        Args:
            sid: secret name; "" = forgotten afterwards.
            talk: who answers, and who the avatar is.

        Raises:
            LiveTalkError: sid easy to guess, still busy with a question, or no such talker.
        """
        if sid:
            self._enter(check_sid(sid))
        chat = None
        try:
            chat = self._chat(sid, talk)
            yield chat
        finally:
            if sid and chat is not None:
                self._shelf.put(sid, (talk.talker, chat))
            elif chat is not None:
                chat.close()
            self._answering.discard(sid)

    def __len__(self) -> int:
        return len(self._shelf)

    def _enter(self, sid: str) -> None:
        with self._lock:
            if sid in self._answering:
                raise LiveTalkError("The question before is still being answered. Wait for it, then ask the next one.")
            self._answering.add(sid)

    def _chat(self, sid: str, talk: Talk) -> Chat:
        kept = self._shelf.take(sid) if sid else None
        if kept is not None and kept[0] == talk.talker:
            kept[1].change_persona(talk.persona)
            return kept[1]
        if kept is not None:
            kept[1].close()
        return Chat(self._talkers(talk.talker, Visitor(talk.token)), talk.persona)
