"""JOIN: each row with the row that a keyed table had for its key at its time.

    join(T)(L) = for each row l of L the version v of T with the same key and the greatest (at, pos) such that
                 v.at <= l.at; nulls when there is none, or when v is `deleted`

The right input is the stream of the table's versions: rows that are only ever inserted, with a Boolean column
`deleted` (true: from then on the key has no row), which is not among the columns of the result. A row of a table that
was there from the start has `at` = the beginning of time.

A later version does not rewrite what older rows saw, so training and serving see the same; a version that comes late
corrects the rows it should have been seen by. A null key meets nothing. Versions are kept from the last one before
the horizon on: a table does not expire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from operators.delta import AT, BOOL, FLOAT, INT, POS, STRING, Schema
from operators.joining import Choice, Chosen, Meeting, chosen, key_columns, renamed, right_input
from operators.operator import DefinitionError, Maintained, Named, Operator, Relation

DELETED = "deleted"


@dataclass(frozen=True, eq=False)
class Join(Operator):
    """Adds to each row the columns of its key in a table, as the table was at that time.

    SQL: `SELECT l.*, CASE WHEN NOT v.deleted THEN v.seats END AS seats
    FROM l ASOF LEFT JOIN versions v ON l.tail = v.tail AND l.at >= v.at`

    >>> import numpy as np
    >>> from operators.delta import Delta, empty, to_column
    >>> flight, planes = {"tail": STRING}, {"tail": STRING, "seats": INT, "deleted": BOOL}
    >>> def row(at, schema, *cells):
    ...     one = np.array([1])
    ...     columns = {n: to_column([c], t) for (n, t), c in zip(schema.items(), cells)}
    ...     return Delta(columns, one, one * at, one, one * at)
    >>> kept = join(Named("planes", planes), on="tail").start([flight, planes])
    >>> kept.apply([row(20, flight, "N1"), row(10, planes, "N1", 180, False)]).columns["seats"].tolist()
    [180]
    >>> out = kept.apply([empty(flight), row(15, planes, "N1", 200, False)])  # a version that comes late
    >>> list(zip(out.weight.tolist(), out.columns["seats"].tolist(), out.at.tolist()))
    [(-1, 180, 20), (1, 200, 20)]
    """

    versions: ClassVar[bool] = True

    right: Relation
    on: tuple[str, ...]
    right_on: tuple[str, ...]
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
            "columns": None if self.columns is None else [list(c) for c in self.columns],
            "prefix": self.prefix,
        }

    def _chosen(self, inputs: Sequence[Schema]) -> Chosen:
        if inputs[1].get(DELETED) != BOOL:
            raise DefinitionError(
                f"join: {self.right.name!r} has no Boolean column {DELETED!r}; expected a table, "
                "for a stream use join_asof"
            )
        return chosen(inputs, self.on, self.right_on, self.columns, self.prefix, DELETED, "join")

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        return {**inputs[0], **{new: inputs[1][old] for new, old in self._chosen(inputs)}}

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        left, right = relations
        schemas = [{n: t for n, t in r.collect_schema().items() if n not in (AT, POS)} for r in relations]
        columns = self._chosen(schemas)
        rows = left.with_row_index("_row")
        versions = right.select(
            *(pl.col(n).alias(f"_key{i}") for i, n in enumerate(self.right_on)),
            *(pl.col(old).alias(new) for new, old in columns),
            _r_at=pl.col(AT),
            _r_pos=pl.col(POS),
            _deleted=pl.col(DELETED),
        )
        valid = (
            rows.select("_row", AT, *self.on)
            .join(versions, left_on=self.on, right_on=[f"_key{i}" for i in range(len(self.on))])
            .filter(pl.col("_r_at") <= pl.col(AT))
            .sort("_r_at", "_r_pos")
            .unique("_row", keep="last", maintain_order=True)
            .filter(~pl.col("_deleted"))
        )
        return rows.join(valid.select("_row", *(new for new, _ in columns)), on="_row", how="left").drop("_row")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return Meeting(self.keys, inputs, self._chosen(inputs), hidden=DELETED)

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        left: Schema = {"k": STRING, "x": INT}
        table: Schema = {"k": STRING, "y": FLOAT, "deleted": BOOL, "z": STRING}
        other: Schema = {"a": INT, "y": INT, "deleted": BOOL}
        return [
            (join(Named("table", table), on="k"), [left, table]),
            (join(Named("table", table), on="k", columns={"t": "z"}), [left, table]),
            (join(Named("other", other), on="x", right_on="a", prefix="o_"), [left, other]),
        ]


def join(
    table: Relation,
    *,
    on: str | Sequence[str],
    right_on: str | Sequence[str] | None = None,
    columns: Choice = None,
    prefix: str = "",
) -> Join:
    """Add to each row the columns of its key in a table, as the table was at the row's time; nulls when it has none.

    on: the key columns, right_on: what they are called in the table. columns: the table's columns to add, all but the
    key unless given; a dict gives them new names, {new: old}. prefix: put before the names of the added columns.

    Raises `DefinitionError` when a column is unknown, a name taken, or the right input is not a table.
    SQL: a temporal join, `FOR SYSTEM_TIME AS OF l.at`; or `ASOF LEFT JOIN` on the table's versions.
    """
    left_on, found_on = key_columns(on, right_on, "join")
    return Join(right_input(table, "join"), left_on, found_on, renamed(columns, prefix, "join"), prefix)
