"""A run as a worker: started in a thread, stopped by signals, answering over HTTP, watched until it ends."""

from __future__ import annotations

import os
import signal
import time
from http.server import ThreadingHTTPServer
from importlib import metadata
from threading import Thread

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from engine.answer import MOST, Views
from engine.flow import FlowError, Run
from engine.logs import Log, Watch
from engine.metrics import exposition
from engine.openapi import document
from engine.publish import outputs
from engine.report import figures, look, readiness, standing_of
from engine.server import Answer, serve
from engine.settings import token_for
from engine.show import fitting
from engine.sink import begin
from engine.status import pages, shell


def started(live: Run) -> tuple[Thread, list[FlowError]]:
    """Let a run go, in a thread; the list is filled when it fails."""
    for name in [n for n in os.environ if n.startswith("BYTEWAX_DATAFLOW_API")]:
        del os.environ[name]  # any value would serve the flow on all addresses
    os.environ["RUST_BACKTRACE"] = "0"
    begin(live.out, outputs(live.graph, live.settings.sinks))
    failed: list[FlowError] = []

    def work() -> None:
        try:
            live.run()
        except FlowError as error:
            failed.append(error)

    thread = Thread(target=work, name="flow", daemon=live.forget is not None)
    thread.start()
    return thread, failed


def heed_signals(live: Run) -> None:
    """Let SIGTERM and Ctrl-C stop a run with its state saved, and a second Ctrl-C end it at once."""

    def stop(number: int, frame: object) -> None:
        live.stop.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def answering(live: Run) -> ThreadingHTTPServer:
    """Answer over HTTP, at the address of its settings, what a run is asked. Raises `OSError` when it is taken."""
    settings = live.settings
    token = token_for(settings)
    openapi = orjson.dumps(document(live.graph, metadata.version("freshet"), MOST, bool(token)))
    return serve(
        settings.port,
        {
            "/metrics": exposition(lambda: (figures(live, live.now()), live.live)),
            "/openapi.json": lambda: Answer(200, openapi, "application/json"),
            **pages(live, time.time_ns() // 1000),
        },
        lambda: readiness(live),
        settings.host,
        token,
        {"/views/": Views(live)},
        shell(),
    )


def url_of(server: ThreadingHTTPServer) -> str:
    """Where a server answers."""
    host, port = str(server.server_address[0]), server.server_address[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


_LEAVE = 8.0
"""Seconds for which a run that is to stop waits for brokers that do not answer."""


def watch(live: Run, thread: Thread, console: Console, quiet: bool, log: Log, parent: int | None = None) -> None:
    """Show progress, and say what happens, until the flow ends. parent: the process without which it ends, too."""
    said, left = Watch(log), None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %"),
        TextColumn("{task.fields[changes]:>11,} changes"),
        TextColumn("{task.fields[rate]:>9,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        starting = f"{live.graph.name}: starting (a first run compiles its kernels)"
        task = bar.add_task(starting, total=1.0, changes=0, rate=0.0)
        first: int | None = None
        began = time.monotonic()
        while thread.is_alive():
            thread.join(0.2)
            said.look(standing_of(live))
            if (now := live.now()) is not None:
                look(live, now)
            if parent not in (None, os.getppid()):
                os._exit(1)
            if live.stop.is_set() and live.silent > 1:
                left = left or time.monotonic()
                if time.monotonic() - left > _LEAVE:
                    log.say("stopped without an answer of a broker: what was not saved is done again", "error")
                    os._exit(1)
            if (merge := live.merge) is None:
                continue
            changes = sum(merge.read.values())
            if first is None:
                first, began = changes, time.monotonic()
            rate = (changes - first) / max(time.monotonic() - began, 1e-3)
            if changes and live.publish is not None:
                fits = fitting({n: m.keeper.figures() for n, m in dict(live.models).items()})
                bar.update(task, description=live.graph.name + fits)
            bar.update(task, completed=merge.progress, changes=changes, rate=rate)
