"""What a run needs, imported and its kernels loaded, without a thread: processes are forked from here."""

from __future__ import annotations

import sys

import river.linear_model
import river.preprocessing  # noqa: F401
from numba.core.registry import CPUDispatcher

import engine.cli
import engine.outbox
import engine.topics  # noqa: F401


def load_kernels() -> None:
    """Load all kernels that an earlier run compiled."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in ("engine", "operators")]
    for kernel in {v for m in modules for v in vars(m).values() if isinstance(v, CPUDispatcher)}:
        file = getattr(kernel._cache, "_cache_file", None)
        for signature, *_ in file._load_index() if file is not None else ():
            kernel.compile(signature)


load_kernels()
