"""Learners as they are used: what they are given, how they are asked and told, and how they are judged.

A river learner is asked and told row by row, with dictionaries; where it can be compiled, with arrays of numbers. Any
other learner is fitted to a whole frame and asked in frames: numbers as Float64, words as String.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timezone
from math import isfinite, nan
from typing import Any

import numpy as np
import polars as pl
from river import compose, dummy, linear_model, metrics, preprocessing, stats

from engine.compiled import Linear, updates
from engine.spec import ModelSpec, asks_probabilities, clone
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Array, Columns, Schema, is_null, to_series


class ModelError(RuntimeError):
    """A learner failed on a row; the text names the model, the question, the step and the original error."""

    @classmethod
    def of(cls, name: str, key: Any, step: str, error: Exception) -> ModelError:
        """The error of a model at a question."""
        return cls(
            f"model {name!r} failed to {step} at the question {key!r}: {type(error).__name__}: {error}; "
            "check its features and label against what the learner takes"
        )


_NUMBERS = (INT, FLOAT, BOOL)


def compiles(spec: ModelSpec) -> bool:
    """Whether the learner runs as a kernel, on `arrays`."""
    return Linear.takes(spec.learner) and all(spec.questions[f] in _NUMBERS for f in spec.features)


class Online:
    """A learner of river that is asked and told one row at a time.

    rows: turns columns into what it is given. predict, learn: of one such row. `predict` leaves it as it is; `learn`
    may change it: give it `mine`, a row of its own, where it is still needed.
    """

    def __init__(self, spec: ModelSpec, learner: Any, ahead: bool | None = None) -> None:
        self.rows: Callable[[Columns, Schema], list[Any]] = dicts
        self.mine: Callable[[Any], Any] = dict
        self._learner, proba = learner, asks_probabilities(spec)
        predict = learner.predict_proba_one if proba else learner.predict_one
        self.predict: Callable[[Any], Any] = lambda x: predict(dict(x))
        if Linear.takes(learner) and all(spec.questions[f] in _NUMBERS for f in spec.features):
            self._learner = Linear(learner, spec.features, spec.advance == "questions" if ahead is None else ahead)
            self.rows, self.mine = arrays, lambda x: x
            self.predict = self._learner.predict_proba_one if proba else self._learner.predict_one
        self.learn: Callable[[Any, Any], None] = self._learner.learn_one

    @property
    def model(self) -> Any:
        """The learner as a river object."""
        return self._learner.river if isinstance(self._learner, Linear) else self._learner


class Fixed:
    """A fitted learner that does not change any more, asked for many rows at once.

    alone: ask an estimator row by row, because its numbers depend on the rows that are asked together.
    """

    def __init__(self, spec: ModelSpec, model: Any, alone: bool = False) -> None:
        self.spec, self.model, self._alone = spec, model, alone
        self._schema = {f: spec.questions[f] for f in spec.features}
        self._online = Online(spec, model, ahead=False) if spec.river else None

    def __call__(self, columns: Columns) -> list[Any]:
        """For each row what the learner says of it. Raises whatever it raises."""
        if self._online is not None:
            return [self._online.predict(x) for x in self._online.rows(columns, self._schema)]
        frame = table(columns, self._schema)
        if self._alone:
            return [v for row in frame.iter_slices(1) for v in self._ask(row)]
        return self._ask(frame) if len(frame) else []

    def _ask(self, frame: pl.DataFrame) -> list[Any]:
        if asks_probabilities(self.spec):
            found = np.asarray(self.model.predict_proba(frame), np.float64)
            names = np.asarray(self.model.classes_).tolist()
            return [dict(zip(names, row)) for row in found.tolist()]  # noqa: B905
        return list(np.asarray(self.model.predict(frame)).ravel().tolist())


def shadow(spec: ModelSpec, learner: Any = None) -> Any:
    """The river learner that learns at once beside a deferred model: `learner`, that of the model, or a linear one."""
    if learner is not None:
        return learner.clone()
    if spec.river:
        return clone(spec)
    numbers = compose.SelectType(int, float, bool) | preprocessing.StandardScaler()
    words = compose.SelectType(str) | preprocessing.OneHotEncoder()
    last = linear_model.LogisticRegression() if spec.classifies else linear_model.LinearRegression()
    return (numbers + words) | last


class Judge:
    """A metric, used exactly as `river.evaluate.progressive_val_score` does."""

    def __init__(self, name: str, metric: Any, scored: int = 0) -> None:
        self.name, self.metric, self.scored = name, metric, scored
        self._update = updates(metric)

    def __call__(self, key: Any, y: Any, prediction: Any) -> None:
        """Score a stored prediction, unless there was none."""
        if prediction is None or prediction == {}:
            return
        try:
            self._update(y, prediction)
        except Exception as e:
            raise ModelError.of(self.name, key, "score", e) from e
        self.scored += 1

    @property
    def each(self) -> list[Any]:
        """The metrics one by one, in the order of `figures`."""
        return list(self.metric) if isinstance(self.metric, metrics.base.Metrics) else [self.metric]

    def figures(self) -> dict[str, float | None]:
        """The metrics by name; None as long as nothing was scored."""
        out: dict[str, float | None] = {}
        for m in self.each:
            name = n = type(m).__name__
            while n in out:
                n = f"{name}{int(n[len(name) :] or 1) + 1}"
            out[n] = float(m.get()) if self.scored else None
        return out


class _Prior(dummy.PriorClassifier):
    """The class frequencies, counted in a third of the time."""

    def learn_one(self, x: object, y: Any) -> None:
        self.counts[y] += 1
        self.n += 1


def guesser(spec: ModelSpec) -> Any:
    """The learner that looks at no feature: the class frequencies, or the mean label."""
    return _Prior() if spec.classifies else dummy.StatisticRegressor(stats.Mean())


class Reading:
    """What is published of what a learner says, and what a learner would have said to have it published."""

    def __init__(self, spec: ModelSpec, number: bool) -> None:
        self._proba = asks_probabilities(spec)
        self._binary = spec.classifies and spec.answers[spec.label] == BOOL
        self._number = number

    def __call__(self, said: Any) -> Any:
        """The value, nan when it is not finite, None when nothing was said."""
        if said is None:
            return None
        if isinstance(said, dict):
            if not said:
                return None
            if self._binary:
                return float(said.get(True, 0.0))
            return max(said, key=said.__getitem__) if all(map(isfinite, said.values())) else nan
        return float(said) if self._number else said

    def said(self, value: Any) -> Any:
        if value is None or not self._proba:
            return value if not self._binary or value is None else value > 0.5
        return {False: 1.0 - value, True: value} if self._binary else {value: 1.0}


def values(a: Array, dtype: pl.DataType) -> tuple[list[Any], bool]:
    """A column as Python values, None for null; and whether there is a null."""
    out: list[Any]
    if dtype == STRING:
        out = a.tolist()
        return out, None in out
    if dtype == TIME:
        out = [t and t.replace(tzinfo=timezone.utc) for t in a.astype("datetime64[us]").tolist()]
        return out, None in out
    out = (a == 1).tolist() if dtype == BOOL else a.tolist()
    missing = is_null(a)
    if not missing.any():
        return out, False
    for i in np.flatnonzero(missing).tolist():
        out[i] = None
    return out, True


def dicts(columns: Columns, schema: Mapping[str, pl.DataType]) -> list[dict[str, Any]]:
    """The features of each row, nulls left out."""
    names = tuple(schema)
    found = [values(columns[n], t) for n, t in schema.items()]
    rows = zip(*(several for several, _ in found), strict=True)
    if any(nulls for _, nulls in found):
        return [{n: v for n, v in zip(names, row) if v is not None} for row in rows]  # noqa: B905
    return [dict(zip(names, row)) for row in rows]  # noqa: B905


def arrays(columns: Columns, schema: Mapping[str, pl.DataType]) -> list[Array]:
    """The features of each row as an array, nan for null."""
    found = [columns[n].astype(np.float64) for n in schema]
    for n, column in zip(schema, found, strict=True):
        column[is_null(columns[n])] = nan
    return [row.copy() for row in np.stack(found, 1)]


def table(columns: Columns, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The features of all rows: words as String, everything else as Float64 (times in seconds since 1970)."""
    out = []
    for name, dtype in schema.items():
        s = to_series(name, columns[name], dtype)
        out.append(s if dtype == STRING else s.cast(INT).cast(FLOAT) / 1e6 if dtype == TIME else s.cast(FLOAT))
    return pl.DataFrame(out)


def labels(column: Array, dtype: pl.DataType) -> Array:
    """The labels as an estimator takes them."""
    return column == 1 if dtype == BOOL else np.array(column.tolist()) if dtype == STRING else column
