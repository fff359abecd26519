"""Rows of each key in order of (at, pos), each with what it shows of its neighbours: what previous, runs and silence
are written on.

What a row *shows* is a few 64-bit words, a function of the rows of its key around it. A change is taken in where it
belongs in the order of its key, and the rows beside it are asked again what they show, one after another until one
shows what it did before. Those that show something else now are corrected: -old +new.

Changes of one `seq` are one; changes of several are taken in one after another, so a delta needs no waves: what came
out on the way is what each change gave.

A row is kept whole while it may come out again; of the rows before the horizon only the last of each key is kept, for
the row that comes next.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from operators.delta import AT, BEGINNING, INT, NULL, POS, Columns, Delta, Ints, Schema, concat
from operators.state import Keyed, lexsort
from operators.timeline import MOST, Cells, Sweep, Timelines, appended, back, cut, first, put, same, tidy

FRESH = MOST - 1
"""What a row shows that was not asked yet."""


@njit(cache=True)
def enter(slab, runs, free, shown, slot, at, pos, weight, number, results, a, z):  # type: ignore[no-untyped-def]
    """Put the changes a..z of one `seq` where they belong; what leaves tells what it showed.

    number: of each insert its number; of what leaves it is set here. Returns the slab, and the change that takes back
    a row that is not there, or -1.
    """
    for i in range(a, z):
        s = slot[i]
        if weight[i] > 0:
            slab = put(slab, runs, free, s, at[i], pos[i], number[i], 0)
            continue
        k = first(slab, runs[s, 2], runs[s, 3], at[i], pos[i])
        if k == runs[s, 3] or slab[k, 0] != at[i] or slab[k, 1] != pos[i]:
            return slab, i
        number[i] = slab[k, 2]
        for w in range(len(shown)):
            results[i, w] = shown[w][number[i]]
        cut(slab, runs, s, k)
    return slab, -1


@njit(cache=True)
def amend(shown, number, now, fixes, n, seq):  # type: ignore[no-untyped-def]
    """Let the row of a number show the words `now`.

    Returns the fixes (number, seq, words before, words now), how many they are, and whether it shows something else
    than before. That is a fix unless the row is fresh.
    """
    width = len(shown)
    other = False
    for w in range(width):
        other |= shown[w][number] != now[w]
    if not other:
        return fixes, n, False
    if shown[0][number] != FRESH:
        if n == fixes.shape[0]:
            more = np.empty((2 * n, fixes.shape[1]), np.int64)
            more[:n] = fixes
            fixes = more
        fixes[n, 0], fixes[n, 1] = number, seq
        for w in range(width):
            fixes[n, 2 + w] = shown[w][number]
            fixes[n, 2 + width + w] = now[w]
        n += 1
    for w in range(width):
        shown[w][number] = now[w]
    return fixes, n, True


@njit(cache=True)
def tell(shown, weight, number, results, a, z):  # type: ignore[no-untyped-def]
    """What the inserts among the changes a..z show, into the results."""
    for i in range(a, z):
        if weight[i] > 0:
            for w in range(len(shown)):
                results[i, w] = shown[w][number[i]]


@njit(cache=True)
def _forget(reach, horizon, slots, held, slab, runs, free):  # type: ignore[no-untyped-def]
    """Forget, at these slots as far as they are held, the rows before the horizon but the last, and that one when it
    is out of reach. Returns the slab, the numbers forgotten, and the slots now empty."""
    numbers, n = np.empty(16, np.int64), 0
    empty, e = np.empty(16, np.int64), 0
    floor = back(horizon, reach) if reach >= 0 else BEGINNING
    for t in range(slots.shape[0]):
        s = slots[t]
        if held[s] == 0:
            continue
        head, tail = runs[s, 2], runs[s, 3]
        while head < tail and slab[head, 0] < horizon:
            followed = head + 1 < tail and slab[head + 1, 0] < horizon
            if not followed and slab[head, 0] >= floor:
                break
            numbers = appended(numbers, n, slab[head, 2])
            n += 1
            head += 1
        runs[s, 2] = head
        slab = tidy(slab, runs, free, s)
        if runs[s, 1] == 0:
            held[s] = 0
            empty = appended(empty, e, s)
            e += 1
    return slab, numbers[:n], empty[:e]


def since_when(at: Ints) -> Ints:
    """Event times as a column: that of a row that was there from the beginning is null."""
    return np.where(at == BEGINNING, NULL, at)


class Ordered(Keyed):
    """A row for each row that comes in, with what it shows.

    kept: the columns of rows that are kept, and further words in `more`; shown: how many words a row shows. reach: how
    long before the next row the last one before the horizon is asked for, in microseconds; -1 for ever.
    """

    def __init__(
        self, by: Sequence[str], kept: Schema, out: Schema, shown: int, *, more: Schema | None = None, reach: int = -1
    ) -> None:
        super().__init__([by], out)
        self.kept = list(kept)
        self.words = [f"_shown{w}" for w in range(shown)]
        self.reach = reach
        self.entries = Timelines()
        self.cells = Cells({**kept, **(more or {}), AT: INT, POS: INT, **dict.fromkeys(self.words, INT)})
        self.sweep = Sweep()

    @abc.abstractmethod
    def follow(self, rows: tuple[Any, ...]) -> tuple[Ints, int]:
        """Take in changes.

        rows: the arrays of the entries; the words shown, by number; number, slot, at, pos, weight and seq of the
        changes; the order in which those of one `seq` are to be looked at; and where to write what each row shows, or
        showed. Returns the fixes, as `amend` has them, and the change that does not fit, or -1.
        """

    @abc.abstractmethod
    def columns_of(self, words: Ints) -> Columns:
        """The new columns of rows that show these words."""

    def further(self, delta: Delta, slot: Ints) -> Columns:
        """The columns `more` of rows that come, of the keys at these slots."""
        return {}

    def drop(self, numbers: Ints) -> None:
        """Forget the rows of these numbers."""
        self.cells.remove(numbers)

    def reserve(self, slots: int) -> None:
        self.entries.reserve(slots)
        self.sweep.reserve(slots)

    def begins(self, deltas: Sequence[Delta], slots: Sequence[Ints]) -> Ints:
        return np.empty(0, np.int64)

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        delta, slot = deltas[0], slots[0]
        new = delta.weight > 0
        self.sweep.touch(slot, ~new)
        number = np.zeros(len(delta), np.int64)
        number[new] = self._add(delta if new.all() else delta.take(new), slot[new])
        results = np.empty((len(delta), len(self.words)), np.int64)
        entries, shown = self.entries, tuple(self.cells.columns[w] for w in self.words)
        once = bool((delta.seq[1:] > delta.seq[:-1]).all())
        order = np.arange(len(delta)) if once else lexsort(delta.seq, delta.at, delta.pos)
        fixes, bad = self.follow(
            (entries.slab, entries.runs, entries.free, shown, number, slot, delta.at, delta.pos, delta.weight,
             delta.seq, order, results)
        )  # fmt: skip
        if bad >= 0:
            raise ValueError(
                f"a row with at={int(delta.at[bad])}, pos={int(delta.pos[bad])} was taken back that is not there: "
                "expected a row that was inserted, not taken back since, and not before the horizon"
            )
        out = self.showing(delta.with_columns({n: delta.columns[n] for n in self.kept}), number, results)
        if len(fixes):
            out = concat([out, self._corrections(fixes)])
        if not new.all():
            self.drop(number[~new])
        return out

    def showing(self, rows: Delta, number: Ints, words: Ints) -> Delta:
        """What comes out for rows, which have the columns that are kept, that show these words."""
        return rows.with_columns({**rows.columns, **self.columns_of(words)})

    def _add(self, delta: Delta, slot: Ints) -> Ints:
        columns = {n: delta.columns[n] for n in self.kept} | self.further(delta, slot)
        asked = dict.fromkeys(self.words, np.full(len(delta), FRESH))
        return self.cells.add({**columns, AT: delta.at, POS: delta.pos, **asked}, len(delta))

    def _corrections(self, fixes: Ints) -> Delta:
        """-old +new of rows that show something else now, unless that makes the same columns."""
        width = len(self.words)
        old, new = self.columns_of(fixes[:, 2 : 2 + width]), self.columns_of(fixes[:, 2 + width :])
        fixes = fixes[np.logical_or.reduce([~same(old[name], new[name]) for name in old])]
        number, seq = np.repeat(fixes[:, 0], 2), np.repeat(fixes[:, 1], 2)
        rows = self.cells.take(number)
        weight = np.tile(np.array([-1, 1]), len(fixes))
        pairs = Delta({n: rows[n] for n in self.kept}, weight, rows[AT], rows[POS], seq)
        return self.showing(pairs, number, fixes[:, 2:].reshape(-1, width))

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        self._clean(horizon)
        return out

    def _clean(self, horizon: int) -> None:
        entries = self.entries
        slots = self.sweep.slots(self.slots.capacity, horizon)
        entries.slab, numbers, empty = _forget(
            self.reach, horizon, slots, self.sweep.held, entries.slab, entries.runs, entries.free
        )
        if len(numbers):
            self.drop(numbers)
        if len(empty):
            self.slots.release(empty.tolist())
            if not len(self.slots):
                entries.clear()
                self.cells.clear()
                self.reserve(self.slots.capacity)

    def arrays(self) -> dict[str, Any]:
        return {n: p.snapshot() for n, p in self._parts().items()}

    def load(self, arrays: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.restore(arrays[name])

    def _parts(self) -> dict[str, Timelines | Cells | Sweep]:
        return {"entries": self.entries, "cells": self.cells, "sweep": self.sweep}

    @property
    def size(self) -> tuple[int, int]:
        return len(self.slots), self.slots.nbytes + sum(p.nbytes for p in self._parts().values())
