"""The benchmark of a conversation measures what a visitor would hear; no figure is judged here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from livetalk.eval import browser_talk, conversation
from livetalk.eval.player import LEAD_S, LEAST_SPARE_S, SOON_S, SPARE_S, Screen
from livetalk.stream.avatar import Avatar
from livetalk.stream.talkers.protocol import Heard
from livetalk.types import PLAYBACK_SAMPLES_PER_PICTURE, LiveTalkError
from tests.live import tiny_models
from tests.test_conversation import Scripted, words


def message(first: int, pictures: int, generation: int = 0, ahead_s: float = 0.0) -> dict:
    flush, facts = pictures == 0, {"ahead_s": ahead_s}
    return {"first": first, "pictures": pictures, "generation": generation, "flush": flush, "facts": facts}


def tone(pictures: int, level: float) -> np.ndarray:
    return np.full(pictures * PLAYBACK_SAMPLES_PER_PICTURE, level, np.float32)


def test_the_screen_plays_without_a_gap_and_replaces_what_is_void() -> None:
    screen = Screen()
    screen.push(message(0, 4), tone(4, 0.0), 10.0)
    screen.push(message(4, 8), tone(8, 0.5), 10.2)
    start_s = 10.0 + LEAD_S
    assert screen.first_loud_s(0) == pytest.approx(start_s + 0.25)
    assert screen.last_loud_s(99) == pytest.approx(start_s + 0.75, abs=1e-3)
    assert screen.picture_s(start_s + 0.3) == pytest.approx(start_s + 0.25)
    screen.push(message(6, 0, generation=1), tone(0, 0), 10.4)
    assert screen.last_loud_s(99) == pytest.approx(10.4, abs=1e-3), "an interruption is silent at once"
    assert screen.picture_s(start_s + 5.5 / 16) == pytest.approx(start_s + 5 / 16), "the face does not jump"
    screen.push(message(6, 4, generation=1), tone(4, 0.0), 10.42)
    screen.push(message(10, 2, generation=1), tone(2, 0.5), 10.45)
    screen.push(message(8, 4, generation=0), tone(4, 0.9), 10.45)
    assert screen.first_loud_s(start_s + 6 / 16) == pytest.approx(start_s + 10 / 16)


def test_the_screen_falls_silent_at_once_if_the_past_is_void_and_moves_what_is_late() -> None:
    screen = Screen()
    screen.push(message(0, 16), tone(16, 0.5), 10.0)
    screen.push(message(2, 0, generation=1), tone(0, 0), 10.5)
    assert screen.last_loud_s(99) == pytest.approx(10.5, abs=1e-3)
    screen.push(message(2, 4, generation=1), tone(4, 0.5), 10.6)
    assert screen.first_loud_s(10.55) == pytest.approx(10.6 + LEAD_S)
    screen.push(message(6, 4, generation=1), tone(4, 0.5), 12.0)
    assert screen.first_loud_s(11.5) == pytest.approx(12.0 + LEAD_S)
    assert screen.first_loud_s(99) is None
    assert screen.picture_s(99) is None


def test_the_screen_wins_back_in_silence_what_a_late_message_cost() -> None:
    screen = Screen()
    screen.push(message(0, 4), tone(4, 0.0), 10.0)
    screen.push(message(4, 4, ahead_s=0.2), tone(4, 0.5), 10.55)  # was on its way for half a second
    assert screen.stalls == 1
    for number in range(2, 80):
        said = tone(4, 0.5 if number < 30 else 0.0)
        screen.push(message(4 * number, 4, ahead_s=0.2), said, 9.8 + number / 4)
        if number == 29:
            assert screen.slipped_s == 0, "speech is not made shorter"
    assert screen.slipped_s == pytest.approx(0.4 - SPARE_S, abs=0.01)
    assert screen.picture_s(30.0) == pytest.approx(10.0 + SPARE_S + 319 / 16, abs=0.07)


def test_silence_grows_where_little_comes_late_and_speech_does_not() -> None:
    screen = Screen()
    screen.push(message(0, 4), tone(4, 0.0), 10.0)
    screen.push(message(4, 4), tone(4, 0.5), 10.38)
    assert screen.stalls == 0 and screen.held_s == pytest.approx(0.05), "30 ms late, and 20 to be sure"
    assert screen.first_loud_s(0) == pytest.approx(10.38 + SOON_S)
    screen.push(message(8, 4), tone(4, 0.0), 10.70)
    assert screen.stalls == 1 and screen.held_s == pytest.approx(0.05), "speech breaks off"
    screen.push(message(12, 4), tone(4, 0.0), 10.80 + 0.25 + 0.06)
    assert screen.stalls == 2, "nobody misses a picture that stays too long"


def test_silence_grows_where_all_messages_come_at_the_last_moment() -> None:
    screen = Screen()
    screen.push(message(0, 4), tone(4, 0.0), 10.0)
    for number in range(1, 20):
        screen.push(message(4 * number, 4, ahead_s=0.2), tone(4, 0.0), 9.888 + number / 4 + 0.15 * (number == 9))
    assert (screen.stalls, screen.longest_held_s) == (0, pytest.approx(LEAST_SPARE_S - 0.012, abs=1e-4))
    assert screen.held_s == pytest.approx(LEAST_SPARE_S - 0.012, abs=1e-4), "a single late one changes nothing"


def test_questions_are_answered_and_interrupted() -> None:
    talker = Scripted(lambda *_: [Heard("a question"), *words(["word"] * 12)])
    figures = conversation.measure(Avatar(tiny_models()), conversation.questions(2), talkers=[talker])
    json.dumps(figures)
    assert figures["answered"] == 2
    assert figures["end_of_speech_to_first_sound_ms"]["n"] == 2
    assert figures["interrupt_to_silence_ms"]["n"] == figures["duck_ms"]["n"] == 1
    assert figures["interrupt_to_silence_ms"]["p50"] > figures["duck_ms"]["p50"] > 0
    assert figures["end_of_speech_to_first_picture_ms"]["p50"] > 0
    assert figures["real_time_factor"] > 0
    assert len(figures["load_average"]) == 3


def test_no_turns_are_refused() -> None:
    with pytest.raises(LiveTalkError, match="at least 1"):
        conversation.run(turns=0)


def test_what_the_browser_told_becomes_figures() -> None:
    def run(begin: float, end: float) -> list[float]:
        return [*np.arange(begin, end, 20.0), end]

    told = {
        "voice": run(1_000, 2_000) + run(5_000, 6_000) + run(20_000, 21_000),
        "sound": run(2_800, 3_500) + run(3_900, 5_400) + run(6_900, 9_000),
        "turns": [{"sound": 2_790, "picture": 2_830}, {"sound": 6_900, "picture": None}],
        "ducks": [100, 5_090],
        "counters": {"stalls": 1, "stallMs": 40, "slippedMs": 30, "heldMs": 12, "longestHeldMs": 9},
        "drawn": [{"index": 9, "offsetMs": -4}, {"index": 10, "offsetMs": 50}, {"index": 21, "offsetMs": 8}],
    }
    figures = browser_talk.figures(told)
    assert figures["border_offset_ms"] == {"p50": 6.0, "p95": pytest.approx(7.8), "n": 2, "most": 8}
    assert (figures["questions"], figures["answered"], figures["stalls"]) == (3, 2, 1)
    assert figures["end_of_speech_to_first_sound_ms"] == {"p50": 850.0, "p95": 895.0, "n": 2}
    assert figures["end_of_speech_to_first_picture_ms"]["p50"] == 830.0
    assert figures["interrupt_to_silence_ms"] == {"p50": 400.0, "p95": 400.0, "n": 1}
    assert figures["duck_ms"]["p50"] == 90.0


def test_every_second_question_of_the_microphone_interrupts() -> None:
    clips = [np.full(1_000, 0.5, np.float32)] * 4
    loud = np.flatnonzero(browser_talk.microphone(clips, 1_000)) / 1_000
    begins = [begin for begin, _ in browser_talk.spans(list(loud * 1_000))]
    pauses = np.diff(begins) / 1_000 - 1.0
    wanted = [browser_talk.INTO_REPLY_S, browser_talk.CALM_S, browser_talk.INTO_REPLY_S]
    assert pauses == pytest.approx(wanted, abs=0.01)
