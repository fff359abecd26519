"""How long it takes to resume with the state of many keys: `python -m benchmarks.resume [--keys N]`.

Workload W1 with a card for each event, all within the last hour, so that every key has a row in its window. The run
ends and its state is saved; ten more events come, and a new process goes on. Measured in it is the time from claiming
the state to the first batch that is published; and the whole run, at whose end the state is saved again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from rich.console import Console

from benchmarks import workload
from benchmarks.engine_run import go_on


def again(folder: Path) -> None:
    """Go on in the folder; prints the seconds to the first batch, and to the end."""
    began, first = time.perf_counter(), 0.0

    def published() -> None:
        nonlocal first
        first = first or time.perf_counter() - began

    go_on(folder / "lines.jsonl", folder, model=False, published=published)
    print(first, time.perf_counter() - began)


def main() -> None:
    """Make the state, resume from it, and print how long that took."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.resume")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.again:
        again(args.again)
        return
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = folder / "lines.jsonl"
        frame = workload.frame(args.keys + 10 * args.rounds, args.keys, 7, per_hour=2 * args.keys, late_share=0.0)
        cards = [f"card-{i % args.keys:07d}" for i in range(len(frame))]
        frame = frame.with_columns(pl.Series("card_id", cards))
        frame[: args.keys].write_ndjson(lines)
        with console.status(f"making the state of {args.keys:,} keys"):
            go_on(lines, folder, model=False)
        size = sum(p.stat().st_size for p in (folder / "state").rglob("*") if p.is_file())
        console.print(f"state on disk: {size / 1e6:,.0f} MB")
        for i in range(args.rounds):
            with lines.open("ab") as out:
                frame[args.keys + 10 * i : args.keys + 10 * (i + 1)].write_ndjson(out)
            got = subprocess.run(
                [sys.executable, "-m", "benchmarks.resume", "--again", str(folder)],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            first, whole = map(float, got.stdout.split()[-2:])
            console.print(f"first batch after {first:.2f} s; whole run {whole:.2f} s")


if __name__ == "__main__":
    main()
