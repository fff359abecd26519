"""Runs of the cards pipeline for the tests of the flow: in this process, or as the command in one of its own."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.bind import set_policies
from engine.cli import load_pipeline
from engine.flow import Run
from engine.pipeline import Pipeline
from engine.publish import outputs
from engine.recovery import claim, sealed
from engine.settings import load
from engine.versions import Versions

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def project(folder: Path) -> Path:
    """A copy of the cards pipeline in a folder of its own, with settings that find its data."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "cards" / "pipeline.py", folder / "pipeline.py")
    (folder / "freshet.toml").write_text(
        'epoch = "200ms"\nbatch_rows = 50\nport = 0\n'
        '[sources.payments]\npath = "data/payments.jsonl"\n'
        '[sources.chargebacks]\npath = "data/chargebacks.jsonl"\nformat = "changes"\n'
        '[sources.shops]\npath = "data/shops.jsonl"\nformat = "debezium"\n'
    )
    return folder


def cards(folder: Path) -> Pipeline:
    """The pipeline declared in the folder."""
    return load_pipeline(folder)[0]


def run_here(p: Pipeline, folder: Path, out: Path, state: Path, refresh: Sequence[str] = (), **given: object) -> Run:
    """One run to the end, in this process. refresh: policies as on the command line."""
    settings = load(folder, given, refreshes=refresh)
    set_policies(p, settings)
    held = claim(state, p.name, p.definition(), settings.shards, out, outputs(p))
    try:
        run = Run(p, settings, out, held)
        run.run()
        return run
    finally:
        held.release()


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "engine", *map(str, args)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}


def freshet(*args: object, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in a process of its own, forked from one that has imported it."""
    line = [str(a) for a in args]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        process = _FORK.Process(target=_run, args=(line, str(cwd), {**os.environ, **_SEEN}, [str(s) for s in said]))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(line, timeout)
        out, err = (s.read_text() for s in said)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(line, process.exitcode, out, err)


_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["engine.cli"])
_SEEN = {"NO_COLOR": "1", "COLUMNS": "200"}


def _run(line: Sequence[str], cwd: str, env: Mapping[str, str], said: Sequence[str]) -> None:
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, "utf-8"), os.fdopen(2, "w", 1, "utf-8")
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["freshet", *line]
    from engine import cli

    cli.console, cli.errors = cli.Console(), cli.Console(stderr=True)
    cli.main()


def killed(args: Sequence[str], folder: Path, rng: random.Random, most: int, times: int = 4) -> int:
    """Let the command run in a folder, and kill it so many times when up to so many bytes more are in `out`.

    How many kills landed before it ended.
    """
    landed = 0
    for _ in range(times):
        process = subprocess.Popen(args, cwd=folder, env=environment(), stderr=subprocess.PIPE)
        target = sum(map(len, written(folder / "out").values())) + rng.randrange(1, most)
        while process.poll() is None and sum(map(len, written(folder / "out").values())) < target:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed += 1
    return landed


def written(out: Path) -> dict[str, bytes]:
    """The output files by name."""
    return {f.name: f.read_bytes() for f in sorted(out.glob("*.jsonl"))}


def versions_of(state: Path, pipeline: str, model: str) -> Versions:
    """The versions of a model that a run kept."""
    return Versions(state / "models" / model, sealed(state, pipeline))
