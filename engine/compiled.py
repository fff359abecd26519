"""River learners as compiled kernels: the same numbers, bit for bit, in a fraction of the time.

Compiled are linear and logistic regressions under plain stochastic gradient descent, alone or behind a
`StandardScaler`. Every operation is done in river's order: sums over features go in the order of declaration, powers
and exponentials are those of the C library. Where the installed river does otherwise, nothing is compiled (`agrees`).
A metric that is a plain mean is updated without river's detours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from river import compose, linear_model, metrics, optim, preprocessing, utils

from operators.delta import Array
from operators.kernel import pointer

SCALED, AHEAD, LOGISTIC, RATE, INTERCEPT_RATE, L2, CLIP, WEIGHT_POS, WEIGHT_NEG, ROOT, SETTINGS = range(11)
"""The settings of a learner. ROOT is the exponent of a square root: the compiler must not know it, for it would take
one that is rounded in another way."""

STEPS, INTERCEPT, PARAMETERS = range(3)
"""The first parameters. For all features follow how many values were seen, their means, variances and weights, and
whether there is a weight."""
TABLES = 5


_LOSS: dict[Any, Any] = {
    linear_model.LinearRegression: optim.losses.Squared,
    linear_model.LogisticRegression: optim.losses.Log,
}


class Linear:
    """A compiled learner, for rows as arrays of numbers, nan where one is missing.

    learner: a river learner that it `takes`; it is brought up to date by `river`. features: what the rows hold. ahead:
    whether the scaler learns when a question is asked instead of when it is answered.
    """

    def __init__(self, learner: Any, features: Sequence[str], ahead: bool) -> None:
        self._learner, self._features = learner, tuple(features)
        self._scaler, self._last = scaler, last = _parts(learner)
        loss, n = last.loss, len(self._features)
        self._settings = np.array(
            [
                scaler is not None, ahead, type(loss) is optim.losses.Log, last.optimizer.lr.learning_rate,
                last.intercept_lr.learning_rate, last.l2, last.clip_gradient, getattr(loss, "weight_pos", 1.0),
                getattr(loss, "weight_neg", 1.0), 0.5,
            ],
            np.float64,
        )  # fmt: skip
        self._array = np.zeros(PARAMETERS + TABLES * n)
        self._array[[STEPS, INTERCEPT]] = last.optimizer.n_iterations, last.intercept
        counts, means, variances, weights, there = self._tables
        for i, name in enumerate(self._features):
            if scaler is not None:
                counts[i], means[i], variances[i] = scaler.counts[name], scaler.means[name], scaler.vars[name]
            there[i], weights[i] = name in last.weights, last.weights.get(name, 0.0)
        self._z = np.empty(n)

    @staticmethod
    def takes(learner: Any) -> bool:
        """Whether a learner can be compiled."""
        scaler, last = _parts(learner)
        constant = optim.schedulers.Constant
        return (
            last is not None
            and (scaler is None or (scaler.with_std and getattr(scaler, "window_size", None) is None))
            and type(last.optimizer) is optim.SGD
            and type(last.optimizer.lr) is constant
            and type(last.intercept_lr) is constant
            and type(last.initializer) is optim.initializers.Zeros
            and type(last.loss) is _LOSS[type(last)]
            and last.l1 == 0
            and agrees()
        )

    @property
    def river(self) -> Any:
        """The learner, brought up to date. To be looked at."""
        last, scaler = self._last, self._scaler
        counts, means, variances, weights, there = self._tables.tolist()
        for i, name in enumerate(self._features):
            if scaler is not None and counts[i]:
                scaler.counts[name], scaler.means[name], scaler.vars[name] = int(counts[i]), means[i], variances[i]
        found = {name: w for name, w, t in zip(self._features, weights, there, strict=True) if t}
        last._weights = utils.VectorDict(found)
        last.optimizer.n_iterations, last.intercept = int(self._array[STEPS]), float(self._array[INTERCEPT])
        return self._learner

    def predict_one(self, x: Array) -> Any:
        """As river's `predict_one`."""
        if self._settings[LOGISTIC]:
            found = self.predict_proba_one(x)
            return max(found, key=found.__getitem__)
        return _predict(self._settings, self._array, x, self._z)

    def predict_proba_one(self, x: Array) -> dict[bool, float]:
        """As river's `predict_proba_one` of a classifier."""
        p: float = _predict(self._settings, self._array, x, self._z)
        return {False: 1.0 - p, True: p}

    def learn_one(self, x: Array, y: Any) -> None:
        """As river's `learn_one`."""
        _learn(self._settings, self._array, x, self._z, float(y))

    @property
    def _tables(self) -> Array:
        return self._array[PARAMETERS:].reshape(TABLES, -1)


def _parts(learner: Any) -> tuple[Any, Any]:
    """The scaler (None for none) and the regression; (None, None) for any other learner."""
    steps = list(learner.steps.values()) if isinstance(learner, compose.Pipeline) else [learner]
    if not 1 <= len(steps) <= 2 or type(steps[-1]) not in _LOSS:
        return None, None
    if len(steps) == 2 and type(steps[0]) is not preprocessing.StandardScaler:
        return None, None
    return (steps[0] if len(steps) == 2 else None), steps[-1]


