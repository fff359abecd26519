"""Train-serve skew: the features that were served, against what they have become since.

What was served is a fact, and what a model learns from. Late rows correct the questions view afterwards; a training set
computed from that today would hold the corrected values. How far the two are apart is counted here, feature by feature:

- `mismatch`: a value was served, and it is another one now;
- `missing`: null was served, where there is a value now;
- `extra`: a value was served, where there is none now;
- `smape`: for numbers the mean of 2|a - b| / (|a| + |b|), from 0 to 2, where equal values and nulls count 0.

A question whose row was *taken back* altogether is counted as that, and its features are not compared. Only what was
corrected is looked at: a question that stays as it was served costs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from operators.delta import FLOAT, INT, Array, Columns, Ints, Schema, is_null

KINDS = ("mismatch", "missing", "extra")
_UNIT = 1e-9
"""Terms of `smape` are summed as integers, in this unit: exact, in any order."""


class Tally:
    """What is counted of some questions: how many, and how many of them were `taken_back`; by feature how many differ,
    in each of `KINDS` (`counts`), and the sum of the `terms` of smape.
    """

    def __init__(self, features: Schema, questions: int = 0, taken_back: int = 0) -> None:
        self.features, self.questions, self.taken_back = features, questions, taken_back
        self.counts = np.zeros((len(KINDS), len(features)), np.int64)
        self.terms = np.zeros(len(features), np.int64)

    def add(self, other: Tally, sign: int = 1) -> None:
        """Count the questions of another tally, too; with sign -1 no more."""
        self.questions += sign * other.questions
        self.taken_back += sign * other.taken_back
        self.counts = self.counts + sign * other.counts
        self.terms = self.terms + sign * other.terms

    def figures(self) -> dict[str, Any]:
        """The same as JSON values; `smape` is None where there is nothing to compare, and of what is no number."""
        features, there = {}, self.questions - self.taken_back
        for i, (name, dtype) in enumerate(self.features.items()):
            smape = int(self.terms[i]) * _UNIT / there if there and dtype in (INT, FLOAT) else None
            features[name] = {**dict(zip(KINDS, self.counts[:, i].tolist(), strict=True)), "smape": smape}
        return {"questions": self.questions, "taken_back": self.taken_back, "features": features}


def skew_of(still: Tally, final: Tally) -> dict[str, Any]:
    """The figures of questions that can still be corrected, of those that cannot, and of all."""
    every = Tally(final.features)
    for some in (still, final):
        every.add(some)
    return {"open": still.figures(), "final": final.figures(), "all": every.figures()}


def tally(features: Schema, served: Columns, now: Columns, there: npt.NDArray[np.bool_]) -> Tally:
    """Compare what was served with what it is now, row by row. there: whether the row of a question is there now."""
    found = Tally(features, len(there), int((~there).sum()))
    for i, (name, dtype) in enumerate(features.items()):
        a, b = served[name], now[name]
        had, has = there & ~is_null(a), there & ~is_null(b)
        differ = had & has & (a != b).astype(np.bool_)
        found.counts[:, i] = differ.sum(), (has & ~had).sum(), (had & ~has).sum()
        if dtype in (INT, FLOAT) and differ.any():
            found.terms[i] = _terms(a[differ], b[differ]).sum()
    return found


def _terms(a: Array, b: Array) -> Ints:
    """The terms of `smape` of pairs that differ; 2 where one of them is infinite."""
    x, y = a.astype(np.float64) / 2, b.astype(np.float64) / 2
    with np.errstate(invalid="ignore"):
        term = 2 * np.abs(x - y) / (np.abs(x) + np.abs(y))
    return np.rint(np.where(np.isnan(term), 2.0, term) / _UNIT).astype(np.int64)
