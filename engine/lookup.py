"""What can be looked up: of each key of a view its newest row, by key.

    Newest(key)(R) = for each key k in R the last row of { r in R : r.key = k } by (at, pos)

So a view of one row for each key gives that row, a view of events what is newest of a key, the predictions of a model
the newest prediction. When the newest row is taken back, the one before it is the newest again. A row behind one that
cannot be taken back any more (it lies before the horizon) can never be the newest: such rows are forgotten, so what is
kept is a row for each key and what may still be corrected.

What is answered is of one version: a batch is taken in whole while nobody reads. The state is saved like that of any
step; after a crash a run goes back to it and takes in the same batches again.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from engine.batch import Batch
from engine.graph import Graph
from engine.plan import horizons
from operators.delta import Columns, Delta, Ints, Schema, numpy_type
from operators.state import Slots, grown, keys_of

_FACTS = int(np.iinfo(np.int64).max)
"""The horizon of predictions: none is ever taken back."""
_ALL = int(np.iinfo(np.int64).min)
"""A horizon that no row lies before."""


@njit(cache=True)
def _take_in(  # type: ignore[no-untyped-def]
    slot, weight, at, pos, place, horizon, head, held, limit, older, row_at, row_pos, free, n_free
):
    """Put rows that enter at their places into the chains of their slots, and take out those that leave.

    A chain goes from the newest row to older ones; place 0 stands for its end. Places of rows that are gone are added
    to `free`; returns how many are free then, or -1 when a row leaves that is not there.
    """
    for i in range(len(slot)):
        s, before, p = slot[i], 0, head[slot[i]]
        while p and (row_at[p] > at[i] or (row_at[p] == at[i] and row_pos[p] > pos[i])):
            before, p = p, older[p]
        if weight[i] < 0:
            if not p or row_at[p] != at[i] or row_pos[p] != pos[i]:
                return -1
            after = older[p]
            free[n_free] = p
            n_free += 1
            held[s] -= 1
        else:
            after = place[i]
            row_at[after], row_pos[after], older[after] = at[i], pos[i], p
            held[s] += 1
        if before:
            older[before] = after
        else:
            head[s] = after
        if held[s] > limit[s]:
            p = head[s]
            while p and row_at[p] >= horizon:
                p = older[p]
            if p:
                last, p = p, older[p]
                older[last] = 0
                while p:
                    free[n_free] = p
                    n_free += 1
                    held[s] -= 1
                    p = older[p]
            limit[s] = 2 * held[s]
    return n_free


class Newest:
    """The newest row of each key. key: its columns. schema: the columns of the rows."""

    def __init__(self, key: Sequence[str], schema: Schema) -> None:
        self.key, self.schema = tuple(key), schema
        self.slots = Slots()
        self._by_slot = {name: np.zeros(0, np.int64) for name in ("head", "held", "limit")}
        self._rows: Columns = {n: np.empty(0, numpy_type(t)) for n, t in schema.items()}
        self._at, self._pos, self._older, self._free = (np.zeros(0, np.int64) for _ in range(4))
        self._tail, self._n_free = 1, 0

    def __len__(self) -> int:
        """How many keys have a row."""
        return len(self.slots)

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return self._tail - 1 - self._n_free

    def apply(self, delta: Delta, horizon: int) -> None:
        """Take in a delta. horizon: no row with `at` below it comes or goes any more, this delta included.

        Raises `ValueError` when a row leaves that is not there.
        """
        if not len(delta):
            return
        slots = self.slots.of(keys_of(delta.columns, self.key))
        self._by_slot = {name: grown(a, self.slots.capacity) for name, a in self._by_slot.items()}
        head, held, limit = self._by_slot.values()
        enters = delta.weight > 0
        places = self._places(int(enters.sum()))
        place = np.zeros(len(delta), np.int64)
        place[enters] = places
        kept = self._n_free
        self._n_free = _take_in(
            slots, delta.weight, delta.at, delta.pos, place, horizon,
            head, held, limit, self._older, self._at, self._pos, self._free, kept,
        )  # fmt: skip
        if self._n_free < 0:
            raise ValueError("a row was taken back that is not there")
        gone = self._free[kept : self._n_free]
        come = delta if len(places) == len(delta) else delta.take(enters)
        for name, column in self._rows.items():
            column[places] = come.columns[name]
            column[gone] = None if column.dtype == object else 0
        self._at[gone] = self._pos[gone] = 0
        if (empty := slots[held[slots] == 0]).size:
            empty = np.unique(empty)
            limit[empty] = 0
            self.slots.release(empty.tolist())

    def forget(self, positions: Ints) -> None:
        """Take out the rows of these positions."""
        place = np.arange(1, self._tail)
        taken = np.zeros(self._tail, np.bool_)
        taken[self._free[: self._n_free]] = True
        some = place[~taken[1:] & np.isin(self._pos[1 : self._tail], positions)]
        columns = {n: c[some] for n, c in self._rows.items()}
        self.apply(Delta(columns, np.full(len(some), -1), self._at[some], self._pos[some], np.zeros_like(some)), _ALL)

    def _places(self, n: int) -> Ints:
        """Places for so many rows: those that are free first."""
        again = min(n, self._n_free)
        self._n_free -= again
        first, self._tail = self._tail, self._tail + n - again
        self._reserve()
        return np.concatenate([self._free[self._n_free : self._n_free + again], np.arange(first, self._tail)])

    def _reserve(self) -> None:
        self._rows = {name: grown(c, self._tail) for name, c in self._rows.items()}
        self._at, self._pos, self._older, self._free = (
            grown(a, self._tail) for a in (self._at, self._pos, self._older, self._free)
        )

    def take(self, keys: Sequence[Any]) -> tuple[Delta, npt.NDArray[np.bool_]]:
        """The rows of those keys that have one, and for each key whether it has.

        keys: as `operators.state.keys_of` gives them.
        """
        slots = self.slots.known(keys)
        there = slots >= 0
        place = self._by_slot["head"][slots[there]]
        one = np.ones(len(place), np.int64)
        columns = {n: c[place] for n, c in self._rows.items()}
        return Delta(columns, one, self._at[place], self._pos[place], one), there

    def snapshot(self) -> Any:
        mine = slice(0, self._tail)
        return {
            "slots": self.slots.snapshot(),
            "by_slot": {name: a[: self.slots.capacity] for name, a in self._by_slot.items()},
            "rows": {n: c[mine] for n, c in self._rows.items()},
            "own": [a[mine] for a in (self._at, self._pos, self._older)],
            "free": self._free[: self._n_free],
        }

    def restore(self, state: Any) -> None:
        self.slots.restore(state["slots"])
        self._by_slot, self._rows, self._free = state["by_slot"], state["rows"], state["free"]
        self._at, self._pos, self._older = state["own"]
        self._tail, self._n_free = max(len(self._at), 1), len(self._free)
        self._reserve()


class Version(NamedTuple):
    """What has been taken in. number: of the last batch. contained, read, held: see `engine.publish.Publish`."""

    number: int
    contained: dict[str, int]
    read: dict[str, int]
    held: dict[str, tuple[dict[str, int], int]]


class Found(NamedTuple):
    """What was found of some keys, all at one version. rows: of those that are there. there: which keys are."""

    version: Version
    rows: Delta
    there: npt.NDArray[np.bool_]


class Lookups:
    """The newest rows of all views that can be looked up."""

    def __init__(self, graph: Graph, state: Any = None) -> None:
        self.graph = graph
        self.kept = {view.name: Newest(view.lookup, view.schema) for view in graph.lookups.values()}
        self._facts = {m.predictions.name for m in graph.models.values()}
        self._lock = Lock()
        self._version = Version(0, {}, {}, {})
        if state is not None:
            version, kept = state
            self._version = Version(*version)
            for name, one in self.kept.items():
                one.restore(kept[name])

    def __call__(self, batch: Batch) -> None:
        """Take in a batch whose deltas are complete."""
        below = horizons(self.graph, batch.horizon)
        with self._lock:
            for name, one in self.kept.items():
                fact = name in self._facts
                try:
                    one.apply(batch.deltas[name], _FACTS if fact else below[name])
                except ValueError as error:
                    raise ValueError(f"view {name!r}: {error}") from None
                if fact and batch.forgotten is not None:
                    one.forget(batch.forgotten)
            self._version = Version(batch.number, batch.watermark, batch.read, batch.held)

    def find(self, view: str, keys: Sequence[Any]) -> Found:
        """The newest rows of these keys. Raises `KeyError` when the view cannot be looked up."""
        kept = self.kept[view]
        with self._lock:
            return Found(self._version, *kept.take(keys))

    def snapshot(self) -> Any:
        return tuple(self._version), {name: one.snapshot() for name, one in self.kept.items()}
