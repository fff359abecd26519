"""A live run that is cut off makes the same batches again, whatever has arrived meanwhile, and in what blocks."""

from __future__ import annotations

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch
from engine.intake import Intake, IntakeError, Note
from engine.merge import Merge, MergeError
from engine.schedule import Due
from operators.delta import NULL
from tests.engine.test_merge import MINUTE, Blocks, Case, cases, source


class Arriving(Blocks):
    """Of whose rows only the first `there` have arrived."""

    def __init__(self, at: list[int], blocks: list[int], position: int, bad: tuple[int, ...], there: int = 0) -> None:
        super().__init__(at, blocks, position, bad)
        self.there = there

    @property
    def ended(self) -> bool:
        return self.position >= self.there

    def read(self) -> Any:
        whole, self.at = self.at, self.at[: self.there]
        try:
            return super().read()
        finally:
            self.at = whole


def merge(case: Case, blocks: list[int], batch_rows: int, dues: list[Due], folder: Path, state: Any = None) -> Merge:
    feeds = state["feeds"] if state else {}
    parts = []
    for s, at, bad in zip(case.sources, case.ats, case.bad, strict=True):
        begin = feeds[f"{s.name}/0"]["position"] if f"{s.name}/0" in feeds else 0
        parts.append((s, [Arriving(at, blocks, begin, bad)]))
    intake = Intake(folder, state["number"] if state else 0)
    return Merge(parts, [s.name for s in case.sources], batch_rows, None, state, dues, True, intake, watermarks=True)


def arrive(m: Merge, name: str, rows: int) -> None:
    for feed in m.feeds:
        if feed.source.name == name:
            part = feed.partition
            assert isinstance(part, Arriving)
            part.there = min(len(part.at), part.there + rows)


def content(b: Batch) -> Any:
    deltas = {n: (d.at.tolist(), d.pos.tolist(), d.seq.tolist()) for n, d in b.deltas.items()}
    return (b.number, deltas, b.watermark, b.horizon, b.read, b.first, b.last, b.clock, b.known.tolist(), b.live, b.due,
            sorted(b.dead), sorted(b.late), {n: m.tolist() for n, m in b.watermarks.items()})  # fmt: skip


blocks = st.lists(st.integers(1, 7), min_size=1, max_size=3)
steps = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 20)), max_size=15)


@settings(max_examples=300, deadline=None)
@given(cases(), blocks, blocks, st.integers(1, 9), st.integers(1, 9), steps, st.data())
def test_batches_are_made_again(
    case: Case, first: list[int], second: list[int], rows: int, other_rows: int, steps: Any, data: st.DataObject
) -> None:
    case.sources.append(source("timeless", timeless=True))
    case.ats.append([NULL] * 8)
    case.bad.append((3,))
    names = [s.name for s in case.sources]
    dues = [
        Due("v", frozenset(names), every=7 * MINUTE),
        Due("w", frozenset(names[:1]), lag=4 * MINUTE),
        Due("x", frozenset(names[:2]), rows=5, lag=9 * MINUTE),
    ]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        m = merge(case, first, rows, dues, folder)
        made, states, now = [], [m.state()], 0
        for which, more, minutes in steps:
            arrive(m, names[which % len(names)], more)
            now += minutes * MINUTE
            while (batch := m.next(now)) is not None:
                made.append(content(batch))
                states.append(pickle.loads(pickle.dumps(m.state())))
        at = data.draw(st.integers(0, len(made)))
        again = merge(case, second, other_rows, dues, folder, states[at] if at else None)
        for part in [f.partition for f in [*again.feeds, *again._coming.values()]]:
            assert isinstance(part, Arriving)
            part.there = len(part.at)
        assert again.again == (at < len(made))
        found = []
        while again.again:
            batch = again.next(now + 10_000 * MINUTE)
            assert batch is not None
            found.append(content(batch))
        assert found == made[at:]
        left, here = again.state(), m.state()
        for state in (left, here):
            state["schedule"] = state["schedule"][0], state["schedule"][2]  # what the present was is in the next note
        assert left == here


def test_what_has_not_arrived_yet_is_waited_for_and_what_is_gone_is_an_error(tmp_path: Path) -> None:
    case = Case([source("s")], [[1, 2, 3, 4]], [()])
    m = merge(case, [10], 10, [], tmp_path)
    arrive(m, "s", 4)
    assert m.next(0) is not None
    again = merge(case, [1], 10, [], tmp_path)
    part = next(iter(again._coming.values())).partition
    assert isinstance(part, Arriving)
    part.there = 2
    with pytest.raises(MergeError, match=r"source 's': 'blocks' ends at 2, but it was read up to 4"):
        again.next(0)


def test_notes_are_kept_until_the_state_that_contains_them_is_safe(tmp_path: Path) -> None:
    intake = Intake(tmp_path, 0)
    for number in range(1, 7):
        intake.note(Note(number))
        if number % 2 == 0:
            intake.save(number)
            intake.save(number)
    assert [n.number for n in Intake(tmp_path, 4).again] == [5, 6], "the state saved with 6 may be lost"
    with pytest.raises(IntakeError, match="goes on with batch 5 where 2 was expected"):
        Intake(tmp_path, 1)


def test_a_note_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    intake = Intake(tmp_path, 0)
    intake.note(Note(1))
    intake.note(Note(2))
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-3])
    intake = Intake(tmp_path, 0)
    assert [n.number for n in intake.again] == [1]
    intake.note(Note(2, {"s/0": 5}))
    assert [n.to for n in Intake(tmp_path, 0).again] == [{}, {"s/0": 5}]


def test_a_partition_that_appears_joins_where_its_source_is(tmp_path: Path) -> None:
    s = source("s", lateness=5 * MINUTE)
    first, more = [m * MINUTE for m in (1, 20, 30)], [m * MINUTE for m in (2, 28, 40)]

    def made(state: Any = None, parts: int = 1) -> Merge:
        several = [Arriving(at, [9], 0, (), 3) for at in (first, more)]
        intake = Intake(tmp_path, 0)
        return Merge([(s, several[:parts])], ["s"], 2, None, state, (), True, intake, watermarks=True)

    m = made()
    batches = [m.next(0), m.next(0)]
    m.add(s, 1, Arriving(more, [9], 0, (), 3))
    batches.append(m.next(0))
    assert m.watermark == {"s": 30 * MINUTE}, "the watermark never goes back"
    batches.append(m.next(0))
    assert sum(len(b.late) for b in batches if b is not None) == 1, "minute 2 is late"
    again = made(parts=2)
    assert [content(b) for _ in range(4) if (b := again.next(0)) is not None] == [
        content(b) for b in batches if b is not None
    ]
