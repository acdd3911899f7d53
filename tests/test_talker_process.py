"""Talkers in a process of their own: the same from outside, called off at once, and mortal without harm."""

from __future__ import annotations

import os
import threading
from functools import partial

import numpy as np
import pytest
from apart_talkers import RATE, ObedientTalker, UnmadeTalker, tiny_gemma_talker

from livetalk.stream.talkers.apart import ApartTalker, TalkerProcess
from livetalk.stream.talkers.protocol import Heard, Message, Persona, SpeechPiece, TalkerError, VisitorTurn
from livetalk.types import TextDelta

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def process():
    process = TalkerProcess(ObedientTalker)
    yield process
    process.close()


@pytest.fixture
def own_process():
    process = TalkerProcess(ObedientTalker)
    yield process
    process.close()


def started(process: TalkerProcess) -> ApartTalker:
    talker = process.talker()
    talker.start(Persona())
    return talker


def say(talker: ApartTalker, text: str, history: tuple[Message, ...] = ()) -> list:
    return list(talker.turn(VisitorTurn(text=text), history))


def told(talker: ApartTalker) -> list[str]:
    """Process, samples heard, cancels, history."""
    return say(talker, "tell")[1].text.split(" ", 1)


def test_is_the_same_talker_from_outside(process: TalkerProcess) -> None:
    talker = started(process)
    assert (talker.name, talker.title, talker.speculative) == ("obedient", "the obedient talker", True)
    heard, text, speech = say(talker, "tell", (Message("avatar", "Hi."), Message("visitor", "Yes?")))
    assert heard == Heard("tell")
    assert int(text.text.split()[0]) != os.getpid()
    assert text.text.endswith("['Hi.', 'Yes?']")
    assert speech.sample_rate == RATE and speech.text == "words "
    assert np.array_equal(speech.samples, np.linspace(-1, 1, 4_800, dtype=np.float32))


def test_talkers_of_one_process_share_it_and_nothing_else(process: TalkerProcess) -> None:
    first, second = started(process), started(process)
    first.hear(np.zeros(100, np.float32))
    first.hear(np.zeros(20, np.float32))
    (one, state), (other, other_state) = told(first), told(second)
    assert one == other
    assert state.startswith("120 ") and other_state.startswith("0 ")
    first.forget()
    assert told(first)[1].startswith("0 ")


def test_two_conversations_at_once(process: TalkerProcess) -> None:
    first, second = started(process), started(process)
    endless = first.turn(VisitorTurn(text="talk"), ())
    next(endless), next(endless)
    assert len(say(second, "tell")) == 3
    assert isinstance(next(endless), SpeechPiece)
    first.cancel(1.0)
    assert list(endless) == []


def test_cancel_ends_a_reply_at_once_even_if_the_model_does_not_notice(process: TalkerProcess) -> None:
    talker = started(process)
    asleep = talker.turn(VisitorTurn(text="sleep"), ())
    assert [next(asleep), next(asleep)] == [Heard("sleep"), TextDelta("good night")]
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (list(asleep), ended.set()), daemon=True)
    thread.start()
    talker.cancel(0.5)
    assert ended.wait(PATIENCE_S)


def test_the_talker_learns_what_was_heard_and_goes_on(process: TalkerProcess) -> None:
    talker = started(process)
    for heard_s in (0.75, None):
        endless = talker.turn(VisitorTurn(text="talk"), ())
        next(endless), next(endless)
        talker.cancel(heard_s)
        assert list(endless) == []
    assert told(talker)[1].startswith("0 [0.75, None]")


def test_cancel_before_the_first_turn_does_nothing(process: TalkerProcess) -> None:
    talker = process.talker()
    talker.cancel(1.0)
    talker.start(Persona())
    talker.cancel(1.0)
    assert told(talker)[1].startswith("0 []")


def test_a_cancel_may_come_after_everything_was_given(process: TalkerProcess) -> None:
    talker = started(process)
    say(talker, "tell")
    talker.cancel(0.5)
    assert told(talker)[1].startswith("0 [0.5]")


def test_leaving_a_reply_early_cancels_it(process: TalkerProcess) -> None:
    talker = started(process)
    for _ in talker.turn(VisitorTurn(text="talk"), ()):
        break
    assert told(talker)[1].startswith("0 [None]")


