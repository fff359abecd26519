"""What a source or view was at some moment: a pure function of the change logs.

    past(v, t) = as_of(log of v, t)                              when it has a log
               = recompute(past(i, t) for each input i of v)     otherwise

So a view is found at any moment when it, or all that it is made of, has a log. What depends on more than that is
refused: a deferred view on when it was refreshed, one of silences on how far its sources had come, a view that forgets
keys on when it did, predictions on the model.

Several logs are read as of one moment: while a run goes on, one up to which all are complete.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import polars as pl

from engine.changes import complete
from engine.graph import Graph, Source
from engine.log import KNOWN, SEQ, LogError, as_of, scan
from operators.delta import AT, BEGINNING, INT, POS, TIME
from operators.latest import latest
from operators.operator import DefinitionError


def past(
    graph: Graph, state: Path, name: str, known: datetime | int | None = None, seq: int | None = None
) -> pl.DataFrame:
    """The rows of a source or view, in the order of `_at` and `_pos`, as they were then (by default: as they are).

    state: where the state of the pipeline is kept. known: with what was known at that time (inclusive; an int is
    microseconds UTC). seq: with the changes up to that one. Rows from a log of their own also say in `_known` and
    `_seq` when they came. A keyed source gives the rows of its keys. Raises `DefinitionError` when it cannot be told,
    `LogError`.
    """
    training = {m.training.name for m in graph.models.values()}
    if name not in (there := [*graph.sources, *graph.views]):
        close = difflib.get_close_matches(name, there, 1)
        raise DefinitionError(
            f"there is no source or view {name!r} in pipeline {graph.name!r}"
            f"{f'; did you mean {close[0]!r}?' if close else '.'} There are: {', '.join(there)}"
        )
    if name in training or (name in graph.views and name in graph.logged):
        return as_of(scan(state / "log" / name), known, seq).collect()
    needed(graph, name)
    last = whole(state)
    given = {n: then(scan(state / "log" / n), known, last if seq is None else min(seq, last)) for n in graph.logged}
    rows = _rows(graph, name, {n: frame.collect() for n, frame in given.items()})
    at = pl.when(pl.col(AT) != BEGINNING).then(pl.col(AT)).cast(TIME)
    return rows.sort(AT, POS).with_columns(at.alias(AT))


def needed(graph: Graph, name: str, roots: bool = False) -> set[str]:
    """The logs from which a relation is recomputed. roots: those of sources only, whatever else has one.

    Raises `DefinitionError` when one is missing, or when more than logs is needed.
    """
    found, missing, declared = set[str](), list[str](), graph.declared
    predictions = {m.predictions.name for m in graph.models.values()}

    def cure(of: str, trail: tuple[str, ...]) -> str:
        """What is to be done where it depends on more what this view was: something on the way must have a log."""
        logs = [v for v in (of, name) if v in trail and v in graph.ends]
        return f"declare log=True of {logs[0]!r}" if logs and not roots else "it cannot be recomputed"

    def visit(one: str, path: str, before: tuple[str, ...] = ()) -> None:
        trail = (*before, one)
        if one in found or one in missing:
            return
        if one in graph.logged and not (roots and one in graph.views):
            found.add(one)
        elif one in graph.sources:
            missing.append(one)
        elif one in predictions:
            raise DefinitionError(f"{path} is made by a model as it was then: take it from where a sink keeps it")
        elif one in graph.clocks:
            view = one.removesuffix(".clock")
            raise DefinitionError(
                f"{path}: what view {view!r} was depends on how far its sources had come; {cure(view, trail)}"
            )
        else:
            node = declared[one]
            if node.view in graph.holds:
                raise DefinitionError(
                    f"{path}: what the deferred view {node.view!r} was depends on when it was refreshed; "
                    + cure(node.view, trail)
                )
            if node.operator.forgets:
                raise DefinitionError(
                    f"{path}: {node.operator.name} forgets keys (keep=), so what {node.view!r} was depends on when it "
                    f"did; {cure(node.view, trail)}"
                )
            for other in node.inputs:
                visit(other, path, trail)

    visit(name, f"{name!r} as of a moment")
    if missing:
        of = ", ".join(f"{graph.sources[n].kind} {n!r}" for n in missing)
        own = f", or of view {name!r}" if not roots and name in declared and declared[name].view == name else ""
        raise DefinitionError(
            f"{name!r} as of a moment: it is recomputed from change logs, and there is none of {of}; declare log=True "
            f"of {'it' if len(missing) == 1 else 'them'}{own}, and start anew"
        )
    return found


def whole(state: Path) -> int:
    """The `seq` up to which all logs are complete. Raises `LogError` when that is not known."""
    if (last := complete(state)) < 0:
        raise LogError(
            f"the change logs in {str(state / 'log')!r} are not complete: nothing has been saved, or a run is being "
            "resumed; run the pipeline, or ask again when it has saved its state"
        )
    return last


def then(log: pl.LazyFrame, known: datetime | int | None = None, seq: int | None = None) -> pl.LazyFrame:
    """What operators take: a relation as of then, from rows of its log."""
    return as_of(log, known, seq).drop(KNOWN, SEQ).with_columns(pl.col(AT).cast(INT).fill_null(BEGINNING))


class Recompute:
    """Rows of nodes from scratch. given: by name relations of which they are made."""

    def __init__(self, graph: Graph, given: Mapping[str, pl.DataFrame]) -> None:
        self._graph, self._found = graph, dict(given)

    def __call__(self, name: str) -> pl.DataFrame:
        """All rows."""
        if name not in self._found:
            node = self._graph.declared[name]
            self._found[name] = node.operator.recompute([self(i).lazy() for i in node.inputs]).collect()
        return self._found[name]

    def at(self, name: str, first: int, last: int) -> pl.DataFrame:
        """Those with an event time from `first` to `last`, from no more than they are made of (`Operator.reach`)."""
        node = self._graph.declared.get(name)
        reach = None if node is None or name in self._found else node.operator.reach
        if node is None or reach is None:
            rows = self(name)
        else:
            one, *others = node.inputs
            mine = self.at(one, max(first, BEGINNING + reach) - reach, last)
            rows = node.operator.recompute([mine.lazy(), *(self(i).lazy() for i in others)]).collect()
        return rows.filter(pl.col(AT).is_between(first, last))


def _rows(graph: Graph, name: str, given: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    source = graph.sources.get(name)
    if source is None:
        return Recompute(graph, given)(name)
    return given[name] if source.append_only else _newest(source, given[name])


def _newest(source: Source, messages: pl.DataFrame) -> pl.DataFrame:
    step = latest(by=source.key, order="at" if source.table else "position")
    return step.recompute([messages.lazy()]).collect()
