"""What stands between the page and a session: secret names, places, packets, inputs, errors as sentences."""

from __future__ import annotations

import asyncio
import base64
import uuid

import gradio as gr
import numpy as np
import pytest
from flash_avatar import FlashAvatar

from livetalk.types import LiveTalkError, Pictures
from livetalk.ui.api import PIECE_PICTURES, Outbox, pieces
from livetalk.ui.live import LiveSessions, check_mode, check_sid, decoded_pcm16
from livetalk.ui.page import build, launch_options, live_events, server_functions
from livetalk.ui.plain import checked_prompt, checked_seed, chosen, plain, uploaded


@pytest.fixture
def sessions():
    return LiveSessions(FlashAvatar(), places=1, limit_s=60.0)


def pcm(samples: int) -> str:
    return base64.b64encode(np.zeros(samples, "<i2").tobytes()).decode()


def test_a_session_lives_under_its_name_and_is_forgotten(sessions):
    sid = uuid.uuid4().hex
    with sessions.opened(sid, "face.png", "", 0) as session:
        assert sessions.get(sid) is session and len(sessions) == 1
        assert sessions.push(sid, pcm(160), 16_000)["accepted_samples"] == 160
        with pytest.raises(LiveTalkError, match="in use"), sessions.opened(sid, "face.png", "", 0):
            pass
        sessions.stop(sid)
        assert session.state == "stopped"
    assert len(sessions) == 0
    sessions.stop(sid)
    for call in (lambda: sessions.push(sid, pcm(160), 16_000), lambda: sessions.stop(uuid.uuid4().hex)):
        with pytest.raises(LiveTalkError, match="No session"):
            call()


def test_a_packet_may_overtake_the_call_that_opens_its_session(sessions):
    sid = uuid.uuid4().hex

    async def early() -> bool:
        waiting = asyncio.create_task(sessions.begun(sid, 30.0))
        await asyncio.sleep(0.1)
        with sessions.opened(sid, "face.png", "", 0):
            await waiting
            return sid in sessions._sessions

    assert asyncio.run(early())
    asyncio.run(sessions.begun(uuid.uuid4().hex, 0.01))


def test_who_waits_learns_the_place_in_line(sessions):
    first, second, third = (uuid.uuid4().hex for _ in range(3))
    assert sessions.place(first) == 0
    with sessions.opened(first, "face.png", "", 0):
        assert [sessions.place(sid) for sid in (second, third, second, first)] == [1, 2, 1, 0]
    assert sessions.place(third) == 0


@pytest.mark.parametrize(
    "sid", ["", "short", "a" * 32, "../../../etc/passwd-and-more", None, 12345678901234567890, "x" * 200]
)
def test_guessable_names_are_refused(sid):
    with pytest.raises(LiveTalkError, match="hard to guess"):
        check_sid(sid)


def test_modes():
    check_mode("mirror")
    for mode, words in (("conversation", "later"), ("opera", "Known modes")):
        with pytest.raises(LiveTalkError, match=words):
            check_mode(mode)


@pytest.mark.parametrize(
    ("speech", "rate", "words"),
    [
        ("!!!!", 16_000, "base64"),
        ("AAA=", 16_000, None),
        ("AA==", 16_000, "odd number"),
        (None, 16_000, "no text"),
        ("AAAA", 5, "rate"),
        ("AAAA", float("nan"), "rate"),
        ("AAAA", "16000", "rate"),
        ("A" * 2_000_000, 16_000, "longer than 10 s"),
    ],
)
def test_packets(speech, rate, words):
    if words is None:
        assert decoded_pcm16(speech, rate).dtype == np.float32
        return
    with pytest.raises(LiveTalkError, match=words):
        decoded_pcm16(speech, rate)


