"""W1 and a model through a real broker, beside what kafka-python alone reaches: `python -m benchmarks.through_kafka`.

Starts a broker of its own, or uses that of KAFKA_BOOTSTRAP. Each measurement is a process of its own and they take
turns, so that ratios are of the same minutes. A process reads a long topic, another a short one, and what counts is the
difference: without start, compilation, and what was fetched ahead. Events are JSON of some 180 bytes, in 4 partitions.

| measurement | what is done with each event |
| --- | --- |
| consume, plain | kafka-python reads it, orjson decodes it |
| consume + produce, plain | and kafka-python sends it on |
| consume, W1 | the engine keeps W1's views, without an output |
| consume, W1, produce | and sends each row of the view to a topic |

Then, at a steady rate, the latency from when an event is due to be sent to its prediction on the output topic; beside
that of kafka-python alone, which sends each event on as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import orjson
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.engine_run import pipeline
from benchmarks.workload import frame
from deploy.broker.broker import Broker
from engine.brokers import consumer, producer
from engine.flow import Run
from engine.pack import packing
from engine.publish import outputs
from engine.recovery import claim
from engine.sending import send, wake
from engine.settings import Settings, SinkSettings, SourceSettings
from engine.topics import whole_batches

PARTITIONS = 4
KINDS = ("consume, plain", "consume + produce, plain", "consume, W1", "consume, W1, produce")


def make(bootstrap: str) -> str:
    """A new topic."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        topics = {name: {"num_partitions": PARTITIONS, "replication_factor": 1}}
        admin.create_topics(topics, wait_for_metadata=True)
    return name


def fill(bootstrap: str, topic: str, events: int) -> int:
    """Send the workload; the bytes of an event."""
    rows = frame(events, 10_000, 7, per_hour=2_298, late_share=0.02).with_columns(note=None).to_dicts()
    size = 0
    with KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=128 << 10) as producer:
        for i, row in enumerate(rows):
            row["note"] = "x" * 45
            value = orjson.dumps(row)
            size += len(value)
            producer.send(topic, value, row["card_id"].encode(), partition=i * PARTITIONS // events)
        producer.flush()
    return size // events


def plain(bootstrap: str, topic: str, events: int, to: str | None) -> None:
    """kafka-python alone."""
    settings: dict[str, Any] = {"max_poll_records": 5000, "max_partition_fetch_bytes": 4 << 20}
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, metrics_enabled=False, **settings)
    producer = KafkaProducer(bootstrap_servers=bootstrap, batch_size=128 << 10, metrics_enabled=False)
    consumer.assign([TopicPartition(topic, p) for p in range(PARTITIONS)])
    consumer.seek_to_beginning()
    seen = 0
    while seen < events:
        for records in consumer.poll(1000).values():
            for r in records:
                orjson.loads(r.value)
                if to is not None:
                    producer.send(to, r.value, r.key, partition=r.partition)
            seen += len(records)
    producer.flush()


def settings_of(bootstrap: str, topic: str, sinks: Mapping[str, str]) -> Settings:
    return Settings(
        sources={"payments": SourceSettings(topic=topic)},
        sinks={name: SinkSettings(topic=to) for name, to in sinks.items()},
        kafka={"bootstrap_servers": bootstrap},
    )


def engine(bootstrap: str, topic: str, to: str | None, folder: Path) -> None:
    """W1 through the engine."""
    p = pipeline(model=False)
    if to is None:
        p.sinks.clear()
    settings = settings_of(bootstrap, topic, {} if to is None else {"rows": to})
    state = claim(folder / "state", p.name, p.definition(), 1, folder, outputs(p, settings.sinks))
    Run(p, settings, folder, state).run()


