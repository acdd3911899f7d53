"""Replicas for real: two processes of mini behind one front, one of which is killed while people talk."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import numpy as np
import pytest

from livetalk.__main__ import main
from livetalk.media.pictures import load_portrait
from livetalk.stream.avatar import Avatar, load
from livetalk.types import PLAYBACK_RATE, LiveTalkError, Pictures
from livetalk.ui import away
from livetalk.ui import replicas as replicas_module
from livetalk.ui.live import LiveSessions, Talk
from livetalk.ui.page import launch_options, page_of
from livetalk.ui.replicas import ReplicaAvatar, Replicas
from tests.live import babble, film
from tests.replica_talkers import scripted
from tests.test_conversation import shown
from tests.test_seams import EXAMPLES, pose_steps

PATIENCE_S = 120.0
FACES = {name: Path(EXAMPLES) / "portraits" / f"{name}.png" for name in ("felix", "nora")}
SPEECH = Path(EXAMPLES) / "speech" / "welcome.ogg"


def children() -> list[str]:
    """Names of the processes that this one has started and that are there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except (OSError, IndexError):
            continue
        if int(rest.split()[1]) == os.getpid() and rest.split()[0] != "Z":
            found.append(name)
    return found


def ray_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("livetalk-ray-*"))


@pytest.fixture(scope="module")
def house() -> Iterator[Replicas]:
    before, files = children(), ray_folders()
    with Replicas("mini", "cpu", 2, scripted) as replicas:
        yield replicas
    assert sorted(children()) == sorted(before), "processes are left"
    assert ray_folders() == files, "files are left"
    assert not [one for one in threading.enumerate() if one.name == "livetalk-keeper"]


@pytest.fixture(scope="module")
def here() -> Avatar:
    return load("mini", "cpu")


class Visitor:
    """Opens a session and takes its pictures in a thread."""

    def __init__(self, sessions: LiveSessions, face: str, **options) -> None:
        self.sessions, self.sid, self.pieces = sessions, uuid.uuid4().hex, list[Pictures]()
        self.places: list[int] = []
        self.notices: list[str | None] = []
        self.error: Exception | None = None
        self._face, self._options = FACES[face], {"mode": "conversation", **options}
        self._leaving = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            for place in self.sessions.waits(self.sid):
                self.places.append(place)
                if self._leaving:
                    return
            with self.sessions.opened(self.sid, self._face, "", 0, **self._options) as session:
                for piece in self.sessions.pictures(self.sid):
                    self.pieces.append(piece)
                    if len(piece.pictures):
                        self.notices.append(session.facts()["notice"])
                    if self._leaving:
                        return
        except Exception as error:
            self.error = error

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self.error is None, self.error

    @property
    def seen(self) -> int:
        return sum(len(piece.pictures) for piece in self.pieces)

    @property
    def answers(self) -> list[str]:
        lines = self.sessions.get(self.sid).conversation.transcript.lines
        return [line.text for line in lines if line.role == "avatar" and line.is_final]


