"""Keys that stop: what a run tells of them, by what its sources have reached and not by what it happened to read."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.clock import Clock
from engine.draw import parts
from engine.flow import FlowError, Run
from engine.plan import Tick, roots, steps
from engine.view import Shard
from tests.flow.running import cards, command, freshet, killed, run_here, written
from tests.flow.test_recovery import CrashingAt

NOON = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
MINUTE = 60_000_000

PIPELINE = """
import polars as pl

import operators as op
from engine import Pipeline, deferred

p = Pipeline("ward")
beats = p.source("beats", key="n", at="at", lateness="2m", {more}schema={{"n": int, "patient": str, "at": pl.Datetime}})
rooms = p.source("rooms", key="id", at="at", schema={{"id": int, "patient": str, "room": str, "at": pl.Datetime}})
quiet = p.view("quiet", beats, op.silence(by="patient", after="10m"))
now = p.view("now", quiet, op.where(pl.col("until").is_null()), lookup="patient")
waits = p.view(
    "waits",
    beats,
    op.join_asof(rooms, on="patient", columns=["room"]),
    op.where(pl.col("patient") != "p0"),
    op.silence(by="patient", after={{"p1": "5m"}}, default="15m"),
    refresh=deferred(rows=100),
)
copied = p.view("copied", beats, op.project("patient"), refresh=deferred(every="1h"))
of_copied = p.view("of_copied", copied, op.silence(by="patient", after="10m"))
for view in (quiet, now, waits, of_copied):
    p.sink(view.name, view)
"""


def project(folder: Path, more: str = "") -> Path:
    """The pipeline in a folder, which reads all files of beats, each a partition."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.py").write_text(PIPELINE.format(more=more))
    (folder / "freshet.toml").write_text(
        'epoch = "200ms"\nbatch_rows = 25\nport = 0\n[sources.beats]\npath = "beats-*.jsonl"\n'
        '[sources.rooms]\npath = "rooms.jsonl"\n'
    )
    (folder / "rooms.jsonl").write_text("")
    return folder


def write(folder: Path, ward: str, rows: Sequence[tuple[str, float]]) -> None:
    """Append beats (patient, minutes after noon), in the order in which they are told."""
    path = folder / f"beats-{ward}.jsonl"
    n = path.read_text().count("\n") if path.exists() else 0
    with path.open("a") as file:
        for i, (patient, minutes) in enumerate(rows, n):
            at = NOON + timedelta(minutes=minutes)
            file.write(json.dumps({"n": i + 1_000_000 * ord(ward), "patient": patient, "at": at.isoformat()}) + "\n")


def ward(rng: np.random.Generator, patients: Sequence[str], end: float) -> list[tuple[str, float]]:
    """About a beat a minute of each patient, with pauses, some of which are long; a tenth of the rows come late."""
    made = []
    for patient in patients:
        at = float(rng.uniform(0, 2))
        while at < end:
            made.append((at + (1.5 if rng.random() < 0.1 else 0.0), patient, round(at, 4)))
            at += float(rng.uniform(0.5, 1.5) if rng.random() < 0.95 else rng.uniform(4, 40))
    return [(patient, at) for _, patient, at in sorted(made)]


def holds(out: Path, name: str) -> set[tuple[str, str, str | None]]:
    """The rows of a view, (patient, since, until), that its changes add up to."""
    rows: dict[tuple[str, str, str | None], int] = defaultdict(int)
    for line in (out / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["patient"], row["since"], row["until"]] += row["weight"]
    assert set(rows.values()) <= {0, 1}
    return {r for r, weight in rows.items() if weight}


