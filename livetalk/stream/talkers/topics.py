"""The topics that the offline talker knows, and which of them a visitor's words are about.

A topic is found in two ways, and the better one counts: by its *questions*, whose words are compared with the
visitor's, rare words weighing more than common ones; and by its *cues*, short lists of words that give a topic away
when they come in this order, whatever stands between them. Words that belong to no topic speak against all of
them, so that a question about something else is not answered. This module does not know what is replied, nor whether
words were spoken or typed; the topics themselves are in ``topics.json``.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOPICS_FILE = Path(__file__).with_name("topics.json")

THRESHOLD = 0.55
"""Least score of a topic that is answered; found on questions that are not in the tests' set."""

CLOSE = 0.1
"""Two topics whose scores differ by less are told apart by the domain decoder, if it heard one of them."""

WHOLE_LIKENESS = 0.65
SHARED_WORDS = 0.66
"""What only the domain decoder heard counts if it is like one of its questions as a whole, or if so many of its words
are those of the general one: a decoder that knows nothing else hears "chunk" in "cheap shoes"."""

_QUESTION_FACTOR = 0.85
_CUE_BASE = 0.3
_SMALL_WEIGHT = 0.35
_BIGRAM_WEIGHT = 0.3

_SHORT_FORMS = (
    ("won't", "will not"),
    ("can't", "can not"),
    ("cannot", "can not"),
    ("n't", " not"),
    ("'re", " are"),
    ("'m", " am"),
    ("'ll", " will"),
    ("'ve", " have"),
    ("'d", " would"),
    ("let's", "let us"),
    ("it's", "it is"),
    ("livetalk", "live talk"),
    ("gpu", "g p u"),
    ("api", "a p i"),
    ("mp4", "m p four"),
)
_IS_SHORT_FORM = re.compile(r"\b(what|that|who|how|where|there|here|when|why)'s\b")


@dataclass(frozen=True)
class Topic:
    """Something to talk about.

    Attributes:
        name: short name.
        questions: what visitors say, as they would say it.
        cues: words in order, alternatives behind bars.
        replies: answers, used in turn; may hold the fields ``{name}``, ``{time}``, ``{date}``, ``{last_reply}`` and
            ``{last_words}``.
        needs: field without which ``without`` is said in place of ``replies``; "" = none.
        without: see ``needs``.
        more: what can be added when asked for more.
        why: what can be added when asked why.
        follow: "more" or "why": continues the last topic instead of being one.
        series: being asked for more means the next reply, such as another joke.
    """

    name: str
    questions: tuple[str, ...]
    cues: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    needs: str = ""
    without: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    follow: str = ""
    series: bool = False


@dataclass(frozen=True)
class Match:
    """A topic and how well it fits, 0..1."""

    topic: Topic
    score: float


@dataclass(frozen=True)
class TopicData:
    """What ``topics.json`` holds; see there."""

    topics: tuple[Topic, ...]
    refusals: tuple[str, ...]
    unclear: tuple[str, ...]
    english_only: tuple[str, ...]
    same_words: dict[str, str] = field(default_factory=dict)
    small_words: frozenset[str] = frozenset()
    openers: frozenset[str] = frozenset()
    foreign_words: dict[str, frozenset[str]] = field(default_factory=dict)


@functools.lru_cache(maxsize=1)
def load_topics() -> TopicData:
    """The topics that come with the package."""
    data: dict[str, Any] = json.loads(TOPICS_FILE.read_text(encoding="utf-8"))
    same = {word: group.split()[0] for group in data["same_words"] for word in group.split()}
    topics = tuple(_topic(entry) for entry in data["topics"])
    return TopicData(
        topics,
        tuple(data["refusals"]),
        tuple(data["unclear"]),
        tuple(data["english_only"]),
        same,
        frozenset(data["small_words"].split()),
        frozenset(data["openers"].split()),
        {language: frozenset(words.split()) for language, words in data["foreign_words"].items()},
    )


def _topic(entry: dict[str, Any]) -> Topic:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Topic(**fields)


def plain_words(text: str) -> list[str]:
    """Lower-case words without marks; short forms in full, names of LiveTalk as they are spoken."""
    text = text.lower().replace("’", "'")
    text = _IS_SHORT_FORM.sub(r"\1 is", text)
    for short, full in _SHORT_FORMS:
        text = re.sub(rf"\b{short}\b" if short[0].isalpha() and short != "n't" else rf"{short}\b", full, text)
    letters = unicodedata.normalize("NFKD", text.replace("'s", ""))
    return re.findall(r"[a-z0-9]+", letters.encode("ascii", "ignore").decode())