def eventually(true, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def face_in(here: Avatar, picture: np.ndarray) -> str:
    """Whose portrait is most like a picture."""
    preset = here.preset
    portraits = {name: load_portrait(path, preset.height, preset.width).pixels() for name, path in FACES.items()}
    return min(portraits, key=lambda name: np.abs(portraits[name].astype(float) - picture).mean())


def test_one_is_killed_and_nobodys_session_ends(house: Replicas, here: Avatar) -> None:
    """Own faces and answers; then a replica dies: same face, same history, no gap, and another takes its place."""
    sessions = LiveSessions(ReplicaAvatar(house), 2, talkers=scripted, elsewhere=house)
    with Visitor(sessions, "felix") as felix, Visitor(sessions, "nora") as nora:
        both = {"felix": felix, "nora": nora}
        eventually(lambda: felix.seen and nora.seen, "both are on")
        with Visitor(sessions, "nora") as third:
            eventually(lambda: third.places, "the surplus visitor waits")
            assert (third.places[0], third.seen) == (1, 0)
        assert sorted(len(slot.sessions) for slot in house._slots) == [1, 1]
        for name, visitor in both.items():
            sessions.write(visitor.sid, name)
        eventually(lambda: felix.answers and nora.answers, "answers")
        for name, visitor in both.items():
            assert visitor.answers == ["so far"]
            assert face_in(here, shown(visitor.pieces)[-1].pictures[-1]) == name

        victim = next(slot for slot in house._slots if slot.sessions[0] is sessions.get(felix.sid))
        first_engine, seams = victim.engine, {name: visitor.seen for name, visitor in both.items()}
        house._ray.kill(victim.engine)
        eventually(lambda: all(both[name].seen > seams[name] + 24 for name in both), "both go on")
        for name, visitor in both.items():
            assert visitor.error is None
            assert face_in(here, shown(visitor.pieces)[-1].pictures[-1]) == name
            sessions.write(visitor.sid, "again")
        eventually(lambda: len(felix.answers) == len(nora.answers) == 2, "answers that remember")
        assert felix.answers[-1] == "felix so far"
        assert nora.answers[-1] == "nora so far"
        assert away.MOVED in felix.notices
        assert set(nora.notices).isdisjoint({away.MOVED}), "whose replica lives is told nothing"

        eventually(lambda: all(slot.carried for slot in house._slots), "the dead one is replaced")
        assert victim.engine is not first_engine
        seams = {name: visitor.seen for name, visitor in both.items()}
        house._ray.kill(next(slot for slot in house._slots if slot.sessions).engine)
        eventually(lambda: all(both[name].seen > seams[name] + 12 for name in both), "both go on in the new one")
        assert len(victim.sessions) == 2
        for visitor in both.values():
            film(shown(visitor.pieces))  # asserts that picture follows picture


def test_the_face_does_not_jump_where_a_session_moves(house: Replicas) -> None:
    sessions = LiveSessions(ReplicaAvatar(house), 2, elsewhere=house)
    eventually(lambda: all(slot.carried for slot in house._slots), "both are there")
    at_seams, usual = [], []
    for name in FACES:
        with Visitor(sessions, name, mode="mirror") as visitor:
            eventually(lambda one=visitor: one.seen, "it is on")
            sessions.get(visitor.sid).play(babble(4.0), PLAYBACK_RATE)
            eventually(lambda one=visitor: one.seen > 45, "it speaks")
            slot = next(slot for slot in house._slots if slot.sessions)
            house._ray.kill(slot.engine)
            eventually(lambda one=visitor: away.MOVED in one.notices, "it moves")
            moved = visitor.notices.index(away.MOVED)
            eventually(lambda one=visitor, least=moved + 6: len(one.notices) > least, "it goes on")
        seen = shown(visitor.pieces)
        steps, seam = pose_steps(film(seen)), sum(len(piece.pictures) for piece in seen[:moved]) - 1
        at_seams.append(steps[seam])
        usual.append(steps)
    assert np.median(at_seams) <= 2 * np.median(np.concatenate(usual)), at_seams


def test_as_many_places_as_all_replicas_carry(house: Replicas) -> None:
    eventually(lambda: all(slot.carried for slot in house._slots), "both are there")
    sessions = LiveSessions(ReplicaAvatar(house), elsewhere=house)
    carried = [slot.carried.places([]) for slot in house._slots]
    assert sessions.places == house.places == sum(carried) >= 2
    house._lost(house._slots[0].engine)
    assert sessions.places == carried[1], "nobody is sent where nobody is"
    house._ray.kill(house._slots[0].engine)
    eventually(lambda: house._slots[0].carried, "replaced although nobody was on it")


def test_clips_are_drawn_by_replicas(house: Replicas, here: Avatar, tmp_path) -> None:
    front = ReplicaAvatar(house)
    speech = (babble(2.5), PLAYBACK_RATE)
    ours, theirs = (film(list(avatar.clip(FACES["felix"], speech, seed=4))) for avatar in (here, front))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(float) - theirs).mean() < 1.0, "another number of threads may round otherwise"
    assert front.render(FACES["nora"], speech, out=tmp_path / "nora.mp4").stat().st_size > 1000
    for wrong in ((__file__, SPEECH), (FACES["felix"], __file__), (FACES["felix"], (np.zeros(0), PLAYBACK_RATE))):
        said = []
        for avatar in (here, front):
            with pytest.raises(LiveTalkError) as error:
                avatar.render(*wrong, out=tmp_path / "wrong.mp4")
            said.append(str(error.value))
        assert said[0] == said[1]


