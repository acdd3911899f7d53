"""The hosted talker: speech recognition, a language model and a voice that run elsewhere, one behind the other.

The visitor's sound goes out as WAV and comes back as words; the reply is streamed, split into clauses and spoken clause
by clause, with two requests in flight and their sounds played in order. Where no hosted voice can be had, ``speak``
takes over. Nothing remains on the servers' side: every turn sends the history along, so that a turn can be begun on a
guess and dropped. This module does not know HTTP; see ``hosted_services``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

import numpy as np

from livetalk.hub import machine_token
from livetalk.media.sound import load_speech
from livetalk.stream.talkers.background import Answer, Background
from livetalk.stream.talkers.clauses import ClauseSplitter
from livetalk.stream.talkers.hosted_services import (
    MIND,
    NO_KEY,
    HostedConfig,
    HubServices,
    ServerServices,
    check_reachable,
)
from livetalk.stream.talkers.pieces import PieceCutter
from livetalk.stream.talkers.protocol import (
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    TalkerEvent,
    VisitorTurn,
)
from livetalk.stream.talkers.settings import from_environment
from livetalk.types import PLAYBACK_RATE, TextDelta

logger = logging.getLogger(__name__)

Speak = Callable[[str], Iterable[SpeechPiece]]

VARIABLES = "LIVETALK_HOSTED_"
REMEMBERED_MESSAGES = 40
REQUESTS_IN_FLIGHT = 2
OWN_INSTRUCTIONS = (
    "You are a friendly person in a live video conversation. What you write is spoken aloud: answer in one to three"
    " short sentences of plain spoken language, in the language you are spoken to, without lists, markdown, emoji or"
    " links. If you did not understand something, ask."
)


def missing(token: str | None = None, config: HostedConfig | None = None) -> str | None:
    """Why the hosted talker cannot work here, in a sentence; None = it can, as far as one knows without asking.

    Args:
        token: the visitor's; None = the machine's own.
        config: None = from the environment.
    """
    config = config or from_environment(HostedConfig, VARIABLES)
    if config.base_url or token or machine_token():
        return None
    return "It needs a Hugging Face token. Sign in, or set HF_TOKEN to a token that may call Inference Providers."


class HostedTalker:
    """Ears, mind and voice elsewhere; see the module's docstring.

    Args:
        token: who pays at the Hub: the visitor's OAuth token; None = ``HF_TOKEN`` or the stored login of this machine.
        config: models, place and patience; None = from the environment (``LIVETALK_HOSTED_CHAT_MODEL`` ...).
        speak: voice of last resort, clause to pieces; used when the hosted voice cannot speak. None = the reply fails.
    """

    name = "hosted"

    def __init__(
        self, token: str | None = None, config: HostedConfig | None = None, speak: Speak | None = None
    ) -> None:
        self.config = config or from_environment(HostedConfig, VARIABLES)
        self.title = f"{self.config.chat_model} at {self.config.place}"
        self.speculative = self.config.speculative
        self._token, self._speak = token, speak
        self._persona = Persona()
        self._voice_works = bool(self.config.voice_model)
        self._background: Background | None = None
        self._answer: Answer | None = None

    def start(self, persona: Persona) -> None:
        """Find out whether the servers can be reached with this token.

        Raises:
            TalkerError: there is no token, it is refused, or nobody answers.
        """
        reason = missing(self._token, self.config)
        if reason is not None:
            raise TalkerError(f"The hosted talker cannot work here. {reason}")
        if not self._voice_works and self._speak is None:
            raise TalkerError("The hosted talker has no voice. Set LIVETALK_HOSTED_VOICE_MODEL to a model that speaks.")
        self._persona = persona
        if self._background is not None:
            return
        self._token = self._token or machine_token()
        background = Background("livetalk-hosted")
        try:
            # a provider's own key says nothing at the Hub's router
            if self.config.base_url or (self._token or "").startswith("hf_"):
                key = (self.config.api_key or NO_KEY) if self.config.base_url else self._token
                background.spawn(check_reachable(self.config, key)).result()
        except TalkerError:
            background.close()
            raise
        self._background = background

    def hear(self, samples: np.ndarray) -> None:
        """Nothing: the words are recognised when the turn is over."""

    def forget(self) -> None:
        """Nothing was kept."""

    def turn(self, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Answer; see ``Talker.turn``. The work begins at once, not with the first ``next``.

        Raises:
            TalkerError: from the iterator: one of the services failed.
        """
        if self._background is None:
            raise TalkerError("The hosted talker has not been started.")
        remembered = list(history)[-REMEMBERED_MESSAGES:]
        self._answer = answer = Answer()
        self._background.begin(answer, self._in_time(answer, turn, remembered))
        return iter(answer)

    def cancel(self, heard_s: float | None = None) -> None:
        """End the running turn; what was heard of it comes back in the next turn's history."""
        if self._answer is not None:
            logger.debug("cancelled; heard: %s s", heard_s)
            self._answer.cancel()

    def close(self) -> None:
        """Cut off whatever is running."""
        self.cancel()
        if self._background is not None:
            self._background.close()

    async def _in_time(self, answer: Answer, turn: VisitorTurn, history: Sequence[Message]) -> None:
        """One turn with a limit on the whole of it."""
        try:
            await asyncio.wait_for(self._reply(answer, turn, history), self.config.reply_s)
        except asyncio.TimeoutError as error:
            limit = f"{self.config.reply_s:g} s"
            raise TalkerError(
                f"The reply from {self.config.place} took longer than {limit} and was cut off. Ask again.",
                lasting=False,
            ) from error

    async def _reply(self, answer: Answer, turn: VisitorTurn, history: Sequence[Message]) -> None:
        ours = ServerServices(self.config) if self.config.base_url else HubServices(self.config, self._token)
        async with ours as services:
            words = await _words_of(turn, services)
            answer.put(Heard(words))
            if words:
                await _Recital(self, services, answer).give(self._messages(words, history))

    def _messages(self, words: str, history: Sequence[Message]) -> list[dict[str, str]]:
        roles = {"visitor": "user", "avatar": "assistant"}
        return [
            {"role": "system", "content": self._persona.instructions or OWN_INSTRUCTIONS},
            *({"role": roles[message.role], "content": message.text} for message in history if message.text),
            {"role": "user", "content": words},
        ]

    async def say(self, clause: str, services: HubServices) -> AsyncIterator[SpeechPiece]:
        """Pieces of one clause's speech, from the hosted voice or, failing that, from ``speak``.

        Raises:
            TalkerError: no voice can say it.
        """
        begun = False
        if self._voice_works:
            cutter: PieceCutter | None = None
            try:
                async for samples in services.speak(clause.strip(), self._persona.voice or self.config.voice):
                    whole_s = None if services.streams else len(samples) / PLAYBACK_RATE
                    cutter = cutter or PieceCutter(PLAYBACK_RATE, clause, whole_s)
                    for piece in cutter.push(samples):
                        begun = True
                        yield piece
                for piece in cutter.finish() if cutter else ():
                    yield piece
                return
            except TalkerError as error:
                if begun or self._speak is None:
                    raise
                logger.warning("the hosted voice cannot speak, another one takes over: %s", error)
                self._voice_works = not error.lasting
        assert self._speak is not None, "start() has seen to a voice"
        for piece in await asyncio.to_thread(_spoken, self._speak, clause):
            yield piece


