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

from operators.delta import AT, BEGINNING, FLOAT, INT, POS, STRING, Schema
from operators.joining import Choice, Chosen, Meeting, chosen, key_columns, renamed, right_input
from operators.operator import Maintained, Named, Operator, Relation, microseconds


@dataclass(frozen=True, eq=False)
class JoinAsof(Operator):
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

    right: Relation
    on: tuple[str, ...]
    right_on: tuple[str, ...]
    tolerance: int | None
    columns: Chosen | None
    prefix: str

    @property
    def others(self) -> tuple[Relation, ...]:
        return (self.right,)

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return self.on, self.right_on

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "right": self.right.name,
            "on": list(self.on),
            "right_on": list(self.right_on),
            "tolerance": self.tolerance,
            "columns": None if self.columns is None else [list(c) for c in self.columns],
            "prefix": self.prefix,
        }

    def _chosen(self, inputs: Sequence[Schema]) -> Chosen:
        return chosen(inputs, self.on, self.right_on, self.columns, self.prefix, None, "join_asof")

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        return {**inputs[0], **{new: inputs[1][old] for new, old in self._chosen(inputs)}}

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        left, right = relations
        columns = self._chosen([dict(left.collect_schema()), _columns(right)])
        rows = left.with_row_index("_row")
        found = right.select(
            *(pl.col(n).alias(f"_key{i}") for i, n in enumerate(self.right_on)),
            *(pl.col(old).alias(new) for new, old in columns),
            _r_at=pl.col(AT),
            _r_pos=pl.col(POS),
        )
        met = pl.col("_r_at") <= pl.col(AT)
        if self.tolerance is not None:
            met &= pl.col("_r_at") >= pl.max_horizontal(AT, BEGINNING + self.tolerance) - self.tolerance
        last = (
            rows.select("_row", AT, *self.on)
            .join(found, left_on=self.on, right_on=[f"_key{i}" for i in range(len(self.on))])
            .filter(met)
            .sort("_r_at", "_r_pos")
            .unique("_row", keep="last", maintain_order=True)
        )
        added = [new for new, _ in columns]
        return rows.join(last.select("_row", *added), on="_row", how="left").drop("_row")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        reach = -1 if self.tolerance is None else self.tolerance
        return Meeting(self.keys, inputs, self._chosen(inputs), reach=reach)

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


def _columns(relation: pl.LazyFrame) -> Schema:
    return {n: t for n, t in relation.collect_schema().items() if n not in (AT, POS)}


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
    left_on, found_on = key_columns(on, right_on, "join_asof")
    limit = None if tolerance is None else microseconds(tolerance, "join_asof: tolerance")
    names = renamed(columns, prefix, "join_asof")
    return JoinAsof(right_input(right, "join_asof"), left_on, found_on, limit, names, prefix)
