"""Clauses for a voice: early, whole, clean, and the same however the text was cut into pieces."""

from __future__ import annotations

import itertools
import random

import pytest

from livetalk.stream.talkers.clauses import ClauseSplitter, speakable

PLAIN = (
    "The Danube is about 2,850 km long. It rises in the Black Forest, crosses ten countries and ends in the Black Sea."
    ' Dr. Müller said: "That is 3.5 times the Rhine!" Is it? Yes... e.g. near Ulm it is still small. See you at 5 p.m.'
    " on the bridge; bring a map, a coat and some patience because the path along the river is much longer than it"
    " looks from up here and in spring it is often flooded so that one has to walk back the whole way to the last"
    " village."
)
MARKED = (
    "## Three facts\n\n- **Length**: about *2,850 km* 🌊\n- [The mouth](https://example.org/a b?c=1) is a `delta`\n"
    "1. First of all, it flows.\n2) Then it ends. 👍🏽\n\n> Said _somebody_ on https://www.example.com/long/path/.\n"
    "| a | b |\n|---|---|\nWrite to jane.doe@example.org & wait.\n***\n5 - 3 is 2, snake_case stays two words, x*y too."
)
GERMAN = "Am 3. Mai, d. h. bald, kommt Fr. Dr. Weiß. Sie bringt z.B. Äpfel usw. mit. Schön!"
CHINESE = "你好，我叫小明。今天天气很好！我们去公园吧，那里有很多花" + "很" * 300 + "。好吗？好。"
TEXTS = [PLAIN, MARKED, GERMAN, CHINESE, PLAIN + "\n" + MARKED, "One", "", " \n ", "no end", "🎉", "A." * 80]


def split(text: str, cuts: list[int] | None = None, **options: int) -> list[str]:
    splitter = ClauseSplitter(**options)
    edges = [0, *sorted(cuts or []), len(text)]
    clauses = [clause for a, b in itertools.pairwise(edges) for clause in splitter.push(text[a:b])]
    return clauses + splitter.finish()


def words(text: str) -> list[str]:
    return [word for word in text.split() if any(letter.isalnum() for letter in word)]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_cut_of_the_input_does_not_matter(text):
    whole = split(text)
    dice = random.Random(7)
    for _ in range(12):
        cuts = [dice.randrange(len(text) + 1) for _ in range(dice.randrange(1, 40))]
        assert split(text, cuts) == whole
    assert split(text, list(range(len(text)))) == whole


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("limits", [{}, {"first_words": 2, "first_characters": 20, "longest_characters": 60}], ids=str)
def test_all_words_come_in_order_and_clauses_are_bounded(text, limits):
    clauses = split(text, **limits)
    if text is CHINESE:
        assert "".join(clauses) == CHINESE
    else:
        assert words(" ".join(clauses)) == words(speakable(text))
    first, longest = limits.get("first_characters", 40), limits.get("longest_characters", 200)
    for number, clause in enumerate(clauses):
        assert len(clause) <= (longest if number else first) or " " not in clause
        assert clause == clause.strip() and "\n" not in clause


def test_the_first_clause_is_early():
    splitter = ClauseSplitter()
    assert splitter.push("The capital of France is ") == ["The capital of France is"]
    assert splitter.push("Paris. It") == ["Paris."]
    assert splitter.finish() == ["It"]
    assert ClauseSplitter().push("Well, that ") == ["Well,"]
    assert ClauseSplitter().push("Yes. ") == ["Yes."]
    # never more than 40 characters, even before the fifth word
    assert (
        split("Internationalisation notwithstanding, incomprehensibilities abound.")[0]
        == "Internationalisation notwithstanding,"
    )
    assert (
        split("Internationalisation notwithstanding incomprehensibilities")[0] == "Internationalisation notwithstanding"
    )


def test_later_clauses_are_whole_sentences():
    assert split(PLAIN, first_words=1) == [
        "The",
        "Danube is about 2,850 km long.",
        "It rises in the Black Forest, crosses ten countries and ends in the Black Sea.",
        'Dr. Müller said: "That is 3.5 times the Rhine!"',
        "Is it?",
        "Yes...",
        "e.g. near Ulm it is still small.",
        "See you at 5 p.m. on the bridge; bring a map, a coat and some patience because the path along the river is"
        " much longer than it looks from up here and in spring it is often flooded so that one has to",
        "walk back the whole way to the last village.",
    ]


def test_abbreviations_and_ordinals_do_not_end_a_sentence():
    assert split(GERMAN, first_words=1)[1:] == [
        "3. Mai, d. h. bald, kommt Fr. Dr. Weiß.",
        "Sie bringt z.B. Äpfel usw. mit.",
        "Schön!",
    ]
    assert split("So it is. Mr. J. R. Smith of the U.S. paid $3.50 vs. 4.00 then. Done.", first_words=3)[1:] == [
        "Mr. J. R. Smith of the U.S. paid $3.50 vs. 4.00 then.",
        "Done.",
    ]


def test_markup_is_made_speakable():
    assert split(MARKED) == [
        "Three facts",
        "Length: about 2,850 km",
        "The mouth is a delta",
        "1, First of all, it flows.",
        "2, Then it ends.",
        "Said somebody on example dot com.",
        "a b",
        "Write to jane dot doe at example dot org and wait.",
        "5 - 3 is 2, snake case stays two words, xy too.",
    ]
    assert speakable("It is 25 °C 😀, 3 * 4 = 12, #livetalk in C# <br> & more →") == (
        "It is 25 °C , 3 times 4 = 12, livetalk in C# and more to"
    )


def test_programs_and_thoughts_are_not_spoken():
    text = "<think>They want code. Hm.\nOk.</think>Here you are:\n```python\nprint('no. never.')\n```\nRun it twice."
    for step in (1, 2, 3, 7, len(text)):
        assert split(text, list(range(0, len(text), step))) == ["Here you are:", "Run it twice."]
    assert split("Look: ```never closed. Really.") == ["Look:"]


def test_wide_sentences_end_without_a_space():
    clauses = split(CHINESE)
    assert clauses[:3] == ["你好，", "我叫小明。", "今天天气很好！"]
    assert clauses[-2:] == ["好吗？", "好。"]


def test_a_finished_splitter_starts_anew():
    splitter = ClauseSplitter()
    splitter.push("<think> one")
    assert splitter.finish() == []
    assert splitter.push("Well, well. Yes") == ["Well,", "well."]
    assert splitter.finish() == ["Yes"]
    assert splitter.push("- Fine, th") == ["Fine,"]
