"""Keeping views: applies the nodes of a stage to a batch, whole or shard by shard.

`split` cuts a batch into parts by key; `Shard` holds the state of a stage's nodes for one shard and applies a part;
`Gather` puts the parts of each batch together again, in the order of the batches. A batch goes on only when all its
parts are there, so that what follows sees each batch whole and once, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.batch import Batch
from engine.graph import DELETED, Graph
from engine.plan import Stage, horizons
from engine.timing import Timing
from operators.delta import BEGINNING, Delta, Ints, concat, empty, in_order, is_null
from operators.operator import Maintained
from operators.state import keys_of, shard


@dataclass(slots=True)
class Part:
    """What one shard gets of a batch, and later gives back. One part of each batch carries the batch itself.

    full: the views that start anew. seconds: what the steps of each deferred view took.
    """

    number: int
    shard: int
    parts: int
    deltas: dict[str, Delta]
    horizon: dict[str, int]
    batch: Batch | None
    full: frozenset[str] = frozenset()
    seconds: dict[str, float] = field(default_factory=dict)


class Split:
    """Cuts batches for a keyed stage; the same key always goes to the same shard, what has no key to every one."""

    def __init__(self, stage: Stage, shards: int) -> None:
        self.stage = stage
        self.shards = shards
        self._views = {n.view for n in stage.nodes}
        self._shard_of: dict[Any, int] = {}

    def __call__(self, batch: Batch) -> list[tuple[int, Part]]:
        """The parts of the batch with their shards: one for each shard that has rows, and at least one.

        When a view starts anew every shard has a part.
        """
        full = batch.full & self._views
        if self.shards == 1 or not self.stage.split:
            inputs = {n: batch.deltas[n] for n in self._inputs()}
            return [(0, Part(batch.number, 0, 1, inputs, batch.horizon, batch, full))]
        pieces: dict[int, dict[str, Delta]] = {s: {} for s in range(self.shards)} if full else {}
        for name, key in self.stage.split.items():
            for s, piece in self._cut(batch.deltas[name], key):
                pieces.setdefault(s, {})[name] = piece
        pieces = pieces or {0: {}}
        return [
            (s, Part(batch.number, s, len(pieces), mine, batch.horizon, None if i else batch, full))
            for i, (s, mine) in enumerate(sorted(pieces.items()))
        ]

    def _inputs(self) -> list[str]:
        inside = {n.name for n in self.stage.nodes}
        return [i for n in self.stage.nodes for i in n.inputs if i not in inside]

    def _cut(self, delta: Delta, key: tuple[str, ...]) -> list[tuple[int, Delta]]:
        if not len(delta):
            return []
        if not key:
            return [(s, delta) for s in range(self.shards)]
        memo = self._shard_of
        if len(memo) > 1_000_000:
            memo.clear()
        keys = keys_of(delta.columns, key)
        for k in set(keys).difference(memo):
            memo[k] = shard(k, self.shards)
        where = np.fromiter(map(memo.__getitem__, keys), np.int64, len(keys))
        pieces = {s: np.flatnonzero(where == s) for s in np.unique(where).tolist()}
        everywhere = _of_all_keys(delta, key)
        if len(everywhere):
            for s in range(self.shards):
                pieces[s] = np.union1d(pieces.get(s, np.empty(0, np.int64)), everywhere)
        return [(s, delta.take(rows)) for s, rows in pieces.items()]


def _of_all_keys(delta: Delta, key: tuple[str, ...]) -> Ints:
    """The messages that delete every key: those whose key is null. Every shard must see them."""
    if DELETED not in delta.columns:
        return np.empty(0, np.int64)
    keyless = np.logical_and.reduce([is_null(delta.columns[k]) for k in key])
    return np.flatnonzero(keyless & (delta.columns[DELETED] == 1))


class Shard:
    """The state of a stage's nodes for one shard. timing: where each notes what it takes."""

    def __init__(self, graph: Graph, stage: Stage, timing: Timing) -> None:
        self.graph, self.stage, self._clock = graph, stage, timing.clock
        self._spent = {n.name: timing.of(n.name) for n in stage.nodes}
        self.schemas = schemas = graph.schemas
        self.maintained: dict[str, Maintained] = {
            n.name: n.operator.start([schemas[i] for i in n.inputs]) for n in stage.nodes
        }

    def apply(
        self, deltas: Mapping[str, Delta], horizon: Mapping[str, int], full: Collection[str]
    ) -> tuple[dict[str, Delta], dict[str, float]]:
        """What follows from these deltas in each node whose result is needed outside; what each deferred view took.

        full: the views that start anew; their deltas are all rows, however old.
        """
        found, bounds, seconds = dict(deltas), horizons(self.graph, horizon), dict[str, float]()
        for node in self.stage.nodes:
            hold = self.graph.holds.get(node.view)
            inside = hold is not None and node.name in hold.steps
            began, anew = self._clock(), inside and node.view in full
            if anew:
                self.maintained[node.name] = node.operator.start([self.schemas[i] for i in node.inputs])
            inputs = [found[i] if i in found else empty(self.schemas[i]) for i in node.inputs]
            if any(map(len, inputs)):
                bound = BEGINNING if anew else min(bounds[i] for i in node.inputs)
                found[node.name] = self.maintained[node.name].apply(inputs, bound)
            else:
                found[node.name] = empty(node.schema)
            self._spent[node.name].add(took := self._clock() - began)
            if inside:
                seconds[node.view] = seconds.get(node.view, 0.0) + took
        return {name: found[name] for name in self.stage.gives}, seconds

    def __call__(self, part: Part) -> Part:
        deltas, seconds = self.apply(part.deltas, part.horizon, part.full)
        return replace(part, deltas=deltas, seconds=seconds)

    def whole(self, batch: Batch) -> Batch:
        """Apply a batch that is not cut into parts."""
        deltas, seconds = self.apply(batch.deltas, batch.horizon, batch.full)
        batch.deltas.update(deltas)
        _count(batch, seconds)
        return batch

    def sizes(self) -> dict[str, tuple[int, int]]:
        """For each node (keys held, bytes held)."""
        return {name: m.size for name, m in self.maintained.items()}

    def snapshot(self) -> Any:
        return {name: m.snapshot() for name, m in self.maintained.items()}

    def restore(self, state: Any) -> None:
        for name, one in state.items():
            self.maintained[name].restore(one)


