"""Written text to speakable clauses, while it is still being written.

Language models write for eyes: markdown, emoji, links, lists. A voice needs words, and it needs the first few of them
early. ``ClauseSplitter`` takes text in pieces of any size and hands out clauses that a voice can say one by one; the
clauses do not depend on how the text was cut into pieces. ``speakable`` is the cleaning alone.
This module does not know who writes or who speaks.
"""

from __future__ import annotations

import re
import unicodedata

FIRST_WORDS = 5
FIRST_CHARACTERS = 40
LONGEST_CHARACTERS = 200

_CLOSERS = ")]}\"'”’»」』*_~`"
_SENTENCE_ENDS = re.compile(r"[.!?…。！？][)\]}\"'”’»」』]*$")
_CLAUSE_ENDS = re.compile(r"[.!?…。！？,;:，；：、–—][)\]}\"'”’»」』]*$")
_WIDE_ENDS = "。！？，；：、"
_BREATHS = re.compile(r"[,;:)，；：、–—](?=\s|$)|(?<=[，；：、。！？])")
# Titles, units and short forms behind which a sentence usually goes on; single letters and short numbers as well.
_SHORT_FORMS = re.compile(
    r"dr|mr|mrs|ms|prof|st|jr|sr|vs|etc|approx|fig|vol|dept|inc|ltd|co|ca|e\.g|i\.e|cf|al"
    r"|z\.b|d\.h|u\.a|bzw|usw|nr|ggf|evtl|hr|fr|str|sra|dña|ud|uds|pág|(?:\w\.)*\w|\d{1,2}"
)
_OPEN_CONSTRUCT = re.compile(r"\[[^\]\n]*$|\]\([^)\n]*$|<[a-zA-Z/][^<>\n]*$")
# What stands between these is not for ears: programs, and what reasoning models think aloud.
_HIDDEN = {"```": "```", "<think>": "</think>"}
_KEPT_SYMBOLS = frozenset("°+=<>€$£¥%^|~`")
_LONGEST_CONSTRUCT = 1000


def _say_address(match: re.Match[str]) -> str:
    """A link as people say it: the site's name only."""
    return match.group(1).replace(".", " dot ")


def _say_mail(match: re.Match[str]) -> str:
    return f"{match.group(1)} at {match.group(2)}".replace(".", " dot ")


_LINE_STARTS = (
    (re.compile(r"^\s*(?:>\s*)+"), ""),
    (re.compile(r"^\s*#{1,6}\s+"), ""),
    (re.compile(r"^\s*(?:[-*+•‣▪–]\s+)+(?:\[[ xX]\]\s+)?"), ""),
    (re.compile(r"^\s*(\d{1,3})[.)](?=\s|$)"), r"\1,"),
    (re.compile(r"^\s*(?:[-*_=|:]\s*){3,}$"), ""),
)
_REWRITINGS = (
    (re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)"), r"\1"),
    (re.compile(r"\[\^?\d+\]"), ""),
    (
        re.compile(r"(?:https?://|\bwww\.)(?:www\.)?([\w\-]+(?:\.[\w\-]+)*)(?:[:/?#][^\s<>\"”)\]]*[\w/])?/?"),
        _say_address,
    ),
    (re.compile(r"(?<![\w.+\-])([\w.+\-]{1,64})@([\w\-]{1,64}(?:\.[\w\-]{1,64})+)"), _say_mail),
    (re.compile(r"</?[a-zA-Z][^<>\n]*>"), " "),
    (re.compile(r"(?<=\d)\s*[*×]\s*(?=\d)"), " times "),
    (re.compile(r"\*+|~~|`+"), ""),
    (re.compile(r"(?<!\w)_+|_+(?!\w)"), ""),
    (re.compile(r"(?<=\w)_+(?=\w)"), " "),
    (re.compile(r"(?<!\w)#(?=\w)"), ""),
    (re.compile(r"\s*\|\s*"), " "),
    (re.compile(r"\s*[→⇒➜]\s*"), " to "),
    (re.compile(r"\s&\s"), " and "),
)


def speakable(text: str, line_start: bool = True) -> str:
    """Text as a voice should say it: no markdown, emoji, list marks or addresses; one line, single spaces.

    Args:
        text: any text; each of its lines is cleaned by itself.
        line_start: whether the text begins a line, so that a leading ``-`` or ``1.`` is a list mark.
    """
    lines = []
    for number, line in enumerate(text.split("\n")):
        for pattern, replacement in _LINE_STARTS if line_start or number else ():
            line = pattern.sub(replacement, line)
        for pattern, say in _REWRITINGS:
            line = pattern.sub(say, line)
        lines.append("".join(letter for letter in line if _has_sound(letter)))
    return " ".join(" ".join(lines).split())


def _has_sound(letter: str) -> bool:
    """Whether a character may stay: pictures, modifiers and control characters may not."""
    if letter in _KEPT_SYMBOLS or letter.isspace():
        return True
    return unicodedata.category(letter) not in ("So", "Sk", "Cc", "Cf", "Cn", "Co", "Cs", "Me") and letter != "\ufe0f"


