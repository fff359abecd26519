"""Several processes that run one dataflow: started together, stopped together, and ended when one of them ends.

What crosses between them is pickled: whoever reaches their ports runs code in them. They listen on the loopback address
here; between machines keep them in a network of their own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

_LEAVE = 10.0
"""Seconds that processes have to end when they are asked to."""


def addresses(n: int) -> list[str]:
    """So many free addresses on this machine."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]


def supervise(n: int, arguments: Sequence[str]) -> int:
    """Run the command in n processes, each told which one it is; returns their exit code.

    A stop is passed on to all. When one fails the others are ended, too: a process cannot join again, so all are to be
    started anew.
    """
    where = ";".join(addresses(n))
    command = [sys.executable, "-m", "engine", *arguments, "--addresses", where, "--held", str(os.getpid())]
    processes = [subprocess.Popen([*command, "--process-id", str(i)]) for i in range(n)]
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for process in processes:
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code, deadline = 0, None
    while any(p.poll() is None for p in processes):
        codes = [p.returncode for p in processes]
        if deadline is None and (asked or any(c is not None for c in codes)):
            deadline = time.monotonic() + _LEAVE
        if (deadline is not None and time.monotonic() > deadline) or any(codes):
            time.sleep(0.5)  # who ends because of another says so
            for process in processes:
                process.kill()
        time.sleep(0.05)
    for process in processes:
        code = code or (process.returncode if process.returncode > 0 else 1 if process.returncode else 0)
    return code