def _count(batch: Batch, seconds: Mapping[str, float]) -> None:
    for view, took in seconds.items():
        if view in batch.refreshed:
            batch.refreshed[view].seconds += took


class Gather:
    """Puts the parts of each batch together, in the order of the batches.

    done: the last batch that is whole. shards: by shard the last batch of which it had a part.
    """

    def __init__(self, stage: Stage, done: int = 0, shards: Mapping[int, int] | None = None) -> None:
        self.stage = stage
        self.done = done
        self.shards = dict(shards or {})
        self._waiting: dict[int, list[Part]] = {}

    def __call__(self, part: Part) -> list[Batch]:
        """The batches that are whole now and come next."""
        self._waiting.setdefault(part.number, []).append(part)
        self.shards[part.shard] = max(part.number, self.shards.get(part.shard, 0))
        whole = []
        while (found := self._waiting.get(self.done + 1)) and len(found) == found[0].parts:
            self.done += 1
            whole.append(self._together(self._waiting.pop(self.done)))
        return whole

    def _together(self, parts: Sequence[Part]) -> Batch:
        parts = sorted(parts, key=lambda p: p.shard)
        batch = next(p.batch for p in parts if p.batch is not None)
        for name in self.stage.gives:
            batch.deltas[name] = in_order(concat([p.deltas[name] for p in parts]))
        for p in parts:
            _count(batch, p.seconds)
        return batch

    def snapshot(self) -> tuple[int, dict[int, int]]:
        if self._waiting:
            raise AssertionError("parts of a batch are missing at a snapshot")
        return self.done, dict(self.shards)
