"""What a worker shows of itself: states, the newest rows, the page without data, and `freshet status`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import operators as op
from engine import Pipeline, deferred
from engine.ask import AskError, ask
from engine.flow import Run
from engine.plan import bounds
from engine.recent import MOST, Recent
from engine.server import serve
from engine.show import status_of
from engine.status import pages, shell, states, status
from operators.delta import INT, STRING, Delta
from tests.engine.test_server import get
from tests.flow.cards import data
from tests.flow.running import cards, command, environment, freshet, project, run_here

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run of the cards to the end, and its outputs."""
    folder = project(tmp_path_factory.mktemp("status") / "cards")
    data.write(folder / "data", 400)
    out = folder.parent / "out"
    return run_here(cards(folder), folder, out, folder.parent / "state"), out


def told(run: Run, path: str) -> Any:
    answer = pages(run, 1)[path]()
    assert answer.kind == "application/json"
    return json.loads(answer.body)


@pytest.mark.parametrize("name", ["features", "by_country", "cards", "known_cards", "labelled"])
def test_the_newest_changes_are_the_last_lines_that_were_written(run: tuple[Run, Path], name: str) -> None:
    live, out = run
    found = told(live, f"/status/{name}.json")
    lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
    expected = []
    for row in reversed(lines[-MOST:]):
        values = [row[c] for c in found["columns"]]
        expected.append((row["weight"], [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]))
    assert len(expected) == MOST or name == "by_country"
    assert [(c["weight"], c["values"]) for c in found["changes"]] == expected


def test_the_newest_dead_letters_and_late_changes_are_those_of_their_source(run: tuple[Run, Path]) -> None:
    live, out = run
    found = told(live, "/status/payments.json")
    for name in ("dead_letters", "late"):
        lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        assert lines, "there must be some to look for"
        assert [int(line["position"]) for line in found[name]] == [r["position"] for r in reversed(lines[-MOST:])]
    assert "oops" in found["dead_letters"][0]["raw"] + found["dead_letters"][1]["raw"] + str(found["dead_letters"])
    assert told(live, "/status/shops.json") == {"name": "shops", "dead_letters": [], "late": []}


def test_values_of_rows_are_nowhere_else(run: tuple[Run, Path]) -> None:
    live, _ = run
    card = told(live, "/status/features.json")["changes"][0]["values"][1]
    assert re.fullmatch(r"c\d+", card)
    for path in ("/status.json", "/graph.json"):
        assert f'"{card}"' not in json.dumps(told(live, path))


def test_what_the_status_says_is_what_the_summary_says(run: tuple[Run, Path]) -> None:
    live, _ = run
    found = told(live, "/status.json")
    assert found["views"]["features"]["rows"] == live.publish.rows["features"][0] - live.publish.rows["features"][1]  # type: ignore[union-attr]
    assert (found["pipeline"], found["failed"], found["started"]) == ("cards", None, "1970-01-01T00:00:00.000001Z")
    assert found["states"].keys() == {n["id"] for n in told(live, "/graph.json")["nodes"]}
    assert {s["state"] for s in found["states"].values()} == {"backfill"}, (
        "a run to the end does not follow the present"
    )


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 5))
def test_how_changes_were_cut_does_not_show(sizes: list[int], piece: int) -> None:
    n = sum(sizes)
    whole = Delta(
        {"n": np.arange(n), "s": np.array([None if i % 3 else f"s{i}" for i in range(n)], object)},
        np.where(np.arange(n) % 4, 1, -1), np.arange(n), np.arange(n), np.arange(n),
    )  # fmt: skip
    cuts = [np.cumsum([0, *sizes]), np.arange(0, n + piece, piece), np.array([0, n])]
    found = []
    for ends in cuts:
        recent = Recent()
        for a, b in pairwise(ends.tolist()):
            recent.take("v", whole.take(np.arange(a, min(b, n))))
        assert sum(map(len, recent._deltas.get("v", ()))) < 2 * MOST, "what is kept is bounded"
        found.append(recent.changes("v", {"n": INT, "s": STRING}))
    assert found[0] == found[1] == found[2]
    assert [c["values"] for c in found[0]] == [[str(i), None if i % 3 else f"s{i}"] for i in range(n)][: -MOST - 1 : -1]
    assert [c["weight"] for c in found[0]] == [1 if i % 4 else -1 for i in range(n)][: -MOST - 1 : -1]


