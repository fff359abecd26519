"""Lookups in real runs: each answer is of one version, whatever happens to the run in between."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import orjson
import pytest

from engine.answer import Views
from engine.batch import Batch
from engine.flow import FlowError, Run
from engine.lookup import Found, Lookups
from engine.pipeline import Pipeline
from engine.report import instant
from engine.server import Asked
from operators.delta import Delta, Schema
from tests.flow import running
from tests.flow.cards import data
from tests.flow.running import cards, command, environment, freshet, run_here
from tests.flow.test_forget import ERASED, IMMEDIATE, forget, holding, without
from tests.flow.test_recovery import CrashingAt

VIEWS = ("features", "by_country", "cards", "known_cards", "fraud.predictions")
COLUMN = dict(zip(VIEWS, ("card", "country", "card", "tx", "tx"), strict=True))


def project(folder: Path, n: int = 1500, erasable: bool = False) -> Path:
    """The cards pipeline, with views that can be looked up."""
    made = running.project(folder)
    text = (made / "pipeline.py").read_text()
    for old, new in (
        ('    op.project(share=pl.col("amount") / pl.col("spent")),\n', '    lookup="card",\n'),
        ('turnover=op.total("amount"))\n)\nlabelled', "    lookup=True,\n"),
        ('    refresh=deferred(every="2m", rows=40),\n', "    lookup=True,\n"),
        ('columns={"before": "payments"})', ", lookup=True"),
        ("    naive=True,\n", "    lookup=True,\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(
            old, old.replace(")\n)\nlabelled", "),\n" + new + ")\nlabelled") if "labelled" in old else old + new
        )
    if erasable:
        text = text.replace(
            '    at="at",\n    lateness="60s",\n', '    at="at",\n    lateness="60s",\n    erasable=True,\n', 1
        )
    (made / "pipeline.py").write_text(text)
    data.write(made / "data", n)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("cards"))


def keys(view: str, n: int = 1500) -> list[Any]:
    """Keys of a view, of which some are not there."""
    return {
        "card": [f"c{i}" for i in range(60)],
        "country": ["NO", "SE", "DK", "FI", None],
        "tx": list(range(0, 2 * n, 1 + 2 * n // 1000)),
    }[COLUMN[view]]


def posted(views: Views, view: str) -> dict[str, Any]:
    """The answer for all keys."""
    answer = views(Asked(f"/views/{view}", "", json.dumps({"keys": keys(view)}).encode()))
    assert answer.status == 200, answer.body
    told: dict[str, Any] = json.loads(answer.body)
    return told


def everything(run: Run) -> dict[str, dict[str, Any]]:
    """All that can be looked up."""
    return {view: posted(Views(run), view) for view in VIEWS}


class Twin:
    """By version the newest row of each key, by the definition, from the deltas that a run published."""

    def __init__(self, p: Pipeline) -> None:
        self.schemas: dict[str, Schema] = {view: p.views[view].schema for view in VIEWS}
        self.live: dict[str, dict[tuple[int, int], dict[str, Any]]] = {view: {} for view in VIEWS}
        self.at: dict[int, dict[str, dict[Any, dict[str, Any]]]] = {}

    def take(self, number: int, deltas: dict[str, Delta]) -> None:
        for view, live in self.live.items():
            delta, schema = deltas[view], self.schemas[view]
            rows = delta.frame(schema).rows(named=True)
            for weight, at, pos, row in zip(
                *(a.tolist() for a in (delta.weight, delta.at, delta.pos)), rows, strict=True
            ):
                if weight > 0:
                    live[at, pos] = row if "at" in row else {**row, "at": instant(at)}
                else:
                    del live[at, pos]
        self.at[number] = {
            view: {row[COLUMN[view]]: row for _, row in sorted(live.items(), key=lambda kv: kv[0])}
            for view, live in self.live.items()
        }

    def rows(self, number: int, view: str) -> list[Any]:
        mine = self.at[number][view]
        return [None if (row := mine.get(key)) is None else json.loads(orjson.dumps(row)) for key in keys(view)]


def zulu(row: Any) -> Any:
    """The row with times written as orjson writes datetimes."""
    return row and {k: v.replace("Z", "+00:00") if k in TIMES and isinstance(v, str) else v for k, v in row.items()}


TIMES = ("at", "trained", "frontier", "frontier_payments", "frontier_shops")


def test_each_answer_is_of_one_version(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers ask for all keys, again and again, while a run goes on."""
    p, runs, twin = cards(folder), list[Lookups](), Twin(cards(folder))
    real = Lookups.__call__

    def take(self: Lookups, batch: Batch) -> None:
        twin.take(batch.number, batch.deltas)
        real(self, batch)
        if not runs:
            runs.append(self)

    monkeypatch.setattr(Lookups, "__call__", take)
    found: list[tuple[str, Found]] = []
    done = Event()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set() and len(found) < 1000:
            if runs:
                view = rng.choice(VIEWS)
                found.append((view, runs[0].find(view, keys(view))))
            time.sleep(0.003)

    readers = [Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for reader in readers:
        reader.start()
    try:
        run = run_here(p, folder, tmp_path / "out", tmp_path / "state")
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert len({one.version.number for _, one in found}) > 10
    for view, one in found:
        if one.version.number:
            mine = twin.at[one.version.number][view]
            expected = [
                {k: v for k, v in mine[key].items() if k in p.views[view].schema} for key in keys(view) if key in mine
            ]
            assert one.there.tolist() == [key in mine for key in keys(view)]
            assert one.rows.frame(p.views[view].schema).rows(named=True) == expected
    last = everything(run)
    for view in VIEWS:
        assert last[view]["version"] == max(twin.at)
        assert [zulu(r) for r in last[view]["rows"]] == [zulu(r) for r in twin.rows(max(twin.at), view)], view
        assert 3 <= sum(r is not None for r in last[view]["rows"]) < len(keys(view))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a run that nothing interrupted answers."""
    base = tmp_path_factory.mktemp("whole")
    return everything(run_here(cards(folder), folder, base / "out", base / "state"))


@pytest.mark.parametrize(
    ("method", "after"), [("__call__", False), ("__call__", True), ("snapshot", False), ("snapshot", True)]
)
def test_a_run_that_crashed_answers_what_another_answers(
    method: str,
    after: bool,
    folder: Path,
    whole: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = cards(folder)
    crash = CrashingAt(monkeypatch, Lookups, method, after)
    for n in (1, 2, 5):
        crash.left = n
        with suppress(FlowError):
            run_here(p, folder, tmp_path / "out", tmp_path / "state", epoch="1ms")
    assert crash.landed == 3
    crash.left = -1
    assert everything(run_here(p, folder, tmp_path / "out", tmp_path / "state")) == whole
    assert any((tmp_path / "state" / "large").glob("lookup.all.*")), "in a file of its own"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        port: int = s.getsockname()[1]
        return port


def ask(port: int, view: str) -> dict[str, Any] | None:
    """The answer of a worker for all keys of a view; None when none answers."""
    url = f"http://127.0.0.1:{port}/views/{view}"
    try:
        with urllib.request.urlopen(url, json.dumps({"keys": keys(view)}).encode(), timeout=5) as answer:
            told: dict[str, Any] = json.load(answer)
            return told
    except OSError:
        return None


def test_killed_and_resumed_it_answers_what_another_answers(
    folder: Path, whole: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    port, last = free_port(), whole["features"]["version"]
    args = command("run", folder, "--out", "out", "--state", "state", "--quiet", "--port", port, "--epoch", "100ms")
    seen, landed = [0], 0
    for target in (1, last // 3):
        with subprocess.Popen(args, cwd=tmp_path, env=environment()) as process:
            try:
                while process.poll() is None and seen[-1] < target:
                    time.sleep(0.005)
                    if (answer := ask(port, "features")) is not None:
                        seen.append(answer["version"])
                landed += process.poll() is None
            finally:
                process.send_signal(signal.SIGKILL)
    assert landed >= 1, "it must be killed before its end"
    assert max(seen) > 0
    assert everything(run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state")) == whole


def test_a_followed_run_answers_with_what_was_appended(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "cards"
    shutil.copytree(folder, mine, ignore=shutil.ignore_patterns("out", "state"))
    port = free_port()
    args = command("run", mine, "--out", "out", "--state", "state", "--follow", "--quiet", "--port", port)
    lines = (mine / "data" / "payments.jsonl").read_bytes().splitlines()
    newest = max(orjson.loads(line)["at"] for line in lines if b'"at":' in line)

    def get(path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, None

    with subprocess.Popen(args, cwd=tmp_path, env=environment()) as process:
        try:
            deadline = time.monotonic() + 60
            while (found := get("/views/features/brand-new"))[0] != 404 or found[1]["phase"] != "live":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for i in range(3):
                row = {"tx": 900_000 + i, "card": "brand-new", "shop": "s1", "amount": 1.5, "at": newest + 1000 * i}
                with (mine / "data" / "payments.jsonl").open("ab") as file:
                    file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                while True:
                    status, told = get("/views/features/brand-new")
                    if status == 200 and told["rows"][0]["tx"] == 900_000 + i:
                        break
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                assert told["rows"][0]["n"] == i + 1
                assert told["rows"][0]["spent"] == 1.5 * (i + 1)
                status, made = get(f"/views/fraud.predictions/{900_000 + i}")
                assert (status, made["rows"][0]["tx"], made["version"] >= told["version"]) == (200, 900_000 + i, True)
            assert get("/openapi.json")[1]["info"]["title"] == "cards"
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_nothing_of_a_forgotten_key_is_left(tmp_path: Path) -> None:
    here = project(tmp_path / "cards", 600, erasable=True)
    payments = here / "data" / "payments.jsonl"
    payments.write_bytes(payments.read_bytes().replace(b'"card":"c2"', f'"card":"{ERASED}"'.encode()))
    lost = [
        row["tx"]
        for row in (orjson.loads(line) for line in payments.open("rb") if ERASED.encode() in line)
        if isinstance(row["tx"], int)
    ]
    run = run_here(cards(here), here, here / "out", here / "state", IMMEDIATE)

    def rows(run: Run, view: str, some: list[Any]) -> list[Any]:
        answer = Views(run)(Asked(f"/views/{view}", "", json.dumps({"keys": some}).encode()))
        found: list[Any] = json.loads(answer.body)["rows"]
        return found

    assert len(lost) > 30
    assert all(rows(run, "fraud.predictions", lost))
    assert all(rows(run, "known_cards", lost))
    assert all(rows(run, view, [ERASED])[0] for view in ("features", "cards"))
    assert holding(here / "state", ERASED.encode())
    forget(here, f"card={ERASED}")
    assert holding(here / "state", ERASED.encode()) == []
    after = run_here(cards(here), here, here / "out", here / "state", IMMEDIATE)
    assert not any(rows(after, "fraud.predictions", lost))
    assert not any(rows(after, "known_cards", lost))
    payments.write_bytes(b"\n".join(without(payments.read_bytes().splitlines(), ERASED)) + b"\n")
    clean = run_here(cards(here), here, tmp_path / "clean" / "out", tmp_path / "clean" / "state", IMMEDIATE)
    for view in ("features", "by_country", "cards", "known_cards"):
        some = [*keys(view, 600), *([ERASED] if COLUMN[view] == "card" else [])]
        assert rows(after, view, some) == rows(clean, view, some), view


def test_several_processes_are_refused_before_a_state_is_made(folder: Path, tmp_path: Path) -> None:
    for more in (("--processes", "2"), ("--addresses", "127.0.0.1:1;127.0.0.1:2")):
        done = freshet("run", folder, "--out", "out", "--state", "state", *more, cwd=tmp_path)
        assert done.returncode == 2
        assert "one process keeps what is looked up and answers" in done.stderr
        assert not (tmp_path / "state").exists()


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    text = (running.ROOT / "README.md").read_text()
    declared = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    section = text.partition("## Looking values up")[2].partition("\n## ")[0]
    lookup = re.findall(r"^    totals = .*?^    \)\n", section, re.DOTALL | re.MULTILINE)[0]
    curls = re.findall(r"^    (curl .*)$", section, re.MULTILINE)
    shown = json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[0])
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "pipeline.py").write_text(declared + textwrap.dedent(lookup))
    for name in ("payments", "shops"):
        (tmp_path / f"{name}.jsonl").touch()
    for tx, second, amount in ((1, 0, 10.0), (2, 50, 30.0), (3, 40, 5.0)):
        row = {"tx": tx, "card": "a", "shop": "s", "amount": amount, "at": f"2024-01-01T12:00:{second:02}Z"}
        with (tmp_path / "payments.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    port = free_port()
    bound = [part for name in ("payments", "shops") for part in ("--bind", f"{name}={name}.jsonl")]
    args = command("run", "cards", "--follow", "--quiet", "--port", port, *bound)
    with subprocess.Popen(args, cwd=tmp_path, env=environment()) as process:
        try:
            deadline = time.monotonic() + 60
            told: list[Any] = []
            while not told or told[1]["phase"] != "live" or told[1]["rows"][0] is None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
                got = [
                    subprocess.run(["sh", "-c", c.replace("9310", str(port)) + " -s"], capture_output=True).stdout
                    for c in curls
                ]
                told = [json.loads(g) for g in got] if all(got) else []
                told = told if all("rows" in t for t in told) else []
        finally:
            process.send_signal(signal.SIGTERM)
    assert told[1] == shown
    assert told[0]["rows"] == shown["rows"][:1]
