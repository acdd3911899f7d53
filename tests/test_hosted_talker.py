"""The hosted talker against a real HTTP server on this machine: words, order, interruptions and failures."""

from __future__ import annotations

import dataclasses
import socket
import threading

import numpy as np
import pytest
from hosted_server import DRIP, DROP_INSIDE, LETTER_SAMPLES, NOTHING, STALL, STALL_INSIDE, HostedServer, level
from huggingface_hub.hf_api import InferenceProviderMapping
from huggingface_hub.inference._providers import PROVIDERS
from huggingface_hub.inference._providers._common import HARDCODED_MODEL_INFERENCE_MAPPING

from livetalk.stream.talkers.hosted import OWN_INSTRUCTIONS, HostedTalker, missing
from livetalk.stream.talkers.hosted_services import HostedConfig
from livetalk.stream.talkers.protocol import (
    LONGEST_PIECE_S,
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    VisitorTurn,
)
from livetalk.stream.talkers.settings import from_environment
from livetalk.types import LiveTalkError, TextDelta

SPOKEN = VisitorTurn(np.sin(np.arange(24_000) / 20).astype(np.float32) / 2)
CLAUSES = ["The capital of France is ", "Paris. ", "It has two million people. "]


@pytest.fixture
def server():
    with HostedServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_stored_token(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def make(server):
    talkers = []

    def talker(token=None, speak=None, persona=None, **settings) -> HostedTalker:
        config = HostedConfig(base_url=f"{server.address}/v1", **settings)
        talkers.append(HostedTalker(token, config, speak))
        talkers[-1].start(persona or Persona())
        return talkers[-1]

    yield talker
    for made in talkers:
        made.close()


def events_of(talker, turn=SPOKEN, history=()) -> list:
    return list(talker.turn(turn, history))


def pieces_of(events) -> list[SpeechPiece]:
    return [event for event in events if isinstance(event, SpeechPiece)]


def failure(talker, turn=SPOKEN) -> tuple[TalkerError, list]:
    events = []
    with pytest.raises(TalkerError) as caught:
        for event in talker.turn(turn, []):
            events.append(event)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    return caught.value, events


def assert_spoken(events, clauses, scale=1.0) -> None:
    """Every clause's own tone, in order and in full length, and all words once."""
    pieces = pieces_of(events)
    assert "".join(piece.text for piece in pieces) == "".join(clauses)
    assert all(len(piece.samples) <= LONGEST_PIECE_S * piece.sample_rate for piece in pieces)
    assert {piece.sample_rate for piece in pieces} == {24_000}
    sound = np.concatenate([piece.samples for piece in pieces])
    wanted = np.concatenate([np.full(LETTER_SAMPLES * len(c.strip()), level(c.strip())) for c in clauses])
    assert len(sound) == len(wanted)
    np.testing.assert_allclose(sound, wanted * scale, atol=1e-3)


def test_a_spoken_turn_is_answered(server, make):
    talker = make()
    events = events_of(talker, history=[Message("visitor", "Hello"), Message("avatar", "Hi."), Message("avatar", "")])
    assert events[0] == Heard("what is the capital of France")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(CLAUSES)
    assert_spoken(events, CLAUSES)
    assert server.details("asr")[0]["heard"] == (16_000, 24_000)
    assert server.details("chat")[0]["messages"] == [
        {"role": "system", "content": OWN_INSTRUCTIONS},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "what is the capital of France"},
    ]


def test_a_typed_turn_needs_no_ears(server, make):
    talker = make(persona=Persona("You are a pirate.", "anna"))
    events = events_of(talker, VisitorTurn(text=" Which city? "))
    assert events[0] == Heard("Which city?")
    assert_spoken(events, CLAUSES)
    assert not server.details("asr")
    assert server.details("chat")[0]["messages"][0]["content"] == "You are a pirate."
    assert {body["voice"] for body in server.details("tts")} == {"anna"}


