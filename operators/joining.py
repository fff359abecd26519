"""What the joins share: how they are declared, and how left and right rows meet in time.

`Meeting` keeps left and right rows of each key in the order of (at, pos) and, for each left row, the right row it
meets. *Backward* (as-of) that is the last one at or before it, *forward* (labels) the first one at or after it; in
either case not farther away than `reach`. A right row that comes or goes at t can change only the left rows between
t and its neighbour on the far side, so a late row corrects those and no others.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numba import njit

from operators.delta import AT, BEGINNING, POS, Array, Columns, Delta, Ints, Schema, concat, is_null
from operators.operator import DefinitionError, Operator, Relation, as_names, fit_as_key, known, new_columns
from operators.state import Keyed, Rows
from operators.timeline import LEAST, MOST, Cells, Sweep, Timelines, ahead, appended, back, cut, first, put, same, tidy

Chosen = tuple[tuple[str, str], ...]
"""Pairs (name in the result, column of the right input)."""
Choice = Sequence[str] | Mapping[str, str] | None
"""Right columns as the user chooses them: names, or {new name: name}, or all."""


@dataclass(frozen=True, eq=False)
class Joined(Operator, abc.ABC):
    """What the joins have in common: a right input, the key columns on both sides, and the right columns to add."""

    right: Relation
    on: tuple[str, ...]
    right_on: tuple[str, ...]
    columns: Chosen | None
    prefix: str

    hidden: ClassVar[str | None] = None
    """A column of the right input that is never added."""

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

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        return {**inputs[0], **{new: inputs[1][old] for new, old in self.chosen(inputs)}}

    def chosen(self, inputs: Sequence[Schema]) -> Chosen:
        """The pairs of new and right columns: all but the key and `hidden`, unless the user chose.

        Raises `DefinitionError` when a column is unknown, a key differs in type or a new name is taken.
        """
        (left, right), what = inputs, self.name
        fit_as_key(self.on, left, f"{what}: on")
        fit_as_key(self.right_on, right, f"{what}: right_on")
        for a, b in zip(self.on, self.right_on, strict=True):
            if left[a] != right[b]:
                raise DefinitionError(
                    f"{what}: the key {a!r} has type {left[a]} and {b!r} on the right {right[b]}; "
                    "expected the same type"
                )
        there = {n: t for n, t in right.items() if n != self.hidden}
        columns = self.columns
        if columns is None:
            columns = tuple((self.prefix + n, n) for n in there if n not in self.right_on)
        known([n for _, n in columns], there, f"{what}: columns")
        names = [n for n, _ in columns]
        if len(set(names)) < len(names):
            raise DefinitionError(f"{what}: columns are {names!r}; expected different names")
        new_columns(left, {new: right[old] for new, old in columns}, what)
        return columns

    def pairs(self, relations: Sequence[pl.LazyFrame], met: pl.Expr) -> tuple[pl.LazyFrame, pl.LazyFrame]:
        """From scratch: the left rows, numbered as `_row`; and for each its right rows for which `met` is true.

        The latter in the order of (`_r_at`, `_r_pos`), with the columns to add under their new names, and `hidden`.
        """
        left, right = relations
        columns = self.chosen([{n: t for n, t in r.collect_schema().items() if n not in (AT, POS)} for r in relations])
        keys = [f"_key{i}" for i in range(len(self.on))]
        found = right.select(
            *(pl.col(n).alias(k) for n, k in zip(self.right_on, keys, strict=True)),
            *(pl.col(old).alias(new) for new, old in columns),
            *([pl.col(self.hidden).alias("_hidden")] if self.hidden else []),
            _r_at=pl.col(AT),
            _r_pos=pl.col(POS),
        )
        rows = left.with_row_index("_row")
        joined = rows.select("_row", AT, *self.on).join(found, left_on=self.on, right_on=keys)
        return rows, joined.filter(met).sort("_r_at", "_r_pos").drop(self.on)


def declared(
    right: Any, on: Any, right_on: Any, columns: Choice, prefix: str, what: str
) -> tuple[Relation, tuple[str, ...], tuple[str, ...], Chosen | None, str]:
    """The fields of `Joined` as the user gave them. Raises `DefinitionError`."""
    if not isinstance(right, Relation):
        raise DefinitionError(f"{what}: the right input is {right!r}; expected a source or a view")
    left_on = as_names(on, f"{what}: on")
    found_on = left_on if right_on is None else as_names(right_on, f"{what}: right_on")
    if len(left_on) != len(found_on):
        raise DefinitionError(
            f"{what}: on has {len(left_on)} columns {list(left_on)!r} and right_on {len(found_on)} "
            f"{list(found_on)!r}; expected one for each"
        )
    if isinstance(columns, str):
        raise DefinitionError(f"{what}: columns is {columns!r}; expected a list such as [{columns!r}], or a dict")
    if isinstance(columns, Mapping):
        if prefix:
            raise DefinitionError(f"{what}: columns as a dict says the new names already; leave out prefix={prefix!r}")
        return right, left_on, found_on, tuple(columns.items()), prefix
    return right, left_on, found_on, None if columns is None else tuple((prefix + n, n) for n in columns), prefix


@njit(cache=True)
def _met(slab, runs, slot, at, reach, forward):  # type: ignore[no-untyped-def]
    """The number of the right row that a left row at `at` meets, 0 for none."""
    head, tail = runs[slot, 2], runs[slot, 3]
    if head == tail:
        return 0
    if forward:
        i = first(slab, head, tail, at, LEAST)
        return slab[i, 2] if i < tail and slab[i, 0] <= ahead(at, reach) else 0
    i = tail if slab[tail - 1, 0] <= at else first(slab, head, tail, at, MOST)
    i -= 1
    if i < head or slab[i, 3] == 1 or (reach >= 0 and slab[i, 0] < back(at, reach)):
        return 0
    return slab[i, 2]


@njit(cache=True)
def _span(slab, runs, slot, at, reach, forward):  # type: ignore[no-untyped-def]
    """The first and last `at` of left rows that a right row at `at`, come or gone, can meet."""
    head, tail = runs[slot, 2], runs[slot, 3]
    if forward:
        i = first(slab, head, tail, at, LEAST)
        start = back(at, reach)
        return (max(start, slab[i - 1, 0] + 1) if i > head else start), at
    i = first(slab, head, tail, at, MOST)
    end = ahead(at, reach) if reach >= 0 else MOST
    return at, (min(end, slab[i, 0] - 1) if i < tail else end)


@njit(cache=True)
def _meet(  # type: ignore[no-untyped-def]
    forward, reach, number, slab, runs, free, slot, at, pos, weight, seq,
    r_slab, r_runs, r_free, r_slot, r_at, r_pos, r_weight, r_seq, r_row, r_hidden,
):  # fmt: skip
    """Apply changes of the left input (slot, at, ...) and of the right one (r_...).

    Backward all changes are one (a wave), forward those of one `seq` are. Left entries are (at, pos, number, right row
    met), right entries (at, pos, row, hidden). Returns the slabs; for each left row the right row it meets (or met);
    the left numbers and right rows taken back; corrections (left number, right row before, after, seq); and the
    number of a row that was taken back but is not there (right rows after left ones), or -1.
    """
    n, m = slot.shape[0], r_slot.shape[0]
    met = np.zeros(n, np.int64)
    gone, goners = np.empty(16, np.int64), 0
    r_gone, r_goners = np.empty(16, np.int64), 0
    fixes, fixed = np.empty((16, 4), np.int64), 0
    a = b = 0
    while a < n or b < m:
        a_end, b_end = n, m
        if forward:
            now = seq[a] if a < n and (b == m or seq[a] <= r_seq[b]) else r_seq[b]
            a_end, b_end = a, b
            while a_end < n and seq[a_end] == now:
                a_end += 1
            while b_end < m and r_seq[b_end] == now:
                b_end += 1
        for i in range(a, a_end):
            s = slot[i]
            if weight[i] < 0 and s >= 0:
                k = first(slab, runs[s, 2], runs[s, 3], at[i], pos[i])
                if k == runs[s, 3] or slab[k, 0] != at[i] or slab[k, 1] != pos[i]:
                    return slab, r_slab, met, gone[:0], r_gone[:0], fixes[:0], i
                met[i] = slab[k, 3]
                gone = appended(gone, goners, slab[k, 2])
                goners += 1
                cut(slab, runs, s, k)
        for j in range(b, b_end):
            s = r_slot[j]
            if s < 0:
                continue
            if r_weight[j] > 0:
                r_slab = put(r_slab, r_runs, r_free, s, r_at[j], r_pos[j], r_row[j], r_hidden[j])
                k = first(r_slab, r_runs[s, 2], r_runs[s, 3], r_at[j], r_pos[j])
                while r_hidden[j] == 1 and k > r_runs[s, 2] and r_slab[k - 1, 0] == r_at[j]:
                    k -= 1  # hidden from its own time on: no row can meet it any more
                    r_gone = appended(r_gone, r_goners, r_slab[k, 2])
                    r_goners += 1
                    cut(r_slab, r_runs, s, k)
                continue
            k = first(r_slab, r_runs[s, 2], r_runs[s, 3], r_at[j], r_pos[j])
            if k == r_runs[s, 3] or r_slab[k, 0] != r_at[j] or r_slab[k, 1] != r_pos[j]:
                return slab, r_slab, met, gone[:0], r_gone[:0], fixes[:0], n + j
            r_gone = appended(r_gone, r_goners, r_slab[k, 2])
            r_goners += 1
            cut(r_slab, r_runs, s, k)
        for j in range(b_end - 1, b - 1, -1):  # the last change of a left row is the cause of what it is now
            s = r_slot[j]
            if s < 0 or runs[s, 2] == runs[s, 3]:
                continue
            start, end = _span(r_slab, r_runs, s, r_at[j], reach, forward)
            k = first(slab, runs[s, 2], runs[s, 3], start, LEAST)
            while k < runs[s, 3] and slab[k, 0] <= end:
                row = _met(r_slab, r_runs, s, slab[k, 0], reach, forward)
                if row != slab[k, 3]:
                    if fixed == fixes.shape[0]:
                        more = np.empty((2 * fixed, 4), np.int64)
                        more[:fixed] = fixes
                        fixes = more
                    fixes[fixed, 0], fixes[fixed, 1] = slab[k, 2], slab[k, 3]
                    fixes[fixed, 2], fixes[fixed, 3] = row, r_seq[j]
                    fixed += 1
                    slab[k, 3] = row
                k += 1
        for i in range(a, a_end):
            s = slot[i]
            if weight[i] > 0 and s >= 0:
                met[i] = _met(r_slab, r_runs, s, at[i], reach, forward)
                slab = put(slab, runs, free, s, at[i], pos[i], number, met[i])
                number += 1
        a, b = a_end, b_end
    return slab, r_slab, met, gone[:goners], r_gone[:r_goners], fixes[:fixed], -1


@njit(cache=True)
def _forget(  # type: ignore[no-untyped-def]
    forward, reach, horizon, slots, held, slab, runs, free, r_slab, r_runs, r_free
):  # fmt: skip
    """Forget at these slots, as far as they are held, what no change can ask for any more.

    Right rows, backward: those before the last one before the horizon, and those out of reach of it; forward: those
    before the horizon. Left rows, backward: those before the horizon; forward: those out of reach of the
    horizon, and those whose answer is before it.

    Returns the slabs, the right rows and the left numbers forgotten, and the slots now empty.
    """
    rows, n = np.empty(16, np.int64), 0
    numbers, m = np.empty(16, np.int64), 0
    empty, e = np.empty(16, np.int64), 0
    floor = back(horizon, reach) if reach >= 0 else BEGINNING
    for t in range(slots.shape[0]):
        s = slots[t]
        if held[s] == 0:
            continue
        head, tail = r_runs[s, 2], r_runs[s, 3]
        answered = LEAST
        while head < tail and r_slab[head, 0] < horizon:
            if not forward:
                followed = head + 1 < tail and r_slab[head + 1, 0] < horizon
                if not followed and r_slab[head, 3] == 0 and r_slab[head, 0] >= floor:
                    break
            answered = r_slab[head, 0]
            rows = appended(rows, n, r_slab[head, 2])
            n += 1
            head += 1
        r_runs[s, 2] = head
        r_slab = tidy(r_slab, r_runs, r_free, s)
        head, tail = runs[s, 2], runs[s, 3]
        while head < tail and (
            slab[head, 0] < (floor if forward else horizon) or (forward and slab[head, 0] <= answered)
        ):
            numbers = appended(numbers, m, slab[head, 2])
            m += 1
            head += 1
        runs[s, 2] = head
        slab = tidy(slab, runs, free, s)
        if runs[s, 1] == 0 and r_runs[s, 1] == 0:
            held[s] = 0
            empty = appended(empty, e, s)
            e += 1
    return slab, r_slab, rows[:n], numbers[:m], empty[:e]


class Meeting(Keyed):
    """Left rows with the right row each of them meets.

    forward: the first right row at or after the left one instead of the last at or before it, and left rows that meet
    none are left out instead of having nulls; rest: those that meet one are. reach: how far away it may be in
    microseconds, -1 for any distance.
    hidden: a Boolean column of the right input; a right row for which it is true is met, but as if there were none.
    """

    alone = True

    def __init__(
        self,
        keys: Sequence[Sequence[str]],
        inputs: Sequence[Schema],
        columns: Chosen,
        *,
        reach: int = -1,
        forward: bool = False,
        rest: bool = False,
        hidden: str | None = None,
    ) -> None:
        left, right = inputs
        super().__init__(keys, {**left, **{new: right[old] for new, old in columns}})
        self.chosen = columns
        self.reach, self.forward, self.rest, self.hidden = reach, forward, rest, hidden
        self.left, self.right = Timelines(), Timelines()
        self.rows = Rows(left)
        self.cells = Cells({new: right[old] for new, old in columns})
        self.sweep = Sweep()

    def reserve(self, slots: int) -> None:
        self.left.reserve(slots)
        self.right.reserve(slots)
        self.sweep.reserve(slots)

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        self._clean(horizon)
        return out

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        left, right = deltas
        slot, r_slot = (_unless_null(d, s, k) for d, s, k in zip(deltas, slots, self.key_names, strict=True))
        for delta, found, kept in zip(deltas, slots, (slot, r_slot), strict=True):
            self.sweep.touch(found, (delta.weight < 0) | (kept < 0))
        number = self.rows.first + len(self.rows)
        if len(left):
            there = (left.weight > 0) & (slot >= 0)
            self.rows.add(left if there.all() else left.take(there))
        r_row, r_hidden = self._right_rows(right, r_slot)
        self.left.slab, self.right.slab, met, gone, r_gone, fixes, bad = _meet(
            self.forward, self.reach, number,
            self.left.slab, self.left.runs, self.left.free, slot, left.at, left.pos, left.weight, left.seq,
            self.right.slab, self.right.runs, self.right.free, r_slot, right.at, right.pos, right.weight, right.seq,
            r_row, r_hidden,
        )  # fmt: skip
        if bad >= 0:
            self._refuse(left, right, bad)
        out = left.with_columns({**left.columns, **self.cells.take(met)})
        if self.forward and not (kept := (met > 0) != self.rest).all():
            out = out.take(kept)
        if len(fixes):
            out = concat([out, self._corrections(fixes)])
        if len(gone):
            self.rows.remove(gone)
        if len(r_gone):
            self.cells.remove(r_gone)
        return out

    def _right_rows(self, right: Delta, slot: Ints) -> tuple[Ints, Array]:
        """The row of each right insert in `cells`, and whether it hides."""
        row = np.zeros(len(right), np.int64)
        if not len(right):
            return row, np.zeros(0, np.int8)
        hidden = (
            np.zeros(len(right), np.int8) if self.hidden is None else (right.columns[self.hidden] == 1).astype(np.int8)
        )
        there = (right.weight > 0) & (slot >= 0)
        columns: Columns = {new: right.columns[old] for new, old in self.chosen}
        if there.all():
            return self.cells.add(columns, len(right)), hidden
        row[there] = self.cells.add({n: c[there] for n, c in columns.items()}, int(there.sum()))
        return row, hidden

    def _corrections(self, fixes: Ints) -> Delta:
        """-old +new of left rows that meet another right row now, unless its columns are the same."""
        number, before, after, seq = fixes.T
        old, new = self.cells.take(before), self.cells.take(after)
        other = np.zeros(len(fixes), np.bool_)
        for name in old:
            other |= ~same(old[name], new[name])
        pairs = np.ones((len(fixes), 2), np.bool_)
        if self.forward:
            pairs = np.stack([before > 0, after > 0], 1) != self.rest
            other |= pairs[:, 0] != pairs[:, 1]
        line, side = np.nonzero(pairs & other[:, None])
        out = self.rows.take(number[line], 2 * side - 1, seq[line])
        columns = self.cells.take(np.where(side == 1, after[line], before[line]))
        return out.with_columns({**out.columns, **columns})

    def _refuse(self, left: Delta, right: Delta, bad: int) -> None:
        side, delta, i = ("left", left, bad) if bad < len(left) else ("right", right, bad - len(left))
        raise ValueError(
            f"a {side} row with at={int(delta.at[i])}, pos={int(delta.pos[i])} was taken back that is not there: "
            "expected a row that was inserted, not taken back since, and not before the horizon"
        )

    def _clean(self, horizon: int) -> None:
        if not len(slots := self.sweep.slots(self.slots.capacity, horizon)):
            return
        self.left.slab, self.right.slab, rows, numbers, empty = _forget(
            self.forward, self.reach, horizon, slots, self.sweep.held,
            self.left.slab, self.left.runs, self.left.free, self.right.slab, self.right.runs, self.right.free,
        )  # fmt: skip
        if len(rows):
            self.cells.remove(rows)
        if self.forward and len(numbers):
            self.rows.remove(numbers[numbers >= self.rows.first])
        if horizon > BEGINNING:
            self.rows.expire(int(back(horizon, self.reach)) if self.forward else horizon)
        if len(empty):
            self.slots.release(empty.tolist())
            if not len(self.slots):
                self._clear()

    def _clear(self) -> None:
        """Give the memory back when nothing is left."""
        for part in (self.left, self.right, self.cells):
            part.clear()
        self.rows = Rows({n: self.out[n] for n in self.rows.columns})
        self.reserve(self.slots.capacity)

    def arrays(self) -> dict[str, Any]:
        return {n: p.snapshot() for n, p in self._parts().items()}

    def load(self, arrays: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.restore(arrays[name])

    def _parts(self) -> dict[str, Timelines | Rows | Cells | Sweep]:
        return {"left": self.left, "right": self.right, "rows": self.rows, "cells": self.cells, "sweep": self.sweep}

    @property
    def size(self) -> tuple[int, int]:
        return len(self.slots), self.slots.nbytes + sum(p.nbytes for p in self._parts().values())


def _unless_null(delta: Delta, slots: Ints, key: Sequence[str]) -> Ints:
    """The slots, -1 where a column of the key is null."""
    for name in key:
        if len(slots) and (missing := is_null(delta.columns[name])).any():
            slots = np.where(missing, -1, slots)
    return slots
