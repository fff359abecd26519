"""What Debezium sends for what happens in PostgreSQL. Captured records stand for it; one test compares them with life.

`FRESHET_CAPTURE=1` in the environment of that test captures them anew.
"""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from deploy.broker.broker import until
from tests.kafka.debezium.records import CAPTURED, Record, kept, load, save
from tests.kafka.debezium.running import Connect, Postgres
from tests.kafka.debezium.story import AFTER, BEFORE, CONNECTORS, LONG, TABLES, connectors
from tests.kafka.needs import needs

OPS = ["r", "r", "c", "u", "u", "u", "u", "u", "d", None, "d", None, "c", "u", "d", None, "c", "t", "c"]
"""What happens to the accounts, None for a tombstone."""

UNAVAILABLE = "__debezium_unavailable_value"


def of(name: str, table: str = "accounts") -> list[Record]:
    return [r for r in load(name) if r.table == table]


class Watch:
    """All that is written to the topics of a run."""

    def __init__(self, consumer: KafkaConsumer, mark: str) -> None:
        self.consumer, self.mark = consumer, mark
        self.records: dict[str, list[Record]] = {}

    def poll(self) -> int:
        """Takes what there is, of new topics as well; how much it was, heartbeats not counted."""
        topics = {TopicPartition(t, 0) for t in self.consumer.topics() if self.mark in t}
        for topic in sorted(topics - self.consumer.assignment()):
            self.consumer.assign([*self.consumer.assignment(), topic])
        news = 0
        for records in self.consumer.poll(200).values():
            for r in records:
                topic = r.topic.replace(f"_{self.mark}", "")
                headers = tuple((k, kept(v, self.mark) or b"") for k, v in r.headers)
                key, value = kept(r.key, self.mark), kept(r.value, self.mark)
                self.records.setdefault(topic, []).append(Record(topic, r.offset, r.timestamp, key, value, headers))
                news += "heartbeat" not in topic
        return news

    def snapshots_are_there(self) -> bool:
        self.poll()
        return all(f"{name}.public.{table}" in self.records for name in CONNECTORS for table in TABLES)

    def end_is_there(self) -> bool:
        self.poll()
        return all(b'"balance":1,' in (self.records[f"{name}.public.accounts"][-1].value or b"") for name in CONNECTORS)

    def quiet(self) -> bool:
        begun = time.monotonic()
        while time.monotonic() < begun + 1:
            if self.poll():
                return False
        return True

    def of(self, name: str) -> list[Record]:
        """What a connector sent, topic by topic; of its heartbeats the first."""
        topics = sorted(t for t in self.records if name in t)
        return [r for t in topics for r in self.records[t][: 1 if "heartbeat" in t else None]]