@pytest.mark.parametrize("words", ["", " ", " ... "])
def test_no_words_no_reply(server, make, words):
    server.words = words
    assert events_of(make()) == [Heard("")]
    assert not server.details("chat")


def test_a_slow_first_clause_is_still_played_first(server, make):
    """The first sound is held back until the second one is there: the order of playing is that of the text."""
    gate = server.wait_before_speaking["The capital of France is"] = threading.Event()
    turn = make().turn(SPOKEN, [])
    assert next(turn) == Heard("what is the capital of France")
    server.wait_for("spoken")
    assert server.details("spoken") == ["Paris."]
    server.wait_for("spoken", 2)  # its place is taken by the third, not more
    gate.set()
    assert_spoken(list(turn), CLAUSES)
    assert server.most_speaking == 2


def test_a_file_instead_of_pcm_is_understood(server, make):
    server.wav_only = True
    assert_spoken(events_of(make()), CLAUSES)


@pytest.mark.parametrize(
    ("service", "status", "lasting", "said"),
    [
        ("asr", 401, True, "refused the token (401"),
        ("chat", 403, True, "refused the token (403"),
        ("chat", 402, True, "credits are used up"),
        ("asr", 429, False, "too many requests"),
        ("tts", 429, False, "too many requests"),
        ("chat", 503, False, "not available at the moment (503)"),
        ("tts", 503, False, "not available at the moment (503)"),
        ("chat", 404, True, "refused the request (404"),
    ],
)
def test_a_refusal_is_one_sentence(server, make, service, status, lasting, said):
    talker = make()
    server.faults[service] = status
    error, _ = failure(talker)
    assert said in str(error) and error.lasting is lasting
    server.faults.clear()
    assert_spoken(events_of(talker), CLAUSES)  # and the conversation goes on


def test_a_wrong_key_is_found_out_at_once(server, make):
    server.key = "right"
    with pytest.raises(TalkerError, match="refused the token") as caught:
        make(api_key="wrong")
    assert caught.value.lasting
    assert_spoken(events_of(make(api_key="right")), CLAUSES)


@pytest.mark.parametrize("service", ["asr", "chat", "tts"])
def test_a_stall_before_the_first_byte(server, make, service):
    talker = make(answer_s=0.5)
    server.faults[service] = STALL
    error, _ = failure(talker)
    assert "too long" in str(error) and not error.lasting


def test_a_server_that_only_drips_comments_runs_into_the_deadline(server, make):
    talker = make(answer_s=0.5)
    server.faults["chat"] = DRIP
    assert "too long" in str(failure(talker)[0])


@pytest.mark.parametrize("service", ["chat", "tts"])
def test_a_stall_in_mid_stream(server, make, service):
    """What was said until then has been handed out."""
    talker = make(stall_s=0.7)
    server.faults[service] = STALL_INSIDE
    error, events = failure(talker)
    assert "too long" in str(error) and not error.lasting
    assert "The " in "".join(event.text for event in events[1:])


def test_a_drop_in_mid_stream(server, make):
    talker = make()
    server.faults["chat"] = DROP_INSIDE
    error, events = failure(talker)
    assert "broke off" in str(error) and not error.lasting
    assert events[0] == Heard("what is the capital of France")


def test_a_whole_reply_has_a_deadline(server, make):
    talker = make(reply_s=0.5)
    server.faults["tts"] = STALL
    assert "longer than 0.5 s" in str(failure(talker)[0])


def test_a_mind_without_words_is_a_failure(server, make):
    server.reply = ["<think>nothing to say</think>", "🙂"]
    error, _ = failure(make())
    assert "no words" in str(error) and not error.lasting


