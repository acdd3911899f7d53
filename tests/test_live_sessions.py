"""Visitors on one machine: places, the line, own answers for each, changes in mid-conversation, and nothing kept."""

from __future__ import annotations

import base64
import dataclasses
import tempfile
import threading
import time
import uuid
from collections.abc import Callable

import numpy as np
import pytest

from livetalk.engine import Engine
from livetalk.stream.avatar import Avatar
from livetalk.stream.capacity import PLACES_VARIABLE, Carried, measured_factor, measured_gain
from livetalk.stream.pace import CONVERSATION_FACTOR
from livetalk.stream.talkers.protocol import Heard, Persona
from livetalk.types import LiveTalkError
from livetalk.ui import line as line_module
from livetalk.ui import live as live_module
from livetalk.ui.line import Line, visitor_limit
from livetalk.ui.live import LiveSessions, Talk
from livetalk.ui.page import launch_options
from livetalk.ui.shelf import Shelf
from tests.live import tiny_models
from tests.test_conversation import Scripted, words

FACE = np.full((32, 32, 3), 128, np.uint8)
PATIENCE_S = 60.0


def new_sid() -> str:
    return uuid.uuid4().hex


def echoing() -> Scripted:
    """Answers with the visitor's own words, one after the other."""
    return Scripted(lambda turn, _: [Heard(turn.text or "hm"), *words((turn.text or "hm").split())])


