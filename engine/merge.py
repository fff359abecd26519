"""The order of knowledge: several partitions, read as one stream of batches.

Each partition is read in its own order. A row becomes *known* at the greatest event time that its partition has
reached so far; partitions are merged by that, ties by rank (what others look up comes before what looks it up), then
by the order within the partition. So no answer overtakes its question and no look-up misses what was known, and the
order depends on the content of the partitions only, never on how they were cut into blocks. Rows are numbered in that
order: `seq`. What has arrived after its partition had ended for the moment (a followed file) is taken as it comes.

Here, row by row, it is also decided which rows are late: behind the watermark of their partition (the greatest `at` so
far; of an idle one, what was known `idle_after` ago) by more than the `lateness` of the source.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import orjson

from engine.batch import Batch
from engine.graph import DELETED, Source
from engine.scan import Records
from engine.schedule import Due, Schedule
from operators.delta import BEGINNING, NULL, Array, Columns, Delta, Ints, concat, empty, in_order

_DAY = 86_400_000_000
PARTITION_BITS, OFFSET_BITS = 12, 44
"""How a position is made: source number, partition number within the source, offset within the partition."""


@dataclass
class Chunk:
    """Rows read from a partition, in its order, with what could not become a row."""

    columns: Columns
    deleted: Array
    at: Ints
    offset: Ints
    records: Records
    bad: list[tuple[int, str, bytes]] = field(default_factory=list)
    """(offset, reason, record), by offset; without a reason it is a record that asks for nothing, only counted"""


class Partition(Protocol):
    """Something that is read in order and can be read again from a position."""

    @property
    def name(self) -> str:
        """What it is called in dead letters."""

    @property
    def position(self) -> int:
        """Where the next unread record begins."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is there now."""

    @property
    def done(self) -> int:
        """Bytes read so far."""

    @property
    def total(self) -> int:
        """Bytes there are, as far as known."""

    def read(self) -> Chunk | None:
        """The next rows; None when nothing more is there now."""

    def identity(self) -> Any:
        """What a resumed run compares to be sure that it reads the same thing; None when it cannot tell."""


class _Feed:
    """One partition in the merge: what was read and not yet handed out."""

    def __init__(self, source: Source, number: int, partition: Partition, state: Any) -> None:
        self.source = source
        self.base = number << OFFSET_BITS
        self.partition = partition
        self.position = partition.position
        self.watermark = BEGINNING
        self.counts = {"rows": 0, "late": 0, "dead": 0, "skipped": 0}
        if state is not None:
            self.position, self.watermark, self.counts = state["position"], state["watermark"], dict(state["counts"])
        self.newest = self.watermark
        self.columns = empty(source.messages).columns
        self.at = self.known = self.offset = np.empty(0, np.int64)
        self.records = Records.of([])
        self.bad: list[tuple[int, str, bytes]] = []

    def __len__(self) -> int:
        return len(self.at)

    def fill(self, clock: int) -> bool:
        """Read on. False: nothing more is there now."""
        if self.partition.ended or (chunk := self.partition.read()) is None:
            return False
        self.bad += chunk.bad
        if not len(chunk.at):
            return True
        at = chunk.at
        if (timeless := at == NULL).any():
            at = np.where(timeless, max(clock, self.newest), at)
        known = np.maximum(np.maximum.accumulate(at), self.newest)
        self.newest = int(known[-1])
        columns = dict(chunk.columns)
        if not self.source.append_only:
            columns[DELETED] = chunk.deleted.astype(np.int8)
        if len(self):
            columns = {n: np.concatenate([c, columns[n]]) for n, c in self.columns.items()}
            at, known = np.concatenate([self.at, at]), np.concatenate([self.known, known])
            self.offset = np.concatenate([self.offset, chunk.offset])
            self.records = self.records.then(chunk.records)
        else:
            self.offset, self.records = chunk.offset, chunk.records
        self.columns, self.at, self.known = columns, at, known
        return True

    def hand_out(self, n: int) -> tuple[Delta, Ints, Records]:
        """The next n rows, what they become known at, and their records."""
        delta = Delta(
            {name: c[:n] for name, c in self.columns.items()},
            np.ones(n, np.int64),
            self.at[:n],
            self.offset[:n] + self.base,
            np.empty(n, np.int64),
        )
        known, records = self.known[:n], self.records.take(slice(n))
        self.columns = {name: c[n:] for name, c in self.columns.items()}
        self.at, self.known, self.offset = self.at[n:], self.known[n:], self.offset[n:]
        self.records = self.records.take(slice(n, None))
        self.position = int(self.offset[0]) if len(self.offset) else self.partition.position
        self.counts["rows"] += n
        return delta, known, records

    def hand_out_bad(self) -> list[bytes]:
        """Dead letters before the position that has been reached."""
        if not self.bad:
            return []
        ready = [b for b in self.bad if b[0] < self.position] if len(self) else self.bad
        self.bad = self.bad[len(ready) :]
        if not len(self):
            self.position = self.partition.position
        dead = [self._dead_letter(*b) for b in ready if b[1]]
        self.counts["dead"] += len(dead)
        self.counts["skipped"] += len(ready) - len(dead)
        return dead

    def _dead_letter(self, offset: int, reason: str, record: bytes) -> bytes:
        line: dict[str, Any] = {
            "source": self.source.name,
            "partition": self.partition.name,
            "position": offset,
            "reason": reason,
        }
        try:
            line["raw"] = record.decode()
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except (UnicodeDecodeError, orjson.JSONEncodeError):
            line.pop("raw", None)
            line["raw_base64"] = base64.b64encode(record).decode()
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def state(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "watermark": self.watermark,
            "counts": dict(self.counts),
            "identity": self.partition.identity(),
        }


