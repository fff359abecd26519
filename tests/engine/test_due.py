"""When a deferred model is due: against the definition over whole histories, and against the least possible cost."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrainopt.core.dp import evaluate_decision_sequence, solve_exact_schedule
from retrainopt.types import Decision, DecisionAction
from river import drift

from benchmarks.debt import cadence, cost, lost, optimum
from engine import debt, deferred, due
from engine.due import BLOCK, FIRST, Due, Reason, loss
from engine.policy import Deferred

SMALL = {"BLOCK": 4, "RECENT": 3, "FIRST": 3}
"""Blocks so short that a short history holds several."""

Event = tuple[Any, ...]
"""What happened: a method of `Due` and its arguments."""


def since_refit(history: Sequence[Event]) -> list[Event]:
    last = max((i for i, e in enumerate(history) if e[0] == "refitted"), default=-1)
    return list(history[last + 1 :])


def gap(history: Sequence[Event]) -> float | None:
    """The median of the newest full blocks of what fresh versions lost more than the shadow."""
    fresh, scored = [], 0
    for name, *told in history:
        if name == "refitted":
            scored = 0
        if name == "answered" and told[3] and None not in told[1:3]:
            scored += 1
            if scored <= SMALL["BLOCK"]:
                fresh.append(told[1] - told[2])
    n = SMALL["BLOCK"]
    blocks = [sum(fresh[i : i + n]) / n for i in range(0, len(fresh) - n + 1, n)]
    return median(blocks[-SMALL["RECENT"] :]) if blocks else None


def owed(history: Sequence[Event]) -> float:
    """The greatest sum of loss - reference over the answers that came last, at least 0."""
    start, more = len(history) - len(since_refit(history)), []
    for i, (name, *told) in enumerate(history[start:], start):
        known = gap(history[:i])
        if name == "answered" and told[3] and None not in told[1:3] and known is not None:
            more.append(told[1] - told[2] - known)
    return max([0.0, *accumulate(reversed(more))])


def drifted(refresh: Deferred, history: Sequence[Event]) -> dict[str, int]:
    found = {}
    for watched, pristine in refresh.drift:
        detector = pristine.clone()
        for name, known, *told in since_refit(history):
            value = None
            if watched == "loss" and name == "answered" and told[2]:
                value = told[0]
            if watched != "loss" and name == "asked" and told[0] is not None:
                value = told[0].get(watched)
            if value is not None and not math.isnan(value):
                detector.update(value)
                if detector.drift_detected:
                    found.setdefault(watched, known)
    return found


def expected(refresh: Deferred, history: Sequence[Event], known: int) -> Reason | None:
    """Why a model is due after this history, by the definition."""
    answers = sum(e[0] in ("answered", "taken_back") for e in since_refit(history))
    if forgotten := sum(e[2] for e in since_refit(history) if e[0] == "forgotten"):
        return Reason("forgotten", {"examples": forgotten})
    fits = [e for e in history if e[0] == "refitted"]
    looks = [e[1] for e in history if e[0] == "reason"]
    if not fits and not answers:
        return None
    began = fits[-1][1] if fits else looks[0] if looks else known
    if refresh.every is not None and known // refresh.every > began // refresh.every:
        return Reason("every", {"every": refresh.every, "at": known // refresh.every * refresh.every})
    if refresh.rows is not None and answers >= refresh.rows:
        return Reason("rows", {"answers": answers, "expected": refresh.rows})
    if not fits and answers >= SMALL["FIRST"] and (refresh.drift or refresh.debt):
        return Reason("first", {"answers": answers, "expected": SMALL["FIRST"]})
    found = drifted(refresh, history)
    for watched, detector in refresh.drift:
        if watched in found:
            return Reason("drift", {"watched": watched, "detector": type(detector).__name__, "at": found[watched]})
    if refresh.debt:
        seconds = [e[2] for e in fits if e[2] is not None]
        price = refresh.debt.price
        if refresh.debt.per_second is not None and seconds:
            price = refresh.debt.per_second * seconds[-1]
        total = owed(history)
        if price is not None and total >= price and total > 0:
            return Reason("debt", {"debt": total, "price": price, "gap": gap(history), "answers": answers})
    return None


eighths = st.integers(0, 16).map(lambda k: k / 8)
features = st.fixed_dictionaries({"x": st.sampled_from([None, math.nan, 0.0, 1.0, 9.0])})
events = st.one_of(
    st.tuples(st.just("asked"), st.none() | features),
    st.tuples(st.just("answered"), st.none() | eighths, st.none() | eighths, st.booleans()),
    *[st.tuples(st.just("answered"), eighths, eighths, st.just(True))] * 4,
    st.tuples(st.sampled_from(["taken_back", "taken_back", "forgotten"])),
)
loss_drifts, x_drifts = drift.PageHinkley(3, threshold=1.0), drift.PageHinkley(2, threshold=2.0)
policies = st.sampled_from(
    [
        deferred(debt=1.5),
        deferred(debt=debt(per_second=1.0)),
        deferred(debt=4, every="20us"),
        deferred(debt=1, rows=9),
        deferred(drift=loss_drifts),
        deferred(drift={"loss": loss_drifts, "x": x_drifts}),
        deferred(drift={"x": x_drifts}, debt=3),
        deferred(every="30us", rows=5),
    ]
)
steps = st.tuples(
    st.integers(0, 4), events, st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from([True, True, False])
)


@settings(deadline=None, derandomize=True)
@given(policies, st.lists(steps, min_size=20, max_size=45), st.integers(0, 45))
def test_due_as_the_definition_says_of_the_whole_history(
    refresh: Deferred, told: list[tuple[int, Event, float | None, bool]], saved: int
) -> None:
    """Before each event the meter is asked; the caller refits when it is due, or does not, and may be restarted."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(due, name, value)
        meter, history, known = Due(refresh), list[Event](), 0
        for i, (later, (name, *what), seconds, obeys) in enumerate(told):
            known += later
            found = meter.reason(known)
            assert found == expected(refresh, history, known)
            history.append(("reason", known))
            if found is not None and obeys:
                meter.refitted(known, seconds)
                history.append(("refitted", known, seconds))
            if i == saved:
                meter = pickle.loads(pickle.dumps(meter))
            if name == "forgotten":
                meter.forgotten(2)
                history.append((name, known, 2))
                continue
            getattr(meter, name)(known, *what)
            history.append((name, known, *what))
    figures = meter.figures()
    assert figures["debt"] == (owed(history) if refresh.debt else None)
    assert figures["gap"] == (gap(history) if refresh.debt else None)
    assert figures["answers"] == sum(e[0] in ("answered", "taken_back") for e in since_refit(history))
    assert figures["drift"] == {n: drifted(refresh, history).get(n) for n, _ in refresh.drift}


