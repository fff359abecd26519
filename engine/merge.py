"""The order of knowledge: several partitions, read as one stream of batches.

Each partition is read in its own order. A row becomes *known* at the greatest event time that its partition has
reached so far; partitions are merged by that, ties by rank (what others look up comes before what looks it up), then
by the order within the partition. So no answer overtakes its question and no look-up misses what was known, and the
order depends on the content of the partitions only, never on how they were cut into blocks. Rows are numbered in that
order: `seq`. What has arrived after its partition had ended for the moment (a followed file, a topic) is taken as it
comes; so what each batch was made of is noted (`engine/intake.py`), and a run that was cut off makes the same batches
again.

Here, row by row, it is also decided which rows are late: behind the watermark of their partition (the greatest `at` so
far; of an idle one, what was known `idle_after` ago) by more than the `lateness` of the source.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from engine.batch import Batch
from engine.freshness import Heard
from engine.graph import DELETED, Graph, Source
from engine.intake import Intake, Note
from engine.plan import due, rank, watermarks_needed
from engine.scan import Records
from engine.schedule import Due, Schedule
from operators.delta import BEGINNING, NULL, Array, Columns, Delta, Ints, concat, empty, in_order

_DAY = 86_400_000_000
PARTITION_BITS, OFFSET_BITS = 12, 44
"""How a position is made: source number, partition number within the source, offset within the partition."""


_COUNTED = ("late", "dead", "skipped")


class Bad(NamedTuple):
    """A record that became no row, and why; without a reason it asks for nothing, and is only counted.

    key, time: what a topic tells of it beside its value, the time in milliseconds since 1970.
    """

    offset: int
    reason: str
    record: bytes
    key: bytes | None = None
    time: int | None = None


@dataclass
class Chunk:
    """Rows read from a partition, in its order, with what could not become a row. deleted: a Boolean column."""

    columns: Columns
    deleted: Array
    at: Ints
    offset: Ints
    records: Records
    bad: list[Bad] = field(default_factory=list)
    """By offset."""


class MergeError(RuntimeError):
    """A partition that is not what was read of it before; the text says which, and the cure."""


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
        """The next rows; None when nothing more is there now, or has not arrived yet."""

    def left(self, position: int) -> dict[str, int]:
        """How much there is behind a position, as far as known, by what it is counted in."""

    def identity(self) -> Any:
        """What a resumed run compares to be sure that it reads the same thing; None when it cannot tell."""


class _Feed:
    """One partition in the merge: what was read and not yet handed out."""

    def __init__(self, source: Source, name: str, number: int, partition: Partition) -> None:
        self.source, self.name = source, name
        self.base = number << OFFSET_BITS
        self.partition = partition
        self.position = self.first = partition.position
        self.watermark = self.newest = BEGINNING
        self.counts = {"rows": 0, "late": 0, "dead": 0, "skipped": 0}
        self.change: int | None = None
        self.anything: int | None = None
        self.refused = 0
        self.columns = empty(source.messages).columns
        self.at = self.known = self.offset = np.empty(0, np.int64)
        self.records = Records.of([])
        self.bad: list[Bad] = []

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position, self.first, self.counts = state["position"], state["first"], dict(state["counts"])
        self.watermark = self.newest = state["watermark"]

    def __len__(self) -> int:
        return len(self.at)

    def fill(self, now: int | None) -> bool:
        """Read on. False: nothing more is there now."""
        if self.partition.ended or (chunk := self.partition.read()) is None:
            return False
        self.bad += chunk.bad
        self._heard(chunk, now)
        if not len(chunk.at):
            return True
        at, timeless = chunk.at, chunk.at == NULL
        known = np.maximum(np.maximum.accumulate(np.where(timeless, self.newest, at)), self.newest)
        self.newest = int(known[-1])
        columns = dict(chunk.columns)
        if not self.source.append_only:
            columns[DELETED] = chunk.deleted
        if len(self):
            columns = {n: np.concatenate([c, columns[n]]) for n, c in self.columns.items()}
            at, known = np.concatenate([self.at, at]), np.concatenate([self.known, known])
            self.offset = np.concatenate([self.offset, chunk.offset])
            self.records = self.records.then(chunk.records)
        else:
            self.offset, self.records = chunk.offset, chunk.records
        self.columns, self.at, self.known = columns, at, known
        return True

    def _heard(self, chunk: Chunk, now: int | None) -> None:
        """Note when something came, and how much of it was refused since the last change."""
        last = int(chunk.offset[-1]) if len(chunk.offset) else -1
        refused = sum(1 for b in chunk.bad if b.reason and b.offset > last)
        self.refused = refused if len(chunk.at) else self.refused + refused
        if len(chunk.at):
            self.change = now
        if len(chunk.at) or chunk.bad:
            self.anything = now

    def reaches(self, position: int) -> bool:
        """Whether all before a position has been read; reads on for it. Raises `MergeError` when it is not there."""
        while self.partition.position < position:
            if self.partition.ended:
                raise MergeError(
                    f"source {self.source.name!r}: {self.partition.name!r} ends at {self.partition.position}, but it "
                    f"was read up to {position} before the run was cut off; put back what was removed from it, or "
                    "start again without the state and the outputs"
                )
            if not self.fill(None):
                return False
        return True

    def after(self, n: int) -> int:
        """The position behind the next n rows, and behind what follows them that is no row."""
        return int(self.offset[n]) if n < len(self) else self.partition.position

    def hand_out(self, position: int) -> tuple[Delta, Ints, Records]:
        """The rows before a position, what they become known at, and their records."""
        n = int(np.searchsorted(self.offset, position))
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
        self.position = position
        self.counts["rows"] += n
        return delta, known, records

    def hand_out_bad(self) -> list[bytes]:
        """Dead letters before the position that has been reached."""
        if not self.bad:
            return []
        ready = [b for b in self.bad if b.offset < self.position]
        self.bad = self.bad[len(ready) :]
        dead = [self._dead_letter(b) for b in ready if b.reason]
        self.counts["dead"] += len(dead)
        self.counts["skipped"] += len(ready) - len(dead)
        return dead

    def _dead_letter(self, bad: Bad) -> bytes:
        line: dict[str, Any] = {
            "source": self.source.name,
            "partition": self.partition.name,
            "position": bad.offset,
            "reason": bad.reason,
        }
        if bad.time is not None:
            line["time"] = bad.time
        for name, given in (("key", bad.key), ("raw", bad.record)):
            if given is not None:
                try:
                    line[name] = given.decode()
                    orjson.dumps(line[name])
                except (UnicodeDecodeError, orjson.JSONEncodeError):
                    line.pop(name, None)
                    line[f"{name}_base64"] = base64.b64encode(given).decode()
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def begins(self) -> dict[str, Any]:
        """What a run needs to read the same partition again from here."""
        return {"position": self.position, "identity": self.partition.identity()}

    def state(self) -> dict[str, Any]:
        return {**self.begins(), "first": self.first, "watermark": self.watermark, "counts": dict(self.counts)}


class Merge:
    """Hands out batches in the order of knowledge.

    partitions: for each source its partitions, in a fixed order; sources in the order of declaration. rank: sources by
    which ties are broken, first the one that comes first. batch_rows: a batch ends at a multiple of this number of
    rows, where a deferred view is due, or where nothing more is there. until: rows known at or after it are left unread
    (microseconds after midnight of the first day). dues: when each deferred view is due. follow: the present matters
    once all that was there has been read: `live`. intake: where batches are noted. watermarks: batches say what the
    watermarks are after each change.
    """

    def __init__(
        self,
        partitions: Sequence[tuple[Source, Sequence[Partition]]],
        rank: Sequence[str],
        batch_rows: int = 1000,
        until: int | None = None,
        state: Any = None,
        dues: Sequence[Due] = (),
        follow: bool = False,
        intake: Intake | None = None,
        watermarks: bool = False,
    ) -> None:
        self.sources = [source for source, _ in partitions]
        self._rank = {name: i for i, name in enumerate(rank)}
        self.batch_rows = batch_rows
        self.until = until
        self.follow = follow
        self.intake = intake
        self.watermarks = watermarks
        self.schedule = Schedule(dues, [s.name for s in self.sources], state["schedule"] if state else None)
        self.live = False
        self.since: int | None = None
        self._now: int | None = None
        self._marks: dict[str, Ints] = {}
        self.number: int = state["number"] if state else 0
        self.seq: int = state["seq"] if state else 0
        self.clock: int = state["clock"] if state else BEGINNING
        self.began: int | None = state["began"] if state else None
        self.forgotten: dict[str, Ints] = dict(state["forgotten"]) if state else {}
        self.feeds: list[_Feed] = []
        self._by_name: dict[str, _Feed] = {}
        self._coming: dict[str, _Feed] = {}
        self._joined: dict[str, Any] = {}
        self._safe: dict[Partition, int] = {}
        self._again: deque[Note] = deque() if intake is None else intake.again
        for source, several in partitions:
            for i, partition in enumerate(several):
                self.add(source, i, partition)
        if state is not None:
            for name, one in state["feeds"].items():
                self._coming[name].restore(one)
            self._join(state["feeds"])
        if not self._again:
            self._join(list(self._coming))

    def add(self, source: Source, number: int, partition: Partition) -> None:
        """Read one more partition, the one of this number of its source, once what was noted has been made again."""
        name = f"{source.name}/{number}"
        self._coming[name] = _Feed(source, name, (self.sources.index(source) << PARTITION_BITS) + number, partition)

    def saved(self) -> dict[Partition, int]:
        """What each partition has been handed out up to, in the state that was saved last but one: it is safe."""
        safe, self._safe = self._safe, {f.partition: f.position for f in self.feeds}
        return safe

    def _join(self, names: Iterable[str]) -> None:
        """Let partitions take part. What joins later is no newer and no older than what its source has reached."""
        reached = {f.source.name: self._least(f.source) for f in self.feeds}
        for name in names:
            feed = self._coming.pop(name)
            if feed.watermark == BEGINNING:
                feed.watermark = feed.newest = reached.get(feed.source.name, BEGINNING)
            self._by_name[name] = feed
            self._joined[name] = feed.begins()
        self.feeds = sorted(self._by_name.values(), key=lambda f: (self._rank[f.source.name], f.base))

    @property
    def read(self) -> dict[str, int]:
        """For each source how many changes have been handed out."""
        return {s.name: sum(f.counts["rows"] for f in self.feeds if f.source is s) for s in self.sources}

    @property
    def progress(self) -> float:
        """The share of the bytes there are that has been read."""
        total = sum(f.partition.total for f in self.feeds)
        return sum(f.partition.done for f in self.feeds) / total if total else 1.0

    def left(self) -> dict[str, dict[str, int]]:
        """For each source how many `rows` were read and wait for their turn, and what there is behind what was handed
        out, by what it is counted in: see `Partition.left`."""
        left = {s.name: {"rows": 0} for s in self.sources}
        for feed in self.feeds:
            mine = left[feed.source.name]
            for what, n in {"rows": len(feed), **feed.partition.left(feed.position)}.items():
                mine[what] = mine.get(what, 0) + n
        return left

    def counts(self, what: str) -> dict[str, int]:
        """For each source how many "late" changes, "dead" letters or "skipped" records there were."""
        return {s.name: sum(f.counts[what] for f in self.feeds if f.source is s) for s in self.sources}

    def heard(self) -> dict[str, Heard]:
        """What has been heard of each source since the run began to follow the present."""
        found = {}
        for s in self.sources:
            mine, since = [f for f in self.feeds if f.source is s], self.since or 0
            changes = [since if f.change is None else f.change for f in mine]
            found[s.name] = Heard(
                max(changes, default=since),
                max((since if f.anything is None else f.anything for f in mine), default=since),
                sum(f.refused for f in mine),
                sum(max(f.partition.total - f.partition.done, 0) for f in mine),
                changes,
            )
        return found

    @property
    def watermark(self) -> dict[str, int]:
        """For each source the event time below which no change is expected any more."""
        return {s.name: self._reached(s) for s in self.sources}

    def idle(self) -> dict[str, bool]:
        """For each source whether it is behind by more than its `idle_after`."""
        return {
            s.name: s.idle_after is not None and self.clock > BEGINNING and self._least(s) < self.clock - s.idle_after
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

    @property
    def again(self) -> bool:
        """Whether batches are still to be made again."""
        return bool(self._again)

    @property
    def ended(self) -> bool:
        """Whether nothing is left of what is there now, but for what lies behind `until`."""
        bound = self._bound()
        return not self._again and all(
            f.partition.ended and not len(f) if bound is None else f.partition.ended or f.newest >= bound
            for f in self.feeds
        )

    def next(self, now: int | None = None) -> Batch | None:
        """The next batch; None when nothing more is there now, or has not arrived yet.

        now: the present, by which views become due while all partitions have ended for the moment. Raises `MergeError`.
        """
        self._now = now
        self.since = now if self.since is None else self.since
        if self._again:
            return self._noted()
        if self._coming:
            self._join(list(self._coming))
        before = {name: feed.position for name, feed in self._by_name.items()}
        note = Note(self.number + 1, present=self.schedule.present)
        batch = self._next(note)
        if batch is None and now is not None and all(f.partition.ended for f in self.feeds):
            batch = self._refreshing(self.schedule.idle(now), now)
            note.clock, note.idle = now, True
        self.live = self.live or (self.follow and self.ended)
        if batch is None:
            return None
        note.live = batch.live = self.live
        batch.counts = {what: self.counts(what) for what in _COUNTED}
        if self.intake is not None:
            note.to = {name: f.position for name, f in self._by_name.items() if f.position != before[name]}
            note.joined, self._joined = self._joined, {}
            self.intake.note(note)
        return batch

    def _noted(self) -> Batch | None:
        """The next of the batches that are made again; None when its rows have not arrived yet."""
        note = self._again[0]
        if joining := [name for name in note.joined if name in self._coming]:
            self._join(joining)
        if not all(self._by_name[name].reaches(position) for name, position in note.to.items()):
            return None
        self._again.popleft()
        self.schedule.present = note.present
        if note.clock is not None:
            due = self.schedule.idle(note.clock) if note.idle else self.schedule.before(note.clock)
            batch = self._refreshing(due, note.clock)
        else:
            self._begin([int(np.searchsorted(f.offset, note.to.get(f.name, 0))) for f in self.feeds])
            batch = self._hand_out(note.to)
        if batch is None or batch.number != note.number:
            raise AssertionError(f"batch {note.number} was noted, and cannot be made again")
        batch.live, self._joined = note.live, {}
        batch.counts = {what: self.counts(what) for what in _COUNTED}
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

    def beginnings(self) -> dict[str, Any]:
        """What is needed to read all partitions again from where each was begun."""
        return {name: {**feed.begins(), "position": feed.first} for name, feed in self._by_name.items()}

    def handed_out(self, source: str) -> list[tuple[int, int]]:
        """Of each partition: up to which offset its rows have been handed out, and what is added to make positions."""
        feeds = [f for f in self._by_name.values() if f.source.name == source]
        return [(f.position, f.base) for f in sorted(feeds, key=lambda f: f.base)]

    def forget(self, changes: Mapping[str, Delta], taken: Mapping[str, Ints], positions: Ints) -> Batch:
        """A batch of these changes of sources, which take back rows that were handed out, and refresh all views.

        They become known at once, with one `seq`. taken: by source the positions of what they take back. positions: of
        all rows that are to be forgotten.
        """
        batch = Batch(self.number + 1, {}, self.watermark, self.horizon, self.read, self.seq, self.seq, self.clock)
        batch.known, batch.watermarks = np.array([self.clock]), self._marks_now()
        batch.due, batch.forgotten = frozenset(d.view for d in self.schedule.dues), positions
        for source in self.sources:
            delta = changes.get(source.name, empty(source.messages))
            delta.seq = np.full(len(delta), self.seq)
            batch.deltas[source.name] = delta
            if len(taken.get(source.name, ())):
                self.forgotten[source.name] = np.union1d(self.taken_back(source.name), taken[source.name])
        self.number, self.seq = batch.number, self.seq + 1
        return batch

    def _next(self, note: Note) -> Batch | None:
        want = self.batch_rows - self.seq % self.batch_rows
        while True:
            ready = self._ready()
            if sum(ready) >= want or not self._fill(ready):
                break
        self._begin(ready)
        bound = self._bound()
        if bound is not None:
            ready = [min(r, int(np.searchsorted(f.known, bound))) for r, f in zip(ready, self.feeds, strict=True)]
        if firsts := [int(f.known[0]) for f, r in zip(self.feeds, ready, strict=True) if r]:
            clock = max(min(firsts), self.clock)
            if (batch := self._refreshing(self.schedule.before(clock), clock)) is not None:
                note.clock = clock
                return batch
        counts = self._choose(ready, want)
        to = {f.name: f.after(n) for f, n in zip(self.feeds, counts, strict=True)}
        return None if all(to[f.name] == f.position for f in self.feeds) else self._hand_out(to)

    def _begin(self, ready: Sequence[int]) -> None:
        """The first day is that of the first row whose time is known."""
        if self.began is None:
            known = [f.known[:n][f.known[:n] > BEGINNING] for f, n in zip(self.feeds, ready, strict=True)]
            first = [int(k[0]) for k in known if len(k)]
            self.began = min(first) // _DAY * _DAY if first else None

    def _hand_out(self, to: Mapping[str, int]) -> Batch | None:
        """A batch of the rows before these positions; None when there is nothing before them."""
        horizon, first_seq = self.horizon, self.seq
        taken, due = self._take(to)
        dead = [line for feed in self.feeds for line in feed.hand_out_bad()]
        if not taken and not dead:
            return None
        self.number += 1
        batch = Batch(self.number, {}, {}, horizon, self.read, due=frozenset(due), dead=dead, watermarks=self._marks)
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
        batch.known, batch.watermarks, batch.due = np.array([clock]), self._marks_now(), frozenset(due)
        return batch

    def _marks_now(self) -> dict[str, Ints]:
        """The watermarks as they are, as those of a batch of one change."""
        return {name: np.array([mark]) for name, mark in self.watermark.items()} if self.watermarks else {}

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
        return sum(f.fill(self._now) for f in waiting) > 0

    def _bound(self) -> int | None:
        if self.until is None or self.began is None:
            return None
        return self.began + self.until

    def _least(self, source: Source) -> int:
        return min((f.watermark for f in self.feeds if f.source is source), default=BEGINNING)

    def _reached(self, source: Source) -> int:
        """The watermark of a source: of its partitions the least one; an idle one does not count below its limit."""
        if source.at is None:
            return self.clock
        least = self._least(source)
        return least if source.idle_after is None else max(least, self.clock - source.idle_after)

    def _after_each(self, handed: Mapping[str, tuple[Ints, Ints]], clock: Ints) -> dict[str, Ints]:
        """`_reached` of each source after each row that is handed out, before any of them is taken in.

        handed: by feed what its rows become known at, and their numbers in order. clock: after each row.
        """
        found = {}
        for source in self.sources:
            if source.at is None:
                found[source.name] = clock
                continue
            mine = [f for f in self.feeds if f.source is source]
            marks = np.full((max(len(mine), 1), len(clock)), BEGINNING)
            for mark, feed in zip(marks, mine, strict=False):
                mark[:] = feed.watermark
                if feed.name in handed:
                    known, rank = handed[feed.name]
                    mark[rank] = known
            least = np.maximum.accumulate(marks, axis=1).min(axis=0)
            if source.idle_after is not None:
                least = np.maximum(least, np.maximum(clock, BEGINNING + source.idle_after) - source.idle_after)
            found[source.name] = least
        return found

    def _choose(self, ready: Sequence[int], want: int) -> list[int]:
        """How many of the rows of each feed to take: so many at most in all, and none behind where a view is due."""
        some = [(f, min(r, want)) for f, r in zip(self.feeds, ready, strict=True) if r]
        if not some:
            return [0] * len(self.feeds)
        known = np.concatenate([f.known[:n] for f, n in some])
        whose = np.repeat(np.arange(len(some)), [n for _, n in some])
        if len(some) > 1:
            order = np.argsort(known, kind="stable")[:want]
            known, whose = known[order], whose[order]
        if self.schedule.dues:
            clock = np.maximum(np.maximum.accumulate(known), self.clock)
            whose = whose[: self.schedule.stop(clock, self._sources_of([f for f, _ in some])[whose], self.read)]
        taken = dict(zip([f.name for f, _ in some], np.bincount(whose, minlength=len(some)).tolist(), strict=True))
        return [taken.get(f.name, 0) for f in self.feeds]

    def _sources_of(self, feeds: Sequence[_Feed]) -> Ints:
        return np.array([self.sources.index(f.source) for f in feeds], np.int64)

    def _take(self, to: Mapping[str, int]) -> tuple[list[tuple[_Feed, Delta, list[bytes]]], list[str]]:
        """Hand out the rows before these positions, numbered; and the views that are due after them."""
        read = self.read
        handed = [(f, *f.hand_out(to[f.name])) for f in self.feeds if f.name in to]
        handed = [(f, delta, known, records) for f, delta, known, records in handed if len(delta)]
        if not handed:
            self._marks = {s.name: np.empty(0, np.int64) for s in self.sources} if self.watermarks else {}
            return [], []
        known = np.concatenate([k for _, _, k, _ in handed])
        rank = order = np.arange(len(known))
        if len(handed) > 1:
            order = np.argsort(known, kind="stable")
            rank = np.empty(len(known), np.int64)
            rank[order] = np.arange(len(known))
        clock = np.maximum(np.maximum.accumulate(known[order]), self.clock)
        due: list[str] = []
        if self.schedule.dues:
            whose = np.repeat(self._sources_of([f for f, *_ in handed]), [len(d) for _, d, _, _ in handed])
            due = self.schedule.take(clock, whose[order], read)
        edges = np.cumsum([len(d) for _, d, _, _ in handed])[:-1]
        ranks = np.split(rank, edges)
        if self.watermarks:
            named = {f.name: (k, mine) for (f, _, k, _), mine in zip(handed, ranks, strict=True)}
            self._marks = self._after_each(named, clock)
        done = [
            (f, *self._judge(f, delta, k, records, mine, clock))
            for (f, delta, k, records), mine in zip(handed, ranks, strict=True)
        ]
        self.seq += len(known)
        self.clock, self._known = int(clock[-1]), clock
        return done, due

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
        if (timeless := delta.at == NULL).any():
            delta.at = np.where(timeless, known, delta.at)
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
        return head[:-1] + b',"record":' + (record.replace(b"\n", b" ") or b"null") + b"}\n"


def merged(
    graph: Graph,
    partitions: Sequence[tuple[Source, Sequence[Partition]]],
    batch_rows: int,
    until: int | None = None,
    state: Any = None,
    follow: bool = False,
    intake: Intake | None = None,
) -> Merge:
    """The partitions of a pipeline's sources as one stream, with all that its views and models ask of batches."""
    dues, watermarks = due(graph), watermarks_needed(graph)
    return Merge(partitions, rank(graph), batch_rows, until, state, dues, follow, intake, watermarks)
