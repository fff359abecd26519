"""Records as Debezium sent them, kept in `captured/NAME.jsonl`: keys and values byte for byte, in base64.

Two things were changed: the topic prefix is the name of the connector, and the two long texts are cut.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kafka.debezium.story import LONG

CAPTURED = Path(__file__).parent.parent / "captured"
VOLATILE = {"ts_ms", "ts_us", "ts_ns", "lsn", "txId", "sequence", "__source_ts_ms"}
"""What is different each time: times, and positions in the log of the database."""


@dataclass(frozen=True)
class Record:
    topic: str
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def payload(self) -> Any:
        """The value as JSON, without its schema; None for a tombstone."""
        return unwrapped(self.value)

    @property
    def table(self) -> str:
        return self.topic.rpartition(".")[2]

    def stable(self) -> object:
        """All that is the same each time."""
        headers = [(k, v) for k, v in self.headers if not k.startswith("__debezium.context.")]
        return self.topic, self.offset, _stable(parsed(self.key)), _stable(parsed(self.value)), headers


def parsed(raw: bytes | None) -> Any:
    return None if raw is None else json.loads(raw)


def unwrapped(raw: bytes | None) -> Any:
    value = parsed(raw)
    return value["payload"] if isinstance(value, dict) and set(value) == {"schema", "payload"} else value


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: None if k in VOLATILE else _stable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_stable(v) for v in value]
    if isinstance(value, str):  # the name of a transaction; an object of Java that shows where it lies
        return re.sub(r"^\d+:\d+$", "TRANSACTION", re.sub(r"@[0-9a-f]+$", "@ADDRESS", value))
    return value


def kept(raw: bytes | None, mark: str) -> bytes | None:
    """Bytes as they are kept: without what makes the topics of a run new, and with the long texts cut."""
    if raw is None:
        return None
    for text in LONG:
        raw = raw.replace(text.encode(), text[:32].encode())
    return raw.replace(f"_{mark}".encode(), b"")


def save(name: str, records: Iterable[Record]) -> None:
    def text(raw: bytes | None) -> str | None:
        return None if raw is None else base64.b64encode(raw).decode()

    lines = [
        {
            "topic": r.topic,
            "offset": r.offset,
            "timestamp": r.timestamp,
            "key": text(r.key),
            "value": text(r.value),
            "headers": [[k, text(v)] for k, v in r.headers],
        }
        for r in records
    ]
    CAPTURED.mkdir(exist_ok=True)
    (CAPTURED / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def load(name: str) -> list[Record]:
    """The captured records of a connector (bare, wrapped or flat), topic by topic."""

    def raw(text: str | None) -> bytes | None:
        return None if text is None else base64.b64decode(text)

    with (CAPTURED / f"{name}.jsonl").open() as lines:
        found = [json.loads(line) for line in lines]
    return [
        Record(
            topic=f["topic"],
            offset=f["offset"],
            timestamp=f["timestamp"],
            key=raw(f["key"]),
            value=raw(f["value"]),
            headers=tuple((k, base64.b64decode(v)) for k, v in f["headers"]),
        )
        for f in found
    ]
