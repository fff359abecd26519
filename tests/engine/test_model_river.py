"""An immediate model is plain river: the same predictions and metrics to the last bit, delayed or not, however cut."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import river
from river import (
    compose,
    datasets,
    ensemble,
    evaluate,
    linear_model,
    metrics,
    naive_bayes,
    optim,
    preprocessing,
    rules,
    stream,
    tree,
)

from engine.model import KeptModel
from engine.spec import ModelSpec
from operators.delta import BOOL, FLOAT, INT, Delta, Schema, concat, empty, to_column

Rows = list[tuple[dict[str, Any], Any]]
RIVER = tuple(int(n) for n in river.__version__.split(".")[:2])


def rows_of(name: str, n: int | None = None) -> Rows:
    found = [(x, y) for x, y in getattr(datasets, name)()]
    assert len(found) > 500
    return found[:n]


def column_type(values: Sequence[Any]) -> pl.DataType:
    return BOOL if isinstance(values[0], bool) else INT if all(type(v) is int for v in values) else FLOAT


class Stream(NamedTuple):
    """A data set as questions and answers; `seq` is the time at which each becomes known."""

    questions: Delta
    answers: Delta
    schemas: tuple[Schema, Schema]


def as_stream(rows: Rows, asked: Sequence[int], told: Sequence[int]) -> Stream:
    """Question i is asked at asked[i] and answered at told[i]; answers of one instant in the order of questions."""
    n, features = len(rows), list(rows[0][0])
    types = {f: column_type([x[f] for x, _ in rows]) for f in features}
    label = column_type([y for _, y in rows])
    schemas: tuple[Schema, Schema] = ({"id": INT, **types}, {"ref": INT, "y": label})
    ids = np.arange(n)
    columns = {"id": ids, **{f: to_column([x[f] for x, _ in rows], types[f]) for f in features}}
    at = np.array(asked)
    order = np.argsort(told, kind="stable")
    due = np.array(told)[order]
    questions = Delta(columns, np.ones(n, np.int64), at, ids, at)
    answers = Delta(
        {"ref": ids[order], "y": to_column([rows[i][1] for i in order], label)}, np.ones(n, np.int64), due, order, due
    )
    return Stream(questions, answers, schemas)


def spec_of(s: Stream, learner: Any, metric: Any, wait: int = 10**9, **others: Any) -> ModelSpec:
    features = tuple(n for n in s.schemas[0] if n != "id")
    return ModelSpec(
        name="m",
        key=("id",),
        answer_key=("ref",),
        features=features,
        questions=s.schemas[0],
        answers=s.schemas[1],
        label="y",
        learner=learner,
        metric=metric,
        wait=wait,
        **others,
    )


def go(model: KeptModel, questions: Delta, answers: Delta, watermark: int) -> Delta:
    """The predictions."""
    return model.apply(questions, answers, watermark)[0]


def run(spec: ModelSpec, s: Stream, cuts: Sequence[int], resumed: bool = False) -> tuple[Delta, KeptModel]:
    """Apply the stream cut before each `seq` of `cuts`; the watermark follows. Resumed: pickled at every cut."""
    model, out, low = KeptModel(spec), [empty(KeptModel(spec).schema)], -(10**18)
    for high in [*cuts, 10**18]:
        q, a = (d.take((d.seq >= low) & (d.seq < high)) for d in (s.questions, s.answers))
        if len(q) or len(a):
            out.append(go(model, q, a, high if high < 10**18 else low))
        if resumed:
            state = pickle.dumps(model.snapshot())
            model = KeptModel(spec)
            model.restore(pickle.loads(state))
        low = high
    return concat(out), model


def three_ways(s: Stream, seed: int) -> dict[str, tuple[list[int], bool]]:
    seqs = np.unique(np.concatenate([s.questions.seq, s.answers.seq])).tolist()
    some = sorted(random.Random(seed).sample(seqs, 7))
    return {"row by row": (seqs, False), "batched": (some, False), "resumed": (some, True)}


def published(y_pred: Any) -> float | None:
    if y_pred is None or y_pred == {}:
        return None
    return float(y_pred.get(True, 0.0) if isinstance(y_pred, dict) else y_pred)


LINEAR = lambda m: preprocessing.StandardScaler() | m  # noqa: E731
SGD = lambda: optim.SGD(0.005)  # noqa: E731


class Case(NamedTuple):
    data: str
    learner: Callable[[], Any]
    metric: Callable[[], Any]
    n: int | None = None


CASES = {
    "Trump linear": Case(
        "TrumpApproval", lambda: LINEAR(linear_model.LinearRegression(optimizer=SGD())), lambda: metrics.MAE()
    ),
    "Trump tree": Case(
        "TrumpApproval",
        lambda: LINEAR(tree.HoeffdingAdaptiveTreeRegressor(seed=42)),
        lambda: metrics.MAE() + metrics.RMSE(),
    ),
    "Phishing logistic, probabilities": Case(
        "Phishing", lambda: LINEAR(linear_model.LogisticRegression()), lambda: metrics.ROCAUC()
    ),
    "Phishing bagged pipelines, labels": Case(
        "Phishing",
        lambda: ensemble.BaggingClassifier(LINEAR(linear_model.LogisticRegression()), n_models=3, seed=1),
        lambda: metrics.Accuracy(),
        200,
    ),
    "Phishing Bayes, labels and probabilities": Case(
        "Phishing", lambda: naive_bayes.GaussianNB(), lambda: metrics.LogLoss() + metrics.Accuracy(), 300
    ),
    "Bananas tree": Case("Bananas", lambda: tree.HoeffdingTreeClassifier(), lambda: metrics.ROCAUC(), 700),
    "Bananas ALMA": Case("Bananas", lambda: LINEAR(linear_model.ALMAClassifier()), lambda: metrics.F1(), 700),
    "Chicks rules": Case("ChickWeights", lambda: LINEAR(rules.AMRules()), lambda: metrics.MAE()),
    "Chicks aggressive": Case("ChickWeights", lambda: LINEAR(linear_model.PARegressor(mode=1)), lambda: metrics.MAE()),
}

DELAYS: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "0": (None, 0),
    "1": (None, 1),
    "10": (None, 10),
    "per row": ("n", lambda x, y: (x["n"] * 7919) % 41),
    "per row, many at once": (lambda x: x["n"] // 5, lambda x, y: (x["n"] * 7919) % 9),
}
"""(moment, delay) as river takes them; "n" is the number of the row, which no learner sees."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("delay", DELAYS)
def test_predictions_and_metric_equal_plain_river(case: str, delay: str) -> None:
    data, learner, metric, n = CASES[case]
    rows = rows_of(data, n or 320)
    numbered: Rows = [({"n": i, **x}, y) for i, (x, y) in enumerate(rows)]
    moment, wait = DELAYS[delay]
    model = compose.Discard("n") | learner()
    features_only: Rows = rows
    expected: dict[int, Any] = {}
    order: list[int] = []
    for i, x, *y in stream.simulate_qa(numbered, moment, wait, copy=True):
        if y[0] is not None:
            order.append(i)
            model.learn_one(x, y[0])
        elif metric().works_with(tree.HoeffdingTreeClassifier()) and not metric().requires_labels:
            expected[i] = model.predict_proba_one(x)
        else:
            expected[i] = model.predict_one(x)
    steps = list(
        evaluate.iter_progressive_val_score(
            numbered, compose.Discard("n") | learner(), metric(), moment, wait, step=1, yield_predictions=True
        )
    )
    assert [s["Prediction"] for s in steps] == [expected[i] for i in order]
    score = evaluate.progressive_val_score(numbered, compose.Discard("n") | learner(), metric(), moment, wait)
    if wait is None:
        asked, told = [2 * i for i in range(len(rows))], [2 * i + 1 for i in range(len(rows))]
    else:
        asked = [i if moment is None else x["n"] if moment == "n" else moment(x) for i, (x, _) in enumerate(numbered)]
        told = [t + (wait(x, y) if callable(wait) else wait) for t, (x, y) in zip(asked, numbered, strict=True)]
    s = as_stream(features_only, asked, told)
    spec = spec_of(s, learner(), metric(), wait=max(b - a for a, b in zip(asked, told, strict=True)))
    values = [published(expected[i]) for i in range(len(rows))]
    for way, (cuts, resumed) in three_ways(s, seed=len(case) + len(delay)).items():
        out, kept = run(spec, s, cuts, resumed)
        assert out.columns["id"].tolist() == list(range(len(rows))), way
        got = [None if v != v else v for v in out.columns["prediction"].tolist()]
        assert got == values, way
        found = kept.figures()
        assert found["learned"] == found["questions"] == len(rows), way
        assert found["closed"] == found["unmatched"] == found["corrections"] == 0, way
        assert kept._judge.metric.get() == score.get(), way


