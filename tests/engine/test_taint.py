"""Marks as they are declared: what is refused, what is not touched, and that a correction takes them back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from river import linear_model

import operators as op
from engine import Pipeline, deferred
from engine.graph import Source
from operators.operator import DefinitionError

NOON = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
COLUMNS = {"tx": int, "card": str, "amount": float, "at": pl.Datetime}
TAKEN = "the column 'suspect' says here which rows are suspect"
HIGH = op.between("amount", 0, 100, severity="quarantine")


def payments(p: Pipeline, **given: Any) -> Source:
    return p.source("payments", key="tx", at="at", lateness="1h", schema=COLUMNS, **given)


def rows(*given: tuple[int, str, float | None, int]) -> pl.DataFrame:
    """Rows of payments; the last number is in minutes after noon."""
    made = [{"tx": t, "card": c, "amount": a, "at": NOON + timedelta(minutes=m)} for t, c, a, m in given]
    return pl.DataFrame(
        made, schema={"tx": pl.Int64, "card": pl.String, "amount": pl.Float64, "at": pl.Datetime("us", "UTC")}
    )


def test_without_taint_nothing_changes() -> None:
    plain, marked = Pipeline("p"), Pipeline("p")
    for p, taint in ((plain, False), (marked, True)):
        source = payments(p, expect=[HIGH], taint=taint)
        p.view("n", source, op.window(by="card", size="1h", n=op.count()), refresh=deferred(rows=5))
    assert set(plain.nodes) == {"payments.meets", "payments.fails", "payments.quarantine", "n"}
    assert list(plain.views["n"].schema) == [*COLUMNS, "n"]
    assert list(marked.views["n"].schema) == [*COLUMNS, "n", "suspect"]
    assert not plain.marked
    assert marked.marked == {"n"}
    assert plain.definition() != marked.definition()


def test_rows_that_were_put_aside_are_never_evaluated() -> None:
    p = Pipeline("p")
    source = p.source(
        "texts", key="id", at="at", schema={"id": int, "at": pl.Datetime, "n": str},
        expect=[op.matches("n", "[0-9]+", severity="quarantine")], taint=True,
    )  # fmt: skip
    p.view("n", source, op.project("id", n=pl.col("n").cast(pl.Int64)), op.aggregate(by="id", n=op.total("n")))
    frame = pl.DataFrame({"id": [1, 1, 2], "at": [NOON] * 3, "n": ["7", "oops", "8"]})
    found = p.replay({"texts": frame})["n"].sort("id").rows()
    assert found == [(1, 7, True), (2, 8, False)]


def test_a_correction_takes_marks_back() -> None:
    p = Pipeline("p")
    source = payments(p, expect=[HIGH], taint=True, append_only=False)
    cards = p.view("cards", source, op.aggregate(by="card", n=op.count()))
    p.view("known", source, op.join_asof(cards, on="card", columns=["n"]), op.project("tx", "n"))
    first = rows((1, "a", 1.0, 0), (2, "a", 500.0, 1), (3, "b", 1.0, 2))
    assert p.replay({"payments": first})["cards"].sort("card").rows() == [("a", 1, True), ("b", 1, False)]
    mended = pl.concat([first, rows((2, "a", 50.0, 1))])
    assert p.replay({"payments": mended})["cards"].sort("card").rows() == [("a", 2, False), ("b", 1, False)]


def test_what_is_put_aside_further_down_leaves_its_trail() -> None:
    p = Pipeline("p")
    source = payments(p, expect=[op.not_null("amount")], taint=True)
    busy = op.between("n", 0, 2, severity="quarantine")
    spent = p.view("spent", source, op.window(by="card", size="1h", n=op.count()), expect=[busy])
    p.view("later", spent, op.where(pl.col("amount") > 0), op.window(by="card", size="2h", near=op.count()))
    views = p.replay(
        {"payments": rows((1, "a", 1.0, 0), (2, "a", 1.0, 1), (3, "a", 1.0, 2), (4, "a", 1.0, 62), (5, "b", None, 70))}
    )
    assert views["spent"].select("tx", "n", "suspect").sort("tx").rows() == [
        (1, 1, False), (2, 2, False), (4, 1, False), (5, 1, True)
    ]  # fmt: skip
    assert views["later"].select("tx", "near", "suspect").sort("tx").rows() == [
        (1, 1, False), (2, 2, False), (4, 3, True)
    ]  # fmt: skip
    late = p.replay({"payments": rows((1, "a", 1.0, 0), (2, "a", 1.0, 1), (3, "a", 1.0, 2), (4, "a", 1.0, 61))})
    assert late["spent"].filter(pl.col("suspect")).is_empty()


def test_what_was_put_aside_before_leaves_its_trail_where_rows_are_compared() -> None:
    """An expectation that looks at the row before judges what is there; what is not there still matters."""
    p = Pipeline("p")
    source = payments(p, expect=[HIGH], taint=True)
    once = op.unique("tx", severity="quarantine")
    v = p.view("v", source, op.project("tx", "card", "at"), expect=[once], refresh=deferred(rows=2))
    p.view("near", v, op.window(by="card", size="1h", n=op.count()), op.project("tx", "n"))
    p.view("all", v, op.aggregate(by="card", n=op.count()))
    given = ((1, "a", 500.0, 0), (2, "a", 1.0, 1), (3, "b", 1.0, 2), (4, "c", 1.0, 3), (4, "c", 1.0, 4))
    views = p.replay({"payments": rows(*given, (5, "c", 1.0, 5))})
    assert views["v"].select("tx", "suspect").sort("tx").rows() == [(2, False), (3, False), (4, False), (5, False)]
    assert views["near"].sort("tx").rows() == [(2, 1, True), (3, 1, False), (4, 1, False), (5, 2, True)]
    assert views["all"].select("card", "n", "suspect").sort("card").rows() == [
        ("a", 1, True), ("b", 1, False), ("c", 2, True)
    ]  # fmt: skip
    assert views["v.quarantine"]["tx"].to_list() == [4]


def test_a_view_may_put_aside_what_is_suspect() -> None:
    p = Pipeline("p")
    source = payments(p, expect=[op.not_null("amount")], taint=True)
    clean = op.check("clean", ~pl.col("suspect"), severity="quarantine")
    view = p.view("v", source, op.window(by="card", size="1h", n=op.count()), expect=[clean, op.unique("tx")])
    views = p.replay({"payments": rows((1, "a", None, 0), (2, "a", 1.0, 1), (3, "b", 1.0, 2))})
    assert views["v"].select("tx", "suspect").rows() == [(3, False)]
    assert sorted(views[p.quarantine(view).name].select("tx", "reason").rows()) == [(1, "clean"), (2, "clean")]


def test_a_model_does_not_learn_from_marks_unless_it_is_asked_to() -> None:
    p = Pipeline("p")
    asked = p.view("asked", payments(p, expect=[HIGH], taint=True), op.project("tx", "amount", "suspect"))
    learner = linear_model.LinearRegression()
    given: dict[str, Any] = {"answers": p.sources["payments"], "label": "amount", "key": "tx", "learner": learner}
    for name, features in (("plain", None), ("told", ["amount", "suspect"])):
        model = p.model(name, asked, features=features, **given)
        assert model.spec.features == tuple(features or ["amount"])
        assert list(model.predictions.schema)[-1] == "suspect"
        assert list(model.training.schema).count("suspect") == 1
    assert {"plain.predictions", "told.training"} <= p.marked


def nothing(p: Pipeline) -> object:
    return payments(p, taint=True)


def own_column(p: Pipeline) -> object:
    return p.source(
        "s", key="tx", at="at", schema={**COLUMNS, "suspect": bool}, expect=[op.not_null("card")], taint=True
    )


def own_column_meets_marks(p: Pipeline) -> object:
    source = p.source("s", key="tx", at="at", schema={**COLUMNS, "suspect": bool})
    return p.view("v", source, op.join_asof(payments(p, expect=[HIGH], taint=True), on="card", columns={"a": "amount"}))


def made(step: Callable[[], op.Operator]) -> Callable[[Pipeline], object]:
    return lambda p: p.view("v", payments(p, expect=[HIGH], taint=True), step())


def joined_table(p: Pipeline) -> object:
    table = p.table("cards", key="card", schema={"card": str, "limit": int}, expect=[op.not_null("limit")], taint=True)
    return p.view("v", payments(p), op.join(table, on="card"))


def released(p: Pipeline) -> object:
    approved = p.source("approved", key="tx", at="at", schema={"tx": int, "at": pl.Datetime})
    return payments(p, expect=[HIGH], taint=True, release=op.release(approved, within="7d"))


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (released, "source 'payments': release lets in rows that do not meet what is expected, but here rows are"),
        (nothing, "source 'payments' has taint=True, but nothing is expected of its rows, so none is suspect; declare"),
        (own_column, f"source 's': {TAKEN}; give the new one another name"),
        (own_column_meets_marks, rf"view 'v', step 1 \(join_asof\): {TAKEN}"),
        (made(lambda: op.project(suspect=pl.col("tx") > 1)), rf"view 'v', step 1 \(project\): {TAKEN}"),
        (made(lambda: op.aggregate(by="card", suspect=op.count())), rf"step 1 \(aggregate\): {TAKEN}"),
        (made(lambda: op.window(by="card", size="1h", suspect=op.count())), "the column 'suspect' is there already"),
        (joined_table, "table 'cards' has taint=True, but a join finds versions of rows, not rows; expect it of the"),
    ],
)  # fmt: skip
def test_what_cannot_be_marked_is_refused(declare: Callable[[Pipeline], object], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        declare(Pipeline("p"))
