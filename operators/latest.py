"""LATEST: the rows that a stream of upserts and deletes leaves.

    latest(by)(M) = for each key its newest message of M, unless that one is `deleted`; with its untold cells filled

The input rows are messages about a key (`operators/message.py`): its columns and a Boolean column `deleted`, which is
not in the result. They are only ever inserted. Newest means the greatest position, or with order="at" the greatest
(at, pos). Each message that is newest when it comes takes back the row of its key and brings its own (-old +new).
One that comes behind a newer message of its key changes nothing, unless it tells what that one leaves untold: then it
corrects the row.

- A message with a null key (all its columns) that is `deleted` deletes every key: all older messages, also those still
  to come, count for nothing. Any other null key is a key like any other.
- A deleted key is remembered until the horizon has passed the `at` of its delete, so that an older message that comes
  late stays hidden. With order="position" this relies on no message coming both behind a delete of greater position
  and after the horizon passed that delete; a log that is read in order never does so.
- A key that has a row is never forgotten, unless `keep` is given: then a key whose newest message is older than the
  horizon less `keep` is forgotten in silence. Its row stays in the result but is corrected and deleted no more, which
  is meant for long streams of rows that are corrected for a while.
- Where each text of a row was told is known from the first untold cell on: sixteen bytes for each text of each key.
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
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
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
from operators.message import DELETED, completed, texts, untold
from operators.operator import DefinitionError, Maintained, Operator, as_names, fit_as_key, microseconds
from operators.state import Keyed, grown, nbytes
from operators.timeline import Sweep, appended, back, same

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
        messages = completed(relations[0], self.by, self.order == "at")
        names = [n for n in messages.collect_schema() if n != DELETED]
        deleted = pl.col(DELETED).fill_null(False)
        everything = deleted & pl.all_horizontal(pl.col(n).is_null() for n in self.by)
        standing = messages.with_columns(_everything=everything, _deletions=everything.cum_sum()).filter(
            pl.col("_deletions") == pl.col("_everything").sum(), ~pl.col("_everything")
        )
        last = standing.unique(self.by, keep="last", maintain_order=True)
        return last.filter(~deleted).select(names)

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Newest(self.by, self.schema(inputs), self.order == "at", self.keep)

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        schema: Schema = {"k": STRING, "x": INT, "t": STRING, "deleted": BOOL, "y": FLOAT, "z": STRING}
        return [
            (latest(by="k"), [schema]),
            (latest(by="k", order="at"), [schema]),
            (latest(by=["k", "x"]), [schema]),
        ]


_LIVE, _GONE = 1, 2
_NONE = BEGINNING
"""The source of a cell that is null."""


@njit(cache=True)
def _older(by_at, at, pos, than_at, than_pos):  # type: ignore[no-untyped-def]
    """Whether a message is not newer than another."""
    return at < than_at or (at == than_at and pos <= than_pos) if by_at else pos <= than_pos


@njit(cache=True, forceinline=True)
def _take_back(s, now, stand, s_at, s_pos, row, cell, plus, lines, n):  # type: ignore[no-untyped-def]
    """Take back the row of a slot: one more line, or the line that brought it within this `seq` dropped."""
    if stand[s] != _LIVE:
        return lines, n
    if plus[s] > 0 and lines[plus[s] - 1, 4] == now:
        lines[plus[s] - 1, 1] = 0
        plus[s] = 0
        return lines, n
    return _line(lines, n, s, -1, s_at, s_pos, row, cell, now)


@njit(cache=True, forceinline=True)
def _line(lines, n, s, weight, s_at, s_pos, row, cell, seq):  # type: ignore[no-untyped-def]
    """One more line, of the row of a slot as it is now."""
    if n == lines.shape[0]:
        more = np.empty((2 * n, lines.shape[1]), np.int64)
        more[:n] = lines
        lines = more
    lines[n, 0] = row[s] - 1 if row[s] > 0 else -1 - s
    lines[n, 1], lines[n, 2], lines[n, 3], lines[n, 4] = weight, s_at[s], s_pos[s], seq
    for c in range(cell.shape[1]):
        lines[n, 5 + c] = -1 - s if cell[s, c] == 0 else _NONE if cell[s, c] < 0 else cell[s, c] - 1
    return lines, n + 1


@njit(cache=True)
def _tells(by_at, s, i, at, pos, deleted, untold, told_at, told_pos):  # type: ignore[no-untyped-def]
    """Whether a message behind the newest one of a slot tells what the newest one leaves untold."""
    for c in range(told_at.shape[1]):
        if (deleted[i] or not untold[i, c]) and not _older(by_at, at[i], pos[i], told_at[s, c], told_pos[s, c]):
            return True
    return False


@njit(cache=True)
def _tell(  # type: ignore[no-untyped-def]
    by_at, s, i, at, pos, seq, deleted, untold, stand, s_at, s_pos, row, plus, told_at, told_pos, cell, lines, count
):  # fmt: skip
    """Let it do so: the row of the slot is corrected."""
    lines, count = _take_back(s, seq[i], stand, s_at, s_pos, row, cell, plus, lines, count)
    for c in range(told_at.shape[1]):
        if (deleted[i] or not untold[i, c]) and not _older(by_at, at[i], pos[i], told_at[s, c], told_pos[s, c]):
            told_at[s, c], told_pos[s, c] = at[i], pos[i]
            cell[s, c] = -1 if deleted[i] else i + 1
    if stand[s] == _LIVE:
        lines, count = _line(lines, count, s, 1, s_at, s_pos, row, cell, seq[i])
        plus[s] = count
    return lines, count


@njit(cache=True)
def _newest(  # type: ignore[no-untyped-def]
    by_at, slot, at, pos, seq, deleted, everything, untold, stand, s_at, s_pos, row, plus, told_at, told_pos, cell,
    all_gone,
):  # fmt: skip
    """Take messages in one after another.

    untold: for each message and text whether it is untold; no text matters as long as none ever was. stand, s_at,
    s_pos: per slot what its newest message is (0: none known), and where. told_at, told_pos: per slot and text where
    it was told. row, plus, cell: zeros, left as zeros: one more than the message that is newest, than the line that
    brought it, and per text than the message that told it, -1 when that is null. all_gone: at, pos of the newest
    message that deletes everything, and whether there is one.

    Returns the lines of the result (source, weight or 0, at, pos, seq, the source of each text), where a source is a
    message, or, when negative, -1 - the slot whose row it is, or `_NONE`; the slots whose row is another now, and the
    message it comes from; the slots some of whose texts are others now, and where these come from (as in `cell`); the
    slots that were deleted with everything; and how many rows were corrected.
    """
    n, m = slot.shape[0], cell.shape[1]
    lines, count = np.empty((2 * n, 5 + m), np.int64), 0
    swept, sweeps = np.empty(16, np.int64), 0
    mended, mends, corrected = np.empty(16, np.int64), 0, 0
    for i in range(n):
        if all_gone[2] == 1 and _older(by_at, at[i], pos[i], all_gone[0], all_gone[1]):
            continue
        if everything[i]:
            all_gone[0], all_gone[1], all_gone[2] = at[i], pos[i], 1
            for s in range(stand.shape[0]):
                if stand[s] == 0:
                    continue
                if not _older(by_at, at[i], pos[i], s_at[s], s_pos[s]):
                    lines, count = _take_back(s, seq[i], stand, s_at, s_pos, row, cell, plus, lines, count)
                    stand[s] = 0
                    swept = appended(swept, sweeps, s)
                    sweeps += 1
                elif m > 0 and _tells(by_at, s, i, at, pos, deleted, untold, told_at, told_pos):
                    lines, count = _tell(
                        by_at, s, i, at, pos, seq, deleted, untold, stand, s_at, s_pos, row, plus, told_at, told_pos,
                        cell, lines, count,
                    )  # fmt: skip
                    corrected += 1
                    mended = appended(mended, mends, s)
                    mends += 1
            continue
        s = slot[i]
        if stand[s] > 0 and _older(by_at, at[i], pos[i], s_at[s], s_pos[s]):
            if m > 0 and _tells(by_at, s, i, at, pos, deleted, untold, told_at, told_pos):
                lines, count = _tell(
                    by_at, s, i, at, pos, seq, deleted, untold, stand, s_at, s_pos, row, plus, told_at, told_pos,
                    cell, lines, count,
                )  # fmt: skip
                corrected += 1
            continue
        lines, count = _take_back(s, seq[i], stand, s_at, s_pos, row, cell, plus, lines, count)
        for c in range(m):
            if stand[s] == 0:
                told_at[s, c] = told_pos[s, c] = _NONE
            if stand[s] != _LIVE:
                cell[s, c] = -1
            if deleted[i] or not untold[i, c]:
                told_at[s, c], told_pos[s, c] = at[i], pos[i]
                cell[s, c] = -1 if deleted[i] else i + 1
        stand[s], s_at[s], s_pos[s] = _GONE if deleted[i] else _LIVE, at[i], pos[i]
        row[s], plus[s] = i + 1, 0
        if not deleted[i]:
            lines, count = _line(lines, count, s, 1, s_at, s_pos, row, cell, seq[i])
            plus[s] = count
    slots, sources, k = np.empty(n, np.int64), np.empty(n, np.int64), 0
    retold, cells, t = np.empty(n + mends, np.int64), np.empty((n + mends, m), np.int64), 0
    for i in range(n + mends):
        s = slot[i] if i < n else mended[i - n]
        if row[s] > 0 and stand[s] == _LIVE:
            slots[k], sources[k] = s, row[s] - 1
            k += 1
        other = False
        for c in range(m):
            other |= cell[s, c] != 0
            cells[t, c] = cell[s, c]
            cell[s, c] = 0
        if other and stand[s] == _LIVE:
            retold[t] = s
            t += 1
        row[s] = plus[s] = 0
    return lines[:count], slots[:k], sources[:k], retold[:t], cells[:t], swept[:sweeps], corrected


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
        self.texts = texts(out, by)
        self.told: tuple[Ints, Ints] | None = None
        self.all_gone = np.zeros(3, np.int64)
        self.stand = np.zeros(0, np.int8)
        self.at = self.pos = np.zeros(0, np.int64)
        self.columns: Columns = {n: np.empty(0, numpy_type(t)) for n, t in out.items()}
        self._row = self._plus = np.zeros(0, np.int64)
        self._cell = np.zeros((0, 0), np.int64)
        self.sweep = Sweep()

    def reserve(self, slots: int) -> None:
        self.stand, self.at, self.pos = grown(self.stand, slots), grown(self.at, slots), grown(self.pos, slots)
        self._row, self._plus = grown(self._row, slots), grown(self._plus, slots)
        self.sweep.reserve(slots)
        self.columns = {n: grown(c, slots) for n, c in self.columns.items()}
        self._cell = grown(self._cell, slots)
        if self.told is not None:
            self.told = grown(self.told[0], slots), grown(self.told[1], slots)

    def _keep_where_told(self) -> None:
        """From now on know of each text where it was told: so far each was with the row."""
        of_row = np.ones(len(self.texts), np.int64)
        self.told = np.outer(self.at, of_row), np.outer(self.pos, of_row)
        self._cell = np.zeros_like(self.told[0])

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
        missing = untold(delta.columns, self.texts)
        if missing is not None and self.told is None:
            self._keep_where_told()
        told_at, told_pos = (self._cell, self._cell) if self.told is None else self.told
        if missing is None:
            missing = np.zeros((len(delta), told_at.shape[1]), np.bool_)
        lines, changed, sources, retold, cells, swept, corrected = _newest(
            self.by_at, slot, delta.at, delta.pos, delta.seq, deleted, everything, missing, self.stand, self.at,
            self.pos, self._row, self._plus, told_at, told_pos, self._cell, self.all_gone,
        )  # fmt: skip
        self.sweep.touch(slot, self.stand[slot] == 0)
        self.sweep.touch(swept, np.ones(len(swept), np.bool_))
        lines = lines[lines[:, 1] != 0]
        source = dict.fromkeys(self.out, _Cells(lines[:, 0], len(delta)))
        if self.told is not None:
            source |= {n: _Cells(lines[:, 5 + c], len(delta)) for c, n in enumerate(self.texts)}
        columns = {n: cells.of(delta.columns[n], self.columns[n]) for n, cells in source.items()}
        gone = slot[self.stand[slot] == _GONE]
        for name, column in self.columns.items():
            column[gone] = null_of(self.out[name])
            if self.told is None or name not in self.texts:
                column[changed] = delta.columns[name][sources]
        for c, name in enumerate(self.texts if self.told is not None else ()):
            other = cells[:, c] != 0
            told_by = _Cells(np.where(cells[other, c] < 0, _NONE, cells[other, c] - 1), len(delta))
            self.columns[name][retold[other]] = told_by.of(delta.columns[name], self.columns[name])
        weight, at, pos, seq = (np.ascontiguousarray(lines[:, i]) for i in range(1, 5))
        out = Delta(columns, weight, at, pos, seq)
        return _without_the_same(out, self.texts) if corrected else out

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
            "told": None if self.told is None else tuple(a[:n].copy() for a in self.told),
        }

    def load(self, arrays: dict[str, Any]) -> None:
        self.all_gone = arrays["all_gone"]
        self.sweep.restore(arrays["sweep"])
        self.stand, self.at, self.pos = arrays["slot"]
        self.columns = arrays["columns"]
        self._row, self._plus = np.zeros_like(self.at), np.zeros_like(self.at)
        self.told = arrays["told"]
        self._cell = np.zeros((len(self.at), 0), np.int64) if self.told is None else np.zeros_like(self.told[0])

    @property
    def size(self) -> tuple[int, int]:
        per_slot = (
            self.stand,
            self.at,
            self.pos,
            self._row,
            self._plus,
            self._cell,
            self.sweep.held,
            *(self.told or ()),
        )
        cells = sum(len(c) * (64 if c.dtype == object else c.itemsize) for c in self.columns.values())
        return len(self.slots), self.slots.nbytes + nbytes(per_slot) + cells


class _Cells:
    """Cells of what is given, n rows, or of what is kept where the source is negative (see `_newest`)."""

    def __init__(self, source: Ints, n: int) -> None:
        self._index, self._null = source, False
        self._slots: Ints | None = None
        if (stored := source < 0).any():
            none = source == _NONE
            self._slots, self._null = -1 - source[stored & ~none], bool(none.any())
            self._index = source.copy()
            self._index[stored & ~none] = n + np.arange(len(self._slots))
            self._index[none] = n + len(self._slots)

    def of(self, given: Array, kept: Array) -> Array:
        if self._slots is None:
            return given[self._index]
        null = [np.array([None], given.dtype)] if self._null else []
        return np.concatenate([given, kept[self._slots], *null])[self._index]


def _without_the_same(out: Delta, texts: Sequence[str]) -> Delta:
    """Without corrections that change nothing: what is told late may be what was there."""
    order = np.lexsort((out.weight, out.pos, out.at, out.seq))
    a, b = order[:-1], order[1:]
    pair = (out.seq[a] == out.seq[b]) & (out.at[a] == out.at[b]) & (out.pos[a] == out.pos[b])
    pair &= out.weight[a] < out.weight[b]
    a, b = a[pair], b[pair]
    alike = np.ones(len(a), np.bool_)
    for name in texts:
        alike &= same(out.columns[name][a], out.columns[name][b])
    keep = np.ones(len(out), np.bool_)
    keep[a[alike]] = keep[b[alike]] = False
    return out.take(keep)


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