def test_debezium_sends_what_was_captured(bootstrap: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex[:12]
    with needs(), Postgres() as postgres:
        postgres(*BEFORE)
        with (
            Connect(tmp_path, bootstrap, connectors(postgres, mark)) as connect,
            KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer,
        ):
            watch = Watch(consumer, mark)
            assert until(watch.snapshots_are_there, 60), connect.log.read_text()[-2000:]
            postgres(*AFTER)
            assert until(watch.end_is_there, 60), connect.log.read_text()[-2000:]
            assert until(watch.quiet, 30)
    if os.environ.get("FRESHET_CAPTURE"):
        for name in CONNECTORS:
            save(name, watch.of(name))
    for name in CONNECTORS:
        assert [r.stable() for r in watch.of(name)] == [r.stable() for r in load(name)]


@pytest.mark.parametrize("name", ["bare", "wrapped"])
def test_envelopes(name: str) -> None:
    records = of(name)
    assert [r.payload and r.payload["op"] for r in records] == OPS
    assert [r.offset for r in records] == list(range(len(OPS)))
    rows = [r.payload for r in records if r.payload]
    assert all((p["after"] is None) == (p["op"] in "dt") for p in rows)
    assert all(p["source"]["snapshot"] == "false" for p in rows[2:])
    assert [p["source"]["snapshot"] for p in rows[:2]] == ["first", "last_in_data_collection"]
    assert all(0 < p["source"]["ts_ms"] <= p["ts_ms"] for p in rows)


def test_a_schema_is_told_with_each_key_and_value_or_with_none() -> None:
    def shape(raw: bytes | None) -> list[str] | None:
        return None if raw is None else sorted(json.loads(raw))

    assert {tuple(shape(r.value) or ()) for r in of("wrapped")} == {("payload", "schema"), ()}
    assert {tuple(shape(r.key) or ()) for r in of("wrapped")} == {("payload", "schema"), ()}
    assert {tuple(shape(r.key) or ()) for r in of("bare")} == {("id",), ()}
    rows = [[(p["op"], p["before"], p["after"]) for p in (r.payload for r in of(n)) if p] for n in ("bare", "wrapped")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["bare", "wrapped"])
def test_a_long_text_is_told_only_when_it_changes(name: str) -> None:
    notes = [p["after"]["note"] for p in (r.payload for r in of(name)) if p and p["after"] and p["after"]["id"] == 1]
    first, second = (text[:32] for text in LONG)
    assert notes == [first, UNAVAILABLE, second, UNAVAILABLE, second, None]


@pytest.mark.parametrize("name", ["bare", "wrapped"])
def test_before_is_told_in_full_only_when_the_table_says_so(name: str) -> None:
    payloads = [r.payload for r in of(name) if r.payload]
    assert [p["before"] for p in payloads if p["op"] == "d"] == [
        {"id": 3, "owner": None, "balance": None, "note": None},
        {"id": 2, "owner": None, "balance": None, "note": None},
        {"id": 4, "owner": "Bob", "balance": 195, "note": None},
    ]
    updates = [p["before"] for p in payloads if p["op"] == "u"]
    assert updates == [None] * 5 + [{"id": 1, "owner": "Ann", "balance": 100, "note": LONG[1][:32]}]


@pytest.mark.parametrize("name", ["bare", "wrapped", "flat"])
def test_a_change_of_key_is_a_delete_a_tombstone_and_a_row(name: str) -> None:
    told = [(dict(r.headers), r) for r in of(name)]
    old = [r for h, r in told if "__debezium.newkey" in h]
    new = [r for h, r in told if "__debezium.oldkey" in h]
    assert [r.offset for r in old + new] == [10, 11, 12]
    assert old[0].key == old[1].key != new[0].key
    assert old[1].value is None


@pytest.mark.parametrize("name", ["bare", "wrapped"])
def test_a_truncation_has_no_key(name: str) -> None:
    records = of(name)
    assert [r.payload["op"] for r in records if r.key is None] == ["t"]
    assert records[OPS.index("t")].payload["before"] is None


def test_what_is_flat_says_what_is_deleted_by_a_word() -> None:
    records = of("flat")
    assert [r.payload and r.payload["__op"] for r in records] == [op for op in OPS if op != "t"]
    assert all((r.payload["__deleted"] == "true") == (r.payload["__op"] == "d") for r in records if r.payload)
    assert {r.payload["__deleted"] for r in records if r.payload} == {"true", "false"}


def test_messages_heartbeats_and_transactions_have_no_row() -> None:
    bare = load("bare")
    assert [r.payload["op"] for r in bare if r.topic == "bare.message"] == ["m"]
    assert [list(r.payload) for r in bare if r.topic == "__debezium-heartbeat.bare"] == [["ts_ms"]]
    assert {r.payload["status"] for r in bare if r.topic == "bare.transaction"} == {"BEGIN", "END"}
    moved = [r.payload["transaction"] for r in of("bare") if r.payload][5:7]
    assert moved[0]["id"] != moved[1]["id"]
    assert [m["total_order"] for m in moved] == [1, 2]


def test_values_of_all_kinds() -> None:
    names = ("small", "big", "price", "free", "day", "clock", "at", "at_zone", "span", "bytes", "tags")
    moments = (45_000_250_000, 1_709_209_800_123_456)
    rest = (93_600_000_000, "3q2+7w==", ["a", "b c"])
    shown = {n: [tuple(r.payload["after"][k] for k in names) for r in of(n, "kinds")] for n in ("bare", "wrapped")}
    assert shown["bare"] == [
        (1.5, 0.1, "19.99", "1" + "0" * 30, 19782, *moments, "2024-02-29T11:30:00.123456Z", *rest),
        (None,) * len(names),
        ("-Infinity", "NaN", "19.99", "NAN", -735160, *moments, "infinity", *rest),
    ]
    # As bytes, which are the default of Debezium, numeric has no NaN: it comes as null.
    exact = [(price, free) for _, _, price, free, *_ in shown["wrapped"]]
    assert exact == [("B88=", {"scale": 0, "value": "DJ8snNBGdO3qQAAAAA=="}), (None, None), ("B88=", None)]
    assert int.from_bytes(base64.b64decode("B88="), "big", signed=True) == 1999


def test_what_is_captured_is_small() -> None:
    assert sum(f.stat().st_size for f in CAPTURED.glob("*.jsonl")) < 250_000
