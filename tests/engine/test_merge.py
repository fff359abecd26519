"""The order of knowledge: independent of blocks, batches and restarts; late rows told row by row."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graph import Source
from engine.merge import OFFSET_BITS, Bad, Chunk, Merge
from engine.scan import Records
from operators.delta import BEGINNING, FLOAT, NULL, TIME

MINUTE = 60_000_000


def source(name: str, lateness: int = 0, idle_after: int | None = None, timeless: bool = False) -> Source:
    return Source(
        name, ("at",), None if timeless else "at", {"at": TIME, "x": FLOAT}, lateness, idle_after, append_only=True
    )


class Blocks:
    """Rows given in blocks: what a file is, without the file."""

    def __init__(self, at: list[int], blocks: list[int], position: int = 0, bad: tuple[int, ...] = ()) -> None:
        self.name, self.at, self.bad = "blocks", at, bad
        self.position = position
        self.blocks = blocks
        self.reads = 0
        self.total = len(at)

    @property
    def ended(self) -> bool:
        return self.position >= len(self.at)

    @property
    def done(self) -> int:
        return self.position

    def read(self) -> Chunk | None:
        if self.ended:
            return None
        size = self.blocks[self.reads % len(self.blocks)]
        self.reads += 1
        a, b = self.position, min(self.position + size, len(self.at))
        self.position = b
        rows = [i for i in range(a, b) if i not in self.bad]
        at = np.array([self.at[i] for i in rows], np.int64)
        return Chunk(
            {"at": at, "x": np.array(rows, float)},
            np.zeros(len(rows), bool),
            at,
            np.array(rows, np.int64),
            Records.of([b'{"row":%d}' % i for i in rows]),
            [Bad(i, "broken", b"raw %d" % i) for i in range(a, b) if i in self.bad],
        )

    def identity(self) -> Any:
        return None


@dataclass
class Case:
    sources: list[Source]
    ats: list[list[int]]
    bad: list[tuple[int, ...]]


def merge(case: Case, blocks: list[int], batch_rows: int, state: Any = None) -> Merge:
    parts = []
    for s, at, bad in zip(case.sources, case.ats, case.bad, strict=True):
        position = state["feeds"][f"{s.name}/0"]["position"] if state else 0
        parts.append((s, [Blocks(at, blocks, position, bad)]))
    return Merge(parts, [s.name for s in reversed(case.sources)], batch_rows, state=state)


def rows_of(m: Merge, stop_after: int | None = None) -> tuple[list[Any], list[bytes], list[bytes], list[int]]:
    """(name, offset, seq) of the rows in order of seq, late lines, dead lines, sizes of batches."""
    rows, late, dead, sizes = [], [], [], []
    while (stop_after is None or len(sizes) < stop_after) and (batch := m.next()) is not None:
        got = []
        for name, delta in batch.deltas.items():
            assert (np.diff(delta.seq) > 0).all()
            assert (delta.at >= batch.horizon[name]).all(), "a row below the horizon was let through"
            got += [
                (name, int(p) & ((1 << OFFSET_BITS) - 1), int(s)) for p, s in zip(delta.pos, delta.seq, strict=True)
            ]
        rows += sorted(got, key=lambda r: r[2])
        late += batch.late
        dead += batch.dead
        sizes.append(len(got) + len(batch.late))
    return rows, late, dead, sizes


def expected(case: Case) -> tuple[list[Any], list[tuple[str, int]]]:
    """The slow obvious twin: all rows sorted by (known, rank, offset), then judged one by one."""
    every = []
    for rank, (s, at, bad) in enumerate(
        zip(reversed(case.sources), reversed(case.ats), reversed(case.bad), strict=True)
    ):
        known = BEGINNING
        for i, t in enumerate(at):
            if i in bad:
                continue
            known = max(known, t)
            every.append((known, rank, i, s, t))
    clock, good, late = BEGINNING, [], []
    for seq, (known, _, i, s, t) in enumerate(sorted(every, key=lambda r: r[:3])):
        mark = known if s.idle_after is None else max(known, clock - s.idle_after)
        if t < mark - s.lateness:
            late.append((s.name, i))
        else:
            good.append((s.name, i, seq))
        clock = max(clock, known)
    return good, late


times = st.lists(st.integers(0, 30).map(lambda m: m * MINUTE), max_size=30)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(1, 3))
    sources = [
        source(
            f"s{i}",
            draw(st.sampled_from([0, 5, 100])) * MINUTE,
            draw(st.sampled_from([None, 0, 3 * MINUTE])),
        )
        for i in range(n)
    ]
    ats = [draw(times) for _ in range(n)]
    bad = [tuple(draw(st.lists(st.integers(0, 29), max_size=3))) for _ in range(n)]
    return Case(sources, ats, [tuple(b for b in bs if b < len(at)) for bs, at in zip(bad, ats, strict=True)])


@settings(max_examples=200, deadline=None)
@given(cases(), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 20))
def test_order_does_not_depend_on_blocks_or_batches(case: Case, blocks: list[int], batch_rows: int) -> None:
    good, late = expected(case)
    rows, late_lines, dead, sizes = rows_of(merge(case, blocks, batch_rows))
    assert rows == good
    assert sorted((x["source"], x["position"]) for x in map(orjson.loads, late_lines)) == sorted(late)
    assert sorted((x["source"], x["position"]) for x in map(orjson.loads, dead)) == sorted(
        (s.name, i) for s, b in zip(case.sources, case.bad, strict=True) for i in set(b)
    )
    counted = [s for s in sizes if s]
    assert all(s == batch_rows for s in counted[:-1]), "batches end at multiples of batch_rows"


@settings(max_examples=200, deadline=None)
@given(cases(), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 6))
def test_restart_is_invisible(case: Case, blocks: list[int], batch_rows: int, stop_after: int) -> None:
    whole = rows_of(merge(case, blocks, batch_rows))
    first = merge(case, blocks, batch_rows)
    before = rows_of(first, stop_after)
    state = pickle.loads(pickle.dumps(first.state()))
    second = merge(case, [3], batch_rows, state)
    after = rows_of(second)
    assert before[0] + after[0] == whole[0]
    assert sorted(before[1] + after[1]) == sorted(whole[1])
    assert sorted(before[2] + after[2]) == sorted(whole[2])
    total = merge(case, blocks, batch_rows)
    rows_of(total)
    for what in ("late", "dead", "skipped"):
        assert second.counts(what) == total.counts(what)
    assert second.read == total.read
    assert second.watermark == total.watermark


def test_late_line_says_where_from_and_keeps_the_record() -> None:
    case = Case([source("s", lateness=MINUTE)], [[10 * MINUTE, 5 * MINUTE, 9 * MINUTE]], [()])
    rows, late, _, _ = rows_of(merge(case, [10], 10))
    assert rows == [("s", 0, 0), ("s", 2, 2)]
    assert orjson.loads(late[0]) == {
        "source": "s",
        "partition": "blocks",
        "position": 1,
        "at": "1970-01-01T00:05:00.000000Z",
        "watermark": "1970-01-01T00:10:00.000000Z",
        "record": {"row": 1},
    }


def test_a_table_without_time_comes_first_and_counts_from_the_beginning() -> None:
    case = Case([source("s"), source("t", timeless=True)], [[MINUTE, 2 * MINUTE], [NULL] * 5], [(), ()])
    m = merge(case, [2], 100)
    batch = m.next()
    assert batch is not None
    assert batch.deltas["t"].at.tolist() == [BEGINNING] * 5
    assert max(batch.deltas["t"].seq) < min(batch.deltas["s"].seq)
    assert m.next() is None


@pytest.mark.parametrize("days", [1, 2])
def test_until_takes_the_first_days_and_goes_on_later(days: int) -> None:
    day = 24 * 60 * MINUTE
    at = [h * 6 * 60 * MINUTE + 10 * day for h in range(20)]
    case = Case([source("s")], [at], [()])
    m = merge(case, [3], 7)
    m.until = days * day
    first = rows_of(m)[0]
    assert [r[1] for r in first] == list(range(4 * days))
    rest = rows_of(merge(case, [3], 7, m.state()))[0]
    assert [r[1] for r in first + rest] == list(range(20))


def test_what_was_heard_of_each_partition_and_when() -> None:
    a, b = Blocks([1, 2], [20]), Blocks([1], [20])
    m = Merge([(source("s"), [a, b])], ["s"], 100, follow=True)

    def heard(now: int) -> tuple[int, int, int, int, list[int]]:
        m.next(now)
        h = m.heard()["s"]
        return h.change, h.anything, h.refused, h.unread, list(h.partitions)

    assert heard(100) == (100, 100, 0, 0, [100, 100])
    assert heard(150) == (100, 100, 0, 0, [100, 100]), "nothing came"
    a.at.append(5)
    assert heard(200) == (200, 200, 0, 0, [200, 100])
    b.at += [6] * 12
    b.bad = tuple(range(1, 13))
    assert heard(300) == (200, 300, 12, 0, [200, 100]), "what is refused is heard, and is no change"
    b.at.append(7)
    assert heard(400) == (400, 400, 0, 0, [200, 400])
    a.total = a.done + 3
    assert heard(500)[3] == 3