def fresh(refresh: Deferred, gap: float = 0.0) -> Due:
    """A meter that knows how much a fresh version loses more than the shadow, and was refitted just now."""
    meter = Due(refresh)
    meter.refitted(0, 1.0)
    for _ in range(BLOCK):
        meter.answered(0, 0.5 + gap, 0.5)
    meter.refitted(0, 1.0)
    return meter


def test_debt_grows_by_what_is_lost_by_being_old() -> None:
    meter = fresh(deferred(debt=10), gap=0.25)
    for _ in range(100):
        meter.answered(1, 0.75, 0.5)
        meter.answered(1, 2.0, 1.75)
    assert meter.figures()["debt"] == 0
    for _ in range(39):
        meter.answered(2, 1.0, 0.5)
        assert meter.reason(2) is None
    meter.answered(3, 1.0, 0.5)
    assert str(meter.reason(3)) == "debt: debt=10, price=10, gap=0.25, answers=240"
    assert meter.figures() == {
        "answers": 240, "debt": 10.0, "price": 10, "gap": 0.25, "reference": 0.75, "drift": {}
    }  # fmt: skip
    meter.refitted(3, 1.0)
    assert (meter.reason(3), meter.figures()["debt"], meter.figures()["gap"]) == (None, 0.0, 0.25)


def test_what_an_earlier_version_loses_is_not_owed_again() -> None:
    meter = fresh(deferred(debt=5))
    for _ in range(5):
        meter.answered(1, 1.0, 0.0)
    meter.refitted(1, 1.0)
    for _ in range(50):
        meter.answered(2, 1.0, 0.0, current=False)
    assert meter.reason(2) is None
    assert meter.figures()["answers"] == 50
    for _ in range(5):
        meter.answered(3, 1.0, 0.0)
    assert meter.reason(3) is not None


