"""Rows of each key, sorted by (at, pos), as numbers in one array: what window and aggregate are written on.

A row is a line of 64-bit words: at, pos, and what the operator adds (floats as their bits). A key owns a stretch of
lines, its *segment*: 2, 4, 8, ... of them. Its rows are those from `head` to `tail`. A row that comes in order is
written at the tail, in constant time. When the segment is full, rows move to its start if there is room, and to one
twice as large if not; segments given back are used again. Rows are forgotten from the head.

A row has a *number*, counted from the key's first row of all time; line = origin + number, so that numbers stay
the same when rows move. The words of a key begin with the fields below; operators add theirs. A key that was never
seen, or of which nothing is left, has zeros only.

State is arrays; a snapshot is their bytes. The functions are numba kernels; those that may need more lines return them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from operators.delta import Ints
from operators.state import grown, nbytes

HEAD, TAIL, END, AT, POS, MARK, ORIGIN, START, FIELDS = range(9)
"""Words of a key: its first line, the line after its last, the end of its segment, at and pos of its last row, a mark
that is 0 when there is no last row, the line where its row number 0 would be, the start of its segment."""

TOP = 63
"""Where in the free list the end of all segments is."""


@njit(cache=True)
def first(rows, a, b, at, pos):  # type: ignore[no-untyped-def]
    """The first of lines a..b that is not before (at, pos); b when there is none."""
    while a < b:
        m = (a + b) >> 1
        if rows[m, 0] < at or (rows[m, 0] == at and rows[m, 1] < pos):
            a = m + 1
        else:
            b = m
    return a


@njit(cache=True)
def taller(lines, n):  # type: ignore[no-untyped-def]
    """The lines with room for at least n, at least doubled when there have to be more; new ones are zero."""
    if lines.shape[0] >= n:
        return lines
    more = np.zeros((max(n, 2 * lines.shape[0]), lines.shape[1]), np.int64)
    for i in range(lines.shape[0]):  # in loops: copies of slices take seconds to compile
        for w in range(lines.shape[1]):
            more[i, w] = lines[i, w]
    return more


@njit(cache=True)
def erase(rows, keys, free, slot):  # type: ignore[no-untyped-def]
    """Nothing is left of a key: its segment is given back, its words are zero."""
    give_back(rows, keys, free, slot)
    for w in range(keys.shape[1]):
        keys[slot, w] = 0


@njit(cache=True)
def _order(n):  # type: ignore[no-untyped-def]
    k = 1
    while (1 << k) < n:
        k += 1
    return k


@njit(cache=True)
def give_back(rows, keys, free, slot):  # type: ignore[no-untyped-def]
    """A key without rows gives its segment back."""
    start, end = keys[slot, START], keys[slot, END]
    if end > start:
        k = _order(end - start)
        rows[start, 0] = free[k]
        free[k] = start + 1
    keys[slot, ORIGIN] -= keys[slot, HEAD]
    keys[slot, HEAD] = keys[slot, TAIL] = keys[slot, END] = keys[slot, START] = 0


@njit(cache=True)
def _move(rows, keys, free, slot, size):  # type: ignore[no-untyped-def]
    """Move the rows of a key to the start of a segment of this size, which may be the present one."""
    start, end, head, tail = keys[slot, START], keys[slot, END], keys[slot, HEAD], keys[slot, TAIL]
    to = start
    if size != end - start:
        k = _order(size)
        if free[k] > 0:
            to = free[k] - 1
            free[k] = rows[to, 0]
        else:
            align = min(size, 64)
            to = (free[TOP] + align - 1) & ~(align - 1)
            if to + size > rows.shape[0]:
                rows = taller(rows, max(to + size, 64))
            free[TOP] = to + size
    for i in range(tail - head):
        for w in range(rows.shape[1]):
            rows[to + i, w] = rows[head + i, w]
    if to != start and end > start:
        k = _order(end - start)
        rows[start, 0] = free[k]
        free[k] = start + 1
    keys[slot, START] = to
    keys[slot, END] = to + size
    keys[slot, HEAD] = to
    keys[slot, TAIL] = to + tail - head
    keys[slot, ORIGIN] += to - head
    return rows


@njit(cache=True)
def make_room(rows, keys, free, slot, need):  # type: ignore[no-untyped-def]
    """Make room for `need` more rows at the tail; returns all lines."""
    live, had = keys[slot, TAIL] - keys[slot, HEAD], keys[slot, END] - keys[slot, START]
    size = max(had, 2)
    while live + need > size - (size >> 2):
        size *= 2
    return _move(rows, keys, free, slot, size)


@njit(cache=True)
def tidy(rows, keys, free, slot):  # type: ignore[no-untyped-def]
    """Give up most of a segment that is nearly empty; returns all lines and whether rows moved."""
    live, had = keys[slot, TAIL] - keys[slot, HEAD], keys[slot, END] - keys[slot, START]
    if had > 0 and live == 0:
        give_back(rows, keys, free, slot)
    elif had > 8 and 8 * live <= had:
        return _move(rows, keys, free, slot, 1 << _order(2 * live)), True
    return rows, False


class Segments:
    """The words of all keys, by slot, and the lines of all rows.

    `free`: per order of size one more than the start of the first free segment; the last number is the end of all.
    """

    def __init__(self, key_words: int, row_words: int) -> None:
        self.keys: Ints = np.zeros((0, key_words), np.int64)
        self.rows: Ints = np.zeros((0, row_words), np.int64)
        self.free: Ints = np.zeros(64, np.int64)

    def reserve(self, slots: int) -> None:
        """Make room for this many slots."""
        self.keys = grown(self.keys, slots)

    def snapshot(self, slots: int) -> Any:
        """All there is at the first `slots` slots."""
        return self.keys[:slots].copy(), self.rows[: self.free[TOP]].copy(), self.free.copy()

    def restore(self, state: Any) -> None:
        """Take over a snapshot."""
        self.keys, self.rows, self.free = state

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return nbytes((self.keys, self.rows, self.free))
