"""One Kafka broker for all workers of a test run, started by the first test that needs one, stopped at the end.

What was not run for want of a program is said at the end, a line for each reason.
"""

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

NOT_RUN = {"Kafka: ": "with Kafka", "Prometheus: ": "with Prometheus", "a browser: ": "of the page"}
"""How the reason of a test begins that was skipped for want of a program; what such tests are called."""


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
    for begins, called in NOT_RUN.items():
        for reason, times in Counter(r.removeprefix(begins) for r in reasons if r.startswith(begins)).items():
            terminalreporter.write_line(f"{times} tests {called} were not run: {reason}", yellow=True)
