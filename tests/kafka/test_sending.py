"""Whole batches through kafka-python's producer: each message once, in order, and with the offsets that it has."""

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from engine.brokers import producer
from engine.pack import packing
from engine.sending import TooLargeError, send, wake


def sent(bootstrap, name, parcels, **settings):
    """Send parcels of messages; what came of each, after an answer."""
    client = producer({"bootstrap_servers": bootstrap, **settings})
    try:
        found = [send(client, TopicPartition(name, 0), packing(*parcel)) for parcel in parcels]
        wake(client)
        assert all(one.done.wait(30) for one in found)
        return found
    finally:
        client.close(timeout=10)


def held(bootstrap, name):
    with KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as client:
        place = TopicPartition(name, 0)
        client.assign([place])
        client.seek_to_beginning()
        end, found = client.end_offsets([place])[place], []
        while client.position(place) < end:
            found += [r for records in client.poll(500).values() for r in records]
        return found


def parcel(numbers, size=20):
    """Messages, among them tombstones and such without a key."""
    return (
        [None if i % 7 == 0 else b"k%d" % i for i in numbers],
        [None if i % 7 == 1 else (b"%d" % i).ljust(size, b".") for i in numbers],
        [[("n", b"%d" % i)] for i in numbers],
    )


def check(found, records, parcels):
    wanted = [m for p in parcels for m in zip(*p, strict=True)]
    assert [(r.key, r.value, r.headers) for r in records] == wanted
    assert [r.offset for r in records] == list(range(len(wanted)))
    ends = np.cumsum([len(keys) for keys, _, _ in parcels]).tolist()
    assert [(s.begin, s.end, s.error) for s in found] == [(a, b, None) for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_messages_arrive_as_they_were(bootstrap, topic, compression):
    name = topic()
    parcels = [parcel(range(a, b)) for a, b in [(0, 1), (1, 2000), (2000, 2001), (2001, 2050)]]
    found = sent(bootstrap, name, parcels, compression_type=compression, batch_size=4096)
    check(found, held(bootstrap, name), parcels)


def test_a_message_larger_than_a_batch_goes_alone(bootstrap, topic):
    name = topic()
    parcels = [parcel([2, 3]), parcel([4], 50_000), parcel([5, 6])]
    check(sent(bootstrap, name, parcels, batch_size=4096), held(bootstrap, name), parcels)


def test_a_batch_that_the_broker_finds_too_large_is_divided(bootstrap, topic):
    name = topic(max_message_bytes=3000)
    parcels = [parcel(range(2, 400), 50), parcel(range(400, 500), 50)]
    check(sent(bootstrap, name, parcels, linger_ms=300), held(bootstrap, name), parcels)


def test_a_message_that_no_broker_takes_has_an_error(bootstrap, topic):
    name = topic(max_message_bytes=3000)
    (found,) = sent(bootstrap, name, [parcel([2], 5000)])
    assert "large" in str(found.error).lower()
    assert held(bootstrap, name) == []


def test_all_or_none_are_sent(bootstrap, topic):
    name = topic()
    client = producer({"bootstrap_servers": bootstrap, "max_request_size": 2000})
    keys, values, headers = parcel([2, 3, 4])
    values[1] = b"x" * 3000
    with pytest.raises(TooLargeError, match=r"3,0\d\d bytes, and max_request_size is 2,000") as error:
        send(client, TopicPartition(name, 0), packing(keys, values, headers))
    assert error.value.index == 1
    client.close(timeout=10)
    assert held(bootstrap, name) == []


def test_a_request_of_a_transaction_is_not_lost_while_the_broker_is_not_ready(bootstrap, topic, monkeypatch):
    client = producer({"bootstrap_servers": bootstrap}, transactional_id=f"test-{topic()}")
    try:
        client.init_transactions()
        client.begin_transaction()
        network = client._sender._client
        is_ready, refused = network.is_ready, []

        def not_ready(node):
            if len(refused) < 4:
                refused.append(node)
                return False
            return is_ready(node)

        monkeypatch.setattr(network, "is_ready", not_ready)
        place = TopicPartition(topic(), 0)
        one = send(client, place, packing([b"k"], [b"v"], [[]]))
        wake(client)
        assert one.done.wait(20)
        assert (one.error, len(refused)) == (None, 4)
        client.commit_transaction()
    finally:
        client.close(timeout=10)
