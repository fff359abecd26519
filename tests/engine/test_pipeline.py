"""A pipeline checks itself while it is declared: each text says what is wrong, what was found and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from river import linear_model

import operators as op
from engine import DefinitionError, Pipeline
from engine.graph import Source, View
from engine.plan import rank, roots, stages


def flights() -> tuple[Pipeline, Source, Source, Source]:
    p = Pipeline("flights")
    departures = p.source(
        "departures",
        key="id",
        at="sched",
        schema={"id": str, "sched": pl.Datetime, "origin": str, "tail": str, "x": float},
    )
    landings = p.source(
        "landings", key="id", at="arrived", schema={"id": str, "arrived": pl.Datetime, "delay": float, "tail": str}
    )
    planes = p.table("planes", key="tail", schema={"tail": str, "seats": int})
    return p, departures, landings, planes


def features(p: Pipeline, departures: Source) -> View:
    return p.view("features", departures, op.window(by="origin", size="1h", n=op.count()))


def model(p: Pipeline, departures: Source, landings: Source, **given: Any) -> object:
    arguments: dict[str, Any] = {"answers": landings, "label": "delay", "learner": linear_model.LinearRegression()}
    return p.model("m", given.pop("questions", None) or features(p, departures), **{**arguments, **given})


WRONG: list[tuple[Callable[..., object], str]] = [
    (lambda p, d, a, t: Pipeline("My Pipe"), "a pipeline has the name 'My Pipe': expected lower-case letters"),
    (lambda p, d, a, t: p.source("departures", key="a", at="t", schema={}), "the name 'departures' is taken"),
    (lambda p, d, a, t: p.source("s", key="a", at="t", schema={"b": int}), "no column 'a'"),
    (lambda p, d, a, t: p.source("s", key=None, at="a", schema={"a": int}), "is None: expected one column name"),
    (
        lambda p, d, a, t: p.source("s", key="a", at="a", schema={"a": int}),
        "the event time 'a' has type Int64; expected datetime",
    ),
    (
        lambda p, d, a, t: p.source("s", key="a", at="t", schema={"a": float, "t": pl.Datetime}),
        "key column 'a' is a Float64",
    ),
    (
        lambda p, d, a, t: p.source("s", key="a", at="t", schema={"a": list, "t": pl.Datetime}),
        "a column cannot have type",
    ),
    (
        lambda p, d, a, t: p.source("s", key="a", at="t", schema={"a": int, "_t": pl.Datetime}),
        "does not begin with '_'",
    ),
    (
        lambda p, d, a, t: p.source("s", key="a", at="t", lateness="soon", schema={"a": int, "t": pl.Datetime}),
        "lateness is 'soon': expected a timedelta or text such as '90s'",
    ),
    (
        lambda p, d, a, t: p.source("s", key="a", at="t", epoch={"a": "ms"}, schema={"a": int, "t": pl.Datetime}),
        "expected 's', 'ms' or 'us' of a datetime",
    ),
    (
        lambda p, d, a, t: p.table("s", key="a", schema={"a": int, "deleted": bool}),
        "the column 'deleted' is kept by the engine",
    ),
    (lambda p, d, a, t: p.view("v", d), "view 'v' has no steps"),
    (
        lambda p, d, a, t: p.view("v", "departures", op.dedupe(by="id")),
        "expected a source, table or view of this pipeline",
    ),
    (lambda p, d, a, t: Pipeline("other").view("v", d, op.dedupe(by="id")), "'departures' belongs to another pipeline"),
    (lambda p, d, a, t: p.view("v", d, pl.col("x")), "expected an operator, such as op.where(...)"),
    (lambda p, d, a, t: p.view("v", d, op.where(pl.col("xx") > 1)), "view 'v', step 1 (where)"),
    (lambda p, d, a, t: p.view("v", d, op.where(pl.col("origln") == "JFK")), "did you mean 'origin'?"),
    (
        lambda p, d, a, t: p.view("v", d, op.dedupe(by="id"), op.project(y=pl.col("x") - pl.col("x").mean())),
        "view 'v', step 2 (project)",
    ),
    (
        lambda p, d, a, t: p.view("v", d, op.window(by="orign", size="1h", n=op.count())),
        "no column 'orign'; did you mean 'origin'?",
    ),
    (
        lambda p, d, a, t: p.view("v", d, op.join(a, on="tail", columns=["delay"])),
        "'landings' is not a table; use op.join_asof",
    ),
    (
        lambda p, d, a, t: p.view("v", d, op.join(t, on="id", right_on="seats")),
        "rows of table 'planes' are told apart by tail, not by seats; join it on its key, right_on=['tail']",
    ),
    (
        lambda p, d, a, t: p.view("v", d, op.join(t, on="tail", columns=["seat"])),
        "no column 'seat'; did you mean 'seats'?",
    ),
    (lambda p, d, a, t: p.model("m", d, answers=a, label="delay", learner=None), "expected a view"),
    (lambda p, d, a, t: model(p, d, a, label="dely"), "no column 'dely'; did you mean 'delay'?"),
    (lambda p, d, a, t: model(p, d, a, key="idd"), "no column 'idd'; did you mean 'id'?"),
    (lambda p, d, a, t: model(p, d, a, features=["nn"]), "no column 'nn'; did you mean 'n'?"),
    (lambda p, d, a, t: model(p, d, a, refresh="daily"), "refresh is 'daily'; expected immediate()"),
    (lambda p, d, a, t: p.sink("s"), "sink 's' has nothing to write"),
    (lambda p, d, a, t: p.sink("late", features(p, d)), "sink 'late': the name is taken"),
    (lambda p, d, a, t: p.sink("s", d), "'departures' is a source; expected a view"),
    (
        lambda p, d, a, t: p.sink("s", features(p, d), p.view("v", a, op.dedupe(by="id"))),
        "relations of one sink need the same columns",
    ),
]


@pytest.mark.parametrize(("declare", "text"), WRONG, ids=[t for _, t in WRONG])
def test_mistakes_are_refused_with_the_place_and_the_cure(declare: Callable[..., object], text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        declare(*flights())
    assert text in str(caught.value)


def test_the_definition_names_each_part_and_changes_only_where_it_changed() -> None:
    p, d, a, _ = flights()
    model(p, d, a)
    q, d, a, _ = flights()
    q.view("features", d, op.window(by="origin", size="2h", n=op.count()))
    q.model("m", q.views["features"], answers=a, label="delay", learner=linear_model.LinearRegression())
    mine, theirs = p.definition(), q.definition()
    assert mine == p.definition()
    assert [k for k in mine if mine[k] != theirs[k]] == ["step features (window)"]


def test_stages_bring_rows_together_once_per_key() -> None:
    p, d, a, t = flights()
    p.view(
        "v",
        d,
        op.window(by="origin", size="1h", n=op.count()),
        op.join(t, on="tail", columns=["seats"]),
        op.join_asof(a, on="tail", columns={"last_delay": "delay"}),
        op.project(y=pl.col("n") + 1),
        op.window(by="tail", size="1h", m=op.count()),
    )
    made = stages(p)
    assert [[n.operator.name for n in s.nodes] for s in made] == [
        ["window"],
        ["join", "join_asof", "project"],
        ["window"],
    ]
    assert dict(made[1].split) == {"v.1": ("tail",), "planes": ("tail",), "landings": ("tail",)}


def test_rows_that_are_added_come_whole() -> None:
    p, d, _, _ = flights()
    other = p.source("other", key="id", at="sched", schema=d.columns)
    busy = p.view("busy", d, op.window(by="origin", size="1h", n=op.count()), op.where(pl.col("n") > 5))
    few = p.view("few", busy, op.project(*d.columns))
    p.view("both", few, op.union(other), op.window(by="origin", size="1h", m=op.count()))
    inside = p.view("inside", d, op.window(by="origin", size="1h", n=op.count()))
    p.view("twice", inside, op.union(inside))
    made = stages(p)
    assert [[n.operator.name for n in s.nodes] for s in made] == [
        ["window", "where", "project"],
        ["union"],
        ["window", "window", "union"],
    ]
    assert dict(made[1].split) == {}


def test_what_is_looked_up_comes_first_at_one_instant() -> None:
    p, d, a, t = flights()
    view = p.view(
        "v", d, op.join_asof(a, on="tail", columns={"last": "delay"}), op.join(t, on="tail", columns=["seats"])
    )
    p.model("m", view, answers=a, label="delay", learner=linear_model.LinearRegression())
    assert rank(p).index("departures") == 2
    assert roots(p)["m.predictions"] == {"departures", "landings", "planes"}
