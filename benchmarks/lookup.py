"""How long does a lookup take, beside a worker that is at work?

`python -m benchmarks.lookup [--events 300000] [--rate 1000] [--seconds 20]`: the workload W1 (see `workload.py`), whose
view can be looked up by card. First the worker reads a file as fast as it can, without lookups and with them: what
keeping the newest rows costs. Then a process of its own writes to a file at half of that rate, a worker follows
it with its state saved every 2 s, and another process asks for single cards, at a steady rate over several connections
that are kept open. The latency of a lookup is counted from when it was due, so a client that had to wait for the
answer before is not excused. Asked are cards that are drawn like those that pay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.workload import write
from engine.lookup import Newest
from operators.delta import FLOAT, INT, STRING, Delta, to_column

PIPELINE = """
import polars as pl

import operators as op
from engine import Pipeline

p = Pipeline("bench")
payments = p.source(
    "payments", key="tx_id", at="ts", lateness="30s", epoch={"ts": "ms"},
    schema={"tx_id": int, "card_id": str, "merchant_id": str, "amount": float, "ts": pl.Datetime, "country": str,
            "is_fraud": bool},
)
rows = p.view(
    "rows", payments, op.project("tx_id", "card_id", "amount"),
    op.window(
        by="card_id", size="1h",
        count=op.count(size="forever"), sum=op.total("amount", size="forever"),
        mean=op.mean("amount", size="forever"), max=op.maximum("amount", size="forever"),
        count_1h=op.count(), sum_1h=op.total("amount"), mean_1h=op.mean("amount"),
    ),
    lookup=LOOKUP,
)
p.sink("rows", rows)
"""
CONNECTIONS = 8
_FIRST = 4000
"""Events that are there from the start."""
_SPARE = 15
"""Seconds of events beside those of the lookups."""


def project(folder: Path, lookup: bool) -> Path:
    """A folder with the pipeline; it reads `payments.jsonl` there."""
    folder.mkdir()
    (folder / "pipeline.py").write_text(PIPELINE.replace("LOOKUP", '"card_id"' if lookup else "False"))
    (folder / "freshet.toml").write_text('[sources.payments]\npath = "payments.jsonl"\n')
    return folder


def worker(folder: Path, *more: object) -> list[str]:
    given = ["run", folder, "--out", folder / "out", "--state", folder / "state", "--quiet", *more]
    return [sys.executable, "-m", "engine", *map(str, given)]


def throughput(folder: Path, events: Path) -> float:
    """Events a second, from the first that is published to the last, in a run of the command to the end."""
    shutil.copy(events, folder / "payments.jsonl")
    out, began = folder / "out" / "rows.jsonl", 0.0
    with subprocess.Popen(worker(folder, "--port", 0)) as process:
        while process.poll() is None:
            if not began and out.exists() and out.stat().st_size:
                began = time.perf_counter()
            time.sleep(0.002)
    ended = time.perf_counter()
    assert process.returncode == 0
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "state")
    with events.open("rb") as lines:
        return sum(1 for _ in lines) / (ended - began)


def feed(events: Path, path: Path, rate: float) -> None:
    """Append the events to a file at a steady rate, every 10 ms those that are due."""
    lines = events.read_bytes().splitlines(keepends=True)[_FIRST:]
    with path.open("ab", buffering=0) as file:
        began, done = time.perf_counter(), 0
        while done < len(lines):
            due = int((time.perf_counter() - began) * rate)
            file.write(b"".join(lines[done:due]))
            done = max(done, due)
            time.sleep(0.01)


async def ask(port: int, rate: int, seconds: float, cards: list[str]) -> list[tuple[float, float]]:
    """Ask at a steady rate; for each lookup when it was due and how long it took from then."""
    found: list[tuple[float, float]] = []
    began = time.perf_counter() + 0.1

    async def connection(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(first, int(rate * seconds), CONNECTIONS):
            due = began + i / rate
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            writer.write(f"GET /views/rows/{cards[i % len(cards)]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 404")) or b'"rows":[' not in body:
                raise RuntimeError(f"an answer that is none: {head!r} {body!r}")
            found.append((due - began, time.perf_counter() - due))
        writer.close()

    await asyncio.gather(*(connection(i) for i in range(CONNECTIONS)))
    return found


def _ask(sent: Any, port: int, rate: int, seconds: float, cards: list[str]) -> None:
    sent.send(asyncio.run(ask(port, rate, seconds, cards)))


def per_change(rows: int = 400_000, batch: int = 1000, cards: int = 10_000) -> float:
    """Nanoseconds of the processor that the store itself takes for a change: a newer row of a card; ten columns."""
    rng = np.random.default_rng(1)
    names = [f"x{i}" for i in range(8)]
    kept = Newest(("card",), {"id": INT, "card": STRING, **dict.fromkeys(names, FLOAT)})
    card = to_column([f"card-{k}" for k in rng.integers(0, cards, rows)], STRING)
    number, one, x = np.arange(rows), np.ones(rows, np.int64), rng.normal(size=rows)
    deltas = [
        Delta({"id": number[s], "card": card[s], **dict.fromkeys(names, x[s])}, one[s], number[s], number[s], number[s])
        for s in (slice(a, a + batch) for a in range(0, rows, batch))
    ]
    kept.apply(deltas[0], 0)
    began = time.process_time_ns()
    for i, delta in enumerate(deltas[1:], 1):
        kept.apply(delta, max(0, (i - 5) * batch))
    return (time.process_time_ns() - began) / (rows - batch)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.lookup")
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rate", type=int, default=1000, help="lookups a second")
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="freshet-lookup-") as temporary:
        base = Path(temporary)
        events = base / "events.jsonl"
        write(events, args.events)
        with console.status("throughput"):
            speeds: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(3):
                for lookup in (False, True):
                    speeds[lookup].append(throughput(project(base / f"p{turn}{lookup}", lookup), events))
        plain, kept = (float(np.median(speeds[lookup])) for lookup in (False, True))
        console.print(
            f"to the end of {args.events:,} events: {plain:,.0f} a second without lookups, {kept:,.0f} with; "
            f"{1e9 / kept - 1e9 / plain:,.0f} ns more for each. The store itself: {per_change():,.0f} ns"
        )
        with console.status("events for a live run"):
            write(events, int(kept / 2 * (args.seconds + _SPARE)))
        measure(console, base, events, kept / 2, args.rate, args.seconds)


def measure(console: Console, base: Path, events: Path, feeding: float, rate: int, seconds: float) -> None:
    """Lookups beside a worker at that rate of events, and beside one that has nothing to do."""
    folder = project(base / "live", True)
    with events.open("rb") as lines:
        (folder / "payments.jsonl").write_bytes(b"".join(islice(lines, _FIRST)))
    with events.open("rb") as lines:
        cards = [json.loads(line)["card_id"] for line in islice(lines, rate * 10)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    table = Table("", "lookups/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "most ms", title="latency of a lookup")
    spawn = multiprocessing.get_context("spawn")
    with subprocess.Popen(worker(folder, "--follow", "--port", port)) as process:
        fed = spawn.Process(target=feed, args=(events, folder / "payments.jsonl", feeding))
        try:
            _wait(f"http://127.0.0.1:{port}/views/rows/{cards[0]}")
            fed.start()
            time.sleep(3)
            for name in ("at half of its throughput", "with nothing to do"):
                told, sent = spawn.Pipe(False)
                asking = spawn.Process(target=_ask, args=(sent, port, rate, seconds, cards))
                before, worked = time.perf_counter(), _cpu(process.pid)
                asking.start()
                found = told.recv()
                asking.join()
                busy = (_cpu(process.pid) - worked) / (time.perf_counter() - before)
                waits = 1000 * np.array([wait for _, wait in found])
                figures = [f"{v:.2f}" for v in np.percentile(waits, [50, 90, 99, 99.9, 100])]
                table.add_row(f"{name} ({busy:.0%} of a core)", f"{len(waits) / seconds:,.0f}", *figures)
                if fed.is_alive() and name.startswith("at"):
                    fed.terminate()
                    fed.join()
                    time.sleep(5)
                elif name.startswith("at"):
                    raise SystemExit("the events ended before the lookups: the machine is too busy")
        finally:
            if fed.pid is not None:
                fed.terminate()
            process.send_signal(signal.SIGTERM)
    console.print(f"events at {feeding:,.0f} a second; {CONNECTIONS} connections")
    console.print(table)


def _cpu(pid: int) -> float:
    """Seconds of the processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the worker does not answer")


if __name__ == "__main__":
    main()
