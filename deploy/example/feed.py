"""The flights of 2013 into Kafka, as JSON: makes the topics, and sends what `examples/flights/data.py` prepares.

    python -m deploy.example.feed topics                # makes departures, landings, weather and planes, fills planes
    python -m deploy.example.feed send --speed 3600     # the others by their event times: an hour of flights a second

Each topic has one partition, and what is sent stays as it is, so the end of a topic says how much of its file was sent.
Started again, at whatever moment it was ended, it goes on from there: nothing is sent twice. One at a time.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

FLIGHTS = Path(__file__).resolve().parents[2] / "examples" / "flights"

STREAMS = {"departures": "sched_dep", "landings": "arrived", "weather": "observed"}
"""By topic the column with its event time."""

KEYS = {
    "departures": ("flight_id",),
    "landings": ("flight_id",),
    "weather": ("origin", "observed"),
    "planes": ("tailnum",),
}

COMPACTED, KEPT = {"cleanup.policy": "compact"}, {"cleanup.policy": "delete", "retention.ms": "-1"}

OUTPUTS = {"features": COMPACTED, "predictions": KEPT}
"""Topics for what the pipeline makes of it. One of a view is to be compacted; but in `predictions` are those of two
models, with the same keys: compaction would keep one of the two."""

PATIENCE = 10_000
"""Milliseconds to wait for a broker."""

Line = tuple[str, str, bytes]
"""Event time, topic and a line of its file."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.example.feed", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("action", choices=["topics", "send"])
    parser.add_argument("--bootstrap", default="127.0.0.1:9092", help="where Kafka answers")
    parser.add_argument("--prefix", default="", help="before the name of each topic")
    parser.add_argument("--data", type=Path, default=FLIGHTS / "data", help="where the files are, or are to be")
    parser.add_argument("--speed", type=float, default=3600.0, help="seconds of 2013 in a second; 0: as fast as can be")
    parser.add_argument("--days", type=float, default=0.0, help="only the first days; 0: all")
    given = parser.parse_args(arguments)
    try:
        prepare(given.data)
        if given.action == "topics":
            for line in make(given.bootstrap, given.prefix, given.data):
                print(line, flush=True)
        else:
            feed(given.bootstrap, given.prefix, given.data, given.speed, given.days, lambda s: print(s, flush=True))
    except (KafkaError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def prepare(data: Path) -> None:
    """Makes the files, unless they are there."""
    spec = spec_from_file_location("flights_data", FLIGHTS / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.prepare(data)


def make(bootstrap: str, prefix: str, data: Path) -> Iterator[str]:
    """Makes those topics that are not there, and fills in what of the planes is not; says what was done."""
    with KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=PATIENCE) as admin:
        there = set(admin.list_topics())
        wanted = {**dict.fromkeys(KEYS, KEPT), **OUTPUTS}
        new = {
            prefix + name: {"num_partitions": 1, "replication_factor": 1, "configs": configs}
            for name, configs in wanted.items()
            if prefix + name not in there
        }
        if new:
            admin.create_topics(new, wait_for_metadata=True)
    yield f"topics: {len(new)} made, {len(wanted) - len(new)} were there"
    done = sent(bootstrap, [prefix + "planes"])[prefix + "planes"]
    with producer(bootstrap) as out:
        left = lines(data, "planes", "tailnum", done)
        n = sum(1 for _, _, line in left if send(out, prefix, "planes", line))
        out.flush()
    yield f"planes: {n} sent, {done} were there"


def feed(
    bootstrap: str, prefix: str, data: Path, speed: float, days: float, say: Callable[[str], None], every: float = 10.0
) -> int:
    """Sends the streams in the order of their event times, what the topics hold already left out; how many were sent.

    every: seconds between two lines that say how far it is.
    """
    done = sent(bootstrap, [prefix + name for name in STREAMS])
    merged = heapq.merge(*(lines(data, name, at, done[prefix + name]) for name, at in STREAMS.items()))
    n, first, last, began, said = 0, 0.0, "", time.monotonic(), time.monotonic()
    end = datetime(2013, 1, 1, tzinfo=timezone.utc).timestamp() + days * 86_400
    with producer(bootstrap) as out:
        for at, name, line in merged:
            moment = datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()
            if days and moment >= end:
                break
            first = first or moment
            if speed and (ahead := (moment - first) / speed - (time.monotonic() - began)) > 0:
                time.sleep(ahead)
            send(out, prefix, name, line)
            n, last = n + 1, at
            if time.monotonic() - said >= every:
                said = time.monotonic()
                say(f"{n:,} sent, up to {last}")
        out.flush()
    say(f"done: {n:,} sent{', up to ' + last if last else ''}")
    return n


def sent(bootstrap: str, topics: list[str]) -> dict[str, int]:
    """How many lines each topic holds."""
    with KafkaConsumer(
        bootstrap_servers=bootstrap, bootstrap_timeout_ms=PATIENCE, enable_auto_commit=False
    ) as consumer:
        ends = consumer.end_offsets([TopicPartition(t, 0) for t in topics])
    return {p.topic: end for p, end in ends.items()}


def lines(data: Path, name: str, at: str, skip: int) -> Iterator[Line]:
    """The lines of a file from some line on, each with the text of one of its columns."""
    with (data / f"{name}.jsonl").open("rb") as file:
        for i, line in enumerate(file):
            if i >= skip:
                yield json.loads(line)[at], name, line.rstrip(b"\n")


def producer(bootstrap: str) -> Any:
    """A producer that keeps the order and sends nothing twice."""
    return KafkaProducer(
        bootstrap_servers=bootstrap,
        bootstrap_timeout_ms=PATIENCE,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        batch_size=128 << 10,
    )


def send(out: Any, prefix: str, name: str, line: bytes) -> bool:
    """Hands a line to the producer, under the key of its row."""
    row = json.loads(line)
    key = json.dumps({column: row[column] for column in KEYS[name]}, separators=(",", ":")).encode()
    out.send(prefix + name, line, key)
    return True


if __name__ == "__main__":
    main()
