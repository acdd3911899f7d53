"""Text to speech pieces with a small local voice: the offline talker's mouth, and the voice of last resort of others.

A reply is spoken clause by clause, a short one first, so that its first sound comes early; between clauses stands the
pause that a speaker would make. Words are placed by what the engine tells: espeak-ng the start of every word, flite its
phones, over which words are spread by their letters. This module does not know what is said, or to whom.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

import numpy as np

from livetalk import voice as engines
from livetalk.stream.talkers.clauses import ClauseSplitter
from livetalk.stream.talkers.protocol import LONGEST_PIECE_S, SpeechPiece, TalkerError
from livetalk.types import LiveTalkError, TextDelta

SPOKEN_RATE = engines.SPEECH_RATE_HZ
FIRST_WORDS = 8
FIRST_CHARACTERS = 60

SENTENCE_PAUSE_S = 0.3
CLAUSE_PAUSE_S = 0.14
JOIN_PAUSE_S = 0.03
"""Behind a clause that was cut off in the middle of a sentence."""

_LEVEL = 0.004
_MARGINS_S = 0.005, 0.02
"""Kept before and behind what can be heard: people wait for the first, and the last may still die away."""
_SILENT_PHONES = ("pau", "")
_PLAIN_MARKS = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": ", ", "—": ", ", "…": "..."})
_RESPELLED = ((re.compile(r"\bLiveTalk\b"), "Live Talk"),)
"""Names that flite would stumble over."""

Stop = Callable[[], bool]


def _never() -> bool:
    return False


class SpokenVoice:
    """One local voice.

    Args:
        name: one of ``livetalk.voice.available_voices()``; "" and any other name, such as a voice of another talker,
            give the best one found here.

    Raises:
        TalkerError: no speech engine is installed.
    """

    def __init__(self, name: str = "") -> None:
        try:
            self.name = name if name in engines.available_voices() else engines.default_voice()
        except LiveTalkError as error:
            raise TalkerError(f"This machine has no voice. {error}") from error

    def say(self, clause: str, stop: Stop = _never) -> list[SpeechPiece]:
        """One clause, spoken in one go.

        Args:
            clause: words and punctuation, with the spaces that shall be in the pieces' texts. A space at its end says
                that more follows: then a pause does.
            stop: asked every few milliseconds; once it says True the engine is ended and nothing comes out.

        Returns:
            Pieces at ``SPOKEN_RATE`` whose texts together are ``clause``; one without a word is a moment of silence.

        Raises:
            TalkerError: the engine failed.
        """
        spoken = _for_engine(clause)
        if not any(letter.isalnum() for letter in spoken):
            return [SpeechPiece(np.zeros(int(CLAUSE_PAUSE_S * SPOKEN_RATE), np.float32), SPOKEN_RATE, clause)]
        try:
            utterance = engines.speak(spoken, self.name, stop=stop)
        except LiveTalkError as error:
            raise TalkerError(f"The voice {self.name} failed. {error}") from error
        if stop() or not len(utterance.samples):
            return []
        words = re.findall(r"\s*\S+\s*", clause)
        start, end = _sounding(utterance.samples)
        ends = [int(at * SPOKEN_RATE) - start for at in _word_ends(words, spoken, utterance)]
        pause = np.zeros(int(_pause_s(clause) * SPOKEN_RATE), np.float32)
        return _cut(np.concatenate([utterance.samples[start:end], pause]), words, ends)


def speak_reply(voice: SpokenVoice, text: str, stop: Stop = _never) -> Iterator[TextDelta | SpeechPiece]:
    """A whole reply: the text of each clause, then its sound.

    Args:
        voice: who speaks.
        text: plain text with single spaces.
        stop: once it says True, nothing more comes out.

    Yields:
        Texts and pieces; the texts together, and those of the pieces together, are the reply.
    """
    splitter = ClauseSplitter(FIRST_WORDS, FIRST_CHARACTERS)
    clauses = splitter.push(text) + splitter.finish()
    for number, clause in enumerate(clauses):
        written = clause if number == len(clauses) - 1 else f"{clause} "
        if stop():
            return
        pieces = voice.say(written, stop)
        if pieces:
            yield TextDelta(written)
        for piece in pieces:
            if stop():
                return
            yield piece


def _for_engine(text: str) -> str:
    """Text in letters that both engines know: ASCII for marks and accents they would spell out or drop."""
    for pattern, spelled in _RESPELLED:
        text = pattern.sub(spelled, text)
    plain = unicodedata.normalize("NFKD", text.translate(_PLAIN_MARKS))
    return " ".join(plain.encode("ascii", "ignore").decode().split())


def _pause_s(clause: str) -> float:
    if not clause[-1:].isspace():
        return 0.0
    last = clause.rstrip(" )\"'")[-1:]
    if last in ".!?":
        return SENTENCE_PAUSE_S
    return CLAUSE_PAUSE_S if last in ",;:" else JOIN_PAUSE_S


def _sounding(samples: np.ndarray) -> tuple[int, int]:
    """First and last-but-one sample of the part that can be heard, with a little margin."""
    loud = np.flatnonzero(np.abs(samples) > _LEVEL)
    if not len(loud):
        return 0, len(samples)
    before, behind = (int(margin * SPOKEN_RATE) for margin in _MARGINS_S)
    return max(0, int(loud[0]) - before), min(len(samples), int(loud[-1]) + 1 + behind)


def _word_ends(words: list[str], spoken: str, utterance: engines.Utterance) -> list[float]:
    """When each word ends, in seconds; increasing."""
    if utterance.word_starts:
        return _ends_by_marks(words, spoken, utterance)
    return _ends_by_phones(words, utterance)


def _ends_by_marks(words: list[str], spoken: str, utterance: engines.Utterance) -> list[float]:
    """The last mark inside a word's letters (engines count "3:20" as two words) says where the next one begins."""
    starts, at = [], 0
    for word in words[1:]:
        at = _next_word(spoken, at)
        behind = [start_s for start_s, position in utterance.word_starts if position >= at]
        starts.append(min(behind) if behind and word else utterance.duration_s)
    return [*starts, utterance.duration_s]


def _next_word(text: str, at: int) -> int:
    """Position of the word that follows the one at ``at``."""
    match = re.compile(r"\S+\s+").match(text, at)
    return match.end() if match else len(text)


def _ends_by_phones(words: list[str], utterance: engines.Utterance) -> list[float]:
    """Words spread over the phones by their letters; without phones, over the time."""
    phone_ends = [end for _, end, phone in utterance.phonemes if phone not in _SILENT_PHONES]
    if not phone_ends:
        phone_ends = list(np.linspace(0, utterance.duration_s, 100)[1:])
    letters = np.cumsum([max(1, sum(letter.isalnum() for letter in word)) for word in words])
    places = np.ceil(letters / letters[-1] * len(phone_ends)).astype(int) - 1
    return [phone_ends[place] for place in places]


def _cut(samples: np.ndarray, words: list[str], ends: list[int]) -> list[SpeechPiece]:
    """Equal pieces with the words that end in them; the last one takes what is left."""
    count = max(1, -(-len(samples) // int(LONGEST_PIECE_S * SPOKEN_RATE)))
    pieces, at, given = [], 0, 0
    for part in np.array_split(samples, count):
        at += len(part)
        upto = given
        while upto < len(words) and (ends[upto] <= at or at == len(samples)):
            upto += 1
        pieces.append(SpeechPiece(part, SPOKEN_RATE, "".join(words[given:upto])))
        given = upto
    return pieces
