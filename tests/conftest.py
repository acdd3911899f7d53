"""Shared by all tests: where skipping is forbidden (CI), a skip is a failure."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SKIPPED: list[str] = []

LIVE = [
    "app",
    "away",
    "browser",
    "browser_talk",
    "chat_api",
    "client",
    "conversation",
    "conversation_bench",
    "hosted_talker",
    "lent",
    "live_sessions",
    "local_talkers",
    "offline_talker",
    "readme",
    "realtime_talker",
    "replicas",
    "session",
    "soak_conversation",
    "soak_performer",
    "talker_process",
]
"""Modules with servers, browsers, processes or real time; the others may run side by side."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    live = {f"test_{name}" for name in LIVE}
    for item in items:
        if item.path.stem in live:
            item.add_marker(pytest.mark.live)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        SKIPPED.append(f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("LIVETALK_NO_SKIP") and SKIPPED and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter) -> None:
    if os.environ.get("LIVETALK_NO_SKIP") and SKIPPED:
        terminalreporter.section("skipped where nothing may be skipped (LIVETALK_NO_SKIP)")
        for line in SKIPPED:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def page_url(tmp_path_factory):
    """Address of ``app.py``, served by its own process for the whole run (``LIVETALK_TEST_PRESET``, else mini)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "LIVETALK_PRESET": os.environ.get("LIVETALK_TEST_PRESET", "mini"),
    }
    log = tmp_path_factory.mktemp("page") / "server.log"
    url = f"http://127.0.0.1:{port}/"
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            wait_for(url + "config", server, log)
            yield url
            assert server.poll() is None, f"the server died:\n{log.read_text()[-2000:]}"
        finally:
            server.terminate()
            server.wait(20)


def wait_for(url: str, server: subprocess.Popen, log: Path, limit_s: float = 180.0) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"app.py does not serve:\n{log.read_text()[-3000:]}")
