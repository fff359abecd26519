"""A delta: weighted rows in columns, the only thing that flows.

A relation is a multiset of rows; a delta is a change of it: weight +1 inserts a row, -1 retracts it.
Every row carries

- `at`: event time, microseconds UTC; what "when" means;
- `pos`: where the row came from (source, partition, offset in one number). `(at, pos)` identifies a live row
  of a relation and orders its rows, so a retraction carries the `at` and `pos` of the row it takes back;
- `seq`: when the change became known, its number in the order of knowledge. A correction has the `seq` of the
  change that caused it. The rows of a delta are in the order of `seq`; rows of one `seq` are one atomic change.

Columns are numpy arrays of five kinds; null is one value of each, so that a column is a single array:

| Polars type           | numpy   | null                    |
| --------------------- | ------- | ----------------------- |
| Int64                 | int64   | the least int64         |
| Float64               | float64 | nan (nan *is* null)     |
| String                | object  | None                    |
| Boolean               | int8    | the least int8          |
| Datetime("us", "UTC") | int64   | the least int64         |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Columns = dict[str, Array]
Schema = dict[str, pl.DataType]

NULL = int(np.iinfo(np.int64).min)
NULL_BOOL = int(np.iinfo(np.int8).min)
BEGINNING = NULL + 1
"""The event time before every other: of table rows that were there from the start."""

INT, FLOAT, STRING, BOOL = pl.Int64(), pl.Float64(), pl.String(), pl.Boolean()
TIME = pl.Datetime("us", "UTC")
_NUMPY: dict[pl.DataType, npt.DTypeLike] = {
    INT: np.int64,
    FLOAT: np.float64,
    STRING: object,
    BOOL: np.int8,
    TIME: np.int64,
}
_PYTHON: dict[Any, pl.DataType] = {int: INT, float: FLOAT, str: STRING, bool: BOOL, datetime: TIME}

AT, POS = "_at", "_pos"
"""Names of event time and position when a relation is a Polars frame."""


def type_of(given: Any) -> pl.DataType:
    """The column type meant by `int`, `float`, `str`, `bool`, `datetime` or a Polars type.

    Raises `TypeError` for a type that the engine does not keep.
    """
    if (found := _PYTHON.get(given)) is not None:
        return found
    if isinstance(given, type) and issubclass(given, pl.DataType):
        given = TIME if given is pl.Datetime else given()
    if isinstance(given, pl.DataType) and given in _NUMPY:
        return given
    raise TypeError(
        f"a column cannot have type {given!r}: expected int, float, str, bool, datetime "
        "or the Polars types Int64, Float64, String, Boolean, Datetime('us', 'UTC')"
    )


def numpy_type(dtype: pl.DataType) -> npt.DTypeLike:
    """The numpy type that holds a column of this Polars type."""
    return _NUMPY[dtype]


def null_of(dtype: pl.DataType) -> Any:
    """The value that stands for null in a column of this type."""
    return {INT: NULL, FLOAT: np.nan, STRING: None, BOOL: NULL_BOOL, TIME: NULL}[dtype]


def nulls(n: int, dtype: pl.DataType) -> Array:
    """A column of n nulls."""
    return np.full(n, null_of(dtype), _NUMPY[dtype])


def is_null(a: Array) -> npt.NDArray[np.bool_]:
    """Where a column is null."""
    if a.dtype == object:
        absent: npt.NDArray[np.bool_] = (a == np.array(None)).astype(np.bool_)
        return absent
    mask: npt.NDArray[np.bool_] = a != a if a.dtype == np.float64 else a == np.iinfo(a.dtype).min
    return mask


def to_series(name: str, a: Array, dtype: pl.DataType) -> pl.Series:
    """The column as a Polars series of its type."""
    if dtype == STRING:
        return pl.Series(name, a.tolist(), STRING)
    if dtype == FLOAT:
        return pl.Series(name, a, nan_to_null=True)
    missing = is_null(a)
    if dtype == BOOL:
        s = pl.Series(name, a == 1)
    else:
        s = pl.Series(name, a) if dtype == INT else pl.Series(name, a).cast(TIME)
    return s.set(pl.Series(missing), None) if missing.any() else s


def to_array(s: pl.Series) -> Array:
    """A Polars series of one of the five types as a column. May share the series' memory: do not write to it."""
    dtype = s.dtype
    if dtype == STRING:
        out = np.empty(len(s), object)
        out[:] = s.to_list()
        return out
    if dtype == BOOL:
        s = s.cast(pl.Int8)
    elif dtype == TIME:
        s = s.cast(INT)
    if s.null_count():
        s = s.fill_null(null_of(FLOAT if dtype == FLOAT else BOOL if dtype == BOOL else INT))
    return s.to_numpy()


def to_column(values: Iterable[Any], dtype: pl.DataType) -> Array:
    """Python values (None for null) as a column."""
    return to_array(pl.Series(list(values), dtype=dtype, strict=True))


def _zeros(n: int) -> Ints:
    return np.zeros(n, np.int64)


