"""Conversations over the network: a live one and one of files, with gradio_client against a real server."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import av
import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import livetalk
from livetalk.__main__ import main
from livetalk.media.sound import write_speech
from livetalk.stream import talk
from livetalk.stream.avatar import Avatar
from livetalk.stream.chat import Chat
from livetalk.stream.talkers import registry
from livetalk.stream.talkers.protocol import Heard, Persona, TalkerError, VisitorTurn
from livetalk.types import LiveTalkError, TextDelta
from livetalk.ui.api import NewWords, Outbox, add_api
from livetalk.ui.chats import Chats
from livetalk.ui.live import LiveSessions, Talk
from livetalk.voice import default_voice, speak
from tests.live import babble, tiny_models
from tests.test_conversation import Scripted, words
from tests.test_live_sessions import PATIENCE_S, eventually, new_sid

ROOT = Path(__file__).parents[1]


def parrot() -> Scripted:
    """Says how many messages it remembers and what was said last."""

    def answer(turn, history):
        heard = turn.text or f"{len(turn.samples)} samples"
        return [Heard(heard), *words([*str(len(history)).split(), *heard.split()])]

    return Scripted(answer)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The API alone around a tiny avatar with two places; its sessions, its address, its files."""
    sessions, outbox = LiveSessions(Avatar(tiny_models()), 2, 600.0, talkers=lambda name, _: [named(name)]), Outbox()
    with gr.Blocks(analytics_enabled=False) as page:
        add_api(sessions, outbox)
    page.queue(default_concurrency_limit=1, max_size=16)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", _frontend=False)
    yield sessions, url, outbox
    page.close()


def named(name: str | None) -> Scripted:
    if name == "nobody":
        raise LiveTalkError("There is no talker 'nobody'. Known talkers: auto, offline.")
    return parrot()


@pytest.fixture
def client(served):
    return Client(served[1], verbose=False)