def echo(bootstrap: str, topic: str, to: str, stop: Event) -> None:
    """kafka-python alone: each event is sent on under the key that its prediction would have."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, metrics_enabled=False)
    producer = KafkaProducer(bootstrap_servers=bootstrap, metrics_enabled=False)
    consumer.assign([TopicPartition(topic, p) for p in range(PARTITIONS)])
    consumer.seek_to_beginning()
    while not stop.is_set():
        for records in consumer.poll(100).values():
            for r in records:
                key = orjson.dumps({"tx_id": orjson.loads(r.value)["tx_id"]})
                producer.send(to, r.value, key, partition=r.partition)


def predict(bootstrap: str, topic: str, to: str, stop: Event) -> None:
    """W2 through the engine: views, a model that learns at once, its training set, and state saved every 2 s."""
    p = pipeline(model=True)
    p.sinks.pop("rows")
    settings = settings_of(bootstrap, topic, {"predictions": to})
    with tempfile.TemporaryDirectory() as folder:
        state = claim(Path(folder) / "state", p.name, p.definition(), 1, Path(folder), outputs(p, settings.sinks))
        Run(p, settings, Path(folder), state, follow=True, now=lambda: time.time_ns() // 1000, stop=stop).run()


def latency(work: Callable[..., None], bootstrap: str, rate: int, seconds: float) -> dict[str, float]:
    """Percentiles of milliseconds from sending an event to what comes of it, at so many events a second."""
    topic, to = make(bootstrap), make(bootstrap)
    line = [sys.executable, "-m", "benchmarks.through_kafka", "--load", topic, to, str(rate), str(seconds)]
    with subprocess.Popen([*line, "--bootstrap", bootstrap], stdout=subprocess.PIPE, text=True) as load:
        stop = Event()
        thread = Thread(target=work, args=(bootstrap, topic, to, stop))
        thread.start()
        told, _ = load.communicate()
        stop.set()
        thread.join()
    found: dict[str, float] = json.loads(told)
    return found


def load(bootstrap: str, topic: str, to: str, rate: int, seconds: float) -> dict[str, float]:
    """Send events at a steady rate and see when their predictions come; from when each was due to be sent.

    It goes through the engine's own way of sending and reading, to leave the processors to what is measured.
    """
    n = int(rate * seconds)
    rows = frame(n, 10_000, 7, per_hour=2_298, late_share=0.02).to_dicts()
    values: list[bytes | None] = [orjson.dumps(r) for r in rows]
    keys: list[bytes | None] = [r["card_id"].encode() for r in rows]
    came = np.zeros(n)
    settings = {"bootstrap_servers": bootstrap}
    reader = consumer(settings, fetch_max_wait_ms=50)
    whole_batches(reader, lambda: None)
    reader.assign([TopicPartition(to, p) for p in range(PARTITIONS)])
    reader.seek_to_beginning()

    def read() -> None:
        left = n
        while left > 0:
            for packed in (p for several in reader.poll(100).values() for p in several):
                now = time.perf_counter()
                ids = [orjson.loads(packed.key(i) or b"")["tx_id"] for i in range(len(packed))]
                came[ids] = now
                left -= len(ids)

    thread = Thread(target=read)
    thread.start()
    sender = producer(settings)
    sender.partitions_for(topic)
    time.sleep(5)  # the engine starts
    began, done = time.perf_counter(), 0
    while done < n:
        time.sleep(0.002)
        due = min(int((time.perf_counter() - began) * rate), n)
        for p in range(PARTITIONS):
            mine = slice(done + (p - done) % PARTITIONS, due, PARTITIONS)
            if count := len(keys[mine]):
                send(sender, TopicPartition(topic, p), packing(keys[mine], values[mine], [[]] * count))
        wake(sender)
        done = due
    took_to_send = time.perf_counter() - began
    thread.join()
    sender.close()
    skip = n // 2  # until all is compiled and warm, the broker too
    took = (came - began - np.arange(n) / rate)[skip:] * 1000
    at = {name: float(np.quantile(took, share)) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {**at, "rate": n / took_to_send}


def measure(kind: str, bootstrap: str, topic: str, events: int) -> dict[str, float]:
    """Seconds, and seconds of the processor, for all events of a topic."""
    to = make(bootstrap) if "produce" in kind else None
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if "plain" in kind:
            plain(bootstrap, topic, events, to)
        else:
            engine(bootstrap, topic, to, Path(folder))
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def in_a_process(kind: str, bootstrap: str, topic: str, events: int) -> dict[str, float]:
    line = [sys.executable, "-m", "benchmarks.through_kafka", "--kind", kind, "--topic", topic]
    done = subprocess.run(
        [*line, "--bootstrap", bootstrap, "--events", str(events)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=800_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--bootstrap", default=os.environ.get("KAFKA_BOOTSTRAP"))
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--topic", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        print(json.dumps(measure(given.kind, given.bootstrap, given.topic, given.events)))
        return
    if given.load:
        topic, to, rate, seconds = given.load
        print(json.dumps(load(given.bootstrap, topic, to, int(rate), float(seconds))))
        return
    with tempfile.TemporaryDirectory() as folder:
        broker = None if given.bootstrap else Broker(Path(folder) / "broker").start()
        try:
            report(given, given.bootstrap or (broker.bootstrap if broker else ""))
        finally:
            if broker is not None:
                broker.stop()


def report(given: argparse.Namespace, bootstrap: str) -> None:
    console = Console(highlight=False)
    sizes = [given.events, given.events // 4]
    topics = [make(bootstrap) for _ in sizes]
    size, _ = (fill(bootstrap, topic, n) for topic, n in zip(topics, sizes, strict=True))
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=given.turns * len(KINDS))
        for _ in range(given.turns):
            for kind in KINDS:
                long, short = (in_a_process(kind, bootstrap, t, n) for t, n in zip(topics, sizes, strict=True))
                n = sizes[0] - sizes[1]
                found[kind].append((n / (long["seconds"] - short["seconds"]), (long["cpu"] - short["cpu"]) / n * 1e6))
                bar.advance(task)
    table = Table(title=f"{given.events:,} events of {size} bytes, {PARTITIONS} partitions, medians of {given.turns}")
    for name in ("measurement", "events/s", "us CPU per event", "of plain"):
        table.add_column(name, justify="left" if name == "measurement" else "right")
    medians = {k: [statistics.median(m) for m in zip(*ms, strict=True)] for k, ms in found.items()}
    for kind, (rate, cpu) in medians.items():
        beside, _ = medians[KINDS[1 if "produce" in kind else 0]]
        table.add_row(kind, f"{rate:,.0f}", f"{cpu:.1f}", f"{rate / beside:.2f}")
    console.print(table)
    for name, work in (("kafka-python alone, consume and produce", echo), ("W2, from event to prediction", predict)):
        told = latency(work, bootstrap, given.rate, given.seconds)
        console.print(
            f"latency at {told['rate']:,.0f} events/s, {name}: p50 {told['p50']:.1f} ms, p90 {told['p90']:.1f} ms, "
            f"p99 {told['p99']:.1f} ms"
        )


if __name__ == "__main__":
    main()
