"""Deferred views: their inputs wait until the view is due, and are then given to it as one change, the net of all.

When a view is due depends on what became known, and when, never on how that was cut into batches or on a clock: a
replay refreshes where the live run did.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.batch import Batch
from engine.graph import Graph, Hold
from engine.plan import horizons, roots
from operators.delta import BEGINNING, Delta, concat, consolidated, empty


class Holding:
    """What a deferred view waits with.

    pending: for each input its changes since the last refresh. bounds: below which no row of it will come out any more.
    seen: the watermarks of its sources that the inputs contain; contained: those that the last refresh took in. turn,
    read: the last multiple of `every`, and of `rows`.
    """

    def __init__(self, graph: Graph, hold: Hold) -> None:
        self.graph, self.hold, self.schemas = graph, hold, graph.schemas
        self.sources = sorted(roots(graph)[hold.view])
        direct = roots(graph, held=True)
        self.before = sorted(frozenset[str]().union(*(direct[given] for _, given in hold.inputs)))
        self.pending = {held: empty(self.schemas[held]) for held, _ in hold.inputs}
        self.seen = self.contained = dict.fromkeys(self.sources, BEGINNING)
        self.bounds = dict.fromkeys(self.pending, BEGINNING)
        self.turn: int | None = None
        self.read = self.refreshes = 0

    def __call__(self, batch: Batch) -> Batch:
        """Take in a batch; what is due goes out with it. Batches end where a view is due: see `Merge`."""
        every, rows = self.hold.refresh.every, self.hold.refresh.rows
        batch.horizon.update(self.bounds)
        out: list[dict[str, Delta]] = []
        if every is not None and batch.clock is not None:
            turn, before = batch.clock // every, self.turn
            self.turn = turn
            if before is not None and turn > before:
                out.append(self._refresh(batch, batch.first))
        for held, given in self.hold.inputs:
            self.pending[held] = concat([self.pending[held], batch.deltas[given]])
        above = [batch.held[name][0] for name in self.before if name in batch.held]
        self.seen = {s: min([batch.watermark[s], *(c[s] for c in above if s in c)]) for s in self.sources}
        if rows is not None:
            full = sum(batch.read[s] for s in self.sources) // rows
            if full > self.read:
                out.append(self._refresh(batch, batch.last))
            self.read = full
        for held in self.pending:
            batch.deltas[held] = concat([o[held] for o in out]) if out else empty(self.schemas[held])
        batch.watermark.update(self.bounds)
        batch.held[self.hold.view] = dict(self.contained), sum(map(len, self.pending.values())), self.refreshes
        return batch

    def _refresh(self, batch: Batch, seq: int) -> dict[str, Delta]:
        """All that is pending, which becomes known to the view at `seq`."""
        out = {held: _net(rows, seq) for held, rows in self.pending.items()}
        self.pending = {held: empty(self.schemas[held]) for held in self.pending}
        reached = horizons(self.graph, batch.horizon)
        self.bounds = {held: reached[given] for held, given in self.hold.inputs}
        self.contained = self.seen
        self.refreshes += 1
        return out

    def snapshot(self) -> Any:
        return self.pending, self.seen, self.contained, self.bounds, self.turn, self.read, self.refreshes

    def restore(self, state: Any) -> None:
        self.pending, self.seen, self.contained, self.bounds, self.turn, self.read, self.refreshes = state


def _net(rows: Delta, seq: int) -> Delta:
    """The rows as one change: what leaves comes first."""
    net = consolidated(rows)
    net = net.take(np.argsort(net.weight > 0, kind="stable"))
    net.seq = np.full(len(net), seq, np.int64)
    return net