def test_long_values_are_cut_and_large_numbers_keep_their_digits() -> None:
    recent = Recent()
    one = np.ones(1, np.int64)
    recent.take("v", Delta({"n": one * (2**62 + 1), "s": np.array(["x" * 999], object)}, one, one, one, one))
    (row,) = recent.changes("v", {"n": INT, "s": STRING})
    assert row["values"] == ["4611686018427387905", "x" * 200 + "…"]
    recent.take_lines("late", [b'{"source": "a"}\n', b'{"source": "' + b"x" * 70_000 + b'"}\n', b'{"n": null}\n'])
    assert recent.lines("late") == [{"n": None}, {"source": "a"}]


def shop() -> Pipeline:
    p = Pipeline("shop")
    orders = p.source("orders", key="id", at="at", schema={"id": int, "at": pl.Datetime, "shop": str})
    shops = p.source("shops", key="id", at="at", schema={"id": int, "at": pl.Datetime})
    first = p.view("first", orders, op.where(pl.col("id") > 0))
    near = p.view("near", first, op.aggregate(by="shop", n=op.count()), refresh=deferred(target_lag="5s"))
    both = p.view("both", orders, op.join_asof(shops, on="id", columns=[]))
    p.sink("out", near)
    p.sink("all", both)
    return p


def figures_of(p: Pipeline, **views: float) -> dict[str, Any]:
    """Figures in which these views lag behind what was read by so many seconds, and all has come."""
    source = {"changes": 3, "idle": False, "standing": "current", "watermark": "2024-01-01T00:00:00Z"}
    declared = bounds(p, 2_000_000)

    def view(name: str) -> dict[str, Any]:
        lag, target = views.get(name, 0.0), declared[name].target
        return {
            "frontier": "2024-01-01T00:00:00Z",
            "pending_changes": 2,
            "state": declared[name].state(int(lag * 1e6), True, False, int(lag * 1e6)),
            "lag_seconds": lag,
            "target_lag_seconds": None if target is None else target / 1e6,
        }

    return {"sources": {n: dict(source) for n in p.sources}, "views": {n: view(n) for n in p.views}, "models": {}}


def found(p: Pipeline, told: dict[str, Any], phase: str = "live", failed: str | None = None) -> dict[str, str]:
    return {name: s["state"] for name, s in states(p, told, phase, failed).items()}


def test_the_state_of_each_part() -> None:
    p = shop()
    assert set(found(p, figures_of(p)).values()) == {"fresh"}
    assert set(found(p, figures_of(p), "backfill").values()) == {"backfill"}
    assert set(found(p, figures_of(p), failed="stage-1 failed").values()) == {"failed"}
    behind = found(p, figures_of(p, first=2.1, near=4.9))
    assert (behind["view first"], behind["view near"], behind["sink out"]) == ("behind", "fresh", "fresh")
    behind = found(p, figures_of(p, first=2.0, near=5.1))
    assert (behind["view first"], behind["view near"], behind["sink out"]) == ("fresh", "behind", "behind")
    assert (behind["view both"], behind["sink all"]) == ("fresh", "fresh")


def test_idle_is_not_behind_and_what_waits_for_a_first_change_is_not_fresh() -> None:
    p = shop()
    told = figures_of(p)
    told["sources"]["orders"]["idle"] = True
    for name in ("first", "near"):
        told["views"][name]["state"] = "idle"
    idle = found(p, told)
    assert {n for n, s in idle.items() if s == "idle"} == {"source orders", "view first", "view near", "sink out"}
    told = figures_of(p)
    told["sources"]["shops"] |= {"changes": 0, "watermark": None}
    told["views"]["both"] |= {"frontier": None, "state": "unknown"}
    waits = states(p, told, "live", None)
    assert waits["source shops"] == {"state": "idle", "why": "no change yet"}
    assert waits["view both"] == {"state": "behind", "why": "waits for the first change of shops"}
    assert waits["view first"]["state"] == "fresh"


