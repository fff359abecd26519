"""Guards on a model: what they make of its predictions, in a replay cut anyhow, and what is scored and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from river import base, linear_model

import operators as op
from engine import DefinitionError, Pipeline, deferred, guard, immediate, on_query
from engine.model import ModelError, kept
from operators.delta import Delta

HOUR = 3_600_000_000


class Fragile(base.Regressor):
    """Says its last label; fails where `a` is 7, and says nan where it is 8."""

    def __init__(self) -> None:
        self.last = 0.0

    def learn_one(self, x: dict[str, Any], y: float) -> None:
        self.last = y

    def predict_one(self, x: dict[str, Any]) -> float:
        if x.get("a") == 7:
            raise ZeroDivisionError("seven")
        return float("nan") if x.get("a") == 8 else self.last


GUARDS = [
    guard.refuse("no_a", pl.col("a").is_null()),
    guard.route("short", pl.col("a") == 2, to=pl.col("a") * 10),
    guard.fallback("broken", -1.0, max_age="6h"),
    guard.clip("sane", -5, 50),
    guard.override("holiday", pl.col("a") == 3, pl.col("prediction") + 0.5),
]


def pipeline(refresh: Any, learner: Any, guards: Any = GUARDS) -> Pipeline:
    p = Pipeline("p")
    asked = p.source("asked", key="id", at="at", schema={"id": int, "at": pl.Datetime, "a": float})
    told = p.source("told", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float})
    questions = p.view("questions", asked, op.project("id", "a"))
    p.model(
        "m", questions, answers=told, label="y", learner=learner, refresh=refresh, guards=guards, key="id",
        features=["a"],
    )  # fmt: skip
    return p


def frames(a: list[float | None], y: list[float], wait: int = 1) -> dict[str, pl.DataFrame]:
    n = np.arange(len(a))
    stamp = lambda h: pl.Series(h * HOUR).cast(pl.Datetime("us", "UTC"))  # noqa: E731
    return {
        "asked": pl.DataFrame({"id": n, "at": stamp(n), "a": pl.Series(a, dtype=pl.Float64)}),
        "told": pl.DataFrame({"id": n[: len(y)], "at": stamp(n[: len(y)] + wait), "y": pl.Series(y, dtype=pl.Float64)}),
    }


def test_each_guard_acts_where_it_should_and_says_so() -> None:
    data = frames([0, None, 2, 7, 8, 3, 0, 0, 0], [100, 100, 100, 100])
    got = pipeline(immediate(), Fragile()).replay(data)["m.predictions"]
    assert got["prediction"].to_list() == [-1, None, 20, -1, -1, 50.5, 50, 50, 50]
    assert got["guards"].to_list() == [
        "broken", "no_a", "short", "broken", "broken", "sane,holiday", "sane", "sane", "sane"
    ]  # fmt: skip
    later = pipeline(immediate(), Fragile()).replay(frames([0] * 12, [100]))["m.predictions"]["guards"].to_list()
    assert later == ["broken", *["sane"] * 7, *["broken"] * 4], "an answer of hour 1 is too old after hour 7"


def test_a_failing_learner_without_fallback_stops_the_run() -> None:
    with pytest.raises(ModelError, match="ZeroDivisionError: seven"):
        pipeline(immediate(), Fragile(), GUARDS[:2]).replay(frames([7.0], []))


@pytest.mark.parametrize("refresh", [immediate(), deferred(rows=9), on_query(3)], ids=str)
def test_how_batches_are_cut_does_not_show(refresh: Any) -> None:
    dice = np.random.default_rng(4)
    a: list[Any] = [None if v == 5 else float(v) for v in dice.integers(0, 6, 150)]
    data = frames(a, [float(v) * 30 for v in dice.normal(size=140)], wait=3)
    p = pipeline(refresh, linear_model.LinearRegression())
    found = [p.replay(data, n) for n in (1000, 1, 7)]
    for view in ("m.predictions", "m.training"):
        assert found[0][view].equals(found[1][view])
        assert found[0][view].equals(found[2][view])
    served = found[0]["m.predictions"].select("id", served="prediction")
    told = found[0]["m.training"].join(served, on="id")
    assert told["prediction"].equals(told["served"], null_equal=True), "what was served is what is kept"


def test_what_was_served_is_what_is_scored() -> None:
    m = kept(pipeline(immediate(), Fragile()).models["m"].spec, immediate())
    two, at = np.ones(2, np.int64), np.array([0, 1])
    questions = Delta({"id": at, "a": np.array([2.0, 2.0])}, two, at, at, at)
    answers = Delta({"id": at, "at": at + 2, "y": np.array([25.0, 18.0])}, two, at + 2, at + 2, at + 2)
    out, training = m.apply(questions, answers, -1)
    assert out.columns["prediction"].tolist() == training.columns["prediction"].tolist() == [20.0, 20.0]
    figures = m.figures()
    assert figures["metrics"] == {"MAE": (5 + 2) / 2}
    assert figures["guards"]["short: route"] == 2


@pytest.mark.parametrize(
    ("guards", "text"),
    [
        ([guard.clip("a", 0, 1), guard.clip("a", 0, 2)], "two guards have the name 'a'"),
        ([guard.refuse("a", pl.col("b") > 1)], "b"),
        (3, "guards is 3: expected a list of guards"),
    ],
)
def test_guards_that_do_not_fit_are_refused(guards: Any, text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        pipeline(immediate(), Fragile(), guards)
    assert text in str(error.value)
