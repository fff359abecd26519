"""REDUCTION: what makes one value of many rows: `count`, `total`, `mean`, `minimum`, `maximum`.

Nulls are skipped, as in SQL: `count("x")` counts values that are not null (`count()` counts rows), and a total, mean,
minimum or maximum over no value that is not null is null.

| reduction          | of                                   | gives                                          |
| ------------------ | ------------------------------------ | ---------------------------------------------- |
| `count`            | any column, or rows                  | Int64                                          |
| `total`            | Int64, Boolean                       | Int64; on overflow it wraps (SQL: an error)    |
| `total`            | Float64                              | Float64, the exact sum rounded once            |
| `mean`             | Int64, Boolean, Float64              | Float64: that sum of the values as floats / n  |
| `minimum/maximum`  | Int64, Float64, Boolean, Datetime    | the same type                                  |

Inside, a column that is reduced becomes a *channel* of 64-bit words: integers as they are, floats as their bits. Words
compare as integers once the bits of negative floats are turned (`rank`), and null is least among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numba import njit

from operators.delta import BOOL, FLOAT, INT, NULL, NULL_BOOL, STRING, TIME, Array, Columns, Ints, Schema, is_null
from operators.operator import DefinitionError, known

Kind = Literal["count", "total", "mean", "minimum", "maximum"]

ROWS, COUNT, TOTAL, MEAN, MINIMUM, MAXIMUM = range(6)
"""Kinds as kernels know them; ROWS is `count()`."""

FLOAT_NULL = -1
"""The bits, as an integer, of the nan that stands for null in a float channel: the least by `rank`."""

TURN = int(np.iinfo(np.int64).max)
_CODES = {"count": COUNT, "total": TOTAL, "mean": MEAN, "minimum": MINIMUM, "maximum": MAXIMUM}
_NUMBERS = (INT, FLOAT, BOOL)
_ORDERED = (INT, FLOAT, BOOL, TIME)


@dataclass(frozen=True)
class Reduction:
    """One value of many rows: the kind, the column, and (in a window) how far back it looks."""

    kind: Kind
    column: str | None = None
    size: str | timedelta | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DefinitionError(f"a reduction has kind {self.kind!r}: expected one of {', '.join(get_args(Kind))}")
        if self.column is None and self.kind != "count":
            raise DefinitionError(f"{self.kind} has no column: expected a name such as {self.kind}('x')")
        if self.column is not None and not isinstance(self.column, str):
            raise DefinitionError(f"{self.kind} of {self.column!r}: expected the name of a column")

    @property
    def definition(self) -> dict[str, Any]:
        """The parameters as JSON values, without the size."""
        return {"kind": self.kind, "column": self.column}

    def type_in(self, schema: Schema, what: str) -> pl.DataType:
        """The type of the result over rows of this schema. Raises `DefinitionError` naming `what`."""
        if self.column is None:
            return INT
        known([self.column], schema, what)
        given = schema[self.column]
        if self.kind == "count":
            return INT
        if self.kind in ("total", "mean"):
            if given not in _NUMBERS:
                raise DefinitionError(
                    f"{what}: {self.kind} of {self.column!r}, which has type {given}; "
                    "expected Int64, Float64 or Boolean"
                )
            return FLOAT if self.kind == "mean" or given == FLOAT else INT
        if given not in _ORDERED:
            raise DefinitionError(
                f"{what}: {self.kind} of {self.column!r}, which has type {given}; "
                "expected Int64, Float64, Boolean or Datetime"
            )
        return given


def count(column: str | None = None, *, size: str | timedelta | None = None) -> Reduction:
    """The number of rows, or of values that are not null. SQL: `count(*)`, `count(x)`."""
    return Reduction("count", column, size)


def total(column: str, *, size: str | timedelta | None = None) -> Reduction:
    """The sum. Of floats it is exact and rounded once; of integers it wraps on overflow. SQL: `sum(x)`."""
    return Reduction("total", column, size)


def mean(column: str, *, size: str | timedelta | None = None) -> Reduction:
    """The arithmetic mean of the values as floats. SQL: `avg(CAST(x AS DOUBLE))`."""
    return Reduction("mean", column, size)


def minimum(column: str, *, size: str | timedelta | None = None) -> Reduction:
    """The least value. SQL: `min(x)`."""
    return Reduction("minimum", column, size)


def maximum(column: str, *, size: str | timedelta | None = None) -> Reduction:
    """The greatest value. SQL: `max(x)`."""
    return Reduction("maximum", column, size)


def reductions_of(given: Mapping[str, Any], what: str) -> tuple[tuple[str, Reduction], ...]:
    """Names and reductions as the user gave them. Raises `DefinitionError` when there is none or one is not one."""
    if not given:
        raise DefinitionError(f"{what}: nothing to compute; expected a reduction such as n=count() or x=mean('x')")
    for name, r in given.items():
        if not isinstance(r, Reduction):
            raise DefinitionError(
                f"{what}: {name} is {r!r}; expected a reduction: count(), total('x'), mean('x'), minimum('x') or "
                "maximum('x')"
            )
    return tuple(given.items())


# From scratch, in Polars. Sums of floats are gathered as lists first, for Polars does not round a sum once.


def gathered(r: Reduction, dtype: pl.DataType | None, column: str, rows: pl.Expr | None = None) -> pl.Expr:
    """What a group gathers for a reduction of a column; of the rows for which `rows` is true when it is given."""
    values = pl.col(column) if rows is None else pl.col(column).filter(rows)
    if r.column is None:
        return values.len().cast(INT)
    if r.kind == "count":
        return values.count().cast(INT)
    if r.kind == "minimum":
        return values.min()
    if r.kind == "maximum":
        return values.max()
    if r.kind == "mean" or dtype == FLOAT:
        return values.drop_nulls().cast(FLOAT)
    return pl.when(values.count() > 0).then(values.cast(INT).sum())


def finished(r: Reduction, dtype: pl.DataType | None, name: str) -> pl.Expr:
    """The result of a reduction, of what was gathered."""
    column = pl.col(name)
    if r.kind == "mean" or (r.kind == "total" and dtype == FLOAT):
        n = column.list.len()
        exact = column.map_elements(_fsum, return_dtype=FLOAT)
        column = pl.when(n > 0).then(exact if r.kind == "total" else exact / n).fill_nan(None).alias(name)
    return column


def _fsum(values: pl.Series) -> float:
    numbers = values.to_list()
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return float(sum(numbers))


# Channels and tables, for kernels.

MASK, EXTREME, RESTART, ALL = range(4)
"""Columns of the table of channels: TURN for floats and 0 for integers; whether a least or greatest value is wanted;
whether running sums may start again (nobody wants them from the beginning); whether a least or greatest value of all
time is wanted."""

KIND, CHANNEL, WINDOW, PLACE = range(4)
"""Columns of the table of reductions; rows are sorted by window, then channel."""


@njit(cache=True, forceinline=True)
def rank(word, mask, sign):  # type: ignore[no-untyped-def]
    """A number by which words compare as their values do (sign 1) or the other way (sign -1); null is least."""
    r = word ^ ((word >> 63) & mask)
    return r if sign > 0 or r == NULL else -r


class Plan:
    """Reductions over rows of a schema as tables: which channels they need, and what is computed of them.

    sizes: for each reduction its window (a number; all 0 where there is one), and for each window whether it has no
    lower bound.
    """

    def __init__(
        self,
        reductions: Sequence[tuple[str, Reduction]],
        schema: Schema,
        windows: Sequence[int],
        forever: Sequence[bool],
    ) -> None:
        self.out = {name: r.type_in(schema, name) for name, r in reductions}
        channels: dict[tuple[str, str], int] = {}
        table = []
        for place, ((_, r), w) in enumerate(zip(reductions, windows, strict=True)):
            if r.column is None:
                table.append((ROWS, -1, w, place))
                continue
            given = schema[r.column]
            form = "float" if r.kind == "mean" or given == FLOAT else "mark" if given == STRING else "int"
            c = channels.setdefault((r.column, form), len(channels))
            table.append((_CODES[r.kind], c, w, place))
        self.sources = list(channels)
        self.what = np.array(sorted(table, key=lambda t: (t[2], t[1], t[0])), np.int64).reshape(-1, 4)
        self.channels = np.zeros((len(channels), 4), np.int64)
        for c, (_, form) in enumerate(channels):
            mine = [t for t in table if t[1] == c]
            extreme = [t for t in mine if t[0] in (MINIMUM, MAXIMUM)]
            self.channels[c] = (
                TURN if form == "float" else 0,
                bool(extreme),
                not any(forever[t[2]] for t in mine),
                any(forever[t[2]] for t in extreme),
            )

    def words(self, columns: Columns, n: int) -> Ints:
        """The channels of n rows."""
        out = np.empty((n, len(self.sources)), np.int64)
        for c, (name, form) in enumerate(self.sources):
            a = columns[name]
            if form == "mark":
                out[:, c] = np.where(is_null(a), NULL, 0)
            elif form == "int":
                out[:, c] = _widened(a) if a.dtype == np.int8 else a
            elif a.dtype == np.float64:
                out[:, c] = _bits(a)
            else:
                floats = a.astype(np.float64)
                floats[is_null(a)] = np.nan
                out[:, c] = _bits(floats)
        return out

    def columns(self, words: Ints) -> Columns:
        """The columns of results."""
        out = {}
        for i, (name, dtype) in enumerate(self.out.items()):
            a = words[:, i]
            if dtype == FLOAT:
                out[name] = np.ascontiguousarray(a).view(np.float64)
            elif dtype == BOOL:
                out[name] = np.where(a == NULL, NULL_BOOL, a).astype(np.int8)
            else:
                out[name] = np.ascontiguousarray(a)
        return out


def _bits(a: Array) -> Ints:
    """The bits of floats as integers; 0.0 and -0.0 are the same, and so are all nans."""
    return np.where(a == a, (a + 0.0).view(np.int64), FLOAT_NULL)


def _widened(a: Array) -> Ints:
    return np.where(a == NULL_BOOL, NULL, a.astype(np.int64))