def test_a_voice_without_sound_is_a_failure(server, make):
    talker = make()
    server.faults["tts"] = NOTHING
    assert "sent no sound" in str(failure(talker)[0])
    with_spare = make(speak=own_voice)
    assert "".join(piece.text for piece in pieces_of(events_of(with_spare))) == "".join(CLAUSES)


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused = HostedTalker(config=HostedConfig(base_url=f"http://127.0.0.1:{port}/v1"))
    with pytest.raises(TalkerError, match="nobody answers there") as caught:
        refused.start(Persona())
    assert caught.value.lasting
    nowhere = HostedTalker(config=HostedConfig(base_url="http://no-such-host.invalid/v1"))
    with pytest.raises(TalkerError, match="address was not found") as caught:
        nowhere.start(Persona())
    assert caught.value.lasting


def test_no_token_no_talker(monkeypatch):
    talker = HostedTalker(config=HostedConfig())
    with pytest.raises(TalkerError, match="needs a Hugging Face token") as caught:
        talker.start(Persona())
    assert caught.value.lasting
    assert "HF_TOKEN" in missing(config=HostedConfig())
    assert missing("hf_visitor", HostedConfig()) is None
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    assert missing(config=HostedConfig()) is None


def test_tokens_for_the_hub_stay_away_from_other_servers(server, make, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    server.key = "none"  # what is sent instead of a token; anything else would be refused
    assert_spoken(events_of(make(token="hf_visitor")), CLAUSES)
    assert "hf_" not in repr(make(token="hf_visitor").config)


def test_cancel_ends_the_turn_and_the_requests(server, make):
    """From another thread, while the turn waits for the network; the server sees its connections go."""
    talker = make()
    server.faults["chat"] = STALL_INSIDE
    turn = talker.turn(SPOKEN, [])
    assert next(turn) == Heard("what is the capital of France")
    server.wait_for("stalled")
    threading.Timer(0.05, talker.cancel, (0.3,)).start()
    list(turn)
    assert list(turn) == []
    server.wait_for("chat over")
    server.faults.clear()
    assert_spoken(events_of(talker), CLAUSES)


def test_a_cancelled_turn_hands_out_nothing_more(make):
    talker = make()
    turn = talker.turn(SPOKEN, [])
    for event in turn:
        if isinstance(event, SpeechPiece):
            break
    talker.cancel(0.1)
    assert list(turn) == []
    guess = talker.turn(SPOKEN, [])
    talker.cancel()  # before anybody listened
    assert list(guess) == []
    talker.cancel()  # without a turn: nothing happens
    assert_spoken(events_of(talker), CLAUSES)


def test_closing_ends_a_waiting_turn(server, make):
    talker = make()
    server.faults["asr"] = STALL
    turn = talker.turn(SPOKEN, [])
    server.wait_for("stalled")
    threading.Timer(0.05, talker.close).start()
    assert list(turn) == []
    talker.close()


def own_voice(clause: str):
    count = 8000 * len(clause) // 20
    half = count // 2
    yield SpeechPiece(np.full(half, 0.25, np.float32), 16_000, clause[: len(clause) // 2])
    yield SpeechPiece(np.full(count - half, 0.25, np.float32), 16_000, clause[len(clause) // 2 :])


@pytest.mark.parametrize(("fault", "tried"), [(404, 2), (503, 3)])
def test_the_voice_of_last_resort(server, make, fault, tried):
    """Takes over clause by clause; a voice that can never speak is not asked again in the conversation."""
    server.faults["tts"] = fault
    talker = make(speak=own_voice)
    pieces = pieces_of(events_of(talker))
    assert "".join(piece.text for piece in pieces) == "".join(CLAUSES)
    assert {piece.sample_rate for piece in pieces} == {24_000}
    assert all(0 < len(piece.samples) <= 12_000 for piece in pieces)
    assert len(np.concatenate([piece.samples for piece in pieces])) == pytest.approx(600 * len("".join(CLAUSES)), abs=9)
    assert len(server.details("tts")) <= tried
    before = len(server.details("tts"))
    events_of(talker)
    assert (len(server.details("tts")) > before) is (fault == 503)


def test_without_any_voice_it_does_not_start(make):
    with pytest.raises(TalkerError, match="has no voice"):
        make(voice_model="")
    assert pieces_of(events_of(make(voice_model="", speak=own_voice)))


def test_settings_come_from_the_environment():
    given = {"LIVETALK_HOSTED_CHAT_MODEL": "a/b", "LIVETALK_HOSTED_STALL_S": "3", "LIVETALK_HOSTED_SPECULATIVE": "no"}
    config = from_environment(HostedConfig, "LIVETALK_HOSTED_", {**given, "OTHER": "x"})
    assert (config.chat_model, config.stall_s, config.speculative) == ("a/b", 3.0, False)
    assert (
        dataclasses.replace(config, chat_model=HostedConfig.chat_model, stall_s=8.0, speculative=True) == HostedConfig()
    )
    for name, value in (("MODEL", "x"), ("STALL_S", "soon"), ("SPECULATIVE", "maybe")):
        with pytest.raises(LiveTalkError, match=f"LIVETALK_HOSTED_{name}"):
            from_environment(HostedConfig, "LIVETALK_HOSTED_", {f"LIVETALK_HOSTED_{name}": value})


# --- the Hub's own client and a provider's own dialect ---------------------------------------------


@pytest.fixture
def at_provider(server, monkeypatch):
    """DeepInfra's part of the Hub's client, with the local server in its place; a provider's key needs no router."""
    tasks = {"automatic-speech-recognition": "e/ars", "conversational": "m/ind", "text-to-speech": "v/oice"}
    for task, model in tasks.items():
        mapping = InferenceProviderMapping(
            provider="deepinfra", hf_model_id=model, providerId=f"their-{model}", status="live", task=task
        )
        monkeypatch.setitem(HARDCODED_MODEL_INFERENCE_MAPPING["deepinfra"], model, mapping)
        monkeypatch.setattr(PROVIDERS["deepinfra"][task], "base_url", server.address)
    server.key = "visitors-key"
    config = HostedConfig("e/ars", "m/ind", "v/oice", provider="deepinfra", answer_s=5.0, stall_s=1.0, voice="af_heart")
    talker = HostedTalker("visitors-key", config)
    talker.start(Persona())
    yield talker
    talker.close()


def test_a_turn_through_the_hubs_client(server, at_provider):
    events = events_of(at_provider)
    assert events[0] == Heard("what is the capital of France")
    assert_spoken(events, CLAUSES, scale=32767 / 32768)
    assert server.details("asr")[0] == {"model": "their-e/ars", "file": "audio.wav", "heard": (16_000, 24_000)}
    assert server.details("chat")[0]["model"] == "their-m/ind"
    assert {(body["model"], body["voice"]) for body in server.details("tts")} == {("their-v/oice", "af_heart")}


@pytest.mark.parametrize(
    ("service", "fault", "lasting", "said"),
    [
        ("asr", 401, True, "refused the token"),
        ("chat", 402, True, "credits are used up"),
        ("tts", 402, True, "credits are used up"),
        ("chat", 429, False, "too many requests"),
        ("chat", 503, False, "not available"),
        ("chat", STALL_INSIDE, False, "too long"),
        ("chat", DROP_INSIDE, False, "broke off"),
    ],
)
def test_failures_through_the_hubs_client(server, at_provider, service, fault, lasting, said):
    server.faults[service] = fault
    error, _ = failure(at_provider)
    assert said in str(error) and error.lasting is lasting


def test_a_model_that_nobody_serves(at_provider):
    talker = HostedTalker("visitors-key", dataclasses.replace(at_provider.config, provider="no-such-provider"))
    talker.start(Persona())
    error, _ = failure(talker, VisitorTurn(text="Hello"))
    assert "cannot be used" in str(error) and error.lasting
    talker.close()