HT, HTR = tree.HoeffdingTreeClassifier, tree.HoeffdingTreeRegressor
LOGISTIC = lambda: LINEAR(linear_model.LogisticRegression(optimizer=SGD()))  # noqa: E731
ALMA = lambda: LINEAR(linear_model.ALMAClassifier())  # noqa: E731
REGRESSORS: dict[str, Callable[[], Any]] = {
    "linear": lambda: LINEAR(linear_model.LinearRegression()),
    "l1": lambda: LINEAR(linear_model.LinearRegression(l1=1.0)),
    "l2": lambda: LINEAR(linear_model.LinearRegression(l2=1.0)),
    "PA1": lambda: LINEAR(linear_model.PARegressor(mode=1)),
    "PA2": lambda: LINEAR(linear_model.PARegressor(mode=2)),
    "tree": lambda: LINEAR(HTR()),
    "adaptive tree": lambda: LINEAR(tree.HoeffdingAdaptiveTreeRegressor(seed=42)),
    "rules": lambda: LINEAR(rules.AMRules()),
}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic": LOGISTIC,
    "ALMA": ALMA,
    "Bayes": lambda: naive_bayes.GaussianNB(),
    "tree": lambda: HT(),
    "adaptive tree": lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=42),
    "ADWIN bagging": lambda: ensemble.ADWINBaggingClassifier(HT(), seed=42),
    "AdaBoost": lambda: ensemble.AdaBoostClassifier(HT(), seed=42),
}
PUBLISHED: list[tuple[str, str, tuple[str, ...]]] = [
    ("Phishing", "logistic", (".8872", ".871233")),
    ("Phishing", "ALMA", (".8256", ".810764")),
    ("Phishing", "Bayes", (".884708", ".871429")),
    ("Phishing", "tree", (".879904", ".860595")),
    ("Phishing", "adaptive tree", (".874299", ".856095")),
    ("Phishing", "ADWIN bagging", (".893515", ".879201")),
    ("Phishing", "AdaBoost", (".878303", ".863555")),
    ("Bananas", "logistic", (".543208", ".197015")),
    ("Bananas", "ALMA", (".506415", ".482595")),
    ("Bananas", "adaptive tree", (".616531", ".42825")),
    ("ChickWeights", "linear", ("23.7587",)),
    ("ChickWeights", "l1", ("23.7577",)),
    ("ChickWeights", "l2", ("25.2738",)),
    ("ChickWeights", "PA1", ("24.3423",)),
    ("ChickWeights", "PA2", ("100.624",)),
    ("ChickWeights", "tree", ("23.1619",)),
    ("ChickWeights", "rules", ("24.1943",)),
    ("TrumpApproval", "linear", ("1.31455",)),
    ("TrumpApproval", "l1", ("1.15377",)),
    ("TrumpApproval", "l2", ("1.87151",)),
    ("TrumpApproval", "PA1", ("4.98403",)),
    ("TrumpApproval", "tree", (".956103",)),
    ("TrumpApproval", "adaptive tree", (".921313",)),
    ("TrumpApproval", "rules", ("1.39847",)),
]
"""Entries of river's own benchmark page: (data, learner, accuracy and F1 or MAE), six significant digits."""


