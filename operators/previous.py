"""PREVIOUS: each row with values of the row of its key before it.

    previous(by=k, new=x)(R) = the rows r of R, each with new = r'.x of the last row r' of R with r'.k = r.k and
                               (r'.at, r'.pos) < (r.at, r.pos); null when there is none

With `within` a row that is more than that before r is none. `at` names a column for r'.at, so that the time since the
row before can be computed. Null is a key like any other, and a row before is one whatever its values are.

A row that comes late, is taken back or is changed corrects the row behind it. Of the rows before the horizon the last
of each key is remembered, with `within` only for so long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from numba import njit

from operators.delta import AT, BEGINNING, BOOL, FLOAT, INT, POS, STRING, TIME, Columns, Ints, Schema
from operators.operator import (
    DefinitionError,
    Maintained,
    Operator,
    as_names,
    fit_as_key,
    known,
    microseconds,
    new_columns,
)
from operators.ordered import Ordered, amend, enter, since_when, tell
from operators.timeline import back, first


@dataclass(frozen=True, eq=False)
class Previous(Operator):
    """Adds to each row columns of the row of its key before it.

    SQL: `SELECT *, lag(x) OVER (PARTITION BY k ORDER BY at, pos) AS new FROM r`

    >>> from operators.delta import Delta, to_column
    >>> kept = previous(by="meter", last="kwh", at="read").start([{"meter": STRING, "kwh": INT}])
    >>> def row(seq, weight, at, kwh):
    ...     one = np.array([1])
    ...     columns = {"meter": to_column(["a"], STRING), "kwh": to_column([kwh], INT)}
    ...     out = kept.apply([Delta(columns, one * weight, one * at, one, one * seq)])
    ...     columns = [out.columns[n].tolist() for n in ("kwh", "last", "read")]
    ...     return list(zip(out.weight.tolist(), out.at.tolist(), *columns))
    >>> row(1, 1, 10, 5), row(2, 1, 30, 9)[0]
    ([(1, 10, 5, -9223372036854775808, -9223372036854775808)], (1, 30, 9, 5, 10))
    >>> row(3, 1, 20, 6)  # comes late: the row at 30 has another one before it
    [(1, 20, 6, 5, 10), (-1, 30, 9, 5, 10), (1, 30, 9, 6, 20)]
    >>> row(4, -1, 20, 6)  # and is taken back
    [(-1, 20, 6, 5, 10), (-1, 30, 9, 6, 20), (1, 30, 9, 5, 10)]
    """

    by: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    at: str | None
    within: int | None

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    @property
    def definition(self) -> dict[str, Any]:
        return {"by": list(self.by), "columns": dict(self.columns), "at": self.at, "within": self.within}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given = inputs[0]
        fit_as_key(self.by, given, "previous: by")
        for new, old in self.columns:
            known([old], given, f"previous: {new}")
        added = {new: given[old] for new, old in self.columns}
        if self.at in added:
            raise DefinitionError(f"previous: at and a column are both {self.at!r}; expected different names")
        return new_columns(given, added if self.at is None else {**added, self.at: TIME}, "previous")

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        at = pl.col(AT).shift(1).over(self.by)
        near = at.is_not_null()
        if self.within is not None:
            near = at >= pl.max_horizontal(AT, BEGINNING + self.within) - self.within
        made = [pl.when(near).then(pl.col(old).shift(1).over(self.by)).alias(new) for new, old in self.columns]
        if self.at is not None:
            made.append(pl.when(near & (at > BEGINNING)).then(at).cast(TIME).alias(self.at))
        return relations[0].sort(AT, POS).with_columns(made)

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Previous(self, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        schema: Schema = {"k": STRING, "n": INT, "x": FLOAT, "yes": BOOL, "t": TIME}
        return [
            (previous(by="k", n_before="n", last="k"), [schema]),
            (previous(by=["k", "yes"], x_before="x", when="t", at="seen", within="3us"), [schema]),
            (previous(by="k", at="seen", within="2h"), [schema]),
        ]


def previous(
    *,
    by: str | Sequence[str],
    at: str | None = None,
    within: str | timedelta | None = None,
    **columns: str,
) -> Previous:
    """Add to each row values of the row of its key before it, in the order of (at, pos); nulls when there is none.

    by: the key columns. columns: new=name adds the column `new` with the value of `name` in the row before. at: the
    name of a column for the event time of the row before (null also when that was there from the beginning). within:
    how long before a row the one before it may be, such as "1h"; keys are then forgotten after that time.

    Raises `DefinitionError` when a column is unknown, a name taken, or nothing is to be added. SQL: `lag(name) OVER
    (PARTITION BY by ORDER BY at, pos)`.
    """
    names = tuple(columns.items())
    for new, old in names:
        if not isinstance(old, str):
            raise DefinitionError(f"previous: {new} is {old!r}; expected the name of a column")
    if not names and at is None:
        raise DefinitionError("previous: nothing to add; expected a column such as last='x', or at='seen'")
    limit = None if within is None else microseconds(within, "previous: within")
    return Previous(as_names(by, "previous: by"), names, at, limit)


@njit(cache=True)
def _follow(reach, slab, runs, free, shown, number, slot, at, pos, weight, seq, order, results):  # type: ignore[no-untyped-def]
    """Take in changes; a row shows the number of the row before it, 0 for none.

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
                near = k > runs[s, 2] and (reach < 0 or slab[k - 1, 0] >= back(slab[k, 0], reach))
                before = slab[k - 1, 2] if near else 0
                fixes, f, other = amend(shown, slab[k, 2], (before,), fixes, f, seq[i])
                k += 1
        tell(shown, weight, number, results, a, z)
        a = z
    return slab, fixes[:f], -1


class _Previous(Ordered):
    def __init__(self, operator: Previous, schema: Schema, out: Schema) -> None:
        reach = -1 if operator.within is None else operator.within
        super().__init__(operator.by, schema, out, 1, reach=reach)
        self.chosen, self.at = operator.columns, operator.at

    def follow(self, rows: tuple[Any, ...]) -> tuple[Ints, int]:
        self.entries.slab, fixes, bad = _follow(self.reach, *rows)
        return fixes, bad

    def columns_of(self, words: Ints) -> Columns:
        rows, before = self.cells.columns, words[:, 0]
        made = {new: rows[old][before] for new, old in self.chosen}
        return made if self.at is None else {**made, self.at: since_when(rows[AT][before])}
