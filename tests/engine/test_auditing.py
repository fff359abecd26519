"""Audits beside a run: what they find is added up, and nothing that happens to one happens to the run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from engine.auditing import ABSENT, LATER, Audits

HOUR = 3_600_000_000


def report(to: int, wrong: int = 0, absent: int = 0) -> str:
    """What an audit prints."""
    features = {"a": {"mismatch": wrong, "missing": 0, "extra": 1 if wrong else 0}, "b": {"mismatch": 0}}
    return json.dumps([{"to": to, "checked": 10, "absent": absent, "later": 0, "features": features}])


class Fake:
    """Audits by commands that say what they are told to. asked: of which models, since which change."""

    def __init__(self, folder: Path, *programs: str) -> None:
        self.asked: list[tuple[str, int]] = []
        self._programs = list(programs)
        self.audits = Audits({"m": (HOUR, ("a", "b")), "n": (2 * HOUR, ())}, self._command, folder / "audit")

    def _command(self, model: str, since: int) -> list[str]:
        self.asked.append((model, since))
        return [sys.executable, "-S", "-c", self._programs.pop(0)]

    def until_ended(self, now: int) -> None:
        """Look until what runs has ended; nothing else is begun meanwhile."""
        begun, ended = len(self.asked), self.ended
        for _ in range(1000):
            self.audits.look(now)
            if self.ended > ended:
                return
            assert len(self.asked) == begun
            time.sleep(0.01)
        raise AssertionError("it did not end")

    @property
    def ended(self) -> int:
        return sum(self.of(name)["audits"] for name in "mn")

    def of(self, model: str) -> dict[str, Any]:
        figures = self.audits.figures(model)
        assert figures is not None
        return figures


def test_what_they_find_is_added_up(tmp_path: Path) -> None:
    fake = Fake(tmp_path, f"print('{report(70)}')", f"print('{report(90, 2, 1)}'); exit(1)", f"print('{report(95)}')")
    none = {ABSENT: 0, LATER: 0, "a": 0, "b": 0}
    assert fake.of("m") == {
        "every_seconds": 3600.0, "at": None, "audits": 0, "failed": 0, "checked": 0, "why": None, "mismatches": none
    }  # fmt: skip
    fake.audits.look(0)
    assert (fake.of("m")["at"], fake.of("n")["at"], fake.asked) == (0.0, 0.0, [])
    fake.audits.look(HOUR - 1)
    assert fake.asked == []
    fake.audits.look(HOUR)
    fake.until_ended(HOUR + 5)
    assert fake.asked == [("m", -1)]
    assert fake.of("m") == {**fake.of("m"), "at": 3600.000005, "audits": 1, "checked": 10, "mismatches": none}
    fake.audits.look(2 * HOUR)
    fake.until_ended(2 * HOUR + 1)
    assert fake.asked == [("m", -1), ("n", -1)], "each in its turn"
    assert fake.of("n")["mismatches"] == {ABSENT: 1, LATER: 0, "a": 3, "b": 0}
    fake.audits.look(3 * HOUR)
    fake.until_ended(3 * HOUR + 5)
    assert fake.asked[-1] == ("m", 70)
    assert (fake.of("m")["checked"], fake.of("m")["failed"]) == (20, 0)
    assert json.loads((tmp_path / "audit" / "n.json").read_text())[0]["to"] == 90
    assert fake.audits.figures("other") is None


def test_one_that_fails_is_counted_and_the_next_begins_where_it_did(tmp_path: Path) -> None:
    programs = {
        "raise SystemExit(3)": "it ended with 3",
        "import os; os.kill(os.getpid(), 9)": "it ended with -9",
        "print('no report')": "invalid literal",
        "print('[]')": "not enough values",
        "import sys; print('the log is damaged', file=sys.stderr); sys.exit(3)": "the log is damaged",
    }
    fake = Fake(tmp_path, *programs)
    fake.audits.look(0)
    for turn, said in enumerate(programs.values(), 1):
        fake.audits._models["n"].at = turn * HOUR  # it is not its turn
        fake.audits.look(turn * HOUR)
        fake.until_ended(turn * HOUR)
        assert said in fake.of("m")["why"]
        assert (fake.of("m")["audits"], fake.of("m")["failed"], fake.of("m")["checked"]) == (turn, turn, 0)
    assert fake.asked == [("m", -1)] * len(programs)


def test_one_that_cannot_begin_is_counted(tmp_path: Path) -> None:
    fake = Fake(tmp_path, f"print('{report(70)}')")
    fake.audits.look(0)
    (tmp_path / "audit").write_text("in the way")
    fake.audits.look(HOUR)
    assert "audit" in fake.of("m")["why"]
    assert (fake.of("m")["audits"], fake.of("m")["failed"], fake.of("m")["at"]) == (1, 1, 3600.0)
    (tmp_path / "audit").unlink()
    fake.audits._models["n"].at = 2 * HOUR
    fake.audits.look(2 * HOUR)
    fake.until_ended(2 * HOUR)
    assert (fake.of("m")["audits"], fake.of("m")["failed"], fake.of("m")["why"]) == (2, 1, None)


def test_one_that_hangs_is_the_only_one_and_ends_with_the_run(tmp_path: Path) -> None:
    fake = Fake(tmp_path, "import time; time.sleep(600)")
    fake.audits.look(0)
    for now in (HOUR, 2 * HOUR, 9 * HOUR):
        fake.audits.look(now)
    assert fake.asked == [("m", -1)]
    assert fake.of("m")["at"] == 0.0, "it grows old"
    began = time.monotonic()
    fake.audits.close()
    assert time.monotonic() - began < 60
