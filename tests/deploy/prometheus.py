"""Prometheus for tests: its tools, and a server of its own that scrapes what a test runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.flow.running import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
NOT_RUN = "Prometheus: "
"""How the reason of a test begins that was skipped for want of it; told at the end of the run."""


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`. Skips the test when it is not there; in CI that is a failure."""
    if found := shutil.which(name):
        return found
    reason = f"there is no {name} on the PATH: apt install prometheus"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(NOT_RUN + reason)


def promtool(*args: str | Path) -> None:
    """Run promtool; what it finds fault with fails the test."""
    done = subprocess.run([tool("promtool"), *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A server that answers at `url`."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url, self.process = url, process

    def ask(self, path: str, **given: str) -> Any:
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(given)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{given}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: the labels and value of each of its series."""
        found = self.ask("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def firing(self) -> dict[str, dict[str, str]]:
        """The annotations of the alerts that fire, by name."""
        alerts = self.ask("alerts")["alerts"]
        return {a["labels"]["alertname"]: a["annotations"] for a in alerts if a["state"] == "firing"}


def until(reached: Callable[[], bool], told: Callable[[], str], seconds: float = 60) -> None:
    """Wait until something is so. told: what to say when it is not."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"after {seconds} s: {told()}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def scraping(folder: Path, target: str, token: str) -> Iterator[Prometheus]:
    """A server with the configuration of `deploy/`, but for where and how often it looks, and how long alerts wait."""
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (job,) = settings["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    job["authorization"]["credentials_file"] = str(folder / "token")
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    for rule in (r for g in rules["groups"] for r in g["rules"] if "for" in r):
        rule["for"] = "2s"
    folder.mkdir()
    (folder / "token").write_text(token)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            text=True,
        )
    server = Prometheus(f"http://127.0.0.1:{port}", process)
    try:
        until(lambda: process.poll() is None and _is_ready(server), (folder / "log").read_text)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(server: Prometheus) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/-/ready", timeout=5):
            return True
    except OSError:
        return False
