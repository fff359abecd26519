"""A small pipeline from topics to topics for tests of faults, run in this process, and what its views must be."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from engine.bind import check_bindings, set_policies
from engine.cli import load_pipeline, main
from engine.flow import FlowError, Run
from engine.publish import outputs
from engine.recovery import claim
from engine.settings import load
from tests.chaos.world import read
from tests.flow.running import command, environment

Topic = Callable[..., str]
PIPELINE = Path(__file__).with_name("orders") / "pipeline.py"
Row = dict[str, Any] | None


def order(number: int, price: float = 1.5) -> dict[str, Any]:
    """An order as it is sent; all prices are whole halves, so that sums are exact."""
    at = f"2024-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z"
    return {"id": number, "shop": f"s{number % 5}", "price": price, "at": at}


class Shop:
    """The pipeline in a folder. inputs: its topics of orders. outputs: its topics by sink.

    more: lines of freshet.toml before the sections; kafka: settings of the clients; source: of the source.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        topic: Topic,
        partitions: int = 2,
        more: str = "",
        source: str = "",
        inputs: Sequence[str] = (),
        **kafka: Any,
    ) -> None:
        self.folder, self.bootstrap, self.partitions = folder, bootstrap, partitions
        self.inputs = list(inputs) or [topic(partitions, on=bootstrap)]
        self.outputs = {name: topic(2, on=bootstrap) for name in ("kept", "shops")}
        self.outputs["dead_letters"] = topic(1, on=bootstrap)
        (folder / "pipeline.py").write_text(PIPELINE.read_text())
        self.rows: dict[int, Row] = {}
        self.settings(more, source, **kafka)

    def settings(self, more: str = "", source: str = "", **kafka: Any) -> None:
        lines = ['epoch = "50ms"', "port = 0", more, "[kafka]", f'bootstrap_servers = "{self.bootstrap}"']
        lines += [f"{name} = {json.dumps(value)}" for name, value in kafka.items()]
        lines += ["[sources.orders]", source or f"topic = {json.dumps(self.inputs)}"]
        for name, t in self.outputs.items():
            lines += [f"[sinks.{name}]", f'topic = "{t}"']
        (self.folder / "freshet.toml").write_text("\n".join(lines))

    def put(
        self, *rows: dict[str, Any] | int, topic: str = "", partition: int | None = None, **settings: Any
    ) -> list[int]:
        """Send orders, or for a number that it is gone; the offsets."""
        with KafkaProducer(bootstrap_servers=self.bootstrap, **settings) as producer:
            sent = []
            for row in rows:
                number = row if isinstance(row, int) else row["id"]
                value = None if isinstance(row, int) else json.dumps(row).encode()
                key = b'{"id":%d}' % number
                where = number % self.partitions if partition is None else partition
                sent.append(producer.send(topic or self.inputs[0], value, key, partition=where))
                self.rows[number] = None if isinstance(row, int) else row
            producer.flush()
            return [s.get(timeout=30).offset for s in sent]

    def run(self, capsys: pytest.CaptureFixture[str], *more: str, code: int = 0) -> str:
        """The command in this process; what it says of errors, when it ends with this code."""
        before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main(["run", str(self.folder), "--quiet", *self.places, *more])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        said = capsys.readouterr().err
        assert ended.value.code == code, said
        return said

    @property
    def places(self) -> list[str]:
        return ["--out", str(self.folder / "out"), "--state", str(self.folder / "state")]

    def begun(self, follow: bool = True, **given: Any) -> tuple[Run, Callable[[], None]]:
        """A run, ready to go in this process, and what lets go of its state."""
        p = load_pipeline(self.folder)[0]
        settings = load(self.folder, given)
        set_policies(p, settings)
        check_bindings(p, settings)
        out = self.folder / "out"
        names = outputs(p, settings.sinks)
        held = claim(self.folder / "state", p.name, p.definition(), settings.shards, out, names)
        return Run(p, settings, out, held, follow, None, lambda: time.time_ns() // 1000), held.release

    @contextmanager
    def live(self, **given: Any) -> Iterator[Live]:
        """A run that follows, in a thread."""
        run, release = self.begun(**given)
        live = Live(run)
        try:
            yield live
            live.stop()
        finally:
            run.stop.set()
            live.thread.join(60)
            release()

    def process(self, *more: str) -> Any:
        """A run that follows, as a process of its own."""
        import subprocess

        line = command("run", self.folder, "--follow", "--quiet", *self.places, *more)
        return subprocess.Popen(line, cwd=self.folder, env=environment(), stderr=subprocess.PIPE, text=True)

    def wanted(self) -> dict[str, dict[str, Any]]:
        """What the views are to be."""
        rows = {n: r for n, r in self.rows.items() if r is not None}
        shops: dict[str, Any] = defaultdict(lambda: [0, 0.0])
        for r in rows.values():
            shops[r["shop"]][0] += 1
            shops[r["shop"]][1] += r["price"]
        return {
            "kept": {str(n): (r["shop"], r["price"]) for n, r in rows.items()},
            "shops": {name: tuple(one) for name, one in shops.items()},
        }

    def found(self) -> dict[str, dict[str, Any]]:
        """What the views are; no message may be there twice."""
        views: dict[str, dict[str, Any]] = {}
        for name, of in (("kept", ("shop", "price")), ("shops", ("n", "turnover"))):
            records = read(self.bootstrap, self.outputs[name])
            versions = Counter((r.key, dict(r.headers)["version"]) for r in records if r.headers)
            assert max(versions.values(), default=1) == 1, "a message was sent twice"
            views[name] = {}
            for r in records:
                key = str(next(iter(json.loads(r.key).values())))
                row = None if r.value is None else json.loads(r.value)
                views[name].pop(key, None)
                if row is not None:
                    views[name][key] = tuple(row[c] for c in of)
        return views

    def is_right(self) -> bool:
        return self.found() == self.wanted()

    def reached(self, live: Live | None = None, seconds: float = 60) -> None:
        """Wait until the views are what they are to be."""
        end = time.monotonic() + seconds
        while not self.is_right():
            if live is not None:
                live.check()
            assert time.monotonic() < end, (self.found(), self.wanted())
            time.sleep(0.05)

    def letters(self) -> list[Any]:
        return read(self.bootstrap, self.outputs["dead_letters"])

    def messages(self) -> int:
        return sum(len(read(self.bootstrap, t)) for t in self.outputs.values())


class Live:
    """A run in a thread. error: what it ended with."""

    def __init__(self, run: Run) -> None:
        self.run, self.error = run, None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.run.run()
        except FlowError as error:
            self.error: FlowError | None = error

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.check()
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)

    def caught_up(self) -> None:
        self.until(lambda: self.run.live)

    def stop(self) -> None:
        self.run.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.check()

    def fails(self, seconds: float = 60) -> BaseException:
        """What stopped it."""
        self.thread.join(seconds)
        assert self.error is not None, "it goes on"
        assert self.error.__cause__ is not None
        return self.error.__cause__


def headers(record: Any) -> Mapping[str, str]:
    return {name: value.decode() for name, value in record.headers}


def cpu_and_memory(pid: int) -> tuple[float, int]:
    """Seconds of the processor that a process has used, and bytes that it holds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")
