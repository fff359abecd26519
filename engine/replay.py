"""The notebook path: frames in, views out, through the same merge, operators and models as a long-lived run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from time import perf_counter, sleep
from typing import Any

import numpy as np
import polars as pl

from engine.batch import Batch
from engine.clock import Clock
from engine.cost import Costs
from engine.expect import Judged, check_learned
from engine.freshness import contained_after_each
from engine.graph import DELETED, Graph, Hold, Source
from engine.hold import Holding, Settling
from engine.merge import Chunk, Merge, Partition, merged
from engine.model import kept as kept_model
from engine.plan import Stage, Step, Tick, roots, steps, watermark
from engine.scan import Records
from engine.timing import Timing
from engine.view import Shard
from operators.delta import AT, BOOL, NULL, POS, Delta, accumulate, to_array
from operators.operator import DefinitionError, known


class FramePartition:
    """The rows of a frame as a partition."""

    def __init__(self, source: Source, frame: pl.DataFrame) -> None:
        self.name = source.name
        self.position = self.done = 0
        self.ended = False
        what = f"the frame of source {source.name!r}"
        if not isinstance(frame, pl.DataFrame):
            raise DefinitionError(f"{what} is a {type(frame).__name__}; expected a DataFrame of Polars")
        self.total = len(frame)
        known(list(source.columns), dict(frame.schema), what)
        try:
            self._frame = frame.select(pl.col(n).cast(t) for n, t in source.columns.items())
        except pl.exceptions.PolarsError as error:
            raise DefinitionError(f"{what} does not have the types of its schema: {error}") from None
        for name in sorted(source.required):
            if n := self._frame[name].null_count():
                raise DefinitionError(f"{what}: the column {name!r} is null in {n} rows; expected a value in each")
        given = DELETED in frame.columns and not source.append_only
        self._deleted = to_array(frame[DELETED].cast(BOOL)) if given else np.zeros(len(frame), np.int8)
        self._at = source.at

    def read(self) -> Chunk | None:
        if self.ended:
            return None
        self.ended, self.position, self.done = True, self.total, self.total
        columns = {s.name: to_array(s) for s in self._frame}
        at = columns[self._at] if self._at else np.full(self.total, NULL)
        return Chunk(columns, self._deleted, at, np.arange(self.total), Records.of([b""] * self.total))

    def left(self, position: int) -> dict[str, int]:
        return {"records": self.total - position}

    def identity(self) -> Any:
        return None


def partitions(graph: Graph, frames: Mapping[str, pl.DataFrame]) -> list[tuple[Source, Sequence[Partition]]]:
    """For each source its frame as a partition, an empty one if none is given. Raises `DefinitionError`."""
    for name in frames:
        if name not in graph.sources:
            close = get_close_matches(name, graph.sources, 1)
            raise DefinitionError(
                f"replay of pipeline {graph.name!r}: there is no source or table {name!r}"
                f"{f'; did you mean {close[0]!r}?' if close else '.'} There are: {', '.join(graph.sources)}"
            )
    empty_frames = {name: pl.DataFrame(schema=dict(s.columns)) for name, s in graph.sources.items()}
    return [
        (source, [FramePartition(source, frames.get(name, empty_frames[name]))])
        for name, source in graph.sources.items()
    ]


def batches(graph: Graph, merge: Merge) -> Iterator[Batch]:
    """What a merge hands out, with what it leads to in each view, and judged; models are left to the caller."""
    return map(Judged(graph, graph.expected.keys() - graph.of_models), changes(graph, merge))


def changes(graph: Graph, merge: Merge) -> Iterator[Batch]:
    """What a merge hands out, with what it leads to in each view."""
    costs = {view: Costs(h.refresh.mode or "incremental") for view, h in graph.holds.items()}

    def kept_by(step: Step) -> Callable[[Batch], Batch]:
        if isinstance(step, Stage):
            return Shard(graph, step, Timing(perf_counter)).whole
        if isinstance(step, Tick):
            return Clock(graph, step.clock)
        if isinstance(step, Hold):
            return Holding(graph, step, costs[step.view])
        return Settling(graph, step.hold, costs[step.hold.view], perf_counter)

    work = [kept_by(s) for s in steps(graph)]
    while (batch := merge.next()) is not None or not merge.ended:
        if batch is None:
            sleep(0.001)  # what is there has not arrived yet
            continue
        for apply in work:
            apply(batch)
        yield batch


def replay(graph: Graph, frames: Mapping[str, pl.DataFrame], batch_rows: int) -> dict[str, pl.DataFrame]:
    """See `Pipeline.replay`."""
    check_learned(graph, "freshet calibrate")
    merge = merged(graph, partitions(graph, frames), batch_rows)
    passed = roots(graph, held=True)
    models = {name: kept_model(m.spec, m.refresh) for name, m in graph.models.items()}
    kept: dict[str, list[Delta]] = {name: [] for name in graph.views}
    judged = Judged(graph, graph.of_models)
    for batch in batches(graph, merge):
        for name, m in graph.models.items():
            asked, told, below = (
                batch.deltas[m.questions],
                batch.deltas[m.answers],
                watermark(graph, m, batch.watermark),
            )
            reached = contained_after_each(m.spec.sources, passed[m.questions], batch.watermarks, batch.contained)
            made = models[name].apply(asked, told, below, batch.known, batch.first, reached=reached)
            batch.deltas[m.predictions.name], batch.deltas[m.training.name] = made
        judged(batch)
        for name, deltas in kept.items():
            deltas.append(batch.deltas[name])
    return {name: accumulate(deltas, graph.views[name].schema).drop(AT, POS) for name, deltas in kept.items()}
