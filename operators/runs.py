"""RUNS: how long, up to each row, the rows of its key have had the same values.

    runs(by=k, of=x)(R) = the rows r of R, each with
        run   = how many rows r' of R with r'.k = r.k and (r'.at, r'.pos) <= (r.at, r.pos) there are such that x is
                r.x in r', in r, and in all rows of the key between them
        since = the event time of the first of these

A row with a null in `of` is in no run: it ends the one before it, its own `run` is 0 and its `since` null (with
`op.where(pl.col("x").is_not_null())` before it, nulls are passed over instead). Floats are the same when they are
equal. Null in `by` is a key like any other.

A row that comes late, is taken back or is changed corrects the rows behind it to the end of the run it is in, or was.
Of the rows before the horizon the last of each key is remembered, with its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numba import njit

from operators.delta import (
    AT,
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    NULL,
    POS,
    STRING,
    TIME,
    Columns,
    Delta,
    Ints,
    Schema,
    is_null,
)
from operators.operator import DefinitionError, Maintained, Operator, as_names, fit_as_key, known, new_columns
from operators.ordered import Ordered, amend, enter, since_when, tell
from operators.state import Slots, grown, keys_of, nbytes
from operators.timeline import first


@dataclass(frozen=True, eq=False)
class Runs(Operator):
    """Adds to each row the length of the run of equal values that it is in, and when that began.

    SQL (gaps and islands): with `island` the number of rows of the key, up to the row, that differ from the one before
    them, `count(*) OVER (PARTITION BY k, island ORDER BY at, pos)` and `min(at) OVER (PARTITION BY k, island)`.

    >>> from operators.delta import to_column
    >>> kept = runs(by="sensor", of="value", run="same").start([{"sensor": STRING, "value": INT}])
    >>> def row(seq, weight, at, value):
    ...     one = np.array([1])
    ...     columns = {"sensor": to_column(["a"], STRING), "value": to_column([value], INT)}
    ...     out = kept.apply([Delta(columns, one * weight, one * at, one, one * seq)])
    ...     return list(zip(out.weight.tolist(), out.at.tolist(), out.columns["same"].tolist()))
    >>> row(1, 1, 10, 7), row(2, 1, 20, 7), row(3, 1, 30, 7)
    ([(1, 10, 1)], [(1, 20, 2)], [(1, 30, 3)])
    >>> row(4, 1, 25, 8)  # another value comes late: a run of its own, and what follows is a new one
    [(1, 25, 1), (-1, 30, 3), (1, 30, 1)]
    >>> row(5, -1, 25, 8)
    [(-1, 25, 1), (-1, 30, 1), (1, 30, 3)]
    """

    by: tuple[str, ...]
    of: tuple[str, ...]
    run: str | None
    since: str | None

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    @property
    def definition(self) -> dict[str, Any]:
        return {"by": list(self.by), "of": list(self.of), "run": self.run, "since": self.since}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given = inputs[0]
        fit_as_key(self.by, given, "runs: by")
        known(self.of, given, "runs: of")
        made = {self.run: INT, self.since: TIME}
        return new_columns(given, {n: t for n, t in made.items() if n is not None}, "runs")

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        other = pl.any_horizontal(pl.col(n).ne_missing(pl.col(n).shift(1).over(self.by)) for n in self.of)
        whole = pl.all_horizontal(pl.col(n).is_not_null() for n in self.of)
        island = [*self.by, "_island"]
        made = []
        if self.run is not None:
            made.append(pl.when("_whole").then(pl.int_range(1, pl.len() + 1).over(island)).otherwise(0).alias(self.run))
        if self.since is not None:
            began = pl.col(AT).min().over(island)
            made.append(pl.when(pl.col("_whole") & (began > BEGINNING)).then(began).cast(TIME).alias(self.since))
        return (
            relations[0]
            .sort(AT, POS)
            .with_columns(_other=other, _whole=whole)
            .with_columns(_island=pl.col("_other").cum_sum().over(self.by))
            .with_columns(made)
            .drop("_other", "_whole", "_island")
        )

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Runs(self, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        schema: Schema = {"k": STRING, "x": FLOAT, "s": STRING, "yes": BOOL, "t": TIME}
        return [
            (runs(by="k", of="x", run="run", since="since"), [schema]),
            (runs(by="k", of="s", since="since"), [schema]),
            (runs(by=["k", "s"], of=["x", "yes"], run="n"), [schema]),
            (runs(by="k", of="yes", run="run", since="since"), [{"k": STRING, "yes": BOOL}]),
        ]


def runs(*, by: str | Sequence[str], of: str | Sequence[str], run: str | None = None, since: str | None = None) -> Runs:
    """For each row, how many rows of its key in a row, up to it, had the same values as it has, and since when.

    by: the key columns. of: the columns whose values are compared. run: the name of a column for the number of rows, 1
    where the value is another than before, 0 where one is null. since: the name of a column for the event time of the
    first row of the run (null also when that was there from the beginning).

    Raises `DefinitionError` when a column is unknown, a name taken, or neither run nor since is given.
    SQL: see `Runs`.
    """
    if run is None and since is None:
        raise DefinitionError("runs: nothing to add; expected run='name', since='name' or both")
    if run == since:
        raise DefinitionError(f"runs: run and since are both {run!r}; expected different names")
    return Runs(as_names(by, "runs: by"), as_names(of, "runs: of"), run, since)


@njit(cache=True)
def _follow(word, slab, runs, free, shown, number, slot, at, pos, weight, seq, order, results):  # type: ignore[no-untyped-def]
    """Take in changes; a row shows its run, and when that began. word: by number the value, NULL for none.

    Returns the slab, the fixes, and what does not fit.
    """
    n = slot.shape[0]
    fixes, f = np.empty((16, 2 + 2 * len(shown)), np.int64), 0
    a = 0
    while a < n:
        z = a
        while z < n and seq[z] == seq[a]:
            z += 1
        slab, bad = enter(slab, runs, free, shown, slot, at, pos, weight, number, results, a, z)
        if bad >= 0:
            return slab, fixes[:0], bad
        for j in range(a, z):
            i = order[j]
            s = slot[i]
            k = first(slab, runs[s, 2], runs[s, 3], at[i], pos[i])
            other = True
            while other and k < runs[s, 3]:
                r = slab[k, 2]
                run, since = 1, slab[k, 0]
                if word[r] == NULL:
                    run, since = 0, NULL
                elif k > runs[s, 2] and word[slab[k - 1, 2]] == word[r]:
                    run, since = shown[0][slab[k - 1, 2]] + 1, shown[1][slab[k - 1, 2]]
                fixes, f, other = amend(shown, r, (run, since), fixes, f, seq[i])
                k += 1
        tell(shown, weight, number, results, a, z)
        a = z
    return slab, fixes[:f], -1


class _Runs(Ordered):
    """The value of a row is a word: the number or its bits, or where it is none the slot of the value in `values`,
    whose `uses` are counted."""

    def __init__(self, operator: Runs, schema: Schema, out: Schema) -> None:
        super().__init__(operator.by, schema, out, 2, more={"_word": INT})
        self.of, self.run, self.since = operator.of, operator.run, operator.since
        self.plain = len(self.of) == 1 and schema[self.of[0]] != STRING
        self.values = Slots()
        self.uses = np.zeros(0, np.int64)

    def follow(self, rows: tuple[Any, ...]) -> tuple[Ints, int]:
        self.entries.slab, fixes, bad = _follow(self.cells.columns["_word"], *rows)
        return fixes, bad

    def further(self, delta: Delta, slot: Ints) -> Columns:
        missing = np.logical_or.reduce([is_null(delta.columns[n]) for n in self.of])
        if self.plain:
            column = delta.columns[self.of[0]]
            words = (column + 0.0).view(np.int64) if column.dtype == np.float64 else column.astype(np.int64)
        else:
            words = np.zeros(len(delta), np.int64)
            words[~missing] = self.values.of(keys_of({n: delta.columns[n][~missing] for n in self.of}, self.of))
            self.uses = grown(self.uses, self.values.capacity)
            np.add.at(self.uses, words[~missing], 1)
        return {"_word": np.where(missing, NULL, words)}

    def drop(self, numbers: Ints) -> None:
        if not self.plain:
            words = self.cells.columns["_word"][numbers]
            words = words[words != NULL]
            np.subtract.at(self.uses, words, 1)
            words = np.unique(words)
            self.values.release(words[self.uses[words] == 0].tolist())
        super().drop(numbers)

    def columns_of(self, words: Ints) -> Columns:
        made = {self.run: words[:, 0].copy(), self.since: since_when(words[:, 1])}
        return {n: c for n, c in made.items() if n is not None}

    def arrays(self) -> dict[str, Any]:
        return {**super().arrays(), "values": self.values.snapshot(), "uses": self.uses.copy()}

    def load(self, arrays: dict[str, Any]) -> None:
        super().load(arrays)
        self.values.restore(arrays["values"])
        self.uses = arrays["uses"]

    @property
    def size(self) -> tuple[int, int]:
        keys, size = super().size
        return keys, size + self.values.nbytes + nbytes([self.uses])
