"""The offline talker keeps the talkers' promises: heard first, small pieces, ended at once, nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from livetalk import voice
from livetalk.eval.topics import evaluate_topics, load_questions, said
from livetalk.stream.talkers import ear as ears
from livetalk.stream.talkers.ear import Ear, judge
from livetalk.stream.talkers.offline import OfflineTalker, written
from livetalk.stream.talkers.protocol import (
    LONGEST_PIECE_S,
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    VisitorTurn,
)
from livetalk.stream.talkers.spoken import SPOKEN_RATE, SpokenVoice, speak_reply
from livetalk.types import MODEL_RATE, LiveTalkError, TextDelta

VOICES = voice.available_voices()
needs_voice = pytest.mark.skipif(not VOICES, reason="needs the Debian package flite or espeak-ng")
needs_flite = pytest.mark.skipif("flite:slt" not in VOICES, reason="needs the Debian package flite")
HELD_OUT = Path(__file__).parent / "data" / "questions.json"
LONG = "How does LiveTalk work?"


@pytest.fixture(scope="module")
def talker() -> Iterator[OfflineTalker]:
    one = OfflineTalker(clock=lambda: datetime(2026, 11, 22, 15, 20))
    one.start(Persona("You are Ada."))
    yield one
    one.close()


def texts(events) -> tuple[str, str]:
    """What was announced as text, and what the pieces say."""
    events = list(events)
    return tuple("".join(e.text for e in events if isinstance(e, kind)) for kind in (TextDelta, SpeechPiece))


@needs_voice
def test_a_typed_turn_is_answered_in_small_pieces(talker: OfflineTalker) -> None:
    events = list(talker.turn(VisitorTurn(text=LONG), []))
    assert events[0] == Heard(LONG)
    pieces = [event for event in events if isinstance(event, SpeechPiece)]
    assert len(pieces) > 4
    for piece in pieces:
        assert piece.samples.dtype == np.float32 and piece.samples.ndim == 1
        assert 0 < len(piece.samples) <= LONGEST_PIECE_S * piece.sample_rate
        assert np.abs(piece.samples).max() <= 1
    assert len({piece.sample_rate for piece in pieces}) == 1
    announced, spoken = texts(events)
    assert (
        announced
        == spoken
        == "The voice becomes features, one row for every picture. A diffusion network turns "
        + ("them and the portrait into video, piece by piece.")
    )


@needs_voice
def test_the_same_turn_twice_gives_the_same(talker: OfflineTalker) -> None:
    first, second = (list(talker.turn(VisitorTurn(text="Tell me a joke."), [])) for _ in range(2))
    assert texts(first) == texts(second)
    for one, other in zip(first[2:], second[2:], strict=True):
        np.testing.assert_array_equal(getattr(one, "samples", 0), getattr(other, "samples", 0))


@needs_voice
def test_history_and_persona_count(talker: OfflineTalker) -> None:
    assert "Ada" in texts(talker.turn(VisitorTurn(text="What is your name?"), []))[1]
    history = [Message("visitor", "Sing."), Message("avatar", "I cannot sing,")]
    assert texts(talker.turn(VisitorTurn(text="Repeat that."), history))[1] == "I cannot sing,"


@needs_voice
def test_cancel_from_another_thread_ends_the_reply(talker: OfflineTalker) -> None:
    events = talker.turn(VisitorTurn(text=LONG), [])
    seen = [next(events) for _ in range(3)]
    assert isinstance(seen[-1], SpeechPiece)
    thread = threading.Thread(target=talker.cancel, args=(0.1,))
    thread.start()
    thread.join()
    assert list(events) == []
    talker.cancel()  # without a turn: nothing
    assert texts(talker.turn(VisitorTurn(text="Stop."), []))[1] == "Okay."


@needs_voice
def test_a_turn_cancelled_before_its_first_event_says_nothing(talker: OfflineTalker) -> None:
    events = talker.turn(VisitorTurn(text=LONG), [])
    talker.cancel()
    assert list(events) == []


@needs_voice
def test_cancel_ends_the_wait_for_the_ear(talker: OfflineTalker) -> None:
    sound = np.tile(said("How does it work, and what does it need?", VOICES[0]), 6)
    events: list = []
    thread = threading.Thread(target=lambda: events.extend(talker.turn(VisitorTurn(sound), [])))
    thread.start()
    while not talker._ear._finished:
        time.sleep(0.005)
    talker.cancel()
    thread.join(20)
    assert not thread.is_alive() and events == []
    talker.forget()


@needs_voice
def test_sound_that_was_heard_before_gives_the_same_words(talker: OfflineTalker) -> None:
    sound = said("How old are you?", VOICES[0])
    alone = list(talker.turn(VisitorTurn(sound), []))
    talker.forget()
    for packet in np.array_split(sound[:-3000], 17):
        talker.hear(packet)
    after_hearing = list(talker.turn(VisitorTurn(sound), []))
    assert alone[0] == after_hearing[0] != Heard("")
    assert texts(alone) == texts(after_hearing)
    talker.hear(np.ones(1000, np.float32))  # of a turn that is not this one
    assert next(iter(talker.turn(VisitorTurn(sound), []))) == alone[0]
    talker.forget()


@needs_voice
@pytest.mark.parametrize("kind", ["silence", "noise", "click", "hum"])
def test_sound_without_words_is_heard_as_nothing(talker: OfflineTalker, kind: str) -> None:
    random, time_s = np.random.default_rng(3), np.arange(MODEL_RATE) / MODEL_RATE
    sound = {
        "silence": np.zeros(MODEL_RATE),
        "noise": random.normal(0, 0.05, MODEL_RATE),
        "click": np.where(np.abs(time_s - 0.5) < 0.004, 0.7, 0.0),
        "hum": 0.1 * np.sin(2 * np.pi * 100 * time_s),
    }[kind]
    assert list(talker.turn(VisitorTurn(sound.astype(np.float32)), [])) == [Heard("")]


def test_an_empty_turn_is_heard_as_nothing(talker: OfflineTalker) -> None:
    assert list(talker.turn(VisitorTurn(), [])) == [Heard("")]
    assert list(talker.turn(VisitorTurn(text="  "), [])) == [Heard("  ")]


@needs_voice
def test_an_ear_that_dies_fails_one_turn_only(talker: OfflineTalker) -> None:
    sound = said("How old are you?", VOICES[0])
    process = talker._ear._process
    failed = threading.Thread(target=process.wait)
    events = talker.turn(VisitorTurn(np.tile(sound, 8)), [])
    failed.start()
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(TalkerError, match="crashed") as failure:
        list(events)
    assert not failure.value.lasting
    failed.join(20)
    assert next(iter(talker.turn(VisitorTurn(sound), []))) != Heard("")


def test_a_talker_must_be_started_and_can_be_closed_twice() -> None:
    one = OfflineTalker()
    with pytest.raises(TalkerError, match="start"):
        one.turn(VisitorTurn(text="Hello."), [])
    one.close()
    one.close()


def test_without_an_engine_the_talker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise LiveTalkError("espeak-ng is not installed.")

    monkeypatch.setattr(voice, "_flite_voices", lambda: ())
    monkeypatch.setattr(voice, "_espeak", missing)
    with pytest.raises(TalkerError, match=r"no voice.*apt install"):
        OfflineTalker().start(Persona())


def test_without_a_recogniser_the_talker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ears.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TalkerError, match="pip install pocketsphinx"):
        Ear([]).open()


@pytest.mark.parametrize("name", [name for name in ("flite:slt", "flite:rms", "espeak:en-us") if name in VOICES])
def test_words_come_when_they_are_said(name: str) -> None:
    reply = "Hello there! It is 3:20 PM, and LiveTalk isn't “slow” – you see."
    pieces = [event for event in speak_reply(SpokenVoice(name), reply) if isinstance(event, SpeechPiece)]
    assert "".join(piece.text for piece in pieces) == reply
    assert all(piece.sample_rate == SPOKEN_RATE for piece in pieces)
    total = sum(len(piece.samples) for piece in pieces)
    at, said_letters = 0, 0
    for piece in pieces:
        at, said_letters = at + len(piece.samples), said_letters + len(piece.text)
        assert abs(at / total - said_letters / len(reply)) < 0.3


@needs_voice
def test_a_voice_of_another_talker_gives_the_best_one_here() -> None:
    assert SpokenVoice("alloy").name == SpokenVoice().name == VOICES[0]
    assert SpokenVoice(VOICES[-1]).name == VOICES[-1]


@needs_voice
def test_a_clause_without_words_is_a_moment_of_silence() -> None:
    (piece,) = SpokenVoice().say("... ")
    assert piece.text == "... " and not piece.samples.any()


@needs_voice
def test_a_stopped_voice_gives_nothing() -> None:
    assert SpokenVoice().say("This would have been a sentence.", lambda: True) == []


def test_the_domain_ear_counts_only_if_both_agree() -> None:
    answer = {
        "general": "how old of you",
        "domain": "how old are you(2)",
        "words": [["how", 0.9, 0.2, 2], ["old", 0.9, 0.3, 3]],
    }
    assert judge(answer).domain == "how old are you"
    assert judge(answer | {"domain": "tell me a joke"}).domain == ""


def test_drawn_out_or_doubtful_words_are_noise() -> None:
    def heard(*words, domain="") -> str:
        return judge({"general": "help", "domain": domain, "words": words}, ["help"]).general

    assert heard(("if", 0.9, 0.3, 2)) == heard(("if", 1.0, 0.75, 2)) == "" == heard(("wall", 0.01, 0.6, 3))
    assert heard(("im", 0.5, 0.15, 2), ("not", 1.0, 1.1, 3)) == "" == heard()
    assert heard(("help", 0.06, 0.5, 4), domain="help") != ""
    assert heard(("help", 0.9, 0.5, 4)) != "" != heard(("so", 0.1, 0.2, 2), ("we", 0.1, 0.2, 2), ("go", 0.1, 0.2, 2))


def test_recognised_words_are_written_as_people_do() -> None:
    assert written("what is live talk") == "What is LiveTalk"
    assert written("i think i'm fine") == "I think I'm fine"


@needs_flite
def test_held_out_questions_spoken() -> None:
    """Some of them; the figures of the whole set are those of ``python -m livetalk evaluate topics``."""
    questions = load_questions(HELD_OUT)
    inside = [question for question in questions if question.topics][::6]
    outside = [question for question in questions if not question.topics][::6]
    figures = evaluate_topics([*inside, *outside], "flite:slt")
    assert figures["right"] >= 0.8 * len(inside), figures["failures"]
    assert figures["wrong"] == figures["intruders"] == 0, figures["failures"]