@cache
def agrees() -> bool:
    """Whether the installed river rounds as the kernels do: earlier versions sum in another order."""
    rng = np.random.default_rng(1)
    for kind, ask in (
        (linear_model.LogisticRegression, "predict_proba_one"),
        (linear_model.LinearRegression, "predict_one"),
    ):
        river = preprocessing.StandardScaler() | kind(optim.SGD(0.01), l2=0.01, clip_gradient=10.0)
        mine = Linear(river.clone(), _PROBED, ahead=False)
        for _ in range(200):
            x = rng.normal(size=len(_PROBED)) * 10.0 ** rng.integers(-1, 4, len(_PROBED))
            x[rng.random(len(x)) < 0.2] = np.nan
            row, y = {f: v for f, v in zip(_PROBED, x.tolist(), strict=True) if v == v}, bool(rng.random() < 0.3)
            if getattr(mine, ask)(x) != getattr(river, ask)(row):
                return False
            mine.learn_one(x, y)
            river.learn_one(row, y)
    return True


_PROBED = tuple("abcde")


def updates(metric: Any) -> Callable[[Any, Any], None]:
    """A metric's `update(y_true, y_pred)`, with a shorter way to the same figure where there is one."""
    kind = type(metric)
    if kind not in (metrics.LogLoss, metrics.MAE):
        update: Callable[[Any, Any], None] = metric.update
        return update
    mean, log = metric._mean, math.log

    def log_loss(y_true: Any, y_pred: Any) -> None:
        p = y_pred.get(True, 0.0) if isinstance(y_pred, dict) else y_pred
        p = 1e-15 if p < 1e-15 else 1 - 1e-15 if p > 1 - 1e-15 else p
        mean.n += 1.0
        mean._mean += (1.0 / mean.n) * (-log(p if y_true else 1 - p) - mean._mean)

    def absolute_error(y_true: Any, y_pred: Any) -> None:
        mean.n += 1.0
        mean._mean += (1.0 / mean.n) * (abs(y_true - y_pred) - mean._mean)

    return log_loss if kind is metrics.LogLoss else absolute_error


@njit(cache=True, forceinline=True)
def _observe(n, s, a, x):  # type: ignore[no-untyped-def]
    """StandardScaler.learn_one."""
    for i in range(n):
        v = x[i]
        if v == v:
            c, m, d = PARAMETERS + i, PARAMETERS + n + i, PARAMETERS + 2 * n + i
            a[c] += 1.0
            old = a[m]
            a[m] += (v - old) / a[c]
            a[d] += ((v - old) * (v - a[m]) - a[d]) / a[c]


@njit(cache=True, forceinline=True)
def _raw(n, s, a, x, z):  # type: ignore[no-untyped-def]
    """The scaled row, to z, and its product with the weights, plus the intercept."""
    dot = 0.0
    for i in range(n):
        v = x[i]
        if v == v:
            if s[SCALED]:
                variance = a[PARAMETERS + 2 * n + i]
                v = (v - a[PARAMETERS + n + i]) / variance ** s[ROOT] if variance != 0.0 else 0.0
            z[i] = v
            dot += a[PARAMETERS + 3 * n + i] * v
    return dot + a[INTERCEPT]


@njit(cache=True)
def _predict(settings, array, row, scaled):  # type: ignore[no-untyped-def]
    n, s, a, x = row.shape[0], pointer(settings), pointer(array), pointer(row)
    if s[SCALED] and s[AHEAD]:
        _observe(n, s, a, x)
    r = _raw(n, s, a, x, pointer(scaled))
    if not s[LOGISTIC]:
        return r
    return 0.0 if r < -30 else 1.0 if r > 30 else 1.0 / (1.0 + np.exp(-r))


@njit(cache=True)
def _learn(settings, array, row, scaled, y):  # type: ignore[no-untyped-def]
    n, s, a, x, z = row.shape[0], pointer(settings), pointer(array), pointer(row), pointer(scaled)
    if s[SCALED] and not s[AHEAD]:
        _observe(n, s, a, x)
    r = _raw(n, s, a, x, z)
    if s[LOGISTIC]:
        weight = s[WEIGHT_POS]
        if y == 0.0:
            y, weight = -1.0, s[WEIGHT_NEG]
        product = r * y
        if product > 18.0:
            g = weight * np.exp(-product) * -y
        elif product < -18.0:
            g = weight * -y
        else:
            g = weight * -y / (np.exp(product) + 1.0)
    else:
        g = 2.0 * (r - y)
    if s[CLIP] < g:
        g = s[CLIP]
    if -s[CLIP] > g:
        g = -s[CLIP]
    a[INTERCEPT] -= s[INTERCEPT_RATE] * g
    for i in range(n):
        if x[i] == x[i]:
            w = PARAMETERS + 3 * n + i
            step = z[i] * g
            if s[L2]:
                step += s[L2] * a[w]
            a[w] -= s[RATE] * step
            a[PARAMETERS + 4 * n + i] = 1.0
    a[STEPS] += 1.0