@dataclass(slots=True, eq=False)
class Delta:
    """Rows that enter (weight +1) and leave (weight -1) a relation, in the order in which that became known."""

    columns: Columns
    weight: Ints = field(default_factory=lambda: _zeros(0))
    at: Ints = field(default_factory=lambda: _zeros(0))
    pos: Ints = field(default_factory=lambda: _zeros(0))
    seq: Ints = field(default_factory=lambda: _zeros(0))

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, index: npt.NDArray[Any] | slice) -> Delta:
        """The rows numbered (or marked) by `index`, in its order."""
        return Delta(
            {n: c[index] for n, c in self.columns.items()},
            self.weight[index],
            self.at[index],
            self.pos[index],
            self.seq[index],
        )

    def with_columns(self, columns: Columns) -> Delta:
        """The same rows with other columns."""
        return Delta(columns, self.weight, self.at, self.pos, self.seq)

    def frame(self, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """The columns as a Polars frame (without weight, at, pos, seq)."""
        return pl.DataFrame([to_series(n, self.columns[n], t) for n, t in schema.items()])


def empty(schema: Mapping[str, pl.DataType]) -> Delta:
    """A delta without rows."""
    return Delta({n: np.empty(0, _NUMPY[t]) for n, t in schema.items()})


def concat(deltas: Sequence[Delta]) -> Delta:
    """One delta of the rows of several (at least one), one after another."""
    some = [d for d in deltas if len(d)]
    if len(some) <= 1:
        return some[0] if some else deltas[0]
    return Delta(
        {n: np.concatenate([d.columns[n] for d in some]) for n in some[0].columns},
        np.concatenate([d.weight for d in some]),
        np.concatenate([d.at for d in some]),
        np.concatenate([d.pos for d in some]),
        np.concatenate([d.seq for d in some]),
    )


def consolidated(delta: Delta) -> Delta:
    """The net change of a delta: a row that came and went is left out, as is one that was replaced by its like.

    Rows of one (at, pos) come and go in turns; of these only the first, if it goes, and the last, if it comes, are
    left. They keep their order and their `seq`.
    """
    if len(delta) < 2 or not (delta.weight < 0).any():
        return delta
    order = np.lexsort((delta.pos, delta.at))
    at, pos, gone = delta.at[order], delta.pos[order], delta.weight[order] < 0
    other = (at[1:] != at[:-1]) | (pos[1:] != pos[:-1])
    first, last = np.concatenate([[True], other]), np.concatenate([other, [True]])
    keep = (first & gone) | (last & ~gone)
    old, new = np.flatnonzero(keep & gone), np.flatnonzero(keep & ~gone)
    group = np.cumsum(first)
    _, a, b = np.intersect1d(group[old], group[new], assume_unique=True, return_indices=True)
    old, new = old[a], new[b]
    same = np.ones(len(old), np.bool_)
    for column in delta.columns.values():
        x, y = column[order[old]], column[order[new]]
        alike = (x == y).astype(np.bool_)
        if x.dtype == np.float64:
            alike &= np.signbit(x) == np.signbit(y)  # 0.0 is not -0.0
        same &= alike | (is_null(x) & is_null(y))
    keep[old[same]] = keep[new[same]] = False
    return delta.take(np.sort(order[keep]))


def net(delta: Delta, seq: int) -> Delta:
    """What a delta comes to, as one change that becomes known at `seq`: sorted by (at, pos), what leaves first."""
    delta = consolidated(delta)
    delta = delta.take(np.lexsort((delta.pos, delta.at, delta.weight > 0)))
    delta.seq = np.full(len(delta), seq, np.int64)
    return delta


def without_idle(delta: Delta) -> Delta:
    """The delta without those corrections that put a row in the place of an equal one."""
    if not (delta.weight < 0).any():
        return delta
    causes = np.unique(delta.seq[delta.weight < 0])
    nearest = np.minimum(np.searchsorted(causes, delta.seq), len(causes) - 1)
    touched = np.flatnonzero(causes[nearest] == delta.seq)
    some = delta.take(touched)
    order = np.lexsort((some.weight, some.pos, some.at, some.seq))
    old, new = order[:-1], order[1:]
    pair = (some.weight[old] < 0) & (some.weight[new] > 0)
    for a in (some.seq, some.at, some.pos, *some.columns.values()):
        x, y = a[old], a[new]
        pair &= ((x == y) | (is_null(x) & is_null(y))).astype(np.bool_)
    if not pair.any():
        return delta
    stays = np.ones(len(delta), np.bool_)
    stays[touched[old[pair]]] = stays[touched[new[pair]]] = False
    return delta.take(stays)


def in_order(delta: Delta) -> Delta:
    """The same rows sorted by `seq`; rows of one `seq` stay in the order they have."""
    if len(delta) < 2 or bool((delta.seq[1:] >= delta.seq[:-1]).all()):
        return delta
    return delta.take(np.argsort(delta.seq, kind="stable"))


def accumulate(deltas: Iterable[Delta], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The relation that a sequence of deltas adds up to: a frame of `schema` and `_at`, `_pos`, sorted by them.

    A row of weight n appears n times. Raises `ValueError` when a weight is negative: something was retracted
    that was never there.
    """
    frames = [
        d.frame(schema).with_columns(pl.Series(AT, d.at), pl.Series(POS, d.pos), pl.Series("_weight", d.weight))
        for d in deltas
    ]
    names = [*schema, AT, POS]
    if not frames:
        return pl.DataFrame(schema={**schema, AT: INT, POS: INT})
    net = pl.concat(frames).group_by(names).agg(pl.col("_weight").sum()).filter(pl.col("_weight") != 0)
    if bad := net.filter(pl.col("_weight") < 0).rows(named=True):
        raise ValueError(f"a row was retracted that is not there: {bad[0]!r}")
    return net.select(pl.col(names).repeat_by("_weight").explode()).sort(AT, POS, *schema)


def from_frame(
    frame: pl.DataFrame, schema: Mapping[str, pl.DataType], at: Ints, pos: Ints, seq: Ints, weight: Ints | None = None
) -> Delta:
    """A delta of the rows of a frame whose columns have the types of `schema`; inserts unless `weight` is given."""
    columns = {n: to_array(frame[n]) for n in schema}
    return Delta(columns, np.ones(len(at), np.int64) if weight is None else weight, at, pos, seq)
