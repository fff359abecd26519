"""The change log: holds what was appended, once, whatever crashes; and what a relation was is read from it."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import deltalake
import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.log
from engine.log import ChangeLog, LogError, as_of, erased, logs, scan
from operators.delta import (
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    STRING,
    TIME,
    Delta,
    Ints,
    Schema,
    accumulate,
    concat,
    empty,
    to_column,
)
from operators.operator import DefinitionError

SCHEMA: Schema = {"i": INT, "f": FLOAT, "s": STRING, "b": BOOL, "t": TIME}
OWN = ["_at", "_known", "_pos", "_seq", "_weight", "_row"]


class Row(NamedTuple):
    """A change as plain values."""

    values: tuple[Any, ...]
    at: int
    known: int
    pos: int
    seq: int
    weight: int = 1


def number(n: int) -> Row:
    """The n-th of many different rows."""
    return Row((n, n / 8, f"é{n}" if n % 3 else None, n % 2 == 0, None), n, n, n, n)


def to_delta(rows: list[Row], schema: Schema = SCHEMA) -> tuple[Delta, Ints]:
    """Rows as a delta, and when each became known."""
    values = list(zip(*(r.values for r in rows), strict=True)) or [()] * len(schema)
    columns = {n: to_column(v, t) for (n, t), v in zip(schema.items(), values, strict=True)}
    weight, at, pos, seq, known = (
        np.array([getattr(r, n) for r in rows], np.int64) for n in ("weight", "at", "pos", "seq", "known")
    )
    return Delta(columns, weight, at, pos, seq), known


def append(log: ChangeLog, rows: list[Row]) -> None:
    log.append(*to_delta(rows))


def content(log: pl.LazyFrame) -> list[tuple[Any, ...]]:
    """What a log holds: its rows as tuples, times as microseconds, with their numbers."""
    return log.with_columns(pl.col("t", "_at", "_known").cast(INT)).collect().rows()


def expected(rows: list[Row | None]) -> list[tuple[Any, ...]]:
    """The same for a list of rows, None for one that was erased."""
    told = [(n, r) for n, r in enumerate(rows) if r]
    return [(*r.values, None if r.at == BEGINNING else r.at, r.known, r.pos, r.seq, r.weight, n) for n, r in told]


@pytest.fixture(autouse=True)
def tend_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.log, "TEND", 4)


VALUES = st.tuples(
    st.sampled_from([None, 0, 1, 2**63 - 1, -(2**63) + 1]),
    st.sampled_from([None, 0.1, 1e300, float("inf"), float("-inf")]),
    st.sampled_from([None, "", "a", "æ\n\0'"]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, 0, 1, -1, 1_700_000_000_000_001]).map(
        lambda us: None if us is None else datetime.fromtimestamp(us // 10**6, timezone.utc)
    ),
)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Row]]:
    """Atomic changes in order of knowledge: rows come, go, come again and are corrected."""
    live: dict[tuple[int, int], tuple[Any, ...]] = {}
    changes: list[list[Row]] = []
    for seq in range(draw(st.integers(0, 12))):
        known = 10 * (seq // 2)
        at, pos = draw(st.sampled_from([BEGINNING, -1, 0, 1])), draw(st.integers(0, 1))
        old = live.pop((at, pos), None)
        rows = [] if old is None else [Row(old, at, known, pos, seq, -1)]
        if old is None or draw(st.booleans()):
            live[at, pos] = draw(VALUES)
            rows.append(Row(live[at, pos], at, known, pos, seq))
        changes.append(rows)
    return changes


@settings(max_examples=25, deadline=None)
@given(histories(), st.data())
def test_as_of_is_what_the_changes_until_then_add_up_to(
    tmp_path_factory: pytest.TempPathFactory, changes: list[list[Row]], data: st.DataObject
) -> None:
    log = ChangeLog(tmp_path_factory.mktemp("log"), SCHEMA)
    left = list(changes)
    while left:
        n = data.draw(st.integers(1, len(left)))
        append(log, [r for c in left[:n] for r in c])
        del left[:n]
        if data.draw(st.booleans()):
            log.flush()
    rows = [r for c in changes for r in c]
    assert content(log.read()) == [
        (*r[:4], None if r[4] is None else int(r[4].timestamp() * 10**6), *r[5:]) for r in expected([*rows])
    ]
    held = log.read().collect().lazy()
    for k in range(-1, len(changes) + 1):
        for asked, until in (
            ({"seq": k}, [r for r in rows if r.seq <= k]),
            ({"known": k}, [r for r in rows if r.known <= k]),
        ):
            want = accumulate([to_delta(until)[0]] if until else [], SCHEMA)
            got = as_of(held, **asked).collect()
            assert got.columns == [*SCHEMA, "_at", "_known", "_pos", "_seq"]
            at = got["_at"].cast(INT).fill_null(BEGINNING)
            assert got.with_columns(at).select(want.columns).equals(want, null_equal=True)
            last = {(r.at, r.pos): (r.known, r.seq) for r in until if r.weight > 0}
            came = zip(got["_known"].cast(INT), got["_seq"], strict=True)
            assert list(came) == [last[k] for k in zip(at, got["_pos"], strict=True)]
    assert as_of(log.read()).collect().equals(as_of(held).collect(), null_equal=True)


def test_as_of_takes_a_time_or_microseconds_and_conditions_before_or_after(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    append(log, [number(n) for n in range(10)])
    moment = datetime(1970, 1, 1, 0, 0, 0, 6, tzinfo=timezone.utc)
    early = as_of(log.read(), known=moment).collect()
    assert early["i"].to_list() == list(range(7))
    assert early.equals(as_of(log.read(), known=6).collect(), null_equal=True)
    assert as_of(log.read(), known=6, seq=3).collect()["i"].to_list() == [0, 1, 2, 3]
    few = pl.col("f") < 0.5
    assert as_of(log.read().filter(few)).collect().equals(as_of(log.read()).filter(few).collect(), null_equal=True)


def test_conditions_are_applied_while_files_are_read(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    append(log, [number(n) for n in range(10)])
    log.flush()
    window = pl.col("_at") >= datetime(1970, 1, 1, 0, 0, 0, 8, tzinfo=timezone.utc)
    for query in (scan(tmp_path).filter(window), as_of(log.read()).filter(window)):
        scanned = query.explain().partition("Parquet SCAN")[2]
        assert 'SELECTION: col("_at") >= ' in scanned
        assert query.collect()["i"].to_list() == [8, 9]


Action = tuple[str, int]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 2)),
        st.tuples(st.just("erase"), st.integers(0, 6)),
    ),
    max_size=25,
)


@settings(max_examples=20, deadline=None)
@given(ACTIONS)
def test_a_log_is_the_list_of_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Action]
) -> None:
    """Also when the run goes back, and back again, and when rows were erased in between."""
    folder = tmp_path_factory.mktemp("log")
    log, rows, lengths = ChangeLog(folder, SCHEMA), list[Row | None](), [0]
    for n, (action, much) in enumerate(actions):
        if action == "append":
            new = [number(7 * n + k) for k in range(much)]
            append(log, new)
            rows += new
        elif action == "flush":
            assert log.flush() == len(rows)
            lengths.append(len(rows))
        elif action == "crash":
            lengths = lengths[: max(1, len(lengths) - much)]
            rows = rows[: lengths[-1]]
            log = ChangeLog(folder, SCHEMA, lengths[-1])
        else:
            gone = {k for k, r in enumerate(rows) if r and r.values[0] % 7 == much}
            assert log.erase(pl.col("i") % 7 == much) == len(gone)
            rows = [None if k in gone else r for k, r in enumerate(rows)]
        assert content(log.read()) == expected(rows)
    flushed = ChangeLog(folder, SCHEMA, lengths[-1])
    assert content(flushed.read()) == content(scan(folder)) == expected(rows[: lengths[-1]])


class Later(Executor):
    """A writer that does nothing until it is told to."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self.work.append(lambda: done.set_result(fn(*args, **kwargs)))
        return done

    def go_on(self, steps: int) -> None:
        """Do the oldest of what was to be done."""
        for one in self.work[:steps]:
            one()
        del self.work[:steps]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_saved_is_there_however_little_was_written(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the disk, and after a crash at any moment the log is what it was when the state was saved."""
    monkeypatch.setattr(engine.log, "_BLOCK", 3)
    dice, waited = random.Random(seed), 0
    log, rows = ChangeLog(tmp_path, SCHEMA, writer=(writer := Later())), list[Row]()
    for _ in range(8):
        for _ in range(dice.randrange(1, 6)):
            new = [number(len(rows) + k) for k in range(dice.randrange(4))]
            append(log, new)
            rows += new
            writer.go_on(dice.randrange(2))
        saved, there = pickle.loads(pickle.dumps(log.save())), len(rows)
        waited += saved.rest is not None
        append(log, [number(len(rows))])
        writer.go_on(dice.randrange(4))
        rows = rows[:there]
        assert content(ChangeLog(tmp_path, SCHEMA, *saved).read()) == expected([*rows])
        log = ChangeLog(tmp_path, SCHEMA, len(rows), writer=(writer := Later()))
    assert waited > 3


def test_a_state_has_few_rows_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.log, "_REST", 4)
    log = ChangeLog(tmp_path, SCHEMA)
    append(log, [number(n) for n in range(5)])
    assert log.save() == (5, None)
    append(log, [number(5)])
    log.flush()
    assert log.save() == (6, None)


def test_what_cannot_be_written_is_told_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ChangeLog(tmp_path, SCHEMA)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.log.ChangeLog, "_commit", full)
    append(log, [number(0)])
    log.save()
    with pytest.raises(OSError, match="No space left"):
        log.flush()


def test_many_appends_with_one_seq_keep_their_order(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    rows = [number(n)._replace(seq=n // 40) for n in random.Random(1).sample(range(200), 200)]
    rows.sort(key=lambda r: r.seq)
    for k in range(0, 200, 5):
        append(log, rows[k : k + 5])
        log.flush()
    assert content(log.read()) == content(scan(tmp_path)) == expected([*rows])


def test_nothing_is_committed_when_nothing_was_appended(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    assert log.flush() == 0
    append(log, [number(0)])
    log.append(empty(SCHEMA), np.empty(0, np.int64))
    assert log.flush() == log.flush() == 1
    assert [a.version for a in logs_of(tmp_path)] == [1]


def logs_of(folder: Path) -> list[engine.log.About]:
    """The listing of one log in any folder."""
    state = folder.parent / f"{folder.name}.state"
    (state / "log").mkdir(parents=True)
    (state / "log" / "a").symlink_to(folder, target_is_directory=True)
    return logs(state)


def test_any_tool_reads_it(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    append(log, [number(n) for n in range(4)])
    log.flush()
    ours = log.read().collect()
    assert ours.schema == {**SCHEMA, "_at": TIME, "_known": TIME, "_pos": INT, "_seq": INT, "_weight": INT, "_row": INT}
    assert pl.read_delta(str(tmp_path)).equals(ours, null_equal=True)
    files = deltalake.DeltaTable(tmp_path).file_uris()
    theirs = duckdb.sql(f"FROM read_parquet({files}) ORDER BY _row")
    assert theirs.columns == ours.columns
    times = "epoch_us(t) AS t, epoch_us(_at) AS _at, epoch_us(_known) AS _known"
    rows = theirs.query("log", f"SELECT * REPLACE ({times}) FROM log").fetchall()
    assert rows == content(log.read()) == expected([number(n) for n in range(4)])
    frame = theirs.df()
    assert frame["s"].isna().tolist() == [True, False, False, True]
    assert frame["f"].tolist() == [0, 0.125, 0.25, 0.375]


def test_its_cost_is_bounded_and_readers_go_on(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    append(log, [number(0)])
    log.flush()
    early = scan(tmp_path)
    for n in range(1, 61):
        append(log, [number(n)])
        log.flush()
        assert len(list((tmp_path / "_delta_log").iterdir())) < 6 * engine.log.TEND
        assert len(deltalake.DeltaTable(tmp_path).file_uris()) <= engine.log.TEND + 1
    assert content(early) == expected([number(0)])
    assert content(log.read()) == expected([number(n) for n in range(61)])
    assert deltalake.DeltaTable(tmp_path).version() > 60


def test_whatever_a_flush_tells_of_was_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: set[Path] = set()
    monkeypatch.setattr(engine.log, "make_durable", lambda p: durable.add(p))
    folder = tmp_path / "log" / "a"
    log, length = ChangeLog(folder, SCHEMA), 0
    assert {tmp_path, tmp_path / "log"} <= durable
    for n in range(10):
        append(log, [number(n)])
        length = log.flush()
        assert {p for p in folder.rglob("*") if p.is_file()} <= durable
        assert {folder, folder / "_delta_log"} <= durable
        durable -= {folder, folder / "_delta_log"}
    durable.clear()
    ChangeLog(folder, SCHEMA, length - 2)
    assert folder / "_delta_log" in durable
    assert len(durable) >= 3


@pytest.mark.parametrize("step", range(40))
def test_a_crash_between_any_two_steps(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps open the log and cut it back, the others append, compact and remove what is old."""
    log = ChangeLog(tmp_path, SCHEMA)
    for n in range(6):
        append(log, [number(n)])
        log.flush()
    steps, real = iter(range(step)), engine.log.make_durable

    def crash(path: Path) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        real(path)

    length = 4

    def run() -> None:
        nonlocal length
        log = ChangeLog(tmp_path, SCHEMA, length)
        while True:
            append(log, [number(length)])
            length = log.flush()

    with monkeypatch.context() as m:
        m.setattr(engine.log, "make_durable", crash)
        with pytest.raises(KeyboardInterrupt):
            run()
    again = ChangeLog(tmp_path, SCHEMA, length)
    assert content(again.read()) == content(scan(tmp_path)) == expected([number(n) for n in range(length)])
    append(again, [number(length)])
    again.flush()
    assert content(again.read()) == expected([number(n) for n in range(length + 1)])


WRITER = """
import pickle, signal, sys
from itertools import pairwise
from pathlib import Path
import numpy as np
import engine.log
from operators.delta import INT, Delta
engine.log.TEND = 3
folder, state, flushes, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
length, saved = pickle.loads(state.read_bytes()) if state.exists() else (0, engine.log.Saved())
log = engine.log.ChangeLog(folder, {"i": INT}, *saved)
while True:
    if not flushes:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # it is killed by its alarm, whatever it is doing then
    flushes -= 1
    for _ in range(3):
        n = np.arange(length, length + 5)
        log.append(Delta({"i": n}, np.ones(5, np.int64), n, n, n), n)
        length += 5
    saved = log.save() if flushes % 3 else engine.log.Saved(log.flush())
    if flushes % 2:  # states are saved less often than logs are written
        (state.parent / "new").write_bytes(pickle.dumps((length, saved)))
        (state.parent / "new").rename(state)
"""
KILLS = int(os.environ.get("FRESHET_KILLS", "5"))


def test_killed_at_random_moments_it_holds_what_the_state_says(tmp_path: Path) -> None:
    folder, state, chance, lengths = tmp_path / "log", tmp_path / "length", random.Random(7), [0]
    for _ in range(KILLS):
        flushes, seconds = chance.randint(2, 8), chance.uniform(0.001, 0.1)
        done = subprocess.run(
            [sys.executable, "-c", WRITER, str(folder), str(state), str(flushes), str(seconds)],
            env={**os.environ, "PYTHONPATH": str(Path(engine.log.__file__).parent.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == -signal.SIGALRM, done.stderr
        length, saved = pickle.loads(state.read_bytes())
        lengths.append(length)
        copy = tmp_path / f"copy{lengths[-1]}"
        shutil.copytree(folder, copy)
        found = ChangeLog(copy, {"i": INT}, *saved).read().collect()
        assert found["i"].to_list() == found["_row"].to_list() == list(range(lengths[-1]))
    assert all(a < b for a, b in pairwise(lengths))


def torn(folder: Path) -> None:
    """Make the last commit one that a power cut kept from the disk."""
    max((folder / "_delta_log").glob("*.json")).write_bytes(b"")


def half(folder: Path) -> None:
    last = max((folder / "_delta_log").glob("*.json"))
    last.write_bytes(last.read_bytes()[:-20])


def without_data(folder: Path) -> None:
    max(folder.glob("*.parquet"), key=lambda p: p.stat().st_mtime_ns).unlink()


def short_data(folder: Path) -> None:
    os.truncate(max(folder.glob("*.parquet"), key=lambda p: p.stat().st_mtime_ns), 7)


def checkpoint(folder: Path) -> None:
    max((folder / "_delta_log").glob("*.checkpoint.parquet")).write_bytes(b"")


@pytest.mark.parametrize("harm", [torn, half, without_data, short_data, checkpoint])
def test_what_a_power_cut_tore_is_forgotten(harm: Any, tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    for n in range(10):
        append(log, [number(n)])
        log.flush()
    harm(tmp_path)
    log = ChangeLog(tmp_path, SCHEMA, 9)
    append(log, [number(9)])
    log.flush()
    assert content(log.read()) == content(scan(tmp_path)) == expected([number(n) for n in range(10)])


@pytest.mark.parametrize("harm", [torn, half, without_data, short_data])
def test_what_is_damaged_is_refused(harm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    log = ChangeLog(folder, SCHEMA)
    for n in range(3):
        append(log, [number(n)])
        log.flush()
    harm(folder)
    before = sorted(p.name for p in folder.rglob("*"))
    with pytest.raises(LogError, match=r"change log '.*a' is damaged in commit 3; put it back from a backup, or start"):
        ChangeLog(folder, SCHEMA, 3)
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_a_log_that_is_not_what_the_state_says_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    log = ChangeLog(folder, SCHEMA)
    append(log, [number(n) for n in range(3)])
    log.flush()
    with pytest.raises(
        LogError, match=r"change log '.*a' has had 3 rows, but the state has already appended 4; put it"
    ):
        ChangeLog(folder, SCHEMA, 4)
    with pytest.raises(
        LogError, match=r"change log '.*a' holds 3 rows, but there is no state .*; move it away, or point"
    ):
        ChangeLog(folder, SCHEMA)
    with pytest.raises(LogError, match=r"change log '.*a' has columns .*, the relation has .*; go back to the earlier"):
        ChangeLog(folder, {"i": INT}, 3)
    with pytest.raises(LogError, match=r"change log '.*b' is missing; put it back from a backup, or start again"):
        ChangeLog(tmp_path / "b", SCHEMA, 3)
    with pytest.raises(LogError, match=r"change log '.*b' cannot be read \(.*\); put it back"):
        scan(tmp_path / "b")
    min(folder.glob("*.parquet")).unlink()
    append(log, [number(3)])
    log.flush()
    with pytest.raises(LogError, match=r"change log '.*a' is damaged: its file '.*' is not whole; put it back"):
        ChangeLog(folder, SCHEMA, 4)


def test_a_new_log_may_begin_again_when_no_state_was_saved(tmp_path: Path) -> None:
    append(log := ChangeLog(tmp_path, SCHEMA), [number(0)])
    log.flush()
    assert content(ChangeLog(tmp_path, SCHEMA, 0).read()) == []
    assert content(ChangeLog(tmp_path, SCHEMA, 0).read()) == []


def test_erased_bytes_are_gone_and_do_not_come_back(tmp_path: Path) -> None:
    secret, schema = b"Hjalmar", {"who": STRING}
    rows = [Row((who,), n, n, n, n) for n, who in enumerate(["a", "Hjalmar", "b", "Hjalmar", "c"])]
    log = ChangeLog(tmp_path, schema)
    lengths = []
    for row in rows:
        log.append(*to_delta([row], schema))
        lengths.append(log.flush())
    log = ChangeLog(tmp_path, schema, 4)
    log.append(*to_delta(rows[4:], schema))
    log.append(*to_delta([rows[1]._replace(pos=9)], schema))

    def holding() -> set[str]:
        return {p.suffix for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_bytes()}

    assert holding() == {".parquet"}
    assert log.erase(pl.col("who") == "Hjalmar") == 3
    assert holding() == set()
    assert log.flush() == 6
    for length in (6, 4, 2, 1):
        again = ChangeLog(tmp_path, schema, length)
        kept = [n for n in (0, 2, 4) if n < length]
        assert again.read().collect()["_row"].to_list() == kept
    again.append(*to_delta(rows[2:3], schema))
    assert again.flush() == 2
    assert again.read().collect()["_row"].to_list() == [0, 1]


def test_much_is_erased_slice_by_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.log, "_SLICE", 64)
    log = ChangeLog(tmp_path, SCHEMA)
    rows = [number(n) for n in range(500)]
    for k in range(0, 500, 100):
        append(log, rows[k : k + 100])
        log.flush()
    assert log.erase(pl.col("i").is_between(60, 400) | pl.col("s").is_null()) == 341 + 20 + 33
    kept = [r if not 60 <= r.values[0] <= 400 and r.values[2] is not None else None for r in rows]
    assert content(log.read()) == expected(kept)
    assert log.erase(pl.col("s") == "nobody") == 0


def test_what_was_not_flushed_is_erased_too(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    append(log, [number(n) for n in range(3)])
    log.flush()
    append(log, [number(3), number(4)])
    assert erased(tmp_path) == -1
    assert log.erase(pl.col("i") % 2 == 1) == 2
    assert erased(tmp_path) == 4, "up to the last change that was there"
    append(log, [number(5)])
    log.flush()
    assert erased(tmp_path) == 4
    kept = [number(n) if n % 2 == 0 else None for n in range(5)]
    assert content(ChangeLog(tmp_path, SCHEMA, 5).read()) == expected(kept)


def test_erasing_by_what_is_not_a_column_is_refused(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, SCHEMA)
    with pytest.raises(DefinitionError, match="erase: no column 'ii'; did you mean 'i'"):
        log.erase(pl.col("ii") == 1)
    with pytest.raises(DefinitionError, match="erase: no column '_weight'"):
        log.erase(pl.col("_weight") < 0)


def test_logs_are_listed(tmp_path: Path) -> None:
    assert logs(tmp_path) == []
    log = ChangeLog(tmp_path / "log" / "b", SCHEMA)
    ChangeLog(tmp_path / "log" / "a", SCHEMA)
    append(log, [number(n) for n in (5, 6, 7)])
    log.flush()
    a, b = logs(tmp_path)
    assert a == ("a", 0, 0, 0, None, None)
    size = sum(p.stat().st_size for p in (tmp_path / "log" / "b").glob("*.parquet"))
    first, last = (datetime(1970, 1, 1, 0, 0, 0, us, tzinfo=timezone.utc) for us in (5, 7))
    assert b == ("b", 3, 1, size, first, last)


def test_a_delta_of_several_is_one(tmp_path: Path) -> None:
    """How rows are cut into deltas does not show."""
    one, many = ChangeLog(tmp_path / "a", SCHEMA), ChangeLog(tmp_path / "b", SCHEMA)
    parts = [to_delta([number(n)]) for n in range(5)]
    one.append(concat([d for d, _ in parts]), np.concatenate([k for _, k in parts]))
    for part in parts:
        many.append(*part)
    assert one.flush() == many.flush()
    assert content(one.read()) == content(many.read())
