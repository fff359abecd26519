"""A compiled learner is river's: the same predictions and parameters to the last bit, with nulls, restarted or not."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import river
from river import compose, linear_model, metrics, naive_bayes, optim, preprocessing, stats

from engine.compiled import Linear, agrees, updates

FEATURES = ("a", "b", "c", "d", "e")
Row = dict[str, Any]


def plain() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def regression() -> Any:
    return preprocessing.StandardScaler() | linear_model.LinearRegression()


def set_up() -> Any:
    optimizer = optim.SGD(0.003)
    return preprocessing.StandardScaler() | linear_model.LinearRegression(
        optimizer, l2=0.1, intercept_init=2.0, intercept_lr=0.1, clip_gradient=5
    )


def weighted() -> Any:
    loss = optim.losses.Log(weight_pos=5.0, weight_neg=0.5)
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(loss=loss)


def alone() -> Any:
    return linear_model.LogisticRegression(optim.SGD(1e-7), l2=0.01, clip_gradient=0.3)


class OnQuestions(compose.Pipeline):
    _LEARN_UNSUPERVISED_DURING_PREDICT = True


def random_row(rng: random.Random, missing: float, infinite: bool = False) -> Row:
    kinds: list[Callable[[], Any]] = [
        lambda: rng.gauss(0, 1),
        lambda: rng.random() * 1e6,
        lambda: rng.randint(-5, 500),
        lambda: rng.random() < 0.5,
        lambda: 0.0,
        lambda: math.inf if infinite else 1.0,
    ]
    return {f: 5 if f == "c" else rng.choice(kinds)() for f in FEATURES if rng.random() >= missing}


def array(row: Row) -> Any:
    return np.array([float(row.get(f, math.nan)) for f in FEATURES])


def regressor(learner: Any) -> Any:
    return list(learner.steps.values())[-1] if isinstance(learner, compose.Pipeline) else learner


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("make", [plain, regression, set_up, weighted, alone])
def test_equal_to_river_bit_for_bit(make: Callable[[], Any], missing: float, ahead: bool) -> None:
    rng, theirs = random.Random(7), make()
    if ahead and isinstance(theirs, compose.Pipeline):
        theirs.__class__ = OnQuestions
    if not agrees():
        assert not Linear.takes(theirs)
        return
    assert Linear.takes(theirs)
    mine = Linear(pickle.loads(pickle.dumps(theirs)), FEATURES, ahead)
    classifies = isinstance(regressor(theirs), linear_model.LogisticRegression)
    for n in range(2_000):
        x = random_row(rng, missing)
        if classifies:
            y: Any = rng.random() < 0.2
            assert mine.predict_proba_one(array(x)) == theirs.predict_proba_one(dict(x))
        else:
            y = rng.choice([rng.gauss(3, 4), rng.randint(-9, 9)])
        if not ahead:
            assert mine.predict_one(array(x)) == theirs.predict_one(dict(x))
        if rng.random() < 0.8:
            mine.learn_one(array(x), y)
            theirs.learn_one(dict(x), y)
        if n % 300 == 7:
            mine = Linear(pickle.loads(pickle.dumps(mine.river)), FEATURES, ahead)
    found, want = regressor(mine.river), regressor(theirs)
    assert found.weights == want.weights
    assert (found.intercept, found.optimizer.n_iterations) == (want.intercept, want.optimizer.n_iterations)
    if isinstance(theirs, compose.Pipeline):
        mean, counts = mine.river["StandardScaler"].means, theirs["StandardScaler"].counts
        assert {f: mean[f] for f in counts} == dict(theirs["StandardScaler"].means.items())


@pytest.mark.skipif(not agrees(), reason="this river is never compiled")
@pytest.mark.parametrize("make", [plain, regression, alone])
def test_infinite_features_give_what_river_gives(make: Callable[[], Any]) -> None:
    for seed in range(40):
        rng, theirs = random.Random(seed), make()
        mine = Linear(theirs.clone(), FEATURES, False)
        for _ in range(12):
            x, y = random_row(rng, 0.2, infinite=True), rng.random() < 0.5
            assert repr(float(mine.predict_one(array(x)))) == repr(float(theirs.predict_one(dict(x))))
            mine.learn_one(array(x), y)
            theirs.learn_one(dict(x), y)


def test_the_river_of_today_agrees() -> None:
    assert agrees() or tuple(map(int, river.__version__.split(".")[:2])) < (0, 26)


@pytest.mark.parametrize(
    "other",
    [
        naive_bayes.GaussianNB(),
        preprocessing.StandardScaler() | naive_bayes.GaussianNB(),
        preprocessing.MinMaxScaler() | linear_model.LinearRegression(),
        preprocessing.StandardScaler(with_std=False) | linear_model.LinearRegression(),
        preprocessing.StandardScaler() | preprocessing.StandardScaler() | linear_model.LinearRegression(),
        linear_model.LinearRegression(optim.Adam()),
        linear_model.LinearRegression(optim.SGD(optim.schedulers.InverseScaling(0.1))),
        linear_model.LinearRegression(l1=0.1),
        linear_model.LinearRegression(loss=optim.losses.Huber()),
        linear_model.LinearRegression(loss=optim.losses.Log()),
        linear_model.LogisticRegression(loss=optim.losses.Squared()),
        linear_model.LinearRegression(intercept_lr=optim.schedulers.InverseScaling(0.1)),
        linear_model.LinearRegression(initializer=optim.initializers.Normal(seed=1)),
        linear_model.PARegressor(),
    ],
    ids=repr,
)
def test_any_other_learner_stays_with_river(other: Any) -> None:
    assert not Linear.takes(other)


@pytest.mark.parametrize("kind", [metrics.LogLoss, metrics.MAE, metrics.ROCAUC, metrics.RMSE])
def test_metrics_come_to_the_same_figure(kind: Any) -> None:
    rng, mine, theirs = random.Random(1), kind(), kind()
    update = updates(mine)
    for _ in range(2_000):
        p = rng.choice([rng.random(), 0.0, 1.0, 0, 1, 1e-20])
        y: Any = rng.random() < 0.5 if kind in (metrics.LogLoss, metrics.ROCAUC) else rng.choice([rng.gauss(0, 9), 3])
        told = rng.choice([p, {True: p, False: 1 - p}, {False: 1.0}]) if kind is metrics.LogLoss else p
        update(y, told)
        theirs.update(y, told)
        assert mine.get() == theirs.get()


def test_a_scaler_over_a_window_stays_with_river() -> None:
    scaler = preprocessing.StandardScaler()
    if not hasattr(scaler, "window_size"):
        pytest.skip("this river has none")
    scaler.window_size = 9
    assert not Linear.takes(scaler | linear_model.LinearRegression())


def test_a_mean_counts_as_river_counts() -> None:
    assert vars(stats.Mean()) == {"n": 0.0, "_mean": 0.0}
