"""Train-serve skew: what was served against what late rows have made of it, counted as it happens."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import dummy, stats

import operators as op
from engine import Pipeline, immediate, replay
from engine.model import KeptModel, kept
from engine.seal import Seal
from engine.skew import tally
from operators.delta import BEGINNING, BOOL, FLOAT, INT, NULL, NULL_BOOL, STRING, Schema
from tests.engine.test_made_from import frames
from tests.engine.test_model import Row, asked, go, spec, told

VALUES = [None, 0.0, -0.0, 1.0, -3.0, 1e300, float("inf")]
LIVED = 5
"""The `at` of questions is below this; with the watermark far past it all are final."""

Changes = list[tuple[str, Any]]
"""By key the value of `a` from now on; "gone": there is none."""

changes = st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from([*VALUES, "gone"])), max_size=25)


def as_rows(some: Changes) -> list[list[Row]]:
    """The rows of each change, of one `seq`: -old, +new."""
    there: dict[str, Any] = {}
    found = []
    for seq, (key, value) in enumerate(some, 1):
        at = 1 + "pqr".index(key)
        rows: list[Row] = [(seq, -1, key, there.pop(key), at)] if key in there else []
        if value != "gone":
            there[key] = value
            rows.append((seq, 1, key, value, at))
        found.append(rows)
    return found


def slowly(some: Changes) -> dict[str, Any]:
    """The twin: what was served first, against what is there in the end."""
    served: dict[str, Any] = {}
    now: dict[str, Any] = {}
    for key, value in some:
        if value != "gone":
            served.setdefault(key, value)
        now[key] = value
    found = {"mismatch": 0, "missing": 0, "extra": 0, "smape": None}
    terms = []
    for key, a in served.items():
        b = now[key]
        if b == "gone":
            continue
        terms.append(0.0)
        found["missing"] += a is None and b is not None
        found["extra"] += a is not None and b is None
        if a is not None and b is not None:
            found["mismatch"] += a != b
            one = 0.0 if a == b else 2.0 if float("inf") in (a, b) else abs(a / 2 - b / 2) / (abs(a / 4) + abs(b / 4))
            terms[-1] = one
    if terms:
        found["smape"] = pytest.approx(sum(terms) / len(terms), abs=1e-8)
    gone = sum(now[key] == "gone" for key in served)
    return {"questions": len(served), "taken_back": gone, "features": {"a": found}}


@settings(max_examples=200, deadline=None)
@given(changes, st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
def test_counts_are_those_of_what_is_there_in_the_end(some: Changes, cuts: list[int], answered: bool) -> None:
    model = KeptModel(spec(features=("a",)))
    rows, turn = as_rows(some), 0
    while rows:
        n, turn = cuts[turn % len(cuts)], turn + 1
        batch, rows = [r for one in rows[:n] for r in one], rows[n:]
        labels = [(r[0], 1, r[2], 1.0, r[4]) for r in batch if r[1] > 0] if answered else []
        go(model, asked(*batch), told(*labels), BEGINNING)
        state, model = pickle.dumps(model.snapshot()), KeptModel(spec(features=("a",)))
        model.restore(pickle.loads(state))
    want = slowly(some)
    nothing = slowly([])
    assert model.figures()["skew"] == {"open": want, "final": nothing, "all": want}
    go(model, asked(), told(), 1000)
    assert model.figures()["skew"] == {"open": nothing, "final": want, "all": want}
    assert len(model.training._rows) == 0, "nothing is kept of what cannot be corrected"


def test_a_row_of_an_earlier_question_of_the_key_corrects_no_later_one() -> None:
    model = KeptModel(spec(features=("a",)))
    go(model, asked((1, 1, "p", 1.0, 1), (2, 1, "p", 5.0, 30)), told(), 1)
    go(model, asked((3, -1, "p", 1.0, 1), (3, 1, "p", 2.0, 1)), told(), 1)
    assert model.figures()["skew"]["all"]["features"]["a"]["mismatch"] == 0
    go(model, asked((4, -1, "p", 5.0, 30), (4, 1, "p", 6.0, 30)), told(), 1)
    assert model.figures()["skew"]["all"]["features"]["a"]["mismatch"] == 1


@pytest.mark.parametrize("final", [False, True])
def test_of_a_forgotten_question_nothing_is_left_but_that_it_was_taken_back(tmp_path: Path, final: bool) -> None:
    """final: its row is so old that it cannot be taken back from the view."""
    model = kept(spec(features=("a",)), immediate(), tmp_path, seal=Seal(b"a key", "skew"))
    go(model, asked((1, 1, "p", 1.0, 1), (2, 1, "q", 1.0, 2)), told((3, 1, "p", 5.0, 3)), BEGINNING)
    for key, at in (("p", 1), ("q", 2)):
        go(model, asked((3 + at, -1, key, 1.0, at), (3 + at, 1, key, 77.0, at)), told(), BEGINNING)
    assert model.figures()["skew"]["open"]["features"]["a"]["mismatch"] == 2
    gone = asked(*([] if final else [(6, -1, "p", 77.0, 1)]))
    model.apply(gone, told(), BEGINNING, refreshes=False)
    model.forget(np.array([1]), 6, 6)
    same = {"mismatch": 1, "missing": 0, "extra": 0, "smape": pytest.approx(2 * 76 / 78)}
    assert model.figures()["skew"]["open"] == {"questions": 2, "taken_back": 1, "features": {"a": same}}
    assert model.training._rows.columns["a"].tolist().count(77.0) == 1, "that of the other question"
    go(model, asked(), told(), 1000)
    assert model.figures()["skew"]["final"] == {"questions": 2, "taken_back": 1, "features": {"a": same}}
    assert len(model.training._rows) == 0


def test_each_type_is_compared_as_what_it_is() -> None:
    schema: Schema = {"n": INT, "x": FLOAT, "s": STRING, "b": BOOL}
    served = {
        "n": np.array([1, NULL, 3, 2**62]),
        "x": np.array([1.5, np.nan, 0.0, 1.0]),
        "s": np.array(["u", None, "w", "v"], object),
        "b": np.array([1, NULL_BOOL, 0, 1], np.int8),
    }
    now = {
        "n": np.array([1, 2, NULL, 2**62 + 1]),
        "x": np.array([4.5, np.nan, -0.0, np.nan]),
        "s": np.array([None, None, "x", "v"], object),
        "b": np.array([0, 0, 0, 0], np.int8),
    }
    found = tally(schema, served, now, np.array([True, True, True, True])).figures()["features"]
    assert found["n"] == {"mismatch": 1, "missing": 1, "extra": 1, "smape": 0.0}
    assert found["x"] == {"mismatch": 1, "missing": 0, "extra": 1, "smape": pytest.approx(0.25)}
    assert found["s"] == {"mismatch": 1, "missing": 0, "extra": 1, "smape": None}
    assert found["b"] == {"mismatch": 2, "missing": 1, "extra": 0, "smape": None}


def rides(corrects: bool) -> Pipeline:
    """Rides with what others there were, which late ones correct. corrects: they can be told otherwise, too."""
    p = Pipeline("rides")
    schema = {"id": int, "place": str, "at": pl.Datetime}
    source = p.source("rides", key="id", at="at", lateness="1h", append_only=not corrects, schema=schema)
    costs = p.source("costs", key="id", at="known", schema={"id": int, "known": pl.Datetime, "cost": float})
    asked = p.view(
        "asked",
        source,
        op.window(by="place", size="1h", n=op.count(), gap=op.mean("id")),
        op.project("id", "place", "n", gap=pl.when(pl.col("n") > 6).then(pl.col("gap"))),
    )
    learner = dummy.StatisticRegressor(stats.Mean())
    p.model("m", asked, answers=costs, label="cost", features=["place", "n", "gap"], learner=learner, wait="2h")
    return p


def told_again(corrects: bool) -> dict[str, pl.DataFrame]:
    """Rides and costs. corrects: some are told again after a while: at another place, or that there is none."""
    given = frames(150)
    if not corrects:
        return {"rides": given["rides"], "costs": given["costs"]}
    first = given["rides"].with_columns(deleted=pl.lit(False), turn=pl.int_range(150) * 10)
    again = first.filter(pl.col("id") % 13 == 5).with_columns(place=pl.lit("p2"), turn=pl.col("turn") + 95)
    gone = first.filter(pl.col("id") % 17 == 3).with_columns(deleted=pl.lit(True), turn=pl.col("turn") + 105)
    return {"rides": pl.concat([first, again, gone]).sort("turn").drop("turn"), "costs": given["costs"]}


@pytest.mark.parametrize("corrects", [False, True])
def test_counts_are_what_sql_finds_in_facts_and_corrected_view(
    corrects: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models: list[KeptModel] = []

    def keeping(*args: Any) -> KeptModel:
        models.append(made := kept(*args))
        return made

    monkeypatch.setattr(replay, "kept_model", keeping)
    views = [rides(corrects).replay(told_again(corrects), n) for n in (1, 40, 1000)][-1]
    said = views["m.predictions"]
    skew, *others = (m.figures()["skew"] for m in models)
    assert others == [skew, skew], "how batches are cut does not show"
    for name, view in (("served", "m.training"), ("now", "asked")):
        views[view].write_parquet(tmp_path / f"{name}.parquet")
    both = f"'{tmp_path}/served.parquet' t JOIN '{tmp_path}/now.parquet' a USING (id)"
    served = len(views["m.training"])
    assert duckdb.sql(f"SELECT count(*) FROM {both}").fetchall() == [(served,)]
    assert served > 100, "most are answered"
    for feature in ("place", "n", "gap"):
        terms = f"2 * abs(t.{feature} - a.{feature}) / (abs(t.{feature}) + abs(a.{feature}))"
        want = duckdb.sql(
            f"""SELECT count(*) FILTER (t.{feature} <> a.{feature}),
                       count(*) FILTER (t.{feature} IS NULL AND a.{feature} IS NOT NULL),
                       count(*) FILTER (t.{feature} IS NOT NULL AND a.{feature} IS NULL),
                       {"NULL" if feature == "place" else f"avg(coalesce({terms}, 0))"}
                FROM {both}"""
        ).fetchall()[0]
        found = skew["all"]["features"][feature]
        assert tuple(found[k] for k in ("mismatch", "missing", "extra")) == want[:3]
        assert found["smape"] == (None if want[3] is None else pytest.approx(want[3], abs=1e-8))
    assert min(skew["all"]["features"]["gap"][k] for k in ("mismatch", "missing", *(["extra"] * corrects))) > 0
    assert skew["all"]["features"]["n"]["mismatch"] >= 10
    assert skew["all"]["taken_back"] == len(said) - served
    assert skew["all"]["questions"] == len(said)
    assert (skew["all"]["taken_back"] > 5) == corrects
    assert skew["open"]["questions"] > 5
    assert (skew["final"]["questions"] > 50) != corrects, "what can be taken back for ever stays open"
