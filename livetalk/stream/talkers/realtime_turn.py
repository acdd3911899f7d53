"""One turn with a Realtime server: ask, follow the reply, and ask once more if the connection breaks.

Runs on the talker's loop. This module knows neither sockets nor threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from livetalk.stream.talkers import realtime_events as say
from livetalk.stream.talkers.background import Answer
from livetalk.stream.talkers.pieces import PcmReader, PieceCutter
from livetalk.stream.talkers.protocol import Heard, Message, TalkerError, VisitorTurn
from livetalk.stream.talkers.realtime_events import Event
from livetalk.stream.talkers.realtime_link import Exchange, Link, LinkLostError
from livetalk.stream.talkers.realtime_server import Server
from livetalk.types import MODEL_RATE, TextDelta

UNKNOWN_WORDS = "…"
"""What ``Heard`` says while the visitor's words are not known."""


class RealtimeTurn:
    """One turn on its way.

    Args:
        server: who is asked.
        turn: what the visitor said.
        history: what a server that does not know the conversation is told first.
        streamed: the visitor's sound that ``hear`` has already passed on (float32 at ``MODEL_RATE``).
        answer: where the events go.
    """

    def __init__(
        self, server: Server, turn: VisitorTurn, history: Sequence[Message], streamed: np.ndarray, answer: Answer
    ) -> None:
        self.exchange = Exchange()
        self._server, self._config = server, server.config
        self._turn, self._history, self._streamed, self._answer = turn, history, streamed, answer
        self._posted: set[str] = set()
        self._words: str | None = None  # of the visitor, as handed out
        self._words_final = turn.text is not None
        self._partial_words = ""
        self._told: dict[str, str] = {}  # the reply's text by item
        self._held_text: list[str] = []  # text that came before the first sound
        self._sounded = False
        self._start_listening()

    async def run(self) -> None:
        """The whole turn.

        Raises:
            TalkerError: the server failed, or was lost twice.
        """
        if not self.exchange.live:  # cancelled before it began
            return
        if self._turn.text is None and not len(self._turn.samples):
            self._hear("")
            return
        place = self._config.place
        try:
            try:
                await self._attempt()
            except LinkLostError:
                self.exchange.begin()
                await self._attempt()
        except LinkLostError as error:
            await self._server.drop()
            raise TalkerError(
                f"The connection to {place} broke twice in one turn. Ask again.", lasting=False
            ) from error
        except asyncio.TimeoutError as error:
            await self._server.drop()
            limit = f"{self._config.stall_s:g} s"
            raise TalkerError(f"{place} has sent nothing for {limit}. Ask again.", lasting=False) from error
        except TalkerError:
            await self._server.drop()
            raise
        finally:
            self.exchange.live = False

    async def _attempt(self) -> None:
        """Ask for a reply, or for the rest of it, and hand it out.

        Raises:
            LinkLostError: the connection broke.
            TalkerError: the server failed.
            asyncio.TimeoutError: the server went silent.
        """
        link = await self._server.link()
        link.current = self.exchange
        if link.fresh:
            self._post(link, *say.lines(self._history, self._config.nested))
            link.fresh = False
        if self._turn.text is not None:
            link.clear()
            self._post(link, say.line("user", self._turn.text, self._config.nested))
            self._hear(self._turn.text)
        elif self._config.server_vad:
            pause = np.zeros(int(self._config.pause_s * MODEL_RATE), np.float32)
            await link.settled(self._config.settle_s)
            link.expect(self.exchange)
            link.append(np.concatenate([self._turn.samples, pause]), last=True)
            link.forget_buffer()
        else:
            self._complete_sound(link)
            self._posted.add(link.commit(self.exchange))
        if self._sounded:
            said = "".join(self._told.values())
            lines = [say.line("assistant", said, self._config.nested)] if said else []
            self._post(link, *lines, say.line("system", say.GO_ON, self._config.nested))
            self._told = {"": said}
        if self._turn.text is not None or not self._config.server_vad:
            await link.settled(self._config.settle_s)
            link.expect(self.exchange)
            self._post(link, {"type": "response.create"})
        await self._follow(link)

    def _post(self, link: Link, *events: Event) -> None:
        self._posted.update(link.post(event) for event in events)

    def _complete_sound(self, link: Link) -> None:
        """See to it that exactly the turn's sound lies in the server's buffer, sending only what is not there yet.

        A turn may end before the last sound that ``hear`` brought: a little more silence does no harm.
        """
        sound, streamed = self._turn.samples, self._streamed
        common = min(len(sound), len(streamed))
        if link.appended != len(streamed) or not np.array_equal(sound[:common], streamed[:common]):
            link.clear()
            common = 0
        link.append(sound[common:], last=True)

    async def _follow(self, link: Link) -> None:
        """Hand out what the server sends until the reply is over and the visitor's words are known."""
        self._start_listening()
        over = False
        while not over:
            over = self._take(await self._next(link, self._config.stall_s))
        for piece in self._cutter.finish():
            self._answer.put(piece)
        self._release_text()
        if not self._told and not self._sounded and self._words != "":
            raise TalkerError(f"{self._config.place} sent no reply. Say it again.", lasting=False)
        while not self._words_final and (link.transcribes or self._config.transcriber):
            try:
                self._take(await self._next(link, self._config.settle_s))
            except (asyncio.TimeoutError, LinkLostError):  # the reply is complete without them
                return

    async def _next(self, link: Link, limit_s: float) -> Event:
        event = await asyncio.wait_for(self.exchange.inbox.get(), limit_s)
        if event is not None:
            return event
        if link.refusal is not None:
            raise link.refusal
        raise LinkLostError

    def _start_listening(self) -> None:
        self._pcm, self._cutter = PcmReader(), PieceCutter(self._config.output_rate)

    def _take(self, event: Event) -> bool:
        """Hand out what one event brings; whether the reply is over.

        Raises:
            TalkerError: the server reports that it failed.
        """
        kind = say.kind_of(event)
        if kind == "response.output_audio.delta":
            self._take_sound(event)
        elif kind in ("response.output_audio_transcript.delta", "response.output_text.delta"):
            self._take_text(event, str(event.get("delta") or ""))
        elif kind in ("response.output_audio_transcript.done", "response.output_text.done"):
            if event.get("item_id") not in self._told:  # some servers send the text in one piece
                self._take_text(event, str(event.get("transcript") or event.get("text") or ""))
        elif kind.startswith(say.TRANSCRIPTION):
            return self._take_words(event, kind.removeprefix(say.TRANSCRIPTION))
        elif kind == "response.done":
            if (event.get("response") or {}).get("status") == "failed":
                raise say.complaint(event, self._config.place)
            return True
        elif kind == "error" and self._concerns_us(event):
            raise say.complaint(event, self._config.place)
        return False

    def _concerns_us(self, event: Event) -> bool:
        """Whether an error is about this turn, not about something that was withdrawn before."""
        cause = (event.get("error") or {}).get("event_id")
        if cause:
            return cause in self._posted
        return bool(self._posted) and not say.is_harmless(event)

    def _take_sound(self, event: Event) -> None:
        samples = self._pcm.read(say.sound_of(event))
        item = str(event.get("item_id"))
        self.exchange.items[item] = self.exchange.items.get(item, 0) + len(samples)
        self._sounded = True
        self._hear_something()
        self._release_text()
        for piece in self._cutter.push(samples):
            self._answer.put(piece)

    def _take_text(self, event: Event, text: str) -> None:
        """Text is held back until there is sound: a reply that breaks off before can be asked for once more."""
        item = str(event.get("item_id"))
        said = "".join(self._told.values())
        if item not in self._told and said and not said[-1].isspace() and not text[:1].isspace():
            text = " " + text
        self._told[item] = self._told.get(item, "") + text
        self._held_text.append(text)
        if self._sounded:
            self._release_text()

    def _release_text(self) -> None:
        if self._held_text:
            self._hear_something()
        for text in self._held_text:
            self._answer.put(TextDelta(text))
        self._held_text = []

    def _take_words(self, event: Event, state: str) -> bool:
        """What the server understood; whether the turn is over because there were no words."""
        if state == "delta":
            self._partial_words += str(event.get("delta") or "")
            return False
        self._words_final = state in ("completed", "failed")
        if state != "completed":
            return False
        words = str(event.get("transcript") or "").strip()
        if words:
            self._hear(words)
        elif not self._sounded:
            self._hear("")
            self._held_text, self._told = [], {}
            self._server.withdraw(self.exchange, None)
            return True
        return False

    def _hear_something(self) -> None:
        if self._words is None:
            self._hear(self._partial_words.strip() or UNKNOWN_WORDS)

    def _hear(self, words: str) -> None:
        if words != self._words:
            self._words = words
            self._answer.put(Heard(words))
