"""The end of the flow: what each batch changed is counted and written out."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import add
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from engine.batch import Batch
from engine.encode import encode
from engine.freshness import contained, least
from engine.graph import DEAD_LETTERS, EXTRA, LATE, Graph, Sink
from engine.messages import messages
from engine.pack import Headers
from engine.plan import roots
from engine.recent import Recent
from engine.sink import Files, SinkError
from engine.taint import SUSPECT
from operators.delta import Delta


def outputs(graph: Graph, topics: Collection[str] = ()) -> list[str]:
    """The names of all outputs of a pipeline that are files. topics: those that are topics."""
    return [name for name in [*graph.sinks, *EXTRA] if name not in topics]


Failing = tuple[str, str, str]
"""A relation and what is expected of it, see `Expectation.definition`."""


class TopicSinks(Protocol):
    """Outputs that are topics: see `engine.outbox`."""

    def write(
        self, name: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers]
    ) -> None:
        """Send messages."""

    @property
    def silent(self) -> float:
        """Seconds for which messages have been waiting for an answer."""

    @property
    def unanswered(self) -> int:
        """Messages that were sent and are not acknowledged."""

    def flush(self, number: int) -> Any:
        """Make all messages up to this batch durable; returns what is to be saved."""

    def close(self) -> None:
        """Let go of them."""


class Publish:
    """Writes the changes of each sink's relations, dead letters and late changes; counts what each view holds.

    number: the last batch. rows: for each view how many rows were inserted and retracted, and of a marked one how many
    of these were suspect. contained: for each source the watermark, read: the number of changes, of which every view
    contains all, but for those that come after a deferred one. held, counts: see `Batch`. failures: by relation and
    expectation (rows that came and did not meet it, those that are there). The latter is None for one that was not
    declared from the start: it has not seen all that is there.
    recent: the newest changes, for whoever looks.

    sent: the sinks that are topics, and what takes their messages, made with its saved state.
    """

    def __init__(
        self,
        graph: Graph,
        out: Path,
        state: Any = None,
        sent: Collection[str] = (),
        topics: Callable[[Any], TopicSinks] | None = None,
    ) -> None:
        self.graph = graph
        self._sent = frozenset(sent)
        self._roots, self._holds = roots(graph), roots(graph, held=True)
        self.number = 0
        self._marked = graph.marked
        self.rows: dict[str, tuple[int, ...]] = {n: (0,) * (4 if n in self._marked else 2) for n in graph.views}
        self.contained: dict[str, int] = {}
        self.read: dict[str, int] = {}
        self.held: dict[str, tuple[dict[str, int], int]] = {}
        self.forgotten: dict[str, tuple[int, int]] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self.recent = Recent()
        lengths = offsets = None
        judged: dict[Failing, tuple[int, int | None]] = {}
        if state is not None:
            self.number, self.rows, self.contained, self.read, self.held, judged, lengths, offsets = state
        new = (0, None if self.number else 0)
        self._expected = {name: [(name, *e.definition) for e in x.expectations] for name, x in graph.expected.items()}
        self.failures = {key: judged.get(key, new) for keys in self._expected.values() for key in keys}
        for name, saved in (offsets or {}).items():
            if name not in self._sent:
                raise SinkError(
                    f"so far sink {name!r} went to topic {saved['topic']!r}, but now it goes to a file; let it go "
                    "there again (with --sink, or in freshet.toml), or start again without the state and the outputs"
                )
        self.files = Files(out, outputs(graph, self._sent), lengths)
        self.topics = None if topics is None else topics(offsets)

    def __call__(self, batch: Batch) -> None:
        """Take in a batch whose deltas are complete."""
        for name in self.graph.views:
            delta = batch.deltas[name]
            moved = [int((delta.weight > 0).sum()), int((delta.weight < 0).sum())]
            if name in self._marked:
                weight = delta.weight[delta.columns[SUSPECT] == 1]
                moved += [int((weight > 0).sum()), int((weight < 0).sum())]
            self.recent.take(name, delta)
            self.rows[name] = tuple(map(add, self.rows[name], moved))
            if batch.forgotten is not None:
                self.forgotten[name] = moved[0], moved[1]
        self.number, self.contained, self.read, self.held = batch.number, batch.watermark, batch.read, batch.held
        self.counts = batch.counts
        for name, changes in batch.failures.items():
            for key, (came, left) in zip(self._expected[name], changes, strict=True):
                failures, failing = self.failures[key]
                self.failures[key] = failures + came, None if failing is None else failing + came - left
        for sink in self.graph.sinks.values():
            for relation in sink.relations:
                if len(delta := batch.deltas[relation]):
                    if sink.name in self._sent:
                        self._send(sink, relation, delta)
                        continue
                    at = None if "at" in sink.schema else "at"
                    self.files.write(sink.name, encode(delta, sink.schema, at=at, weight="weight" not in sink.schema))
        for name, lines in ((DEAD_LETTERS, batch.dead), (LATE, batch.late)):
            if lines:
                self.recent.take_lines(name, lines)
            if lines and name in self._sent and self.topics is not None:
                self.topics.write(name, *_letters(lines))
            elif lines:
                self.files.write(name, b"".join(lines))

    def _send(self, sink: Sink, relation: str, delta: Delta) -> None:
        """The changes of a relation as messages."""
        assert self.topics is not None
        several = relation if len(sink.relations) > 1 else None
        made = messages(delta, self.graph.views[relation].key, sink.schema, several)
        mine = self._roots[relation]
        frontier = least(contained(mine, self._holds[relation], self.contained, self.held), mine)
        head = [
            ("view", relation.encode()),
            ("version", b"%d" % self.number),
            ("frontier", orjson.dumps(np.datetime64(max(frontier, 0), "us"), option=_TIME).strip(b'"')),
        ]
        heads = {w: [*head, ("op", op)] for w, op in ((1, b"upsert"), (-1, b"delete"))}
        headers = [heads[w] for w in made.rows.weight.tolist()]
        if "model_version" in sink.schema:
            versions = made.rows.columns["model_version"].tolist()
            more = {v: [*heads[1], ("model_version", str(v).encode())] for v in set(versions)}
            headers = [more[v] for v in versions]
        self.topics.write(sink.name, made.keys, made.values, headers)

    def snapshot(self) -> Any:
        offsets = None if self.topics is None else self.topics.flush(self.number)
        files = self.files.flush()
        return self.number, dict(self.rows), self.contained, self.read, self.held, dict(self.failures), files, offsets

    def close(self) -> None:
        """Close the files, and let go of the topics."""
        self.files.close()
        if self.topics is not None:
            self.topics.close()


_TIME = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def _letters(lines: Iterable[bytes]) -> tuple[list[bytes | None], list[bytes | None], list[Headers]]:
    """Dead letters and late records as messages: the key and the value that they had, and where they come from."""
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    headers: list[Headers] = []
    for line in lines:
        letter = orjson.loads(line)
        keys.append(_bytes(letter, "key"))
        value = _bytes(letter, "raw") or None if "reason" in letter else line.strip()
        values.append(b"" if value is None and keys[-1] is None else value)  # clients send no message of nothing
        topic, _, partition = letter["partition"].rpartition("/")
        reason = letter.get("reason", "late")
        told = {
            "source": letter["source"],
            "source_topic": topic or letter["partition"],
            "source_partition": partition if topic else "0",
            "source_offset": letter["position"],
            "source_timestamp": letter.get("time", ""),
            "error_class": "late" if "reason" not in letter else "malformed" if _MALFORMED.match(reason) else "refused",
            "error": reason,
            "version": f"{letter['source']}/{letter['partition']}/{letter['position']}",
        }
        headers.append([(name, str(value).encode()) for name, value in told.items()])
    return keys, values, headers


_MALFORMED = re.compile("not JSON|bad utf-8|nested|begins with a byte order mark|record of ")


def _bytes(letter: Mapping[str, Any], name: str) -> bytes | None:
    if f"{name}_base64" in letter:
        return base64.b64decode(letter[f"{name}_base64"])
    return letter[name].encode() if name in letter else None
