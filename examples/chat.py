"""A spoken conversation with a LiveTalk server, from Python: questions in sound files, answers as video pieces.

    python app.py                                         # in one terminal
    python examples/chat.py --portrait examples/portraits/amara.png --speech q1.wav q2.wav --out answers

Needs gradio_client, numpy and soundfile only. Speech goes up as it would from a microphone: all the time, in real
time, silence too; the server decides when a question is over. What comes down are pieces of about 0.75 s.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import base64
import secrets
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
from gradio_client import Client, handle_file

RATE = 16_000
PACKET_S = 0.2
QUIET_S = 2.0
"""The avatar has answered when it has not spoken for so long."""
PATIENCE_S = 20.0


class Visitor:
    """Speaks questions into a session, one after the other, each after the answer to the one before."""

    def __init__(self, client: Client, sid: str) -> None:
        self.client, self.sid = client, sid
        self.begun = threading.Event()
        self.spoke_at = 0.0  # when the avatar last spoke

    def ask_all(self, questions: list[Path]) -> None:
        """Asks, listens to the answers, and ends the session."""
        self.begun.wait()
        try:
            for path in questions:
                samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
                at = np.arange(0, len(samples), rate / RATE)
                self.speak(np.interp(at, np.arange(len(samples)), samples.mean(axis=1)))
                asked_at = time.monotonic()
                while not self.is_answered(asked_at):
                    self.speak(np.zeros(int(PACKET_S * RATE)))
        finally:
            self.client.predict(self.sid, api_name="/stop")

    def is_answered(self, asked_at: float) -> bool:
        """Whether the avatar spoke after the question and has finished, or will not answer any more."""
        now = time.monotonic()
        if self.spoke_at < asked_at:
            return now > asked_at + PATIENCE_S
        return now > self.spoke_at + QUIET_S

    def speak(self, samples: np.ndarray) -> None:
        """Pushes mono samples in -1..1 in packets, each when its time has come."""
        size, begin = int(PACKET_S * RATE), time.monotonic()
        for number, start in enumerate(range(0, len(samples), size)):
            time.sleep(max(0.0, begin + (number + 1) * PACKET_S - time.monotonic()))
            packet = (np.clip(samples[start : start + size], -1, 1) * 32767).astype("<i2").tobytes()
            self.client.predict(self.sid, base64.b64encode(packet).decode(), RATE, api_name="/push_audio")


def main() -> None:
    """Holds the conversation and prints it as it goes on."""
    parser = argparse.ArgumentParser(description="a spoken conversation with a LiveTalk server")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="address of the server, or a Space's name")
    parser.add_argument("--portrait", required=True, help="picture of a face")
    parser.add_argument("--speech", required=True, nargs="+", type=Path, help="sound files, a question each")
    parser.add_argument("--talker", default="", help="who answers (default: the best the server can run)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the pieces (mp4)")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)

    client = Client(arguments.url, verbose=False)
    sid = secrets.token_urlsafe(24)  # whoever knows it may speak into the session
    visitor = Visitor(client, sid)
    job = client.submit(
        sid, handle_file(arguments.portrait), mode="conversation", talker=arguments.talker, api_name="/session"
    )
    threading.Thread(target=visitor.ask_all, args=(arguments.speech,), daemon=True).start()
    for piece in job:
        if piece["state"] == "waiting":  # all places are taken
            print(piece["text"])
            continue
        visitor.begun.set()
        if piece["state"] == "speaking":
            visitor.spoke_at = time.monotonic()
        print(piece["text"], end="", flush=True)  # new words only
        if arguments.out:
            # A piece that starts before the end of the one before replaces the rest of it.
            shutil.copy(piece["video"], arguments.out / f"{piece['index']:05d}-at-{piece['start_s']:.2f}s.mp4")
    print()
    job.result()  # raises what went wrong, in a sentence


if __name__ == "__main__":
    main()
