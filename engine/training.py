"""The training set of a model: its examples as a relation, with the features as they were served.

A row enters when a question is answered, and is taken back when it is none any more: the answer was corrected, or the
question withdrawn. The row carries the `at` and position of its question; the change has the `seq` of what caused it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.examples import GONE, Question
from engine.log import KNOWN, SEQ, WEIGHT
from engine.skew import Tally, tally
from engine.spec import ModelSpec, frontier, training_schema
from operators.delta import (
    AT,
    POS,
    STRING,
    TIME,
    Array,
    Columns,
    Delta,
    Ints,
    Schema,
    concat,
    empty,
    from_frame,
    null_of,
    numpy_type,
    to_array,
)
from operators.state import Rows

_FORGOTTEN = int(np.iinfo(np.int64).min) + 1


class MemoryLog:
    """A change log that is kept in memory, for a replay: the least of what `ChangeLog` does."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._known: list[Ints] = []

    def append(self, delta: Delta, known: Ints) -> None:
        self._deltas.append(delta)
        self._known.append(known)

    def save(self) -> None:
        """There is nothing that a state could remember."""

    def flush(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is left to be done."""

    def changes(self, schema: Schema) -> tuple[Delta, Ints]:
        """All changes, in order."""
        if not self._deltas:
            return empty(schema), np.empty(0, np.int64)
        if len(self._deltas) > 1:
            self._deltas, self._known = [concat(self._deltas)], [np.concatenate(self._known)]
        return self._deltas[0], self._known[0]


class Training:
    """The features of questions as served, as long as they can be answered or corrected; gives out changes."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec, self.schema = spec, training_schema(spec)
        served = (*spec.key, *spec.features, "seq", "frontier", *map(frontier, spec.sources))
        self._rows = Rows({n: self.schema[n] for n in served})
        self._changes: list[tuple[int, int, int, Any, Any, Any, Any, int, int]] = []

    def serve(self, questions: Delta) -> int:
        """Keep rows of the questions as they are now, with what they are made from; returns the number of the first."""
        return int(self._rows.add(questions)[0])

    def features(self, questions: Sequence[Question]) -> Columns:
        """The features of these questions as served."""
        return self._features(np.array([q.row for q in questions], np.int64))

    def _features(self, rows: Ints) -> Columns:
        taken = self._rows.take(rows, rows, rows).columns
        return {f: taken[f] for f in self.spec.features}

    def position(self, question: Question) -> int:
        """The position of the row that a question came from."""
        return int(self._rows.pos[question.row - (self._rows.first - self._rows.head)])

    def compare(self, questions: Sequence[Question], now: Sequence[int | None] | None = None) -> Tally:
        """The features of questions as served, against what they are in the rows `now` (default: `Question.now`)."""
        schema = {f: self.spec.questions[f] for f in self.spec.features}
        if not questions:
            return Tally(schema)
        now = [q.now for q in questions] if now is None else now
        rows = np.array([q.row for q in questions], np.int64)
        other = np.array([q.row if n in (None, GONE) else n for q, n in zip(questions, now, strict=True)], np.int64)
        served = self._features(rows)
        found = served if np.array_equal(rows, other) else self._features(other)
        return tally(schema, served, found, np.array([n != GONE for n in now], np.bool_))

    def blank(self, question: Question) -> None:
        """Let nothing be left of the features of a question that is no example and never will be."""
        for name, column in self._rows.columns.items():
            column[question.row - (self._rows.first - self._rows.head)] = null_of(self.schema[name])

    def enter(self, question: Question, seq: int, weight: int = 1) -> None:
        """A question is an example from now on; with weight -1 it is none any more."""
        q = question
        self._changes.append((q.row, weight, seq, q.label, q.value, q.version or None, q.trained, *q.told))

    def forget(self, rows: list[int]) -> None:
        """Rows of questions that nobody will ask for any more."""
        self._rows.remove(np.array(rows, np.int64))
        self._rows.expire(_FORGOTTEN)

    def changes(self) -> Delta:
        """What changed since the last call."""
        if not self._changes:
            return empty(self.schema)
        rows, weight, seq, label, value, version, trained, answered, pos = zip(*self._changes, strict=True)
        self._changes = []
        out = self._rows.take(*(np.array(a, np.int64) for a in (rows, weight, seq)))
        out.columns |= {
            "at": out.at,
            "label": column(label, self.schema["label"]),
            "prediction": column(value, self.schema["prediction"]),
            "model_version": column(version, STRING),
            "trained": column(trained, TIME),
            "answered": np.array(answered, np.int64),
            "answer_pos": np.array(pos, np.int64),
        }
        out.columns = {n: out.columns[n] for n in self.schema}
        return out

    def snapshot(self) -> Any:
        if self._changes:
            raise AssertionError("changes of a training set were not given out before a snapshot")
        return self._rows.snapshot()

    def restore(self, state: Any) -> None:
        self._rows.restore(state)


def from_log(rows: pl.DataFrame, spec: ModelSpec) -> tuple[Delta, Ints]:
    """Rows of the log of a training set as changes, and when they became known."""
    at, pos, seq, weight, known = (to_array(rows[n]) for n in (AT, POS, SEQ, WEIGHT, KNOWN))
    return from_frame(rows, training_schema(spec), at, pos, seq, weight), known


def of_rows(log: pl.LazyFrame, positions: Ints, others: bool = False) -> pl.LazyFrame:
    """What a log says of the examples that came from these rows of sources, or whose answers did; or of all others."""
    here = came_from(positions)
    return log.filter(~here if others else here)


def came_from(positions: Ints) -> pl.Expr:
    """Whether an example came from one of these rows of sources, or its answer did."""
    rows = pl.lit(pl.Series(positions)).implode()
    return pl.col(POS).is_in(rows) | pl.col("answer_pos").is_in(rows).fill_null(False)


def column(values: Any, dtype: pl.DataType) -> Array:
    """Python values, None for null, as a column."""
    null = null_of(dtype)
    out = np.empty(len(values), numpy_type(dtype))
    out[:] = [null if v is None else v for v in values]
    return out


def examples(changes: Delta, known: Ints) -> tuple[Delta, Ints]:
    """The rows that are there after these changes, in the order in which they became so, and when they became known."""
    order = np.lexsort((np.arange(len(changes)), changes.pos, changes.at))
    at, pos = changes.at[order], changes.pos[order]
    last = np.concatenate([(at[1:] != at[:-1]) | (pos[1:] != pos[:-1]), [True]]) if len(order) else order.astype(bool)
    kept = np.sort(order[last & (changes.weight[order] > 0)])
    return changes.take(kept), known[kept]
