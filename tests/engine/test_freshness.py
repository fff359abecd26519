"""Freshness comes from what the sources have reached and what a view contains, and from nothing else."""

from __future__ import annotations

import polars as pl
import pytest

import operators as op
from engine import Pipeline, deferred
from engine.freshness import Bounds, Heard, OnTime, freshness, standing
from engine.plan import bounds
from operators.delta import BEGINNING

S = 1_000_000


def test_the_frontier_is_that_of_the_slowest_source() -> None:
    got = freshness({"a", "b"}, {}, {"a": 100 * S, "b": 40 * S, "c": 1}, {"a": 100 * S, "b": 40 * S}, 0, 130 * S)
    assert (got.frontier, got.age, got.global_lag, got.local_lag) == (40 * S, 90 * S, 0, 0)


def test_global_lag_is_the_worst_over_the_roots_while_local_lag_is_fine() -> None:
    got = freshness({"a", "b"}, {"v": 40 * S}, {"a": 90 * S, "b": 40 * S}, {"a": 95 * S, "b": 70 * S}, 12, None)
    assert (got.local_lag, got.global_lag, got.pending, got.age) == (0, 30 * S, 12, None)


def test_local_lag_is_the_worst_over_the_direct_inputs() -> None:
    got = freshness({"a"}, {"v": 50 * S, "w": 45 * S}, {"a": 40 * S}, {"a": 50 * S}, 0, None)
    assert (got.local_lag, got.global_lag) == (10 * S, 10 * S)


def test_before_the_first_change_there_is_no_frontier_rather_than_a_wrong_one() -> None:
    got = freshness({"a", "b"}, {"v": BEGINNING}, {"a": 10, "b": BEGINNING}, {"a": 10, "b": BEGINNING}, 3, 50)
    assert (got.frontier, got.age, got.local_lag, got.pending) == (None, None, 0, 3)


def test_age_grows_with_the_clock_when_nothing_comes() -> None:
    ages = [freshness({"a"}, {}, {"a": 10 * S}, {"a": 10 * S}, 0, now * S).age for now in (10, 20, 100)]
    assert ages == [0, 10 * S, 90 * S]


def test_lag_is_by_the_worst_source_and_not_by_the_newest() -> None:
    got = freshness({"a", "b"}, {}, {"a": 100 * S, "b": 40 * S}, {"a": 100 * S, "b": 40 * S}, 0, 130 * S)
    assert got.lag == 90 * S


def test_an_idle_source_does_not_count_and_lag_does_not_grow_with_it() -> None:
    marks = {"a": 100 * S, "b": 40 * S}
    lags = [freshness({"a", "b"}, {}, marks, marks, 0, now * S, idle={"b"}).lag for now in (101, 110)]
    assert lags == [S, 10 * S]
    assert freshness({"b"}, {}, marks, marks, 0, 110 * S, idle={"b"}).lag == 0


def test_an_idle_source_does_not_hide_what_a_view_waits_with() -> None:
    got = freshness({"b"}, {}, {"b": 40 * S}, {"b": 70 * S}, 5, 110 * S, idle={"b"})
    assert got.lag == 30 * S


def test_before_its_first_change_a_view_is_as_old_as_the_run() -> None:
    got = freshness({"a"}, {}, {"a": BEGINNING}, {"a": BEGINNING}, 0, 130 * S, since=100 * S)
    assert (got.frontier, got.lag) == (None, 30 * S)
    marks = {"a": 129 * S, "b": BEGINNING}
    two = freshness({"a", "b"}, {}, marks, marks, 0, 130 * S, since=90 * S)
    assert (two.frontier, two.lag) == (None, 40 * S)


def test_history_has_no_lag_and_is_never_fresh() -> None:
    got = freshness({"a"}, {}, {"a": 100 * S}, {"a": 100 * S}, 0, None)
    assert got.lag is None
    assert Bounds(target=S).state(None, live=False, idle=False) == "backfill"
    assert Bounds(target=S).state(0, live=False, idle=False) == "backfill"


@pytest.mark.parametrize(
    ("lag", "state"),
    [(0, "fresh"), (5, "fresh"), (6, "behind"), (10, "behind"), (11, "warn"), (20, "warn"), (21, "error")],
)
def test_a_bound_is_passed_when_lag_is_more(lag: int, state: str) -> None:
    assert Bounds(5, 10, 20).state(lag, live=True, idle=False) == state


def test_an_idle_view_is_past_its_bounds_all_the_same_when_it_waits() -> None:
    assert Bounds(5, 10, 20).state(4, live=True, idle=True) == "idle"
    assert Bounds(5, 10, 20).state(25, live=True, idle=True) == "error"
    assert Bounds().state(None, live=True, idle=False) == "unknown"


