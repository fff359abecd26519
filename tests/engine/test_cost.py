"""Which way a view is refreshed: what is measured as cheaper, found out soon and without spending much on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest

from engine.batch import Way
from engine.cost import Costs

Cost = Callable[[Way, int], float]


def simulated(costs: Costs, cost: Cost, refreshes: list[tuple[int, int]]) -> list[Way]:
    """The ways taken when so many changes are pending, of so many rows."""
    taken = []
    for pending, rows in refreshes:
        changes: dict[Way, int] = {"incremental": pending, "full": rows}
        way = costs.choose(changes)
        costs.record(way, changes[way], cost(way, changes[way]))
        taken.append(way)
    return taken


def linear(incremental: float, full: float) -> Cost:
    return lambda way, n: n * (incremental if way == "incremental" else full)


@pytest.mark.parametrize("mode", ["incremental", "full"])
def test_a_mode_that_is_given_is_taken(mode: Literal["incremental", "full"]) -> None:
    costs = Costs(mode)
    assert simulated(costs, linear(1e-6, 5e-6), [(100, 200), (100, 10**6), (10**5, 100)]) == [mode] * 3
    told = costs.figures()
    assert list(told["ways"]) == [mode]
    assert (told["ways"][mode]["refreshes"], told["taken"]) == (3, mode)


def test_few_changes_of_many_rows_are_taken_in() -> None:
    assert set(simulated(Costs("auto"), linear(1e-6, 1e-6), [(100, 10**6)] * 100)) == {"incremental"}


def test_what_is_cheaper_is_found_out_and_then_taken() -> None:
    costs = Costs("auto")
    taken = simulated(costs, linear(10e-6, 1e-6), [(1000, 1500)] * 60)
    assert set(taken[10:]) == {"full"}, taken
    told = costs.figures()
    assert told["ways"]["full"]["predicted_seconds"] == pytest.approx(1.5e-3)
    assert told["ways"]["incremental"]["predicted_seconds"] == pytest.approx(10e-3)
    assert told["ways"]["full"]["measured_seconds"] == pytest.approx(1.5e-3)
    # When only few changes are pending the other way is the cheaper one at once.
    assert simulated(costs, linear(10e-6, 1e-6), [(10, 1500)]) == ["incremental"]


@pytest.mark.parametrize("outlier", [0, 1])
def test_a_first_time_that_compiles_is_not_believed(outlier: int) -> None:
    costs, seen = Costs("auto"), {"incremental": 0, "full": 0}

    def cost(way: Way, n: int) -> float:
        seen[way] += 1
        slow = 5.0 if seen[way] == 1 and outlier == (way == "full") else 0.0
        return slow + linear(1e-6, 3e-6)(way, n)

    taken = simulated(costs, cost, [(1000, 1000 + 10 * i) for i in range(200)])
    assert seen["full"] >= 2
    spent = sum(m["seconds"] for m in costs.figures()["ways"].values())
    assert taken[-1] == "incremental"
    assert spent - 5.0 < 1.15 * 200 * 1000 * 1e-6


@pytest.mark.parametrize("times", [1, 3, 30])
def test_a_change_of_what_is_cheaper_is_noticed_at_little_cost(times: int) -> None:
    costs, n = Costs("auto"), 100 * times
    before = simulated(costs, linear(1e-6, 2e-6), [(1000, 1000 * times)] * n)
    spent = sum(m["seconds"] for m in costs.figures()["ways"].values())
    assert 2 <= before.count("full") < n / 8
    assert spent < 1.2 * n * 1000 * 1e-6
    after = simulated(costs, linear(1e-6, 0.2e-6 / times), [(1000, 1000 * times)] * n * 10)
    assert after.count("full") > 8 * n
    assert sum(m["seconds"] for m in costs.figures()["ways"].values()) - spent < 1.5 * 10 * n * 1000 * 0.2e-6


def test_a_restart_forgets_nothing() -> None:
    costs, again = Costs("auto"), Costs("auto")
    simulated(costs, linear(10e-6, 1e-6), [(1000, 1500)] * 15)
    again.restore(costs.snapshot())
    assert again.figures() == costs.figures()
    assert simulated(again, linear(10e-6, 1e-6), [(1000, 1500)] * 30) == ["full"] * 30
