"""Deferred models: a version serves until the next is due, fitted, judged and put in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from river import drift, linear_model, preprocessing
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeRegressor

import operators as op
from engine import DefinitionError, Pipeline, deferred, immediate
from engine.model import KeptModel, kept
from engine.spec import ModelSpec, fingerprint
from operators.delta import BOOL, FLOAT, STRING, Delta, to_column

HOUR = 3_600_000_000


def pipeline(refresh: Any, learner: Any, label: str = "y") -> Pipeline:
    """Questions about numbers, with answers an hour or two later."""
    p = Pipeline("p")
    asked = p.source(
        "asked", key="id", at="at", schema={"id": str, "at": pl.Datetime, "a": float, "c": str}, lateness="5h"
    )
    told = p.source(
        "told", key="id", at="at", schema={"id": str, "at": pl.Datetime, "y": float, "late": bool},
        append_only=False, lateness="5h",
    )  # fmt: skip
    questions = p.view("questions", asked, op.project("id", "a", "c"))
    answers = p.view("answers", told, op.project("id", label))
    p.model("m", questions, answers=answers, label=label, learner=learner, refresh=refresh, wait="1d")
    return p


def stream(n: int, seed: int = 0, turn: int | None = None) -> dict[str, pl.DataFrame]:
    """y = 2a + 1 with noise; from row `turn` on y = -2a. Each is answered 1 to 3 hours later."""
    dice = np.random.default_rng(seed)
    a = dice.normal(size=n)
    at = np.arange(n) * HOUR // 4
    y = np.where(np.arange(n) < (turn or n), 2 * a + 1, -2 * a) + dice.normal(scale=0.1, size=n)
    told = at + dice.integers(1, 4, n) * HOUR
    ids = [f"q{i}" for i in range(n)]
    questions = pl.DataFrame({"id": ids, "at": pl.Series(at).cast(pl.Datetime("us", "UTC")), "a": a})
    questions = questions.with_columns(c=pl.Series(dice.choice(["u", "v"], n)))
    answers = pl.DataFrame({"id": ids, "at": pl.Series(told).cast(pl.Datetime("us", "UTC")), "y": y, "late": y > 1})
    return {"asked": questions, "told": answers.sort("at", maintain_order=True)}


def run(p: Pipeline, frames: dict[str, pl.DataFrame], batch_rows: int = 1000) -> pl.DataFrame:
    return p.replay(frames, batch_rows)["m.predictions"]


def words(estimator: Any) -> Any:
    """An estimator that takes words too."""
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["c"]), remainder="passthrough")
    return make_pipeline(encoder, estimator)


ESTIMATORS = {
    "line": lambda: words(LinearRegression()),
    "tree": lambda: words(DecisionTreeRegressor(max_depth=4, random_state=1)),
}


@pytest.mark.parametrize("learner", ESTIMATORS)
def test_a_version_is_the_estimator_fitted_to_the_answers_known_when_it_was_due(learner: str) -> None:
    frames = stream(300)
    got = run(pipeline(deferred(every="1d"), ESTIMATORS[learner]()), frames).sort("at")
    asked, told = frames["asked"], frames["told"]
    want: list[float | None] = []
    for at in asked["at"]:
        midnight = at.replace(hour=0, minute=0, second=0)
        seen = told.filter(pl.col("at") < midnight).join(asked.rename({"at": "asked"}), on="id").sort("at", "asked")
        if not len(seen):
            want.append(None)
            continue
        model = ESTIMATORS[learner]().fit(seen.select("a", "c"), seen["y"].to_numpy())
        row = asked.filter(pl.col("at") == at).select("a", "c")
        want.append(float(model.predict(row)[0]))
    assert got["prediction"].is_null().to_list() == [w is None for w in want]
    np.testing.assert_allclose(got["prediction"].drop_nulls(), [w for w in want if w is not None], rtol=1e-9)
    assert got["model_version"].n_unique() == 4, "none, then one for each of three midnights"


RIVER = preprocessing.StandardScaler() | linear_model.LinearRegression()
POLICIES = {
    "every": deferred(every="6h"),
    "rows": deferred(rows=37),
    "target_lag": deferred(target_lag="5h"),
    "drift": deferred(drift=drift.PageHinkley(min_instances=20, threshold=5.0)),
    "drift of a feature": deferred(drift={"a": drift.PageHinkley(min_instances=10, threshold=1.0)}, every="2d"),
    "debt": deferred(debt=20.0),
    "window": deferred(every="6h", window="12h"),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("learner", ["river", "tree"])
def test_how_batches_are_cut_does_not_show(policy: str, learner: str) -> None:
    made = (lambda: numbers_only(RIVER)) if learner == "river" else ESTIMATORS["tree"]
    frames = stream(2400, turn=1800) if policy == "debt" else stream(600, turn=350)
    cuts = (1000, 13) if policy == "debt" else (1000, 1, 13)
    found = [run(pipeline(POLICIES[policy], made()), frames, n) for n in cuts]
    assert all(found[0].equals(other) for other in found[1:])
    assert found[0]["model_version"].n_unique() > 2


def numbers_only(learner: Any) -> Any:
    from river import compose

    return compose.Select("a") | learner.clone()


def model(refresh: Any, learner: Any, label: str = "y", folder: Path | None = None) -> KeptModel:
    return kept(spec(learner, label), refresh, folder)


def spec(learner: Any, label: str = "y") -> ModelSpec:
    return pipeline(immediate() if hasattr(learner, "learn_one") else deferred(rows=1), learner, label).models["m"].spec


def feed(
    m: KeptModel, rows: Sequence[tuple[int, str, float, float]], known: int | None = None, live: bool = False
) -> tuple[list[tuple[str, float | None, str | None]], Delta]:
    """Rows (seq, key, a, y): a question, or an answer where y is a number. Returns (key, prediction, version)."""
    asked, told = [r for r in rows if r[3] != r[3]], [r for r in rows if r[3] == r[3]]

    def delta(some: Sequence[tuple[int, str, float, float]], **columns: Any) -> Delta:
        seq = np.array([r[0] for r in some], np.int64)
        return Delta(columns, np.ones(len(some), np.int64), seq, seq, seq)

    q = delta(asked, id=to_column([r[1] for r in asked], STRING), a=to_column([r[2] for r in asked], FLOAT))
    q.columns["c"] = to_column(["u"] * len(asked), STRING)
    label = m.spec.label
    dtype = m.spec.answers[label]
    ys = [bool(r[3]) if dtype == BOOL else r[3] for r in told]
    t = delta(told, id=to_column([r[1] for r in told], STRING), **{label: to_column(ys, dtype)})
    first = min(r[0] for r in rows)
    clocks = np.arange(first, max(r[0] for r in rows) + 1) if known is None else np.full(99, known)
    out, training = m.apply(q, t, -(10**9), clocks, first, live)
    frame = out.frame(m.schema)
    return list(zip(frame["id"], frame["prediction"], frame["model_version"], strict=True)), training


ASK = float("nan")


def asked(first: int, n: int, a: float = 1.0) -> list[tuple[int, str, float, float]]:
    return [(first + i, f"k{first + i}", a + i, ASK) for i in range(n)]


def told(first: int, questions: Sequence[tuple[int, str, float, float]], slope: float = 2.0) -> list[Any]:
    return [(first + i, k, 0.0, slope * a) for i, (_, k, a, _) in enumerate(questions)]


class Moody(Ridge):
    """A learner that fails as the newest label says."""

    def fit(self, x: Any, y: Any) -> Any:
        if y[-1] == 13:
            raise ArithmeticError("thirteen")
        super().fit(x.select("a"), y)
        self.mood_ = y[-1]
        return self

    def predict(self, x: Any) -> Any:
        found = super().predict(x.select("a"))
        if self.mood_ == 14:
            found[-1] = np.nan
        if self.mood_ == 15 and 99.0 in x["a"]:
            raise ArithmeticError("ninety-nine")
        return found


def test_before_the_first_version_there_is_no_prediction() -> None:
    m = model(deferred(rows=3), Ridge())
    with pytest.raises(DefinitionError, match="cannot learn each answer as it comes: declare refresh=deferred"):
        pipeline(immediate(), Ridge())
    questions = asked(0, 3)
    m = model(deferred(rows=3), Moody())
    assert [p for _, p, _ in feed(m, questions)[0]] == [None] * 3
    feed(m, told(3, questions))
    (row,) = feed(m, [(6, "x", 1.0, ASK)])[0]
    assert row[1] is not None
    assert row[2] == f"{fingerprint(m.spec)}.5"
    assert m.figures()["refreshes"] == {"published": 1, "refused": 0, "failed": 0, "fallen_back": 0}


@pytest.mark.parametrize(
    ("label", "why"), [(13.0, "ArithmeticError: thirteen"), (14.0, "1 of its predictions for its 6 newest examples")]
)
def test_a_fit_that_fails_keeps_the_old_version_and_says_so(label: float, why: str) -> None:
    m = model(deferred(rows=3), Moody())
    feed(m, first := asked(0, 3))
    feed(m, told(3, first))
    served = feed(m, second := asked(6, 3))[0]
    feed(m, [*told(9, second[:2]), (11, second[2][1], 0.0, label)])
    found = feed(m, [(20, "x", 1.0, ASK)])[0]
    assert found[0][2] == served[0][2], "the version that served goes on"
    figures = m.figures()
    assert figures["refreshes"]["failed"] == 1
    assert figures["last"]["verdict"] == "failed"
    assert why in figures["last"]["why"]
    feed(m, [(21, "x", 0.0, 2.0)])
    assert m.figures()["refreshes"]["failed"] == 1, "conditions begin anew"


def test_where_a_version_fails_at_a_question_the_one_before_is_asked() -> None:
    m = model(deferred(rows=3), Moody())
    feed(m, first := asked(0, 3))
    feed(m, told(3, first))
    (old,) = feed(m, [(6, "w", 99.0, ASK)])[0]
    feed(m, second := asked(7, 3))
    feed(m, [*told(10, second[:2]), (12, second[2][1], 0.0, 15.0)])
    found = feed(m, [(20, "x", 1.0, ASK), (21, "y", 99.0, ASK), (22, "z", 2.0, ASK)])[0]
    assert [v == old[2] for _, _, v in found] == [False, True, False]
    assert found[1][1] == old[1]
    assert m.figures()["refreshes"]["fallen_back"] == 1


def test_a_worse_version_does_not_serve() -> None:
    class Contrary(Ridge):
        """Fits well at first, then badly."""

        def fit(self, x: Any, y: Any) -> Any:
            return super().fit(x.select("a"), y if len(y) < 150 else -y)

        def predict(self, x: Any) -> Any:
            return super().predict(x.select("a"))

    m = model(deferred(rows=100), Contrary())
    at = 0
    for _ in range(2):
        feed(m, block := asked(at, 100))
        feed(m, told(at + 100, block))
        at += 200
    figures = m.figures()
    assert figures["refreshes"] == {"published": 1, "refused": 1, "failed": 0, "fallen_back": 0}
    last = figures["last"]
    assert last["why"].startswith("worse: a loss of ")
    assert last["checks"]["loss"] > last["checks"]["served_loss"] + last["checks"]["by_chance"]
    assert last["checks"]["held_out"] == 20
    assert feed(m, [(at, "x", 1.0, ASK)])[0][0][2].endswith(".199")


def test_what_is_held_out_was_asked_after_all_that_the_candidate_saw() -> None:
    seen: list[tuple[int, float]] = []

    class Spy(Ridge):
        def fit(self, x: Any, y: Any) -> Any:
            seen.append((len(y), float(x["a"].max())))
            return super().fit(x.select("a"), y)

        def predict(self, x: Any) -> Any:
            return super().predict(x.select("a"))

    m = model(deferred(rows=100), Spy())
    feed(m, first := asked(0, 100, a=0))
    feed(m, told(100, first))
    late = asked(200, 100, a=200)
    feed(m, late)
    feed(m, told(300, late))
    assert seen == [(100, 99.0), (100, 99.0), (200, 299.0)], "no answer of the second block was known when it was asked"