@pytest.fixture(scope="module")
def face(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("face") / "face.png"
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(path)
    return str(path)


def streams(path: str) -> tuple[float, float]:
    """Seconds of pictures and of sound of an mp4."""
    with av.open(path) as clip:
        video, sound = clip.streams.video[0], clip.streams.audio[0]
        sound_s = float(sound.duration * sound.time_base)
        return sum(1 for _ in clip.decode(video)) / 16, sound_s


class LiveCall:
    """A live session of a client, its pieces collected in a thread."""

    def __init__(self, client: Client, face: str, mode: str = "conversation", **options) -> None:
        self.client, self.sid = client, new_sid()
        self.pieces: list[dict] = []
        self.error: BaseException | None = None
        self.job = client.submit(self.sid, handle_file(face), mode=mode, api_name="/session", **options)
        self.thread = threading.Thread(target=self._collect, daemon=True)
        self.thread.start()

    def _collect(self) -> None:
        for piece in self.job:
            self.pieces.append(piece)
        self.error = self.job.exception()

    @property
    def states(self) -> list[str]:
        return [piece["state"] for piece in list(self.pieces)]

    @property
    def text(self) -> str:
        return "".join(piece["text"] for piece in list(self.pieces) if piece["state"] != "waiting")

    def stop(self) -> None:
        self.client.predict(self.sid, api_name="/stop")
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def test_the_endpoints_say_what_they_take(client) -> None:
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    named = {name: [p["parameter_name"] for p in one["parameters"]] for name, one in endpoints.items()}
    assert named == {
        "/render": ["portrait", "speech", "prompt", "seed"],
        "/session": ["sid", "portrait", "prompt", "seed", "mode", "talker", "voice", "instructions"],
        "/push_audio": ["sid", "pcm16_base64", "rate"],
        "/say": ["sid", "text"],
        "/stop": ["sid"],
        "/chat": ["portrait", "speech", "text", "sid", "prompt", "voice", "seed", "talker"],
    }
    optional = [p["parameter_name"] for p in endpoints["/chat"]["parameters"] if p["parameter_has_default"]]
    assert optional == named["/chat"][1:]
    assert all(one["description"] for one in endpoints.values())


def test_a_live_conversation_is_answered_and_written_down(client, face) -> None:
    call = LiveCall(client, face)
    eventually(lambda: "listening" in call.states, "it listens")
    packet = base64.b64encode(np.zeros(3200, "<i2").tobytes()).decode()
    assert client.predict(call.sid, packet, 16_000, api_name="/push_audio")["accepted_samples"] == 3200
    client.predict(call.sid, "good morning", api_name="/say")
    eventually(lambda: "speaking" in call.states, "it speaks")
    eventually(
        lambda: any(line["role"] == "avatar" and line["is_final"] for p in call.pieces for line in p["lines"]), ""
    )
    call.stop()
    assert call.error is None
    assert call.text == "You: good morning\nLiveTalk: 0 good morning"
    final = {line["number"]: line for piece in call.pieces for line in piece["lines"]}
    assert [final[number]["text"] for number in sorted(final)] == ["good morning", "0 good morning"]
    assert [piece["index"] for piece in call.pieces] == list(range(len(call.pieces)))
    pictures_s, sound_s = streams(call.pieces[0]["video"])
    assert pictures_s == pytest.approx(call.pieces[0]["duration_s"])
    assert sound_s == pytest.approx(pictures_s, abs=1 / 16)


def test_two_clients_converse_and_the_third_sees_its_place(served, face) -> None:
    sessions, url, _ = served
    calls = [LiveCall(Client(url, verbose=False), face) for _ in range(2)]
    for call in calls:
        eventually(lambda call=call: call.pieces, "it is on")
    third = LiveCall(Client(url, verbose=False), face)
    eventually(lambda: "waiting" in third.states, "the third waits")
    assert third.pieces[0]["text"] == "Place 1 in line."
    assert third.pieces[0]["video"] is None
    for number, call in enumerate(calls):
        call.client.predict(call.sid, f"visitor {number}", api_name="/say")
    for number, call in enumerate(calls):
        eventually(lambda call=call, number=number: f"LiveTalk: 0 visitor {number}" in call.text, "its own answer")
    calls[0].stop()
    eventually(lambda: "listening" in third.states, "it gets in")
    assert len(sessions) == 2
    third.stop()
    calls[1].stop()
    eventually(lambda: len(sessions) == 0, "everybody has gone")


def test_stop_answers_when_the_session_is_over_and_leaves_nothing_open(served, face) -> None:
    sessions, url, _ = served
    call = LiveCall(Client(url, verbose=False), face, mode="mirror")
    eventually(lambda: call.pieces, "it is on")
    call.client.predict(call.sid, api_name="/stop")
    assert len(sessions) == 0
    call.thread.join(PATIENCE_S)
    eventually(lambda: not call.client.stream_open, "an open stream of events would keep the client's process alive")


def test_a_client_that_dies_frees_its_place(served, face) -> None:
    sessions, url, _ = served
    script = (
        "import sys, uuid; from gradio_client import Client, handle_file\n"
        "client = Client(sys.argv[1], verbose=False)\n"
        "job = client.submit(uuid.uuid4().hex, handle_file(sys.argv[2]), mode='conversation', api_name='/session')\n"
        "for piece in job: print(piece['index'], flush=True)"
    )
    visitor = subprocess.Popen([sys.executable, "-c", script, url, face], stdout=subprocess.PIPE, text=True)
    try:
        assert visitor.stdout.readline().strip() == "0"
        assert len(sessions) == 1
    finally:
        visitor.kill()
        visitor.wait()
    killed = time.monotonic()
    eventually(lambda: len(sessions) == 0, "its place is free")
    sys.stdout.write(f"free after {time.monotonic() - killed:.2f} s\n")


def test_a_chat_of_files_remembers(client, face, tmp_path) -> None:
    sid, speech = new_sid(), tmp_path / "question.wav"
    write_speech(speech, babble(1.0, 16_000), 16_000)
    first = client.predict(handle_file(face), text="  good   morning ", sid=sid, api_name="/chat")
    assert (first["heard"], first["reply"]) == ("good morning", "0 good morning")
    pictures_s, sound_s = streams(first["video"])
    assert pictures_s == pytest.approx(first["seconds"], abs=1 / 16)
    assert sound_s == pytest.approx(pictures_s, abs=1 / 16)
    second = client.predict(handle_file(face), handle_file(speech), sid=sid, api_name="/chat")
    assert second["reply"].startswith("2 16")
    assert second["transcript"].count("\n") == 4
    assert second["transcript"].startswith("[00:00] You: good morning\n[00:00] LiveTalk: 0 good morning\n[00:01] You:")
    stranger = client.predict(handle_file(face), text="hello", sid=new_sid(), api_name="/chat")
    assert stranger["reply"] == "0 hello"
    for _ in range(2):
        assert client.predict(handle_file(face), text="hi", api_name="/chat")["reply"] == "0 hi"
    assert (first["talker"], first["notice"]) == ("Scripted", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to answer"),
        ({"text": "x" * 3000}, "2,000"),
        ({"text": "hello", "sid": "me"}, "hard to guess"),
        ({"text": "hello", "talker": "nobody"}, "Known talkers"),
        ({"text": "hello", "voice": "x" * 500}, "voice is not usable"),
        ({"text": "hello", "speech": "SPEECH"}, "one of them"),
        ({"speech": "FACE"}, "could not be read"),
        ({"speech": "LONG"}, "limit of 30 seconds"),
        ({"text": "hello", "seed": -1}, "whole number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_get_a_sentence(client, face, tmp_path, options, said) -> None:
    write_speech(tmp_path / "short.wav", babble(0.5, 8_000), 8_000)
    write_speech(tmp_path / "long.wav", np.zeros(8_000 * 31, np.float32), 8_000)
    files = {"SPEECH": tmp_path / "short.wav", "FACE": face, "LONG": tmp_path / "long.wav"}
    given = {name: handle_file(files[value]) if value in files else value for name, value in options.items()}
    with pytest.raises(Exception, match=said):
        client.predict(handle_file(face), **given, api_name="/chat")


def test_live_mistakes_get_a_sentence(client, face) -> None:
    mirror = LiveCall(client, face, mode="mirror")
    eventually(lambda: mirror.pieces, "it is on")
    with pytest.raises(Exception, match="does not converse"):
        client.predict(mirror.sid, "hello", api_name="/say")
    mirror.stop()
    nobody = LiveCall(client, face, talker="nobody")
    nobody.thread.join(PATIENCE_S)
    assert "Known talkers" in str(nobody.error)


def test_the_example_holds_a_spoken_conversation(served, face, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(talk, "GONE_MICROPHONE_S", PATIENCE_S)  # a busy machine may be late with packets
    paths = [tmp_path / "q1.wav", tmp_path / "q2.wav"]
    for path in paths:
        spoken = speak("How are you today?", default_voice())
        write_speech(path, spoken.samples, spoken.sample_rate)
    command = [
        sys.executable,
        "examples/chat.py",
        "--url",
        served[1],
        "--portrait",
        face,
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, "--speech", *map(str, paths)], cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S
    )
    assert done.returncode == 0, done.stderr[-2000:]
    remembered = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("LiveTalk: ")]
    assert len(remembered) >= 2, done.stdout
    assert remembered == sorted(remembered), "one conversation"
    assert remembered[0] == 0 < remembered[-1]
    pieces = sorted((tmp_path / "out").glob("*.mp4"))
    assert pieces
    assert streams(str(pieces[0]))[0] > 0


def test_nothing_of_ours_stays(served, client, face) -> None:
    sessions, _, outbox = served
    call = LiveCall(client, face)
    eventually(lambda: call.pieces, "it is on")
    client.predict(call.sid, "good morning", api_name="/say")
    eventually(lambda: "LiveTalk:" in call.text, "an answer")
    call.stop()
    eventually(lambda: len(sessions) == 0, "it has ended")
    assert not [path for path in outbox.files() if path.name.startswith("piece")]
    with pytest.raises(LiveTalkError, match="Nothing was kept"):
        sessions.transcript(call.sid)


def test_files_leave_the_outbox_by_themselves() -> None:
    outbox = Outbox(kept_s=0.2)
    paths = [outbox.path("a.mp4"), outbox.path("b.mp4")]
    paths[0].write_bytes(b"x")
    eventually(lambda: not paths[0].parent.exists(), "deleted although nobody asks")
    paths[1].write_bytes(b"y")
    assert outbox.files() == [paths[1]], "what takes long to make still has its folder"
    outbox.path("c.mp4")
    eventually(lambda: outbox.files() == [], "deleted in its turn")


def test_a_chat_falls_back_and_forgets_failures() -> None:
    broken = Scripted(lambda *_: [Heard("hello"), TalkerError("No credits are left.")])
    other = Scripted(lambda *_: [TextDelta("Hello "), TextDelta("there."), *words(["a", "b"], with_text=False)[1:]])
    other.title = "The other one"
    chat = Chat([broken, other], Persona())
    answer = chat.ask(VisitorTurn(text="hi"))
    assert (answer.heard, answer.text) == ("hi", "Hello there.")
    assert answer.duration_s == pytest.approx(0.8, abs=0.01)
    assert chat.notice == "No credits are left. The other one answers instead."
    assert broken.closed
    other.answer = lambda *_: [Heard("")]
    with pytest.raises(LiveTalkError, match="No words were heard"):
        chat.ask(VisitorTurn(np.zeros(16_000, np.float32)))
    other.answer = lambda *_: [Heard("x"), ValueError("secret detail")]
    with pytest.raises(LiveTalkError, match=r"broke down \(ValueError\)"):
        chat.ask(VisitorTurn(text="hi"))
    assert [message.text for message in chat.transcript.messages()] == ["hi", "Hello there."]
    chat.change_persona(Persona("", "alba"))
    other.answer = lambda *_: words(["fine"])
    chat.ask(VisitorTurn(text="and now"))
    assert other.started == [Persona(), Persona("", "alba")]
    chat.close()
    assert other.closed


def test_chats_are_bounded_and_forgotten() -> None:
    made: list[Scripted] = []
    chats = Chats(lambda *_: [made.append(parrot()) or made[-1]], limit=2, kept_s=0.3)
    names = [uuid.uuid4().hex for _ in range(3)]
    for name in names:
        with chats.opened(name, Talk()) as chat:
            chat.ask(VisitorTurn(text="hello"))
    assert (len(chats), made[0].closed) == (2, True)
    with chats.opened(names[2], Talk()) as chat:
        assert len(chat.transcript.lines) == 2
        with pytest.raises(LiveTalkError, match="still being answered"), chats.opened(names[2], Talk()):
            pass
    with chats.opened(names[2], Talk("another")) as chat:
        assert len(chat.transcript.lines) == 0, "another talker, another conversation"
    eventually(lambda: len(chats) == 0 and all(one.closed for one in made), "forgotten although nobody asks")
    with chats.opened("", Talk()) as chat:
        chat.ask(VisitorTurn(text="hello"))
    assert made[-1].closed


def test_the_command_line_holds_a_conversation(tmp_path, face, monkeypatch, capsys) -> None:
    monkeypatch.setattr(livetalk, "load", lambda *_, **__: Avatar(tiny_models()))
    monkeypatch.setattr(registry, "talker_chain", lambda name: [named(name)])
    speech, out = tmp_path / "q1.wav", tmp_path / "reply.mp4"
    write_speech(speech, babble(1.0, 16_000), 16_000)
    turns = ["--speech", str(speech), "--text", "how are you", "--speech", str(speech)]
    assert main(["chat", "--portrait", face, "--out", str(out), *turns]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    assert said == [
        *("You: 16000 samples", "LiveTalk: 0 16000 samples"),
        *("You: how are you", "LiveTalk: 2 how are you"),
        *("You: 16000 samples", "LiveTalk: 4 16000 samples"),
    ]
    facts = json.loads(last)
    assert facts == {"out": str(out), "turns": 3, "seconds": 7.0, "talker": "Scripted", "notice": None}
    assert streams(str(out))[0] == pytest.approx(7.0)
    for wrong, words_said in (
        ([], "Nobody asks anything"),
        (["--text", "  "], "nothing to answer"),
        (["--text", "hi", "--talker", "nobody"], "Known talkers"),
        (["--speech", "no.wav"], "no such file"),
        (["--text", "hi", "--portrait", str(speech)], "q1.wav"),
    ):
        assert main(["chat", "--portrait", face, "--out", str(out), *wrong]) == 2
        assert words_said in capsys.readouterr().err


def test_words_are_told_once() -> None:
    news = NewWords()

    def line(number: int, role: str, text: str) -> dict:
        return {"number": number, "role": role, "text": text}

    told = news.tell([line(0, "visitor", "")])
    told += news.tell([line(0, "visitor", "what is"), line(1, "avatar", "It is")])
    told += news.tell([line(1, "avatar", "It is a live")])
    told += news.tell([line(0, "visitor", "what was"), line(1, "avatar", "It is")])
    told += news.tell([line(2, "visitor", "stop")])
    assert told == "You: what is\nLiveTalk: It is a live\nYou: what was\nYou: stop"
