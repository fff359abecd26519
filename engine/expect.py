"""What is expected of rows, judged: of each batch how many do not meet it; and those at which a run stops.

Rows that are put aside need nothing here: that is two relations of one, made where they are declared. Every expectation
is judged on all rows that come, and on those that leave, so that what fails now is known. A row that fails as before,
whatever has changed before it, does not count again.
"""

from __future__ import annotations

from collections.abc import Collection

from engine.batch import Batch
from engine.graph import Expected, Graph
from engine.merge import OFFSET_BITS, PARTITION_BITS
from operators.delta import without_idle
from operators.expectation import Judge
from operators.learned import Learned
from operators.operator import DefinitionError


class ExpectationError(RuntimeError):
    """A row that a run must not go on with; the text says what it does not meet, where it came from, and the cure."""


def place(graph: Graph, pos: int) -> str:
    """Where a change came from, in words."""
    source = list(graph.sources)[pos >> (PARTITION_BITS + OFFSET_BITS)]
    partition, offset = (pos >> OFFSET_BITS) & ((1 << PARTITION_BITS) - 1), pos & ((1 << OFFSET_BITS) - 1)
    return f"source {source!r}, partition {partition}, position {offset}"


def check_learned(graph: Graph, cure: str) -> None:
    """Raises `DefinitionError` when an expectation has no bounds yet. cure: what finds them."""
    for told in graph.expected.values():
        for e in told.expectations:
            if isinstance(e, Learned) and e.bounds is None:
                raise DefinitionError(
                    f"{told.what}: {e.name} is learned, but its bounds are not, or were learnt for another definition; "
                    f"find them with {cure}"
                )


class Judged:
    """Judges the rows of these relations, batch by batch."""

    def __init__(self, graph: Graph, relations: Collection[str]) -> None:
        self._graph = graph
        self._judges = {
            name: (e, Judge(e.expectations, e.schema)) for name, e in graph.expected.items() if name in relations
        }

    def __call__(self, batch: Batch) -> Batch:
        """Take in a batch in which the changes of the relations are. Raises `ExpectationError`."""
        for name, (told, judge) in self._judges.items():
            rows = batch.deltas[told.judged]
            if not len(rows):
                continue
            batch.failures[name] = []
            for e, failing in zip(told.expectations, judge(rows), strict=True):
                wrong = rows.take(failing)
                if told.judged != told.rows:
                    own = batch.deltas[told.rows].columns
                    wrong = without_idle(wrong.with_columns({n: wrong.columns[n] for n in own}))
                came = wrong.weight > 0
                batch.failures[name].append((int(came.sum()), int((~came).sum())))
                if e.severity == "stop" and came.any():
                    self._stop(told, e.name, int(wrong.pos[came][0]))
        return batch

    def _stop(self, told: Expected, name: str, pos: int) -> None:
        raise ExpectationError(
            f"{told.what}: a row does not meet {name}, and its severity is 'stop'. It came from "
            f"{place(self._graph, pos)}; nothing of its batch is published. Mend it there; or declare severity='warn' "
            "to go on with it; or 'quarantine' to put it aside, which needs a start without the state and the outputs"
        )