def silences(
    rows: Sequence[tuple[str, float]], now: float, after: Mapping[str, float] | None = None, default: float = 10
) -> set[tuple[str, str, str | None]]:
    """What there is to be told of these rows; all in minutes after noon."""

    def text(minutes: float) -> str:
        return (NOON + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")

    by_patient = defaultdict(list)
    for patient, at in rows:
        by_patient[patient].append(at)
    found = set[tuple[str, str, str | None]]()
    for patient, ats in by_patient.items():
        limit = (after or {}).get(patient, default)
        ats.sort()
        found |= {(patient, text(a), text(b)) for a, b in pairwise(ats) if b - a > limit}
        found |= {(patient, text(ats[-1]), None)} if now - ats[-1] > limit else set()
    return found


def run(folder: Path, base: Path, **given: Any) -> Run:
    return run_here(cards(folder), folder, base / "out", base / "state", **given)


def reached(done: Run) -> float:
    """The watermark of the beats, in minutes after noon."""
    assert done.merge is not None
    return (done.merge.watermark["beats"] / 1e6 - NOON.timestamp()) / 60


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, float]]:
    """1,000 beats that end at once, so that views which are due every 100 rows contain all."""
    rng = np.random.default_rng(7)
    return ward(rng, ["p0", "p1", "p2", "p3", "p4", "p5"], 400)[:1000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]]) -> Path:
    made = project(tmp_path_factory.mktemp("ward"))
    write(made, "a", [r for r in rows if r[0] in ("p0", "p1", "p2")])
    write(made, "b", [r for r in rows if r[0] not in ("p0", "p1", "p2")])
    return made


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    base = tmp_path_factory.mktemp("reference")
    done = run(folder, base, epoch="10s")
    return written(base / "out"), reached(done)


