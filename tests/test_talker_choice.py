"""Which talker answers, and who stands behind it."""

from __future__ import annotations

import pytest

from livetalk.stream.talkers.registry import CHOICES, Visitor, choice, talker_chain
from livetalk.types import LiveTalkError


def names(chain) -> list[str]:
    for talker in chain:
        talker.close()
    return [talker.name for talker in chain]


def test_auto_on_a_machine_with_nothing_is_offline(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("LIVETALK_TALKER", raising=False)
    monkeypatch.delenv("LIVETALK_REALTIME_URL", raising=False)
    assert names(talker_chain()) == ["offline"]


def test_a_server_the_operator_named_comes_first_and_offline_stands_behind_it(monkeypatch) -> None:
    monkeypatch.setenv("LIVETALK_REALTIME_URL", "ws://127.0.0.1:9/v1/realtime")
    assert names(talker_chain("auto")) == ["realtime", "offline"]


def test_auto_never_sends_a_voice_to_a_hosted_service(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("LIVETALK_REALTIME_URL", raising=False)
    assert names(talker_chain("auto", Visitor(token="hf_visitor"))) == ["offline"]
    assert names(talker_chain("hosted", Visitor(token="hf_visitor"))) == ["hosted", "offline"]


@pytest.mark.parametrize("name", ["gemma", "gemma-e4b", "qwen3-omni", "realtime", "hosted"])
def test_what_was_asked_for_and_cannot_work_says_why(monkeypatch, name: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for variable in ("LIVETALK_REALTIME_URL", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("livetalk.stream.talkers.hosted.machine_token", lambda: None)
    with pytest.raises(LiveTalkError, match=f"'{name}' cannot work here: .{{20,}}"):
        talker_chain(name)


def test_the_environment_chooses(monkeypatch) -> None:
    monkeypatch.setenv("LIVETALK_TALKER", "offline")
    assert names(talker_chain()) == ["offline"]
    monkeypatch.setenv("LIVETALK_TALKER", "parrot")
    with pytest.raises(LiveTalkError, match="no talker 'parrot'"):
        talker_chain()


def test_every_choice_has_a_label() -> None:
    assert len({one.name for one in CHOICES}) == len(CHOICES)
    assert all(one.label for one in CHOICES)
    assert choice("offline").missing(Visitor()) is None