def test_bad_input_is_told_as_in_one_process(house: Replicas, here: Avatar) -> None:
    fronts = [
        LiveSessions(here, 1, talkers=scripted),
        LiveSessions(ReplicaAvatar(house), 1, talkers=scripted, elsewhere=house),
    ]
    for face, talker in ((Path(__file__), None), (Path("no-such-file.png"), None), (FACES["felix"], "nobody")):
        said = []
        for sessions in fronts:
            opened = sessions.opened(uuid.uuid4().hex, face, "", 0, "conversation", talk=Talk(talker=talker))
            with pytest.raises(LiveTalkError) as error:
                opened.__enter__()
            said.append(str(error.value))
        assert said[0] == said[1]
    assert not any(slot.sessions for slot in house._slots)


def test_the_page_in_front_of_them(house: Replicas) -> None:
    page = page_of(LiveSessions(ReplicaAvatar(house), 2, elsewhere=house, talkers=scripted))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"server_name": "127.0.0.1", "server_port": free.getsockname()[1]}
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **where, **launch_options())
    try:
        client, sid = gradio_client.Client(url, verbose=False), uuid.uuid4().hex
        face = gradio_client.handle_file(FACES["felix"])
        job = client.submit(sid, face, "", 0, "conversation", api_name="/session")
        told: list[str] = []
        for piece in job:
            if piece["index"] == 1:
                client.predict(sid, "good morning", api_name="/say")
            told.append(piece["text"])
            if "so far" in piece["text"]:
                client.predict(sid, api_name="/stop")
        assert any("You: good morning" in text for text in told)
        assert "LiveTalk: so far" in "".join(told)
    finally:
        page.close()


def test_a_replica_that_cannot_load_says_why_and_is_tried_again(house: Replicas, monkeypatch) -> None:
    monkeypatch.setattr(replicas_module, "AGAIN_S", 0.1)
    with pytest.raises(LiveTalkError) as error:
        load("no-such-model")
    slot = house._slots[0]
    with monkeypatch.context() as patch:
        patch.setattr(house, "_make", house._maker(2, "cpu", ("no-such-model", "cpu", 1, scripted)))
        house._ray.kill(slot.engine)
        eventually(lambda: slot.problem, "it is said")
        assert str(slot.problem) == str(error.value)
    eventually(lambda: slot.carried and not slot.problem, "it is there again")


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LiveTalkError, match=r"pip install -r requirements-extra\.txt"):
        Replicas("mini", "cpu", 2)
    assert main(["serve", "--replicas", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(LiveTalkError, match="1 or more"):
        Replicas("mini", "cpu", 0)


@pytest.mark.parametrize(("known", "mode"), [(True, "token"), (False, None)])
def test_a_cluster_that_runs_is_told_the_token_where_one_is_known(known: bool, mode, monkeypatch, tmp_path) -> None:
    """``ray start`` asks for it by itself; who connects would send none."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(replicas_module, "TOKEN_FILE", tmp_path / "auth_token")
    if known:
        (tmp_path / "auth_token").write_text("secret")
    replicas_module._ray()
    set_mode = os.environ.pop("RAY_AUTH_MODE", None)
    assert set_mode == mode


def test_a_cluster_that_is_not_there_is_told_in_one_sentence(monkeypatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1")

    class Nowhere:
        init, shutdown = staticmethod(refuse), staticmethod(lambda: None)

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    expected = r"Ray does not start: Failed .* 127.0.0.1:1\. Is one there \(RAY_ADDRESS\)"
    with pytest.raises(LiveTalkError, match=expected), replicas_module._cluster(Nowhere, 1):
        pass
