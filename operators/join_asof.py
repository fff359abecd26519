"""JOIN_ASOF: each row with what the right input knew at its time.

    join_asof(R)(L) = for each row l of L the row r of R with the same key and the greatest (at, pos) such that
                      l.at - tolerance <= r.at <= l.at; nulls when there is none

Both bounds are inclusive. Of right rows with the same `at` the one with the greatest position counts. A null key meets
nothing. A right row that comes late, or is taken back, corrects the left rows from its own `at` up to the next right
row. Right rows are kept from the last one before the horizon on, with a tolerance only as far as that reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import polars as pl

from operators.delta import AT, BEGINNING, FLOAT, INT, STRING, Schema
from operators.joining import Choice, Joined, Meeting, declared
from operators.operator import Maintained, Named, Operator, Relation, microseconds


@dataclass(frozen=True, eq=False)
class JoinAsof(Joined):
    """Adds to each row the columns of the last right row of its key at or before it.

    SQL: `SELECT l.*, r.wind FROM l ASOF LEFT JOIN r ON l.origin = r.origin AND l.at >= r.at`, with a tolerance
    `... r.at >= l.at - tolerance` or else null.

    >>> import numpy as np
    >>> from operators.delta import Delta, empty, to_column
    >>> flight, weather = {"origin": STRING}, {"origin": STRING, "wind": INT}
    >>> def row(at, **cells):
    ...     one = np.array([1])
    ...     columns = {n: to_column([v], weather[n]) for n, v in cells.items()}
    ...     return Delta(columns, one, one * at, one, one * at)
    >>> kept = join_asof(Named("weather", weather), on="origin").start([flight, weather])
    >>> kept.apply([row(20, origin="JFK"), row(10, origin="JFK", wind=5)]).columns["wind"].tolist()
    [5]
    >>> out = kept.apply([empty(flight), row(15, origin="JFK", wind=9)])  # an observation that comes late
    >>> list(zip(out.weight.tolist(), out.columns["wind"].tolist(), out.at.tolist()))
    [(-1, 5, 20), (1, 9, 20)]
    """

    outer = True

    tolerance: int | None

    @property
    def reach(self) -> int | None:
        return 0

    @property
    def definition(self) -> dict[str, Any]:
        return {**super().definition, "tolerance": self.tolerance}

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        met = pl.col("_r_at") <= pl.col(AT)
        if self.tolerance is not None:
            met &= pl.col("_r_at") >= pl.max_horizontal(AT, BEGINNING + self.tolerance) - self.tolerance
        rows, found = self.pairs(relations, met)
        last = found.unique("_row", keep="last", maintain_order=True)
        return rows.join(last.drop(AT, "_r_at", "_r_pos"), on="_row", how="left").drop("_row")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        reach = -1 if self.tolerance is None else self.tolerance
        return Meeting(self.keys, inputs, self.chosen(inputs), reach=reach)

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        left: Schema = {"k": STRING, "x": INT}
        right: Schema = {"k": STRING, "y": FLOAT, "z": STRING}
        other: Schema = {"a": STRING, "b": INT, "y": INT}
        return [
            (join_asof(Named("right", right), on="k"), [left, right]),
            (join_asof(Named("right", right), on="k", tolerance="2h", columns=["z"], prefix="r_"), [left, right]),
            (join_asof(Named("right", right), on="k", tolerance="3us", columns={"t": "y"}), [left, right]),
            (join_asof(Named("other", other), on=["k", "x"], right_on=["a", "b"]), [left, other]),
        ]


def join_asof(
    right: Relation,
    *,
    on: str | Sequence[str],
    right_on: str | Sequence[str] | None = None,
    tolerance: str | timedelta | None = None,
    columns: Choice = None,
    prefix: str = "",
) -> JoinAsof:
    """Add to each row the columns of the last right row of its key at or before it; nulls when there is none.

    on: the key columns, right_on: what they are called on the right. tolerance: how much older than the row the right
    row may be, such as "3h". columns: the right columns to add, all but the key unless given; a dict gives them new
    names, {new: old}. prefix: put before the names of the added columns.

    Raises `DefinitionError` when a column is unknown or a name taken. SQL: `ASOF LEFT JOIN`.
    """
    limit = None if tolerance is None else microseconds(tolerance, "join_asof: tolerance")
    return JoinAsof(*declared(right, on, right_on, columns, prefix, "join_asof"), limit)