def test_inputs(tmp_path):
    assert checked_prompt("  smile 🙂 ") == "smile 🙂" and checked_prompt(None) == ""
    assert checked_seed(7.0) == 7 and checked_seed(None) == 0
    for seed in (-1, 1.5, float("nan"), "7", True, 2**40):
        with pytest.raises(LiveTalkError, match="seed"):
            checked_seed(seed)
    for prompt in ("x" * 100_000, 7):
        with pytest.raises(LiveTalkError, match="prompt"):
            checked_prompt(prompt)
    example = tmp_path / "ada.png"
    assert chosen({"name": "ada"}, {"ada": example}, "face") == example
    for value in (None, {"name": "eve"}, {"path": "/etc/passwd"}, {"failed": "x could not be sent."}, "ada"):
        with pytest.raises(LiveTalkError):
            chosen(value, {"ada": example}, "face")
    with pytest.raises(LiveTalkError, match="handle_file"):
        uploaded({"path": "/etc/passwd"}, "portrait")


def test_errors_become_sentences(caplog):
    def breaks(error):
        raise error

    with pytest.raises(gr.Error, match="Too long"):
        plain(breaks)(LiveTalkError("Too long. Expected less."))
    upload = "/tmp/gradio/" + "0af9" * 16 + "/me.png"
    with pytest.raises(gr.Error, match=r"portrait me\.png is"):
        plain(breaks)(LiveTalkError(f"The portrait {upload} is empty."))
    with pytest.raises(gr.Error, match="went wrong") as caught:
        plain(breaks)(RuntimeError("secret detail"))
    assert "secret" not in caught.value.message and "secret detail" in caplog.text


def test_pieces_are_whole_and_cut_at_generations():
    class Source:
        def pictures(self):
            for first, count, generation in (
                (0, 9, 0),
                (9, 4, 0),
                (13, 4, 0),
                (15, 0, 1),
                (15, 8, 1),
                (23, 4, 1),
                (27, 2, 1),
            ):
                yield Pictures(
                    first, np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, np.float32), generation, False
                )

    got = [(piece.first_picture, len(piece.pictures), piece.generation) for piece in pieces(Source(), 60.0)]
    assert got == [(0, 13, 0), (13, 4, 0), (15, 12, 1), (27, 2, 1)] and PIECE_PICTURES == 12


def test_the_stage_gets_fragments_then_the_end_or_a_sentence(sessions, tmp_path):
    sid = uuid.uuid4().hex
    event = gr.EventData(None, {"sid": sid, "codec": "h264"})
    face = tmp_path / "face.png"
    values = live_events(sessions, {"ada": face})({"name": "ada"}, None, 0, event)
    assert next(values)["sid"] == sid
    sessions.stop(sid)
    assert list(values)[-1] == {"sid": sid, "end": True}
    (value,) = live_events(sessions, {})(None, None, 0, event)
    assert "No face is chosen" in value["error"] and len(sessions) == 0


def test_a_closed_window_frees_its_place(sessions, tmp_path):
    event = gr.EventData(None, {"sid": uuid.uuid4().hex, "codec": "jpeg"})
    values = live_events(sessions, {"ada": tmp_path / "face.png"})({"name": "ada"}, "", 0, event)
    next(values)
    assert len(sessions) == 1
    values.close()
    assert len(sessions) == 0


def test_what_the_stage_may_call_never_raises(sessions):
    push, stop, cut, place = server_functions(sessions)
    sid = uuid.uuid4().hex
    for answer in (push([sid, 16_000, "AAAA"]), push("nonsense"), push(None), stop(sid), cut(None)):
        assert "error" in asyncio.run(answer)
    assert asyncio.run(place("x")) == 0


def test_old_files_leave_the_outbox(monkeypatch):
    outbox = Outbox()
    old = outbox.path("a.mp4")
    old.write_bytes(b"x")
    monkeypatch.setattr("time.time", lambda: old.stat().st_mtime + 10_000)
    fresh = outbox.path("b.mp4")
    assert not old.exists() and fresh.parent.is_dir()


def test_only_the_api_is_public():
    page = build(FlashAvatar())
    public = {fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"}
    assert public == {"render", "session", "push_audio", "stop"}
    options = launch_options()
    assert options["ssr_mode"] is False and options["run_history"] is False and "allowed_paths" not in options
