"""Messages are packed as kafka-python itself packs them, and read back as what they were."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder

from engine.pack import packing
from engine.unpack import unpack

HEADERS = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=200)), max_size=3)
VALUES = st.none() | st.binary(max_size=3) | st.binary(min_size=60, max_size=70) | st.just(b"x" * 9000)
MESSAGES = st.lists(st.tuples(VALUES, VALUES, st.integers(0, 2)), min_size=1, max_size=80)


@given(MESSAGES, st.lists(HEADERS, min_size=3, max_size=3))
def test_records_are_those_of_the_client(messages, heads):
    keys, values, which = zip(*messages, strict=True)
    headers = [heads[i] for i in which]
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for i, (key, value, head) in enumerate(zip(keys, values, headers, strict=True)):
        builder.append(i, 1000, key, value, head)
    theirs = bytes(builder._buffer[DefaultRecordBatchBuilder.HEADER_STRUCT.size :])

    packed = packing(keys, values, headers)
    out = np.empty(int(packed.sizes.sum()), np.uint8)
    stopped, size = packed.fill(0, 0, out)
    assert (stopped, out[:size].tobytes()) == (len(messages), theirs)

    read = unpack(theirs, len(messages), 7, 1000, -1, 0)
    assert [(read.key(i), read.value(i)) for i in range(len(read))] == list(zip(keys, values, strict=True))


@given(MESSAGES, st.integers(0, 12_000))
def test_it_stops_where_there_is_no_room(messages, room):
    keys, values, _ = zip(*messages, strict=True)
    packed = packing(keys, values, [[]] * len(keys))
    whole = np.empty(int(packed.sizes.sum()), np.uint8)
    _, size = packed.fill(0, 0, whole)
    out = np.full(room, 77, np.uint8)
    stopped, used = packed.fill(0, 0, out)
    assert used <= room
    assert out[:used].tobytes() == whole[:used].tobytes()
    assert (stopped == len(keys)) == (size <= room)
    assert (out[used:] == 77).all()
    rest, more = packed.fill(stopped, stopped, np.empty(len(whole), np.uint8))
    assert (rest, used + more) == (len(keys), size)
