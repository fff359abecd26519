"""An erasure request: the rows of sources that it means, found by reading the sources again.

A row of an append-only source is taken back as what it is; of a source with corrections or a table it is deleted,
as a message of the source would. So views are repaired as by any other change. A row of an append-only source that is
older than its lateness is *final*: operators have let go of what they would need, unless the source is `erasable`.

What came from a row has its position: by that, training sets and models find the examples, whatever their age.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from time import sleep

import msgspec
import numpy as np
import orjson
import polars as pl

from engine.bind import Inputs
from engine.graph import DELETED, Graph, Source
from engine.merge import Chunk, Merge
from engine.settings import Settings
from operators.delta import AT, BOOL, FLOAT, INT, POS, TIME, Delta, Ints, concat, empty, nulls, to_array
from operators.latest import latest
from operators.message import completed
from operators.operator import DefinitionError


class Request(msgspec.Struct, frozen=True):
    """What is to be forgotten: by column a value, as text; all of them must be met."""

    where: dict[str, str]

    def __str__(self) -> str:
        return " ".join(f"{column}={value}" for column, value in self.where.items())


def request(graph: Graph, given: Sequence[str]) -> Request:
    """The request that texts like "card=a" make. Raises `DefinitionError` when they fit no source."""
    where = {}
    for text in given:
        column, equals, value = text.partition("=")
        if not equals or not column:
            raise DefinitionError(f"what is to be forgotten is {text!r}: expected column=value, such as card=1234")
        where[column] = value
    made = Request(where)
    if not meant(graph, made):
        known = "; ".join(f"{s.name}: {', '.join(s.columns)}" for s in graph.sources.values())
        raise DefinitionError(f"forget: no source has the columns {', '.join(where)}. Known columns: {known}")
    return made


def meant(graph: Graph, asked: Request) -> dict[str, pl.Expr]:
    """For each source that has the columns the condition that its rows meet. Raises `DefinitionError`."""
    return {
        s.name: pl.all_horizontal(pl.col(c) == _value(s, c, text) for c, text in asked.where.items())
        for s in graph.sources.values()
        if asked.where.keys() <= s.columns.keys()
    }


def _value(source: Source, column: str, text: str) -> pl.Expr:
    dtype = source.columns[column]
    what = f"forget: {column} is {text!r}, but in source {source.name!r} it has the type {dtype}"
    if dtype == FLOAT:
        raise DefinitionError(f"{what}: floats that look alike may differ; choose another column")
    try:
        if dtype == INT:
            return pl.lit(int(np.int64(int(text))), INT)
        if dtype == BOOL:
            return pl.lit({"true": True, "false": False}[text.lower()])
        if dtype == TIME:
            at = datetime.fromisoformat(text.replace("Z", "+00:00"))
            return pl.lit(at.replace(tzinfo=at.tzinfo or timezone.utc).astimezone(timezone.utc)).cast(TIME)
    except (ValueError, KeyError, OverflowError):
        raise DefinitionError(f"{what}: expected such a value") from None
    return pl.lit(text)


@dataclass
class Found:
    """What a request means.

    changes: of sources, that take rows back; taken: the positions of these. positions: of all rows that were found.
    counts: by source how many `records` were found; of these `late` ones, which were never counted; `final` ones, which
    cannot be taken back from views; and how many `changes` take back the others.
    """

    changes: dict[str, Delta] = field(default_factory=dict)
    taken: dict[str, Ints] = field(default_factory=dict)
    positions: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def find(
    asked: Request, graph: Graph, settings: Settings, merge: Merge, late: Sequence[bytes], tell: Callable[[float], None]
) -> Found:
    """Read the sources again, as far as they have been handed out.

    late: the lines of late changes. tell: called with the share of a source that is done.
    """
    found = Found()
    for name, condition in meant(graph, asked).items():
        read = _Reading(graph.sources[name], graph, settings, merge, late, tell)
        rows = read.all(condition)
        count = {"records": len(rows) + read.late, "late": read.late, "final": 0}
        if read.source.append_only:
            count["final"] = int((rows.at < merge.horizon[name]).sum())
            change = _retractions(rows, merge.horizon[name], merge.taken_back(name))
            found.taken[name] = change.pos
        else:
            change, found.taken[name] = _deletions(read, rows, condition)
        found.changes[name], found.counts[name] = change, {**count, "changes": len(change)}
        found.positions = np.concatenate([found.positions, rows.pos])
    return found


def _retractions(rows: Delta, horizon: int, done: Ints) -> Delta:
    """What takes back rows of an append-only source, but those that are final or taken back already."""
    taken = rows.take((rows.at >= horizon) & ~np.isin(rows.pos, done))
    taken.weight = -taken.weight
    return taken


def _deletions(read: _Reading, rows: Delta, condition: pl.Expr) -> tuple[Delta, Ints]:
    """Messages that delete what meets the condition, and the positions of what they delete.

    Of a table whose rows have a time each version, at its time; otherwise each key whose row, as it stands, meets it.
    A deletion comes right behind what it deletes, so that what comes later counts.
    """
    source = read.source
    if not len(rows):
        return rows, rows.pos
    if not set(condition.meta.root_names()) <= set(source.key):
        keys = rows.frame({k: source.columns[k] for k in source.key}).unique()
        everything = pl.all_horizontal(pl.col(k).is_null() for k in source.key)
        rows = read.all(pl.struct(source.key).is_in(keys.to_struct().implode()) | everything)
    messages = _messages(source, rows).lazy()
    if source.table and source.at:
        standing = completed(messages, source.key).filter(~pl.col(DELETED).fill_null(False))
    else:
        standing = latest(by=source.key).recompute([messages])
    gone = standing.filter(condition).collect()
    gone = gone.filter(~np.isin(gone[POS].to_numpy(), read.merge.taken_back(source.name))).sort(POS)
    columns = {n: to_array(gone[n]) if n in source.key else nulls(len(gone), t) for n, t in source.columns.items()}
    columns[DELETED] = np.ones(len(gone), np.int8)
    one, taken = np.ones(len(gone), np.int64), gone[POS].to_numpy()
    at = gone[AT].to_numpy() if source.at else read.merge.clock * one
    if source.at:
        columns[source.at] = at
    return Delta(columns, one, at, taken + 1, 0 * one), taken


def _messages(source: Source, rows: Delta) -> pl.DataFrame:
    return rows.frame(source.messages).with_columns(pl.Series(AT, rows.at), pl.Series(POS, rows.pos))


class _Reading:
    """Reads the partitions of a source from their beginning, as far as a merge has handed them out."""

    def __init__(
        self,
        source: Source,
        graph: Graph,
        settings: Settings,
        merge: Merge,
        late: Sequence[bytes],
        tell: Callable[[float], None],
    ) -> None:
        self.source, self.merge, self.tell = source, merge, tell
        self._graph, self._settings = graph, settings
        self._late = _late(late, source.name)
        self.late = 0

    def all(self, condition: pl.Expr) -> Delta:
        """All rows that meet the condition, as inserts, but late ones, which are counted in `late`."""
        source, found = self.source, [empty(self.source.messages)]
        self.late = 0
        with Inputs(self._graph, self._settings, False, self.merge.beginnings(), again=True) as inputs:
            parts = next(parts for s, parts in inputs.parts if s is source)
            for (until, base), partition in zip(self.merge.handed_out(source.name), parts, strict=False):
                late = np.array(sorted(self._late.get(partition.name, ())), np.int64)
                while partition.position < until and not partition.ended:
                    if (chunk := partition.read()) is None:
                        sleep(0.001)  # it has not arrived yet
                        continue
                    self.tell(min(1.0, partition.position / until))
                    rows = _matching(source, chunk, condition, until, base)
                    never = np.isin(rows.pos - base, late)
                    self.late += int(never.sum())
                    found.append(rows.take(~never))
        return concat(found)


def _matching(source: Source, chunk: Chunk, condition: pl.Expr, until: int, base: int) -> Delta:
    if not len(chunk.at):
        return empty(source.messages)
    columns = dict(chunk.columns)
    if not source.append_only:
        columns[DELETED] = chunk.deleted
    n = len(chunk.at)
    rows = Delta(columns, np.ones(n, np.int64), chunk.at, chunk.offset + base, np.zeros(n, np.int64))
    needed = {c: source.columns[c] for c in condition.meta.root_names()}
    met = rows.frame(needed).select(condition.fill_null(False)).to_series().to_numpy()
    return rows.take(met & (chunk.offset < until))


def _late(lines: Sequence[bytes], source: str) -> dict[str, set[int]]:
    """The offsets of the late rows of a source, by the name of the partition."""
    found: dict[str, set[int]] = {}
    for line in lines:
        row = orjson.loads(line)
        if row["source"] == source:
            found.setdefault(row["partition"], set()).add(row["position"])
    return found
