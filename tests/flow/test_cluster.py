"""Several processes write what one does, also when their number changes from run to run, and when they are killed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.flow.cards import data
from tests.flow.running import cards, command, environment, freshet, project, run_here, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(tmp_path_factory.mktemp("cards"))
    data.write(made / "data", 3000)
    (made / "freshet.toml").write_text("shards = 4\n" + (made / "freshet.toml").read_text())
    return made


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    base = tmp_path_factory.mktemp("reference")
    run_here(cards(folder), folder, base / "out", base / "state", epoch="10s")
    return written(base / "out")


@contextmanager
def running(folder: Path, cwd: Path, processes: int) -> Iterator[subprocess.Popen[str]]:
    line = command("run", folder, "--out", "out", "--state", "state", "--quiet", "--processes", processes)
    with subprocess.Popen(line, cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def size(out: Path) -> int:
    return sum(f.stat().st_size for f in out.glob("*.jsonl"))


def test_from_one_process_to_two_to_four_and_back(folder: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    out, total = tmp_path / "out", sum(map(len, reference.values()))
    landed = 0
    for processes, share in ((1, 0.15), (2, 0.35), (4, 0.6)):
        with running(folder, tmp_path, processes) as process:
            while process.poll() is None and size(out) < total * share:
                time.sleep(0.01)
            landed += process.poll() is None
            if processes == 4:
                process.kill()  # those that it started end with it
            else:
                process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode in ((0,) if processes < 4 else (-signal.SIGKILL,)), said
    assert landed == 3, "each number of processes must have been at work"
    assert written(out) != reference
    until_free(folder, tmp_path)
    assert written(out) == reference


def until_free(folder: Path, cwd: Path) -> None:
    """Run to the end, once processes whose parent was killed have seen it."""
    deadline = time.monotonic() + 30
    while (done := freshet("run", folder, "--out", "out", "--state", "state", "--quiet", cwd=cwd)).returncode:
        assert "another run uses the state" in done.stderr
        assert time.monotonic() < deadline
    assert not done.stderr


def test_when_one_process_fails_all_end_with_its_reason(tmp_path: Path) -> None:
    folder = project(tmp_path / "cards")
    data.write(folder / "data", 500)
    text = (folder / "pipeline.py").read_text()
    share = 'share=pl.col("amount").map_batches(boom, return_dtype=pl.Float64, is_elementwise=True)'
    boom = "def boom(s):\n    assert s.len() < 30, 'boom'\n    return s\n\n\n"
    text = text.replace('share=pl.col("amount") / pl.col("spent")', share).replace(
        "p = Pipeline", boom + "p = Pipeline"
    )
    (folder / "pipeline.py").write_text(text)
    done = freshet("run", folder, "--quiet", "--processes", 2, cwd=tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert any("features (project)" in line and "boom" in line for line in errors), done.stderr
    assert all("boom" in line or "another process failed, or is gone" in line for line in errors), done.stderr
    assert freshet("run", folder, "--quiet", "--processes", 2, cwd=tmp_path).returncode == 1, "the state is free again"
