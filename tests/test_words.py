"""The page's words: every key in four languages, every key that is used, none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from livetalk.ui import page, stage
from livetalk.ui.words import LANGUAGES, WORDS, i18n, said, script, tables, used_in

UI = Path(page.__file__).parent
PLACES = re.compile(r"\{\w+\}")


@pytest.mark.parametrize("key", WORDS)
def test_every_word_exists_in_every_language(key):
    words = WORDS[key]
    assert len(words) == len(LANGUAGES) and all(text.strip() for text in words)
    assert len({tuple(PLACES.findall(text)) for text in words}) == 1, "the same names are filled in"


def test_chinese_is_chinese_and_nothing_was_forgotten():
    table = tables()
    same = {key for key in WORDS if table["zh"][key] == table["en"][key]}
    assert same == set()
    copied = {key for key in WORDS if table["de"][key] == table["en"][key] == table["es"][key]}
    assert copied <= {"avatar", "place"}


def test_every_key_is_used_and_known():
    used = set()
    for path in [*UI.glob("*.html"), *UI.glob("*.js")]:
        used |= used_in(path.read_text("utf-8"))
    assert used <= set(WORDS), "words the page asks for but nobody wrote"
    python = "".join(path.read_text("utf-8") for path in (UI / "page.py", UI / "stage.py", UI / "events.py"))
    named = {key for key in WORDS if f'"{key}"' in python or (key.startswith("voice_") and "voice_{" in python)}
    moods = set(stage.SIGNS)
    assert set(WORDS) - used - named - moods == set()


def test_gradio_gets_the_same_words_under_names_of_its_own():
    translations = i18n().translations
    assert set(translations) == {*LANGUAGES, "zh-CN"}
    key = said("play").key
    assert key not in WORDS and translations["de"][key] == tables()["de"]["play"]
    with pytest.raises(KeyError):
        said("no such word")


def test_a_component_carries_the_words_it_uses():
    code = script('<b data-word="talk"></b><i data-word-label="send"></i>', "word('place', { place })", more=("mood",))
    assert re.findall(r'"(\w+)": \{"en"', code) == ["mood", "place", "send", "talk"]
    with pytest.raises(KeyError):
        script("word('nonsense')")
