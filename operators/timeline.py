"""Rows of each key in order of (at, pos), and rows kept by number: what joins and dedupe are written on.

`Timelines` holds, per slot, a sorted run of entries `(at, pos, row, note)`: the identity of a row, a number by which
its columns are found elsewhere, and one more number that the operator needs to know. Appending costs constant time,
an entry in the middle moves those behind it, and entries are forgotten from the front.

All runs lie in one array, the slab. A run owns a stretch of 4, 8, 16, ... entries; a full one moves to a stretch twice
as large, and stretches given back are used again. The functions below are numba kernels over the three arrays of
`Timelines`; those that may need a larger slab return it.

`Cells` holds columns by number; numbers given back are used again, and number 0 is a row of nulls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numba import njit

from operators.delta import BEGINNING, Array, Columns, Ints, is_null, null_of, numpy_type
from operators.state import grown, nbytes

LEAST = int(np.iinfo(np.int64).min)
MOST = int(np.iinfo(np.int64).max)
_TOP = 63
_NONE = np.empty(0, np.int64)


@njit(cache=True)
def back(at, span):  # type: ignore[no-untyped-def]
    """`at` less a span, not before the beginning."""
    return at - span if at > BEGINNING + span else BEGINNING


@njit(cache=True)
def ahead(at, span):  # type: ignore[no-untyped-def]
    """`at` and a span, not beyond the end."""
    return at + span if at < MOST - span else MOST


@njit(cache=True)
def appended(numbers, n, number):  # type: ignore[no-untyped-def]
    """The array with a number set at n, larger when it has to be."""
    if n == numbers.shape[0]:
        more = np.empty(max(2 * n, 16), np.int64)
        more[:n] = numbers
        numbers = more
    numbers[n] = number
    return numbers


@njit(cache=True)
def first(slab, head, tail, at, pos):  # type: ignore[no-untyped-def]
    """The first entry of head..tail that is not before (at, pos); `tail` when there is none."""
    if head == tail or slab[tail - 1, 0] < at or (slab[tail - 1, 0] == at and slab[tail - 1, 1] < pos):
        return tail
    while head < tail:
        middle = (head + tail) >> 1
        if slab[middle, 0] < at or (slab[middle, 0] == at and slab[middle, 1] < pos):
            head = middle + 1
        else:
            tail = middle
    return head


@njit(cache=True)
def _copy(slab, source, target):  # type: ignore[no-untyped-def]
    for c in range(4):  # not slab[target] = slab[source], which makes two array objects
        slab[target, c] = slab[source, c]


@njit(cache=True)
def _size(room):  # type: ignore[no-untyped-def]
    k = 0
    while (4 << k) < room:
        k += 1
    return k


@njit(cache=True)
def move(slab, runs, free, slot, room):  # type: ignore[no-untyped-def]
    """Give the run of a slot a stretch of `room` entries (a power of two, 4 or more; 0 for none, of an empty run)."""
    start, had, head, tail = runs[slot, 0], runs[slot, 1], runs[slot, 2], runs[slot, 3]
    new, live = 0, tail - head
    if room > 0:
        k = _size(room)
        if free[k] > 0:
            new = free[k] - 1
            free[k] = slab[new, 0]
        else:
            new = free[_TOP]
            if new + room > slab.shape[0]:
                more = np.zeros((max(2 * slab.shape[0], new + room), 4), np.int64)
                more[:new] = slab[:new]
                slab = more
            free[_TOP] = new + room
        for i in range(live):
            _copy(slab, head + i, new + i)
    if had > 0:
        k = _size(had)
        slab[start, 0] = free[k]
        free[k] = start + 1
    runs[slot, 0], runs[slot, 1], runs[slot, 2], runs[slot, 3] = new, room, new, new + live
    return slab


@njit(cache=True)
def put(slab, runs, free, slot, at, pos, row, note):  # type: ignore[no-untyped-def]
    """Insert an entry; returns the slab."""
    if runs[slot, 3] == runs[slot, 0] + runs[slot, 1]:
        start, room, live = runs[slot, 0], runs[slot, 1], runs[slot, 3] - runs[slot, 2]
        if room > 0 and 4 * live <= 3 * room:
            for i in range(live):
                _copy(slab, runs[slot, 2] + i, start + i)
            runs[slot, 2], runs[slot, 3] = start, start + live
        else:
            slab = move(slab, runs, free, slot, max(4, 2 * room))
    tail = runs[slot, 3]
    i = first(slab, runs[slot, 2], tail, at, pos)
    for k in range(tail, i, -1):
        _copy(slab, k - 1, k)
    slab[i, 0], slab[i, 1], slab[i, 2], slab[i, 3] = at, pos, row, note
    runs[slot, 3] = tail + 1
    return slab


@njit(cache=True)
def cut(slab, runs, slot, i):  # type: ignore[no-untyped-def]
    """Take out entry number i."""
    tail = runs[slot, 3] - 1
    for k in range(i, tail):
        _copy(slab, k + 1, k)
    runs[slot, 3] = tail


@njit(cache=True)
def tidy(slab, runs, free, slot):  # type: ignore[no-untyped-def]
    """Give memory back that the run no longer needs; returns the slab."""
    room, live = runs[slot, 1], runs[slot, 3] - runs[slot, 2]
    if room > 0 and live == 0:
        return move(slab, runs, free, slot, 0)
    if room > 8 and 8 * live <= room:
        return move(slab, runs, free, slot, max(4, 4 << _size(live)))
    return slab


class Timelines:
    """A sorted run of entries per slot.

    `slab`: entries, one a line; `runs`: per slot the start and length of its stretch, its first entry and the end;
    `free`: per stretch size one more than the start of the first free stretch; the last number is the end of all.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.slab = np.empty((0, 4), np.int64)
        self.runs = np.zeros((0, 4), np.int64)
        self.free = np.zeros(64, np.int64)

    def reserve(self, slots: int) -> None:
        """Make room for this many slots."""
        self.runs = grown(self.runs, slots)

    def snapshot(self) -> Any:
        """All entries."""
        return self.slab[: self.free[_TOP]].copy(), self.runs.copy(), self.free.copy()

    def restore(self, state: Any) -> None:
        """Take over a snapshot."""
        self.slab, self.runs, self.free = state

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return nbytes((self.slab, self.runs, self.free))