def test_versions_replaced_sooner_than_a_block_share_one() -> None:
    meter = Due(deferred(debt=1))
    for _ in range(BLOCK // 8):
        meter.refitted(0, None)
        for _ in range(8):
            assert meter.figures()["gap"] is None
            meter.answered(0, 0.75, 0.5)
    assert meter.figures()["gap"] == 0.25


def test_a_price_per_second_is_that_of_the_last_fit_measured() -> None:
    meter = fresh(deferred(debt=debt(per_second=4.0)))
    assert meter.figures()["price"] == 4.0
    meter.refitted(1, 0.5)
    meter.refitted(2, None)
    meter.answered(3, 2.0, 0.0)
    assert str(meter.reason(3)) == "debt: debt=2, price=2, gap=0, answers=1"
    unmeasured = Due(deferred(debt=debt(per_second=4.0)))
    unmeasured.refitted(0, None)
    for _ in range(2 * BLOCK):
        unmeasured.answered(0, 0.5, 0.5)
    for _ in range(100):
        unmeasured.answered(0, 9.0, 0.0)
    assert (unmeasured.figures()["price"], unmeasured.figures()["debt"], unmeasured.reason(0)) == (None, 900.0, None)


@pytest.mark.parametrize("refresh", [deferred(debt=1), deferred(drift=drift.ADWIN()), deferred(every="1h", debt=1)])
def test_a_model_without_a_version_waits_for_enough_answers(refresh: Deferred) -> None:
    meter = Due(refresh)
    assert meter.reason(0) is None
    for _ in range(FIRST - 1):
        meter.answered(0, None, 0.5)
    assert meter.reason(0) is None
    meter.answered(0, None, 0.5)
    assert str(meter.reason(0)) == "first: answers=200, expected=200"


def test_a_cadence_is_due_with_the_first_look_behind_a_multiple() -> None:
    meter = Due(deferred(every="1h"))
    hour = 3_600_000_000
    meter.answered(0, None, None)
    assert meter.reason(hour + 1) is None
    assert meter.reason(2 * hour - 1) is None
    assert str(meter.reason(4 * hour + 5)) == f"every: every={hour}, at={4 * hour}"
    meter.refitted(4 * hour + 5, None)
    assert meter.reason(5 * hour - 1) is None
    assert meter.reason(5 * hour) is not None


def test_nothing_is_due_before_there_is_an_answer() -> None:
    meter = Due(deferred(every="1h", drift={"x": drift.PageHinkley(1, threshold=0.0)}))
    for known, x in enumerate([0.0, 5.0, 50.0]):
        assert meter.reason(known * 3_600_000_000) is None
        meter.asked(known, {"x": x})
    meter.answered(3, None, None)
    assert str(meter.reason(0)) == "drift: watched=x, detector=PageHinkley, at=1"


def test_drift_of_the_loss_is_watched_from_the_last_refit() -> None:
    rng = np.random.default_rng(5)
    meter = Due(deferred(drift=drift.ADWIN()))
    meter.refitted(0, None)
    for known in range(1000):
        meter.answered(known, float(rng.random() < 0.1), None)
    assert meter.reason(1000) is None
    known = 1000
    while meter.reason(known) is None:
        meter.answered(known, float(rng.random() < 0.6), None)
        known += 1
    assert str(meter.reason(known)) == f"drift: watched=loss, detector=ADWIN, at={known - 1}"
    for later in range(known, known + 2000):
        meter.answered(later, float(rng.random() < (0.1, 0.9)[later // 500 % 2]), None)
    assert meter.reason(known + 2000) == Reason("drift", {"watched": "loss", "detector": "ADWIN", "at": known - 1})
    meter.refitted(known, None)
    for _ in range(1000):
        meter.answered(known, float(rng.random() < 0.6), None)
        assert meter.reason(known) is None


@pytest.mark.parametrize(
    ("kind", "y", "prediction", "expected"),
    [
        ("number", 3, 1.5, 1.5),
        ("number", -1.0, 1, 2.0),
        ("number", 1.0, math.nan, None),
        ("number", math.inf, 1.0, None),
        ("number", 1e308, -1e308, None),
        ("number", None, 1.0, None),
        ("probability", True, 0.25, math.log(4)),
        ("probability", False, 0.25, math.log(4 / 3)),
        ("probability", True, 1.0, 0.0),
        ("probability", False, 1.0, -math.log(1e-6)),
        ("probability", True, 0.0, -math.log(1e-6)),
        ("probability", True, math.nan, None),
        ("class", "a", "a", 0.0),
        ("class", "a", "b", 1.0),
        ("class", 1, 2, 1.0),
        ("class", "a", None, None),
    ],
)
def test_what_a_prediction_lost(kind: due.Kind, y: Any, prediction: Any, expected: float | None) -> None:
    assert loss(kind, y, prediction) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, derandomize=True)
@given(st.booleans(), st.floats(0, 1))
def test_the_loss_over_arrays_is_the_same(y: bool, p: float) -> None:
    arrays = np.array([float(y)]), np.array([p])
    assert lost("log loss", *arrays)[0] == pytest.approx(loss("probability", y, p), rel=1e-12, abs=1e-12)
    assert lost("errors", *arrays)[0] == loss("class", y, p > 0.5)
    assert lost("degrees", *arrays)[0] == loss("number", float(y), p)


Losses = npt.NDArray[np.float64]


@st.composite
def instances(draw: st.DrawFn, monotone: bool = False) -> tuple[Losses, float]:
    """losses[i, s] of version i in segment s (whole numbers; versions begin at 1), and a price."""
    n = draw(st.integers(2, 14))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    table = rng.integers(0, 9, (n, n)).astype(float)
    if monotone:
        table = np.sort(table, axis=0)[::-1].copy()
    table[:, 0] = 0.0
    return table, float(draw(st.integers(1, 30)))


def priced(losses: Losses, price: float) -> dict[tuple[int, int], dict[str, Any]]:
    """The same instance as `retrainopt` has it: the first version is there from the start, at no price."""
    n = losses.shape[1]
    out = {}
    for i in range(1, n):
        start = 0 if i == 1 else i - 1
        future = {s: float(losses[i, s + 1]) for s in range(start, n - 1)}
        out[(-1, 0) if i == 1 else (i - 1, 1)] = {"training_cost": price if i > 1 else 0.0, "future_losses": future}
    return out


def policy(losses: Losses, price: float) -> tuple[list[int], float]:
    """The refits of the debt policy when the shadow is the newest version, and the most by which a debt exceeded it."""
    meter, refits, over = fresh(deferred(debt=price)), [1], 0.0
    for s in range(1, losses.shape[1]):
        meter.answered(s, losses[refits[-1], s], losses[s, s])
        reason = meter.reason(s)
        if reason is not None and s + 1 < losses.shape[1]:
            over = max(over, reason.numbers["debt"] - price)
            refits.append(s + 1)
            meter.refitted(s, None)
    return refits, over


@settings(deadline=None, derandomize=True)
@given(instances())
def test_no_schedule_costs_less_than_the_optimum_and_costs_agree_with_retrainopt(
    instance: tuple[Losses, float],
) -> None:
    losses, price = instance
    n, models = losses.shape[1], priced(*instance)
    least, decisions, *_ = solve_exact_schedule(n - 1, models)
    total, refits = optimum(losses, price)
    assert total == least
    assert refits == [1, *(t + 1 for t, d in enumerate(decisions) if d.action is DecisionAction.RETRAIN)]
    assert cost(losses, refits, price) == least
    mine, _ = policy(losses, price)
    for schedule in (mine, *(cadence(n, k) for k in range(1, n))):
        as_theirs = [
            Decision(DecisionAction.RETRAIN, 1, s - 1) if s in schedule[1:] else Decision(DecisionAction.KEEP)
            for s in range(1, n)
        ]
        assert cost(losses, schedule, price) == evaluate_decision_sequence(as_theirs, models)[0] >= least


@settings(deadline=None, derandomize=True)
@given(instances(monotone=True))
def test_where_newer_is_never_worse_the_cost_is_bounded(instance: tuple[Losses, float]) -> None:
    losses, price = instance
    refits, over = policy(losses, price)
    assert cost(losses, refits, price) <= (2 + over / price) * optimum(losses, price)[0] + price
