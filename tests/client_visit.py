"""A visit to a running server from another process, with gradio_client; prints what happened as one JSON line.

Usage: python tests/client_visit.py URL PORTRAIT SPEECH QUESTION
"""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import traceback
import urllib.request
import uuid

from gradio_client import Client, handle_file

from livetalk.media.sound import load_speech

RATE = 16_000
PACKET = RATE // 5
MOST_PACKETS = 200


def visit(url: str, portrait: str, speech: str, question: str) -> dict:
    client = Client(url, verbose=False)
    seen = {"endpoints": client.view_api(print_info=False, return_format="dict")["named_endpoints"]}
    seen["errors"] = errors(client, portrait, question) | {"stolen file": stolen(url)}
    seen["chat"] = chat(client, portrait, question)
    seen["conversation"] = conversation(client, portrait)
    seen |= live(client, portrait, load_speech(speech, RATE))
    seen["render"] = client.predict(
        handle_file(portrait), handle_file(speech), "a calm voice 🙂", 3, api_name="/render"
    )
    return seen


def live(client: Client, portrait: str, samples) -> dict:
    """Pushes packets until speaking pieces come back, then a few more, and stops when all of it was said."""
    sid, pieces, pushed = uuid.uuid4().hex, [], []
    begun, spoken = threading.Event(), threading.Event()

    def push() -> None:
        begun.wait(120)
        after = 0
        for number in range(MOST_PACKETS):
            at = number * PACKET % (len(samples) - PACKET)
            packet = (samples[at : at + PACKET] * 32767).astype("<i2").tobytes()
            answer = client.predict(sid, base64.b64encode(packet).decode(), RATE, api_name="/push_audio")
            pushed.append({"pieces_before": len(pieces), **answer})
            after += spoken.is_set()
            if after >= 4:
                break
        seen_before = len(pieces)
        while len(pieces) < seen_before + 4:
            begun.wait(0.1)
            threading.Event().wait(0.1)
        client.predict(sid, api_name="/stop")

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    for piece in client.submit(sid, handle_file(portrait), "", 1, "mirror", api_name="/session"):
        pieces.append(piece)
        begun.set()
        if piece["state"] == "speaking" and not spoken.is_set():
            spoken.set()
    thread.join(60)
    return {"pieces": pieces, "pushed": pushed}


def chat(client: Client, portrait: str, question: str) -> list[dict]:
    """A typed and a spoken question of one conversation of files."""
    face, sid = handle_file(portrait), uuid.uuid4().hex
    return [
        client.predict(face, None, "What is LiveTalk?", sid, talker="offline", api_name="/chat"),
        client.predict(face, handle_file(question), sid=sid, talker="offline", api_name="/chat"),
    ]


def conversation(client: Client, portrait: str) -> list[dict]:
    """A live conversation with a typed question, until it was answered."""
    sid, pieces, stopped = uuid.uuid4().hex, [], False
    job = client.submit(
        sid, handle_file(portrait), mode="conversation", talker="offline", instructions="Be kind.", api_name="/session"
    )
    for piece in job:
        pieces.append(piece)
        if piece["index"] == 0:
            client.predict(sid, "What is LiveTalk?", api_name="/say")
        answered = any(line["role"] == "avatar" and line["is_final"] for line in piece["lines"])
        # once: a call made in the moment in which the session's own ends may never be answered (Gradio 6.31)
        if not stopped and (answered or len(pieces) > 100):
            stopped = True
            client.predict(sid, api_name="/stop")
    job.result()
    return pieces


def errors(client: Client, portrait: str, question: str) -> dict[str, str]:
    """What the server says to mistakes."""
    face, sid = handle_file(portrait), uuid.uuid4().hex
    calls = {
        "unknown sid": lambda: client.predict(uuid.uuid4().hex, "AAAA", RATE, api_name="/push_audio"),
        "stop unknown": lambda: client.predict(uuid.uuid4().hex, api_name="/stop"),
        "short sid": lambda: client.predict("me", face, "", 0, "mirror", api_name="/session"),
        "talker": lambda: client.predict(sid, face, "", 0, "conversation", "nobody", api_name="/session"),
        "say unknown": lambda: client.predict(uuid.uuid4().hex, "hello", api_name="/say"),
        "no question": lambda: client.predict(face, api_name="/chat"),
        "two questions": lambda: client.predict(face, handle_file(question), "hello", api_name="/chat"),
        "long prompt": lambda: client.predict(sid, face, "word " * 20_000, 0, "mirror", api_name="/session"),
        "seed": lambda: client.predict(sid, face, "", -1, "mirror", api_name="/session"),
        "no file": lambda: client.predict("/etc/passwd", "/etc/passwd", "", 0, api_name="/render"),
    }
    said = {}
    for name, call in calls.items():
        try:
            said[name] = f"no error: {call()}"
        except Exception as error:
            said[name] = str(error)
    return said


def stolen(url: str) -> str:
    """What the server answers to somebody who names one of its own files instead of sending one."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    request = urllib.request.Request(
        f"{url}gradio_api/call/render",
        data=json.dumps({"data": [file, file, "", 0]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/render/{event}", timeout=60) as answer:
        return answer.read().decode()


if __name__ == "__main__":
    try:
        seen = visit(*sys.argv[1:5])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # threads of the client may still wait for the server
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    os._exit(0)