class Merge:
    """Hands out batches in the order of knowledge.

    partitions: for each source its partitions, in a fixed order; sources in the order of declaration. rank: sources by
    which ties are broken, first the one that comes first. batch_rows: a batch ends at a multiple of this number of
    rows, where a deferred view is due, or where nothing more is there. until: rows known at or after it are left unread
    (microseconds after midnight of the first day). dues: when each deferred view is due.
    """

    def __init__(
        self,
        partitions: Sequence[tuple[Source, Sequence[Partition]]],
        rank: Sequence[str],
        batch_rows: int = 1000,
        until: int | None = None,
        state: Any = None,
        dues: Sequence[Due] = (),
    ) -> None:
        feeds = [
            _Feed(
                source,
                (s << PARTITION_BITS) + i,
                partition,
                ((state or {}).get("feeds") or {}).get(f"{source.name}/{i}"),
            )
            for s, (source, several) in enumerate(partitions)
            for i, partition in enumerate(several)
        ]
        self.names = [f"{source.name}/{i}" for source, several in partitions for i in range(len(several))]
        self._by_name = dict(zip(self.names, feeds, strict=True))
        self.feeds = sorted(feeds, key=lambda f: (rank.index(f.source.name), f.base))
        self.sources = [source for source, _ in partitions]
        self.batch_rows = batch_rows
        self.until = until
        self.schedule = Schedule(dues, [s.name for s in self.sources], state["schedule"] if state else None)
        self.number: int = state["number"] if state else 0
        self.seq: int = state["seq"] if state else 0
        self.clock: int = state["clock"] if state else BEGINNING
        self.began: int | None = state["began"] if state else None
        self.forgotten: dict[str, Ints] = dict(state["forgotten"]) if state else {}
        self._known = np.empty(0, np.int64)

    @property
    def read(self) -> dict[str, int]:
        """For each source how many changes have been handed out."""
        return {s.name: sum(f.counts["rows"] for f in self.feeds if f.source is s) for s in self.sources}

    @property
    def progress(self) -> float:
        """The share of the bytes there are that has been read."""
        total = sum(f.partition.total for f in self.feeds)
        return sum(f.partition.done for f in self.feeds) / total if total else 1.0

    def counts(self, what: str) -> dict[str, int]:
        """For each source how many "late" changes, "dead" letters or "skipped" records there were."""
        return {s.name: sum(f.counts[what] for f in self.feeds if f.source is s) for s in self.sources}

    @property
    def watermark(self) -> dict[str, int]:
        """For each source the event time below which no change is expected any more."""
        return {s.name: self._reached(s) for s in self.sources}

    def idle(self) -> dict[str, bool]:
        """For each source whether it is behind by more than its `idle_after`."""
        return {
            s.name: s.idle_after is not None
            and self.clock > BEGINNING
            and min((f.watermark for f in self.feeds if f.source is s), default=BEGINNING) < self.clock - s.idle_after
            for s in self.sources
        }

    def state(self) -> dict[str, Any]:
        """All that a resumed merge needs: what has been handed out, not what has been read."""
        return {
            "feeds": {n: f.state() for n, f in self._by_name.items()},
            "number": self.number,
            "seq": self.seq,
            "clock": self.clock,
            "began": self.began,
            "schedule": self.schedule.state(),
            "forgotten": dict(self.forgotten),
        }

    def next(self, now: int | None = None) -> Batch | None:
        """The next batch; None when nothing more is there now.

        now: the present, by which views become due while all partitions have ended for the moment.
        """
        batch = self._next()
        if batch is None and now is not None and all(f.partition.ended for f in self.feeds):
            return self._refreshing(self.schedule.idle(now), now)
        return batch

    @property
    def horizon(self) -> dict[str, int]:
        """For each source the event time below which no change is accepted any more."""
        return {
            s.name: BEGINNING if s.erasable else max(self._reached(s) - s.lateness, BEGINNING) for s in self.sources
        }

    def taken_back(self, source: str) -> Ints:
        """The positions of what was forgotten before."""
        return self.forgotten.get(source, np.empty(0, np.int64))

    def handed_out(self, source: str, partition: int) -> tuple[int, int]:
        """Of a partition: up to which offset its rows have been handed out, and what is added to make positions."""
        feed = self._by_name[f"{source}/{partition}"]
        return feed.position, feed.base

    def forget(self, changes: Mapping[str, Delta], taken: Mapping[str, Ints], positions: Ints) -> Batch:
        """A batch of these changes of sources, which take back rows that were handed out, and refresh all views.

        They become known at once, with one `seq`. taken: by source the positions of what they take back. positions: of
        all rows that are to be forgotten.
        """
        batch = Batch(self.number + 1, {}, self.watermark, self.horizon, self.read, self.seq, self.seq, self.clock)
        batch.known = np.array([self.clock])
        batch.due, batch.forgotten = frozenset(d.view for d in self.schedule.dues), positions
        for source in self.sources:
            delta = changes.get(source.name, empty(source.messages))
            delta.seq = np.full(len(delta), self.seq)
            batch.deltas[source.name] = delta
            if len(taken.get(source.name, ())):
                self.forgotten[source.name] = np.union1d(self.taken_back(source.name), taken[source.name])
        self.number, self.seq = batch.number, self.seq + 1
        return batch

    def _next(self) -> Batch | None:
        want = self.batch_rows - self.seq % self.batch_rows
        while True:
            ready = self._ready()
            if sum(ready) >= want or not self._fill(ready):
                break
        if self.began is None:
            first = [
                int(k[0])
                for f, r in zip(self.feeds, ready, strict=True)
                if len(k := f.known[:r][f.known[:r] > BEGINNING])
            ]
            self.began = min(first) // _DAY * _DAY if first else None
        bound = self._bound()
        if bound is not None:
            ready = [min(r, int(np.searchsorted(f.known, bound))) for r, f in zip(ready, self.feeds, strict=True)]
        if firsts := [int(f.known[0]) for f, r in zip(self.feeds, ready, strict=True) if r]:
            clock = max(min(firsts), self.clock)
            if (batch := self._refreshing(self.schedule.before(clock), clock)) is not None:
                return batch
        horizon = self.horizon
        first_seq = self.seq
        taken, due = self._take(ready, want)
        dead = [line for feed in self.feeds for line in feed.hand_out_bad()]
        if not taken and not dead:
            return None
        self.number += 1
        batch = Batch(self.number, {}, {}, horizon, self.read, due=frozenset(due), dead=dead)
        if taken:
            batch.first, batch.last = first_seq, self.seq - 1
            batch.clock, batch.known = int(self._known[0]), self._known
        for source in self.sources:
            mine = [d for f, d, late in taken if f.source is source]
            batch.late += [line for f, _, late in taken if f.source is source for line in late]
            batch.deltas[source.name] = in_order(concat(mine)) if mine else empty(source.messages)
            batch.watermark[source.name] = self._reached(source)
        return batch

    def _refreshing(self, due: Sequence[str], clock: int) -> Batch | None:
        """A batch without changes, before which these views are due; None when none is."""
        if not due:
            return None
        self.number += 1
        none = {s.name: empty(s.messages) for s in self.sources}
        batch = Batch(self.number, none, self.watermark, self.horizon, self.read, self.seq, self.seq, clock)
        batch.known, batch.due = np.array([clock]), frozenset(due)
        return batch

    def _ready(self) -> list[int]:
        """For each feed how many rows can be handed out before any row that is still unread elsewhere."""
        open_feeds = [(f.newest, i) for i, f in enumerate(self.feeds) if not f.partition.ended]
        ready = []
        for i, feed in enumerate(self.feeds):
            bounds = [newest + (1 if i < j else 0) for newest, j in open_feeds if j != i]
            ready.append(int(np.searchsorted(feed.known, min(bounds))) if bounds else len(feed))
        return ready

    def _fill(self, ready: Sequence[int]) -> bool:
        """Read on where the merge waits. False: nothing more is there now."""
        bound = self._bound()
        waiting = [
            f
            for f, r in zip(self.feeds, ready, strict=True)
            if not f.partition.ended and r == len(f) and (bound is None or f.newest < bound)
        ]
        return sum(f.fill(self.clock) for f in waiting) > 0

    def _bound(self) -> int | None:
        if self.until is None or self.began is None:
            return None
        return self.began + self.until

    def _reached(self, source: Source) -> int:
        """The watermark of a source: of its partitions the least one; an idle one does not count below its limit."""
        marks = [f.watermark for f in self.feeds if f.source is source]
        least = min(marks, default=BEGINNING)
        if source.at is None:
            return self.clock
        return least if source.idle_after is None else max(least, self.clock - source.idle_after)

    def _take(self, ready: Sequence[int], want: int) -> tuple[list[tuple[_Feed, Delta, list[bytes]]], list[str]]:
        """Hand out so many rows at most; and the views that are due after them."""
        some = [(f, min(r, want)) for f, r in zip(self.feeds, ready, strict=True) if r]
        if not some:
            return [], []
        if len(some) == 1:
            want, due = self._stop(some, some[0][0].known[: some[0][1]], None)
            counts, ranks = [want], [np.arange(want)]
        else:
            known = np.concatenate([f.known[:n] for f, n in some])
            order = np.argsort(known, kind="stable")[:want]
            want, due = self._stop(some, known[order], order)
            order = order[:want]
            place = np.empty(sum(n for _, n in some), np.int64)
            place[:] = want
            place[order] = np.arange(len(order))
            edges = np.cumsum([0, *(n for _, n in some)])
            parts = [place[a:b] for a, b in pairwise(edges)]
            counts = [int((p < want).sum()) for p in parts]
            ranks = [p[:n] for p, n in zip(parts, counts, strict=True)]
        handed = [(f, *f.hand_out(n), r) for (f, _), n, r in zip(some, counts, ranks, strict=True) if n]
        total = sum(counts)
        clock = np.full(total, self.clock)
        for _, _, known, _, rank in handed:
            clock[rank] = known
        clock = np.maximum(np.maximum.accumulate(clock), self.clock)
        done = [(f, *self._judge(f, d, known, records, rank, clock)) for f, d, known, records, rank in handed]
        self.seq += total
        self.clock, self._known = int(clock[-1]), clock
        return done, due

    def _stop(self, some: Sequence[tuple[_Feed, int]], known: Ints, order: Ints | None) -> tuple[int, list[str]]:
        """How many of the rows to take, for a batch ends where a view is due; and which are due after them."""
        if not self.schedule.dues:
            return len(known), []
        clock = np.maximum(np.maximum.accumulate(known), self.clock)
        whose = np.repeat([self.sources.index(f.source) for f, _ in some], [m for _, m in some])
        whose = whose[: len(known)] if order is None else whose[order]
        read = self.read
        n = self.schedule.stop(clock, whose, read)
        return n, self.schedule.take(clock[:n], whose[:n], read)

    def _judge(
        self, feed: _Feed, delta: Delta, known: Ints, records: Records, rank: Ints, clock: Ints
    ) -> tuple[Delta, list[bytes]]:
        """Number the rows, and tell the late ones from the others."""
        source = feed.source
        delta.seq = rank + self.seq
        if source.at is None:
            delta.at = np.maximum(delta.at, self.clock)
            feed.watermark = int(known[-1])
            return delta, []
        mark = known
        if source.idle_after is not None:
            before = np.concatenate([[self.clock], clock[:-1]])[rank]
            mark = np.maximum(known, np.maximum(before, BEGINNING + source.idle_after) - source.idle_after)
        feed.watermark = int(known[-1])
        late = delta.at < np.maximum(mark, BEGINNING + source.lateness) - source.lateness
        if not late.any():
            return delta, []
        feed.counts["late"] += int(late.sum())
        lines = [self._late_line(feed, delta, int(i), int(mark[i]), records[i]) for i in np.flatnonzero(late)]
        return delta.take(~late), lines

    def _late_line(self, feed: _Feed, delta: Delta, i: int, mark: int, record: bytes) -> bytes:
        iso = np.datetime_as_string(np.array([delta.at[i], mark], "datetime64[us]"), unit="us", timezone="UTC").tolist()
        head = orjson.dumps(
            {
                "source": feed.source.name,
                "partition": feed.partition.name,
                "position": int(delta.pos[i]) & ((1 << OFFSET_BITS) - 1),
                "at": iso[0],
                "watermark": iso[1],
            }
        )
        return head[:-1] + b',"record":' + (record or b"null") + b"}\n"
