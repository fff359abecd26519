"""Outputs that are topics of Kafka, into which each message goes once, whatever crashes.

Messages cannot be taken back. So what the state knows of a partition is an offset up to which it holds what the state
contains. A run that was cut off makes the same batches again (`engine/intake.py`), so the same messages; those that it
finds behind that offset, by key, version and value, are out there already and left out.

With transactions, all messages of an epoch and a record of progress become visible at once, when the state is saved, to
those who read what is committed.

So many messages at most are sent and not acknowledged. While no broker answers the run waits, and its producer sends
again what was not acknowledged, each message once; when it hears nothing for long, it is seen whether the topics are
still there. A transaction that failed is begun anew, with all that was in it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from engine.brokers import BrokerError, consumer, producer, told
from engine.messages import partitions
from engine.pack import Headers, packing
from engine.recovery import write_durably
from engine.sending import Sent, TooLargeError, send, wake
from engine.sink import SinkError

_MOST = 50_000
"""Messages that may be unanswered."""
_SILENT = 15.0
"""Seconds without an answer after which it is seen whether the topics are still there."""
_LAST = 5.0
"""Seconds for which a run that is to end waits for answers."""
_BEGIN = 60.0
"""Seconds for which a run that begins waits until what another left of a transaction has been undone."""
_LATER = "no broker answers; what was not sent is sent when it is run again"
FILE = "topics.json"
"""In the state directory: where the topics stood before the first message went to them."""
VERSION = "version"
"""The header by which a message is known again, together with its key."""

_CURE = "bring back what was, or start again without the state and with empty topics"

_TRIES = 5
"""Times that a transaction is begun."""


class _TornError(Exception):
    """A transaction failed, and can be begun anew."""


class _Parcel(NamedTuple):
    """Messages for a partition."""

    place: TopicPartition
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]

    def names(self) -> list[tuple[TopicPartition, bytes | None, bytes | None, int]]:
        """By what each is known again."""
        parts = zip(self.keys, self.values, self.headers, strict=True)
        return [(self.place, key, _version(head), hash(value)) for key, value, head in parts]

    def only(self, which: Sequence[int]) -> _Parcel:
        """Some of them."""
        keys, values, headers = self.keys, self.values, self.headers
        return _Parcel(self.place, [keys[i] for i in which], [values[i] for i in which], [headers[i] for i in which])


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
        self._coming: deque[_Parcel] = deque()
        self._within_it: list[_Parcel] = []
        self._sent: deque[Sent] = deque()
        self._unanswered = 0
        self._acked: dict[TopicPartition, int] = {}
        self._within = False
        self._heard = self._looked = monotonic()
        self._last: float | None = None
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
        topic = there["topic"]
        if saved is None or saved["topic"] != topic:
            raise SinkError(f"the state was not made with topic {topic!r} for sink {name!r}; {_CURE}")
        if saved["id"] != there["id"]:
            raise SinkError(_anew(topic))
        if any(now < before for now, before in zip(there["ends"], saved["ends"], strict=False)):
            raise SinkError(f"the topic {topic!r} of sink {name!r} has lost messages that were sent to it; {_CURE}")

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
            if self._stop.is_set():
                raise BrokerError(_LATER)
            for key, records in client.poll(timeout_ms=500).items():
                for r in records:
                    if (version := _version(r.headers)) is not None:
                        found.add((key, r.key, version, hash(r.value)))
            client.pause(*(set(keys) - set(left)))
        return found

    def _connect(self) -> None:
        """A new producer."""
        name = f"freshet-{self._pipeline}-{self._progress}" if self._progress else None
        self._producer = producer(self._settings, transactional_id=name)
        began = monotonic()
        while self._progress:
            try:
                self._producer.init_transactions()
                return
            except kafka_errors.KafkaError as error:
                late = self._stop.is_set() or monotonic() - began > _BEGIN
                if late or not isinstance(error, kafka_errors.KafkaTimeoutError):
                    self.close()
                    raise BrokerError(f"no transaction of {name!r} can be begun: {told(error)}") from None

    def write(
        self, name: str, keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers]
    ) -> None:
        """Send messages, but those that are out there."""
        topic, count = self._topics[name], len(self._state[name]["ends"])
        numbers = partitions([k or b"" for k in keys], count)
        whole = _Parcel(TopicPartition(topic, 0), list(keys), list(values), list(headers))
        for number in range(count):
            if which := np.flatnonzero(numbers == number).tolist():
                parcel = whole.only(which)._replace(place=TopicPartition(topic, number))
                if self._out_there:
                    parcel = parcel.only([i for i, name in enumerate(parcel.names()) if not self._is_out_there(name)])
                if parcel.keys:
                    self._coming.append(parcel)
        if self._progress:
            self._within_it += self._coming
        self._surely(lambda: self._settle(_MOST))

    def _is_out_there(self, name: Any) -> bool:
        """Whether a message is out there; each counts once."""
        there = name in self._out_there
        self._out_there.discard(name)
        return there

    def _surely(self, work: Callable[[], None]) -> None:
        """Send what is coming, and do something; if the transaction fails, all over again."""
        for left in reversed(range(_TRIES)):
            try:
                while self._coming:
                    self._send(self._coming[0])
                    self._coming.popleft()
                wake(self._producer)
                return work()
            except _TornError as error:
                if not left:
                    raise SinkError(
                        f"the transaction of {self._pipeline!r} failed {_TRIES} times ({error}); is another run of it "
                        "alive somewhere, with another state? Stop one of them"
                    ) from None
                self._begin_anew()

    def _begin_anew(self) -> None:
        """Give up the producer; what it has not committed is to be sent by another."""
        self.close()
        while True:
            try:
                self._connect()
                with consumer(self._settings, bootstrap_timeout_ms=2_000) as client:
                    arrived = self._behind(client)
                break
            except (BrokerError, kafka_errors.KafkaError):
                self.close()
                if self._stop.wait(1.0):
                    raise BrokerError(_LATER) from None
        self._within = False
        self._sent.clear()
        self._unanswered = 0
        self._heard = monotonic()
        left = [p.only([i for i, name in enumerate(p.names()) if name not in arrived]) for p in self._within_it]
        self._coming = deque(p for p in left if p.keys)

    def _send(self, parcel: _Parcel) -> None:
        if self._progress and not self._within:
            try:
                self._producer.begin_transaction()
            except kafka_errors.KafkaError as error:
                raise _TornError(told(error)) from None
            self._within = True
        if not self._sent:
            self._heard = monotonic()
        topic = parcel.place.topic
        while True:
            try:
                sent = send(self._producer, parcel.place, packing(parcel.keys, parcel.values, parcel.headers))
                break
            except kafka_errors.KafkaTimeoutError:  # no broker has told of the topic yet
                self._patient()
            except TooLargeError as error:
                if not any(name == "error" for name, _ in parcel.headers[error.index]):
                    raise SinkError(f"a message for topic {topic!r} is too large: {error}") from None
                self._cut(parcel, error.index)
            except kafka_errors.KafkaError as error:
                raise self._why(topic, error) from None
        self._sent.append(sent)
        self._unanswered += sent.count

    def _cut(self, parcel: _Parcel, i: int) -> None:
        """Take from a dead letter that is too large the end of what it quotes."""
        key, value, headers = parcel.keys[i] or b"", parcel.values[i] or b"", parcel.headers[i]
        most = self._producer.config["max_request_size"] - sum(len(v) for _, v in headers) - 2_000
        parcel.keys[i] = cut = key[: most // 2]
        parcel.values[i] = value[: most - len(cut)]
        parcel.headers[i] = [*headers, ("cut_from", b"%d" % len(value))]

    def _settle(self, most: int) -> None:
        """Take in answers; wait until no more than so many messages are unanswered."""
        while self._sent:
            first = self._sent[0]
            if not first.done.is_set():
                if self._unanswered <= most:
                    return
                if not first.done.wait(0.2):
                    self._patient()
                continue
            if first.error is not None:
                raise self._why(first.place.topic, first.error)
            if first.end:
                if first.begin < self._acked.get(first.place, 0):
                    raise SinkError(_anew(first.place.topic))
                self._acked[first.place] = first.end
            self._sent.popleft()
            self._unanswered -= first.count
            self._heard = monotonic()

    def _patient(self) -> None:
        """No answer yet: go on waiting, but not for long if the run is to end, and not for a topic that is gone."""
        now = monotonic()
        if self._stop.is_set():
            self._last = self._last or now
            if now - max(self._last, self._heard) > _LAST:
                raise BrokerError(_LATER)
        elif now - max(self._heard, self._looked) > _SILENT:
            self._examine()
            self._looked = monotonic()

    def _examine(self) -> None:
        """See whether the topics are still what they were, if a broker answers."""
        with (
            suppress(BrokerError, kafka_errors.KafkaError),
            consumer(self._settings, bootstrap_timeout_ms=2_000) as client,
        ):
            for name, one in self._state.items():
                self._check(name, one, self._look(client, name))

    def _why(self, topic: str, error: Exception) -> Exception:
        """Why a topic does not take messages."""
        try:
            self._examine()
        except SinkError as found:
            return found
        if self._progress:
            return _TornError(told(error))
        return SinkError(f"topic {topic!r} does not take messages: {told(error)}")

    def _note_ends(self) -> None:
        for one in self._state.values():
            for i, end in enumerate(one["ends"]):
                one["ends"][i] = max(end, self._acked.get(TopicPartition(one["topic"], i), 0))

    @property
    def silent(self) -> float:
        """Seconds for which messages have been waiting for an answer."""
        return monotonic() - self._heard if self._sent else 0.0

    @property
    def unanswered(self) -> int:
        """Messages that were sent and are not acknowledged."""
        return self._unanswered

    def flush(self, number: int) -> Any:
        """Make all that was sent up to this batch durable, and with transactions visible; returns the state."""
        self._surely(lambda: self._commit(number))
        self._within_it.clear()
        self._note_ends()
        return {name: {**one, "ends": list(one["ends"])} for name, one in self._state.items()}

    def _commit(self, number: int) -> None:
        if self._within:
            record = json.dumps({"pipeline": self._pipeline, "batch": number}).encode()
            try:
                self._producer.send(self._progress, record, self._pipeline.encode())
                done = self._producer._transaction_manager.begin_commit()  # that of the client waits for ever
                self._producer._sender.wakeup()
                while not done.wait(200):
                    self._patient()
            except kafka_errors.KafkaError as error:
                raise _TornError(told(error)) from None
            self._within = False
        self._settle(0)

    def close(self) -> None:
        """Let go of the broker."""
        self._producer._sender.force_close()


def _version(headers: Headers) -> bytes | None:
    return next((value for name, value in headers if name == VERSION), None)


def _anew(topic: str) -> str:
    return f"the topic {topic!r} was deleted and made anew since it was written; {_CURE}"


def held(settings: Mapping[str, Any], topic: str) -> list[bytes]:
    """The values of all messages that a topic holds. Raises `BrokerError`."""
    with consumer(settings) as client:
        keys = [TopicPartition(topic, i) for i in client.partitions_for_topic(topic)]
        client.assign(keys)
        client.seek_to_beginning()
        ends, found = client.end_offsets(keys), []
        while any(client.position(k) < ends[k] for k in keys):
            found += [r.value for records in client.poll(timeout_ms=500).values() for r in records]
        return found
