"""Compiles kernels ahead, into the cache that NUMBA_CACHE_DIR names, so that a first run does not wait for them.

    python warm.py tests/flow/cards     # while the image is built; this pipeline has nearly everything in it

What is compiled depends on types that a run meets: a kernel that is not met here is compiled when it is.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.messages import partitions
from engine.unpack import unpack, values

SETTINGS = """port = 0
[sources.payments]
path = "data/payments.jsonl"
[sources.chargebacks]
path = "data/chargebacks.jsonl"
format = "changes"
[sources.shops]
path = "data/shops.jsonl"
format = "debezium"
"""


def main(cards: Path) -> None:
    """Runs the pipeline in `cards` over data that it makes, and what only Kafka needs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cards"
        folder.mkdir()
        shutil.copy(cards / "pipeline.py", folder)
        (folder / "freshet.toml").write_text(SETTINGS)
        runpy.run_path(str(cards / "data.py"))["write"](folder / "data", 500)
        subprocess.run([sys.executable, "-m", "engine", "run", str(folder), "--quiet"], cwd=name, check=True)
    partitions([b"a", b"b"], 2)
    values([unpack(bytes([18, 0, 4, 0, 2]) + b"k" + bytes([4]) + b"{}" + bytes([0]), 1, 7, 1000, -1, 0)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
