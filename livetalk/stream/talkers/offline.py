"""The offline talker: keyword answers with a small voice, on this machine, without network, account or download.

The visitor's sound is recognised while it is spoken (``ear``), the words lead to a topic and a reply (``replies``), the
reply is spoken clause by clause (``spoken``). It answers what it knows and says so when it does not. It remembers
nothing between turns but its voice, so that a turn can be begun on a guess and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import numpy as np

from livetalk.stream.talkers.ear import Ear, Words
from livetalk.stream.talkers.protocol import Heard, Message, Persona, TalkerError, TalkerEvent, VisitorTurn
from livetalk.stream.talkers.replies import Replies, name_in
from livetalk.stream.talkers.spoken import SpokenVoice, speak_reply
from livetalk.stream.turns import CancelScope

WARM_UP = "Hello."


class OfflineTalker:
    """Ear, topics and voice of one conversation; see the module's docstring.

    Args:
        clock: tells the time and date that visitors may ask for.
    """

    name = "offline"
    title = "Offline (keyword answers, no network)"
    speculative = True

    def __init__(self, clock: Callable[[], datetime] = datetime.now) -> None:
        self._replies = Replies(clock)
        self._ear = Ear(self._replies.sentences)
        self._voice: SpokenVoice | None = None
        self._name = ""
        self._scope = CancelScope()

    def start(self, persona: Persona) -> None:
        """Choose the voice and start the ear, which loads its models while the conversation begins.

        The voice says something at once that nobody hears: the first word of an engine takes longer than any other.

        Args:
            persona: its voice is one of ``livetalk.voice.available_voices()``; of its instructions only a name is
                taken ("You are Ada."), for more a language model would be needed.

        Raises:
            TalkerError: no voice or no recogniser is installed.
        """
        self._voice = SpokenVoice(persona.voice)
        self._name = name_in(persona.instructions)
        self._ear.open()
        self._voice.say(WARM_UP)

    def hear(self, samples: np.ndarray) -> None:
        """Begin to recognise the turn that is going on."""
        self._ear.hear(samples)

    def forget(self) -> None:
        """Drop what was heard."""
        self._ear.forget()

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Answer; see ``Talker.turn``.

        Raises:
            TalkerError: the ear crashed or the voice failed.
        """
        if self._voice is None:
            raise TalkerError("The offline talker was not started. Call start() first.", lasting=False)
        generation = self._scope.generation  # taken now: a cancel before the first event counts
        return self._answer(self._voice, turn, history, lambda: not self._scope.is_current(generation))

    def cancel(self, heard_s: float | None = None) -> None:  # noqa: ARG002 (nothing is remembered of what was heard)
        """End the running turn, whatever it waits for. Any thread."""
        self._scope.cancel()

    def close(self) -> None:
        """End the running turn and the ear's process. Any thread."""
        self._scope.cancel()
        self._ear.close()

    def _answer(
        self, voice: SpokenVoice, turn: VisitorTurn, history: Sequence[Message], stop: Callable[[], bool]
    ) -> Iterator[TalkerEvent]:
        typed = turn.text is not None
        words = Words(turn.text) if turn.text is not None else self._ear.understand(turn.samples, stop)
        if words is None or stop():
            return
        yield Heard(words.general if typed else written(words.general))
        if not words.general.strip():
            return
        answer = self._replies.answer(words.general, history, domain=words.domain, spoken=not typed, name=self._name)
        yield from speak_reply(voice, answer.text, stop)


def written(words: str) -> str:
    """Recognised words as people write them: "what is live talk" becomes "What is LiveTalk"."""
    text = " ".join("I" + word[1:] if word == "i" or word.startswith("i'") else word for word in words.split())
    text = text.replace("live talk", "LiveTalk")
    return text[:1].upper() + text[1:]
