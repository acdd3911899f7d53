"""The API from another process: what it says of itself, live sessions, conversations, rendered files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from livetalk.media.sound import write_speech
from livetalk.voice import default_voice, speak

ROOT = Path(__file__).parents[1]
PORTRAIT = sorted((ROOT / "examples" / "portraits").glob("*.png"))[0]
SPOKEN, SPOKEN_TOPIC = "How long is a chunk?", "chunks"
SPEECH = min((ROOT / "examples" / "speech").glob("*.ogg"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def seen(page_url, tmp_path_factory):
    question = tmp_path_factory.mktemp("question") / "question.wav"
    spoken = speak(SPOKEN, default_voice())
    write_speech(question, spoken.samples, spoken.sample_rate)
    visit = [sys.executable, "tests/client_visit.py", page_url, str(PORTRAIT), str(SPEECH), str(question)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(visit, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def streams(path: str) -> tuple[int, float, float]:
    """Pictures, their seconds and the seconds of sound of an mp4."""
    with av.open(path) as clip:
        video, sound = clip.streams.video[0], clip.streams.audio[0]
        assert video.codec_context.name == "h264" and video.average_rate == 16
        seconds = float(sound.duration * sound.time_base)
        pictures = sum(1 for _ in clip.decode(video))
    return pictures, pictures / 16, seconds


def test_the_endpoints_are_documented(seen):
    endpoints = seen["endpoints"]
    assert set(endpoints) == {"/render", "/session", "/push_audio", "/say", "/stop", "/chat"}
    named = {
        name: [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        for name, endpoint in endpoints.items()
    }
    assert named == {
        "/render": ["portrait", "speech", "prompt", "seed"],
        "/session": ["sid", "portrait", "prompt", "seed", "mode", "talker", "voice", "instructions"],
        "/push_audio": ["sid", "pcm16_base64", "rate"],
        "/say": ["sid", "text"],
        "/stop": ["sid"],
        "/chat": ["portrait", "speech", "text", "sid", "prompt", "voice", "seed", "talker"],
    }
    kinds = [parameter["python_type"]["type"] for parameter in endpoints["/render"]["parameters"]]
    assert kinds == ["filepath", "filepath", "str", "int"]
    assert all(endpoint["description"] for endpoint in endpoints.values())
    piece = endpoints["/session"]["returns"][0]["python_type"]["type"]
    assert all(key in piece for key in ("index", "start_s", "duration_s", "video", "state", "text", "lines", "notice"))
    answer = endpoints["/chat"]["returns"][0]["python_type"]["type"]
    assert all(key in answer for key in ("video: filepath", "heard", "reply", "transcript", "talker", "notice"))


def test_pieces_come_while_speech_is_still_pushed(seen):
    pieces, pushed = seen["pieces"], seen["pushed"]
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    speaking = [piece["index"] for piece in pieces if piece["state"] == "speaking"]
    assert speaking and speaking[0] < pushed[-1]["pieces_before"], "a speaking piece came before the last push"
    assert all(answer["accepted_samples"] == 3200 for answer in pushed)
    assert all(piece["text"] == "" for piece in pieces)
    for piece in (pieces[0], pieces[speaking[0]]):
        pictures, seconds, sound_s = streams(piece["video"])
        assert pictures == round(piece["duration_s"] * 16) and abs(sound_s - seconds) <= 1 / 16
    starts = [piece["start_s"] for piece in pieces]
    assert starts == sorted(starts)


def replies(topic: str) -> set[str]:
    """What the offline talker may answer first on a topic."""
    topics = json.loads((ROOT / "livetalk" / "stream" / "talkers" / "topics.json").read_text())["topics"]
    return {reply for known in topics if known["name"] == topic for reply in known["replies"]}


def test_a_live_conversation_is_answered(seen):
    pieces = seen["conversation"]
    text = "".join(piece["text"] for piece in pieces)
    assert text.startswith("You: What is LiveTalk?\nLiveTalk: ")
    assert " ".join(text.split("LiveTalk: ")[1].split()) in replies("what is livetalk")
    assert {"speaking", "listening"} <= {piece["state"] for piece in pieces}


def test_a_chat_of_files_is_answered(seen):
    typed, spoken = seen["chat"]
    assert typed["heard"] == "What is LiveTalk?"
    assert " ".join(typed["reply"].split()) in replies("what is livetalk")
    assert " ".join(spoken["reply"].split()) in replies(SPOKEN_TOPIC), spoken["heard"]
    assert spoken["transcript"].count("\n") == 4
    for answer in (typed, spoken):
        _, seconds, sound_s = streams(answer["video"])
        assert abs(seconds - answer["seconds"]) <= 1 / 16 and abs(sound_s - seconds) <= 1 / 16


def test_a_rendered_file_is_as_long_as_its_speech(seen):
    with av.open(str(SPEECH)) as clip:
        sound = clip.streams.audio[0]
        speech_s = float(sound.duration * sound.time_base)
    _, seconds, sound_s = streams(seen["render"])
    assert abs(seconds - speech_s) <= 1 / 16 and abs(sound_s - seconds) <= 1 / 16


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("unknown sid", "No session has this sid"),
        ("stop unknown", "No session has this sid"),
        ("short sid", "hard to guess"),
        ("talker", "Known talkers"),
        ("say unknown", "No session has this sid"),
        ("no question", "nothing to answer"),
        ("two questions", "one of them"),
        ("long prompt", "2,000"),
        ("seed", "whole number"),
        ("no file", "handle_file"),
        ("stolen file", "not uploaded"),
    ],
)
def test_mistakes_get_a_sentence(seen, mistake, words):
    said = seen["errors"][mistake]
    assert words in said and "no error" not in said and "Traceback" not in said and "root:" not in said
