"""Sessions on GPUs that are lent: worker processes that come and go behind one conversation and one face."""

from __future__ import annotations

import ast
import contextvars
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from livetalk.stream import avatar as avatar_module
from livetalk.stream.avatar import Avatar
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers.protocol import Heard, Message, Persona
from livetalk.types import MODEL_RATE, PLAYBACK_RATE, LiveTalkError, Pictures
from livetalk.ui import doorbell, lending, page
from livetalk.ui.doorbell import Doorbell
from livetalk.ui.idle import HOMEWARD, IdleLoop
from livetalk.ui.lending import LentAvatar, LiveCall, asked, lender, refusal
from livetalk.ui.lent import LentGpus, LentSession
from livetalk.ui.live import LiveSessions
from livetalk.ui.opening import Opening
from livetalk.ui.page import build
from livetalk.ui.visit import Talk
from livetalk.ui.wire import Hearing, Wire
from tests.forked_gpu import ForkedGpu
from tests.live import babble, tiny_models
from tests.test_conversation import LoudDetector, Scripted, words
from tests.test_live_sessions import FACE, new_sid

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
SOURCES = [ROOT / "app.py", *sorted((ROOT / "livetalk").rglob("*.py"))]


def counting(turn, history: list[Message]) -> list:
    """Says how much was said before."""
    return [Heard(turn.text or "hello"), *words([f"reply{len(history)}", "word"])]


def long_winded(turn, history: list[Message]) -> list:
    return [Heard(turn.text or "hello"), *words([f"w{number}" for number in range(40)])]