def test_nothing_of_a_cancelled_reply_comes_later(process: TalkerProcess) -> None:
    talker = started(process)
    for _ in range(20):
        endless = talker.turn(VisitorTurn(text="talk"), ())
        next(endless)
        talker.cancel(0.0)
        assert [type(event) for event in say(talker, "tell")] == [Heard, TextDelta, SpeechPiece]


def test_a_killed_process_is_a_sentence_and_the_next_start_begins_anew(own_process: TalkerProcess) -> None:
    assert not own_process.is_running
    talker, neighbour = started(own_process), started(own_process)
    assert own_process.is_running
    endless = neighbour.turn(VisitorTurn(text="talk"), ())
    next(endless)
    before = told(talker)[0]
    reply = talker.turn(VisitorTurn(text="fall"), ())
    assert [next(reply), next(reply)] == [Heard("fall"), TextDelta("oh")]
    with pytest.raises(TalkerError, match=r"the obedient talker stopped: .*signal 9.*memory") as caught:
        next(reply)
    assert caught.value.lasting
    with pytest.raises(TalkerError, match="signal 9"):
        list(endless)
    with pytest.raises(TalkerError, match="signal 9"):
        say(talker, "tell")
    assert not own_process.is_running
    talker.hear(np.zeros(10, np.float32))
    talker.cancel()
    talker.start(Persona())
    after = told(talker)[0]
    assert after != before
    # A talker that cannot go on leaves nothing behind if nobody else needs the process.
    with pytest.raises(TalkerError):
        say(talker, "stumble")
    talker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(after), 0)


def test_a_process_that_crashes_while_it_starts() -> None:
    process = TalkerProcess(UnmadeTalker)
    with pytest.raises(TalkerError, match=r"crashed \(code 1\)") as caught:
        process.talker().start(Persona())
    assert caught.value.lasting
    process.close()


def test_errors_of_the_talker_keep_their_sentence_and_the_process(process: TalkerProcess) -> None:
    talker = started(process)
    before = told(talker)[0]
    with pytest.raises(TalkerError, match=r"^The line is bad\.$") as passing:
        say(talker, "give_up")
    assert not passing.value.lasting
    with pytest.raises(TalkerError, match="the obedient talker crashed: ValueError a mistake") as bug:
        say(talker, "stumble")
    assert bug.value.lasting
    with pytest.raises(TalkerError, match="no room for this model"):
        process.talker().start(Persona(instructions="refuse"))
    assert told(talker)[0] == before


def test_closing_ends_a_turn_and_keeps_the_process(process: TalkerProcess) -> None:
    talker = started(process)
    before = told(talker)[0]
    endless = talker.turn(VisitorTurn(text="talk"), ())
    next(endless)
    talker.close()
    talker.close()
    assert list(endless) == []
    with pytest.raises(TalkerError, match="not started"):
        say(talker, "tell")
    assert told(started(process))[0] == before


def test_a_turn_before_the_start_is_a_sentence(process: TalkerProcess) -> None:
    with pytest.raises(TalkerError, match="was not started"):
        say(process.talker(), "tell")


def test_a_real_model_in_a_process_of_its_own(tmp_path) -> None:
    process = TalkerProcess(partial(tiny_gemma_talker, str(tmp_path)))
    try:
        talker = started(process)
        rng = np.random.default_rng(0)
        turn = VisitorTurn(rng.normal(0, 0.1, 20_000).astype(np.float32))
        events = list(talker.turn(turn, ()))
        assert isinstance(events[0], Heard) and events[0].text
        assert any(isinstance(event, TextDelta) for event in events)
        speech = [event for event in events if isinstance(event, SpeechPiece)]
        assert speech and all(len(piece.samples) <= RATE / 2 for piece in speech)
        reply = talker.turn(turn, ())
        while not isinstance(next(reply), SpeechPiece):
            pass
        talker.cancel(0.1)
        assert list(reply) == []
        talker.start(Persona(voice="tiny"))
        with pytest.raises(TalkerError, match="has no voice 'nobody'") as caught:
            talker.start(Persona(voice="nobody"))
        assert not caught.value.lasting
    finally:
        process.close()
