"""States in files of their own: they come back as they were, and what a crash may go back to is there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.large import KEPT, SMALL, Large, LargeStateError
from engine.seal import Seal

SEAL = Seal(b"a key", "large")


def state(n: int) -> dict[str, Any]:
    words = np.arange(n, dtype=np.int64)
    return {"words": words, "floats": words[::2] / 3, "keys": [f"k{i}" for i in range(5)], "none": np.empty((0, 3))}


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("n", [1, SMALL])
def test_a_state_comes_back_and_can_be_changed(n: int, tmp_path: Path) -> None:
    large = Large(tmp_path / "large", "step", SEAL, "3")
    large.batch = 7
    kept = large.save(state(n))
    again = Large(tmp_path / "large", "step", SEAL)
    found = again.load(pickle.loads(pickle.dumps(kept)))
    assert same(found, state(n))
    found["words"][0] = 7
    assert (again.name, again.number, again.batch) == ("step.3", 1, 7)
    assert len(list(tmp_path.rglob("*.state"))) == (n > 1)
    assert len(pickle.dumps(kept)) < (10_000 if n == 1 else 250)


def test_the_last_ones_are_kept_and_older_ones_go(tmp_path: Path) -> None:
    large = Large(tmp_path, "step", SEAL)
    kept = [large.save(state(SMALL + i)) for i in range(6)]
    for i in range(6 - KEPT, 6):
        assert same(Large(tmp_path, "step", SEAL).load(kept[i]), state(SMALL + i))
    assert len(list(tmp_path.iterdir())) == KEPT
    with pytest.raises(
        LargeStateError, match=r"step.all.3.state' is missing; restore the state directory from a backup"
    ):
        Large(tmp_path, "step", SEAL).load(kept[2])
    for _ in range(KEPT):
        large.save(state(1))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_back_writes_over_what_was_never_completed(tmp_path: Path) -> None:
    large = Large(tmp_path, "step", SEAL)
    first, _ = large.save(state(SMALL)), large.save(state(SMALL + 1))
    again = Large(tmp_path, "step", SEAL)
    again.load(first)
    second = again.save(state(SMALL + 2))
    assert same(Large(tmp_path, "step", SEAL).load(second), state(SMALL + 2))


def test_a_crash_while_writing_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Large(tmp_path, "step", SEAL)
    first = large.save(state(SMALL))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("os.fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            large.save(state(SMALL))
    assert [f.name for f in tmp_path.glob("*.state")] == ["step.all.1.state"]
    again = Large(tmp_path, "step", SEAL)
    assert same(again.load(first), state(SMALL))
    again.save(state(SMALL))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step.all.1.state", "step.all.2.state"]


def test_a_byte_that_was_changed_is_found(tmp_path: Path) -> None:
    large = Large(tmp_path, "step", SEAL)
    kept = large.save(state(SMALL))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for at in (len(whole) - 9, len(whole) // 2, 200):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(LargeStateError, match="is damaged, or was changed: its seal is broken"):
            large.load(kept)


@pytest.mark.parametrize("length", [0, 10, 17, 30, 100, -1])
def test_a_damaged_file_is_refused(length: int, tmp_path: Path) -> None:
    large = Large(tmp_path, "step", SEAL)
    kept = large.save(state(SMALL))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(LargeStateError, match=r"step.all.1.state' is (damaged: it ends early|not a file of Freshet's)"):
        large.load(kept)
    file.write_bytes(b"\xff" * 1000)
    with pytest.raises(LargeStateError, match="is not a file of Freshet's"):
        large.load(kept)
    file.write_bytes(b"freshet state 3\n" + b"\xff" * 1000)
    with pytest.raises(LargeStateError, match="is damaged: it ends early"):
        large.load(kept)