def test_without_a_target_a_view_may_lack_what_was_read_as_long_as_its_policy_says() -> None:
    told = {"live": True, "idle": False}
    assert Bounds(unread=10).state(99, **told, behind=10) == "fresh"
    assert Bounds(unread=10).state(99, **told, behind=11) == "behind"
    assert Bounds(target=99, unread=10).state(99, **told, behind=11) == "fresh"
    assert Bounds(error=98, unread=10).state(99, **told, behind=11) == "error"
    assert Bounds().state(99, **told, behind=1 << 60) == "fresh"


def test_what_has_not_begun_is_not_fresh() -> None:
    assert Bounds().state(5, live=True, idle=False, begun=False) == "unknown"
    assert Bounds().state(5, live=True, idle=True, begun=False) == "idle"
    assert Bounds(target=4).state(5, live=True, idle=False, begun=False) == "behind"


def test_views_that_wait_for_one_another_may_lack_what_all_of_them_let_wait() -> None:
    p = Pipeline("waits")
    a = p.source("a", key="id", at="at", schema={"id": int, "at": pl.Datetime})
    day = p.view("day", a, op.where(pl.col("id") > 0), op.where(pl.col("id") > 1), refresh=deferred(every="1d"))
    hour = p.view("hour", day, op.where(pl.col("id") > 0), refresh=deferred(every="1h", rows=9))
    p.view("both", hour, op.join_asof(a, on="id", columns=[]))
    p.view("rows", a, op.where(pl.col("id") > 0), refresh=deferred(rows=5))
    p.view("soon", p.views["rows"], op.where(pl.col("id") > 0))
    p.view("lag", a, op.where(pl.col("id") > 0), refresh=deferred(target_lag="5s"))
    found = {name: b.unread for name, b in bounds(p, 2 * S).items()}
    assert found == {
        "day": 86_402 * S, "hour": 90_002 * S, "both": 90_002 * S, "rows": None, "soon": None, "lag": 7 * S
    }  # fmt: skip


def test_a_clock_lets_nothing_wait_longer() -> None:
    p = Pipeline("waits")
    a = p.source("a", key="id", at="at", schema={"id": int, "at": pl.Datetime})
    silent = op.where(pl.col("id") > 0), op.silence(by="id", after="1m")
    p.view("day", a, *silent, refresh=deferred(every="1d"))
    p.view("quiet", p.views["day"], op.where(pl.col("id") > 1))
    p.view("now", a, *silent)
    found = {name: b.unread for name, b in bounds(p, 2 * S).items()}
    assert found == {"day": 86_402 * S, "quiet": 86_402 * S, "now": 2 * S}


def test_rows_that_are_put_aside_wait_no_longer_than_the_others() -> None:
    p = Pipeline("waits")
    a = p.source("a", key="id", at="at", schema={"id": int, "at": pl.Datetime})
    expect = [op.between("id", 0, 5, severity="quarantine")]
    p.view("day", a, op.where(pl.col("id") > 0), refresh=deferred(every="1d"), expect=expect)
    assert {b.unread for b in bounds(p, 2 * S).values()} == {86_402 * S}


HOW = {"idle_after": 30, "heartbeat": 20, "live": True}


@pytest.mark.parametrize(
    ("heard", "how", "found"),
    [
        (Heard(95, 95, 0, 0, [95, 90]), HOW, "current"),
        (Heard(95, 95, 0, 0, [95, 60]), HOW, "partition silent"),
        (Heard(60, 95, 0, 0, [60]), HOW, "idle"),
        (Heard(60, 60, 0, 0, [60]), HOW, "dead"),
        (Heard(60, 60, 0, 0, [60]), {**HOW, "heartbeat": None}, "idle"),
        (Heard(60, 60, 0, 0, [60]), {**HOW, "heartbeat": None, "idle_after": None}, "current"),
        (Heard(60, 95, 0, 7, [60]), HOW, "reading"),
        (Heard(60, 95, 9, 0, [60]), HOW, "idle"),
        (Heard(60, 95, 10, 7, [60]), HOW, "refused"),
        (Heard(0, 0, 99, 9, [0]), {**HOW, "live": False}, "backfill"),
    ],
)
def test_why_a_source_gives_nothing_is_told_apart(heard: Heard, how: dict[str, object], found: str) -> None:
    assert standing(heard, 100, **how) == found  # type: ignore[arg-type]


def test_time_within_the_target_is_measured_and_not_the_times_it_was_looked_at() -> None:
    on_time, bounds = OnTime(), Bounds(target=5)
    for now, lag in ((0, 0), (10 * S, 0), (11 * S, 9), (30 * S, None), (31 * S, 5)):
        on_time.look(now, {"v": (bounds, lag), "w": (Bounds(), lag)})
    assert (on_time.seen, on_time.within) == ({"v": 31.0}, {"v": 11.0})
