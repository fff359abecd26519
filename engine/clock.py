"""Clocks: the time that it is for the rows that a view reads, as a relation of one row.

That is the least watermark of the sources on which it depends which rows there are: below it no row is expected any
more. So neither a partition that is slow nor one that was not read to its end lets time pass, and rows of a deferred
view are as old as its last refresh. While nothing comes the clock stands still. Only what waits for an answer can come
out behind it (`join_label`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.batch import Batch
from engine.freshness import contained, least
from engine.graph import Graph
from engine.plan import roots
from operators.delta import BEGINNING, Delta, empty
from operators.operator import CLOCK


class Clock:
    """Adds to each batch the change of a clock, which becomes known with its last change. There is no time at first."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.name = name
        self.sources = roots(graph, rows=True)[name]
        self.passed = roots(graph, held=True, rows=True)[name]
        self.now = BEGINNING

    def __call__(self, batch: Batch) -> Batch:
        """Read the clock behind a batch."""
        now = least(contained(self.sources, self.passed, batch.watermark, batch.held), self.sources)
        batch.deltas[self.name] = empty(CLOCK) if now == self.now else self._moved(now, batch.last)
        self.now = now
        return batch

    def _moved(self, now: int, seq: int) -> Delta:
        """-old +new; a row is at the time that it says."""
        at, weight = np.array([self.now, now]), np.array([-1, 1])
        there = at > BEGINNING
        at, weight = at[there], weight[there]
        return Delta({"now": at}, weight, at, np.zeros(len(at), np.int64), np.full(len(at), seq))

    def snapshot(self) -> Any:
        return self.now

    def restore(self, state: Any) -> None:
        self.now = state
