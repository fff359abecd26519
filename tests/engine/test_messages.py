"""A topic of messages, folded by key, is the view; partitions are those of Kafka's own clients."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from engine.messages import messages, partitions
from operators.delta import INT, Delta

SCHEMA = {"id": INT, "n": INT}


def delta(changes: list[tuple[int, int, int, int]]) -> Delta:
    """Of (id, n, at, weight); a row's position is its id."""
    ids, n, at, weight = (
        (np.array(c, np.int64) for c in zip(*changes, strict=True)) if changes else [np.empty(0, int)] * 4
    )
    return Delta({"id": ids, "n": n}, weight, at, ids, np.zeros(len(ids), np.int64))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=6), max_size=8))
def test_folded_by_key_they_are_the_view(batches: list[list[tuple[int, int, bool]]]) -> None:
    live: dict[int, int] = {}
    topic: dict[bytes, Any] = {}
    for batch in batches:
        changes = []
        for number, n, stays in batch:
            if number in live:
                changes.append((number, live.pop(number), number, -1))
            if stays:
                changes.append((number, n, number, 1))
                live[number] = n
        made = messages(delta(changes), ["id"], SCHEMA)
        assert len(set(made.keys)) == len(made.keys), "one message of each key"
        topic |= dict(zip(made.keys, made.values, strict=True))
    held = {json.loads(k)["id"]: json.loads(v)["n"] for k, v in topic.items() if v is not None}
    assert held == live


def test_where_a_topic_holds_several_views_keys_say_which() -> None:
    made = [messages(delta([(7, 1, 0, w)]), ["id"], SCHEMA, view) for view, w in (("a.b", 1), ("c", -1))]
    assert [m.keys for m in made] == [[b'{"id":7,"view":"a.b"}'], [b'{"id":7,"view":"c"}']]
    assert made[1].values == [None]


def test_partitions_are_those_of_kafkas_clients() -> None:
    rng = random.Random(1)
    keys = [rng.randbytes(rng.randrange(30)) for _ in range(2000)]
    assert partitions(keys, 7).tolist() == [(murmur2(k) & 0x7FFFFFFF) % 7 for k in keys]
    assert partitions([], 7).tolist() == []
