"""How a deferred view is refreshed does not show: not in its output, not after a crash, not with several shards."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.batch import Way
from engine.cost import Costs
from engine.flow import FlowError
from engine.hold import Holding, Settling
from engine.view import Shard
from tests.flow.cards import data
from tests.flow.running import cards, command, freshet, killed, project, run_here, written
from tests.flow.test_recovery import CrashingAt

POLICY = "cards=deferred(every='2m', rows=40, mode='{}')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(tmp_path_factory.mktemp("cards"))
    data.write(made / "data", 1000)
    return made


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    base = tmp_path_factory.mktemp("reference")
    run_here(cards(folder), folder, base / "out", base / "state", epoch="10s")
    got = written(base / "out")
    assert b'"weight":-1' in got["cards.jsonl"]
    return got


@pytest.fixture
def either(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """The ways that were taken, chosen at random."""
    rng, taken = random.Random(5), list[Way]()

    def choose(self: Costs, changes: dict[Way, int]) -> Way:
        taken.append(rng.choice(("incremental", "full")) if self.mode == "auto" else "full")
        return taken[-1]

    monkeypatch.setattr(Costs, "choose", choose)
    return taken


@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("mode", ["full", "auto"])
def test_a_view_that_starts_anew_gives_the_same_lines(
    mode: str, workers: int, shards: int, folder: Path, reference: dict[str, bytes], tmp_path: Path, either: list[Way]
) -> None:
    refresh = [POLICY.format(mode)]
    run = run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", refresh, workers=workers, shards=shards)
    assert either.count("full") > 5
    assert (either.count("incremental") > 5) == (mode == "auto")
    ways = run.costs["cards"].ways
    assert {w: m.refreshes for w, m in ways.items()} == {w: either.count(w) for w in ways}
    assert ways["full"].seconds > 0
    got = written(tmp_path / "out")
    assert got["cards.jsonl"] == reference["cards.jsonl"]
    if shards == 1:
        assert got == reference


CRASHES: list[tuple[type, str, bool]] = [
    (Holding, "__call__", True),
    (Holding, "snapshot", False),
    (Shard, "__call__", True),
    (Settling, "__call__", True),
    (Settling, "snapshot", True),
]


@pytest.mark.parametrize(("owner", "method", "after"), CRASHES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_crash_does_not_show(
    owner: type, method: str, after: bool, folder: Path, reference: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, either: list[Way],
) -> None:  # fmt: skip
    monkeypatch.setattr("engine.large.SMALL", 0)
    crash, rng = CrashingAt(monkeypatch, owner, method, after), random.Random(f"{owner}.{method}")
    given: dict[str, Any] = {"refresh": [POLICY.format("auto")]}
    for n in (2, rng.randrange(5, 20), rng.randrange(20, 40)):
        crash.left = n
        landed = crash.landed
        with suppress(FlowError):
            run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", epoch="1ms", **given)
        if crash.landed == landed:
            break
    assert crash.landed >= 2, "the crash must land, or nothing was tested"
    crash.left = -1
    run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", **given)
    assert set(either) == {"incremental", "full"}
    assert written(tmp_path / "out") == reference


@pytest.mark.parametrize("mode", ["full", "auto"])
def test_kill_9_does_not_show(mode: str, folder: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(mode)
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet", "--refresh", POLICY.format(mode))
    assert killed(args, tmp_path, rng, 40_000) >= 2
    done = freshet(*args[3:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "out") == reference
    told = json.loads((tmp_path / "out/summary.json").read_text())["views"]["cards"]["refresh"]
    assert told["mode"] == mode
    assert sum(m["refreshes"] for m in told["ways"].values()) > 20


def test_the_command_overrides_policies(folder: Path, tmp_path: Path) -> None:
    mine = project(tmp_path / "cards")
    with (mine / "freshet.toml").open("a") as file:
        file.write("[refresh]\ncards = \"deferred(every='1h')\"\n")
    assert "cards: key card, refresh deferred(every='1h')" in freshet("check", mine, cwd=tmp_path).stdout
    asked = ("--refresh", "cards=deferred(rows=7)", "--refresh", "features=deferred(target_lag='5m', mode='auto')")
    shown = freshet("check", mine, *asked, cwd=tmp_path).stdout
    assert "refresh deferred(rows=7)" in shown
    assert "refresh deferred(target_lag='5m', mode='auto')" in shown
    for given, text in (
        ("card=immediate()", "no view or model 'card' in pipeline 'cards'; did you mean 'cards'?"),
        ("cards=hourly", "refresh of 'cards' is 'hourly', which cannot be read"),
        ("cards=on_query(3)", "which is for models; expected immediate() or deferred(...)"),
        ("fraud=deferred(every='1h', mode='auto', window='1d')", "does not forget what leaves the window"),
        ("cards=deferred(target_lag='downstream')", "no view that stands on it has a target_lag"),
        ("cards=deferred(target_lag='1us')", "is saved only every 200ms (epoch)"),
    ):
        for verb in ("check", "run"):
            failed = freshet(verb, folder, "--refresh", given, cwd=tmp_path)
            assert failed.returncode == 2
            assert text in failed.stderr
    assert freshet("run", folder, "--quiet", "--days", "0.001", cwd=tmp_path).returncode == 0
    other = freshet("run", folder, "--quiet", "--refresh", "cards=deferred(rows=7)", cwd=tmp_path)
    assert other.returncode == 3
    assert "refresh of view cards changed" in other.stderr
