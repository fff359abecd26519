"""Models on query: for each question a fit to the examples most like it, of those known when it came."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import polars as pl
import pytest
from river import compose, dummy, linear_model, naive_bayes, stats
from sklearn.tree import DecisionTreeRegressor

import operators as op
from engine import DefinitionError, Pipeline, on_query
from engine.model import kept
from engine.neighbours import Neighbours
from operators.delta import FLOAT, STRING, Delta, to_column

MINUTE = 60_000_000


def pipeline(refresh: Any, learner: Any, label: str = "y") -> Pipeline:
    p = Pipeline("p")
    asked = p.source("asked", key="id", at="at", schema={"id": int, "at": pl.Datetime, "a": float, "c": str})
    told = p.source(
        "told", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float, "late": bool, "word": str},
        append_only=False, lateness="1d",
    )  # fmt: skip
    questions = p.view("questions", asked, op.project("id", "a", "c"))
    p.model("m", questions, answers=told, label=label, learner=learner, refresh=refresh, wait="1d")
    return p


def frames(n: int, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Answers come 1 to 40 questions later; one in five is corrected, one in ten taken back."""
    dice = np.random.default_rng(seed)
    a = dice.normal(size=n).round(2)
    c = dice.choice(["u", "v"], n)
    y = a**2 + (c == "u")
    told = []
    for i in range(n):
        when = i + int(dice.integers(1, 40))
        told.append((i, when, y[i], False))
        if dice.random() < 0.2:
            told.append((i, when + int(dice.integers(1, 20)), y[i] + 5, False))
        if dice.random() < 0.1:
            told.append((i, when + 30, None, True))
    told.sort(key=lambda r: r[1])
    stamp = lambda m: pl.Series(np.array(m) * MINUTE).cast(pl.Datetime("us", "UTC"))  # noqa: E731
    ys = [None if r[2] is None else float(r[2]) for r in told]
    return {
        "asked": pl.DataFrame({"id": range(n), "at": stamp(range(n)), "a": a, "c": c}),
        "told": pl.DataFrame(
            {
                "id": [r[0] for r in told],
                "at": stamp([r[1] for r in told]),
                "y": ys,
                "late": [y is not None and bool(y > 1) for y in ys],
                "word": [None if y is None else "high" if y > 1 else "low" for y in ys],
                "deleted": [r[3] for r in told],
            }
        ),
    }


def known(data: dict[str, pl.DataFrame], at: Any, label: str) -> dict[int, Any]:
    """The labels known before a question at this time, the newest of each; answers of its instant are known."""
    out: dict[int, Any] = {}
    for row in data["told"].filter(pl.col("at") <= at).iter_rows(named=True):
        if row["deleted"]:
            out.pop(row["id"], None)
        else:
            out[row["id"]] = row[label]
    return out


@pytest.mark.parametrize("label", ["y", "late", "word"])
@pytest.mark.parametrize("window", [None, "1h"])
def test_each_question_is_answered_by_the_examples_known_when_it_came(label: str, window: Any) -> None:
    learner = linear_model.LinearRegression() if label == "y" else naive_bayes.GaussianNB()
    data = frames(150)
    p = pipeline(on_query(7, window=window), learner, label)
    got = p.replay(data, 17)["m.predictions"].sort("id")["prediction"].to_list()
    kind: Any = {"y": "number", "late": "binary", "word": "class"}[label]
    for i, row in enumerate(data["asked"].iter_rows(named=True)):
        there = known(data, row["at"], label)
        if window:
            there = {j: y for j, y in there.items() if j >= i - 60}
        if not there:
            assert got[i] is None
            continue
        near = Neighbours({"a": FLOAT, "c": STRING}, kind, 7)
        order = list(there)
        near.add(
            np.arange(len(order)),
            {n: data["asked"][n].gather(order).to_numpy().astype(object if n == "c" else float) for n in ("a", "c")},
            np.array([there[j] for j in order], object if label == "word" else None),
            np.array(order),
        )
        x = {"a": np.array([row["a"]]), "c": np.array([row["c"]], object)}
        assert got[i] == pytest.approx(near.predict(x)[0]), i


@pytest.mark.parametrize("policy", [on_query(5), on_query(5, window="30m"), on_query(5, fit="learner")])
def test_cuts_and_restarts_do_not_show(policy: Any) -> None:
    data = frames(120, seed=3)
    p = pipeline(policy, compose.Select("a") | linear_model.LinearRegression())
    found = [p.replay(data, n)["m.predictions"] for n in (1000, 1, 11)]
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_the_learner_of_the_model_is_fitted_to_the_neighbours_only() -> None:
    data = frames(80, seed=1)
    mean = pipeline(on_query(3, fit="learner"), dummy.StatisticRegressor(stats.Mean())).replay(data)["m.predictions"]
    tree = pipeline(on_query(3, fit="learner"), compose_tree()).replay(data)["m.predictions"]
    for i, row in enumerate(data["asked"].iter_rows(named=True)):
        there = known(data, row["at"], "y")
        if not there:
            assert mean["prediction"][i] is None
            assert tree["prediction"][i] is None
            continue
        order = list(there)
        near = Neighbours({"a": FLOAT, "c": STRING}, "number", 3)
        columns = {n: data["asked"][n].gather(order).to_numpy().astype(object if n == "c" else float) for n in "ac"}
        near.add(np.arange(len(order)), columns, np.array([there[j] for j in order]), np.array(order))
        ids, _, found = near.nearest({"a": np.array([row["a"]]), "c": np.array([row["c"]], object)})
        labels = [there[order[j]] for j in ids[0, : found[0]]]
        assert mean["prediction"][i] == pytest.approx(np.mean(labels)), i
        assert min(labels) <= tree["prediction"][i] <= max(labels), i


def compose_tree() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    number = FunctionTransformer(lambda frame: frame.select("a").to_numpy())
    return make_pipeline(number, DecisionTreeRegressor(random_state=0))


def test_questions_with_fewer_examples_than_asked_for_are_counted_and_state_resumes() -> None:
    spec = pipeline(on_query(3), linear_model.LinearRegression()).models["m"].spec
    policy = on_query(3)
    m = kept(spec, policy)
    state: Any = None
    said = []
    for i in range(6):
        if state is not None:
            m = kept(spec, policy, None, pickle.loads(pickle.dumps(state)))
        one, at = np.ones(1, np.int64), np.array([2 * i])
        q = Delta({"id": np.array([i]), "a": np.array([float(i)]), "c": to_column(["u"], STRING)}, one, at, at, at)
        schema = spec.answers
        t = Delta({n: to_column([None], d) for n, d in schema.items()}, one, at, at + 1, at + 1)
        t.columns |= {"id": np.array([i]), "y": np.array([float(i)])}
        said += m.apply(q, t, -(10**9))[0].columns["prediction"].tolist()
        state = m.snapshot()
    figures = m.figures()
    assert (figures["held"], figures["fewer"]) == (6, 3)
    assert np.isnan(said[0])
    assert said[1:] == pytest.approx([0, 1, 2, 3, 4], abs=1.5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DefinitionError, match="neighbours is 0"):
        on_query(0)