class _Recital:
    """One reply on its way: text to clauses to sound, in order, with a few clauses in the making at once."""

    def __init__(self, talker: HostedTalker, services: HubServices, answer: Answer) -> None:
        self._talker, self._services, self._answer = talker, services, answer
        self._in_flight = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
        self._clauses: asyncio.Queue[asyncio.Queue[SpeechPiece | BaseException | None] | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def give(self, messages: Sequence[dict[str, str]]) -> None:
        """Write, speak, and hand out what is spoken.

        Raises:
            TalkerError: the mind or the voice failed.
        """
        writing = asyncio.create_task(self._write(messages))
        try:
            await self._play()
            await writing
        finally:
            for task in (writing, *self._tasks):
                task.cancel()
            await asyncio.gather(writing, *self._tasks, return_exceptions=True)

    async def _write(self, messages: Sequence[dict[str, str]]) -> None:
        """Text to clauses; each one's sound is asked for as soon as there is room."""
        splitter, written = ClauseSplitter(), False
        try:
            async for text in self._services.chat(messages):
                for clause in splitter.push(text):
                    written = True
                    self._begin(clause)
            for clause in splitter.finish():
                written = True
                self._begin(clause)
            if not written:
                place = self._talker.config.place
                raise TalkerError(f"{MIND} at {place} sent no words. Say it again, or choose another.", lasting=False)
        finally:
            self._clauses.put_nowait(None)

    def _begin(self, clause: str) -> None:
        text = clause + " "
        self._answer.put(TextDelta(text))
        sound: asyncio.Queue[SpeechPiece | BaseException | None] = asyncio.Queue()
        self._tasks.append(asyncio.create_task(self._fetch(text, sound)))
        self._clauses.put_nowait(sound)

    async def _fetch(self, text: str, sound: asyncio.Queue[SpeechPiece | BaseException | None]) -> None:
        try:
            async with self._in_flight:
                async for piece in self._talker.say(text, self._services):
                    sound.put_nowait(piece)
            sound.put_nowait(None)
        except Exception as error:  # raised where the clause would have been played
            sound.put_nowait(error)

    async def _play(self) -> None:
        while (sound := await self._clauses.get()) is not None:
            while (piece := await sound.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                self._answer.put(piece)


async def _words_of(turn: VisitorTurn, services: HubServices) -> str:
    """What the visitor said or typed; "" = nothing."""
    if turn.text is not None:
        return turn.text.strip()
    return await services.transcribe(turn.samples) if len(turn.samples) else ""


def _spoken(speak: Speak, clause: str) -> list[SpeechPiece]:
    """What ``speak`` makes of a clause, at the rate of the hosted voice."""
    pieces = list(speak(clause))
    if not pieces:
        return []
    rate, sound = pieces[0].sample_rate, np.concatenate([piece.samples for piece in pieces])
    if rate != PLAYBACK_RATE:
        sound = load_speech((sound, rate), PLAYBACK_RATE)
    ends = np.cumsum([len(piece.samples) for piece in pieces]) * PLAYBACK_RATE // rate
    parts = np.split(sound, ends[:-1])
    texts = [piece.text for piece in pieces]
    texts[-1] += "" if "".join(texts).endswith(" ") else " "
    return [SpeechPiece(part, PLAYBACK_RATE, text) for part, text in zip(parts, texts, strict=True)]
