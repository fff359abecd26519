"""Outputs that are topics of Kafka, into which each message goes once, whatever crashes.

Messages cannot be taken back. So what the state knows of a partition is an offset up to which it holds what the state
contains. A run that was cut off makes the same batches again (`engine/intake.py`), so the same messages; those that it
finds behind that offset, by key, version and value, are out there already and left out.

With transactions, all messages of an epoch and a record of progress become visible at once, when the state is saved, to
those who read what is committed.

What was sent and is not acknowledged yet is kept, so many messages at most. While no broker answers the run waits; a
producer that hears nothing for long is given up for a new one, and what has not arrived is sent again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from engine.brokers import BrokerError, consumer, producer, told
from engine.messages import partitions
from engine.recovery import write_durably
from engine.sink import SinkError

_MOST = 50_000
"""Messages that may be unanswered."""
_SILENT = 45.0
"""Seconds without an answer after which a producer is given up."""
FILE = "topics.json"
"""In the state directory: where the topics stood before the first message went to them."""
VERSION = "version"
"""The header by which a message is known again, together with its key."""

Headers = list[tuple[str, bytes]]


class _Sent(NamedTuple):
    key: TopicPartition
    message: tuple[bytes | None, bytes | None, Headers]
    future: Any


class Outbox:
    """The topics of sinks, open for appending.

    topics: by sink its topic. folder: the state directory. state: what `flush` returned. pipeline: its name.
    transactions: the topic of the records of progress, or "" for no transactions. stop: set when the run is to end.
    Raises `BrokerError`, `SinkError`.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        topics: Mapping[str, str],
        folder: Path,
        state: Any,
        pipeline: str,
        transactions: str,
        stop: Event,
    ) -> None:
        self._settings, self._topics, self._stop = dict(settings), dict(topics), stop
        self._pipeline, self._progress = pipeline, transactions
        self._sent: deque[_Sent] = deque()
        self._acked: dict[TopicPartition, int] = {}
        self._within = False
        begun = folder / FILE
        with consumer(settings, committed=bool(transactions)) as client:
            there = {name: self._look(client, name) for name in topics}
            if transactions and not client.partitions_for_topic(transactions):
                raise SinkError(
                    f"there is no topic {transactions!r} for the records of progress; make it first, compacted"
                )
            if state is None and begun.exists():
                state = json.loads(begun.read_text())
            if state is None:
                for name, one in there.items():
                    if held := sum(one["ends"]) - sum(one["begins"]):
                        raise SinkError(
                            f"the topic {topics[name]!r} of sink {name!r} holds {held} messages, but there is no state "
                            "that sent them; take an empty topic, or point --state to the state that did"
                        )
                state = there
                write_durably(begun, state)
            for name, one in there.items():
                self._check(name, state.get(name), one)
            self._state = {name: {**state[name], "ends": list(state[name]["ends"])} for name in topics}
            self._out_there = self._behind(client)
        self._connect()

    def _look(self, client: KafkaConsumer, name: str) -> dict[str, Any]:
        """What the topic of a sink is now."""
        topic = self._topics[name]
        keys = [TopicPartition(topic, i) for i in range(len(client.partitions_for_topic(topic)))]
        if not keys:
            raise SinkError(
                f"there is no topic {topic!r} for sink {name!r}, or it may not be written; make it first, with the "
                "number of partitions it is to have, and compacted for a view"
            )
        found = client._cluster.topic_id(topic)
        begins, ends = client.beginning_offsets(keys), client.end_offsets(keys)
        return {
            "topic": topic,
            "id": None if found is None else str(found),
            "begins": [begins[k] for k in keys],
            "ends": [ends[k] for k in keys],
        }

    def _check(self, name: str, saved: Any, there: Mapping[str, Any]) -> None:
        topic, cure = there["topic"], "bring back what was, or start again without the state and with an empty topic"
        if saved is None or saved["topic"] != topic:
            raise SinkError(f"the state was not made with topic {topic!r} for sink {name!r}; {cure}")
        if saved["id"] != there["id"]:
            raise SinkError(
                f"the topic {topic!r} of sink {name!r} was deleted and made anew since it was written; {cure}"
            )
        if any(now < before for now, before in zip(there["ends"], saved["ends"], strict=False)):
            raise SinkError(f"the topic {topic!r} of sink {name!r} has lost messages that were sent to it; {cure}")

    def _behind(self, client: KafkaConsumer) -> set[tuple[TopicPartition, bytes | None, bytes, int]]:
        """The messages that topics hold behind what the state knows: partition, key, version, hash of the value."""
        keys = {
            TopicPartition(one["topic"], i): end for one in self._state.values() for i, end in enumerate(one["ends"])
        }
        least, most = client.beginning_offsets(list(keys)), client.end_offsets(list(keys))
        keys = {k: max(at, least[k]) for k, at in keys.items() if at < most[k]}
        found = set()
        client.assign(list(keys))
        for key, at in keys.items():
            client.seek(key, at)
        while left := [k for k in keys if client.position(k) < most[k]]:
            for key, records in client.poll(timeout_ms=500).items():
                for r in records:
                    if (version := _version(r.headers)) is not None:
                        found.add((key, r.key, version, hash(r.value)))
            client.pause(*(set(keys) - set(left)))
        return found

    def _connect(self) -> None:
        """A new producer."""
        name = f"freshet-{self._pipeline}" if self._progress else None
        self._producer = producer(self._settings, transactional_id=name)
        self._heard = monotonic()
        if self._progress:
            try:
                self._producer.init_transactions()
            except kafka_errors.KafkaError as error:
                raise BrokerError(f"no transaction of {name!r} can be begun: {told(error)}") from None

    def write(
        self, name: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers]
    ) -> None:
        """Send messages, but those that are out there."""
        topic, count = self._topics[name], len(self._state[name]["ends"])
        places = [TopicPartition(topic, i) for i in range(count)]
        numbers = partitions([k or b"" for k in keys], count).tolist()
        for number, key, value, head in zip(numbers, keys, values, headers, strict=True):
            place = places[number]
            if self._out_there and (same := (place, key, _version(head), hash(value))) in self._out_there:
                self._out_there.remove(same)
                continue
            self._send(place, (key, value, head))
        self._settle(_MOST)

    def _send(self, place: TopicPartition, message: tuple[bytes | None, bytes | None, Headers]) -> None:
        if self._progress and not self._within:
            self._producer.begin_transaction()
            self._within = True
        key, value, headers = message
        while True:
            try:
                future = self._producer.send(place.topic, value, key, headers, place.partition)
                break
            except kafka_errors.KafkaTimeoutError:  # no broker has told of the topic yet
                self._patient()
            except kafka_errors.MessageSizeTooLargeError as error:
                raise SinkError(f"a message for topic {place.topic!r} is too large: {told(error)}") from None
        if not self._sent:
            self._heard = monotonic()
        self._sent.append(_Sent(place, message, future))

    def _settle(self, most: int) -> None:
        """Take in answers; wait until no more than so many messages are unanswered."""
        while self._sent:
            first = self._sent[0]
            if not first.future.is_done:
                if len(self._sent) <= most:
                    return
                try:
                    first.future.get(timeout=0.2)
                except kafka_errors.KafkaTimeoutError:
                    self._patient()
                except kafka_errors.KafkaError:
                    pass
                continue
            if first.future.failed():
                raise SinkError(f"topic {first.key.topic!r} does not take messages: {told(first.future.exception)}")
            if (offset := first.future.value.offset) >= 0:
                self._acked[first.key] = offset + 1
            self._sent.popleft()
            self._heard = monotonic()

    def _patient(self) -> None:
        """No answer yet: go on waiting, with a new producer if it has been long."""
        if monotonic() - self._heard > _SILENT:
            if self._progress:
                raise SinkError(f"no broker has answered for {_SILENT:.0f} s within a transaction, which is given up")
            self._send_again()

    def _send_again(self) -> None:
        """Give up the producer, and let another send what has not arrived."""
        self._producer._sender.force_close()
        while True:
            try:
                self._note_ends()
                with consumer(self._settings, committed=False) as client:
                    arrived = self._behind(client)
                self._connect()
                break
            except (BrokerError, kafka_errors.KafkaError):
                if self._stop.wait(1.0):
                    raise SinkError("no broker answers; what was not sent is sent when it is run again") from None
        left, self._sent = self._sent, deque()
        for place, message, _ in left:
            key, value, headers = message
            if (place, key, _version(headers), hash(value)) not in arrived:
                self._send(place, message)

    def _note_ends(self) -> None:
        for one in self._state.values():
            for i, end in enumerate(one["ends"]):
                one["ends"][i] = max(end, self._acked.get(TopicPartition(one["topic"], i), 0))

    @property
    def silent(self) -> float:
        """Seconds for which messages have been waiting for an answer."""
        return monotonic() - self._heard if self._sent else 0.0

    def flush(self, number: int) -> Any:
        """Make all that was sent up to this batch durable, and with transactions visible; returns the state."""
        if self._within:
            record = json.dumps({"pipeline": self._pipeline, "batch": number}).encode()
            self._producer.send(self._progress, record, self._pipeline.encode())
            try:
                self._producer.commit_transaction()
            except kafka_errors.KafkaError as error:
                raise SinkError(f"the transaction of batch {number} was not committed: {told(error)}") from None
            self._within = False
        self._settle(0)
        self._note_ends()
        return {name: {**one, "ends": list(one["ends"])} for name, one in self._state.items()}

    def close(self) -> None:
        """Let go of the broker."""
        self._producer._sender.force_close()


def _version(headers: Headers) -> bytes | None:
    return next((value for name, value in headers if name == VERSION), None)