class Retrieval:
    """Finds topics; built once, never changed."""

    def __init__(self, data: TopicData) -> None:
        self._same, self._openers = data.same_words, data.openers
        self._small = data.small_words | {self._stem(word) for word in data.small_words}
        self._topics = data.topics
        self._questions = [[_Bag(self.stems(text)) for text in topic.questions] for topic in data.topics]
        self._cues = [[self._cue(cue) for cue in topic.cues] for topic in data.topics]
        self._vocabulary = [
            {word for bag in bags for word in bag.words}.union(*(place for cue in cues for place in cue))
            for bags, cues in zip(self._questions, self._cues, strict=True)
        ]
        self._spread = Counter(word for vocabulary in self._vocabulary for word in vocabulary)

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        """Plain words of all questions, and the small words."""
        return frozenset(word for sentence in self.sentences for word in sentence.split()) | self._small

    @property
    def sentences(self) -> list[str]:
        """All questions in plain words, for a decoder that shall know them."""
        return [" ".join(plain_words(question)) for topic in self._topics for question in topic.questions]

    def rank(self, text: str) -> list[Match]:
        """Topics for a text, the best first."""
        words = self.stems(text)
        ranked = self._rank(words)
        opened = 0
        while opened < len(words) and words[opened] in self._openers:
            opened += 1
        if 0 < opened < len(words) and ranked[0].score < 1:  # "Hello, what is ..." is not about hello
            inner = self._rank(words[opened:])
            if inner[0].score >= THRESHOLD:
                return inner
        return ranked

    def find(self, text: str, domain: str = "") -> Match | None:
        """The topic of a text, if there is one.

        Args:
            text: what was said, as far as a general ear heard it.
            domain: what a decoder heard that knows only the topics' questions, if that is to be believed.
        """
        ranked = self.rank(text)
        hinted = self.rank(domain)[0] if domain else None
        if ranked[0].score >= THRESHOLD:
            near = [match for match in ranked if match.score >= ranked[0].score - CLOSE]
            return next((match for match in near if hinted and match.topic is hinted.topic), ranked[0])
        if hinted is None or hinted.score < THRESHOLD:
            return None
        shared = difflib.SequenceMatcher(None, text.split(), domain.split(), autojunk=False).ratio()
        return (
            hinted if shared >= SHARED_WORDS or self._whole_likeness(hinted.topic, domain) >= WHOLE_LIKENESS else None
        )

    def stems(self, text: str) -> list[str]:
        """Words reduced to what is compared."""
        return [self._stem(word) for word in plain_words(text)]

    def _rank(self, words: Sequence[str]) -> list[Match]:
        asked = _Bag(words)
        scores = [self._score(number, asked) for number in range(len(self._topics))]
        matches = [Match(topic, score) for topic, score in zip(self._topics, scores, strict=True)]
        return sorted(matches, key=lambda match: -match.score)

    def _score(self, number: int, asked: _Bag) -> float:
        if any(asked.words == question.words for question in self._questions[number]):
            return 1.0
        questions = max(self._likeness(asked, question) for question in self._questions[number])
        return max(_QUESTION_FACTOR * questions, self._cue_score(number, asked.words))

    def _whole_likeness(self, topic: Topic, text: str) -> float:
        """How much a text is like the most similar question of a topic."""
        asked = _Bag(self.stems(text))
        return max(self._likeness(asked, question) for question in self._questions[self._topics.index(topic)])

    def _weight(self, word: str) -> float:
        """How much a word tells: the fewer topics have it, the more."""
        weight = math.log(len(self._topics) / max(0.5, self._spread[word]))
        return weight * _SMALL_WEIGHT if word in self._small else weight

    def _likeness(self, one: _Bag, other: _Bag) -> float:
        """Geometric mean of the shares of both texts that the other one has, by weight."""
        if one.counts.keys().isdisjoint(other.counts):
            return 0.0
        return math.sqrt(self._share(one, other) * self._share(other, one))

    def _share(self, of: _Bag, among: _Bag) -> float:
        found = whole = 1e-9
        for word, count in of.counts.items():
            weight = self._weight(word)
            whole += count * weight
            found += min(count, among.counts[word]) * weight
        for pair in of.pairs:
            weight = _BIGRAM_WEIGHT * sum(self._weight(word) for word in pair) / 2
            whole += weight
            found += weight if pair in among.pairs else 0.0
        return found / whole

    def _cue_score(self, number: int, words: Sequence[str]) -> float:
        hits = [hit for cue in self._cues[number] if (hit := _follow(cue, words)) is not None]
        if not hits:
            return 0.0
        whole = sum(map(self._weight, words)) + 1e-9
        own = max(sum(map(self._weight, hit)) for hit in hits) / whole
        covered = sum(self._weight(word) for word in words if word in self._vocabulary[number]) / whole
        return _CUE_BASE + (1 - _CUE_BASE) * (min(1.0, own) + covered) / 2

    def _cue(self, cue: str) -> tuple[frozenset[str], ...]:
        return tuple(frozenset(map(self._stem, place.split("|"))) for place in cue.lower().split())

    def _stem(self, word: str) -> str:
        """Without endings that rarely change the meaning."""
        word = self._same.get(word, word)
        if len(word) > 4 and word.endswith("ies"):
            word = word[:-3] + "y"
        elif len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = word[:-1]
        for ending in ("ing", "ed"):
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                word = word[: -len(ending)]
                if word[-1] == word[-2] and word[-1] not in "ls":
                    word = word[:-1]
                break
        if len(word) > 3 and word.endswith("e"):
            word = word[:-1]
        return self._same.get(word, word)


class _Bag:
    """Words of a text, their counts, and which stand side by side."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.counts = Counter(words)
        self.pairs = set(itertools.pairwise(("", *words, "")))


def _follow(cue: Sequence[frozenset[str]], words: Sequence[str]) -> list[str] | None:
    """The words that fulfil a cue, in order; None if it is not fulfilled."""
    found, at = [], 0
    for place in cue:
        while at < len(words) and words[at] not in place:
            at += 1
        if at == len(words):
            return None
        found.append(words[at])
        at += 1
    return found