def _is_wide(letter: str) -> bool:
    """Whether a character is of a script that needs no spaces."""
    return unicodedata.east_asian_width(letter) in ("W", "F")


class ClauseSplitter:
    """Streamed text to clauses: the first one early and short, then whole sentences of bounded length.

    Args:
        first_words: the first clause ends at the first punctuation, or after this many words.
        first_characters: or before it would be longer than this.
        longest_characters: longer sentences are cut at a comma or a space. Only a single word may be longer.
    """

    def __init__(
        self,
        first_words: int = FIRST_WORDS,
        first_characters: int = FIRST_CHARACTERS,
        longest_characters: int = LONGEST_CHARACTERS,
    ) -> None:
        self.first_words, self.first_characters = first_words, first_characters
        self.longest_characters = longest_characters
        self._start_anew()

    def push(self, text: str) -> list[str]:
        """Clauses that ``text`` completed, in order."""
        for letter in text:
            self._step(letter)
        return self._take()

    def finish(self) -> list[str]:
        """The rest of the text; the splitter starts anew afterwards."""
        if not self._hidden_until:
            self._end_line()
        clauses = self._take()
        self._start_anew()
        return clauses

    def _start_anew(self) -> None:
        self._pending = ""  # written, but not yet handed out
        self._line_start = True
        self._first = True
        self._hidden_until = ""
        self._hidden_tail = ""
        self._ready: list[str] = []

    def _take(self) -> list[str]:
        ready, self._ready = self._ready, []
        return ready

    def _step(self, letter: str) -> None:
        """One more character. Every decision is made here, so that the cuts of the input cannot matter."""
        if self._hidden_until:
            self._hidden_tail = (self._hidden_tail + letter)[-len(self._hidden_until) :]
            if self._hidden_tail == self._hidden_until:
                self._hidden_until = self._hidden_tail = ""
            return
        wide_end = self._pending[-1:] in _WIDE_ENDS and letter not in _CLOSERS + _WIDE_ENDS
        if letter == "\n":
            self._end_line()
            return
        if letter.isspace() or (self._pending and wide_end):
            self._cut_where_possible()
        elif len(self._pending) >= self._limit and _is_wide(letter):  # scripts without spaces
            self._cut_overlong()
        self._pending += letter
        for opening, closing in _HIDDEN.items():
            if self._pending.endswith(opening):
                self._pending = self._pending[: -len(opening)]
                self._end_line()
                self._hidden_until = closing

    @property
    def _limit(self) -> int:
        return self.first_characters if self._first else self.longest_characters

    def _end_line(self) -> None:
        self._cut_where_possible()
        self._cut_overlong()
        self._cut(len(self._pending))
        self._line_start = True

    def _cut_where_possible(self) -> None:
        """Cut off what is complete, knowing that a word has just ended."""
        while self._cut_overlong():
            pass
        if self._pending and self._is_complete():
            self._cut(len(self._pending))

    def _is_complete(self) -> bool:
        said = self._said(len(self._pending))
        if not any(letter.isalpha() for letter in said) or self._inside_construct():
            return False
        if self._first and len(said.split()) >= self.first_words:
            return True
        if not (_CLAUSE_ENDS if self._first else _SENTENCE_ENDS).search(said):
            return False
        return not _goes_on(said)

    def _inside_construct(self) -> bool:
        """Whether a link or a tag has been opened and not closed (nor left open for so long that it is none)."""
        opened = _OPEN_CONSTRUCT.search(self._pending)
        return opened is not None and len(opened.group()) < _LONGEST_CONSTRUCT

    def _cut_overlong(self) -> bool:
        """Cut once if what is pending is too long to be said in one go; whether it was."""
        if len(self._said(len(self._pending))) <= self._limit:
            return False
        if self._inside_construct() and len(self._pending) < _LONGEST_CONSTRUCT:
            return False
        at = self._best_cut()
        if not at:
            return False
        self._cut(at)
        return True

    def _best_cut(self) -> int:
        """Where to cut an overlong text: behind its last comma if that is not too early, else at a space; 0 = no."""
        breaths = [match.end() for match in _BREATHS.finditer(self._pending)]
        spaces = [match.start() for match in re.finditer(r"(?<=\S)\s", self._pending)]
        for places, least in ((breaths, self._limit // 2), (spaces, 1)):
            for at in reversed(places):
                if least <= len(self._said(at)) <= self._limit:
                    return at
        if spaces:  # its first word alone is too long
            return spaces[0]
        return self._limit if any(map(_is_wide, self._pending)) else 0

    def _said(self, length: int) -> str:
        return speakable(self._pending[:length], self._line_start)

    def _cut(self, length: int) -> None:
        said = self._said(length)
        self._pending = self._pending[length:]
        self._line_start = self._line_start and not said
        if any(letter.isalnum() for letter in said):
            self._ready.append(said)
            self._first = False


def _goes_on(said: str) -> bool:
    """Whether the full stop at the end belongs to an abbreviation or an ordinal rather than to the sentence."""
    last = said.split()[-1].lstrip("([{\"'“‘«「『").rstrip(_CLOSERS)
    if not last.endswith(".") or last.endswith(".."):
        return False
    return _SHORT_FORMS.fullmatch(last[:-1].lower()) is not None
