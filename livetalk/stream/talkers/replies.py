"""What the offline talker replies: the topic of the visitor's words, seen in the light of the conversation so far.

Everything that is needed is in the history, as it was heard; nothing is remembered here. So a reply can be made on a
guess and dropped, and an interrupted one can be repeated. Replies of a topic take turns. This module does not know of
sound.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from livetalk.stream.talkers.protocol import Message
from livetalk.stream.talkers.topics import Retrieval, Topic, TopicData, load_topics, plain_words

_NAME = re.compile(
    r"\b(?:[Yy]our name is|[Yy]ou(?: are|'re)(?: called| named)?|[Nn]amed|[Cc]alled)\s+(?P<name>[A-Z][a-z]+)\b"
)
_NO_NAMES = {"An", "The", "Not", "Helpful", "Very", "Always", "Now", "LiveTalk"}
_FOREIGN_SHARE = 0.5
_NUMBER_ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}


@dataclass(frozen=True)
class Answer:
    """A reply.

    Attributes:
        text: what to say.
        topic: name of the topic it belongs to; "" = the words were about none.
    """

    text: str
    topic: str = ""


class Replies:
    """Finds replies.

    Args:
        clock: tells the time and date that visitors ask for.
        data: topics; None = those of the package.
    """

    def __init__(self, clock: Callable[[], datetime], data: TopicData | None = None) -> None:
        self._data = data or load_topics()
        self._retrieval = Retrieval(self._data)
        self._clock = clock
        self._topics = {topic.name: topic for topic in self._data.topics}

    @property
    def sentences(self) -> list[str]:
        """What visitors are likely to say, in plain lower-case words."""
        return self._retrieval.sentences

    def answer(
        self, text: str, history: Sequence[Message] = (), *, domain: str = "", spoken: bool = False, name: str = ""
    ) -> Answer:
        """The reply to a turn.

        Args:
            text: the visitor's words.
            history: the conversation before them.
            domain: see ``Retrieval.find``.
            spoken: the words were heard, so they may be wrong.
            name: the avatar's; "" = it has none.
        """
        match = self._retrieval.find(text, domain) if plain_words(text) else None
        if match is None or self.is_foreign(text):
            lines = self._data.english_only if self.is_foreign(text) else self._data.refusals
            return Answer(_next(self._data.unclear if spoken and lines is self._data.refusals else lines, history))
        topic = match.topic
        if topic.follow and (continued := self._continue(topic.follow, history)):
            return continued
        return Answer(self._say(topic, history, name), topic.name)

    def is_foreign(self, text: str) -> bool:
        """Whether a text is in a language other than English, as far as its letters and commonest words tell."""
        letters = [letter for letter in text if letter.isalpha()]
        if not letters:
            return False
        latin = sum("LATIN" in unicodedata.name(letter, "") for letter in letters)
        if latin < len(letters) / 2:
            return True
        words = re.findall(r"[^\W\d_]+", text.lower())
        known = sum(word in self._retrieval.vocabulary for word in words)
        foreign = max(sum(word in common for word in words) for common in self._data.foreign_words.values())
        return foreign > known and foreign >= _FOREIGN_SHARE * len(words)

    def _say(self, topic: Topic, history: Sequence[Message], name: str) -> str:
        now = self._clock()
        spoken_before = [message.text.strip() for message in history if message.role == "avatar"]
        asked_before = [message.text.strip(" .?!") for message in history if message.role == "visitor"]
        fields = {
            "name": name,
            "time": now.strftime("%I:%M %p").lstrip("0"),
            "date": f"{now:%A}, {now:%B} {now.day}{_NUMBER_ENDINGS.get(now.day, 'th')}, {now.year}",
            "last_reply": next((text for text in reversed(spoken_before) if text), ""),
            "last_words": next((text for text in reversed(asked_before) if text), ""),
        }
        lines = topic.without if topic.needs and not fields[topic.needs] else topic.replies
        return _next(lines, history).format(**fields)

    def _continue(self, follow: str, history: Sequence[Message]) -> Answer | None:
        """What can be added to the last topic; None = nothing."""
        last = self._last_topic(history)
        if last is None:
            return None
        if last.series and follow == "more":
            return Answer(_next(last.replies, history), last.name)
        lines = last.why if follow == "why" else last.more
        said = sum(_is_line(line, message.text) for message in history for line in lines)
        return Answer(lines[said], last.name) if said < len(lines) else None

    def _last_topic(self, history: Sequence[Message]) -> Topic | None:
        """The topic of the avatar's last line that belonged to one."""
        for message in reversed(history):
            if message.role == "avatar" and (topic := self._topic_of(message.text)):
                return topic
        return None

    def _topic_of(self, text: str) -> Topic | None:
        for topic in self._data.topics:
            lines = (*topic.replies, *topic.without, *topic.more, *topic.why)
            if not topic.follow and any(_is_line(line, text) for line in lines):
                return topic
        return None


def _next(lines: Sequence[str], history: Sequence[Message]) -> str:
    """Lines take turns; which one is next follows from those in the history."""
    said = [message.text for message in history if message.role == "avatar"]
    return lines[sum(any(_is_line(line, text) for line in lines) for text in said) % len(lines)]


def _is_line(line: str, text: str) -> bool:
    """Whether a text, perhaps cut short, is a line whose fields were filled in."""
    fixed, text = line.partition("{")[0], text.strip()
    length = min(len(fixed), len(text))
    return length > 2 and fixed[:length] == text[:length] and (len(text) <= len(line) or "{" in line)


def name_in(instructions: str) -> str:
    """The avatar's name, if the instructions give it one ("You are Ada."); else ""."""
    for match in _NAME.finditer(instructions):
        if match["name"] not in _NO_NAMES:
            return match["name"]
    return ""
