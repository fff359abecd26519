"""WINDOW: for each row, reductions over the rows of its key up to it and no older than a size.

    window(by=k, size=s, n=reduction)(R) = the rows of R, each with n = reduction of
        { r' in R : r'.k = r.k and r.at - s < r'.at and (r'.at, r'.pos) <= (r.at, r.pos) }

A row sees itself and what precedes it; rows of one `at` are ordered by position. A row that comes late, is taken back
or is changed corrects the rows behind it that saw it or see it now: the old output is retracted, the new one inserted,
both known at the `seq` of the last change before the corrected row.

An output is a function of the rows that are there, never of how they came: what is retracted is computed again from
the rows, and is bit for bit what was emitted. A total of floats is the exact sum of the window, rounded once, for any
values. For `size="forever"` rows before the horizon are known as a running sum only, of 159 bits: the total is exact
while no running sum of the key in order of (at, pos) needs more, and then off by at most 2**-150 times the sum of
the absolute values, and still a function of the rows. Once 1e300 and 0.1 met in one key, its windows are summed row by
row, which costs time.

How it is kept: `operators.rolling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from operators.delta import AT as AT_COLUMN
from operators.delta import BEGINNING, BOOL, FLOAT, INT, NULL, STRING, Delta, Ints, Schema
from operators.delta import POS as POS_COLUMN
from operators.operator import DefinitionError, Maintained, Operator, as_names, fit_as_key, microseconds, new_columns
from operators.reduction import (
    EXTREME,
    Plan,
    Reduction,
    count,
    finished,
    gathered,
    maximum,
    mean,
    minimum,
    reductions_of,
    total,
)
from operators.rolling import (
    ENDLESS,
    PER_CHANNEL,
    PER_VALUE,
    SEQ,
    SOURCE,
    VALUES,
    WEIGHT,
    WHOSE,
    append,
    rewrite,
    set_aside,
    sweep,
)
from operators.segments import FIELDS, ORIGIN, TAIL, Segments
from operators.state import Keyed, Rows, lexsort, nbytes

FOREVER = "forever"


@dataclass(frozen=True, eq=False)
class Window(Operator):
    """Adds to each row reductions over the rows of its key that precede it, and itself.

    by: the columns of the key. size: how far back a reduction looks that has no size of its own: a duration such as
    "1h", or "forever". reductions: names of the new columns and what they hold.

    SQL: `SELECT *, mean(x) OVER (PARTITION BY by ORDER BY at, pos ...)`; where rows share an `at` no SQL frame says the
    same, but a join does:

        SELECT a.*, avg(b.x) FROM r a JOIN r b ON a.by IS NOT DISTINCT FROM b.by
            AND b.at > a.at - size AND (b.at, b.pos) <= (a.at, a.pos) GROUP BY a.*

    >>> from operators.delta import to_column
    >>> pairs = window(by="card", size="1h", n=count(), spent=total("amount")).start([{"card": STRING, "amount": INT}])
    >>> def change(weight, at, amount):
    ...     columns = {"card": to_column(["a"], STRING), "amount": to_column([amount], INT)}
    ...     one = np.array([at])
    ...     out = pairs.apply([Delta(columns, np.array([weight]), one, one, one)])
    ...     n, spent = out.columns["n"].tolist(), out.columns["spent"].tolist()
    ...     return list(zip(out.weight.tolist(), out.at.tolist(), n, spent))
    >>> change(1, 10, 5)
    [(1, 10, 1, 5)]
    >>> change(1, 20, 3)
    [(1, 20, 2, 8)]
    >>> change(-1, 10, 5)  # taken back: the row at 20 no longer sees it
    [(-1, 10, 1, 5), (-1, 20, 2, 8), (1, 20, 1, 3)]
    """

    by: tuple[str, ...]
    size: str | timedelta | None
    reductions: tuple[tuple[str, Reduction], ...]

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    @property
    def reach(self) -> int | None:
        sizes = [self.microseconds(n, r) for n, r in self.reductions]
        return None if None in sizes else max(size or 0 for size in sizes)

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "by": list(self.by),
            "reductions": {n: {**r.definition, "size": self.microseconds(n, r)} for n, r in self.reductions},
        }

    def microseconds(self, name: str, reduction: Reduction) -> int | None:
        """How far back a reduction looks; None when it has no bound. Raises `DefinitionError`."""
        size = self.size if reduction.size is None else reduction.size
        if size is None:
            raise DefinitionError(f"window: {name} has no size; expected a duration such as '1h', or 'forever'")
        if size == FOREVER:
            return None
        n = microseconds(size, f"window: the size of {name}")
        if n == 0:
            raise DefinitionError(f"window: the size of {name} is {size!r}: expected more than 0")
        return n

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given = inputs[0]
        fit_as_key(self.by, given, "window by")
        return new_columns(given, {n: r.type_in(given, f"window {n}") for n, r in self.reductions}, "window")

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        frame = relations[0]
        given = frame.collect_schema()
        types = {n: given[r.column] if r.column else None for n, r in self.reductions}
        key = [pl.col(n).alias(f"_by{i}") for i, n in enumerate(self.by)]
        values = [pl.col(r.column or AT_COLUMN).alias(f"_value{i}") for i, (_, r) in enumerate(self.reductions)]
        seen = frame.select(*key, pl.col(AT_COLUMN).alias("_seen_at"), pl.col(POS_COLUMN).alias("_seen_pos"), *values)
        at, seen_at = pl.col(AT_COLUMN), pl.col("_seen_at")
        pairs = (
            frame.select(*key, AT_COLUMN, POS_COLUMN)
            .join(seen, on=[f"_by{i}" for i in range(len(self.by))], nulls_equal=True)
            .filter((seen_at < at) | ((seen_at == at) & (pl.col("_seen_pos") <= pl.col(POS_COLUMN))))
        )
        made = []
        for i, (n, r) in enumerate(self.reductions):
            size = self.microseconds(n, r)
            inside = None
            if size is not None:
                inside = seen_at > pl.when(at > BEGINNING + size).then(at - size).otherwise(NULL)
            made.append(gathered(r, types[n], f"_value{i}", inside).alias(n))
        results = (
            pairs.group_by(AT_COLUMN, POS_COLUMN)
            .agg(made)
            .with_columns(finished(r, types[n], n) for n, r in self.reductions)
        )
        return frame.join(results, on=[AT_COLUMN, POS_COLUMN]).select(
            *(n for n in given if n not in (AT_COLUMN, POS_COLUMN)),
            *(n for n, _ in self.reductions),
            AT_COLUMN,
            POS_COLUMN,
        )

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Windows(self, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        return [
            (
                window(
                    by="name", size="1h", n=count(), known=count("x"), sum=total("x"), mean=mean("x"), most=maximum("x")
                ),
                [{"name": STRING, "x": FLOAT}],
            ),
            (
                window(
                    by=["name", "yes"],
                    size="forever",
                    rows=count(),
                    low=minimum("n"),
                    mean=mean("n"),
                    recent=total("n", size="3us"),
                    low_x=minimum("x", size="2h"),
                    yes_n=total("yes", size="1h"),
                    ever=total("x"),
                ),
                [{"name": STRING, "yes": BOOL, "n": INT, "x": FLOAT}],
            ),
        ]


def window(*, by: str | Sequence[str], size: str | timedelta | None = None, **reductions: Reduction) -> Window:
    """For each row, reductions over the rows of its key with `at` in (at - size, at] that do not come after it.

    by: the columns of the key; a null is a key like any other. size: a duration ("30s", "1h30m", a timedelta) or
    "forever"; a reduction may have its own, `n=count(size="7d")`, and all sizes share what is kept. The result has the
    columns that come in and one for each reduction.

    Raises `DefinitionError` for a size that is missing, 0 or no duration, for something that is not a reduction and,
    once the columns are known, for unknown columns, wrong types and names that are taken. SQL: see `Window`.
    """
    made = Window(as_names(by, "window by"), size, reductions_of(reductions, "window"))
    for n, r in made.reductions:
        made.microseconds(n, r)
    return made


class _Windows(Keyed):
    def __init__(self, operator: Window, schema: Schema, out: Schema) -> None:
        super().__init__(operator.keys, out)
        sizes = [operator.microseconds(n, r) for n, r in operator.reductions]
        distinct = sorted(set(sizes), key=lambda s: (s is None, s or 0))
        self.plan = Plan(operator.reductions, schema, [distinct.index(s) for s in sizes], [s is None for s in distinct])
        self.sizes = np.array([ENDLESS if s is None else s for s in distinct], np.int64)
        self.tables = self.sizes, self.plan.what, self.plan.channels
        self.endless = None in distinct
        self.longest = max([s for s in distinct if s is not None], default=1)
        self.reach = ENDLESS if self.endless else self.longest
        channels, windows = len(self.plan.channels), len(distinct)
        self.segments = Segments(
            FIELDS + PER_CHANNEL * channels + windows * (1 + 2 * channels), VALUES + PER_VALUE * channels
        )
        self.blocks = np.zeros((0, 2 * channels if self.plan.channels[:, EXTREME].any() else 0), np.int64)
        self.payload = Rows(schema)
        self.payload_asked = 0
        self.stamp = 1
        self.hand = 0
        self.cleared: list[Ints] = []

    def reserve(self, slots: int) -> None:
        self.segments.reserve(slots)

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        held = len(self.slots)
        out = super().apply(deltas, horizon)
        self._forget(len(deltas[0]), len(self.slots) - held, horizon)
        return out

    def changes(self, deltas: Sequence[Delta], slots: Sequence[Ints], edges: Sequence[Ints], horizon: int) -> Delta:
        delta, slot, plan = deltas[0], slots[0], self.plan
        n, s, keep = len(delta), self.segments, self._keep(horizon)
        rows = slot, delta.at, delta.pos, delta.seq, self._kept(delta), plan.words(delta.columns, n)
        results, about, o = np.empty((n, len(plan.what)), np.int64), np.empty((n, 4), np.int64), 0
        slow, gone = np.empty(n, np.int64), []
        for a, b in pairwise(edges[0].tolist()):
            self.stamp += 1
            behind = set_aside(s.keys, slot, delta.at, delta.pos, delta.weight, a, b, self.stamp, slow)
            s.rows, self.blocks, results, about, o = append(
                s.rows, s.keys, self.blocks, s.free, *rows, *self.tables, keep, self.stamp, results, about, a, b, o
            )
            if behind:
                few = slow[:behind]
                if behind > 1:
                    few = few[lexsort(slot[few], delta.at[few], delta.pos[few], delta.weight[few])]
                s.rows, self.blocks, results, about, o, left, cleared, missing = rewrite(
                    s.rows, s.keys, self.blocks, s.free, *rows, *self.tables, keep, results, about, o,
                    delta.weight, few, self.reach,
                )  # fmt: skip
                if missing >= 0:
                    raise ValueError(
                        f"window: a change of weight {delta.weight[missing]} at {delta.at[missing]}, position "
                        f"{delta.pos[missing]} does not fit; expected to insert a row that is not there, or to take "
                        "back one that is and is not older than the horizon"
                    )
                self.cleared.append(cleared)
                gone.append(left)
        if not gone:
            return delta.with_columns({**delta.columns, **plan.columns(results)})
        out = self._put_together(delta, about[:o], results[:o])
        self.payload.remove(np.concatenate(gone))
        return out

    def _put_together(self, delta: Delta, about: Ints, results: Ints) -> Delta:
        """The output of results, in order of `seq`; a row may have left one key and entered another."""
        sequence = np.argsort(2 * about[:, SEQ] + (about[:, WEIGHT] > 0), kind="stable")
        about, results = np.take(about, sequence, axis=0), np.take(results, sequence, axis=0)
        out = delta.take(np.maximum(about[:, SOURCE], 0))
        out.weight, out.seq = about[:, WEIGHT].copy(), about[:, SEQ].copy()
        again = np.flatnonzero(about[:, SOURCE] < 0)
        if len(again):
            kept = self.payload.take(about[again, WHOSE], out.weight[again], out.seq[again])
            out.at[again], out.pos[again] = kept.at, kept.pos
            for name, column in kept.columns.items():
                out.columns[name][again] = column
        return out.with_columns({**out.columns, **self.plan.columns(results)})

    def _keep(self, horizon: int) -> int:
        """Rows at or before this cannot be seen, corrected or taken back any more."""
        return horizon - self.longest if horizon > BEGINNING + self.longest else NULL

    def _kept(self, delta: Delta) -> Ints:
        """Keep the columns of the rows that are inserted; returns their numbers."""
        inserts = delta.weight > 0
        if inserts.all():
            return self.payload.add(delta)
        ids = np.full(len(delta), -1, np.int64)
        ids[inserts] = self.payload.add(delta.take(inserts))
        return ids

    def _forget(self, n: int, new: int, horizon: int) -> None:
        s, keep = self.segments, self._keep(horizon)
        self.payload_asked += n  # looking through the rows kept takes time: not in every call
        if 4 * self.payload_asked >= len(self.payload):
            self.payload.expire(horizon)
            self.payload_asked = 0
        if keep > NULL and (capacity := self.slots.capacity):
            some = min(n // 4 + 2 * new + 1, capacity)  # the hand goes faster than keys come: memory stays flat
            s.rows, self.blocks, cleared = sweep(
                s.rows, s.keys, self.blocks, s.free, capacity, self.hand, some, keep, self.endless, *self.tables
            )
            self.hand = (self.hand + some) % capacity
            self.cleared.append(cleared)
        if self.cleared:
            slots = np.unique(np.concatenate(self.cleared))
            self.slots.release(slots[s.keys[slots, TAIL] == s.keys[slots, ORIGIN]].tolist())
            self.cleared = []

    def arrays(self) -> dict[str, Any]:
        return {
            "segments": self.segments.snapshot(self.slots.capacity),
            "blocks": self.blocks.copy(),
            "payload": self.payload.snapshot(),
            "numbers": (self.payload_asked, self.stamp, self.hand),
        }

    def load(self, arrays: dict[str, Any]) -> None:
        self.segments.restore(arrays["segments"])
        self.blocks = arrays["blocks"]
        self.payload.restore(arrays["payload"])
        self.payload_asked, self.stamp, self.hand = arrays["numbers"]

    @property
    def size(self) -> tuple[int, int]:
        held = self.segments.nbytes + nbytes([self.blocks]) + self.slots.nbytes + self.payload.nbytes
        return len(self.slots), held
