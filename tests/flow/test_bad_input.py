"""Each bad input gets the dead letter or the one clear line that a user would hope for, and nothing is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from engine.cli import load_pipeline
from tests.flow.running import command, environment, freshet, run_here

PIPELINE = """
import polars as pl
import operators as op
from engine import Pipeline

p = Pipeline("orders")
orders = p.source("orders", key="id", at="at", schema={"id": int, "at": pl.Datetime, "shop": str, "price": float})
seen = p.view("seen", orders, op.project("id", "price"))
by_shop = p.view("by_shop", orders, op.aggregate(by="shop", n=op.count(), turnover=op.total("price")))
p.sink("seen", seen)
"""

GOOD = '{"id": %d, "at": "2024-01-01T00:00:%02dZ", "shop": "a", "price": 1.5}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "orders"
    made.mkdir()
    (made / "pipeline.py").write_text(PIPELINE)
    (made / "freshet.toml").write_text('port = 0\n[sources.orders]\npath = "orders.jsonl"\nstrict_columns = true\n')
    (made / "orders.jsonl").write_text("")
    return made


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


BAD: list[tuple[bytes, str]] = [
    (b'{"id": 1, "at": "2024-01-01T00', "JSON"),
    (b'{"id": "one", "at": "2024-01-01T00:00:00Z", "shop": "a", "price": 1}', "`int`"),
    (b'{"id": 1, "shop": "a", "price": 1}', "at"),
    (b'{"id": 1, "at": "2024-01-01T00:00:00Z", "shop": "a", "price": 1, "color": "red"}', "color"),
    (b'{"id": null, "at": "2024-01-01T00:00:00Z", "shop": "a", "price": 1}', "id"),
    (b'{"id": 1, "at": "1970-01-01T00:00:00Z", "shop": "a", "price": 1}', "1970-01-01"),
    (b'{"id": 1, "at": "9999-01-01T00:00:00Z", "shop": "a", "price": 1}', "9999-01-01"),
    (b'{"id": 1, "at": "2024-01-01T00:00:00", "shop": "a", "price": 1}', "timezone"),
    (b'{"id": 1, "at": "2024-01-01T00:00:00Z", "shop": "a", "price": NaN}', "NaN"),
    (b'{"id": 18446744073709551616, "at": "2024-01-01T00:00:00Z", "shop": "a", "price": 1}', "int"),
    (b'{"id": 1, "at": "2024-01-01T00:00:00Z", "shop": "\xff", "price": 1}', "utf-8"),
    (b'{"id": 1, "at": "2024-01-01T00:00:00Z", "shop": "' + b"x" * 10_000_000 + b'", "price": 1}', "1,048,576"),
    (b"[" * 5000 + b"]" * 5000, "object"),
    (b'[{"id": 1}]', "object"),
]


def test_bad_records_are_dead_letters_and_the_run_goes_on(folder: Path) -> None:
    records = [GOOD.encode() % (i, i) for i in range(len(BAD))]
    mixed = [r for pair in zip(records, (b for b, _ in BAD), strict=True) for r in pair]
    (folder / "orders.jsonl").write_bytes(b"\n".join(mixed) + b"\n")
    done = freshet("run", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{len(BAD)} dead letters" in done.stdout
    assert [r["id"] for r in lines(folder / "out/orders/seen.jsonl")] == list(range(len(BAD)))
    dead = lines(folder / "out/orders/dead_letters.jsonl")
    position, at = 0, []
    for record in mixed:
        at.append(position)
        position += len(record) + 1
    for letter, (raw, said), where in zip(dead, BAD, at[1::2], strict=True):
        assert letter["source"] == "orders"
        assert letter["partition"] == "orders.jsonl"
        assert letter["position"] == where
        assert said.lower() in str(letter["reason"]).lower(), letter["reason"]
        if "raw" in letter:
            assert str(letter["raw"]).encode() == raw
        else:
            import base64

            assert base64.b64decode(str(letter["raw_base64"])) == raw
    summary = json.loads((folder / "out/orders/summary.json").read_text())
    assert (summary["dead_letters"], summary["changes"]) == (len(BAD), len(BAD))


def test_an_empty_file_is_an_empty_stream(folder: Path) -> None:
    done = freshet("run", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "0 changes read" in done.stdout
    assert f"freshet check {folder}" in done.stdout
    assert (folder / "out/orders/seen.jsonl").read_text() == ""


def test_one_row_and_a_last_line_without_newline(folder: Path) -> None:
    (folder / "orders.jsonl").write_text(GOOD % (7, 0))
    assert freshet("run", folder, cwd=folder).returncode == 0
    assert [r["id"] for r in lines(folder / "out/orders/seen.jsonl")] == [7]


def test_gzip(folder: Path) -> None:
    (folder / "orders.jsonl.gz").write_bytes(gzip.compress("\n".join(GOOD % (i, i) for i in range(50)).encode()))
    done = freshet("run", folder, "--bind", "orders=orders.jsonl.gz", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(lines(folder / "out/orders/seen.jsonl")) == 50


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        (
            "orders=nowhere.jsonl",
            "source 'orders': the file 'nowhere.jsonl' does not exist; expected a file of changes",
        ),
        ("orders=.", "source 'orders': the file '.' is a directory"),
        ("orders=*.none", "source 'orders': no file matches '*.none'"),
        ("order=x.jsonl", "settings bind 'order', which is no source of pipeline 'orders'; its sources: orders"),
    ],
)
def test_wrong_bindings(bind: str, said: str, folder: Path) -> None:
    done = freshet("run", folder, "--bind", bind, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (folder / "state").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('by="shop"', 'by="shopp"', "view 'by_shop', step 1 (aggregate)"),
        ('by="shop"', 'by="shopp"', "no column 'shopp'; did you mean 'shop'?"),
        ('p = Pipeline("orders")', "q = 1", "cannot be loaded: NameError"),
        ("import polars as pl", "import polaris as pl", "cannot be loaded: ModuleNotFoundError"),
        ("op.aggregate(", "op.agregate(", "has no attribute 'agregate'; did you mean 'aggregate'? ("),
        (
            'p = Pipeline("orders")',
            "p = Pipeline(",
            "cannot be loaded: SyntaxError: '(' was never closed (pipeline.py, line ",
        ),
        ('p = Pipeline("orders")', 'p = Pipeline("orders"); q = Pipeline("two")', "declares 2 pipelines"),
    ],
)
def test_a_pipeline_with_a_mistake(old: str, new: str, said: str, folder: Path) -> None:
    (folder / "pipeline.py").write_text(PIPELINE.replace(old, new))
    for name in ("check", "run"):
        done = freshet(name, folder, cwd=folder)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_definition_that_changed_since_the_last_run_is_refused_and_named(folder: Path) -> None:
    (folder / "orders.jsonl").write_text(GOOD % (1, 0))
    assert freshet("run", folder, cwd=folder).returncode == 0
    before = (folder / "out/orders/seen.jsonl").read_bytes()
    (folder / "pipeline.py").write_text(PIPELINE.replace('"price": float', '"price": int'))
    done = freshet("run", folder, cwd=folder)
    assert done.returncode == 3
    assert "source orders changed" in done.stderr
    assert "choose another --state and --out" in done.stderr
    assert (folder / "out/orders/seen.jsonl").read_bytes() == before


def test_outputs_that_are_not_the_states_own_are_not_overwritten(folder: Path) -> None:
    (folder / "orders.jsonl").write_text(GOOD % (1, 0))
    assert freshet("run", folder, cwd=folder).returncode == 0
    done = freshet("run", folder, "--state", "other", cwd=folder)
    assert done.returncode == 3
    assert "is there already, but 'other' holds no state that wrote it" in done.stderr
    (folder / "out/orders/seen.jsonl").unlink()
    done = freshet("run", folder, cwd=folder)
    assert done.returncode != 0
    assert "seen.jsonl' has 0 bytes, but the state has already written" in done.stderr


@pytest.mark.parametrize("damage", ["truncate", "garbage", "missing", "definition"])
def test_damaged_state_is_refused_by_name_and_never_an_empty_start(damage: str, folder: Path) -> None:
    (folder / "orders.jsonl").write_text("\n".join(GOOD % (i, i) for i in range(20)))
    assert freshet("run", folder, cwd=folder).returncode == 0
    (store,) = (folder / "state/orders/recovery").glob("*.sqlite3")
    name = "recovery"
    if damage == "truncate":
        store.write_bytes(store.read_bytes()[:5000])
    elif damage == "garbage":
        store.write_bytes(b"not a database at all" * 500)
    elif damage == "missing":
        store.unlink()
    else:
        (folder / "state/orders/definition.json").write_text("{")
        name = "definition.json"
    done = freshet("run", folder, cwd=folder)
    assert done.returncode == 3
    assert name in done.stderr
    assert "start again" in done.stderr
    assert len(lines(folder / "out/orders/seen.jsonl")) == 20


@pytest.mark.parametrize("damage", ["is missing", "is damaged: it ends early", "is not a file of Freshet's"])
def test_a_large_state_that_is_missing_or_damaged_is_refused(
    damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.large.SMALL", 0)
    (folder / "orders.jsonl").write_text("\n".join(GOOD % (i, i) for i in range(20)))
    p, out, state = load_pipeline(folder)[0], folder / "out/orders", folder / "state/orders"
    run_here(p, folder, out, state)
    for file in (state / "large").iterdir():
        if "missing" in damage:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:200] if "early" in damage else b"\0" * 500)
    done = freshet("run", folder, cwd=folder)
    assert done.returncode == 3
    assert damage in done.stderr
    assert "restore the state directory from a backup" in done.stderr
    assert len(lines(out / "seen.jsonl")) == 20


def test_a_file_that_was_replaced_or_shrank_is_refused(folder: Path) -> None:
    (folder / "orders.jsonl").write_text("\n".join(GOOD % (i, i) for i in range(20)) + "\n")
    assert freshet("run", folder, cwd=folder).returncode == 0
    (folder / "orders.jsonl").write_text("\n".join(GOOD % (i, i) for i in range(5)) + "\n")
    done = freshet("run", folder, cwd=folder)
    assert done.returncode == 3
    assert "orders.jsonl" in done.stderr
    assert "Traceback" not in done.stderr.split("error:")[-1]


def test_a_second_run_on_the_same_state_refuses(folder: Path) -> None:
    import subprocess
    import time

    first = subprocess.Popen(
        command("run", folder, "--follow"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while not (folder / "state/orders/recovery").exists():
            time.sleep(0.05)
        second = freshet("run", folder, cwd=folder)
        assert second.returncode == 3
        assert "another run uses the state in" in second.stderr
    finally:
        first.terminate()
        first.communicate(timeout=10)
    assert first.returncode == 0


def test_a_growing_file_is_followed_and_metrics_are_served(folder: Path) -> None:
    import re
    import subprocess
    import time
    import urllib.request

    file, seen = folder / "orders.jsonl", folder / "out/orders/seen.jsonl"
    file.write_text(GOOD % (0, 0) + "\n")
    args = command("run", folder, "--follow", "--port", "9399")
    process = subprocess.Popen(
        args, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url = ""
        while not url:
            found = re.search(r"http://\S+", process.stderr.readline())
            url = found.group(0) if found else ""
        with file.open("a") as f:
            f.write(GOOD % (1, 10) + "\n" + (GOOD % (2, 20))[:20])
            f.flush()
            time.sleep(0.5)
            f.write((GOOD % (2, 20))[20:] + "\n" + "broken\n")
        text = ""
        for _ in range(200):
            text = urllib.request.urlopen(url, timeout=5).read().decode()
            if (
                'freshet_changes_total{source="orders"} 3.0' in text
                and 'freshet_dead_letters_total{source="orders"} 1.0' in text
                and 'freshet_view_frontier_timestamp_seconds{view="seen"} 1.70406722e+09' in text
            ):
                break
            time.sleep(0.05)
        assert 'freshet_changes_total{source="orders"} 3.0' in text
        assert 'freshet_view_frontier_timestamp_seconds{view="seen"} 1.70406722e+09' in text
        assert 'freshet_view_phase{phase="live",view="seen"} 1.0' in text
        assert 'freshet_view_lag_seconds{scope="global",view="seen"} 0.0' in text
        age = float(re.search(r'freshet_view_age_seconds\{view="seen"\} (\S+)', text).group(1))  # type: ignore[union-attr]
        assert abs(age - (time.time() - 1704067220)) < 60, "the age is that of the newest change, not of the run"
    finally:
        process.terminate()
        process.communicate(timeout=15)
    assert process.returncode == 0
    assert [r["id"] for r in lines(seen)] == [0, 1, 2]