@pytest.mark.parametrize(("data", "learner", "digits"), PUBLISHED, ids=[f"{d} {m}" for d, m, _ in PUBLISHED])
def test_published_benchmark_entries(data: str, learner: str, digits: tuple[str, ...]) -> None:
    rows, classes = rows_of(data), len(digits) == 2
    build = (CLASSIFIERS if classes else REGRESSORS)[learner]
    metric: Any = metrics.Accuracy() + metrics.F1() if classes else metrics.MAE()
    n = len(rows)
    s = as_stream(rows, [2 * i for i in range(n)], [2 * i + 1 for i in range(n)])
    _, kept = run(spec_of(s, build(), metric, wait=5), s, list(range(0, 2 * n, 777)))
    found = list(kept.figures()["metrics"].values())
    plain = evaluate.progressive_val_score(rows, build(), metric.clone()).get()
    assert found == (plain if classes else [plain])
    if RIVER >= (0, 26):
        assert [float(f"{v:.6g}") for v in found] == [float(d) for d in digits]


def test_delays_of_the_documentation_give_the_known_errors() -> None:
    rows = rows_of("TrumpApproval")
    for delay, mae in ((0, 1.3145482000473083), (1, 1.3145482000473083), (10, 3.1346659849827336)):
        s = as_stream(rows, list(range(len(rows))), [i + delay for i in range(len(rows))])
        _, kept = run(spec_of(s, REGRESSORS["linear"](), metrics.MAE(), wait=delay), s, [100, 101, 500])
        assert kept.figures()["metrics"] == {"MAE": mae}
    days = [x["ordinal_date"] for x, _ in rows]
    s = as_stream(rows, days, [d + 7 for d in days])
    _, kept = run(spec_of(s, REGRESSORS["linear"](), metrics.MAE(), wait=7), s, days[::50])
    assert kept.figures()["metrics"] == {"MAE": 2.5680067018019157}


