"""Freshness comes from what the sources have reached and what a view contains, and from nothing else."""

from __future__ import annotations

from engine.freshness import freshness
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
