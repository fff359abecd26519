"""Messages about keyed rows: what `latest` and `join` know of them.

A message has the columns of a row and a Boolean column `deleted`:

| `deleted` | the message says                                                                                     |
| --------- | ---------------------------------------------------------------------------------------------------- |
| false     | that its key has this row now                                                                        |
| true      | that its key has no row now; with a null key (all its columns) that no key has                        |
| null      | as false, but a String cell that is `UNAVAILABLE` (no key column) is *untold*: it is as it was before |

An untold cell has the value that it has in the message before it of the same key, which may be untold itself; null when
there is none, or when that one is `deleted`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from operators.delta import AT, NULL_BOOL, POS, STRING, Columns, Schema

DELETED = "deleted"
UNAVAILABLE = "__debezium_unavailable_value"


def texts(schema: Schema, by: Sequence[str]) -> list[str]:
    """The columns whose cells can be untold."""
    return [n for n, t in schema.items() if t == STRING and n not in by]


def untold(columns: Columns, names: Sequence[str]) -> npt.NDArray[np.bool_] | None:
    """For each message and each of these columns whether the cell is untold; None when none is."""
    if not names or not (partial := columns[DELETED] == NULL_BOOL).any():
        return None
    found = np.zeros((len(partial), len(names)), np.bool_)
    some = np.flatnonzero(partial)
    for j, name in enumerate(names):
        found[some, j] = columns[name][some] == UNAVAILABLE
    return found if found.any() else None


def completed(messages: pl.LazyFrame, by: Sequence[str], by_at: bool = True) -> pl.LazyFrame:
    """The messages with untold cells filled, in order: by (at, pos), or by position alone."""
    schema = {n: t for n, t in messages.collect_schema().items() if n not in (AT, POS)}
    deleted = pl.col(DELETED).fill_null(False)
    everything = deleted & pl.all_horizontal(pl.col(n).is_null() for n in by)
    ordered = messages.sort(*((AT, POS) if by_at else (POS,))).with_columns(_life=everything.cum_sum())

    def filled(name: str) -> pl.Expr:
        told = pl.col(DELETED).is_not_null() | pl.col(name).ne_missing(UNAVAILABLE)
        cell = pl.when(told).then(pl.struct(pl.when(~deleted).then(pl.col(name)).alias("cell")))
        before = cell.forward_fill().over([*by, "_life"]).struct.field("cell")
        return pl.when(told).then(pl.col(name)).otherwise(before).alias(name)

    return ordered.with_columns(map(filled, texts(schema, by))).drop("_life")