def eventually(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Watcher:
    """A visitor: waits in line, opens a session, and takes its pictures in a thread, until told to leave."""

    def __init__(self, sessions: LiveSessions, **options) -> None:
        self.sessions, self.sid, self.options = sessions, new_sid(), options
        self.places: list[int] = []
        self.error: Exception | None = None
        self.on, self.seen = threading.Event(), 0
        self._leaving = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        try:
            for place in self.sessions.waits(self.sid):
                self.places.append(place)
                if self._leaving.is_set():
                    return
            options = {"mode": "conversation", **self.options}
            with self.sessions.opened(self.sid, FACE, "a person nods", 0, **options):
                for piece in self.sessions.pictures(self.sid):
                    self.seen += len(piece.pictures)
                    self.on.set()
                    if self._leaving.is_set():
                        return
        except Exception as error:
            self.error = error

    def leave(self) -> None:
        """As a closed tab does: the generator ends at its next step."""
        self._leaving.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """Makes sessions; everybody is sent home at the end, and no file of theirs may be left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    visitors: list[Watcher] = []
    made: list[LiveSessions] = []

    def sessions(places: int = 2, talker: Callable[[], Scripted] = echoing) -> LiveSessions:
        made.append(LiveSessions(Avatar(tiny_models()), places, 600.0, talkers=lambda *_: [talker()]))
        return made[-1]

    def visitor(of: LiveSessions, **options) -> Watcher:
        visitors.append(Watcher(of, **options))
        return visitors[-1]

    yield sessions, visitor
    for one in visitors:
        one.leave()
    for one in made:
        one._kept.clear()
    assert list(tmp_path.rglob("*")) == []


def avatar_words(sessions: LiveSessions, sid: str) -> list[str]:
    lines = sessions.get(sid).conversation.transcript.lines
    return [line.text for line in lines if line.role == "avatar" and line.is_final]


def test_two_visitors_get_their_own_answers_and_the_third_waits(rooms) -> None:
    sessions, visitor = rooms[0](places=2), rooms[1]
    first, second = visitor(sessions), visitor(sessions)
    assert first.on.wait(PATIENCE_S)
    assert second.on.wait(PATIENCE_S)
    third = visitor(sessions)
    eventually(lambda: third.places, "the surplus visitor is told the place in line")
    fourth = visitor(sessions)
    eventually(lambda: fourth.places, "so is the next one")
    assert (set(third.places), set(fourth.places)) == ({1}, {2})
    assert [sessions.place(one.sid) for one in (first, third, fourth)] == [0, 1, 2]
    said = {first: "apples and pears", second: "ships at sea"}
    for one, text in said.items():
        sessions.write(one.sid, text)
    for one, text in said.items():
        eventually(lambda one=one: avatar_words(sessions, one.sid), "an answer")
        assert avatar_words(sessions, one.sid) == [text]
        assert sessions.transcript(one.sid).count("\n") == 2
    assert not third.on.is_set()
    first.leave()
    assert third.on.wait(PATIENCE_S)
    eventually(lambda: fourth.places[-1] == 1, "the line moves up")
    sessions.write(third.sid, "my turn")
    eventually(lambda: avatar_words(sessions, third.sid), "an answer")
    assert avatar_words(sessions, third.sid) == ["my turn"]
    assert len(sessions) == 2


def test_who_stops_waiting_has_left_the_line(rooms) -> None:
    sessions, visitor = rooms[0](places=1), rooms[1]
    first = visitor(sessions)
    assert first.on.wait(PATIENCE_S)
    closed, stopped, last = (visitor(sessions) for _ in range(3))
    eventually(lambda: all(one.places for one in (closed, stopped, last)), "all wait")
    closed.leave()
    sessions.stop(stopped.sid)
    stopped.thread.join(PATIENCE_S)
    assert "left the line" in str(stopped.error)
    eventually(lambda: last.places[-1] == 1, "the others move up")
    sessions.stop(first.sid)
    assert last.on.wait(PATIENCE_S)


def test_who_stops_before_the_beginning_does_not_begin(rooms) -> None:
    sessions, visitor = rooms[0](places=1), rooms[1]
    sid = new_sid()
    with pytest.raises(LiveTalkError, match="No session"):
        sessions.stop(sid)
    for opening in (lambda: sessions.waits(sid), lambda: sessions.opened(sid, FACE, "", 0).__enter__()):
        with pytest.raises(LiveTalkError, match="used before"):
            opening()
    one = visitor(sessions)
    assert one.on.wait(PATIENCE_S), "the place is free"
    one.leave()
    with pytest.raises(LiveTalkError, match="used before"):
        sessions.waits(one.sid)


def test_a_place_is_taken_in_turn_only() -> None:
    line = Line(lambda: 1)
    line.take("ada")
    with pytest.raises(LiveTalkError, match="in use"):
        line.take("ada")
    waits = line.waits("bob")
    assert next(waits) == 1
    with pytest.raises(LiveTalkError, match="in use"):
        next(line.waits("bob"))
    with pytest.raises(LiveTalkError, match="places are taken"):
        line.take("eve")
    line.leave("ada")
    with pytest.raises(LiveTalkError, match="places are taken"):
        line.take("eve")
    assert list(waits) == []
    with pytest.raises(LiveTalkError, match="places are taken"):
        line.take("eve")
    line.take("bob")


def test_an_invitation_lapses(monkeypatch) -> None:
    monkeypatch.setattr(line_module, "INVITED_S", 0.0)
    line = Line(lambda: 1)
    assert list(line.waits("ada")) == []
    time.sleep(0.01)
    assert list(line.waits("bob")) == [], "ada was called and did not come"


def test_the_line_is_bounded() -> None:
    line = Line(lambda: 1, limit=5)
    line.take("on")
    waiting = [line.waits(f"visitor {number}") for number in range(4)]
    assert [next(one) for one in waiting] == [1, 2, 3, 4]
    with pytest.raises(LiveTalkError, match="waiting already"):
        next(line.waits("one more"))
    waiting[0].close()
    assert next(line.waits("one more")) == 4


def test_how_many_may_be_on_or_wait_can_be_set(monkeypatch) -> None:
    assert launch_options()["max_threads"] > visitor_limit() == 24
    monkeypatch.setenv("LIVETALK_VISITORS", "100")
    assert launch_options()["max_threads"] > visitor_limit() == 100, "each keeps a thread busy"
    monkeypatch.setenv("LIVETALK_VISITORS", "many")
    with pytest.raises(LiveTalkError, match="LIVETALK_VISITORS is 'many'"):
        visitor_limit()


@pytest.mark.parametrize(
    ("alone", "running", "places"),
    [
        (0.3, [], 1),
        (4.3 * CONVERSATION_FACTOR, [], 4),
        (4.3 * CONVERSATION_FACTOR, [None, None], 4),
        (4.3 * CONVERSATION_FACTOR, [2.6 * CONVERSATION_FACTOR], 2),
        (4.3 * CONVERSATION_FACTOR, [2.2 * CONVERSATION_FACTOR, 2.1 * CONVERSATION_FACTOR], 4),
        (4.3 * CONVERSATION_FACTOR, [0.9 * CONVERSATION_FACTOR, None], 1),
        (4.3 * CONVERSATION_FACTOR, [1.1 * CONVERSATION_FACTOR, None, 1.2 * CONVERSATION_FACTOR], 3),
        (1.0, [50.0], int(50 / CONVERSATION_FACTOR)),
    ],
)
def test_as_many_sessions_as_the_measured_speed_carries(alone, running, places) -> None:
    assert Carried(alone).places(running) == places


@pytest.mark.parametrize(
    ("gain", "running", "places"),
    [
        (1.5, [], 3),
        (1.5, [2.1 * CONVERSATION_FACTOR], 3),
        (1.5, [None, 1.6 * CONVERSATION_FACTOR], 3),
        (1.5, [1.2 * CONVERSATION_FACTOR, 1.3 * CONVERSATION_FACTOR], 2),
        (1.5, [2.1 * CONVERSATION_FACTOR, 2.1 * CONVERSATION_FACTOR], 3),
        (1.0, [2.1 * CONVERSATION_FACTOR, 2.1 * CONVERSATION_FACTOR], 2),
    ],
)
def test_sessions_that_share_passes_leave_room_for_more(gain, running, places) -> None:
    """And no more than was measured together, however fast each is while the others have nothing to do."""
    assert Carried(2.1 * CONVERSATION_FACTOR, gain).places(running) == places


def test_what_sessions_gain_by_sharing_is_measured_where_they_do() -> None:
    assert measured_gain(Avatar(tiny_models())) == 1.0
    models = dataclasses.replace(tiny_models(), engine=Engine(compile="off", batch="on"))
    assert measured_gain(Avatar(models)) >= 1.0
    assert models.network.passes.total() > 0
    assert LiveSessions(Avatar(models)).places >= 1


def test_places_are_measured_or_configured(monkeypatch) -> None:
    avatar = Avatar(tiny_models())
    assert measured_factor(avatar) > 0
    assert LiveSessions(avatar).places >= 1
    monkeypatch.setenv(PLACES_VARIABLE, " 7 ")
    assert LiveSessions(avatar).places == 7
    assert LiveSessions(avatar, places=3).places == 3
    for nonsense in ("many", "0", "-1"):
        monkeypatch.setenv(PLACES_VARIABLE, nonsense)
        with pytest.raises(LiveTalkError, match="whole number"):
            LiveSessions(avatar)


def test_a_mirror_does_not_converse(rooms) -> None:
    sessions, visitor = rooms[0](), rooms[1]
    mirror = visitor(sessions, mode="mirror", talk=Talk(keeps=True))
    assert mirror.on.wait(PATIENCE_S)
    for call in (
        lambda: sessions.write(mirror.sid, "hello"),
        lambda: sessions.change(mirror.sid, prompt="happily"),
        lambda: sessions.keep(mirror.sid, True),
        lambda: sessions.transcript(mirror.sid),
    ):
        with pytest.raises(LiveTalkError, match="does not converse"):
            call()
    packet = base64.b64encode(np.zeros(1600, "<i2").tobytes()).decode()
    answer = sessions.push(mirror.sid, packet, 16_000)
    assert answer == {"accepted_samples": 1600, "state": "idle", "voice": False, "duck": False, "generation": 0}


def test_face_mood_voice_and_character_change_in_mid_conversation(rooms) -> None:
    talker = echoing()
    sessions, visitor = rooms[0](talker=lambda: talker), rooms[1]
    one = visitor(sessions, talk=Talk(persona=Persona("Be kind.")))
    assert one.on.wait(PATIENCE_S)
    session = sessions.get(one.sid)
    before = session.identity
    sessions.change(one.sid, prompt="a person laughs")
    moody = session.identity
    assert (moody.portrait_latent == before.portrait_latent).all()
    assert not (moody.text == before.text).all()
    sessions.change(one.sid, portrait=FACE // 2)
    assert not (session.identity.portrait_latent == before.portrait_latent).all()
    assert (session.identity.text == moody.text).all(), "the mood stays"
    sessions.change(one.sid, voice="alba")
    sessions.change(one.sid, instructions="Be brief.")
    eventually(lambda: len(talker.started) == 3, "the talker is told")
    assert talker.started == [Persona("Be kind."), Persona("Be kind.", "alba"), Persona("Be brief.", "alba")]
    sessions.write(one.sid, "still here")
    eventually(lambda: avatar_words(sessions, one.sid), "the conversation goes on")
    with pytest.raises(LiveTalkError):
        sessions.change(one.sid, portrait="no-such-file.png")


def test_an_interruption_by_name(rooms) -> None:
    sessions, visitor = rooms[0](), rooms[1]
    one = visitor(sessions)
    assert one.on.wait(PATIENCE_S)
    sessions.write(one.sid, "one two three four five six seven eight nine ten " * 4)
    talk = sessions.get(one.sid).conversation
    eventually(lambda: sessions.get(one.sid).state == "speaking", "it is heard")
    assert sessions.interrupt(one.sid) == sessions.get(one.sid).generation
    eventually(lambda: sessions.get(one.sid).state == "listening", "it is silent")
    heard = [line for line in talk.transcript.lines if line.role == "avatar"]
    assert all(line.is_cut and line.is_final and len(line.text.split()) < 40 for line in heard)


def test_a_recording_is_made_if_asked_for_and_is_gone_in_time(rooms, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(live_module, "KEPT_S", 1.5)
    sessions, visitor = rooms[0](), rooms[1]
    one, other = visitor(sessions, talk=Talk(keeps=True)), visitor(sessions)
    assert one.on.wait(PATIENCE_S)
    assert other.on.wait(PATIENCE_S)
    for visit in (one, other):
        sessions.write(visit.sid, "hello there")
    eventually(lambda: avatar_words(sessions, one.sid), "an answer")
    with pytest.raises(LiveTalkError, match="ready when"):
        sessions.recording(one.sid)
    one.leave()
    other.leave()
    path = sessions.recording(one.sid)
    assert path.stat().st_size > 1000
    assert path.is_relative_to(tmp_path)
    assert "LiveTalk: hello there" in sessions.transcript(one.sid)
    for call in (sessions.recording, sessions.transcript):
        with pytest.raises(LiveTalkError, match="Nothing was kept"):
            call(other.sid)
    eventually(lambda: not list(tmp_path.rglob("*")), "deleted although nobody asks")
    with pytest.raises(LiveTalkError, match="Nothing was kept"):
        sessions.recording(one.sid)


def test_who_changes_their_mind_is_not_recorded(rooms, tmp_path) -> None:
    sessions, visitor = rooms[0](), rooms[1]
    one = visitor(sessions)
    assert one.on.wait(PATIENCE_S)
    assert not list(tmp_path.rglob("*"))
    sessions.keep(one.sid, True)
    eventually(lambda: list(tmp_path.rglob("*.mp4")), "it is recorded from now on")
    sessions.keep(one.sid, False)
    eventually(lambda: not list(tmp_path.rglob("*")), "it is deleted while the session goes on")
    sessions.keep(one.sid, True)
    eventually(lambda: list(tmp_path.rglob("*.mp4")), "it is recorded again")
    sessions.keep(one.sid, False)
    one.leave()
    with pytest.raises(LiveTalkError, match="Nothing was kept"):
        sessions.recording(one.sid)


def test_a_page_that_has_gone_loses_its_place_to_those_who_wait(rooms, monkeypatch) -> None:
    monkeypatch.setattr(live_module, "GONE_AFTER_S", 0.2)
    sessions, visitor = rooms[0](places=2), rooms[1]
    page, program = visitor(sessions), visitor(sessions)
    assert page.on.wait(PATIENCE_S)
    assert program.on.wait(PATIENCE_S)
    sessions.beat(page.sid)
    time.sleep(0.5)
    seen = page.seen
    eventually(lambda: page.seen > seen, "nobody waits, so nobody has to go")
    waiting = visitor(sessions)
    assert waiting.on.wait(PATIENCE_S)
    page.thread.join(PATIENCE_S)
    assert not page.thread.is_alive()
    assert program.thread.is_alive(), "who never said that it is a page may be silent"


def test_things_on_a_shelf_go_by_themselves() -> None:
    gone: list[int] = []
    shelf: Shelf[int] = Shelf(2, 0.2, gone.append)
    for number in range(3):
        shelf.put(f"number {number}", number)
    assert gone == [0]
    assert (shelf.get("number 0"), shelf.get("number 1"), shelf.take("number 2")) == (None, 1, 2)
    eventually(lambda: gone == [0, 1], "thrown away although nobody looks")
    assert len(shelf) == 0
    shelf.put("again", 3)
    shelf.put("again", 4)
    assert gone == [0, 1, 3]
    eventually(lambda: gone == [0, 1, 3, 4], "the timer is wound again")
