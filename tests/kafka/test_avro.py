"""Records in Avro are what the same records in JSON are; what cannot be decoded is a dead letter with the reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from kafka import KafkaProducer

from engine.avro import Avro, RegistryError
from tests.flow.running import freshet
from tests.kafka.needs import needs
from tests.kafka.registry import Registry, running

Topic = Callable[..., str]

KEY = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}
ROW = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": ["null", "string"]},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}

PIPELINE = """
import polars as pl
import operators as op
from engine import Pipeline

p = Pipeline("avro")
rows = p.source(
    "rows", key="id", at="at", append_only=False, schema={"id": int, "name": str, "amount": float, "at": pl.Datetime}
)
p.sink("named", p.view("named", rows, op.where(pl.col("name").is_not_null())))
"""


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with needs(), running() as found:
        yield found


def write(number: int, schema: Any, value: Any) -> bytes:
    to = io.BytesIO()
    schemaless_writer(to, parse_schema(schema), value)
    return b"\0" + number.to_bytes(4, "big") + to.getvalue()


def test_avro_from_a_topic(registry: Registry, bootstrap: str, topic: Topic, tmp_path: Path) -> None:
    name = topic(1)
    key, row = registry.register(f"{name}-key", KEY), registry.register(f"{name}-value", ROW)
    at = datetime(2024, 1, 1, 12, 0, 0, 7, timezone.utc)
    rows = [{"id": i, "name": None if i == 2 else f"n{i}", "amount": Decimal("1.25"), "at": at} for i in range(5)]
    with KafkaProducer(bootstrap_servers=bootstrap) as producer:
        for r in rows:
            producer.send(name, write(row, ROW, r), write(key, KEY, {"id": r["id"]}))
        producer.send(name, None, write(key, KEY, {"id": 3}))
        for broken in (b"{}", b"\0\0\0\xff\xff", write(row, ROW, rows[0])[:-2], write(row, ROW, rows[0]) + b"x"):
            producer.send(name, broken, b"k")
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "freshet.toml").write_text(
        f'port = 0\nregistry = "{registry.url}"\n[kafka]\nbootstrap_servers = "{bootstrap}"\n'
        f'[sources.rows]\ntopic = "{name}"\nencoding = "avro"\n'
    )
    done = freshet("run", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / tmp_path.name
    live: dict[int, Any] = {}
    for line in map(json.loads, (out / "named.jsonl").read_text().splitlines()):
        live = live | {line["id"]: line} if line["weight"] > 0 else {k: v for k, v in live.items() if k != line["id"]}
    assert sorted(live) == [0, 1, 4]
    assert live[1] == {"id": 1, "name": "n1", "amount": 1.25, "at": "2024-01-01T12:00:00.000007Z", "weight": 1}
    dead = [json.loads(line) for line in (out / "dead_letters.jsonl").read_text().splitlines()]
    assert [d["reason"].split(":")[0] for d in dead] == [
        "not Avro with the number of a schema",
        f"its schema 65535 is not in the registry {registry.url}".split(":")[0],
        "not Avro of its schema",
        "not Avro of its schema",
    ]
    assert [d["key"] for d in dead] == ["k"] * 4


def test_schemas_that_refer_to_others(registry: Registry) -> None:
    registry.register("inner", KEY)
    outer = {"type": "record", "name": "Outer", "fields": [{"name": "key", "type": "Key"}]}
    number = registry.register("outer", outer, {"name": "Key", "subject": "inner", "version": 1})
    whole = {"type": "record", "name": "Outer", "fields": [{"name": "key", "type": KEY}]}
    assert Avro(registry.url).json(write(number, whole, {"key": {"id": 7}})) == b'{"key":{"id":7}}'


def test_a_registry_that_does_not_answer_is_no_dead_letter() -> None:
    waited: list[float] = []
    avro = Avro("http://me:secret@127.0.0.1:1", waited.append)
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:1 does not answer") as error:
        avro.json(b"\0\0\0\0\1x")
    assert "secret" not in str(error.value)
    assert waited == [1, 2, 3, 4]
