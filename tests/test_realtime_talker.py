"""The realtime talker against a real WebSocket server on this machine: both spellings, interruptions, failures."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from realtime_server import DELTA_SAMPLES, OUTPUT_RATE, TONE, RealtimeServer

from livetalk.stream.talkers import realtime_events as say
from livetalk.stream.talkers.protocol import (
    LONGEST_PIECE_S,
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    VisitorTurn,
)
from livetalk.stream.talkers.realtime import RealtimeTalker, missing
from livetalk.stream.talkers.realtime_turn import UNKNOWN_WORDS
from livetalk.types import TextDelta

SAMPLES = (np.sin(np.arange(24_000) / 9) / 2).astype(np.float32)  # 1.5 s
SPOKEN = VisitorTurn(SAMPLES)


@pytest.fixture
def serving():
    """Starts servers and talkers, and ends them."""
    opened: list = []

    def start(server: RealtimeServer | None = None, persona: Persona | None = None, begin=True, **settings):
        server = server or RealtimeServer()
        if server not in opened:
            opened.append(server.__enter__())
        choice = {"nested": server.nested, "input_rate": server.input_rate, "server_vad": server.server_vad, **settings}
        talker = RealtimeTalker(say.RealtimeConfig(url=server.url, **choice))
        opened.append(talker)
        if begin:
            talker.start(persona or Persona("Be kind.", ""))
        return server, talker

    yield start
    for one in reversed(opened):
        one.close() if isinstance(one, RealtimeTalker) else one.__exit__()


def sound_of(events) -> np.ndarray:
    pieces = [event for event in events if isinstance(event, SpeechPiece)]
    assert all(0 < len(p.samples) <= LONGEST_PIECE_S * p.sample_rate and p.sample_rate == OUTPUT_RATE for p in pieces)
    return np.concatenate([np.zeros(0, np.float32), *(piece.samples for piece in pieces)])


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def heard_in(events) -> list[str]:
    return [event.text for event in events if isinstance(event, Heard)]


def assert_complete(events, deltas=5) -> None:
    assert isinstance(events[0], Heard)
    assert text_of(events) == "".join(f"word{number} " for number in range(deltas))
    sound = sound_of(events)
    assert len(sound) == deltas * DELTA_SAMPLES
    np.testing.assert_allclose(sound, TONE, atol=1e-4)


def until_sound(turn, deltas=1) -> list:
    events = []
    for event in turn:
        events.append(event)
        if isinstance(event, SpeechPiece) and len(sound_of(events)) >= deltas * DELTA_SAMPLES:
            return events
    raise AssertionError(f"the turn ended early: {events}")


def failure(talker, turn=SPOKEN, history=()) -> tuple[TalkerError, list]:
    events = []
    with pytest.raises(TalkerError) as caught:
        for event in talker.turn(turn, list(history)):
            events.append(event)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    return caught.value, events


@pytest.mark.parametrize(("nested", "rate"), [(True, 24_000), (False, 24_000), (False, 16_000)])
def test_a_turn_in_both_spellings(serving, nested, rate):
    server, talker = serving(RealtimeServer(nested, rate), voice="anna", transcriber="writer", model="m/1", key="k")
    events = list(talker.turn(SPOKEN, []))
    assert heard_in(events) == ["1500 milliseconds"]
    assert_complete(events)
    session = server.visit.session
    assert session["instructions"] == "Be kind."
    if nested:
        assert session["audio"]["input"]["turn_detection"] is None
        assert session["audio"]["input"]["transcription"] == {"model": "writer"}
        assert session["audio"]["output"]["voice"] == "anna"
    else:
        assert session["turn_detection"] is None and session["voice"] == "anna"
        assert session["input_audio_transcription"] == {"model": "writer"}
    hello = server.got("handshake")[0]
    assert hello["path"] == "/v1/realtime?model=m/1" and hello["authorization"] == "Bearer k"
    assert ("openai-beta" in hello) is not nested
    asked = server.kinds()
    assert asked.index("input_audio_buffer.commit") < asked.index("response.create")
    assert "complained" not in asked


def test_the_sound_arrives_whole_and_once(serving):
    """Streamed by ``hear`` while the visitor speaks; ``turn`` sends only what is missing."""
    server, talker = serving(RealtimeServer(input_rate=16_000))
    for at in range(0, 20_000, 512):
        talker.hear(SAMPLES[at : min(at + 512, 20_000)])
    server.wait_for("input_audio_buffer.append", 40)
    list(talker.turn(SPOKEN, []))
    (item,) = [item for item in server.visit.items.values() if item["role"] == "user"]
    np.testing.assert_allclose(item["sound"], SAMPLES, atol=1e-4)
    assert "input_audio_buffer.clear" not in server.kinds()


@pytest.mark.parametrize("case", ["other sound", "forgotten", "longer"])
def test_sound_of_no_turn_is_not_answered(serving, case):
    server, talker = serving(RealtimeServer(input_rate=16_000))
    talker.hear(np.full(8000, 0.9, np.float32) if case != "longer" else np.pad(SAMPLES, (0, 1600)))
    if case == "forgotten":
        talker.forget()
    list(talker.turn(SPOKEN, []))
    (item,) = [item for item in server.visit.items.values() if item["role"] == "user"]
    np.testing.assert_allclose(item["sound"][: len(SAMPLES)], SAMPLES, atol=1e-4)
    assert len(item["sound"]) == len(SAMPLES) + (1600 if case == "longer" else 0)
    assert ("input_audio_buffer.clear" in server.kinds()) is (case != "longer")


def test_a_typed_turn(serving):
    server, talker = serving()
    talker.hear(SAMPLES)
    events = list(talker.turn(VisitorTurn(text="Which city?"), []))
    assert events[0] == Heard("Which city?")
    assert_complete(events)
    assert server.visit.conversation()[0] == ("user", "Which city?")
    assert "input_audio_buffer.commit" not in server.kinds() and "input_audio_buffer.clear" in server.kinds()


def test_several_turns_in_one_conversation(serving):
    server, talker = serving()
    for number in range(1, 4):
        assert_complete(list(talker.turn(SPOKEN if number % 2 else VisitorTurn(text=f"turn {number}"), [])))
    assert [role for role, _ in server.visit.conversation()] == ["user", "assistant"] * 3
    assert len(server.visits) == 1 and "complained" not in server.kinds()


def test_words_that_come_late_come_again(serving):
    server, talker = serving(transcriber="writer")
    server.transcript = "after"
    events = list(talker.turn(SPOKEN, []))
    assert heard_in(events) == [UNKNOWN_WORDS, "1500 milliseconds"]
    assert_complete(events)


def test_words_that_never_come(serving):
    server, talker = serving()
    server.transcript = "never"
    events = list(talker.turn(SPOKEN, []))
    assert heard_in(events) == [UNKNOWN_WORDS]
    assert_complete(events)


def test_no_words_no_reply(serving):
    server, talker = serving()
    server.words, server.hold_after = " ", 0
    assert list(talker.turn(SPOKEN, [])) == [Heard("")]
    server.wait_for("reply over")
    server.words, server.hold_after = None, None
    assert_complete(list(talker.turn(SPOKEN, [])))
    assert [role for role, _ in server.visit.conversation()] == ["user", "assistant"]  # the noise is forgotten
    assert list(talker.turn(VisitorTurn(), [])) == [Heard("")]


def test_text_in_one_piece(serving):
    server, talker = serving()
    server.text_at_once = True
    assert text_of(list(talker.turn(SPOKEN, []))) == "word0 word1 word2 word3 word4 "


def test_a_server_that_finds_the_end_of_the_turn_itself(serving):
    server, talker = serving(RealtimeServer(input_rate=16_000, server_vad=True))
    server.unconfirmed = True
    talker.hear(SAMPLES)
    assert_complete(list(talker.turn(SPOKEN, [])))
    assert_complete(list(talker.turn(SPOKEN, [])))
    assert "response.create" not in server.kinds() and "input_audio_buffer.commit" not in server.kinds()
    assert "complained" not in server.kinds()


def test_an_interruption_in_mid_reply(serving):
    """The server stops, and remembers what was heard; nothing of the old reply comes into the next turn."""
    server, talker = serving()
    server.hold_after, server.late_deltas = 3, 4
    turn = talker.turn(SPOKEN, [])
    until_sound(turn, 3)
    server.wait_for("holding")
    threading.Timer(0.05, talker.cancel, (0.3456,)).start()
    assert list(turn) == []
    (cut,) = server.wait_for("conversation.item.truncate")
    assert cut["audio_end_ms"] == 345 and cut["content_index"] == 0
    assert server.got("response.cancel")[0]["response_id"]
    server.hold_after = None
    events = list(talker.turn(SPOKEN, []))
    assert_complete(events)  # the late pieces were tones of the other sign
    assert server.visit.conversation()[1] == ("assistant", 345)
    assert "complained" not in server.kinds()
    assert server.got("reply over")[0]["finished"] is False


def test_a_cancelled_reply_that_is_never_confirmed(serving):
    server, talker = serving(settle_s=0.3)
    server.hold_after, server.silent_cancel, server.late_deltas = 1, True, 3
    turn = talker.turn(SPOKEN, [])
    until_sound(turn)
    talker.cancel(0.1)
    server.hold_after = None
    assert_complete(list(talker.turn(SPOKEN, [])))


def test_an_interruption_after_the_reply_has_arrived(serving):
    """Replies come faster than they are played."""
    server, talker = serving()
    assert_complete(list(talker.turn(SPOKEN, [])))
    talker.cancel(0.5)
    talker.cancel(0.7)  # the first one counts
    assert_complete(list(talker.turn(VisitorTurn(text="go on"), [])))
    assert [event["audio_end_ms"] for event in server.got("conversation.item.truncate")] == [500]
    assert server.visit.conversation()[1] == ("assistant", 500)
    talker.cancel(60.0)  # all of it was heard
    talker.cancel()
    list(talker.turn(VisitorTurn(text="and on"), []))
    assert len(server.got("conversation.item.truncate")) == 1 and not server.got("conversation.item.delete")
    assert "response.cancel" not in server.kinds()


def test_a_guess_leaves_no_trace(serving):
    server, talker = serving(speculative=True)
    assert talker.speculative and not RealtimeTalker(say.RealtimeConfig()).speculative
    server.hold_after = 2
    turn = talker.turn(VisitorTurn(SAMPLES[:12_000]), [])
    until_sound(turn)
    server.wait_for("holding")
    talker.cancel()
    assert list(turn) == []
    early = talker.turn(VisitorTurn(SAMPLES[:16_000]), [])
    talker.cancel()  # before the server has named anything
    assert list(early) == []
    server.hold_after = None
    finished = talker.turn(VisitorTurn(SAMPLES[:20_000]), [])
    assert_complete(list(finished))
    talker.cancel()  # a guess may be wrong although its reply is complete
    assert_complete(list(talker.turn(SPOKEN, [])))
    assert [role for role, _ in server.visit.conversation()] == ["user", "assistant"]
    assert server.visit.conversation()[0] == ("user", 1500)


def test_cancel_without_a_turn_does_nothing(serving):
    server, talker = serving()
    talker.cancel()
    talker.cancel(1.0)
    assert_complete(list(talker.turn(SPOKEN, [])))
    assert server.kinds().count("response.cancel") == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_a_stall(serving, frozen):
    server, talker = serving(stall_s=0.7)
    server.stall_after, server.frozen = 2, frozen
    error, events = failure(talker)
    assert "has sent nothing for 0.7 s" in str(error) and not error.lasting
    assert len(sound_of(events)) == 2 * DELTA_SAMPLES
    server.stall_after = None
    history = [Message("visitor", "before"), Message("avatar", "word0 word1"), Message("avatar", "")]
    assert_complete(list(talker.turn(SPOKEN, history)))  # on a new connection that is told what was
    assert server.visit.conversation()[:2] == [("user", "before"), ("assistant", "word0 word1")]
    assert len(server.visits) == 2


def test_a_cancel_does_not_wait_for_a_frozen_server(serving):
    server, talker = serving()
    server.stall_after, server.frozen = 1, True
    turn = talker.turn(SPOKEN, [])
    until_sound(turn)
    server.wait_for("stalled")
    talker.hear(np.zeros(480_000, np.float32))  # more than the network holds back
    threading.Timer(0.05, talker.cancel, (0.1,)).start()
    assert list(turn) == []
    talker.close()


def test_a_drop_before_the_reply_is_not_noticed(serving):
    server, talker = serving()
    server.drop_after, server.drops = 0, 1
    assert_complete(list(talker.turn(SPOKEN, [Message("visitor", "Hi"), Message("avatar", "Hello")])))
    assert server.visit.conversation()[:3] == [("user", "Hi"), ("assistant", "Hello"), ("user", 1500)]


def test_a_drop_in_mid_reply_goes_on(serving):
    """The new connection is told the conversation and what was said, and asked to go on."""
    server, talker = serving()
    server.drop_after, server.drops = 2, 1
    events = list(talker.turn(SPOKEN, [Message("visitor", "Hi")]))
    assert len(sound_of(events)) == (2 + 5) * DELTA_SAMPLES
    assert text_of(events) == "word0 word1 word0 word1 word2 word3 word4 "
    told = server.visit.conversation()
    assert told[:3] == [("user", "Hi"), ("user", 1500), ("assistant", "word0 word1 ")]
    assert told[3] == ("system", say.GO_ON)
    talker.cancel(0.5)  # 0.4 s of it came on the old connection
    assert server.wait_for("conversation.item.truncate")[0]["audio_end_ms"] == 100


def test_two_drops_in_one_turn(serving):
    server, talker = serving()
    server.drop_after, server.drops = 1, 2
    error, events = failure(talker)
    assert "broke twice" in str(error) and not error.lasting
    assert len(sound_of(events)) == 2 * DELTA_SAMPLES
    assert_complete(list(talker.turn(SPOKEN, [])))


def test_a_drop_between_turns(serving):
    server, talker = serving()
    list(talker.turn(SPOKEN, []))
    talker.hear(SAMPLES[:8000])
    server.cut_all()
    events = list(talker.turn(SPOKEN, [Message("visitor", "one"), Message("avatar", "two")]))
    assert_complete(events)
    assert heard_in(events) == ["1500 milliseconds"]
    assert server.visit.conversation()[:2] == [("user", "one"), ("assistant", "two")]


def test_a_new_persona_keeps_the_conversation(serving):
    server, talker = serving()
    list(talker.turn(SPOKEN, []))
    talker.start(Persona("Be kind."))
    assert len(server.visits) == 1
    talker.start(Persona("Be a pirate.", "bob"))
    list(talker.turn(SPOKEN, [Message("visitor", "one"), Message("avatar", "two")]))
    assert server.visit.session["instructions"] == "Be a pirate."
    assert server.visit.session["audio"]["output"]["voice"] == "bob"
    assert server.visit.conversation()[:2] == [("user", "one"), ("assistant", "two")]


@pytest.mark.parametrize(
    ("code", "lasting", "said"),
    [("server_error", False, "made up failure"), ("insufficient_quota", True, "Check the key and the account")],
)
def test_a_reply_that_fails(serving, code, lasting, said):
    server, talker = serving()
    server.fail_with = code
    error, _ = failure(talker)
    assert said in str(error) and error.lasting is lasting
    server.fail_with = ""
    assert_complete(list(talker.turn(SPOKEN, [])))


@pytest.mark.parametrize("on", ["input_audio_buffer.commit", "response.create"])
def test_an_error_event(serving, on):
    server, talker = serving()
    server.error_on = on
    error, _ = failure(talker)
    assert "reported an error: made up" in str(error) and not error.lasting
    server.error_on = ""
    assert_complete(list(talker.turn(SPOKEN, [])))


def test_errors_about_what_was_withdrawn_do_no_harm(serving):
    """Some servers know no truncation; the next turn is not to blame."""
    server, talker = serving()
    server.error_on = "conversation.item.truncate"
    list(talker.turn(SPOKEN, []))
    talker.cancel(0.2)
    assert_complete(list(talker.turn(SPOKEN, [])))
    assert len(server.visits) == 1


def test_refused_at_the_door(serving):
    server, talker = serving(begin=False, key="wrong")
    server.key = "right"
    with pytest.raises(TalkerError, match=r"refused the key \(401\)") as caught:
        talker.start(Persona())
    assert caught.value.lasting
    assert "wrong" not in str(caught.value) and "wrong" not in repr(talker.config)
    _, talker = serving(server, key="right")
    assert_complete(list(talker.turn(SPOKEN, [])))


def test_refused_by_the_session(serving):
    server, talker = serving(begin=False)
    server.error_on = "session.update"
    with pytest.raises(TalkerError, match="made up"):
        talker.start(Persona())
    server.close_with = (3000, "invalid_api_key")
    with pytest.raises(TalkerError, match="closed the connection: invalid_api_key") as caught:
        talker.start(Persona())
    assert caught.value.lasting
    server.error_on, server.close_with = "", None
    talker.start(Persona())
    assert_complete(list(talker.turn(SPOKEN, [])))


def test_a_server_that_does_not_greet(serving):
    server, talker = serving(begin=False, open_s=0.5)
    server.silent_greeting = True
    with pytest.raises(TalkerError, match="does not greet"):
        talker.start(Persona())


def test_the_wrong_spelling_is_said_at_once(serving):
    _, talker = serving(begin=False, nested=False)
    with pytest.raises(TalkerError, match="unknown"):
        talker.start(Persona())


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url, said in (
        (f"ws://127.0.0.1:{port}/v1", "nobody answers there"),
        ("ws://no-such-host.invalid/v1", "address was not found"),
        ("http://127.0.0.1/v1", "no address of a realtime server"),
        ("", "LIVETALK_REALTIME_URL"),
    ):
        with pytest.raises(TalkerError, match=said) as caught:
            RealtimeTalker(say.RealtimeConfig(url=url)).start(Persona())
        assert caught.value.lasting


def test_the_server_dies_for_good(serving):
    """Mid-reply; there is nothing to come back to."""
    server, talker = serving()
    server.hold_after = 1
    turn = talker.turn(SPOKEN, [])
    until_sound(turn)
    server.__exit__()
    with pytest.raises(TalkerError, match="nobody answers there") as caught:
        list(turn)
    assert caught.value.lasting


def test_closing_ends_a_waiting_turn(serving):
    server, talker = serving()
    server.hold_after = 1
    turn = talker.turn(SPOKEN, [])
    until_sound(turn)
    threading.Timer(0.05, talker.close).start()
    assert list(turn) == []
    talker.close()
    with pytest.raises(TalkerError, match="not been started"):
        talker.turn(SPOKEN, [])


def test_missing_says_what_to_set(monkeypatch):
    monkeypatch.delenv("LIVETALK_REALTIME_URL", raising=False)
    assert "LIVETALK_REALTIME_URL" in missing()
    monkeypatch.setenv("LIVETALK_REALTIME_URL", "ws://127.0.0.1:1")
    monkeypatch.setenv("LIVETALK_REALTIME_NESTED", "no")
    assert missing() is None
    assert RealtimeTalker().config == say.RealtimeConfig(url="ws://127.0.0.1:1", nested=False)


def test_cutting_a_reply_of_several_items():
    items = {"a": 24_000, "b": 24_000, "c": 24_000}
    assert say.cut_to(items, 9.0, 24_000) == []
    assert say.cut_to(items, 1.5, 24_000) == [say.truncate("b", 0.5), say.delete("c")]
    assert say.cut_to(items, 0.0, 24_000) == [say.truncate("a", 0.0), say.delete("b"), say.delete("c")]
