"""A followed run: once it has caught up, deferred views fall due by the present, and nothing else moves."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Thread

import pytest

from engine.flow import Run
from engine.publish import outputs
from engine.recovery import claim
from engine.report import figures
from engine.settings import load
from tests.flow.running import cards, command, environment, written

PIPELINE = """
import polars as pl

import operators as op
from engine import Pipeline, deferred

p = Pipeline("shop")
orders = p.source("orders", key="id", at="at", lateness="1m", schema={"id": int, "shop": str, "at": pl.Datetime})
first = p.view(
    "first", orders, op.aggregate(by="shop", n=op.count()), refresh=deferred(target_lag="downstream")
)
shops = p.view("shops", first, op.where(pl.col("n") > 0), refresh=deferred(target_lag="2s"))
hourly = p.view("hourly", orders, op.aggregate(by="shop", n=op.count()), refresh=deferred(every="1h"))
p.sink("shops", shops)
p.sink("hourly", hourly)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "freshet.toml").write_text('epoch = "50ms"\nport = 0\n[sources.orders]\npath = "orders.jsonl"\n')
    return tmp_path


def order(folder: Path, n: int, shop: str, at: datetime) -> None:
    with (folder / "orders.jsonl").open("a") as file:
        file.write(json.dumps({"id": n, "shop": shop, "at": at.isoformat()}) + "\n")


def holds(out: Path, name: str) -> dict[str, int]:
    """What a view has accumulated to, as far as it was written."""
    rows: Counter[tuple[str, int]] = Counter()
    if (out / f"{name}.jsonl").exists():
        for line in (out / f"{name}.jsonl").read_text().split("\n")[:-1]:
            row = json.loads(line)
            rows[row["shop"], row["n"]] += row["weight"]
    return dict(+rows)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_views_fall_due_by_a_present_that_is_given(folder: Path) -> None:
    start = datetime(2024, 1, 1, 12, 59, 50, tzinfo=timezone.utc)
    begin = int(start.timestamp()) * 1_000_000
    for i in range(3):
        order(folder, i, "ab"[i % 2], start + timedelta(seconds=i / 2))
    p, settings, out = cards(folder), load(folder, {}), folder / "out"
    held = claim(folder / "state", p.name, p.definition(), 1, out, outputs(p))
    present = begin
    run = Run(p, settings, out, held, follow=True, now=lambda: present)
    thread = Thread(target=run.run)
    thread.start()
    try:
        until(lambda: run.publish is not None and run.publish.number == 1)
        told = figures(run, None)
        present = begin + 1_999_999
        until(lambda: run.merge is not None and run.merge.schedule.present == present)
        assert run.publish is not None
        assert run.publish.number == 1, "one microsecond is missing"
        present = begin + 2_000_000
        until(lambda: run.publish is not None and run.publish.number == 2)
        until(lambda: holds(out, "shops") == {("a", 2): 1, ("b", 1): 1})
        assert holds(out, "hourly") == {}
        after = figures(run, None)
        assert after["sources"] == told["sources"], "no watermark, lateness or idleness moved"
        assert after["views"]["shops"]["pending_changes"] == 0
        assert after["views"]["shops"]["global_lag_seconds"] == 0
        present = begin + 10_000_000
        until(lambda: holds(out, "hourly") == {("a", 2): 1, ("b", 1): 1})
    finally:
        run.stop.set()
        thread.join()
        held.release()
    assert run.publish.number == 3


def test_a_pending_change_does_not_wait_for_the_next_one(folder: Path) -> None:
    out = folder / "out"
    (folder / "orders.jsonl").touch()
    process = subprocess.Popen(
        command("run", folder, "--out", out, "--state", folder / "state", "--follow", "--quiet"),
        cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for n in (1, 2):
            until(lambda n=n: n == 1 or holds(out, "shops") == {("a", n - 1): 1})  # type: ignore[misc]
            order(folder, n, "a", datetime.now(timezone.utc))
        until(lambda: holds(out, "shops") == {("a", 2): 1})
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    before = written(out)["shops.jsonl"]
    again = subprocess.run(
        command("run", folder, "--out", out, "--state", folder / "state", "--quiet"), cwd=folder, env=environment()
    )
    assert again.returncode == 0
    assert written(out)["shops.jsonl"] == before
