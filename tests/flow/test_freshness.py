"""Freshness of a live worker, as others see it: it never says more than is true."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.flow.running import command, environment, freshet

PIPELINE = """
import polars as pl
from river import linear_model

import operators as op
from engine import Pipeline, deferred

p = Pipeline("shop")
schema = {"id": int, "shop": str, "at": pl.Datetime}
orders = p.source("orders", key="id", at="at", lateness="1m", schema=schema)
visits = p.source(
    "visits", key="visit", at="seen", idle_after="2s", schema={"visit": int, "shop": str, "seen": pl.Datetime}
)
pulses = p.source("pulses", key="id", at="at", schema=schema, idle_after="1s", heartbeat="3s")
labels = p.source("labels", key="id", at="at", idle_after="1s", schema={"id": int, "at": pl.Datetime, "y": float})
shops = p.view(
    "shops", orders, op.aggregate(by="shop", n=op.count()), target_lag="5s", warn_after="6s", error_after="8s"
)
both = p.view("both", orders, op.join_asof(visits, on="shop", tolerance="1h"), error_after="1h")
waits = p.view("waits", orders, op.aggregate(by="shop", n=op.count()), refresh=deferred(every="1h"))
pulse = p.view("pulse", pulses, op.where(pl.col("id") >= 0), error_after="1h")
asked = p.view("asked", orders, op.project("id", x=pl.col("id") * 1.0))
model = p.model("m", asked, answers=labels, label="y", learner=linear_model.LinearRegression(), warn_after="4s")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    named = "".join(f'[sources.{n}]\npath = "{n}.jsonl"\n' for n in ("orders", "visits", "pulses", "labels"))
    (tmp_path / "freshet.toml").write_text(f'epoch = "100ms"\n{named}')
    for n in ("orders", "visits", "pulses", "labels"):
        (tmp_path / f"{n}.jsonl").touch()
    return tmp_path


def add(folder: Path, source: str, n: int, ago: float = 0.0, **more: object) -> None:
    at = datetime.now(timezone.utc) - timedelta(seconds=ago)
    row = {"id": n, "shop": f"s{n % 2}", "at": at.isoformat(), **more}
    if source == "labels":
        del row["shop"]
    if source == "visits":
        row = {"visit": n, "shop": row["shop"], "seen": row["at"]}
    with (folder / f"{source}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@contextmanager
def worker(folder: Path) -> Iterator[str]:
    """A worker in a process of its own; where it answers."""
    line = command("run", folder, "--follow", "--out", folder / "out", "--state", folder / "state")
    with subprocess.Popen(line, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = None
            while not found:
                told = process.stderr.readline()
                assert told, "it ended"
                found = re.search(r"metrics=(http://[^ ]+)/metrics", told)
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def status(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/status.json", timeout=10) as answer:
        return json.load(answer)


def until(url: str, holds: Callable[[Any], bool], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not holds(told := status(url)):
        assert time.monotonic() < end, told
        time.sleep(0.1)
    return told


def test_a_worker_says_how_fresh_its_views_are_and_why_not(folder: Path) -> None:
    for n in range(20):
        add(folder, "orders", n, 40 - n)
        add(folder, "visits", n, 40 - n)
    add(folder, "pulses", 0)
    for n in range(5):
        add(folder, "labels", n, 10, y=1.0)
    with worker(folder) as url:
        told = until(url, lambda t: t["phase"] == "live" and t["views"]["shops"]["rows"] == 2)
        assert told["views"]["shops"]["state"] == "error", "all is read, and the newest of it is 20 s old"
        assert told["sources"]["orders"]["standing"] == "current"
        assert told["views"]["waits"]["pending_changes"] == 20
        assert told["models"]["m"]["trained"] is not None
        assert sum(told["models"]["m"]["label_delays"]["counts"]) == 5

        past = freshet("freshness", url, cwd=folder)
        assert past.returncode == 1
        assert "past error_after: shops" in past.stderr

        add(folder, "orders", 100)
        told = until(url, lambda t: t["views"]["shops"]["state"] == "fresh")
        assert 0 <= told["views"]["shops"]["lag_seconds"] <= 5
        add(folder, "orders", 101)
        good = freshet("freshness", url, "--json", cwd=folder)
        assert good.returncode == 0, good.stderr
        assert json.loads(good.stdout)["views"]["shops"]["target_lag_seconds"] == 5.0

        told = until(url, lambda t: t["views"]["shops"]["state"] == "error")
        assert told["views"]["shops"]["lag_seconds"] > 8
        assert 0 < told["views"]["shops"]["within_target"] < 1
        assert told["models"]["m"]["state"] == "warn"

        assert told["sources"]["visits"]["standing"] == "idle"
        assert told["views"]["both"]["causes"]["visits"] == "idle"
        assert told["views"]["both"]["lag_seconds"] == pytest.approx(told["views"]["shops"]["lag_seconds"], abs=0.01)
        until(url, lambda t: t["sources"]["pulses"]["standing"] == "dead")
        with (folder / "pulses.jsonl").open("a") as file:
            file.write("{broken\n")
        until(url, lambda t: t["sources"]["pulses"]["standing"] == "idle")
        with (folder / "pulses.jsonl").open("a") as file:
            file.write('{"identity": 1}\n' * 12)
        told = until(url, lambda t: t["sources"]["pulses"]["standing"] == "refused")
        assert told["views"]["pulse"]["causes"] == {"pulses": "refused"}
        add(folder, "pulses", 7)
        until(url, lambda t: t["sources"]["pulses"]["standing"] == "current")

        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'freshet_view_state{state="error",view="shops"} 1.0' in text
        assert 'freshet_source_standing{source="visits",standing="idle"} 1.0' in text
        assert 'freshet_label_delay_seconds_bucket{le="+Inf",model="m"} 5.0' in text
        names = set(re.findall(r'freshet_view_lag_seconds{scope="present",view="([^"]+)"}', text))
        assert names == {"shops", "both", "waits", "pulse", "asked", "m.predictions", "m.training"}

    gone = freshet("freshness", url, cwd=folder)
    assert gone.returncode == 1
    assert "no worker answers" in gone.stderr


def test_history_is_not_called_fresh(folder: Path) -> None:
    add(folder, "orders", 0)
    done = freshet("run", folder, "--out", folder / "out", "--state", folder / "state", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "out" / "summary.json").read_text())
    assert {v["state"] for v in told["views"].values()} == {"backfill"}
    assert {v["lag_seconds"] for v in told["views"].values()} == {None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('target_lag="5s", refresh=deferred(target_lag="1m")', "say it once"),
        ('warn_after="5s", error_after="5s"', "error_after is 5s, not more than warn_after, which is 5s"),
        ('target_lag="1h", error_after="5m"', "error_after is 5m, not more than target_lag, which is 1h"),
        ('warn_after="soon"', "warn_after"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(folder: Path, given: str, said: str) -> None:
    text = (folder / "pipeline.py").read_text().replace('target_lag="5s", warn_after="6s", error_after="8s"', given)
    (folder / "pipeline.py").write_text(text)
    done = freshet("check", folder, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
