"""What stands between the page and a session: secret names, places, packets, inputs, errors as sentences."""

from __future__ import annotations

import asyncio
import base64
import uuid

import gradio as gr
import numpy as np
import pytest
from flash_avatar import FlashAvatar

from livetalk.config import PRESETS
from livetalk.types import LiveTalkError, Pictures
from livetalk.ui.api import PIECE_PICTURES, pieces
from livetalk.ui.checks import check_mode, check_sid, decoded_pcm16
from livetalk.ui.live import LiveSessions
from livetalk.ui.page import build, launch_options, live_events, page_of, server_functions
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
            return len(sessions) == 1

    assert asyncio.run(early())
    asyncio.run(sessions.begun(uuid.uuid4().hex, 0.01))


@pytest.mark.parametrize(
    "sid", ["", "short", "a" * 32, "../../../etc/passwd-and-more", None, 12345678901234567890, "x" * 200]
)
def test_guessable_names_are_refused(sid):
    with pytest.raises(LiveTalkError, match="hard to guess"):
        check_sid(sid)


def test_modes():
    for mode in ("mirror", "conversation"):
        check_mode(mode)
    for mode in ("opera", None, ["mirror"]):
        with pytest.raises(LiveTalkError, match="Known modes"):
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
    stream = (
        Pictures(first, np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, np.float32), generation, False)
        for first, count, generation in (
            (0, 9, 0),
            (9, 4, 0),
            (13, 4, 0),
            (15, 0, 1),
            (15, 8, 1),
            (23, 4, 1),
            (27, 2, 1),
        )
    )
    got = [(piece.first_picture, len(piece.pictures), piece.generation) for piece in pieces(stream, 60.0)]
    assert got == [(0, 13, 0), (13, 4, 0), (15, 12, 1), (27, 2, 1)] and PIECE_PICTURES == 12


def test_the_stage_gets_fragments_then_the_end_or_a_sentence(sessions, tmp_path):
    sid = uuid.uuid4().hex
    event = gr.EventData(None, {"sid": sid, "codec": "h264"})
    face = tmp_path / "face.png"
    values = live_events(sessions, {"ada": face})({"name": "ada"}, None, 0, None, event)
    assert next(values)["sid"] == sid
    sessions.stop(sid)
    assert list(values)[-1] == {"sid": sid, "end": True}
    (value,) = live_events(sessions, {})(None, None, 0, None, event)
    assert "No face is chosen" in value["error"] and len(sessions) == 0


def test_a_closed_window_frees_its_place(sessions, tmp_path):
    event = gr.EventData(None, {"sid": uuid.uuid4().hex, "codec": "jpeg"})
    values = live_events(sessions, {"ada": tmp_path / "face.png"})({"name": "ada"}, "", 0, {"mood": "sad"}, event)
    next(values)
    assert len(sessions) == 1
    values.close()
    assert len(sessions) == 0


def test_what_the_stage_may_call_never_raises(sessions):
    functions = {function.__name__: function for function in server_functions(sessions)}
    assert set(functions) == {"push", "stop", "cut", "write", "keep", "beat", "change"}
    sid = uuid.uuid4().hex
    for name, value in (
        ("push", [sid, 16_000, "AAAA"]),
        ("push", "nonsense"),
        ("push", None),
        ("stop", sid),
        ("cut", None),
        ("write", [sid, "hello"]),
        ("keep", [sid]),
        ("beat", 7),
    ):
        assert "error" in asyncio.run(functions[name](value)), name
    for wishes in ({"mood": "hungry"}, {"persona": "x" * 9_000}, {"voice": 7}, {"mood": "sad"}):
        assert "error" in functions["change"]([sid, wishes])


def test_only_the_api_is_public():
    page = build(FlashAvatar(), places=1)
    public = {fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"}
    assert public == {"render", "session", "push_audio", "say", "stop", "chat"}
    options = launch_options()
    assert options["ssr_mode"] is False and options["run_history"] is False and "allowed_paths" not in options


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_the_page_says_which_model_is_on_and_under_which_licence(preset):
    avatar = FlashAvatar()
    avatar.preset = preset
    page = page_of(LiveSessions(avatar, places=1, limit_s=60.0))
    shown = next(block for block in page.blocks.values() if block.elem_id == "lt-head").html_template
    licences = {one.licence for one in preset.weights.repositories} or {"Apache-2.0"}
    assert preset.title in shown and all(licence in shown for licence in licences)
