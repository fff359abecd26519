"""How long a question takes that is answered by its neighbours: `python -m benchmarks.neighbours`.

Normal numbers in 16 columns, k = 32, by the number of examples held; microseconds per row: to add rows in batches of
1,000, to predict them one by one (each after an example was added, so that the spreads are computed again) and in
batches of 100, and to remove them one by one. For the approximate index also the share of true neighbours it finds.
Times are those of the processor, on one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.neighbours import Neighbours
from operators.delta import FLOAT, Columns

D, K, SINGLE = 16, 32, 200


def columns(x: np.ndarray) -> Columns:
    return {f"c{j}": x[:, j].copy() for j in range(D)}


def measure(held: int, index: str, exact: Neighbours | None) -> tuple[list[str], Neighbours]:
    """Microseconds per row of each step as text, and what was measured."""
    r = np.random.default_rng(0)
    x = r.normal(size=(held + SINGLE, D))
    y, ids = x[:, 0] * 3 + r.normal(size=len(x)), np.arange(len(x))
    questions = r.normal(size=(1000, D))
    near = Neighbours({f"c{j}": FLOAT for j in range(D)}, "number", K, index)  # type: ignore[arg-type]

    def add(rows: slice) -> None:
        near.add(ids[rows], columns(x[rows]), y[rows], ids[rows])

    add(slice(0, 1))
    near.predict(columns(questions[:1]))
    began = time.process_time()
    for i in range(1, held, 1000):
        add(slice(i, min(i + 1000, held)))
    taken = [(time.process_time() - began) / held]
    single = 0.0
    for i in range(SINGLE):
        add(slice(held + i, held + i + 1))
        began = time.process_time()
        near.predict(columns(questions[i : i + 1]))
        single += time.process_time() - began
    taken.append(single / SINGLE)
    began = time.process_time()
    for i in range(0, len(questions), 100):
        near.predict(columns(questions[i : i + 100]))
    taken.append((time.process_time() - began) / len(questions))
    found = "1"
    if exact is not None:
        pairs = zip(near.nearest(columns(questions))[0], exact.nearest(columns(questions))[0], strict=True)
        found = f"{np.mean([len(np.intersect1d(a, b)) / K for a, b in pairs]):.3f}"
    began = time.process_time()
    for i in ids[:SINGLE]:
        near.remove(ids[i : i + 1])
    taken.append((time.process_time() - began) / SINGLE)
    add(slice(0, SINGLE))
    return [f"{held:,}", index, *(f"{t * 1e6:,.0f}" for t in taken), found], near


def main() -> None:
    """Measure both indexes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.neighbours")
    parser.add_argument("--held", type=int, nargs="*", default=[20_000, 100_000])
    args = parser.parse_args()
    table = Table("held", "index", "add", "predict one", "of 100", "remove", "found", title=f"us per row, d={D}, k={K}")
    for held in args.held:
        row, exact = measure(held, "exact", None)
        table.add_row(*row)
        table.add_row(*measure(held, "approximate", exact)[0])
    Console().print(table)


if __name__ == "__main__":
    main()
