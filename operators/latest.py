"""LATEST: the rows that a stream of upserts and deletes leaves.

    latest(by)(M) = for each key its newest message of M, unless that one is `deleted`

The input rows are messages about a key: its columns and a Boolean column `deleted`, which is not in the result. They
are only ever inserted. Newest means the greatest position, or with order="at" the greatest (at, pos). Each message that
is newest when it comes takes back the row of its key and brings its own (-old +new); one that comes behind a newer
message of its key changes nothing.

- A message with a null key (all its columns) that is `deleted` deletes every key: all older messages, also those still
  to come, count for nothing. Any other null key is a key like any other.
- With order="position" a String cell that is `__debezium_unavailable_value` means "as in the previous message of this
  key". It is resolved when the message comes; after a delete, or for a key not known, it becomes null.
- A deleted key is remembered until the horizon has passed the `at` of its delete, so that an older message that comes
  late stays hidden. With order="position" this relies on no message coming both behind a delete of greater position
  and after the horizon passed that delete; a log that is read in order never does so.
- A key that has a row is never forgotten, unless `keep` is given: then a key whose newest message is older than the
  horizon less `keep` is forgotten in silence. Its row stays in the result but is corrected and deleted no more, which
  is meant for long streams of rows that are corrected for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numba import njit

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
    is_null,
    null_of,
    numpy_type,
)
from operators.operator import DefinitionError, Maintained, Operator, as_names, fit_as_key, microseconds
from operators.state import Keyed, grown, nbytes
from operators.timeline import Sweep, appended, back

DELETED = "deleted"
UNAVAILABLE = "__debezium_unavailable_value"
Order = Literal["position", "at"]


@dataclass(frozen=True, eq=False)
class Latest(Operator):
    """Keeps the newest message of each key that is not deleted.

    SQL: `SELECT * EXCLUDE (deleted) FROM (SELECT * FROM m QUALIFY row_number() OVER (PARTITION BY id
    ORDER BY pos DESC) = 1) WHERE NOT deleted`

    >>> from operators.delta import to_column
    >>> kept = latest(by="id").start([{"id": STRING, "n": INT, "deleted": BOOL}])
    >>> def message(pos, n, deleted=False):
    ...     one = np.array([1])
    ...     columns = {"id": to_column(["a"], STRING), "n": to_column([n], INT), "deleted": to_column([deleted], BOOL)}
    ...     return [Delta(columns, one, one * pos, one * pos, one * pos)]
    >>> kept.apply(message(1, 7)).columns["n"].tolist()
    [7]
    >>> out = kept.apply(message(2, 8))
    >>> list(zip(out.weight.tolist(), out.columns["n"].tolist()))
    [(-1, 7), (1, 8)]
    >>> kept.apply(message(3, None, deleted=True)).weight.tolist()
    [-1]
    """

    by: tuple[str, ...]
    order: Order
    keep: int | None

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    @property
    def forgets(self) -> bool:
        return self.keep is not None

    def key(self, key: tuple[str, ...]) -> tuple[str, ...]:
        return self.by

    @property
    def definition(self) -> dict[str, Any]:
        return {"by": list(self.by), "order": self.order, "keep": self.keep}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        schema = inputs[0]
        fit_as_key(self.by, schema, "latest: by")
        if schema.get(DELETED) != BOOL:
            raise DefinitionError(
                f"latest: the column {DELETED!r} is {schema.get(DELETED)!r}; expected a Boolean column that is true "
                "for messages that delete their key"
            )
        if DELETED in self.by:
            raise DefinitionError(f"latest: by is {list(self.by)!r}; expected the key without {DELETED!r}")
        return {n: t for n, t in schema.items() if n != DELETED}

    def horizon(self, bound: int, inserts: bool = False) -> int:
        if inserts:
            return bound
        if self.keep is None:
            return BEGINNING  # a row is taken back by the next message of its key, however old it is
        return int(back(bound, self.keep))

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        messages = relations[0]
        names = [n for n in messages.collect_schema() if n != DELETED]
        deleted = pl.col(DELETED).fill_null(False)
        everything = deleted & pl.all_horizontal(pl.col(n).is_null() for n in self.by)
        standing = (
            messages.sort(*((POS,) if self.order == "position" else (AT, POS)))
            .with_columns(_deleted=deleted, _everything=everything, _deletions=everything.cum_sum())
            .filter(pl.col("_deletions") == pl.col("_everything").sum(), ~pl.col("_everything"))
        )
        if self.order == "position":
            life = [*self.by, pl.col("_deleted").cum_sum().over(self.by).alias("_life")]
            texts = [n for n, t in messages.collect_schema().items() if t == STRING and n not in self.by]
            standing = standing.with_columns(
                pl.when(pl.col("_deleted") | pl.col(n).is_null() | (pl.col(n) != UNAVAILABLE))
                .then(pl.concat_list(pl.when(~pl.col("_deleted")).then(pl.col(n))))
                .forward_fill()
                .over(life)
                .list.first()
                .alias(n)
                for n in texts
            )
        last = standing.unique(self.by, keep="last", maintain_order=True)
        return last.filter(~pl.col("_deleted")).select(names)

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Newest(self.by, self.schema(inputs), self.order == "at", self.keep)

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        schema: Schema = {"k": STRING, "x": INT, "deleted": BOOL, "y": FLOAT, "z": STRING}
        return [
            (latest(by="k"), [schema]),
            (latest(by="k", order="at"), [schema]),
            (latest(by=["k", "x"]), [schema]),
        ]


_LIVE, _GONE = 1, 2


@njit(cache=True)
def _older(by_at, at, pos, than_at, than_pos):  # type: ignore[no-untyped-def]
    """Whether a message is not newer than another."""
    return at < than_at or (at == than_at and pos <= than_pos) if by_at else pos <= than_pos


@njit(cache=True)
def _take_back(s, now, stand, s_at, s_pos, row, plus, lines, n):  # type: ignore[no-untyped-def]
    """Take back the row of a slot: one more line, or the line that brought it within this `seq` dropped."""
    if stand[s] != _LIVE:
        return lines, n
    if plus[s] > 0 and lines[plus[s] - 1, 4] == now:
        lines[plus[s] - 1, 1] = 0
        plus[s] = 0
        return lines, n
    source = row[s] - 1 if row[s] > 0 else -1 - s
    return _line(lines, n, source, -1, s_at[s], s_pos[s], now)


@njit(cache=True)
def _line(lines, n, source, weight, at, pos, seq):  # type: ignore[no-untyped-def]
    if n == lines.shape[0]:
        more = np.empty((2 * n, 5), np.int64)
        more[:n] = lines
        lines = more
    lines[n, 0], lines[n, 1], lines[n, 2], lines[n, 3], lines[n, 4] = source, weight, at, pos, seq
    return lines, n + 1


@njit(cache=True)
def _newest(by_at, slot, at, pos, seq, deleted, everything, stand, s_at, s_pos, row, plus, all_gone):  # type: ignore[no-untyped-def]
    """Take messages in one after another.

    stand, s_at, s_pos: per slot what its newest message is (0: none known), and where. row, plus: zeros, left as
    zeros: one more than the message that is newest, and than the line that brought it. all_gone: at, pos of the newest
    message that deletes everything, and whether there is one.

    Returns the lines of the result (source, weight or 0, at, pos, seq), where the source is a message or, when
    negative, -1 - the slot whose row it is; for each message the source of the one before it, or the least number;
    the slots whose row is another now, and the message it comes from; and the slots that were deleted with everything.
    """
    n = slot.shape[0]
    lines, count = np.empty((2 * n, 5), np.int64), 0
    before = np.full(n, BEGINNING, np.int64)
    swept, sweeps = np.empty(16, np.int64), 0
    for i in range(n):
        if all_gone[2] == 1 and _older(by_at, at[i], pos[i], all_gone[0], all_gone[1]):
            continue
        if everything[i]:
            all_gone[0], all_gone[1], all_gone[2] = at[i], pos[i], 1
            for s in range(stand.shape[0]):
                if stand[s] > 0 and _older(by_at, s_at[s], s_pos[s], at[i], pos[i]):
                    lines, count = _take_back(s, seq[i], stand, s_at, s_pos, row, plus, lines, count)
                    stand[s] = 0
                    swept = appended(swept, sweeps, s)
                    sweeps += 1
            continue
        s = slot[i]
        if stand[s] > 0 and _older(by_at, at[i], pos[i], s_at[s], s_pos[s]):
            continue
        if stand[s] == _LIVE:
            before[i] = row[s] - 1 if row[s] > 0 else -1 - s
        lines, count = _take_back(s, seq[i], stand, s_at, s_pos, row, plus, lines, count)
        stand[s], s_at[s], s_pos[s] = _GONE if deleted[i] else _LIVE, at[i], pos[i]
        row[s], plus[s] = i + 1, 0
        if not deleted[i]:
            lines, count = _line(lines, count, i, 1, at[i], pos[i], seq[i])
            plus[s] = count
    slots, sources, m = np.empty(n, np.int64), np.empty(n, np.int64), 0
    for i in range(n):
        s = slot[i]
        if row[s] > 0 and stand[s] == _LIVE:
            slots[m], sources[m] = s, row[s] - 1
            m += 1
        row[s] = plus[s] = 0
    return lines[:count], before, slots[:m], sources[:m], swept[:sweeps]


@njit(cache=True)
def _forget(horizon, floor, slots, held, stand, s_at):  # type: ignore[no-untyped-def]
    """Those of these slots, as far as they are held, of which nothing has to be known any more."""
    empty, e = np.empty(16, np.int64), 0
    for t in range(slots.shape[0]):
        s = slots[t]
        if held[s] == 0:
            continue
        if (stand[s] == _GONE and s_at[s] < horizon) or (stand[s] == _LIVE and s_at[s] < floor):
            stand[s] = 0
        if stand[s] == 0:
            held[s] = 0
            empty = appended(empty, e, s)
            e += 1
    return empty[:e]


class _Newest(Keyed):
    alone = True  # messages are taken in one after another, which needs no waves

    def __init__(self, by: Sequence[str], out: Schema, by_at: bool, keep: int | None) -> None:
        super().__init__([by], out)
        self.by_at, self.keep = by_at, keep
        self.texts = [n for n, t in out.items() if t == STRING and n not in by and not by_at]
        self.all_gone = np.zeros(3, np.int64)
        self.stand = np.zeros(0, np.int8)
        self.at = self.pos = np.zeros(0, np.int64)
        self.columns: Columns = {n: np.empty(0, numpy_type(t)) for n, t in out.items()}
        self._row = self._plus = np.zeros(0, np.int64)
        self.sweep = Sweep()

    def reserve(self, slots: int) -> None:
        self.stand, self.at, self.pos = grown(self.stand, slots), grown(self.at, slots), grown(self.pos, slots)
        self._row, self._plus = grown(self._row, slots), grown(self._plus, slots)
        self.sweep.reserve(slots)
        self.columns = {n: grown(c, slots) for n, c in self.columns.items()}

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        delta, slot = deltas[0], slots[0]
        if (delta.weight != 1).any():
            raise ValueError(
                f"latest: a message has weight {int(delta.weight[delta.weight != 1][0])}; expected messages, which are "
                "only ever inserted: a row is taken back by a message that is deleted"
            )
        deleted = delta.columns[DELETED] == 1
        everything = deleted.copy()
        if deleted.any():
            for name in self.key_names[0]:
                everything &= is_null(delta.columns[name])
        lines, before, changed, sources, swept = _newest(
            self.by_at, slot, delta.at, delta.pos, delta.seq, deleted, everything, self.stand, self.at, self.pos,
            self._row, self._plus, self.all_gone,
        )  # fmt: skip
        self.sweep.touch(slot, self.stand[slot] == 0)
        self.sweep.touch(swept, np.ones(len(swept), np.bool_))
        columns = {n: delta.columns[n] for n in self.out}
        for name in self.texts:
            columns[name] = _resolved(columns[name], before, self.columns[name])
        lines = lines[lines[:, 1] != 0]
        source = lines[:, 0]
        stored = source < 0
        if stored.any():
            kept = -1 - source[stored]
            index = source.copy()
            index[stored] = len(delta) + np.arange(len(kept))
            out = {n: np.concatenate([c, self.columns[n][kept]])[index] for n, c in columns.items()}
        else:
            out = {n: c[source] for n, c in columns.items()}
        gone = slot[self.stand[slot] == _GONE]
        for name, column in self.columns.items():
            column[changed] = columns[name][sources]
            column[gone] = null_of(self.out[name])
        weight, at, pos, seq = (np.ascontiguousarray(lines[:, i]) for i in range(1, 5))
        return Delta(out, weight, at, pos, seq)

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        floor = BEGINNING if self.keep is None else int(back(horizon, self.keep))
        slots = self.sweep.slots(self.slots.capacity, horizon)
        empty = _forget(horizon, floor, slots, self.sweep.held, self.stand, self.at)
        if len(empty):
            self.slots.release(empty.tolist())
            for column in self.columns.values():
                if column.dtype == object:
                    column[empty] = None
        return out

    def arrays(self) -> dict[str, Any]:
        n = self.slots.capacity
        return {
            "all_gone": self.all_gone.copy(),
            "slot": [a[:n].copy() for a in (self.stand, self.at, self.pos)],
            "columns": {name: c[:n].copy() for name, c in self.columns.items()},
            "sweep": self.sweep.snapshot(),
        }

    def load(self, arrays: dict[str, Any]) -> None:
        self.all_gone = arrays["all_gone"]
        self.sweep.restore(arrays["sweep"])
        self.stand, self.at, self.pos = arrays["slot"]
        self.columns = arrays["columns"]
        self._row, self._plus = np.zeros_like(self.at), np.zeros_like(self.at)

    @property
    def size(self) -> tuple[int, int]:
        per_slot = (self.stand, self.at, self.pos, self._row, self._plus, self.sweep.held)
        cells = sum(len(c) * (64 if c.dtype == object else c.itemsize) for c in self.columns.values())
        return len(self.slots), self.slots.nbytes + nbytes(per_slot) + cells


def _resolved(column: Array, before: Ints, kept: Array) -> Array:
    """The column with the marker for "as before" replaced; `before` says where that is (see `_newest`)."""
    cells = column.tolist()
    if UNAVAILABLE not in cells:
        return column
    for i, cell in enumerate(cells):
        if cell == UNAVAILABLE:
            source = int(before[i])
            cells[i] = None if source == BEGINNING else cells[source] if source >= 0 else kept[-1 - source]
    out = np.empty(len(cells), object)
    out[:] = cells
    return out


def latest(*, by: str | Sequence[str], order: Order = "position", keep: str | timedelta | None = None) -> Latest:
    """Turn messages, upserts and deletes, into the rows that they leave: the newest of each key unless it is deleted.

    by: the key columns. order: which message is newer: "position" (the one with the greater position: a log) or "at"
    (the one with the greater event time, then position). keep: how long before the horizon a key without a further
    message can still be corrected, such as "30d"; without it always.

    Raises `DefinitionError` when a column is unknown or there is no Boolean column `deleted`.
    SQL: `row_number() OVER (PARTITION BY by ORDER BY pos DESC) = 1`, then `WHERE NOT deleted`.
    """
    if order not in get_args(Order):
        raise DefinitionError(f"latest: order is {order!r}; expected 'position' or 'at'")
    limit = None if keep is None else microseconds(keep, "latest: keep")
    return Latest(as_names(by, "latest: by"), order, limit)
