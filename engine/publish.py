"""The end of the flow: what each batch changed is counted and written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.batch import Batch
from engine.encode import encode
from engine.graph import Graph
from engine.sink import Files

DEAD_LETTERS, LATE = "dead_letters", "late"


def outputs(graph: Graph) -> list[str]:
    """The names of all output files of a pipeline."""
    return [*graph.sinks, DEAD_LETTERS, LATE]


class Publish:
    """Writes the changes of each sink's relations, dead letters and late changes; counts what each view holds.

    number: the last batch. rows: for each view (rows inserted, rows retracted). contained: for each source the
    watermark, read: the number of changes, of which every view contains all, but for those that come after a deferred
    one. held: see `Batch`.
    """

    def __init__(self, graph: Graph, out: Path, state: Any = None) -> None:
        self.graph = graph
        self.number = 0
        self.rows = dict.fromkeys(graph.views, (0, 0))
        self.contained: dict[str, int] = {}
        self.read: dict[str, int] = {}
        self.held: dict[str, tuple[dict[str, int], int]] = {}
        self.forgotten: dict[str, tuple[int, int]] = {}
        lengths = None
        if state is not None:
            self.number, self.rows, self.contained, self.read, self.held, lengths = state
        self.files = Files(out, outputs(graph), lengths)

    def __call__(self, batch: Batch) -> None:
        """Take in a batch whose deltas are complete."""
        for name in self.graph.views:
            weight = batch.deltas[name].weight
            retracted = int((weight < 0).sum())
            before = self.rows[name]
            self.rows[name] = (before[0] + len(weight) - retracted, before[1] + retracted)
            if batch.forgotten is not None:
                self.forgotten[name] = len(weight) - retracted, retracted
        for sink in self.graph.sinks.values():
            for relation in sink.relations:
                if len(delta := batch.deltas[relation]):
                    at = None if "at" in sink.schema else "at"
                    self.files.write(sink.name, encode(delta, sink.schema, at=at, weight="weight" not in sink.schema))
        if batch.dead:
            self.files.write(DEAD_LETTERS, b"".join(batch.dead))
        if batch.late:
            self.files.write(LATE, b"".join(batch.late))
        self.number, self.contained, self.read, self.held = batch.number, batch.watermark, batch.read, batch.held

    def snapshot(self) -> Any:
        return self.number, dict(self.rows), self.contained, self.read, self.held, self.files.flush()