class Sweep:
    """Which slots to look at for something to forget: all in turn, a few each time, and some at once.

    The turn comes to every slot once in four times as many rows as there are slots, so what could be forgotten but is
    not yet is at most about four rows a key. `held`: per slot whether something may be known of its key.
    """

    def __init__(self) -> None:
        self.held = np.zeros(0, np.int8)
        self._hand = self._rows = 0
        self._now: list[Ints] = []

    def reserve(self, slots: int) -> None:
        """Make room for this many slots."""
        self.held = grown(self.held, slots)

    def touch(self, slots: Ints, now: Array) -> None:
        """Changes came to these slots; after those marked by `now` nothing may be left."""
        self.held[slots] = 1
        self._rows += len(slots)
        if now.any():
            self._now.append(slots[now])

    def slots(self, capacity: int, horizon: int) -> Ints:
        """The slots to look at, of `capacity`; the turn goes on when there is a horizon."""
        now, rows = self._now, self._rows
        self._now, self._rows = [], 0
        if horizon > BEGINNING and capacity:
            turn = min(capacity, 16 + rows // 4)
            now.append(np.arange(self._hand, self._hand + turn) % capacity)
            self._hand = (self._hand + turn) % capacity
        return np.concatenate(now) if now else _NONE

    def snapshot(self) -> Any:
        """Where it is."""
        return self.held.copy(), self._hand

    def restore(self, state: Any) -> None:
        """Take over a snapshot."""
        self.held, self._hand = state

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.held.nbytes)


class Cells:
    """Columns of rows by number. Row 0 is all null.

    >>> from operators.delta import INT
    >>> cells = Cells({"a": INT})
    >>> cells.add({"a": np.array([7, 8])}, 2).tolist()
    [1, 2]
    >>> cells.remove(np.array([1]))
    >>> cells.add({"a": np.array([9])}, 1).tolist()
    [1]
    >>> cells.take(np.array([2, 1]))["a"].tolist()
    [8, 9]
    """

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        self._schema = dict(schema)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.columns: Columns = {n: np.full(1, null_of(t), numpy_type(t)) for n, t in self._schema.items()}
        self._free = np.empty(0, np.int64)
        self._held = 1
        self._frees = 0

    def add(self, columns: Columns, n: int) -> Ints:
        """Keep n rows; returns their numbers."""
        old = min(n, self._frees)
        numbers = np.empty(n, np.int64)
        self._frees -= old
        numbers[:old] = self._free[self._frees : self._frees + old]
        if new := n - old:
            numbers[old:] = np.arange(self._held, self._held + new)
            self._held += new
            self.columns = {name: grown(c, self._held) for name, c in self.columns.items()}
        for name, column in self.columns.items():
            column[numbers] = columns[name]
        return numbers

    def take(self, numbers: Ints) -> Columns:
        """The columns of the rows of these numbers."""
        return {name: c[numbers] for name, c in self.columns.items()}

    def remove(self, numbers: Ints) -> None:
        """Forget these rows; their numbers are used again."""
        n = len(numbers)
        self._free = grown(self._free, self._frees + n)
        self._free[self._frees : self._frees + n] = numbers
        self._frees += n
        for column in self.columns.values():
            if column.dtype == object:
                column[numbers] = None

    def snapshot(self) -> Any:
        """All rows."""
        return (
            {n: c[: self._held].copy() for n, c in self.columns.items()},
            self._free[: self._frees].copy(),
            self._held,
        )

    def restore(self, state: Any) -> None:
        """Take over a snapshot."""
        self.columns, self._free, self._held = state
        self._frees = len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes held, approximately."""
        return nbytes([self._free]) + sum(
            len(c) * (64 if c.dtype == object else c.itemsize) for c in self.columns.values()
        )


def same(a: Array, b: Array) -> Any:
    """Where two columns of one type hold the same value, bit for bit; nulls are the same."""
    if a.dtype == np.float64:
        return (a.view(np.int64) == b.view(np.int64)) | (is_null(a) & is_null(b))
    return a == b
