"""Deferred views: their inputs wait until the view is due, and are then given to it as one change, the net of all.

When a view is due is decided where batches are made (`Merge`), and a batch says which views are. Then the view takes in
what is pending, or starts anew from all of its inputs: a difference of what then comes out to what it was is the same
change. So the way can be chosen by its cost, and a view gives the same rows in the same order whichever is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.batch import Batch, Refresh
from engine.cost import Costs
from engine.freshness import contained_after_each
from engine.graph import Graph, Hold
from engine.plan import horizons, roots
from operators.delta import BEGINNING, Delta, Schema, concat, consolidated, empty, net


class Rows:
    """The rows that changes add up to. They are put together when as many changes came as there were rows."""

    def __init__(self, schema: Schema) -> None:
        self._some = [empty(schema)]
        self._count = 0

    def add(self, delta: Delta) -> None:
        """Take in a change."""
        self._some.append(delta)
        self._count += int(delta.weight.sum())
        if sum(map(len, self._some[1:])) > len(self._some[0]):
            self()

    def __len__(self) -> int:
        return self._count

    def __call__(self) -> Delta:
        """All rows, as inserts, in the order in which they came."""
        self._some = [consolidated(concat(self._some))]
        return self._some[0]


class Holding:
    """What a deferred view waits with.

    pending: for each input its changes since the last refresh. whole: its rows as of then, for a view that may start
    anew. bounds: below which no row of it will come out any more. contained: the watermarks of its sources that the
    view contains: those that its inputs contained with the last change after which nothing waited.
    """

    def __init__(self, graph: Graph, hold: Hold, costs: Costs) -> None:
        self.graph, self.hold, self.schemas, self.costs = graph, hold, graph.schemas, costs
        self.sources = sorted(roots(graph)[hold.view])
        direct = roots(graph, held=True)
        self.before = sorted(frozenset[str]().union(*(direct[given] for _, given in hold.inputs)))
        self.pending: dict[str, list[Delta]] = {held: [] for held, _ in hold.inputs}
        self.clocks = {held for held, given in hold.inputs if given in graph.clocks}
        self.whole = {} if costs.mode == "incremental" else {held: Rows(self.schemas[held]) for held in self.pending}
        self.contained = dict.fromkeys(self.sources, BEGINNING)
        self.bounds = dict.fromkeys(self.pending, BEGINNING)

    def __call__(self, batch: Batch) -> Batch:
        """Take in a batch; when the view is due all that is pending goes out with it."""
        batch.horizon.update(self.bounds)
        seqs = [-1] if self.waiting else []
        for held, given in self.hold.inputs:
            if len(batch.deltas[given]):
                self.pending[held].append(batch.deltas[given])
                seqs.append(int(batch.deltas[given].seq[0]))
                if held in self.clocks:
                    self.pending[held] = [consolidated(self._together(held))]
            batch.deltas[held] = empty(self.schemas[held])
        if self.hold.view in batch.due:
            self._refresh(batch)
        self._contain(batch, min(seqs, default=batch.last + 1))
        batch.watermark.update(self.bounds)
        changes = sum(len(d) for held, some in self.pending.items() if held not in self.clocks for d in some)
        batch.held[self.hold.view] = dict(self.contained), changes
        return batch

    @property
    def waiting(self) -> int:
        """How many changes wait."""
        return sum(len(d) for some in self.pending.values() for d in some)

    def _contain(self, batch: Batch, first: int) -> None:
        """Tell what the view contains after each change. first: the `seq` from which on something waited."""
        seen = contained_after_each(self.sources, self.before, batch.watermarks, batch.contained)
        free = max(first - batch.first, 0)
        for source, marks in seen.items():
            mine = marks.copy()
            if len(mine):
                mine[free:] = marks[free - 1] if free else self.contained[source]
                if not self.waiting:
                    mine[-1] = marks[-1]
                self.contained[source] = int(mine[-1])
            seen[source] = mine
        batch.contained[self.hold.view] = seen

    def _refresh(self, batch: Batch) -> None:
        """Give out what is pending, or all rows: they become known to the view with the last change of the batch."""
        out = {held: _change(self._together(held), batch.last) for held in self.pending}
        self.pending = {held: [] for held in self.pending}
        reached = horizons(self.graph, batch.horizon)
        self.bounds = {held: reached[given] for held, given in self.hold.inputs}
        if not any(map(len, out.values())):
            return
        for held, rows in self.whole.items():
            rows.add(out[held])
        changes = sum(map(len, out.values()))
        way = self.costs.choose({"incremental": changes, "full": sum(map(len, self.whole.values()))})
        if way == "full":
            out = {held: _change(rows(), batch.last) for held, rows in self.whole.items()}
        batch.deltas.update(out)
        batch.refreshed[self.hold.view] = Refresh(way, sum(map(len, out.values())))

    def _together(self, held: str) -> Delta:
        return concat([empty(self.schemas[held]), *self.pending[held]])

    def snapshot(self) -> Any:
        self.pending = {held: [self._together(held)] for held in self.pending}
        whole = {held: rows() for held, rows in self.whole.items()}
        return self.pending, whole, self.contained, self.bounds, self.costs.snapshot()

    def restore(self, state: Any) -> None:
        self.pending, whole, self.contained, self.bounds, costs = state
        for held, rows in whole.items():
            self.whole[held].add(rows)
        self.costs.restore(costs)


def _change(rows: Delta, seq: int) -> Delta:
    """The rows as one change: what leaves comes first, and otherwise they keep their order, as messages must."""
    change = consolidated(rows)
    change = change.take(np.argsort(change.weight > 0, kind="stable"))
    change.seq = np.full(len(change), seq, np.int64)
    return change


class Settling:
    """What comes out of a deferred view, as one change of what it was; see `net`.

    rows: what it is, for a view that may start anew.
    """

    def __init__(self, graph: Graph, hold: Hold, costs: Costs, timer: Callable[[], float]) -> None:
        self.view, self.end, self.costs, self.timer = hold.view, hold.end, costs, timer
        self.rows = None if costs.mode == "incremental" else Rows(graph.nodes[hold.end].schema)

    def __call__(self, batch: Batch) -> Batch:
        """Take in a batch through which the steps of the view went."""
        refresh = batch.refreshed.get(self.view)
        if refresh is None:
            return batch
        began, out = self.timer(), batch.deltas[self.end]
        if refresh.way == "full":
            assert self.rows is not None
            was = self.rows()
            out = concat([Delta(was.columns, -was.weight, was.at, was.pos, was.seq), out])
        batch.deltas[self.end] = out = net(out, batch.last)
        if self.rows is not None:
            self.rows.add(out)
        self.costs.record(refresh.way, refresh.changes, refresh.seconds + self.timer() - began)
        return batch

    def snapshot(self) -> Any:
        return None if self.rows is None else self.rows()

    def restore(self, state: Any) -> None:
        if self.rows is not None:
            self.rows.add(state)
