"""A session in another process that may be lost at any moment, without processes: what the visitor sees and keeps."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from livetalk.stream.avatar import Avatar
from livetalk.stream.talkers.protocol import Heard, Message, Persona
from livetalk.types import MODEL_RATE, LiveTalkError, Pictures
from livetalk.ui import away
from livetalk.ui import replica as replica_module
from livetalk.ui.away import AwaySession, ReplicaLostError
from livetalk.ui.opening import Opening
from livetalk.ui.replica import Replica
from livetalk.ui.visit import Talk
from tests.live import film, tiny_models
from tests.test_conversation import Scripted, words
from tests.tiny import TINY

FACE = np.full((TINY.height, TINY.width, 3), 128, np.uint8)
PATIENCE_S = 60.0


def counting(turn, history: list[Message]) -> list:
    return [Heard(turn.text or "hm"), *words([f"reply{len(history)}"])]


class Room:
    """A replica in this process that can be lost; everything is pickled on its way, as between processes."""

    def __init__(self, talkers: list[Scripted]) -> None:
        self.replica = Replica("tiny", "cpu", 1, lambda name, visitor: [self._talker(name)])
        self.talkers = talkers
        self.replica.load()
        self.is_lost = False
        self.verbs: list[str] = []

    def _talker(self, name: str | None) -> Scripted:
        if name == "nobody":
            raise LiveTalkError("There is no talker 'nobody'.")
        self.talkers.append(Scripted(counting))
        return self.talkers[-1]

    def call(self, verb: str, *arguments, limit_s: float | None = None):
        if self.is_lost:
            raise ReplicaLostError
        self.verbs.append(verb)
        told = pickle.loads(pickle.dumps(arguments))
        said = pickle.loads(pickle.dumps(getattr(self.replica, verb)(*told)))
        if self.is_lost:
            raise ReplicaLostError
        return said

    def post(self, verb: str, *arguments) -> None:
        if not self.is_lost:
            self.call(verb, *arguments)


class Rooms:
    """A house whose rooms are lost one after the other; the next one is there at once."""

    def __init__(self) -> None:
        self.talkers: list[Scripted] = []
        self.rooms = [Room(self.talkers)]
        self.sessions: set[AwaySession] = set()
        self.on_the_way: Callable[[], None] = lambda: None

    def place(self, session: AwaySession) -> Room:
        self.on_the_way()
        self.sessions.add(session)
        return self.rooms[-1]

    def leave(self, session: AwaySession) -> None:
        self.sessions.discard(session)

    def lose(self) -> None:
        lost = self.rooms[-1]
        self.rooms.append(Room(self.talkers))
        lost.is_lost = True


@pytest.fixture
def house(monkeypatch):
    monkeypatch.setattr(replica_module, "load", lambda preset, device: Avatar(tiny_models()))
    monkeypatch.setattr(replica_module, "measured_factor", lambda avatar: 4.0)
    monkeypatch.setattr(replica_module.torch, "set_num_threads", lambda threads: None)
    return Rooms()


def opening(mode: str = "mirror", **talk) -> Opening:
    return Opening(FACE, "a person nods", 3, mode, 2.0, Talk(**talk))


def take(stream, pictures: int) -> list[Pictures]:
    pieces: list[Pictures] = []
    while sum(len(piece.pictures) for piece in pieces) < pictures:
        pieces.append(next(stream))
    return pieces


@pytest.mark.parametrize("before", [1, 5, 13, 17])
def test_nobody_sees_where_the_replica_was_lost(house, before: int) -> None:
    """Lost after any piece of a chunk: no picture twice, none missing, and (young stream) the same bits."""
    here = Avatar(tiny_models()).session(FACE, "a person nods", 3)
    expected = film(take(here.pictures(), 26))
    session = AwaySession(house, opening())
    stream = session.pictures()
    pieces = take(stream, before)
    assert session.notice != away.MOVED
    house.lose()
    pieces += take(stream, 26 - before)
    count = min(sum(len(piece.pictures) for piece in pieces), len(expected))
    assert np.array_equal(film(pieces)[:count], expected[:count])
    assert session.notice == away.MOVED
    assert "open" in house.rooms[-1].verbs
    stream.close()
    assert session.state == "stopped"
    assert not house.sessions


def test_lost_before_the_first_picture_and_again_and_again(house) -> None:
    session = AwaySession(house, opening())
    house.lose()
    stream = session.pictures()
    pieces = take(stream, 1)
    for _ in range(4):
        house.lose()
        pieces += take(stream, 6)
    assert len(film(pieces)) >= 25
    stream.close()


def test_a_snapshot_comes_once_a_chunk_and_after_every_change(house) -> None:
    replica = house.rooms[0].replica
    replica.open("ada", opening("conversation"), Talk(), 2.0)
    steps = [replica.step("ada") for _ in range(9)]  # three latent frames a chunk
    assert [step.snapshot is not None for step in steps] == [True, False, True, False, False, True, False, False, True]
    assert all(step.facts is not None for step in steps)
    replica.interrupt("ada")
    void = replica.step("ada")
    assert (len(void.piece.pictures), void.piece.generation, void.facts) == (0, 1, None)
    assert void.snapshot.stream.next_picture == void.piece.first_picture
    replica.draw("ada", FACE // 2, "")
    assert replica.step("ada").snapshot is not None
    replica.stop("ada")
    replica.stop("ada")
    assert replica.step("ada") is None
    assert replica.hear("ada", []) is None
    with pytest.raises(LiveTalkError, match="ended"):
        replica.interrupt("ada")


def answered(session: AwaySession, stream, reply: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while [line.text for line in session.conversation.transcript.lines if line.role == "avatar"][-1:] != [reply]:
        assert time.monotonic() < end
        next(stream)


def test_the_conversation_goes_on_with_all_that_was_told(house) -> None:
    session = AwaySession(house, opening("conversation", persona=Persona("Be kind.")))
    stream = session.pictures()
    take(stream, 10)
    session.write("first question")
    answered(session, stream, "reply0")
    session.conversation.change_persona(Persona("Be brief."))
    told = session.facts()["lines"]
    assert {line["number"]: line["text"] for line in told} == {0: "first question", 1: "reply0"}
    assert session.interrupt() == session.generation
    house.lose()
    generation = session.generation
    with pytest.raises(LiveTalkError, match="does not answer"):
        session.write("too early")
    take(stream, 4)
    assert session.generation >= generation
    session.write("second question")
    answered(session, stream, "reply2")
    assert house.talkers[-1].started == [Persona("Be brief.")]
    assert house.talkers[-1].histories == [[Message("visitor", "first question"), Message("avatar", "reply0")]]
    numbers = [line.number for line in session.conversation.transcript.lines]
    assert numbers == [0, 1, 2, 3]
    starts = [line.start_s for line in session.conversation.transcript.lines]
    assert starts == sorted(starts)
    stream.close()


def test_the_microphone_is_heard_in_order_here_and_there(house) -> None:
    heard: list[int] = []
    session = AwaySession(house, opening("conversation"))
    stream = session.pictures()
    for room in range(2):
        take(stream, 4)
        replica = house.rooms[-1].replica
        live = replica._live[session._name]
        live.session.listen = lambda samples, rate: heard.append(round(100 * float(samples[0])))
        for number in range(20):
            session.listen(np.full(160, (20 * room + number) / 100, np.float32), MODEL_RATE)
        end = time.monotonic() + PATIENCE_S
        while len(heard) < 20 * (room + 1) and time.monotonic() < end:
            time.sleep(0.01)
        house.lose()
    assert heard == list(range(40))
    stream.close()


def test_stopped_while_it_moves(house) -> None:
    session = AwaySession(house, opening())
    stream = session.pictures()
    take(stream, 5)
    house.lose()
    house.on_the_way = session.stop
    assert list(stream) == []
    assert not house.sessions
    assert house.rooms[-1].replica._live == {}, "the new place knows that nobody looks"


def test_bad_input_is_told_as_in_one_process(house) -> None:
    here = Avatar(tiny_models()).conversation(FACE, talkers=[Scripted()])
    there = AwaySession(house, opening("conversation"))
    for call in (
        lambda session: session.listen(np.full(3, np.nan, np.float32), MODEL_RATE),
        lambda session: session.listen(np.zeros((2, 2), np.float32), MODEL_RATE),
        lambda session: session.write("  "),
        lambda session: session.write("x" * 5000),
        lambda session: session.play(np.zeros(9000, np.float32), MODEL_RATE),
    ):
        said = []
        for session in (here, there):
            with pytest.raises(LiveTalkError) as error:
                call(session)
            said.append(str(error.value))
        assert said[0] == said[1]
    with pytest.raises(LiveTalkError, match="no talker 'nobody'"):
        AwaySession(house, opening("conversation", talker="nobody"))
    next(there.pictures())
    with pytest.raises(LiveTalkError, match="taken already"):
        next(there.pictures())
    here.stop()
    there.stop()
    assert not house.sessions
    for thread in [one for one in threading.enumerate() if one.name == "livetalk-mail"]:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a thread for every session that ever was"
