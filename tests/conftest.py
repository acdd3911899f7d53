"""Shared by all tests: where skipping is forbidden (CI), a skip is a failure."""

from __future__ import annotations

import os

import pytest

SKIPPED: list[str] = []


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
