"""What a run says of itself as a process: each step, each checkpoint and all that is left are accounted for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from engine.bind import Inputs
from engine.flow import Run
from engine.merge import Merge
from engine.metrics import samples
from engine.plan import rank
from engine.report import figures
from engine.settings import load
from engine.timing import Timing
from tests.flow.cards import data
from tests.flow.running import cards, project, run_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("timing") / "cards")
    data.write(folder / "data", 1500)
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, float, float]:
    """A run to the end, when it began and what it took."""
    base, began, start = tmp_path_factory.mktemp("ran"), time.time(), time.perf_counter()
    run = run_here(cards(folder), folder, base / "out", base / "state", epoch="50ms", shards=3)
    return run, began, time.perf_counter() - start


def test_every_step_is_measured(ran: tuple[Run, float, float]) -> None:
    run, _, took = ran
    assert run.publish is not None
    batches, told = run.publish.number, figures(run, None)["worker"]["steps"]
    nodes = set(run.graph.nodes)
    assert nodes < set(told)
    assert {"reading", "model fraud", "publish", "view cards: waiting"} <= set(told)
    assert batches > 20
    assert told["publish"]["calls"] == told["model fraud"]["calls"] == batches
    assert told["reading"]["calls"] >= batches
    assert all(told[n]["calls"] >= batches for n in nodes), "also in each shard that had a part of it"
    assert all(s["seconds"] >= 0 for s in told.values())
    assert 0 < sum(s["seconds"] for s in told.values()) < took, "no time is counted twice"


def test_what_measuring_takes_is_far_below_a_hundredth(ran: tuple[Run, float, float]) -> None:
    told = figures(ran[0], None)["worker"]["steps"]
    timing, n = Timing(time.perf_counter), 20_000
    noted, plain = timing.measured("nothing", int), int
    costs = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(n):
            noted()
        middle = time.perf_counter()
        for _ in range(n):
            plain()
        costs.append((2 * middle - began - time.perf_counter()) / n)
    calls, seconds = (sum(s[what] for s in told.values()) for what in ("calls", "seconds"))
    assert min(costs) * calls < 0.01 * seconds, "with batches of 50 rows"


def test_saved_states_are_counted_and_dated(ran: tuple[Run, float, float]) -> None:
    run, began, took = ran
    saved = figures(run, None)["worker"]["checkpoints"]
    assert saved["epoch_seconds"] == 0.05
    assert saved["count"] == figures(run, None)["worker"]["steps"]["reading: save"]["calls"] >= 1
    assert began < saved["at"] < began + took
    assert 0 < saved["seconds"] < took
    told = figures(run, None)
    told["worker"]["checkpoints"] = None
    assert not [n for n, *_ in samples(told, True) if "checkpoint" in n], "what a process that does not read says"


def test_nothing_is_left_at_the_end_and_all_at_the_beginning(folder: Path, ran: tuple[Run, float, float]) -> None:
    told = figures(ran[0], None)
    assert told["worker"]["batches_in_flight"] == 0
    assert {n: s["left"] for n, s in told["sources"].items()} == {
        n: {"rows": 0, "bytes": 0} for n in ("payments", "chargebacks", "shops")
    }
    p, settings = cards(folder), load(folder, {})
    sizes = {n: (folder / "data" / f"{n}.jsonl").stat().st_size for n in p.sources}
    with Inputs(p, settings) as inputs:
        merge = Merge(inputs.parts, rank(p), 50)
        assert merge.left() == {n: {"rows": 0, "bytes": size} for n, size in sizes.items()}
        batch: Any = merge.next()
        left = merge.left()
        handed = sum(len(batch.deltas[n]) for n in p.sources)
        assert handed > 0
        assert any(left[n]["rows"] for n in p.sources), "whole blocks are read, and a batch is handed on"
        for n in p.sources:
            moved = sizes[n] - left[n]["bytes"]
            assert (moved == 0) == (merge.read[n] + merge.counts("dead")[n] == 0), "bytes are those handed on"