@pytest.mark.parametrize(
    "learner",
    [
        lambda: LINEAR(linear_model.LogisticRegression()),
        lambda: (
            compose.Select("https", "is_popular")
            + (compose.Select("long_url", "age_of_domain") | preprocessing.StandardScaler())
            | linear_model.LogisticRegression()
        ),
        lambda: ensemble.BaggingClassifier(LINEAR(linear_model.LogisticRegression()), n_models=3, seed=1),
        lambda: ensemble.LeveragingBaggingClassifier(
            preprocessing.StandardScaler() | linear_model.LogisticRegression(), n_models=2, seed=1
        ),
    ],
    ids=["scaler", "union", "bagging", "bagging that replaces its members"],
)
def test_advance_on_questions_equals_a_loop_under_learn_during_predict(learner: Callable[[], Any]) -> None:
    rows, delay = rows_of("Phishing", 300), 37
    model, metric, expected, served = learner(), metrics.LogLoss(), [], {}
    with compose.learn_during_predict():
        for i, x, *y in stream.simulate_qa(rows, None, delay):
            if y[0] is None:
                served[i] = model.predict_proba_one(x)
                expected.append(served[i][True] if served[i] else None)
            else:
                if served[i]:
                    metric.update(y[0], served[i])
                model.learn_one(x, y[0])
    s = as_stream(rows, list(range(300)), [i + delay for i in range(300)])
    spec = spec_of(s, learner(), metrics.LogLoss(), advance="questions", naive=True)
    default = run(spec_of(s, learner(), metrics.LogLoss()), s, [])[0].columns["prediction"].tolist()
    for way, (cuts, resumed) in three_ways(s, seed=3).items():
        out, kept = run(spec, s, cuts, resumed)
        got = [None if v != v else v for v in out.columns["prediction"].tolist()]
        assert got == expected, way
        assert got != default, "the two ways to advance must differ here, or this test shows nothing"
        assert kept.figures()["metrics"] == {"LogLoss": metric.get()}, way
    with compose.learn_during_predict():
        naive = evaluate.progressive_val_score(rows, learner(), metrics.LogLoss())
    assert kept.figures()["naive"] == {"LogLoss": naive.get()}


@pytest.mark.parametrize("case", ["Trump linear", "Phishing Bayes, labels and probabilities", "Bananas ALMA"])
def test_naive_figure_equals_progressive_validation_without_delay_on_the_answered(case: str) -> None:
    data, learner, metric, _ = CASES[case]
    rows = rows_of(data)[:500]
    dice = random.Random(5)
    told = [i + dice.randrange(60) for i in range(500)]
    answered = [dice.random() < 0.8 for _ in rows]
    s = as_stream(rows, list(range(500)), told)
    s = s._replace(answers=s.answers.take(np.array([answered[i] for i in s.answers.columns["ref"]])))
    naive = evaluate.progressive_val_score([r for r, a in zip(rows, answered, strict=True) if a], learner(), metric())
    honest = []
    for _, (cuts, resumed) in three_ways(s, seed=11).items():
        spec = spec_of(s, learner(), metric(), wait=60, naive=True)
        _, kept = run(spec, s, cuts, resumed)
        go(kept, s.questions.take(slice(0)), s.answers.take(slice(0)), 10**9)
        found = kept.figures()
        value = naive.get()
        assert list(found["naive"].values()) == (value if isinstance(value, list) else [value])
        assert found["closed"] == answered.count(False)
        assert found["naive"] != found["metrics"]
        honest.append((found, kept._naive._queue))
    assert honest[0][0] == honest[1][0] == honest[2][0]
    assert not honest[0][1]
