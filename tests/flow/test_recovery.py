"""A run that is interrupted anywhere and started again writes what an uninterrupted run writes, byte for byte."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.flow import FlowError
from engine.large import KEPT, Large
from engine.merge import Merge
from engine.model import KeptModel
from engine.publish import Publish
from engine.sink import Files
from engine.view import Gather, Shard
from tests.flow.cards import data
from tests.flow.running import cards, command, environment, freshet, project, run_here, written


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(tmp_path_factory.mktemp("cards"))
    data.write(made / "data", 3000)
    return made


@pytest.fixture(scope="session")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    base = tmp_path_factory.mktemp("reference")
    run_here(cards(folder), folder, base / "out", base / "state", epoch="10s")
    got = written(base / "out")
    assert all(got.values()), "every output has lines, so that each is put to the test"
    return got


class Crash(BaseException):
    """Stands for a crash; no code catches it by accident."""


class CrashingAt:
    """Makes a method raise at its n-th call, before or after doing its work; counts what landed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: bool) -> None:
        self.left = -1
        self.landed = 0
        real: Callable[..., Any] = getattr(owner, method)

        def call(*args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not after:
                self.landed += 1
                raise Crash
            got = real(*args, **named)
            if self.left == 0:
                self.landed += 1
                raise Crash
            return got

        monkeypatch.setattr(owner, method, call)


POINTS = [
    (Merge, "next", False),
    (Merge, "next", True),
    (Merge, "state", False),
    (Shard, "__call__", True),
    (Shard, "snapshot", False),
    (Gather, "__call__", False),
    (KeptModel, "apply", True),
    (KeptModel, "snapshot", True),
    (Publish, "__call__", False),
    (Publish, "__call__", True),
    (Files, "write", True),
    (Files, "flush", False),
    (Files, "flush", True),
    (Large, "save", False),
    (Large, "save", True),
]


@pytest.mark.parametrize(("owner", "method", "after"), POINTS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_crash_at_each_point_of_an_epoch(
    owner: type,
    method: str,
    after: bool,
    folder: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.large.SMALL", 0)  # every state in a file of its own
    rng = random.Random(f"{owner.__name__}.{method}.{after}")
    crash = CrashingAt(monkeypatch, owner, method, after)
    p = cards(folder)
    for n in (1, 2, rng.randrange(3, 8), rng.randrange(8, 20)):
        crash.left = n
        landed = crash.landed
        with suppress(FlowError):
            run_here(p, folder, tmp_path / "out", tmp_path / "state", epoch="1ms")
        if crash.landed == landed:
            break
    assert crash.landed >= 2, "the crash must land, or nothing was tested"
    crash.left = -1
    run_here(p, folder, tmp_path / "out", tmp_path / "state")
    assert written(tmp_path / "out") == reference
    files = [f.name.rsplit(".", 2)[0] for f in (tmp_path / "state/large").iterdir()]
    assert {"model-fraud.all", "read.all", "publish.all"} < set(files)
    assert all(files.count(name) <= KEPT for name in files)


def test_kill_9_at_random_moments(folder: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(9)
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet")
    landed = resumed = 0
    for _ in range(12):
        process = subprocess.Popen(args, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
        target = rng.randrange(1, 40_000)
        before = size = sum(map(len, written(tmp_path / "out").values()))
        while process.poll() is None and size < before + target:
            time.sleep(0.01)
            size = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.jsonl"))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed += 1
        resumed += before > 0
    assert process.returncode in (0, -signal.SIGKILL), process.stderr and process.stderr.read()
    assert landed >= 2
    assert resumed >= 1, "at least one kill must hit a resumed run"
    done = freshet("run", folder, "--out", "out", "--state", "state", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    got = written(tmp_path / "out")
    assert got == reference


def test_sigterm_drains_and_the_next_run_goes_on(folder: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    args = command("run", folder, "--out", "out", "--state", "state")
    process = subprocess.Popen(args, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(written(tmp_path / "out").values()):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    partial = written(tmp_path / "out")
    assert "stopped; the same command goes on from here" in text
    assert partial != reference, "the signal must land before the end"
    assert freshet("run", folder, "--out", "out", "--state", "state", cwd=tmp_path).returncode == 0
    assert written(tmp_path / "out") == reference


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_give_the_same(workers: int, folder: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", workers=workers)
    assert written(tmp_path / "out") == reference


def test_a_finished_run_started_again_changes_nothing_and_new_lines_are_taken(
    folder: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    mine = project(tmp_path / "cards")
    data.write(mine / "data", 3000)
    file = mine / "data" / "payments.jsonl"
    whole = file.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    file.write_bytes(whole[:last])
    p = cards(mine)
    for _ in range(2):
        run_here(p, mine, tmp_path / "out", tmp_path / "state")
    before = written(tmp_path / "out")
    with file.open("ab") as f:
        f.write(whole[last:])
    run_here(p, mine, tmp_path / "out", tmp_path / "state")
    after = written(tmp_path / "out")
    assert len(after["predictions.jsonl"].splitlines()) == len(before["predictions.jsonl"].splitlines()) + 1
    assert len(after["predictions.jsonl"].splitlines()) == len(reference["predictions.jsonl"].splitlines())
