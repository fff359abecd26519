"""JOIN: each row with the row that a keyed table had for its key at its time.

    join(T)(L) = for each row l of L the version v of T with the same key and the greatest (at, pos) such that
                 v.at <= l.at; nulls when there is none, or when v is `deleted`

The right input is the stream of the table's versions: rows that are only ever inserted, with a Boolean column
`deleted` (true: from then on the key has no row), which is not among the columns of the result. A row of a table that
was there from the start has `at` = the beginning of time.

A deleted version whose key is null (all its columns) deletes every key: no version before it, in the order of
(at, pos), is seen at or after its `at`.

A later version does not rewrite what older rows saw, so training and serving see the same; a version that comes late
corrects the rows it should have been seen by. A null key meets nothing. Versions are kept from the last one before
the horizon on: a table does not expire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

from operators.delta import (
    AT,
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    POS,
    STRING,
    Delta,
    Ints,
    Schema,
    concat,
    is_null,
    nulls,
)
from operators.joining import Choice, Chosen, Joined, Meeting, declared
from operators.operator import DefinitionError, Maintained, Named, Operator, Relation

DELETED = "deleted"


@dataclass(frozen=True, eq=False)
class Join(Joined):
    """Adds to each row the columns of its key in a table, as the table was at that time.

    SQL, but for versions that delete every key: `SELECT l.*, CASE WHEN NOT v.deleted THEN v.seats END AS seats
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

    hidden: ClassVar[str | None] = DELETED

    def chosen(self, inputs: Sequence[Schema]) -> Chosen:
        if inputs[1].get(DELETED) != BOOL:
            raise DefinitionError(
                f"join: {self.right.name!r} has no Boolean column {DELETED!r}; expected a table, "
                "for a stream use join_asof"
            )
        return super().chosen(inputs)

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        rows, found = self.pairs(relations, pl.col("_r_at") <= pl.col(AT))
        last = found.unique("_row", keep="last", maintain_order=True)
        end_at, end_pos = pl.col("_end_at"), pl.col("_end_pos")
        ends = relations[1].filter(pl.col(DELETED), *(pl.col(k).is_null() for k in self.right_on))
        ended = (
            last.join(ends.select(_end_at=AT, _end_pos=POS), how="cross")
            .filter(end_at <= pl.col(AT))
            .filter((end_at > pl.col("_r_at")) | ((end_at == pl.col("_r_at")) & (end_pos > pl.col("_r_pos"))))
        )
        valid = last.filter(~pl.col("_hidden")).join(ended, on="_row", how="anti")
        return rows.join(valid.drop(AT, "_r_at", "_r_pos", "_hidden"), on="_row", how="left").drop("_row")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Versions(self.keys, inputs, self.chosen(inputs), hidden=DELETED)

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


class _Versions(Meeting):
    """A version that deletes every key is a deleted version of each key that has one, and of each that gets one.

    ends: their (at, pos), as long as a version before them can still come.
    """

    def __init__(
        self, keys: Sequence[Sequence[str]], inputs: Sequence[Schema], columns: Chosen, *, hidden: str
    ) -> None:
        super().__init__(keys, inputs, columns, hidden=hidden)
        self.versions = inputs[1]
        self.ends = np.empty((0, 2), np.int64)

    def begins(self, deltas: Sequence[Delta], slots: Sequence[Ints]) -> Ints:
        """A wave begins with a version that deletes every key, for it meets left rows of all of them."""
        begins, ends = super().begins(deltas, slots), deltas[1].seq[self._of_all_keys(deltas[1])]
        if not len(ends):
            return begins
        least = min(int(d.seq[0]) for d in deltas if len(d))
        return np.union1d(begins, ends[ends > least])

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        (left, right), (slot, r_slot) = deltas, slots
        if len(right):
            there = self.right.runs[:, 2] < self.right.runs[:, 3]
            mine = np.unique(r_slot)
            whole = self._of_all_keys(right)
            added = [self._end(mine[~there[mine]], at, pos, int(right.seq[0])) for at, pos in self.ends.tolist()]
            for at, pos, seq in zip(right.at[whole], right.pos[whole], right.seq[whole], strict=True):
                added.append(self._end(np.union1d(np.flatnonzero(there), mine), at, pos, seq))
            self.ends = np.concatenate([self.ends, np.stack([right.at[whole], right.pos[whole]], 1)])
            if added:
                right = concat([*(delta for delta, _ in added), right])
                r_slot = np.concatenate([*(where for _, where in added), r_slot])
        return super().step([left, right], [slot, r_slot], horizon)

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        self.ends = self.ends[self.ends[:, 0] >= horizon]
        return out

    def _of_all_keys(self, right: Delta) -> Ints:
        """The versions that delete every key."""
        if not len(right) or not (gone := right.columns[DELETED] == 1).any():
            return np.empty(0, np.int64)
        return np.flatnonzero(gone & np.logical_and.reduce([is_null(right.columns[k]) for k in self.key_names[1]]))

    def _end(self, slots: Ints, at: int, pos: int, seq: int) -> tuple[Delta, Ints]:
        """A deleted version of the keys at these slots."""
        n, names, keys = len(slots), self.key_names[1], self.slots.keys(slots.tolist())
        columns = {c: nulls(n, t) for c, t in self.versions.items()}
        columns[DELETED] = np.ones(n, np.int8)
        for i, name in enumerate(names):
            columns[name][:] = [k[i] for k in keys] if len(names) > 1 else keys
        return Delta(columns, np.ones(n, np.int64), *(np.full(n, v, np.int64) for v in (at, pos, seq))), slots

    def arrays(self) -> dict[str, Any]:
        return {**super().arrays(), "ends": self.ends}

    def load(self, arrays: dict[str, Any]) -> None:
        super().load(arrays)
        self.ends = arrays["ends"]


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
    return Join(*declared(table, on, right_on, columns, prefix, "join"))
