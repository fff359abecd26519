"""Topics of Kafka as partitions to be merged: read in order from any offset, and never past a gap in silence.

One consumer reads all partitions, in a thread of its own; a partition that is not read on is paused, so memory stays
bounded. Positions are the engine's own, saved with the state; they are committed to Kafka, too, once that state is
safe, for tools that show a consumer's lag, and never read back.

Only what is committed of transactions is seen. A partition has ended for the moment when all that was there has been
read; in a run to the end, when all that was there at its beginning has been.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Event, Thread
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.structs import OffsetAndMetadata

from engine.brokers import BrokerError, consumer, told
from engine.decode import Decoder
from engine.files import chunk
from engine.merge import Bad, Chunk
from engine.scan import Records
from engine.settings import instant
from engine.unpack import Packed, UnpackError, unpack, values

_CHUNK = 1 << 20
"""Bytes handed out at once: some thousand records."""
_MOST = 64 << 20
"""Bytes that may wait to be read, of all partitions together."""
_WAIT = 200
"""Milliseconds for which the reading thread waits for records at most."""
_GONE = 30.0
"""Seconds after which a topic that brokers do not know any more is taken for deleted."""
_CURE = "start again without the state and the outputs to read what is there"


class TopicError(RuntimeError):
    """A topic that cannot be read, or not be read on; the text names it, what was found and the cure."""


class Origin(NamedTuple):
    """A partition of a topic. id: of the topic, another when it is made anew; None where brokers do not tell it."""

    topic: str
    partition: int
    id: str | None

    @property
    def key(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def __str__(self) -> str:
        return f"topic {self.topic!r}, partition {self.partition}"


class Topic:
    """A partition of a topic as a partition of the merge.

    position: the offset at which it is begun; limit: at which it ends, if it does. there: the offset behind all that is
    known to be there. fetched: the offset up to which it was fetched. size: about how many bytes were fetched and not
    read yet.
    """

    def __init__(self, topics: Topics, origin: Origin, wanted: Wanted, position: int, limit: int | None) -> None:
        self.name, self.origin = f"{origin.topic}/{origin.partition}", origin
        self.position = self.there = self._begin = self.fetched = position
        self.limit = limit
        self.size = 0
        self._topics, self._wanted = topics, wanted
        self._queue: deque[tuple[list[Packed], int, int]] = deque()

    @property
    def ended(self) -> bool:
        self._topics.check()
        return not self._queue and self.position >= (self.there if self.limit is None else self.limit)

    def full(self, most: int) -> bool:
        """Whether no more is to be fetched for now."""
        return self.size > most or (self.limit is not None and self.fetched >= self.limit)

    @property
    def done(self) -> int:
        return self.position - self._begin

    @property
    def total(self) -> int:
        return max(self.there if self.limit is None else self.limit, self.position) - self._begin

    def left(self, position: int) -> dict[str, int]:
        """The `records`, offsets, behind a position; the bytes `fetched` and not read yet."""
        return {"records": max(0, (self.there if self.limit is None else self.limit) - position), "fetched": self.size}

    def arrived(self, packed: Sequence[Packed], position: int) -> None:
        """Take in what was fetched, up to a position. Called by the reading thread."""
        size = sum(len(p.block) for p in packed)
        self._queue.append(([p.between(self.fetched, self.limit) for p in packed], position, size))
        self.fetched = max(self.fetched, position)
        self.size += size

    def read(self) -> Chunk | None:
        self._topics.check()
        before, size = self.position, 0
        taken: list[Packed] = []
        while self._queue and size < _CHUNK:
            packed, position, more = self._queue.popleft()
            taken += packed
            size += more
            self.position = max(self.position, position if self.limit is None else min(position, self.limit))
        self.size -= size
        return None if self.position == before else _chunk(self._wanted, taken)

    def identity(self) -> Any:
        return self.origin._asdict()


class Wanted(NamedTuple):
    """What a source wants: topics by name or expression, from where, and the partitions that it has read before."""

    source: str
    names: Sequence[str]
    start: str | Mapping[str, int]
    decoder: Decoder
    known: Sequence[Any]
    json: Callable[[bytes], bytes] | None = None


def _chunk(wanted: Wanted, packed: Sequence[Packed]) -> Chunk:
    """The rows of records; a value that is null, or says so in JSON, is a tombstone."""
    given, null = values(packed)
    null[[i for i in np.flatnonzero(given.end - given.begin == 4) if given[i] == b"null"]] = True
    given.begin[null] = given.end[null]
    edges = np.cumsum([0, *map(len, packed)])
    offsets = np.concatenate([np.empty(0, np.int64), *(p.offset for p in packed)])

    def sent(i: int) -> tuple[bytes | None, int]:
        """The key and the time of a record."""
        p = int(np.searchsorted(edges, i, "right")) - 1
        return packed[p].key(i - int(edges[p])), int(packed[p].time[i - int(edges[p])])

    tombstones = [(i, sent(i)[0]) for i in np.flatnonzero(null).tolist()]
    told, reasons = given, dict[int, str]()
    if wanted.json is not None:
        told, tombstones, reasons = _in_json(wanted.json, given, tombstones)
    found = wanted.decoder.decode(told, tombstones)
    if reasons:
        found.skipped -= len(reasons)
        found.bad = sorted([*found.bad, *reasons.items()])
    made = chunk(found, offsets, told)
    for k, b in enumerate(made.bad):
        if b.reason:
            i = int(np.searchsorted(offsets, b.offset))
            made.bad[k] = Bad(b.offset, b.reason, given[i], *sent(i))
    return made


Tombstones = list[tuple[int, bytes | None]]


def _in_json(
    json: Callable[[bytes], bytes], given: Records, tombstones: Tombstones
) -> tuple[Records, Tombstones, dict[int, str]]:
    """Records and keys as JSON, and why some cannot be; these are blank."""
    reasons: dict[int, str] = {}

    def one(i: int, record: bytes) -> bytes:
        try:
            return json(record) if record else b""
        except ValueError as error:
            reasons[i] = str(error)
            return b""

    told = Records.of([one(i, record) for i, record in enumerate(given)])
    keys = [(i, None if key is None else one(i, key)) for i, key in tombstones]
    return told, [(i, key) for i, key in keys if i not in reasons], reasons


class Topics:
    """All partitions that a run reads. parts: by source, known ones first.

    follow: read on for ever; otherwise up to what is there now. group: under what name positions are committed. again:
    what is known is read again, as far as it is still there. Raises `BrokerError`, or `TopicError` when a topic is not
    there or cannot be read on from where it was.
    """

    def __init__(
        self, settings: Mapping[str, Any], wanted: Sequence[Wanted], follow: bool, group: str, again: bool = False
    ) -> None:
        self.parts: dict[str, list[Topic]] = {}
        self._wanted, self._follow, self._again = wanted, follow, again
        self._failed: BaseException | None = None
        self._stop, self._woken = Event(), Event()
        self._new: deque[tuple[str, int, Topic]] = deque()
        self._positions: dict[Topic, int] = {}
        self._looked = monotonic()
        self._missing: dict[str, float] = {}
        self._consumer = consumer(settings, max_poll_records=500, group_id=settings.get("group_id", group))
        self.heard = monotonic()
        """When a broker last answered, or nothing was asked."""
        self._ends = whole_batches(self._consumer, self._hear)
        self._cluster = self._consumer._cluster
        self._cluster.need_all_topic_metadata = any(n.startswith("^") for w in wanted for n in w.names)
        try:
            for one in wanted:
                self._open(one)
            self._assign()
        except kafka_errors.KafkaError as error:
            self._consumer.close(timeout_ms=1000)
            raise BrokerError(f"while looking for topics the broker said: {told(error)}") from None
        except BaseException:
            self._consumer.close(timeout_ms=1000)
            raise
        self._thread = Thread(target=self._read, name="topics", daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        self.heard = monotonic()

    def check(self) -> None:
        """Raises what stopped the reading thread."""
        if self._failed is not None:
            raise self._failed

    def appeared(self) -> list[tuple[str, int, Topic]]:
        """The partitions that are new since this was last called: source, number within the source, partition."""
        return [self._new.popleft() for _ in range(len(self._new))]

    def commit(self, positions: Mapping[Topic, int]) -> None:
        """Let Kafka know what need not be read again."""
        self._positions = dict(positions)

    def close(self) -> None:
        """End the reading thread."""
        if not self._stop.is_set():
            self._stop.set()
            self._woken.set()
            self._thread.join(5)

    # Before the thread begins.

    def _open(self, wanted: Wanted) -> None:
        self.parts[wanted.source] = []
        known = [Origin(**one["identity"]) for one in wanted.known]
        if any(n.startswith("^") for n in wanted.names):
            self._consumer.topics()
        else:
            for name in wanted.names:
                self._consumer.partitions_for_topic(name)
        there = self._there(wanted.names)
        for name in wanted.names:
            if not name.startswith("^") and name not in {o.topic for o in there}:
                raise TopicError(
                    f"source {wanted.source!r}: there is no topic {name!r}, or it may not be read; make it first, with "
                    "the number of partitions it is to have, or mend the name"
                )
        if not there:
            raise TopicError(f"source {wanted.source!r}: no topic matches {' or '.join(wanted.names)}")
        news = [o for o in there if o[:2] not in {k[:2] for k in known}]
        keys = [o.key for o in [*known, *news]]
        least, most = self._consumer.beginning_offsets(keys), self._consumer.end_offsets(keys)
        ids = {o[:2]: o.id for o in there}
        for origin, one in zip(known, wanted.known, strict=True):
            position, begin, end = one["position"], least[origin.key], most[origin.key]
            if origin[:2] not in ids:
                raise TopicError(f"source {wanted.source!r}: {origin} is gone; bring it back, or {_CURE}")
            if origin.id != ids[origin[:2]]:
                raise TopicError(_made_anew(wanted.source, origin))
            if position < begin and not self._again:
                raise TopicError(_removed(wanted.source, origin, position, begin))
            if position > end:
                raise TopicError(
                    f"source {wanted.source!r}: {origin} ends at offset {end}, but was read up to {position}: it was "
                    f"truncated, or made anew; {_CURE}"
                )
            self._add(wanted, origin, max(position, begin), end)
        if known:  # all that is in new ones was written since the first run began
            wanted = wanted._replace(start="earliest")
        for origin, position in self._starts(wanted, news, least, most).items():
            self._add(wanted, origin, position, most[origin.key])

    def _there(self, names: Sequence[str]) -> list[Origin]:
        """The partitions of these topics that the cluster is known to have, in a fixed order."""
        patterns = [re.compile(n) for n in names if n.startswith("^")]
        matching = {n for n in self._cluster.topics() if any(p.fullmatch(n) for p in patterns)}
        found = {
            n: self._cluster.partitions_for_topic(n) for n in matching | {n for n in names if not n.startswith("^")}
        }
        return [Origin(n, p, self._id(n)) for n in sorted(found) for p in sorted(found[n] or ())]

    def _id(self, topic: str) -> str | None:
        found = self._cluster.topic_id(topic)
        return None if found is None else str(found)

    def _starts(
        self, wanted: Wanted, origins: Sequence[Origin], least: Mapping[Any, int], most: Mapping[Any, int]
    ) -> dict[Origin, int]:
        """Where partitions are begun that were not read before."""
        start = wanted.start
        if start == "earliest":
            return {o: least[o.key] for o in origins}
        if start == "latest":
            return {o: most[o.key] for o in origins}
        if isinstance(start, str):
            since = int(instant(start).timestamp() * 1000)
            found = self._consumer.offsets_for_times({o.key: since for o in origins}) if origins else {}
            return {o: most[o.key] if (f := found.get(o.key)) is None else f.offset for o in origins}
        starts = {}
        for o in origins:
            name = str(o.partition) if len(wanted.names) == 1 else f"{o.topic}/{o.partition}"
            if name not in start:
                raise TopicError(f"source {wanted.source!r}: start says no offset for {o}; expected one under {name!r}")
            starts[o] = start[name]
            if not least[o.key] <= start[name] <= most[o.key]:
                raise TopicError(
                    f"source {wanted.source!r}: start says offset {start[name]} for {o}, which holds the offsets "
                    f"{least[o.key]} to {most[o.key]}"
                )
        return starts

    def _add(self, wanted: Wanted, origin: Origin, position: int, end: int) -> Topic:
        part = Topic(self, origin, wanted, position, None if self._follow else end)
        part.there = end
        self.parts[wanted.source].append(part)
        return part

    def _assign(self) -> None:
        """Let the consumer read all partitions; of one that two sources read, from where the slower one is."""
        self._by_key: dict[TopicPartition, list[Topic]] = {}
        for part in (p for parts in self.parts.values() for p in parts):
            self._by_key.setdefault(part.origin.key, []).append(part)
        before = self._consumer.assignment()
        self._consumer.assign(list(self._by_key))
        for key, parts in self._by_key.items():
            if key not in before:
                self._consumer.seek(key, min(p.position for p in parts))

    # In the reading thread.

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._read_on()
                except kafka_errors.RetriableError:  # no broker answers for now
                    self._woken.wait(0.2)
                    self._woken.clear()
        except Exception as error:
            self._failed = self._why(error)
        finally:
            with suppress(kafka_errors.KafkaError):
                self._commit(wait=True)
            self._consumer.close(timeout_ms=1000)

    def _read_on(self) -> None:
        self._commit()
        if monotonic() - self._looked > 1:
            self._look()
        if not self._steer():
            self._hear()
            self._woken.wait(0.05)
            self._woken.clear()
            return
        got = self._consumer.poll(timeout_ms=_WAIT)
        for key, parts in self._by_key.items():
            position = self._consumer._subscription.assignment[key].position.offset
            for part in parts:
                part.there = max(part.there, self._ends.get(key, 0))
                if key in got or position > part.fetched:
                    part.arrived(got.get(key, []), position)

    def _steer(self) -> bool:
        """Pause what is not read on, and go on with what is. Whether anything is to be fetched."""
        most = max(_MOST // len(self._by_key), _CHUNK)
        full = {key for key, parts in self._by_key.items() if all(p.full(most) for p in parts) or
                any(p.size > most for p in parts)}  # fmt: skip
        paused = self._consumer.paused()
        if more := full - paused:
            self._consumer.pause(*more)
        if less := paused - full:
            self._consumer.resume(*less)
        return len(full) < len(self._by_key)

    def _commit(self, wait: bool = False) -> None:
        positions, self._positions = self._positions, {}
        if positions:
            offsets = {part.origin.key: OffsetAndMetadata(at, "", -1) for part, at in positions.items()}
            if wait:
                self._consumer.commit(offsets, timeout_ms=2000)
            else:
                self._consumer.commit_async(offsets, callback=lambda offsets, answer: None)

    def _look(self) -> None:
        """See whether topics were made anew or deleted, and whether partitions were added."""
        self._looked = now = monotonic()
        for wanted in self._wanted:
            there = self._there(wanted.names)
            ids = {o.topic: o.id for o in there}
            mine = self.parts[wanted.source]
            for part in mine:
                if (found := ids.get(part.origin.topic)) is not None and found != part.origin.id:
                    raise TopicError(_made_anew(wanted.source, part.origin))
                if part.origin.topic in ids:
                    self._missing.pop(part.origin.topic, None)
                elif now - self._missing.setdefault(part.origin.topic, now) > _GONE:
                    raise TopicError(f"source {wanted.source!r}: {part.origin} is gone; bring it back, or {_CURE}")
            known = {p.origin[:2] for p in mine}
            news = [o for o in there if o[:2] not in known and self._follow]
            begins = self._consumer.beginning_offsets([o.key for o in news], timeout_ms=5_000) if news else {}
            for origin in news:  # all that is in it was written since the run began
                part = self._add(wanted, origin, begins[origin.key], 0)
                self._new.append((wanted.source, len(mine) - 1, part))
        if self._new:
            self._assign()

    def _why(self, error: Exception) -> Exception:
        """An error of the client as one of ours."""
        if isinstance(error, (TopicError, BrokerError)):
            return error
        if isinstance(error, (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError)):
            for key, parts in self._by_key.items():
                begin = self._consumer.beginning_offsets([key], timeout_ms=5000)[key]
                for part in parts:
                    if part.fetched < begin:
                        return TopicError(_removed(self._source(part), part.origin, part.fetched, begin))
            return TopicError(
                f"what was read of a topic is not in it any more ({told(error)}): it was truncated; {_CURE}"
            )
        if isinstance(error, kafka_errors.TopicAuthorizationFailedError):
            return TopicError(f"a topic may not be read any more: {told(error)}; allow it, then run again")
        if isinstance(error, kafka_errors.UnsupportedCodecError):
            return TopicError(f"{told(error)}: install kafka-python[lz4,snappy,zstd], then run again")
        if isinstance(error, (kafka_errors.CorruptRecordError, UnpackError)):
            return TopicError(f"a topic is damaged: {told(error)}; repair it, or {_CURE}")
        return TopicError(f"reading topics failed: {told(error)}")

    def _source(self, part: Topic) -> str:
        return next(name for name, parts in self.parts.items() if part in parts)


def _made_anew(source: str, origin: Origin) -> str:
    return (
        f"source {source!r}: topic {origin.topic!r} was deleted and made anew since it was read, so its offsets mean "
        f"other records; {_CURE}"
    )


def _removed(source: str, origin: Origin, position: int, begin: int) -> str:
    return (
        f"source {source!r}: {origin} begins at offset {begin} now, but the next to be read is {position}: retention "
        f"removed {begin - position} offsets before they were read; {_CURE}, and give the topic a longer retention"
    )


class _Whole(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of a partition, batch by batch instead of record by record."""

    def _unpack_records(
        self, tp: Any, records: Any, key_deserializer: Any, value_deserializer: Any
    ) -> Iterator[Packed]:
        while (batch := records.next_batch()) is not None:
            if not batch.validate_crc():
                raise kafka_errors.CorruptRecordError(f"{tp} at offset {batch.base_offset}: the checksum is wrong")
            if batch.magic != 2:
                raise kafka_errors.CorruptRecordError(
                    f"{tp} at offset {batch.base_offset} has message format {batch.magic}, older than Kafka 0.11"
                )
            self.leader_epoch = batch.leader_epoch
            self.next_fetch_offset = batch.next_offset
            if not self._seen(batch):
                batch._maybe_uncompress()
                self.records_read += batch.records_count
                yield unpack(
                    bytes(memoryview(batch._buffer)[batch._pos :]),
                    batch.records_count,
                    batch.base_offset,
                    batch.first_timestamp,
                    batch.max_timestamp if batch.timestamp_type else -1,
                    self.fetch_offset,
                )
        self.drain()

    def _seen(self, batch: Any) -> bool:
        """Whether a batch is not to be seen: a marker, or of a transaction that was aborted."""
        if batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _maybe_skip_record(self, record: Packed) -> bool:
        return not len(record)


def whole_batches(consumer: KafkaConsumer, hear: Callable[[], None]) -> dict[TopicPartition, int]:
    """Let a consumer hand out batches, which takes a tenth of the time; where what is committed ends, kept up to date.

    hear: called for each answer of a broker.

    This reaches into kafka-python 3.0, to whose minor version the project is tied for it.
    """
    ends: dict[TopicPartition, int] = {}
    fetcher = consumer._fetcher
    parse, answered = fetcher._parse_fetched_data, fetcher._handle_fetch_response

    def parsed(completed: Any) -> Any:
        data = completed.partition_data
        if not data.error_code:
            ends[completed.topic_partition] = max(data.last_stable_offset, 0)
        return parse(completed)

    def heard(*answer: Any) -> Any:
        hear()
        return answered(*answer)

    fetcher.PartitionRecords, fetcher._parse_fetched_data, fetcher._handle_fetch_response = _Whole, parsed, heard
    return ends