class Viewer:
    """Takes the pictures of a session in a thread, as the page's generator does."""

    def __init__(self, session: LentSession) -> None:
        self.session, self.pieces, self.idle = session, [], set()
        self.facts: list[dict] = []
        self.error: Exception | None = None
        self._idle_piece = session._idle_piece
        session._idle_piece = self._note_idle  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _note_idle(self, homeward: bool) -> Pictures:
        piece = self._idle_piece(homeward)
        self.idle |= set(range(piece.first_picture, piece.first_picture + len(piece.pictures)))
        return piece

    def _watch(self) -> None:
        try:
            for piece in self.session.pictures():
                self.pieces.append(piece)
                self.facts.append(self.session.facts())
        except Exception as error:
            self.error = error

    def until(self, true: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert self.error is None, self.error
            assert time.monotonic() < end, what
            time.sleep(0.02)

    def until_idle(self) -> None:
        """The GPU was given back, and the loop is on."""
        self.until(lambda: self.session._thread is None and self.pieces, "the call never ended")
        seen = len(self.idle)
        self.until(lambda: len(self.idle) > seen + 4, "the loop never began")

    def lines(self) -> list[tuple[str, str]]:
        return [(line.role, line.text) for line in self.session.conversation.transcript.lines]

    def leave(self) -> None:
        self.session.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def gpu(monkeypatch) -> ForkedGpu:
    forked = ForkedGpu()
    monkeypatch.setattr(lending.spaces, "GPU", forked)
    monkeypatch.setattr(lending, "CALM_PICTURES", 12)
    monkeypatch.setattr(avatar_module, "SileroDetector", LoudDetector)
    monkeypatch.setattr(doorbell, "SileroDetector", LoudDetector)
    return forked


@pytest.fixture
def visit(gpu):
    """Opens sessions, watched; all are left at the end."""
    viewers: list[Viewer] = []

    def opened(answer=counting, mode: str = "conversation", call_s: float = 600.0) -> Viewer:
        lend = lender(Avatar(tiny_models()), lambda *_: [Scripted(answer)])
        opening = Opening(FACE, "a person nods", 3, mode, 2.0, Talk(persona=Persona("kind")))
        viewers.append(Viewer(LentSession(lend, opening, 0.25, call_s)))
        return viewers[-1]

    yield opened
    for viewer in viewers:
        viewer.leave()


def steps_at(viewer: Viewer) -> tuple[list[float], list[float]]:
    """How much neighbouring pictures differ: where a worker takes over or stops, and everywhere."""
    film: dict[int, np.ndarray] = {}
    for piece in viewer.pieces:
        film |= dict(enumerate(piece.pictures, piece.first_picture))
    numbers = sorted(film)
    assert numbers == list(range(len(numbers))), "no gap and no overlap"
    steps = [float(np.abs(film[n].astype(float) - film[n - 1]).mean()) for n in numbers[1:]]
    seams = [steps[n - 1] for n in numbers[1:] if (n in viewer.idle) != (n - 1 in viewer.idle)]
    return seams, steps


# ---------------------------------------------------------------- worker after worker


def test_two_replies_in_two_processes_are_one_conversation_and_one_face(gpu, visit) -> None:
    viewer = visit()
    viewer.until_idle()
    for text, reply in (("first", "reply0 word"), ("second", "reply2 word")):
        viewer.session.write(text)
        viewer.until(lambda line=("avatar", reply): line in viewer.lines(), f"no answer to {text}: {viewer.lines()}")
        viewer.until_idle()
    assert viewer.lines() == [
        ("visitor", "first"), ("avatar", "reply0 word"), ("visitor", "second"), ("avatar", "reply2 word"),
    ]  # fmt: skip
    assert len(set(gpu.pids)) == 3 and os.getpid() not in gpu.pids
    assert gpu.durations == [20, 605, 605], "the first call is short"
    seams, steps = steps_at(viewer)
    assert len(seams) == 5  # the first call has no loop before it
    assert max(seams) <= 2 * np.median(steps), (seams, np.median(steps))
    spoken = sum(len(piece.pictures) for piece in viewer.pieces if piece.speaking)
    assert spoken > 20
    told = [line for facts in viewer.facts for line in facts["lines"]]
    assert {line["number"] for line in told} == {0, 1, 2, 3}
    marks = [mark for facts in viewer.facts if facts["said"] for mark in facts["said"]["marks"]]
    first = next(piece.first_picture for piece in viewer.pieces if piece.speaking)
    assert first < marks[0][1] < first + 12, "captions are on the page's numbers"


def test_what_is_spoken_is_answered_without_a_word_being_lost(gpu, visit) -> None:
    viewer = visit()
    viewer.until_idle()
    sound = np.concatenate([np.zeros(8000), np.full(16_000, 0.2), np.zeros(16_000)]).astype(np.float32)
    for start in range(0, len(sound), 800):
        viewer.session.listen(sound[start : start + 800], MODEL_RATE)
    viewer.until(lambda: ("avatar", "reply0 word") in viewer.lines(), "no answer")
    assert viewer.lines()[0] == ("visitor", "hello")
    assert len(gpu.pids) == 2, "listening needed no GPU"


def test_an_interruption_reaches_the_worker(visit) -> None:
    viewer = visit(long_winded)
    viewer.until_idle()
    viewer.session.write("go on")
    viewer.until(lambda: sum(piece.speaking for piece in viewer.pieces) > 20, "nothing was said")
    wanted = viewer.session.interrupt()
    viewer.until(lambda: viewer.session.generation == wanted, "the worker did not hear it")
    void = next(piece for piece in viewer.pieces if piece.generation == wanted)
    assert not len(void.pictures)
    viewer.until_idle()
    later = [piece for piece in viewer.pieces if piece.generation == wanted and len(piece.pictures)]
    assert later[0].first_picture == void.first_picture
    assert not any(piece.speaking for piece in later)
    line = viewer.session.conversation.transcript.lines[-1]
    assert line.is_cut and 0 < len(line.text.split()) < 40
    viewer.session.write("and now")
    viewer.until(lambda: len(viewer.lines()) == 4, "no second answer")
    assert viewer.session.generation >= wanted


def test_a_worker_that_dies_costs_one_sentence(gpu, visit, caplog, capfd) -> None:
    viewer = visit(lambda turn, history: long_winded(turn, history) if not history else counting(turn, history))
    viewer.until_idle()
    viewer.session.write("first")
    viewer.until(lambda: len(viewer.lines()) == 2 and len(viewer.lines()[1][1]) > 6, "nothing was said")
    gpu.kill()
    viewer.until(lambda: viewer.session._thread is None, "the loss went unnoticed")
    viewer.until_idle()
    expected = "The GPU was taken away in the middle. Say it again: the conversation goes on where it was."
    assert viewer.session.notice == expected
    assert viewer.facts[-1]["notice"] == expected
    assert viewer.session.conversation.transcript.lines[1].is_cut
    viewer.session.write("second")
    viewer.until(lambda: ("avatar", "reply2 word") in viewer.lines(), f"no answer: {viewer.lines()}")
    viewer.until_idle()
    assert viewer.session.notice is None
    assert [role for role, _ in viewer.lines()] == ["visitor", "avatar", "visitor", "avatar"]
    steps_at(viewer)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_refusal_is_told_and_the_face_lives_on(gpu, visit) -> None:
    viewer = visit()
    viewer.until_idle()
    gpu.refusal = gr.Error("You have exceeded your ZeroGPU quota (60s requested vs. 3s left). Try again in 3:12:05. ")
    gpu.refusal.title = "ZeroGPU quota exceeded"
    viewer.session.write("hello")
    viewer.until(lambda: viewer.session.notice, "nothing was told")
    assert viewer.session.notice is not None and "Try again in 3:12:05" in viewer.session.notice
    viewer.until_idle()
    gpu.refusal = None
    viewer.session.write("again")
    viewer.until(lambda: ("avatar", "reply0 word") in viewer.lines(), "no answer")


def test_without_a_first_call_there_is_no_session(gpu) -> None:
    gpu.refusal = gr.Error("No GPU was available after 60s")
    lend = lender(Avatar(tiny_models()), lambda *_: [Scripted()])
    session = LentSession(lend, Opening(FACE, "", 0, "mirror", 2.0, Talk()), 0.25, 60.0)
    with pytest.raises(LiveTalkError, match="All GPUs are busy"):
        next(session.pictures())


def test_the_end_of_a_call_breaks_off_what_is_said(gpu, visit, monkeypatch) -> None:
    viewer = visit(long_winded, call_s=6.0)
    viewer.until_idle()
    viewer.session.write("go on")
    viewer.until(lambda: len(gpu.pids) == 2, "no call")
    viewer.until_idle()
    assert viewer.session.notice is None
    warned = [facts["notice"] for facts in viewer.facts if facts["notice"]]
    assert any(notice.startswith("The GPU is lent for another") for notice in warned)
    assert len(viewer.lines()) < 2 or len(viewer.lines()[1][1].split()) < 40


def test_a_mirror_says_a_clip_and_what_the_microphone_hears(gpu, visit) -> None:
    viewer = visit(mode="mirror")
    viewer.until_idle()
    viewer.session.listen(np.zeros(1600, np.float32), MODEL_RATE)
    viewer.session.play(babble(1.0), PLAYBACK_RATE)
    viewer.until(lambda: any(piece.speaking for piece in viewer.pieces), "nothing was said")
    viewer.until_idle()
    assert len(gpu.pids) == 2
    heard = sum(float(np.abs(piece.sound).sum()) for piece in viewer.pieces)
    assert heard == pytest.approx(float(np.abs(babble(1.0)).sum()), rel=0.02)
    with pytest.raises(LiveTalkError, match="float samples"):
        viewer.session.play(np.zeros((4, 2)), PLAYBACK_RATE)


def test_who_leaves_gives_the_gpu_back(gpu, visit) -> None:
    viewer = visit(long_winded)
    viewer.until_idle()
    viewer.session.write("go on")
    viewer.until(lambda: any(piece.speaking for piece in viewer.pieces), "nothing was said")
    viewer.leave()

    def is_gone() -> bool:
        try:
            return os.waitpid(gpu.pids[-1], os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    viewer.until(is_gone, "the worker goes on")


# ---------------------------------------------------------------- on the page


def test_sessions_of_the_page_are_lent(gpu, tmp_path) -> None:
    avatar = Avatar(tiny_models())
    lent = LentAvatar(avatar, lender(avatar, lambda *_: [Scripted(counting)]))
    sessions = LiveSessions(lent, None, 600.0, elsewhere=LentGpus(lent))
    assert sessions.places == 8
    sid = new_sid()
    list(sessions.waits(sid))
    with sessions.opened(sid, FACE, "a person nods", 0, "conversation") as session:
        assert isinstance(session, LentSession)
        viewer = Viewer(session)
        viewer.until_idle()
        sessions.change(sid, portrait=FACE[::-1].copy(), voice="low")
        sessions.write(sid, "hello")
        viewer.until(lambda: "reply0 word" in sessions.transcript(sid), "no answer")
        sessions.change(sid, prompt="a person laughs", instructions="a pirate")
        assert sessions.interrupt(sid) >= 0
        viewer.leave()
    path = sessions.avatar.render(FACE, (babble(1.2), PLAYBACK_RATE), out=tmp_path / "a.mp4")
    assert path.stat().st_size > 1000
    assert gpu.durations[-1] == pytest.approx(20.6, abs=1)
    with pytest.raises(LiveTalkError, match="not finite"):
        sessions.avatar.render(FACE, (np.full(24_000, np.nan, np.float32), PLAYBACK_RATE), out=tmp_path / "b.mp4")


def test_elsewhere_nothing_is_lent() -> None:
    assert not lending.is_lent()
    on_gpu = lender(Avatar(tiny_models()), lambda *_: [Scripted()])
    assert not hasattr(on_gpu, "zerogpu")
    sessions = LiveSessions(Avatar(tiny_models()), 1, 600.0, lambda *_: [Scripted()])
    sid = new_sid()
    list(sessions.waits(sid))
    with sessions.opened(sid, FACE, "", 0, "conversation") as session:
        assert isinstance(session, TalkSession)
    build(Avatar(tiny_models()), places=1)


def test_on_a_space_the_page_lends_with_one_function(gpu, monkeypatch) -> None:
    monkeypatch.setattr(page, "is_lent", lambda: True)
    made: list[LiveSessions] = []
    monkeypatch.setattr(page, "page_of", lambda sessions, _: made.append(sessions))
    build(Avatar(tiny_models()))
    assert len(gpu.decorated) == 1
    assert isinstance(made[0].avatar, LentAvatar)
    assert made[0].places == 8, "nothing is measured where there is no GPU yet"


def test_who_left_before_the_gpu_was_there_costs_nothing(gpu, caplog) -> None:
    wire = Wire()
    wire.close()
    lend = lender(Avatar(tiny_models()), lambda *_: [Scripted()])
    call = LiveCall(wire.address, wire.key, 60.0, Opening(FACE, "", 0, "mirror", 2.0, Talk()), 2.0, Talk())
    assert list(asked(lend, call)) == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_one_function_is_decorated() -> None:
    found = [
        (path.name, node.lineno)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "GPU" and isinstance(node.value, ast.Name)
    ]
    assert [name for name, _ in found] == ["lending.py"], found


def test_the_real_package_runs_it_as_on_a_space() -> None:
    """Decorator, worker processes, queues and errors of ``spaces`` itself; see the program."""
    command = [sys.executable, "-m", "tests.real_lending"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["is_lent"] and told["decorated"] == 1
    assert len(set(told["pids"])) == 3 and told["own"] not in told["pids"], "a process for each call"
    assert told["lines"][:4] == [
        ["visitor", "first"], ["avatar", "reply0 word"], ["visitor", "second"], ["avatar", "reply2 word"],
    ]  # fmt: skip
    assert told["released"] >= 3, "every GPU was given back"
    assert told["notice"].startswith("The free GPU time of today is used up.")
    assert "Traceback" not in done.stdout + done.stderr


# ---------------------------------------------------------------- the parts


EXCEEDED = "ZeroGPU quota exceeded"
REFUSALS = [
    (EXCEEDED, "You have exceeded your free ZeroGPU quota. Try again in 5:00:01. http://x", "again in 5:00:01,"),
    (EXCEEDED, "Space app has reached its GPU limit. Try re-running outside", "used up. Try again tomorrow"),
    (EXCEEDED, "No GPU was available after 60s. Try re-running outside", "All GPUs are busy"),
    ("ZeroGPU queue timeout", "No GPU was available after 60s [Create](http://x)", "All GPUs are busy"),
    ("ZeroGPU client error", "No GPU was available", "All GPUs are busy"),
    ("ZeroGPU illegal duration", "The requested GPU duration (90s) is larger than", "LIVETALK_GPU_CALL_S"),
    ("ZeroGPU pending credits exceeded", "You have too many ZeroGPU credits", "something else that is running"),
    ("ZeroGPU worker error", "GPU task aborted", "taken away in the middle"),
    ("ZeroGPU client error", "Expired ZeroGPU proxy token", "Expired ZeroGPU proxy token. Try again"),
]  # fmt: skip


@pytest.mark.parametrize(("title", "message", "told"), REFUSALS)
def test_every_refusal_is_a_sentence(title: str, message: str, told: str) -> None:
    error = gr.Error(message, title=title, print_exception=False)
    said = refusal(error)
    assert told in said
    assert said.endswith(".") and "http" not in said


def test_the_gpu_is_asked_for_in_the_name_of_whoever_takes_the_pictures() -> None:
    """ZeroGPU finds a visitor's share in the context of the page's call."""
    visitor: contextvars.ContextVar[str] = contextvars.ContextVar("visitor", default="nobody")
    seen: list[str] = []

    def lend(call) -> Generator:
        seen.append(visitor.get())
        raise gr.Error("No GPU was available")
        yield

    session = LentSession(lend, Opening(FACE, "", 0, "mirror", 2.0, Talk()), 0.25, 60.0)
    visitor.set("ada")
    with pytest.raises(LiveTalkError, match="All GPUs are busy"):
        next(session.pictures())
    assert seen == ["ada"]


def test_what_a_worker_did_not_hear_any_more_is_told_to_the_next(gpu, visit, monkeypatch) -> None:
    """A text that is written when a call has just ended is answered all the same."""
    viewer = visit()
    viewer.until_idle()
    end = viewer.session._end

    def end_later(error: str | None) -> None:
        viewer.session.write("second")
        viewer.session.draw(FACE[::-1].copy(), "a person laughs")
        monkeypatch.setattr(viewer.session, "_end", end)
        end(error)

    monkeypatch.setattr(viewer.session, "_end", end_later)
    viewer.session.write("first")
    viewer.until(lambda: ("avatar", "reply2 word") in viewer.lines(), f"no answer: {viewer.lines()}")
    assert [text for role, text in viewer.lines() if role == "visitor"] == ["first", "second"]


@pytest.mark.parametrize(("said", "is_fine"), [("90", True), ("", True), ("5", False), ("an hour", False)])
def test_the_length_of_a_call_is_checked(monkeypatch, said: str, is_fine: bool) -> None:
    monkeypatch.setenv(lending.CALL_VARIABLE, said)
    if is_fine:
        assert lending.call_limit_s() == float(said or 30)
    else:
        with pytest.raises(LiveTalkError, match=r"Expected seconds .* 15 or more"):
            lending.call_limit_s()


def numbered(first: int, count: int) -> Pictures:
    levels = np.arange(first, first + count, dtype=np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (count, 2, 2, 3)).copy()
    return Pictures(first, pictures, np.zeros(0, np.float32), 0, speaking=False)


def shown(loop: IdleLoop, count: int, homeward: bool = False) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in loop.pictures(count, homeward)]


def test_the_loop_moves_by_neighbours_and_comes_home() -> None:
    loop = IdleLoop()
    loop.take(numbered(0, 30))
    loop.take(numbered(24, 4))  # from 24 on the film was made again
    loop.begin(lost=False)
    assert loop.is_home
    seen = [27, *shown(loop, 60)]
    assert set(np.abs(np.diff(seen))) == {1}
    assert (min(seen), max(seen)) == (14, 27)
    way = [seen[-1], *shown(loop, 100, homeward=True)]
    assert way[-1] == 27 and loop.is_home
    assert all(0 < step <= HOMEWARD for step in np.diff(way))


def test_a_lost_film_is_left_softly_for_the_last_one_that_was_kept() -> None:
    loop = IdleLoop()
    loop.take(numbered(10, 8))
    loop.keep()
    loop.take(numbered(60, 20))
    loop.begin(lost=True)
    assert not loop.is_home
    seen = [79, *shown(loop, 10)]
    assert np.abs(np.diff(seen)).max() <= 12
    assert set(seen[7:]) <= set(range(10, 18))


def test_a_single_picture_is_a_loop_too() -> None:
    loop = IdleLoop()
    assert loop.is_empty and loop.is_home
    loop.take(numbered(5, 1))
    loop.begin(lost=False)
    assert shown(loop, 3) == [5, 5, 5]


def test_the_wire_tells_everything_in_order_and_knows_what_was_not_heard() -> None:
    wire, heard, done = Wire(), [], threading.Event()
    for number in range(5):
        wire.say("number", number)

    def deal(message) -> None:
        heard.append(message)
        if message[0] == "stop":
            done.set()

    hearing = Hearing(wire.address, wire.key, deal)
    wire.say("number", 5)
    while len(heard) < 6:
        time.sleep(0.01)
    wire.close()
    assert done.wait(PATIENCE_S)
    assert heard == [*(("number", (number,)) for number in range(6)), ("stop", ())]
    assert hearing.taken == 6
    assert wire.unheard(4) == [("number", (4,)), ("number", (5,))]
    assert not Path(wire.address).parent.exists()


def test_a_wire_that_nobody_heard_is_closed_at_once() -> None:
    wire = Wire()
    wire.say("hello")
    wire.close()
    assert wire.unheard(0) == [("hello", ())]
    with pytest.raises(OSError, match="No such file"):
        Hearing(wire.address, wire.key, lambda _: None)


def test_the_doorbell_keeps_a_turn_and_what_was_just_before(monkeypatch) -> None:
    monkeypatch.setattr(doorbell, "SileroDetector", LoudDetector)
    bell = Doorbell("conversation")
    told: list = []
    sound = np.concatenate([np.zeros(80_000), np.full(16_000, 0.2), np.zeros(16_000)]).astype(np.float32)
    for start in range(0, len(sound), 800):
        told = told or bell.hear(sound[start : start + 800], MODEL_RATE)
    kept = np.concatenate([samples for _, (samples, _) in told])
    assert np.count_nonzero(kept) == 16_000
    assert 0.2 * MODEL_RATE < np.flatnonzero(kept)[0] <= 1.1 * MODEL_RATE, "not the whole silence before"
    assert not bell.is_voice_on
    assert Doorbell("mirror").hear(np.zeros(800, np.float32), MODEL_RATE) == []
    assert len(Doorbell("mirror").hear(sound[80_000:80_800], MODEL_RATE)) == 1
