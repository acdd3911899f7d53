"""A program: a conversation on the real ``spaces`` package as on a ZeroGPU Space, but without a GPU.

Its scheduler is a small server here, and its changes to torch stay out: it is imported as where torch is missing. What
is left is real: the decorator, worker processes, queues and errors. The last line of the output is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlparse

QUOTA = {"left": 3, "wait": 11_525}
PATIENCE_S = 300.0


class Scheduler(BaseHTTPRequestHandler):
    """Lends a GPU to whoever asks, until ``is_used_up``."""

    pids: ClassVar[list[int]] = []
    asked_s: ClassVar[list[int]] = []
    released = 0
    is_used_up = False

    def do_POST(self) -> None:
        address = urlparse(self.path)
        asked = parse_qs(address.query)
        status, answer = 200, {}
        if address.path == "/schedule":
            Scheduler.asked_s.append(int(asked["durationSeconds"][0]))
            answer = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
            if Scheduler.is_used_up:
                status, answer = 429, QUOTA
        elif address.path == "/allow":
            Scheduler.pids.append(int(asked["pid"][0]))
        elif address.path == "/release":
            Scheduler.released += 1
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def import_spaces(address: str) -> None:
    os.environ |= {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": address}
    sys.modules["torch"] = None  # type: ignore[assignment]
    import spaces  # noqa: F401

    del sys.modules["torch"]


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scheduler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import_spaces(f"http://127.0.0.1:{server.server_port}")
    from spaces.zero.decorator import decorated_cache

    from livetalk.stream.avatar import Avatar
    from livetalk.ui.lending import is_lent, lender
    from livetalk.ui.lent import LentSession
    from livetalk.ui.opening import Opening
    from livetalk.ui.visit import Talk
    from tests.live import tiny_models
    from tests.test_conversation import Scripted
    from tests.test_lent import FACE, Viewer, counting

    lend = lender(Avatar(tiny_models()), lambda *_: [Scripted(counting)])
    viewer = Viewer(LentSession(lend, Opening(FACE, "a person nods", 3, "conversation", 2.0, Talk()), 0.25, 600.0))
    viewer.until_idle()
    for count, text in enumerate(("first", "second")):
        viewer.session.write(text)
        viewer.until(lambda wanted=2 * count + 2: len(viewer.lines()) == wanted, f"no answer to {text}")
        viewer.until_idle()
    Scheduler.is_used_up = True
    viewer.session.write("third")
    viewer.until(lambda: viewer.session.notice, "the refusal was not told")
    notice = viewer.session.notice
    viewer.leave()
    end = time.monotonic() + PATIENCE_S
    while Scheduler.released < len(Scheduler.pids) and time.monotonic() < end:
        time.sleep(0.02)
    told = {
        "is_lent": is_lent(),
        "decorated": len(set(decorated_cache.values())),
        "pids": Scheduler.pids,
        "own": os.getpid(),
        "asked_s": Scheduler.asked_s,
        "released": Scheduler.released,
        "lines": viewer.lines(),
        "notice": notice,
    }
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
