"""One measured run in a process of its own: `python -m benchmarks.child WHO WORKLOAD LINES FOLDER` prints seconds.

The clock runs from the first line read to the last line written; imports and the loading of compiled kernels are not
counted (for the engine a run over the first lines comes before).
"""

from __future__ import annotations

import os
import sys
import time
from itertools import islice
from pathlib import Path


def main() -> None:
    """Run what the command line says."""
    who, workload, lines, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    folder.mkdir(parents=True, exist_ok=True)
    if who == "freshet":
        from benchmarks.engine_run import run

        few = folder / "few.jsonl"
        with lines.open("rb") as file:
            few.write_bytes(b"".join(islice(file, 3000)))
        run(few, folder / "warm", workload == "w2")
        began = time.perf_counter()
        run(lines, folder / "freshet", workload == "w2")
    elif who == "hand":
        from benchmarks import hand

        began = time.perf_counter()
        {"w1": hand.w1, "w2": hand.w2}[workload](lines, folder / "hand.jsonl")
    else:
        from benchmarks import idiomatic

        began = time.perf_counter()
        idiomatic.w1(lines, folder / "idiomatic.jsonl")
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
