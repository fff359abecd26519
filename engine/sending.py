"""Whole batches of messages to the producer of kafka-python, which takes a tenth of the time of its `send`.

The producer does the rest as ever: it asks who leads a partition, numbers and seals each batch, sends it again, and in
order, until it is acknowledged, and takes it into a transaction.

This reaches into kafka-python 3.0, to whose minor version the project is tied for it.
"""

from __future__ import annotations

import time
from functools import partial
from threading import Event
from typing import Any

import numpy as np
from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecordsBuilder

from engine.pack import Packing

_HEADER = DefaultRecordBatchBuilder.HEADER_STRUCT.size


class TooLargeError(ValueError):
    """A message is larger than a request may be. index: which."""

    def __init__(self, index: int, size: int, most: int) -> None:
        super().__init__(f"it takes {size:,} bytes, and max_request_size is {most:,}")
        self.index = index


class Sent:
    """Messages that were given to the producer. place: their partition; count: how many.

    done: set when all are acknowledged, or have failed. begin, end: the offset of the first, and that behind the last,
    0 where no broker has told. error: why they failed.
    """

    def __init__(self, place: TopicPartition, count: int) -> None:
        self.place, self.count = place, count
        self.done = Event()
        self.begin = self.end = 0
        self.error: Exception | None = None
        self._left = count

    def rebind(self, future: Any, index: int) -> None:
        """One of them has gone to another batch, because the one it was in was too large: called by the producer."""
        self._within(future, index, 1)

    def _within(self, future: Any, first: int, count: int) -> None:
        """So many are in a batch, from this number on."""
        future._add_cb_eb(partial(self._answered, first, count), self._failed)

    def _answered(self, first: int, count: int, answer: Any) -> None:
        offset, _, errors = answer
        if errors is not None:
            return self._failed(errors(first))
        if offset >= 0:
            self.begin = min(self.begin, offset + first) if self.end else offset + first
            self.end = max(self.end, offset + first + count)
        self._left -= count
        if not self._left:
            self.done.set()

    def _failed(self, error: Exception) -> None:
        self.error = error
        self.done.set()


def wake(producer: KafkaProducer) -> None:
    """Let the producer send what it was given."""
    producer._sender.wakeup()


def send(producer: KafkaProducer, place: TopicPartition, messages: Packing) -> Sent:
    """Give messages for a partition to the producer, all or none; `wake` it when it has them all.

    Raises `TooLargeError`, `KafkaTimeoutError` when no broker has told of the topic yet, and other errors of Kafka.
    """
    most = producer.config["max_request_size"]
    if len(large := np.flatnonzero(messages.sizes + _HEADER > most)):
        raise TooLargeError(int(large[0]), int(messages.sizes[large[0]]), most)
    if producer._metadata.partitions_for_topic(place.topic) is None:
        producer._wait_on_metadata(place.topic, producer.config["max_block_ms"])
    manager = producer._transaction_manager
    if manager is not None and manager.is_transactional():
        manager.maybe_add_partition_to_transaction(place)
    accumulator = producer._accumulator
    sent, begin = Sent(place, len(messages)), 0
    accumulator._appends_in_progress.increment()
    try:
        with accumulator._tp_lock(place):
            if accumulator._closed:
                raise kafka_errors.IllegalStateError("the producer is closed")
            waiting = accumulator._batches[place]
            if waiting and isinstance(waiting[-1], _Batch):
                begin = waiting[-1].add(messages, 0, sent)
            while begin < len(messages):
                batch = _Batch(place, accumulator.config)
                begin = batch.add(messages, begin, sent)
                waiting.append(batch)
                accumulator._incomplete.add(batch)
    finally:
        accumulator._appends_in_progress.decrement()
    return sent


class _Batch(ProducerBatch):  # type: ignore[misc]
    """A batch whose records are packed already."""

    def __init__(self, place: TopicPartition, config: Any) -> None:
        super().__init__(place, MemoryRecordsBuilder(2, config["compression_attrs"], config["batch_size"]))

    def add(self, messages: Packing, begin: int, sent: Sent) -> int:
        """Take in messages from `begin` on, as many as there is room for; up to which."""
        if self.records._closed:
            return begin
        builder, number = self.records._builder, self.records.next_offset()
        room = builder._batch_size - builder.size()
        sizes = messages.sizes[begin:]
        if not number:
            room = max(room, int(sizes[0]))  # one goes into a batch of its own, however large
        if room < sizes[0]:
            return begin
        out = np.empty(min(room, int(sizes.sum())), np.uint8)
        stopped, size = messages.fill(begin, number, out)
        builder._buffer += out[:size].data
        if not number:
            builder._first_timestamp = builder._max_timestamp = int(time.time() * 1000)
        count = stopped - begin
        builder._num_records = self.records._next_offset = number + count
        builder._last_offset = number + count - 1
        self.last_append = time.monotonic()
        self._record_futures += [sent] * count
        sent._within(self.produce_future, number, count)
        return stopped
