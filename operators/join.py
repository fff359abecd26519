"""JOIN: each row with the row that a keyed table had for its key at its time.

    join(T)(L) = for each row l of L the version v of T with the same key and the greatest (at, pos) such that
                 v.at <= l.at; nulls when there is none, or when v is `deleted`

The right input is the stream of the table's versions: rows that are only ever inserted, with a Boolean column
`deleted` (true: from then on the key has no row), which is not among the columns of the result. A row of a table that
was there from the start has `at` = the beginning of time.

A deleted version whose key is null (all its columns) deletes every key: no version before it, in the order of
(at, pos), is seen at or after its `at`.

A later version does not rewrite what older rows saw, so training and serving see the same; a version that comes late
corrects the rows it should have been seen by. What a version leaves untold (`operators/message.py`) it has from the
version before it, so a version that comes late also corrects those that follow it. A null key meets nothing. Versions
are kept from the last one before the horizon on: a table does not expire.
"""

from __future__ import annotations

from bisect import bisect_left
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
    Array,
    Columns,
    Delta,
    Ints,
    Schema,
    concat,
    is_null,
    nulls,
)
from operators.joining import Choice, Chosen, Joined, Meeting, declared
from operators.message import DELETED, completed, texts, untold
from operators.operator import DefinitionError, Maintained, Named, Operator, Relation


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
    outer: ClassVar[bool] = True

    hidden: ClassVar[str | None] = DELETED

    def chosen(self, inputs: Sequence[Schema]) -> Chosen:
        if inputs[1].get(DELETED) != BOOL:
            raise DefinitionError(
                f"join: {self.right.name!r} has no Boolean column {DELETED!r}; expected a table, "
                "for a stream use join_asof"
            )
        return super().chosen(inputs)

    @property
    def reach(self) -> int | None:
        return 0

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        versions = completed(relations[1], self.right_on)
        rows, found = self.pairs([relations[0], versions], pl.col("_r_at") <= pl.col(AT))
        last = found.unique("_row", keep="last", maintain_order=True)
        end_at, end_pos = pl.col("_end_at"), pl.col("_end_pos")
        ends = relations[1].filter(pl.col(DELETED), *(pl.col(k).is_null() for k in self.right_on))
        ended = (
            last.join(ends.select(_end_at=AT, _end_pos=POS), how="cross")
            .filter(end_at <= pl.col(AT))
            .filter((end_at > pl.col("_r_at")) | ((end_at == pl.col("_r_at")) & (end_pos > pl.col("_r_pos"))))
        )
        valid = last.filter(~pl.col("_hidden").fill_null(False)).join(ended, on="_row", how="anti")
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

    ends: their (at, pos), as long as a version before them can still come. partial: per slot the (at, pos) of versions
    with untold cells and which these are, as long as a version before them can still come.
    """

    def __init__(
        self, keys: Sequence[Sequence[str]], inputs: Sequence[Schema], columns: Chosen, *, hidden: str
    ) -> None:
        super().__init__(keys, inputs, columns, hidden=hidden)
        self.versions = inputs[1]
        self.ends = np.empty((0, 2), np.int64)
        self.texts = [c for c in texts(self.versions, self.key_names[1]) if c in {old for _, old in columns}]
        self.partial: dict[int, dict[tuple[int, int], list[bool]]] = {}

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
            right, r_slot = self._completed(right, r_slot)
        return super().step([left, right], [slot, r_slot], horizon)

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        self.ends = self.ends[self.ends[:, 0] >= horizon]
        if self.partial and horizon > BEGINNING:
            kept = {s: {v: u for v, u in some.items() if v[0] >= horizon} for s, some in self.partial.items()}
            self.partial = {s: some for s, some in kept.items() if some}
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

    def _completed(self, right: Delta, slot: Ints) -> tuple[Delta, Ints]:
        """The versions with untold cells filled, and what corrects those that follow them."""
        missing = untold(right.columns, self.texts)
        if missing is None and not self.partial:
            return right, slot
        missing = np.zeros((len(right), len(self.texts)), np.bool_) if missing is None else missing
        some = np.isin(slot, [*self.partial, *slot[missing.any(1)].tolist()])
        for name in self.key_names[1]:
            some &= ~is_null(right.columns[name])
        columns = {**right.columns, **{n: right.columns[n].copy() for n in self.texts}}
        fixes = [self._walk(s, np.flatnonzero(some & (slot == s)), right, missing, columns) for s in _each(slot[some])]
        right = right.with_columns(columns)  # comes last: a deletion takes out what it hides for good
        return concat([*(d for d, _ in fixes), right]), np.concatenate([*(where for _, where in fixes), slot])

    def _walk(self, s: int, mine: Ints, right: Delta, missing: Array, columns: Columns) -> tuple[Delta, Ints]:
        """Go through the versions of a slot from the first of these new ones on, and fill their cells in `columns`.

        Returns what takes back those that were there and are others now, and brings them again.
        """
        head, tail = self.right.runs[s, 2:].tolist()
        there: list[list[int]] = self.right.slab[head:tail].tolist()
        new = sorted((int(right.at[i]), int(right.pos[i]), i) for i in mine.tolist())
        begin = bisect_left(there, [*new[0][:2]], key=lambda v: v[:2])
        stored = self._stored([row for _, _, row, _ in there])
        now: list[Any] = stored[begin - 1] if begin and not there[begin - 1][3] else [None] * len(self.texts)
        partial, cause = self.partial.pop(s, {}), BEGINNING
        fixed: list[tuple[int, int, int, int]] = []
        values: list[list[Any]] = []
        ways = [(*v[:2], -1, n) for n, v in enumerate(there[begin:], begin)] + [(*v, -1) for v in new]
        for at, pos, i, n in sorted(ways):
            if i >= 0:
                cause = max(cause, int(right.seq[i]))
                if right.columns[DELETED][i] == 1:
                    now = [None] * len(self.texts)
                    continue
                lack = missing[i].tolist()
                now = [b if u else columns[c][i] for b, u, c in zip(now, lack, self.texts, strict=True)]
                for c, value in zip(self.texts, now, strict=True):
                    columns[c][i] = value
                if any(lack):
                    partial[at, pos] = lack
                continue
            lack = partial.get((at, pos), [False] * len(self.texts))
            if there[n][3]:
                now = [None] * len(self.texts)
                continue
            now = [b if u else v for b, u, v in zip(now, lack, stored[n], strict=True)]
            if now != stored[n]:
                fixed.append((at, pos, there[n][2], cause))
                values.append(now)
        if partial:
            self.partial[s] = partial
        return self._again(s, fixed, values)

    def _stored(self, rows: list[int]) -> list[list[Any]]:
        """The texts of versions that are kept."""
        names = {old: new for new, old in self.chosen}
        cells = [self.cells.columns[names[c]][rows].tolist() for c in self.texts]
        return [list(v) for v in zip(*cells, strict=True)]

    def _again(self, s: int, fixed: list[tuple[int, int, int, int]], values: list[list[Any]]) -> tuple[Delta, Ints]:
        """Versions that are kept at a slot taken back and brought again with other texts."""
        at, pos, rows, seq = np.array(fixed, np.int64).reshape(-1, 4).T.repeat(2, axis=1)
        n = len(rows)
        columns = {c: nulls(n, t) for c, t in self.versions.items()}
        columns[DELETED] = np.zeros(n, np.int8)
        for new, old in self.chosen:
            columns[old] = self.cells.columns[new][rows]
        for j, c in enumerate(self.texts):
            columns[c][1::2] = [v[j] for v in values]
        names, key = self.key_names[1], self.slots.keys([s])[0]
        for name, value in zip(names, key if len(names) > 1 else (key,), strict=True):
            columns[name] = np.full(n, value, columns[name].dtype)
        return Delta(columns, np.resize([-1, 1], n), at, pos, seq), np.full(n, s, np.int64)

    def arrays(self) -> dict[str, Any]:
        return {**super().arrays(), "ends": self.ends, "partial": self.partial}

    def load(self, arrays: dict[str, Any]) -> None:
        super().load(arrays)
        self.ends, self.partial = arrays["ends"], arrays["partial"]


def _each(slots: Ints) -> list[int]:
    found: list[int] = np.unique(slots).tolist()
    return found


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
