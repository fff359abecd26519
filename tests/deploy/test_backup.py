"""What `deploy/README.md` says of backups: a copy of state and outputs goes on elsewhere, to the same outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.flow import FlowError
from engine.recovery import StateError
from tests.flow.cards import data
from tests.flow.running import cards, project, run_here, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = project(tmp_path / "cards")
    data.write(made / "all", 400)
    (made / "data").mkdir()
    return made


def run(folder: Path, share: float, out: Path, state: Path) -> dict[str, bytes]:
    """Let the files grow to a share of all there will be, and run to their end; the outputs then."""
    for path in (folder / "all").iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        (folder / "data" / path.name).write_bytes(b"".join(lines[: int(len(lines) * share)]))
    run_here(cards(folder), folder, out, state)
    return written(out)


def test_a_copy_made_while_stopped_goes_on_elsewhere(folder: Path, tmp_path: Path) -> None:
    out, state, backup = tmp_path / "out", tmp_path / "state", tmp_path / "backup"
    saved = run(folder, 0.4, out, state)
    shutil.copytree(state, backup / "state")
    shutil.copytree(out, backup / "out")
    later = run(folder, 1.0, out, state)
    assert later != saved

    shutil.rmtree(state)
    shutil.rmtree(out)
    shutil.copytree(backup / "out", out)  # to its own path; the state may lie anywhere
    elsewhere = shutil.copytree(backup / "state", tmp_path / "other" / "place")
    assert run(folder, 1.0, out, elsewhere) == later, "what was done after the backup is done again"


def test_outputs_at_another_path_are_refused(folder: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    run(folder, 0.4, out, state)
    moved = out.rename(tmp_path / "moved")
    with pytest.raises(StateError, match=r"was made with out '.*/out', this run has '.*/moved'; go on with"):
        run(folder, 0.4, moved, state)


def test_outputs_that_are_older_than_the_state_are_refused(folder: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    run(folder, 0.4, out, state)
    older = shutil.copytree(out, tmp_path / "older")
    run(folder, 0.8, out, state)
    shutil.rmtree(out)
    older.rename(out)
    with pytest.raises(FlowError, match=r"\.jsonl' .*(bytes|shorter)"):
        run(folder, 1.0, out, state)


def test_what_a_copy_left_out_is_named(folder: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    run(folder, 0.4, out, state)
    shutil.rmtree(state / "log")
    with pytest.raises(FlowError, match=r"state/log/.* is missing; .* backup"):
        run(folder, 0.4, out, state)
