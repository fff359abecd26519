"""Guards against an obvious twin that takes one row at a time, their decisions one by one, and what they refuse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import guard
from engine.guard import Guard, GuardError, Guards
from operators.delta import BOOL, FLOAT, INT, STRING, Array, Columns, Schema, is_null, to_column
from operators.operator import DefinitionError

QUESTIONS: Schema = {"n": INT, "x": FLOAT, "s": STRING, "yes": BOOL}
NEVER_LEARNT = int(np.iinfo(np.int64).max)
WHAT = "model 'delay'"

Row = dict[str, Any]

# The twin -----------------------------------------------------------------------------------------------------

CONDITIONS: list[tuple[pl.Expr, Callable[[Row], Any]]] = [
    (pl.lit(True), lambda r: True),
    (pl.col("yes"), lambda r: r["yes"]),
    (pl.col("n") > 1, lambda r: r["n"] is not None and r["n"] > 1),
    (pl.col("s").is_null(), lambda r: r["s"] is None),
    ((pl.col("s") == "a") & (pl.col("x") >= 0.5), lambda r: r["s"] == "a" and r["x"] is not None and r["x"] >= 0.5),
]
ON_PREDICTION: list[tuple[pl.Expr, Callable[[Row], Any]]] = [
    (pl.col("prediction").is_null(), lambda r: r["prediction"] is None),
    (pl.col("prediction") == pl.col("prediction"), lambda r: r["prediction"] is not None),
]


def doubled(row: Row) -> Any:
    return None if row["prediction"] is None else row["prediction"] * 2


@dataclass
class Kind:
    """Predictions of one sort: their type, what a learner may say, and values with their twins."""

    dtype: pl.DataType
    probability: bool
    said: list[Any]
    values: list[tuple[Any, Callable[[Row], Any]]]
    on_prediction: tuple[pl.Expr, Callable[[Row], Any]]


INF = math.inf
KINDS = [
    Kind(
        FLOAT,
        False,
        [None, INF, -INF, 0.0, -100.0, 0.5, 0.125, 2.675, 700.25, 1e300],
        [
            (0.0, lambda r: 0.0),
            (15, lambda r: 15.0),
            (pl.col("x"), lambda r: r["x"]),
            (pl.col("n"), lambda r: None if r["n"] is None else float(r["n"])),
        ],
        (pl.col("prediction") * 2, doubled),
    ),
    Kind(
        FLOAT,
        True,
        [None, INF, 0.0, 0.125, 0.375, 0.875, 1.0],
        [(0.5, lambda r: 0.5), (1, lambda r: 1.0), (pl.col("x"), lambda r: r["x"])],
        (pl.col("prediction") * 2, doubled),
    ),
    Kind(
        INT,
        False,
        [None, 0, 1, -7],
        [(3, lambda r: 3), (pl.col("n"), lambda r: r["n"])],
        (pl.col("prediction") * 2, doubled),
    ),
    Kind(
        STRING,
        False,
        [None, "", "a", "late"],
        [("previous", lambda r: "previous"), (pl.col("s"), lambda r: r["s"])],
        (
            pl.col("prediction") + pl.col("prediction"),
            doubled,
        ),
    ),
]


@dataclass
class Rule:
    """A guard, and the same in plain Python."""

    made: Guard
    holds: Callable[[Row], Any] = lambda r: True
    gives: Callable[[Row], Any] = lambda r: None


@st.composite
def rules(draw: st.DrawFn, kind: Kind) -> list[Rule]:
    actions = ["refuse", "route", "fallback", "override"]
    actions += ["clip", "rounded"] if kind.dtype == FLOAT else []
    found = []
    for i, action in enumerate(draw(st.lists(st.sampled_from(actions), max_size=6))):
        name, after = f"{action}-{i}", action == "override"
        condition, holds = draw(st.sampled_from(CONDITIONS + (ON_PREDICTION if after else [])))
        to, gives = draw(st.sampled_from(kind.values + ([kind.on_prediction] if after else [])))
        if action == "refuse":
            found.append(Rule(guard.refuse(name, condition), holds))
        elif action == "route":
            found.append(Rule(guard.route(name, condition, to), holds, gives))
        elif action == "fallback":
            max_age = draw(st.sampled_from([None, "0s", "2us", "3us"]))
            found.append(Rule(guard.fallback(name, to, max_age=max_age), gives=gives))
        elif action == "override":
            found.append(Rule(guard.override(name, condition, to), holds, gives))
        elif action == "clip":
            low, high = (0.25, 0.75) if kind.probability else draw(st.sampled_from([(-60, 600), (0, INF), (-INF, 0.5)]))
            found.append(Rule(guard.clip(name, low, high)))
        else:
            found.append(Rule(guard.rounded(name, draw(st.integers(0, 2)))))
    return found


def one_by_one(
    rules: list[Rule], probability: bool, row: Row, said: Any, age: int, counts: Counter
) -> tuple[Any, str | None]:
    """What is predicted for one question, and which guards acted."""

    def finite(v: Any) -> bool:
        return v is not None and (not isinstance(v, float) or math.isfinite(v))

    def possible(v: Any) -> bool:
        return finite(v) and (not probability or 0 <= v <= 1)

    def act(r: Rule) -> None:
        acted.append(r.made.name)
        counts[r.made.name, r.made.action] += 1

    acted: list[str] = []
    value, asked, refused = said if finite(said) else None, True, False
    for r in rules:
        if r.made.action in ("refuse", "route") and asked and r.holds(row) is True:
            if r.made.action == "refuse":
                value, asked, refused = None, False, True
                act(r)
            elif possible(r.gives(row)):
                value, asked = r.gives(row), False
                act(r)
            else:
                counts[r.made.name, "void"] += 1
    learnt = asked
    for r in rules:
        old = learnt and r.made.max_age is not None and age > r.made.max_age
        if r.made.action == "fallback" and asked and (value is None or old):
            if possible(r.gives(row)):
                value, learnt = r.gives(row), False
                act(r)
            else:
                counts[r.made.name, "void"] += 1
    for r in rules if not refused else ():
        if r.made.action == "override" and r.holds({**row, "prediction": value}) is True:
            if possible(r.gives({**row, "prediction": value})):
                value = r.gives({**row, "prediction": value})
                act(r)
            else:
                counts[r.made.name, "void"] += 1
        elif r.made.action in ("clip", "rounded") and value is not None:
            if r.made.bounds:
                new = min(max(value, r.made.bounds[0]), r.made.bounds[1])
            else:
                new = rounded_by_hand(value, r.made.decimals)
            if new != value:
                value = new
                act(r)
    return value, ",".join(acted) or None


def rounded_by_hand(value: float, decimals: Any) -> float:
    if abs(value) > 1e16:
        return value
    return float(Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN))


ROWS = st.fixed_dictionaries(
    {
        "n": st.sampled_from([None, 0, 1, 2, 9]),
        "x": st.sampled_from([None, INF, 0.0, 0.5, 0.75, -3.0, 40.125]),
        "s": st.sampled_from([None, "", "a", "b"]),
        "yes": st.sampled_from([None, True, False]),
    }
)
AGES = st.sampled_from([0, 1, 2, 3, 4, NEVER_LEARNT])


def part(columns: Columns, index: slice) -> Columns:
    return {n: c[index] for n, c in columns.items()}


def as_python(values: Array) -> list[Any]:
    return [None if missing else v for v, missing in zip(values.tolist(), is_null(values).tolist(), strict=True)]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whole_and_cut_equal_the_twin(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    declared = data.draw(rules(kind))
    said = st.sampled_from(kind.said)
    drawn = data.draw(st.lists(st.tuples(ROWS, said, AGES), max_size=8))
    expected_counts: Counter[tuple[str, str]] = Counter()
    expected = [one_by_one(declared, kind.probability, *d, expected_counts) for d in drawn]

    questions = {n: to_column([d[0][n] for d in drawn], t) for n, t in QUESTIONS.items()}
    predictions = to_column([d[1] for d in drawn], kind.dtype)
    ages = np.array([d[2] for d in drawn], np.int64)
    cuts = data.draw(st.sets(st.integers(0, len(drawn))))
    guards = Guards([r.made for r in declared], QUESTIONS, kind.dtype, kind.probability, WHAT)
    for bounds in ([0, len(drawn)], list(range(len(drawn) + 1)), sorted({0, len(drawn), *cuts})):
        guards.counts = dict.fromkeys(guards.counts, 0)
        found = []
        for piece in (slice(a, b) for a, b in pairwise(bounds)):
            asked = part(questions, piece)
            taken = guards.before(asked)
            out, acted = guards.after(asked, taken, predictions[piece], ages[piece])
            assert out.dtype == predictions.dtype
            found += list(zip(as_python(out), acted.tolist(), strict=True))
        assert found == expected
        assert +Counter(guards.counts) == +expected_counts
        assert set(expected_counts) <= set(guards.counts)


# Decisions, one by one -----------------------------------------------------------------------------------------


def asked(**columns: list[Any]) -> Columns:
    n = len(next(iter(columns.values())))
    return {c: to_column(columns.get(c, [None] * n), t) for c, t in QUESTIONS.items()}


def served(
    made: Sequence[Guard],
    said: list[Any],
    ages: list[int] | None = None,
    dtype: pl.DataType = FLOAT,
    **columns: list[Any],
) -> tuple[list[Any], list[Any], dict[tuple[str, str], int]]:
    """What is predicted, which guards acted, and the counts that are not 0."""
    guards = Guards(made, QUESTIONS, dtype, False, WHAT)
    questions = asked(**(columns or {"n": [None] * len(said)}))
    age = np.array(ages or [0] * len(said), np.int64)
    out, acted = guards.after(questions, guards.before(questions), to_column(said, dtype), age)
    return as_python(out), acted.tolist(), {k: n for k, n in guards.counts.items() if n}


def test_the_first_guard_that_takes_a_question_counts() -> None:
    made = [guard.route("short", pl.col("n") < 2, 7), guard.refuse("tiny", pl.col("n") < 1)]
    guards = Guards(made, QUESTIONS, FLOAT, False, WHAT)
    questions = asked(n=[0, 1, 2, None])
    taken = guards.before(questions)
    assert (taken.by.tolist(), as_python(taken.value)) == ([0, 0, -1, -1], [7.0, 7.0, None, None])
    assert Guards(made[::-1], QUESTIONS, FLOAT, False, WHAT).before(questions).by.tolist() == [0, 1, -1, -1]


def test_only_questions_that_are_predicted_are_counted() -> None:
    made = [guard.refuse("none", pl.col("n").is_null()), guard.route("x", pl.col("n") == 1, pl.col("x"))]
    guards = Guards(made, QUESTIONS, FLOAT, False, WHAT)
    questions = asked(n=[None, 1, 1, None, 3, 1], x=[0.0, None, 2.0, None, None, None])
    taken = guards.before(questions)
    assert set(guards.counts.values()) == {0}
    kept = np.array([4, 1, 2])
    some = {c: a[kept] for c, a in questions.items()}
    out, acted = guards.after(some, taken.take(kept), np.array([5.0, 6.0, np.nan]), np.zeros(3, np.int64))
    assert (out.tolist(), acted.tolist()) == ([5.0, 6.0, 2.0], [None, None, "x"])
    assert guards.counts == {("none", "refuse"): 0, ("x", "route"): 1, ("x", "void"): 1}


def test_a_refused_question_passes_the_rest_untouched() -> None:
    made = [
        guard.fallback("any", 1.0, max_age="0s"),
        guard.override("all", pl.lit(True), 15.0),
        guard.refuse("none", pl.col("n").is_null()),
    ]
    out, acted, _ = served(made, [2.0, 2.0], [9, 9], n=[None, 1])
    assert (out, acted) == ([None, 15.0], ["none", "any,all"])


def test_routed_and_fallen_back_values_pass_the_guards_after() -> None:
    made = [
        guard.clip("sane", -60, 600),
        guard.route("x", pl.col("n") == 1, pl.col("x")),
        guard.fallback("none", 700),
        guard.rounded("minutes", 0),
    ]
    out, acted, counts = served(made, [None, None, 5.5], n=[1, 2, 3], x=[-99.5, None, None])
    assert (out, acted) == ([-60.0, 600.0, 6.0], ["x,sane", "none,sane", "minutes"])
    assert counts == {("x", "route"): 1, ("none", "fallback"): 1, ("sane", "clip"): 2, ("minutes", "rounded"): 1}


def test_an_override_reads_what_the_guards_before_it_left() -> None:
    clip, more = guard.clip("sane", 0, 10), guard.override("more", pl.col("prediction") >= 10, pl.col("prediction") + 1)
    assert served([clip, more], [50.0])[:2] == ([11.0], ["sane,more"])
    assert served([more, clip], [50.0])[:2] == ([10.0], ["more,sane"])


def test_an_override_acts_also_when_the_learner_said_the_same() -> None:
    rule = guard.override("rule", pl.col("n") == 1, "late")
    out, acted, counts = served([rule], ["late", None, "early"], dtype=STRING, n=[1, 1, 2])
    assert (out, acted) == (["late", "late", "early"], ["rule", "rule", None])
    assert counts == {("rule", "override"): 2}


def test_clip_and_rounded_act_only_where_they_change_something() -> None:
    made = [guard.clip("sane", -1, 1), guard.rounded("tenths", 1)]
    assert served(made, [1.0, -1.0, 0.3, None, 0.25])[1] == [None, None, None, None, "tenths"]


def test_what_is_not_finite_is_not_predicted() -> None:
    assert served([guard.clip("sane", 0, 9)], [INF, -INF, 3.0])[:2] == ([None, None, 3.0], [None, None, None])


def test_a_version_that_is_too_old_is_not_used() -> None:
    stale = guard.fallback("stale", pl.col("x"), max_age="2us")
    out, acted, counts = served([stale], [1.0, 1.0, 1.0, None], [2, 3, NEVER_LEARNT, 0], x=[9.0, 9.0, None, 8.0])
    assert (out, acted) == ([1.0, 9.0, 1.0, 8.0], [None, "stale", None, "stale"])
    assert counts == {("stale", "fallback"): 2, ("stale", "void"): 1}


def test_what_a_fallback_gave_is_not_too_old() -> None:
    made = [guard.fallback("none", 5), guard.fallback("stale", 0, max_age="1us")]
    assert served(made, [None, 1.0], [9, 9])[:2] == ([5.0, 0.0], ["none", "stale"])


def test_a_guard_looks_only_at_the_rows_that_reach_it() -> None:
    number = pl.col("s").cast(pl.Int64) > 5
    made = [guard.refuse("no_number", pl.col("s") == "b"), guard.route("high", number, 1.0)]
    assert served(made, [9.0, 9.0], s=["b", "7"])[:2] == ([None, 1.0], ["no_number", "high"])
    with pytest.raises(GuardError) as error:
        served(made[1:], [9.0, 9.0], s=["b", "7"])
    text = str(error.value)
    assert text.startswith("model 'delay': route 'high' failed: conversion from `str` to `i64` failed")
    assert text.endswith("write it so that it takes every value, such as .cast(..., strict=False)")


def test_a_value_that_does_not_fit_is_void() -> None:
    beyond = pl.col("n").cast(pl.UInt64, strict=False) + pl.lit(2**63, pl.UInt64)
    out, acted, counts = served([guard.override("far", pl.col("yes"), beyond)], [7], dtype=INT, n=[1], yes=[True])
    assert (out, acted, counts) == ([7], [None], {("far", "void"): 1})


def test_a_row_alone_divides_as_among_others() -> None:
    guards = Guards([guard.route("third", pl.lit(True), pl.col("x") / 24)], QUESTIONS, FLOAT, False, WHAT)
    questions = asked(x=[float(i) for i in range(100)])
    whole = guards.before(questions).value
    assert [guards.before(part(questions, slice(i, i + 1))).value[0] for i in range(100)] == whole.tolist()


def test_without_guards_predictions_stay() -> None:
    assert served([], [1.0, None])[:2] == ([1.0, None], [None, None])
    guards = Guards([], QUESTIONS, FLOAT, False, WHAT)
    assert (len(guards), guards.definition, guards.counts, guards.falls_back) == (0, [], {}, False)


def test_a_failing_learner_is_let_off_only_where_there_is_a_fallback() -> None:
    assert Guards([guard.fallback("zero", 0.0)], QUESTIONS, FLOAT, False, WHAT).falls_back
    assert not Guards([guard.refuse("none", pl.col("yes"))], QUESTIONS, FLOAT, False, WHAT).falls_back


def test_definitions_tell_guards_apart() -> None:
    def several() -> list[Guard]:
        holds = pl.col("n") > 1
        return [
            guard.refuse("a", holds),
            guard.refuse("b", holds),
            guard.refuse("a", pl.col("n") > 2),
            guard.route("a", holds, 0.0),
            guard.route("a", holds, 1.0),
            guard.route("a", holds, pl.col("x")),
            guard.override("a", holds, 0.0),
            guard.fallback("a", 0.0),
            guard.fallback("a", 0.0, max_age="1d"),
            guard.clip("a", 0, 1),
            guard.clip("a", 0, INF),
            guard.rounded("a", 0),
            guard.rounded("a", 1),
        ]

    found = [repr(g.definition) for g in several()]
    assert len(set(found)) == len(found)
    assert found == [repr(g.definition) for g in several()]
    assert guard.clip("a", 0, 1).definition == guard.clip("a", 0.0, np.float64(1)).definition


# What is refused -----------------------------------------------------------------------------------------------

NUMBER = (FLOAT, False)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: guard.refuse("", pl.lit(True)), "refuse: the name is '': expected lower-case letters"),
        (lambda: guard.clip("a,b", 0, 1), "clip: the name is 'a,b'"),
        (lambda: guard.rounded(None, 1), "rounded: the name is None"),  # type: ignore[arg-type]
        (lambda: guard.clip("c", 2, 1), "clip 'c': low is 2 and high is 1: expected two numbers, low <= high"),
        (lambda: guard.clip("c", 0, float("nan")), "high is nan"),
        (lambda: guard.clip("c", "0", 1), "low is '0'"),  # type: ignore[arg-type]
        (lambda: guard.clip("c", 0, True), "high is True"),
        (lambda: guard.rounded("c", -1), "rounded 'c': decimals is -1: expected 0 or more"),
        (lambda: guard.rounded("c", 0.5), "decimals is 0.5"),  # type: ignore[arg-type]
        (lambda: guard.rounded("c", True), "decimals is True"),
        (lambda: guard.fallback("c", 0, max_age="soon"), "fallback 'c': max_age is 'soon': expected a timedelta"),
        (lambda: guard.route("c", pl.lit(True), None), "route 'c': 'to' is None; expected a number, a class or"),
        (lambda: guard.override("c", pl.lit(True), [1]), "to give no prediction use refuse"),
    ],
)
def test_a_guard_that_cannot_work_is_refused(make: Callable[[], Guard], text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        make()
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("made", "prediction", "text"),
    [
        ("clip", NUMBER, "model 'delay': guards is 'clip': expected a list of guards, such as guard.clip(...)"),
        (guard.clip("c", 0, 1), NUMBER, "expected a list of guards"),
        ([guard.clip("c", 0, 1), 3], NUMBER, "expected a list of guards"),
        (
            [guard.clip("c", 0, 1), guard.refuse("c", pl.lit(True))],
            NUMBER,
            "model 'delay': two guards have the name 'c'; give one another name",
        ),
        (
            [guard.refuse("c", pl.col("m") > 1)],
            NUMBER,
            "model 'delay': refuse 'c': 'condition': no column 'm'; known columns: 'n', 'x', 's', 'yes'",
        ),
        ([guard.refuse("c", pl.col("ye"))], NUMBER, "no column 'ye'; did you mean 'yes'?"),
        ([guard.refuse("c", pl.col("prediction") > 1)], NUMBER, "no column 'prediction'"),
        ([guard.fallback("c", pl.col("prediction"))], NUMBER, "fallback 'c': 'to': no column 'prediction'"),
        ([guard.refuse("c", "n > 1")], NUMBER, "'condition': 'n > 1' is of type str; expected a Polars expression"),
        (
            [guard.refuse("c", pl.col("n") + 1)],
            NUMBER,
            "the condition has type Int64; expected Boolean, such as pl.col('distance') < 50",
        ),
        ([guard.refuse("c", pl.col("n") > pl.col("n").mean())], NUMBER, "looks across rows"),
        ([guard.override("c", pl.lit(True), pl.col("prediction").shift())], NUMBER, "'to': 'prediction.shift("),
        (
            [guard.route("c", pl.lit(True), "x")],
            NUMBER,
            "route 'c': 'to' has type String; expected Float64, the type of the predictions: "
            "a constant, or pl.col('name') for a column",
        ),
        ([guard.fallback("c", True)], NUMBER, "'to' has type Boolean; expected Float64"),
        ([guard.fallback("c", 1.0)], (INT, False), "'to' has type Float64; expected Int64"),
        ([guard.fallback("c", 1)], (STRING, False), "'to' has type Int64; expected String"),
        ([guard.fallback("c", INF)], NUMBER, "fallback 'c': 'to' is inf; expected a value that is finite"),
        ([guard.fallback("c", float("nan"))], NUMBER, "'to' is nan; expected a value that is finite"),
        ([guard.override("c", pl.lit(True), pl.lit(None, pl.Float64))], NUMBER, "'to' is None; expected a value"),
        ([guard.fallback("c", 1.5)], (FLOAT, True), "'to' is 1.5; expected a probability, 0 to 1"),
        ([guard.fallback("c", -1)], (FLOAT, True), "'to' is -1.0; expected a probability, 0 to 1"),
        (
            [guard.clip("c", 0, 2)],
            (FLOAT, True),
            "clip 'c': the predictions are probabilities; expected bounds of 0 to 1",
        ),
        (
            [guard.clip("c", 0, 2)],
            (INT, False),
            "clip 'c': the predictions are classes of type Int64; expected numbers or probabilities; "
            "use override for classes",
        ),
        ([guard.rounded("c", 0)], (STRING, False), "rounded 'c': the predictions are classes of type String"),
    ],
)
def test_guards_that_do_not_fit_the_model_are_refused(made: Any, prediction: Any, text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        Guards(made, QUESTIONS, *prediction, WHAT)
    assert text in str(error.value)


def test_a_question_column_named_as_the_prediction_is_refused_where_it_matters() -> None:
    questions = {**QUESTIONS, "prediction": FLOAT}
    Guards([guard.refuse("c", pl.col("prediction") > 1)], questions, FLOAT, False, WHAT)
    with pytest.raises(DefinitionError) as error:
        Guards([guard.override("c", pl.lit(True), 1)], questions, FLOAT, False, WHAT)
    assert str(error.value) == (
        "model 'delay': override 'c': the questions have a column 'prediction', by which an override reads the "
        "prediction; rename the column in their view"
    )
