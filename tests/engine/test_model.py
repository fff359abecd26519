"""What an immediate model does with questions, answers and their corrections, told row by row."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from river import (
    active,
    base,
    cluster,
    compose,
    dummy,
    ensemble,
    linear_model,
    metrics,
    naive_bayes,
    optim,
    preprocessing,
    tree,
)

from engine.learners import Ridge
from engine.model import KeptModel, ModelError
from engine.spec import ModelSpec, definition, fingerprint, prediction_schema, warnings
from operators.delta import BEGINNING, BOOL, FLOAT, INT, STRING, TIME, Delta, Schema, accumulate, concat, to_column
from operators.operator import DefinitionError

QUESTIONS: Schema = {"id": STRING, "a": FLOAT, "b": INT, "c": STRING, "d": BOOL, "t": TIME}
ANSWERS: Schema = {"id": STRING, "y": FLOAT}
Row = tuple[int, int, str | None, Any, int]
"""(seq, weight, key, value of `a` or the label, at)"""


class Echo(base.Regressor):
    """Predicts the last label it learnt; remembers what it was given."""

    def __init__(self, start: float | None = 0.0) -> None:
        self.start = start
        self.asked: list[dict[str, Any]] = []
        self.learnt: list[tuple[dict[str, Any], float]] = []

    def predict_one(self, x: dict[str, Any]) -> Any:
        if x.get("c") == "boom":
            raise ZeroDivisionError("no such place")
        self.asked.append(x)
        return self.learnt[-1][1] if self.learnt else self.start

    def learn_one(self, x: dict[str, Any], y: float) -> None:
        if y == -1:
            raise KeyError("y")
        self.learnt.append((x, y))


def spec(**changed: Any) -> ModelSpec:
    given: dict[str, Any] = {
        "name": "m",
        "key": ("id",),
        "features": ("a", "b", "c", "d", "t"),
        "questions": QUESTIONS,
        "answers": ANSWERS,
        "label": "y",
        "learner": Echo(),
        "wait": 10,
    }
    return ModelSpec(**{**given, **changed})


def delta(rows: list[Row], schema: Schema, value: str) -> Delta:
    n = len(rows)
    columns = {k: to_column([None] * n, t) for k, t in schema.items()}
    columns["id"] = to_column([r[2] for r in rows], STRING)
    columns[value] = to_column([r[3] for r in rows], schema[value])
    weight, at, seq = (np.array([r[i] for r in rows], np.int64) for i in (1, 4, 0))
    return Delta(columns, weight, at, at, seq)


def asked(*rows: Row) -> Delta:
    return delta(list(rows), QUESTIONS, "a")


def told(*rows: Row) -> Delta:
    return delta(list(rows), ANSWERS, "y")


def go(model: KeptModel, questions: Delta, answers: Delta, watermark: int) -> Delta:
    """The predictions."""
    return model.apply(questions, answers, watermark)[0]


def served(out: Delta) -> list[tuple[str, float | None]]:
    values = out.columns["prediction"].tolist()
    return [(k, None if v != v else v) for k, v in zip(out.columns["id"].tolist(), values, strict=True)]


def counts(model: KeptModel, *names: str) -> tuple[Any, ...]:
    found = model.figures()
    return tuple(found[n] for n in names)


def test_answers_are_learnt_between_the_questions_in_order_of_seq() -> None:
    model = KeptModel(spec())
    out = go(
        model,
        asked((1, 1, "p", 1.0, 1), (2, 1, "q", 2.0, 2), (4, 1, "r", 3.0, 4)),
        told((2, 1, "p", 10.0, 2), (3, 1, "q", 20.0, 3), (5, 1, "r", 30.0, 5)),
        5,
    )
    assert served(out) == [("p", 0.0), ("q", 10.0), ("r", 20.0)], "an answer at the seq of a question comes first"
    assert [v.split(".")[1] for v in out.columns["model_version"]] == ["0", "1", "2"]
    assert out.columns["at"].tolist() == [1, 2, 4]
    assert out.columns["model"].tolist() == ["m"] * 3
    assert out.seq.tolist() == [1, 2, 4]
    assert out.weight.tolist() == [1, 1, 1]
    assert prediction_schema(model.spec) == {
        "id": STRING, "model": STRING, "prediction": FLOAT, "at": TIME, "model_version": STRING,
        "trained": TIME, "seq": INT, "frontier": TIME,
    }  # fmt: skip
    assert accumulate([out], model.schema).height == 3
    assert counts(model, "questions", "answers", "predictions", "learned", "waiting") == (3, 3, 3, 3, 0)
    assert model.figures()["metrics"] == {"MAE": (10 + 10 + 10) / 3}
    assert model.figures()["baseline"] == {"MAE": (10 + 10 + 15) / 3}, "0, then the means 10 and 15"
    assert model.figures()["naive"] is None


def test_features_are_python_values_in_the_declared_order_without_nulls() -> None:
    model = KeptModel(spec(features=("t", "d", "c", "b", "a")))
    columns = {
        "id": to_column(["p", "q"], STRING),
        "a": to_column([1.5, None], FLOAT),
        "b": to_column([7, None], INT),
        "c": to_column(["x", None], STRING),
        "d": to_column([True, None], BOOL),
        "t": np.array([3_600_000_000, np.iinfo(np.int64).min]),
    }
    one = np.ones(2, np.int64)
    go(model, Delta(columns, one, np.array([1, 2]), np.array([1, 2]), np.array([1, 2])), told(), 0)
    first, second = model.keeper.model.asked
    assert list(first) == ["t", "d", "c", "b", "a"]
    assert {k: type(v).__name__ for k, v in first.items()} == {
        "t": "datetime", "d": "bool", "c": "str", "b": "int", "a": "float"
    }  # fmt: skip
    assert first["t"].isoformat() == "1970-01-01T01:00:00+00:00"
    assert (first["d"], first["c"], first["b"], first["a"]) == (True, "x", 7, 1.5)
    assert second == {}


def test_a_corrected_question_is_not_served_again_and_is_learnt_as_served() -> None:
    model = KeptModel(spec())
    out = go(model, asked((1, 1, "p", 1.0, 1), (2, -1, "p", 1.0, 1), (2, 1, "p", 9.0, 3)), told(), 0)
    assert served(out) == [("p", 0.0)]
    go(model, asked(), told((3, 1, "p", 5.0, 3)), 0)
    assert model.keeper.model.learnt == [({"a": 1.0}, 5.0)]
    out = go(model, asked((4, -1, "p", 9.0, 3), (4, 1, "p", 8.0, 3)), told(), 0)
    assert len(out) == 0, "answered keys are remembered too"
    assert counts(model, "questions", "repeated", "withdrawn", "corrections", "learned") == (1, 2, 0, 0, 1)


def test_the_halves_of_a_correction_may_come_in_any_order() -> None:
    model = KeptModel(spec())
    go(model, asked((1, 1, "p", 1.0, 1)), told(), 0)
    go(model, asked((2, 1, "p", 2.0, 50), (2, -1, "p", 1.0, 1)), told(), 0)
    assert counts(model, "questions", "repeated", "withdrawn", "waiting") == (1, 1, 0, 1)


def test_a_question_moved_on_is_remembered_until_its_new_time_is_past() -> None:
    model = KeptModel(spec())
    go(model, asked((1, 1, "p", 1.0, 1), (2, -1, "p", 1.0, 1), (2, 1, "p", 1.0, 30)), told(), 25)
    assert len(go(model, asked((3, -1, "p", 1.0, 30), (3, 1, "p", 1.0, 31)), told(), 25)) == 0
    go(model, asked(), told((4, 1, "p", 7.0, 41)), 41)
    assert counts(model, "learned", "questions", "repeated") == (1, 1, 2)
    go(model, asked(), told(), 42)
    assert not model.examples._asked


def test_a_withdrawn_question_is_not_learnt_even_if_it_comes_back() -> None:
    model = KeptModel(spec())
    go(model, asked((1, 1, "p", 1.0, 1), (2, -1, "p", 1.0, 1)), told((3, 1, "p", 5.0, 3)), 0)
    assert len(go(model, asked((4, 1, "p", 1.0, 1)), told((5, 1, "p", 5.0, 3)), 0)) == 0
    assert model.keeper.model.learnt == []
    assert counts(model, "withdrawn", "repeated", "learned", "waiting", "unmatched", "closed") == (1, 1, 0, 0, 0, 0)


def test_a_question_withdrawn_after_its_answer_was_learnt_is_a_correction() -> None:
    model = KeptModel(spec())
    go(model, asked((1, 1, "p", 1.0, 1), (3, -1, "p", 1.0, 1)), told((2, 1, "p", 5.0, 2)), 0)
    assert counts(model, "withdrawn", "corrections", "learned") == (0, 1, 1)


def test_corrected_and_second_answers_are_counted_and_not_learnt() -> None:
    model = KeptModel(spec())
    go(model, asked((1, 1, "p", 1.0, 1)), told((2, 1, "p", 5.0, 2)), 0)
    go(model, asked(), told((3, -1, "p", 5.0, 2), (3, 1, "p", 6.0, 2)), 0)
    assert counts(model, "corrections") == (1,), "-old +new is one correction"
    go(model, asked(), told((4, 1, "p", 7.0, 2)), 0)
    go(model, asked(), told((5, -1, "p", 7.0, 2)), 0)
    assert counts(model, "corrections", "learned") == (3, 1)
    assert model.keeper.model.learnt == [({"a": 1.0}, 5.0)]


def test_null_labels_and_null_keys_are_counted_and_a_label_that_follows_is_learnt() -> None:
    model = KeptModel(spec())
    out = go(
        model,
        asked((1, 1, "p", 1.0, 1), (1, 1, None, 1.0, 1)),
        told((2, 1, "p", None, 2), (2, 1, None, 4.0, 2), (3, -1, "p", None, 2), (3, 1, "p", 5.0, 2)),
        0,
    )
    assert served(out) == [("p", 0.0)]
    assert counts(model, "null_labels", "null_keys", "answers", "learned", "corrections") == (1, 2, 1, 1, 0)
    assert model.keeper.model.learnt == [({"a": 1.0}, 5.0)]


def test_an_answer_that_comes_first_waits_for_its_question() -> None:
    model = KeptModel(spec())
    go(model, asked(), told((1, 1, "p", 3.0, 1), (2, -1, "p", 3.0, 1), (2, 1, "p", 4.0, 1)), 1)
    out = go(model, asked((3, 1, "p", 1.0, 11), (4, 1, "q", 1.0, 12)), told(), 11)
    assert served(out) == [("p", 0.0), ("q", 4.0)], "predicted first, then learnt at once"
    assert counts(model, "learned", "unmatched", "corrections", "answers") == (1, 0, 0, 2)
    go(model, asked(), told((5, 1, "r", 3.0, 12), (6, -1, "r", 3.0, 12)), 12)
    assert len(go(model, asked((7, 1, "r", 1.0, 12)), told(), 1000)) == 1
    assert counts(model, "learned", "unmatched") == (1, 0), "an answer taken back was never there"
    go(model, asked(), told((8, 1, "s", 3.0, 2000), (9, 1, "s", 4.0, 2000), (10, -1, "s", 3.0, 2000)), 2000)
    go(model, asked((11, 1, "s", 1.0, 2000)), told(), 2000)
    assert model.keeper.model.learnt[-1] == ({"a": 1.0}, 4.0)
    assert counts(model, "learned", "unmatched") == (2, 1), "of two answers the newest counts"


@pytest.mark.parametrize("watermark", [BEGINNING, 11, 12, 100])
def test_wait_is_judged_by_the_rows_and_the_watermark_only_forgets(watermark: int) -> None:
    model = KeptModel(spec())
    go(model, asked((1, 1, "p", 1.0, 1), (2, 1, "q", 1.0, 1)), told(), min(watermark, 11))
    assert counts(model, "waiting", "closed") == (2, 0), "at the watermark exactly an answer may still come"
    go(model, asked(), told((3, 1, "p", 5.0, 11)), watermark)
    assert counts(model, "learned", "closed", "waiting") == ((1, 1, 0) if watermark > 11 else (1, 0, 1))
    go(model, asked(), told((4, 1, "q", 5.0, 12)), watermark)
    assert counts(model, "learned") == (1,), "more than `wait` behind: not its answer, forgotten or not"
    out = go(model, asked((5, 1, "q", 2.0, 30)), told((6, 1, "q", 6.0, 31)), 31)
    assert served(out) == [("q", 5.0)], "the key is free for a new question"
    go(model, asked(), told(), 1000)
    assert counts(model, "questions", "learned", "closed", "unmatched", "waiting") == (3, 2, 1, 1, 0)
    assert not model.examples._asked
    assert not model.examples._ends
    assert not model.examples._early
    assert not model.examples._early_ends


def test_an_early_answer_without_question_is_unmatched_after_the_wait() -> None:
    model = KeptModel(spec())
    go(model, asked(), told((1, 1, "p", 3.0, 1)), 11)
    assert counts(model, "unmatched") == (0,)
    go(model, asked(), told(), 12)
    assert counts(model, "unmatched") == (1,)
    model = KeptModel(spec())
    go(model, asked((2, 1, "p", 1.0, 12)), told((1, 1, "p", 3.0, 1)), 1)
    assert counts(model, "learned") == (0,), "the same without the watermark's help"


def test_predictions_that_are_not_finite_or_missing_are_null_and_not_scored() -> None:
    model = KeptModel(spec(learner=Echo(start=None)))
    out = go(
        model,
        asked(*((2 * i, 1, k, 1.0, 1) for i, k in enumerate("pqrs", 1))),
        told((3, 1, "p", float("inf"), 1), (5, 1, "q", 2.0, 1), (7, 1, "r", 3.0, 1), (9, 1, "s", 5.0, 1)),
        0,
    )
    assert served(out) == [("p", None), ("q", None), ("r", 2.0), ("s", 3.0)]
    assert counts(model, "predictions", "refused", "learned") == (2, 1, 4)
    assert model.figures()["metrics"] == {"MAE": (1 + 2) / 2}


def test_nothing_scored_has_no_figure() -> None:
    model = KeptModel(spec(metric=[metrics.MAE(), metrics.RMSE(), metrics.MAE()], naive=True))
    nothing = {"MAE": None, "RMSE": None, "MAE2": None}
    assert model.figures()["metrics"] == model.figures()["baseline"] == model.figures()["naive"] == nothing
    json.dumps(model.figures())


BINARY = {"answers": {"id": STRING, "y": BOOL}, "features": ("a",)}
CLASSES = {"answers": {"id": STRING, "y": STRING}, "features": ("a",)}


def classes(learner: Any, labels: list[Any], kind: Any, **others: Any) -> tuple[list[Any], KeptModel]:
    answers: Schema = {"id": STRING, "y": kind}
    model = KeptModel(spec(learner=learner, answers=answers, features=("a",), **others))
    keys = [f"k{i}" for i in range(len(labels))]
    q = asked(*((2 * i, 1, k, float(i % 3), 1) for i, k in enumerate(keys)))
    a = delta([(2 * i + 1, 1, k, y, 1) for i, (k, y) in enumerate(zip(keys, labels, strict=True))], answers, "y")
    out = go(model, q, a, 0)
    return out.frame(model.schema)["prediction"].to_list(), model


def test_boolean_labels_get_the_probability_or_the_label_as_the_metric_asks() -> None:
    labels = [True, True, False, True, True, False]
    found, model = classes(naive_bayes.GaussianNB(), labels, BOOL)
    assert found[:2] == [None, 1.0], "no prediction before the first label"
    assert all(0 <= p <= 1 for p in found[1:])
    assert list(model.figures()["metrics"]) == ["ROCAUC"]
    found, _ = classes(dummy.NoChangeClassifier(), labels, BOOL, metric=metrics.Accuracy())
    assert found == [None, 1.0, 1.0, 0.0, 1.0, 1.0]
    found, _ = classes(naive_bayes.GaussianNB(), [False, False], BOOL)
    assert found == [None, 0.0], "a class never seen has probability 0"


@pytest.mark.parametrize("metric", [None, metrics.CrossEntropy()])
def test_other_labels_are_predicted_as_they_are(metric: Any) -> None:
    found, model = classes(naive_bayes.GaussianNB(), ["u", "v", "w", "u", "v", "w"], STRING, metric=metric)
    assert found[0] is None
    assert set(found[1:]) <= {"u", "v", "w"}
    assert model.schema["prediction"] == STRING
    found, _ = classes(linear_model.LogisticRegression(), [0, 1, 0, 1], INT, metric=metric)
    assert set(found) <= {0, 1}
    assert all(type(v) is int for v in found)


def test_a_failing_learner_names_model_question_and_step() -> None:
    model = KeptModel(spec())
    q = asked((1, 1, "p", 1.0, 1))
    q.columns["c"] = to_column(["boom"], STRING)
    with pytest.raises(
        ModelError, match=r"model 'm' failed to predict at the question 'p': ZeroDivisionError: no such"
    ):
        go(model, q, told(), 0)
    model = KeptModel(spec())
    with pytest.raises(ModelError, match="model 'm' failed to learn at the question 'p': KeyError: 'y'"):
        go(model, asked((1, 1, "p", 1.0, 1)), told((2, 1, "p", -1.0, 1)), 0)


class Scribbler(Echo):
    """A learner that writes into the features it is given."""

    def predict_one(self, x: dict[str, Any]) -> float:
        x["a"] = -5.0
        return 0.0

    def learn_one(self, x: dict[str, Any], y: float) -> None:
        self.learnt.append((dict(x), y))
        x.clear()


def test_a_learner_cannot_change_the_features_as_served() -> None:
    model = KeptModel(spec(learner=Scribbler(), naive=True))
    go(model, asked((1, 1, "p", 1.0, 1)), told((2, 1, "p", 4.0, 1)), 0)
    assert model.keeper.model.learnt == [({"a": 1.0}, 4.0)]
    assert model._naive is not None
    assert model._naive.student.model.learnt == [({"a": 1.0}, 4.0)]


def test_the_naive_twin_goes_in_order_of_questions_and_passes_over_what_has_no_answer() -> None:
    model = KeptModel(spec(naive=True))
    go(
        model,
        asked(*((i, 1, k, float(i), 1) for i, k in enumerate("pqrs", 1)), (6, -1, "q", 2.0, 1)),
        told((5, 1, "r", 30.0, 1), (7, 1, "s", 40.0, 1)),
        0,
    )
    assert model._naive is not None
    assert model._naive.student.model.learnt == [], "the first question is still open"
    go(model, asked(), told((8, 1, "p", 10.0, 1)), 0)
    assert [y for _, y in model._naive.student.model.learnt] == [10.0, 30.0, 40.0]
    assert model.figures()["naive"] == {"MAE": (10 + 20 + 10) / 3}
    assert model.figures()["metrics"] == {"MAE": (30 + 40 + 10) / 3}
    go(model, asked((9, 1, "t", 1.0, 2), (10, 1, "u", 1.0, 12)), told((11, 1, "u", 50.0, 12)), 12)
    assert len(model._naive._queue) == 2
    go(model, asked(), told(), 13)
    assert [y for _, y in model._naive.student.model.learnt][-1] == 50.0, "a closed question lets the next one pass"
    assert not model._naive._queue


def history(dice: random.Random, n: int) -> tuple[Delta, Delta, list[int]]:
    """Random questions and answers with corrections, withdrawals, reuse and late answers; the watermark at each seq."""
    live: dict[tuple[str, str], tuple[Any, int]] = {}
    out: dict[str, list[Row]] = {"q": [], "a": []}
    marks, low = [], 0
    for seq in range(n):
        low += dice.random() < 0.5
        marks.append(low)
        for side in dice.choice(("q", "a", "qa")):
            key, at = dice.choice("pqrstu"), low + dice.randrange(6)
            value = dice.choice([None, 1.0, 2.0, 3.0])
            if (old := live.get((side, key))) and old[1] >= low and dice.random() < 0.6:
                out[side].append((seq, -1, key, *live.pop((side, key))))
                if dice.random() < 0.5:
                    continue
            elif old and old[1] + 4 >= low:
                continue
            live[side, key] = value, at
            out[side].append((seq, 1, key, value, at))
    return asked(*out["q"]), told(*out["a"]), marks


@pytest.mark.parametrize("seed", range(25))
def test_cuts_restarts_and_the_watermark_do_not_show(seed: int) -> None:
    dice = random.Random(seed)
    q, a, marks = history(dice, 120)
    outcomes = []
    for way in ("whole", "row by row", "cut", "cut and resumed"):
        dice = random.Random(seed)
        cuts = {
            "whole": [],
            "row by row": list(range(1, 120)),
        }.get(way, sorted(dice.sample(range(1, 120), 9)))
        learner = preprocessing.StandardScaler() | linear_model.LinearRegression()
        model, out = KeptModel(spec(learner=learner, features=("a",), wait=4, naive=True)), []
        for low, high in zip([0, *cuts], [*cuts, 120], strict=True):
            parts = [d.take((d.seq >= low) & (d.seq < high)) for d in (q, a)]
            out.append(go(model, parts[0], parts[1], marks[high - 1]))
            if way == "cut and resumed":
                state = pickle.loads(pickle.dumps(model.snapshot()))
                model = KeptModel(model.spec)
                model.restore(state)
        go(model, asked(), told(), 10**6)
        rows = concat(out)
        columns = {n: c.tolist() for n, c in rows.columns.items()}
        outcomes.append((repr(columns), rows.seq.tolist(), rows.pos.tolist(), model.figures()))
        assert model.figures()["waiting"] == len(model._naive._queue) == len(model.examples._asked) == 0
    assert outcomes[0] == outcomes[1] == outcomes[2] == outcomes[3]
    assert outcomes[0][3]["learned"] > 5


def test_random_histories_reach_every_count() -> None:
    total: dict[str, int] = {}
    for seed in range(25):
        q, a, _ = history(random.Random(seed), 120)
        model = KeptModel(spec(wait=4))
        go(model, q, a, 10**6)
        for name, n in model.figures().items():
            total[name] = total.get(name, 0) + (n if isinstance(n, int) else 0)
    for name in ("repeated", "learned", "closed", "withdrawn", "unmatched", "corrections", "null_labels"):
        assert total[name] > 10, name


def test_several_key_columns_and_other_names_in_the_answers() -> None:
    questions: Schema = {"day": INT, "id": STRING, "a": FLOAT}
    answers: Schema = {"when": INT, "who": STRING, "y": FLOAT}
    names = {"key": ("day", "id"), "answer_key": ("when", "who"), "features": ("a",)}
    model = KeptModel(spec(questions=questions, answers=answers, **names))
    at = np.array([1, 1, 1])
    q = Delta(
        {"day": to_column([1, 2, None], INT), "id": to_column(["p"] * 3, STRING), "a": to_column([1.0] * 3, FLOAT)},
        np.ones(3, np.int64), at, at, at,
    )  # fmt: skip
    one = np.array([1])
    a = Delta({"when": one + 1, "who": to_column(["p"], STRING), "y": to_column([3.0], FLOAT)}, one, one, one, one + 1)
    out = go(model, q, a, 0)
    assert out.columns["day"].tolist() == [1, 2]
    assert counts(model, "questions", "learned", "waiting", "null_keys") == (2, 1, 1, 1)


def test_a_trained_learner_is_not_used_as_trained_nor_changed() -> None:
    mine = Echo()
    mine.learn_one({"a": 0.0}, 99.0)
    out = go(KeptModel(spec(learner=mine)), asked((1, 1, "p", 1.0, 1)), told((2, 1, "p", 5.0, 1)), 0)
    assert served(out) == [("p", 0.0)]
    assert mine.learnt == [({"a": 0.0}, 99.0)]


def test_a_pipeline_that_advances_on_questions_leaves_river_and_other_models_alone() -> None:
    learner = preprocessing.StandardScaler() | linear_model.LinearRegression()
    model = KeptModel(spec(learner=learner, features=("a",), advance="questions"))
    other = KeptModel(spec(learner=learner, features=("a",)))
    for m in (model, other):
        go(m, asked((1, 1, "p", 1.0, 1), (2, 1, "q", 1.0, 1)), told((3, 1, "p", 1.0, 1)), 0)
    assert model.keeper.model["StandardScaler"].counts["a"] == 2, "once per question"
    assert other.keeper.model["StandardScaler"].counts["a"] == 1, "once per answer"
    assert compose.Pipeline._LEARN_UNSUPERVISED_DURING_PREDICT is False
    assert type(learner) is compose.Pipeline


def test_the_fingerprint_tells_apart_what_repr_does_not_and_is_the_same_in_every_process() -> None:
    def of(rate: float) -> str:
        learner = compose.Select("a", "b") | linear_model.LinearRegression(optimizer=optim.SGD(rate))
        return fingerprint(spec(learner=learner))

    alike = [repr(linear_model.LinearRegression(optimizer=optim.SGD(r))) for r in (0.0000124, 0.0000123)]
    assert alike[0] == alike[1]
    assert of(0.0000124) != of(0.0000123)
    assert (
        len({fingerprint(s) for s in (spec(), spec(name="n"), spec(features=("a",)), spec(advance="questions"))}) == 4
    )
    assert fingerprint(spec(learner=Echo(1.0))) != fingerprint(spec())
    code = (
        "from river import compose, ensemble, tree; from engine.spec import *; from operators.delta import *\n"
        "import numpy as np\n"
        "l = (compose.FuncTransformer(np.abs) + compose.Select('a','b','c','d')) | ensemble.BaggingClassifier("
        "tree.HoeffdingTreeClassifier(nominal_attributes={'x','y','z'}), seed=1)\n"
        "s = ModelSpec(name='m', key=('a',), features=('a',), questions={'a': INT}, answers={'a': INT, 'y': BOOL},"
        " label='y', learner=l, wait=1)\n"
        "print(fingerprint(s), definition(s))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(n)}, capture_output=True, text=True, check=True,
        ).stdout
        for n in (1, 2, 3)
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().split()[0]) == 8


def test_the_definition_is_json_and_holds_what_determines_predictions() -> None:
    base_ = definition(spec())
    assert json.loads(json.dumps(base_)) == base_
    for changed in ({"wait": 11}, {"metric": metrics.RMSE()}, {"learner": Echo(2.0)}, {"features": ("b", "a")}):
        assert definition(spec(**changed)) != base_
    assert definition(spec()) == base_


def test_warnings_name_the_step_and_the_cure() -> None:
    scaled = preprocessing.StandardScaler() | linear_model.LinearRegression()
    assert warnings(spec()) == []
    (line,) = warnings(spec(learner=scaled))
    assert "StandardScaler would advance on answers" in line
    assert 'declare advance="questions"' in line
    assert warnings(spec(learner=scaled, advance="questions")) == []
    assert warnings(spec(learner=compose.Select("a") | linear_model.LinearRegression())) == []
    inner = compose.Select("a") | preprocessing.OneHotEncoder()
    nested = compose.TransformerUnion(inner, compose.Select("b")) | linear_model.LinearRegression()
    assert "OneHotEncoder would" in warnings(spec(learner=nested))[0]
    (line,) = warnings(spec(learner=nested, advance="questions"))
    assert "OneHotEncoder is in a pipeline within the pipeline and advances twice" in line
    bag = ensemble.BaggingRegressor(scaled.clone(), seed=1)
    assert len(warnings(spec(learner=bag))) == 1
    assert warnings(spec(learner=bag, advance="questions")) == []
    (line,) = warnings(spec(learner=ensemble.BaggingRegressor(linear_model.LinearRegression())))
    assert "has no seed" in line


def test_a_nested_step_does_advance_twice_as_the_warning_says() -> None:
    scaler = preprocessing.StandardScaler()
    learner = compose.TransformerUnion(compose.Select("a") | scaler) | linear_model.LinearRegression()
    model = KeptModel(spec(learner=learner, advance="questions"))
    go(model, asked((1, 1, "p", 1.0, 1)), told((2, 1, "p", 1.0, 1)), 0)
    (union, _) = model.keeper.model.steps.values()
    (pipeline,) = union.transformers.values()
    assert pipeline["StandardScaler"].counts["a"] == 2


LOGISTIC = linear_model.LogisticRegression


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"key": ("idd",)}, "key: no column 'idd'; did you mean 'id'"),
        ({"features": ("z",)}, "features: no column 'z'"),
        ({"label": "x"}, "label: no column 'x'"),
        ({"answer_key": ("id", "y")}, "differ in length"),
        ({"answer_key": ("y",)}, "the key 'id' of the questions is String and 'y' of the answers is Float64"),
        ({"advance": "both"}, "advance is 'both': expected 'answers' or 'questions'"),
        ({"wait": -1}, "wait is -1: expected 0 or more"),
        ({"learner": cluster.KMeans(seed=1)}, "ends in KMeans: expected a river classifier or regressor"),
        ({"learner": "tree"}, "expected a river classifier or regressor"),
        ({"learner": LOGISTIC()}, "the label 'y' is Float64: the learner LogisticRegression expects Boolean"),
        ({**BINARY, "learner": Echo()}, "the label 'y' is Boolean: the learner Echo expects Int64 or Float64"),
        ({**CLASSES, "learner": LOGISTIC()}, "tells only two classes apart and the label 'y' is String"),
        ({**BINARY, "learner": active.EntropySampler(LOGISTIC(), seed=1)}, "EntropySampler chooses the labels"),
        ({"metric": metrics.Accuracy()}, "does not fit the learner Echo"),
        ({"metric": [metrics.MAE(), "MAE"]}, "the metric 'MAE' does not fit"),
        ({"learner": compose.FuncTransformer(lambda x: x) | Echo()}, "replace a lambda or a local function"),
        ({"questions": {**QUESTIONS, "model": STRING}, "key": ("model",), "answers": {"model": STRING, "y": FLOAT}},
         "the column 'model' is there already"),
    ],
)  # fmt: skip
def test_a_definition_that_does_not_fit_says_why(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError) as e:
        spec(**changed)
    assert text in str(e.value)
    assert "'m'" in str(e.value)


class Mute(base.Classifier):
    """A classifier that knows labels only."""

    def learn_one(self, x: dict[str, Any], y: bool) -> None:
        pass

    def predict_one(self, x: dict[str, Any], **_: Any) -> bool:
        return True


def test_a_metric_of_probabilities_needs_a_learner_that_gives_them() -> None:
    with pytest.raises(DefinitionError, match="Mute gives no probabilities, which the metric needs"):
        spec(**BINARY, learner=Mute())
    found, _ = classes(Mute(), [True, False], BOOL, metric=metrics.Accuracy())
    assert found == [1.0, 1.0]
    with pytest.raises(DefinitionError, match="HoeffdingTreeRegressor expects Int64 or Float64"):
        spec(**BINARY, learner=tree.HoeffdingTreeRegressor())


@pytest.mark.parametrize("seed", range(10))
def test_a_learner_that_can_unlearn_is_as_if_it_had_learnt_only_what_holds(seed: int) -> None:
    q, a, _ = history(random.Random(seed), 120)
    learner = Ridge()
    model = KeptModel(spec(learner=learner, features=("a",), wait=4))
    _, training = model.apply(q, a, BEGINNING)
    there = accumulate([training], model.training.schema)
    fresh = learner.clone()
    for row in there.iter_rows(named=True):
        fresh.learn_one({} if row["a"] is None else {"a": row["a"]}, row["label"])
    assert len(there) > 2
    for x in ({"a": 0.0}, {"a": 1.0}, {"a": -3.0}):
        assert model.keeper.model.predict_one(x) == fresh.predict_one(x), "to the last bit, in any order"


@pytest.mark.parametrize("seed", range(10))
def test_the_training_set_is_the_join_of_questions_as_served_and_answers_as_known(seed: int) -> None:
    q, a, _ = history(random.Random(seed), 120)
    model = KeptModel(spec(wait=4))
    parts = [
        model.apply(q.take(q.seq == i), a.take(a.seq == i), BEGINNING, np.arange(i, i + 1), i)
        for i in sorted({*q.seq.tolist(), *a.seq.tolist()})
    ]
    served = concat([p for p, _ in parts])
    there = accumulate([t for _, t in parts], model.training.schema)
    whole = accumulate([KeptModel(spec(wait=4)).apply(q, a, BEGINNING, np.arange(120))[1]], model.training.schema)
    assert there.equals(whole)
    predicted = dict(
        zip(
            zip(served.columns["id"].tolist(), served.at.tolist(), strict=True),
            served.columns["prediction"].tolist(),
            strict=True,
        )
    )
    for row in there.iter_rows(named=True):
        key = row["id"], row["_at"]
        assert row["prediction"] == predicted[key]
        one = q.take((q.columns["id"] == row["id"]) & (q.at == row["_at"]) & (q.weight > 0)).columns["a"]
        assert (None if np.isnan(one[0]) else one[0]) == row["a"], "as it was when it was asked"
    assert len(there.unique(["id", "_at"])) == len(there)


@pytest.mark.parametrize("cuts", [(), (4,), (2, 3, 4)])
@pytest.mark.parametrize(("known", "expected"), [(11, [1, -1]), (12, [1])])
def test_an_answer_taken_back_later_than_wait_stays_however_the_input_is_cut(
    known: int, expected: list[int], cuts: tuple[int, ...]
) -> None:
    model = KeptModel(spec())
    questions: dict[int, Row] = {1: (1, 1, "p", 1.0, 1), 3: (3, 1, "q", 2.0, known)}
    answers: dict[int, Row] = {2: (2, 1, "p", 10.0, 2), 4: (4, -1, "p", 10.0, 2)}
    clocks, weights = [0, 1, 2, known, known], []
    for first, end in pairwise((1, *cuts, 5)):
        some = [[rows[s] for s in range(first, end) if s in rows] for rows in (questions, answers)]
        made = model.apply(asked(*some[0]), told(*some[1]), clocks[end - 1], np.array(clocks[first:end]), first)
        weights += made[1].weight.tolist()
    assert weights == expected