def test_what_is_declared_of_a_view_and_why_a_source_gives_nothing_are_told() -> None:
    p = shop()
    told = figures_of(p)
    told["views"]["near"] |= {"state": "error", "lag_seconds": 70.0}
    told["sources"]["shops"] |= {"standing": "dead", "idle": True}
    shown = states(p, told, "live", None)
    assert shown["view near"] == {"state": "behind", "why": "70 s behind the present, more than its error_after"}
    assert shown["sink out"]["state"] == "behind"
    assert shown["source shops"] == {"state": "behind", "why": "nothing came within its heartbeat"}


def test_a_quarantine_has_a_state_though_it_has_no_box(tmp_path: Path) -> None:
    p = Pipeline("p")
    bound = op.between("x", 0, 1, severity="quarantine")
    s = p.source("s", key="id", at="at", schema={"id": int, "x": float, "at": pl.Datetime}, expect=[bound])
    p.sink(
        "aside",
        p.quarantine(p.view("v", s, op.where(pl.col("id") > 0), expect=[op.not_null("x", severity="quarantine")])),
    )
    (tmp_path / "s.jsonl").write_text('{"id": 1, "x": 2.0, "at": "2024-01-01T00:00:00Z"}\n')
    (tmp_path / "freshet.toml").write_text('[sources.s]\npath = "s.jsonl"\n')
    live = run_here(p, tmp_path, tmp_path / "out", tmp_path / "state")
    told = status(live, 1)
    console = Console(width=120, file=io.StringIO())
    console.print(status_of(told, {}))
    for name in ("s.quarantine", "v.quarantine"):
        assert told["states"][f"view {name}"] == {"state": "backfill", "why": "history is being read"}
        assert re.search(rf"\n{name} +backfill +\d", console.file.getvalue())  # type: ignore[attr-defined]


def test_a_model_whose_last_version_could_not_be_fitted_has_failed(run: tuple[Run, Path]) -> None:
    graph, told = run[0].graph, status(run[0], 1)
    for view in told["views"].values():
        view["state"] = "fresh"
    assert states(graph, told, "live", None)["model fraud"]["state"] == "fresh"
    told["models"]["fraud"]["last"] = {"name": "v7", "verdict": "failed"}
    assert states(graph, told, "live", None)["model fraud"] == {
        "state": "failed", "why": "version v7 could not be fitted",
    }  # fmt: skip