def test_it_tells_what_there_is_to_tell(
    rows: list[tuple[str, float]], reference: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    got, now = reference
    for name, text in got.items():
        (tmp_path / name).write_bytes(text)
    expected = silences(rows, now)
    assert got["late.jsonl"] == b""
    assert len(expected) > 20
    assert 0 < len({r for r in expected if r[2] is None}) < 6
    assert holds(tmp_path, "quiet") == expected
    assert holds(tmp_path, "now") == {r for r in expected if r[2] is None}
    assert b'"weight":-1' in got["quiet.jsonl"], "a silence ended after it had been told, or was taken back"
    others = [r for r in rows if r[0] != "p0"]
    assert holds(tmp_path, "waits") == silences(others, now, {"p1": 5}, 15)


@pytest.mark.parametrize(("workers", "shards"), [(1, 3), (2, 3)])
def test_every_shard_sees_the_clock(
    workers: int, shards: int, folder: Path, reference: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    run(folder, tmp_path, workers=workers, shards=shards)
    for name, text in reference[0].items():
        same = sorted(text.splitlines()) == sorted((tmp_path / "out" / name).read_bytes().splitlines())
        assert same, f"{name} has other lines"


def test_a_view_that_starts_anew_tells_the_same(
    folder: Path, reference: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    run(folder, tmp_path, refresh=["waits=deferred(rows=100, mode='full')"])
    assert written(tmp_path / "out") == reference[0]


@pytest.mark.parametrize(
    ("owner", "method", "after"), [(Clock, "__call__", True), (Clock, "snapshot", False), (Shard, "__call__", False)]
)
def test_a_run_that_crashes_goes_on(
    owner: type,
    method: str,
    after: bool,
    folder: Path,
    reference: tuple[dict[str, bytes], float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crash = CrashingAt(monkeypatch, owner, method, after)
    for crash.left in (9, 30):
        with suppress(FlowError):
            run(folder, tmp_path, epoch="0s")
    assert crash.landed == 2
    crash.left = -1
    run(folder, tmp_path)
    assert written(tmp_path / "out") == reference[0]


def test_a_killed_run_goes_on(folder: Path, reference: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    here = project(tmp_path / "ward")
    for path in folder.glob("*.jsonl"):
        (here / path.name).write_bytes(path.read_bytes())
    args = ["run", here, "--out", here / "out", "--state", here / "state", "--epoch", "10ms", "--batch-rows", "25"]
    landed = killed(command(*args), here, random.Random(3), len(reference[0]["quiet.jsonl"]) // 2, times=1)
    assert landed > 0, "no kill landed"
    done = freshet(*args, cwd=here)
    assert done.returncode == 0, done.stderr
    assert {n: t for n, t in written(here / "out").items() if t} == {n: t for n, t in reference[0].items() if t}


def test_a_partition_that_lags_makes_no_key_silent_and_its_rows_come_in_time(tmp_path: Path) -> None:
    folder = project(tmp_path / "ward")
    write(folder, "a", [("p1", m) for m in range(0, 120, 5)])
    write(folder, "b", [("p2", m) for m in range(1, 30, 5)])  # not read any further yet
    done = run(folder, tmp_path)
    assert reached(done) == 26
    assert done.publish is not None
    assert done.publish.held["waits"][1] == 30, "a view waits with changes, of which the clock is none"
    assert written(tmp_path / "out")["quiet.jsonl"] == b""
    write(folder, "b", [("p2", m) for m in range(31, 100, 5)])
    done = run(folder, tmp_path)
    assert reached(done) == 96
    assert written(tmp_path / "out")["quiet.jsonl"] == b""
    write(folder, "b", [("p3", 115)])
    run(folder, tmp_path)
    assert holds(tmp_path / "out", "quiet") == silences([("p2", 96)], 115)


def test_a_partition_that_is_idle_does_not_hold_the_clock_back(tmp_path: Path) -> None:
    folder = project(tmp_path / "ward", 'idle_after="30m", ')
    write(folder, "a", [("p1", m) for m in range(0, 121, 5)])
    write(folder, "b", [("p2", m) for m in range(1, 30, 5)])
    done = run(folder, tmp_path)
    assert reached(done) == 90
    assert holds(tmp_path / "out", "quiet") == silences([("p2", 26)], 90)


def test_a_feed_that_stops_as_a_whole_makes_no_key_silent(tmp_path: Path) -> None:
    folder = project(tmp_path / "ward")
    write(folder, "a", [(f"p{m % 7}", m) for m in range(60)])
    at = (NOON + timedelta(minutes=500)).isoformat()
    (folder / "rooms.jsonl").write_text(json.dumps({"id": 1, "patient": "p1", "room": "r", "at": at}) + "\n")
    done = run(folder, tmp_path)
    assert reached(done) == 59
    assert written(tmp_path / "out")["quiet.jsonl"] == b""


def test_a_late_row_takes_a_silence_back(tmp_path: Path) -> None:
    folder = project(tmp_path / "ward")
    write(folder, "a", [("p1", 0), *(("p2", m) for m in range(11))])
    run(folder, tmp_path, batch_rows=1)
    assert written(tmp_path / "out")["quiet.jsonl"] == b""
    write(folder, "a", [("p2", 11), ("p1", 9.5), ("p2", 12)])
    run(folder, tmp_path, batch_rows=1)
    lines = [json.loads(line) for line in written(tmp_path / "out")["quiet.jsonl"].splitlines()]
    assert [(r["weight"], r["patient"], r["until"]) for r in lines] == [(1, "p1", None), (-1, "p1", None)]


def test_what_is_forgotten_is_not_silent(rows: list[tuple[str, float]], tmp_path: Path) -> None:
    folder = project(tmp_path / "ward", "erasable=True, ")
    write(folder, "a", rows[:300])
    now = reached(run(folder, tmp_path, shards=3))
    where = ("--shards", 3, "--out", tmp_path / "out", "--state", tmp_path / "state")
    done = freshet("forget", folder, "patient=p1", *where, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {r for r in silences(rows[:300], now) if r[0] == "p1"}
    assert holds(tmp_path / "out", "quiet") == {r for r in silences(rows[:300], now) if r[0] != "p1"}


def test_rows_of_a_deferred_view_are_as_old_as_its_refresh(folder: Path, tmp_path: Path) -> None:
    p = cards(folder)
    at = [NOON + timedelta(minutes=m) for m in range(0, 190, 5)]
    patients = ["p1", "p2"] * 15 + ["p3"] * 8
    beats = pl.DataFrame({"n": range(len(at)), "patient": patients, "at": at})
    found = p.replay({"beats": beats[:-2]})
    assert found["quiet"].height == 2
    assert found["copied"].height == 24
    assert found["of_copied"].height == 0, "what was not refreshed is not silent"
    found = p.replay({"beats": beats})
    assert found["copied"].height == 36
    assert found["of_copied"]["patient"].to_list() == ["p1", "p2"]


def test_a_clock_goes_by_what_decides_which_rows_there_are(folder: Path) -> None:
    p = cards(folder)
    assert p.clocks == {"quiet.clock": ("beats",), "waits.clock": ("beats",), "of_copied.clock": ("copied",)}
    assert roots(p, rows=True)["waits.clock"] == roots(p)["of_copied.clock"] == {"beats"}
    assert roots(p, held=True, rows=True)["of_copied.clock"] == {"copied"}
    order = [s.clock if isinstance(s, Tick) else type(s).__name__ for s in steps(p)]
    assert sorted(o for o in order if o.endswith("clock")) == sorted(p.clocks)
    assert order.index("waits.clock") < order.index("Hold")


def test_a_clock_is_not_drawn(folder: Path) -> None:
    _, arrows = parts(cards(folder))
    assert [a for a, b in arrows if b == "view quiet"] == ["source beats"]
