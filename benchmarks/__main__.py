"""`make bench`: Freshet against a hand-written loop and idiomatic bytewax, in one run, as ratios.

All read the same JSON lines and write a JSON line per event, each in a process of its own on one core, in turn; quoted
is the median over rounds of the ratio within a round. The hand-written loop and idiomatic bytewax ignore corrections
for late events (an advantage to them); Freshet's accumulated output is checked against DuckDB on the final rows.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import workload

console = Console()
CASES = [("w1", "hand"), ("w1", "freshet"), ("w1", "idiomatic"), ("w2", "hand"), ("w2", "freshet")]


def measure(who: str, name: str, lines: Path, folder: Path) -> float:
    """Seconds that one run takes, in a process of its own."""
    got = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", who, name, str(lines), str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(got.stdout.split()[-1])


def differences(lines: Path, rows: Path) -> tuple[int, int]:
    """(rows, rows that differ from SQL over the final events) of Freshet's accumulated W1 output."""
    db = duckdb.connect()
    db.execute(f"""
        CREATE TABLE events AS SELECT *, row_number() OVER () AS pos
            FROM read_json('{lines}', format='newline_delimited',
                columns={{tx_id: 'BIGINT', card_id: 'VARCHAR', amount: 'DOUBLE', ts: 'BIGINT'}});
        CREATE TABLE want AS SELECT tx_id,
            count(*) OVER ever AS count, sum(amount) OVER ever AS sum, max(amount) OVER ever AS max,
            count(*) OVER hour - count(*) OVER after AS count_1h,
            sum(amount) OVER hour - coalesce(sum(amount) OVER after, 0) AS sum_1h
        FROM events WINDOW
            ever AS (PARTITION BY card_id ORDER BY ts, pos ROWS UNBOUNDED PRECEDING),
            hour AS (PARTITION BY card_id ORDER BY ts RANGE BETWEEN 3599999 PRECEDING AND CURRENT ROW),
            after AS (PARTITION BY card_id, ts ORDER BY pos ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING);
        CREATE TABLE got AS SELECT * EXCLUDE weight FROM (
            SELECT tx_id, count, sum, max, count_1h, sum_1h, mean, mean_1h, sum(weight) AS weight
            FROM read_json('{rows}', format='newline_delimited') GROUP BY ALL) WHERE weight <> 0;
    """)
    found = db.execute("""
        SELECT count(*), count(*) FILTER (WHERE got.tx_id IS NULL OR got.count <> want.count OR got.max <> want.max
            OR got.count_1h <> want.count_1h OR abs(got.sum - want.sum) > 1e-6 OR abs(got.sum_1h - want.sum_1h) > 1e-6
            OR abs(got.mean - want.sum / want.count) > 1e-6 OR abs(got.mean_1h - want.sum_1h / want.count_1h) > 1e-6)
        FROM want FULL JOIN got USING (tx_id)
    """).fetchone()
    assert found is not None
    return found


def main() -> None:
    """Measure, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks")
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = folder / "lines.jsonl"
        workload.write(lines, events=args.events)
        seconds: dict[tuple[str, str], list[float]] = {case: [] for case in CASES}
        plan = [case for _ in range(args.rounds) for case in CASES]
        for name, who in track(plan, "measuring", console=console):
            seconds[name, who].append(measure(who, name, lines, folder))
            if (name, who) == ("w1", "freshet"):
                rows, wrong = differences(lines, folder / "freshet" / "rows.jsonl")
        table = Table("workload", "who", "events/s", "ratio to the hand-written loop", box=None)
        for name, who in CASES:
            mine, hand = seconds[name, who], seconds[name, "hand"]
            rate = args.events / statistics.median(mine)
            ratio = statistics.median(h / m for h, m in zip(hand, mine, strict=True))
            table.add_row(name.upper(), who, f"{rate:,.0f}", f"{ratio:.2f}")
        console.print(table)
        console.print(f"W1 against DuckDB on the final rows: {rows:,} rows, {wrong:,} differ")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
