"""One Kafka broker for all workers of a test run, started by the first test that needs one, stopped at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from deploy.broker.broker import Broker

FOLDER = "FRESHET_TEST_BROKER"
"""The environment variable by which workers know the folder of the broker."""

NOT_RUN = ("Kafka", "Prometheus")
"""How the reasons of tests begin, before a colon, that were skipped for want of something."""


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="freshet-broker-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not is_worker(config):
        folder = Path(os.environ.pop(FOLDER))
        Broker(folder).stop()
        shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for r in terminalreporter.stats.get("skipped", ()) if isinstance(r.longrepr, tuple)]
    reasons = [r.longrepr[2].removeprefix("Skipped: ") for r in reports]
    told = [(what, r.removeprefix(f"{what}: ")) for r in reasons for what in NOT_RUN if r.startswith(f"{what}: ")]
    for (what, reason), times in Counter(told).items():
        terminalreporter.write_line(f"{times} tests with {what} were not run: {reason}", yellow=True)