def test_the_page_holds_no_data_and_nothing_that_was_not_in_it_runs(run: tuple[Run, Path]) -> None:
    page = shell()
    html = page.body.decode()
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert (
            f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}';" in page.policy
        )
    assert page.policy.startswith("default-src 'none'; ")
    for part in ("connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
        assert part in page.policy
    assert "unsafe" not in page.policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", html)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html), "it loads nothing"
    assert not re.search(r"\son\w+=|\sstyle=", html), "what the policy would refuse"
    assert len(page.body) < 60_000


def test_the_page_goes_to_everyone_and_the_figures_to_those_with_the_token(run: tuple[Run, Path]) -> None:
    live, _ = run
    open_, closed = (serve(0, pages(live, 1), lambda: (True, {}), "127.0.0.1", t, shell=shell()) for t in ("", TOKEN))
    try:
        assert get(open_, "/") == (200, shell().body.decode())
        assert get(open_, "/status.json")[0] == 200
        assert get(closed, "/") == (401, shell().body.decode())
        assert get(closed, "/", Authorization=f"Bearer {TOKEN}")[0] == 200
        for path in pages(live, 1):
            assert get(closed, path)[0] == 401
            assert get(closed, path, Authorization=f"Bearer {TOKEN}x")[0] == 401
            assert get(closed, path, Authorization=f"Bearer {TOKEN}")[0] == 200
        for path in ("/", "/status.json", "/status/features.json"):
            assert get(open_, path, Host="evil.example")[0] == 403
        assert get(open_, "/status/nothing.json")[0] == 404
        assert get(open_, "/status/../status.json")[0] == 404
    finally:
        for server in (open_, closed):
            server.shutdown()
            server.server_close()


def test_who_asks_is_told_what_is_wrong(run: tuple[Run, Path]) -> None:
    with pytest.raises(AskError, match=r"'ftp://x' is not the address of a worker; expected http://HOST:PORT"):
        ask("ftp://x")
    with pytest.raises(AskError, match="is not the address"):
        ask("http://localhost:port")
    with pytest.raises(
        AskError, match=r"no worker answers at http://127.0.0.1:1 \(Connection refused\); start one with"
    ):
        ask("http://127.0.0.1:1")
    server = serve(0, pages(run[0], 1), lambda: (True, {}), "127.0.0.1", TOKEN)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with pytest.raises(AskError, match="asks for a token; set FRESHET_TOKEN"):
            ask(url)
        with pytest.raises(AskError, match="the one in FRESHET_TOKEN is not its own"):
            ask(url, TOKEN + "x")
        assert ask(url + "/", TOKEN)["pipeline"] == "cards"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def other() -> Iterator[tuple[str, list[str | None]]]:
    """A server that is no worker and sends everyone elsewhere; which tokens it was shown."""
    shown: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            self.send_response(200 if self.path == "/here/status.json" else 302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"[1]")

        def log_message(self, *args: Any) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", shown
    server.shutdown()
    server.server_close()


def test_a_token_follows_no_redirect_and_goes_to_no_proxy(
    other: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, shown = other
    with pytest.raises(AskError, match="answers with status 302; expected a worker"):
        ask(url, TOKEN)
    assert shown == [f"Bearer {TOKEN}"]
    with pytest.raises(AskError, match=r"is no worker; expected one of this version"):
        ask(url + "/here")
    monkeypatch.setenv("http_proxy", url)
    with pytest.raises(AskError, match="no worker answers"):
        ask("http://127.0.0.1:1", TOKEN)
    assert len(shown) == 2


def test_the_command_shows_a_worker_and_ends_when_it_is_gone(tmp_path: Path) -> None:
    folder = project(tmp_path / "cards")
    data.write(folder / "data", 60)
    said = tmp_path / "said"
    with said.open("w") as log:
        line = command("run", folder, "--follow", "--port", 9490, "--log", "text")
        worker = subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
    try:
        until(lambda: "caught up" in said.read_text())
        url = re.findall(r"page=(\S+)", said.read_text())[0]
        done = freshet("status", url, "--json", cwd=tmp_path)
        assert done.returncode == 0
        figure = json.loads(done.stdout)
        assert figure["phase"] == "live"
        assert figure["states"]["source payments"] == {"state": "fresh", "why": ""}
        done = freshet("status", url, "--once", cwd=tmp_path)
        assert done.returncode == 0
        assert re.match(r"cards: live, \d+ changes, \d+ dead letters\n", done.stdout)
        row = next(line.split() for line in done.stdout.splitlines() if line.startswith("payments"))
        assert row[:4] == ["payments", "fresh", str(figure["sources"]["payments"]["changes"]), "-"]
        assert re.search(r"\nfraud\.predictions +fresh +\d", done.stdout)
        assert re.search(r"\nfraud +fresh +\d", done.stdout)
        screen, terminal = pty.openpty()
        watching = subprocess.Popen(
            command("status", url),
            cwd=tmp_path,
            env={**environment(), "TERM": "xterm"},
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        seen = ""
        while seen.count("payments ") < 3:  # it is drawn again and again
            seen += os.read(screen, 65536).decode()
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    with contextlib.suppress(OSError):  # Linux says so where the other end is closed
        while more := os.read(screen, 65536).decode():
            seen += more
    assert watching.wait(30) == 1
    assert re.search(r"payments +fresh +\d+ +\d+\.\d/s", seen), "the rate since the look before"
    assert "no worker answers at http://127.0.0.1:" in seen
    done = freshet("status", "http://127.0.0.1:1", "--once", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no worker answers at http://127.0.0.1:1" in done.stderr


def until(reached: Any) -> None:
    deadline = time.monotonic() + 180
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
