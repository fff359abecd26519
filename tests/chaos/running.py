"""The bank in a folder, bound to topics, and lives of it: processes that can die at any moment.

A life begins in some hundredths of a second, for it is forked from a process that has imported everything.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from tests.chaos.world import SINKS, Verdict, judge
from tests.flow.running import command, environment, freshet

Topic = Callable[..., str]
PIPELINE = Path(__file__).with_name("bank") / "pipeline.py"


class Bank:
    """The bank in a folder, bound to topics of its own, or to these inputs."""

    def __init__(
        self, folder: Path, bootstrap: str, topic: Topic, more: str = "", inputs: dict[str, str] | None = None
    ) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        self.inputs = inputs or {name: topic(n) for name, n in (("transfers", 3), ("verdicts", 2), ("accounts", 1))}
        self.outputs = {name: topic(2) for name in SINKS}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(PIPELINE.read_text())
        lines = ['epoch = "200ms"', "port = 0", more, "[kafka]", f'bootstrap_servers = "{bootstrap}"']
        for name, t in self.inputs.items():
            lines += [f"[sources.{name}]", f'topic = "{t}"']
        for name, t in self.outputs.items():
            lines += [f"[sinks.{name}]", f'topic = "{t}"']
        (folder / "freshet.toml").write_text("\n".join(lines))

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        return freshet("run", self.folder, *self.places, *more, cwd=self.folder)

    @property
    def places(self) -> list[str]:
        return ["--out", str(self.folder / "out"), "--state", str(self.state)]

    @contextmanager
    def running(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """A run that follows, as a process of its own, which is dead afterwards."""
        line = command("run", self.folder, "--follow", "--quiet", *self.places, *more)
        with subprocess.Popen(line, cwd=self.folder, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def lag(self) -> int:
        """What the group of the pipeline has not read, as Kafka knows it."""
        with KafkaConsumer(bootstrap_servers=self.bootstrap, group_id="freshet-bank", enable_auto_commit=False) as c:
            keys = [TopicPartition(t, p) for t in self.inputs.values() for p in sorted(c.partitions_for_topic(t))]
            return sum(end - (c.committed(key) or 0) for key, end in c.end_offsets(keys).items())

    def judge(self) -> Verdict:
        return judge(self.bootstrap, self.inputs, self.outputs)


class Point(NamedTuple):
    """A named point of the commit: before or after the n-th call of a method."""

    module: str
    owner: str
    method: str
    after: bool
    number: int = 1

    def __str__(self) -> str:
        return f"{self.owner}.{self.method} {'after' if self.after else 'before'}"


class Life:
    """A run as a process. number: of the process."""

    def __init__(
        self, bank: Bank, follow: bool = True, point: Point | None = None, slow: float = 0.0, room: int | None = None
    ) -> None:
        line = ["run", str(bank.folder), "--quiet", *bank.places, *(["--follow"] if follow else [])]
        self._said = bank.folder / "said"
        self.began = time.monotonic()
        self._process = _FORK.Process(target=live, args=(line, str(self._said), point, slow, room), daemon=True)
        self._process.start()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def code(self) -> int | None:
        return self._process.exitcode

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def ends(self, seconds: float) -> bool:
        """Whether it ends by itself."""
        self._process.join(seconds)
        return not self._process.is_alive()


_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["tests.chaos.running", "tests.chaos.loaded"])


def live(line: Sequence[str], said: str, point: Point | None, slow: float, room: int | None) -> None:
    """Be a run. slow: seconds that each write takes. room: bytes that a file may have at most."""
    import importlib

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["COLUMNS"] = "500"
    from engine import cli
    from engine.outbox import Outbox

    if point is not None:
        _die_at(importlib.import_module(point.module), point)
    if slow:
        write = Outbox.write

        def slowly(self: Any, *args: Any) -> None:
            time.sleep(slow)
            write(self, *args)

        Outbox.write = slowly  # type: ignore[method-assign]
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    cli.main(list(line))


def _die_at(module: Any, point: Point) -> None:
    owner, left = getattr(module, point.owner), point.number
    real = getattr(owner, point.method)

    def call(*args: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and not point.after:
            os.kill(os.getpid(), signal.SIGKILL)
        got = real(*args, **named)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return got

    setattr(owner, point.method, call)
