"""Histories contain what they should: one without late rows would prove nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from operators.delta import BEGINNING, BOOL, FLOAT, INT, STRING, TIME, Schema, accumulate
from operators.message import UNAVAILABLE
from tests.laws.history import ANY, DECIMALS, FLOATS, IN_ORDER, Change, History, Kind, decode, generate, shuffled
from tests.laws.laws import relation

LEFT: Schema = {"key": STRING, "n": INT, "x": FLOAT, "when": TIME}
RIGHT: Schema = {"key": STRING, "yes": BOOL}
MESSAGES: Schema = {"key": STRING, "n": INT, "deleted": BOOL}


def many(schemas: list[Schema], kind: Kind = ANY, count: int = 50) -> list[History]:
    return [generate(np.random.default_rng(seed), schemas, 300, kind) for seed in range(count)]


def test_what_histories_contain() -> None:
    found: Counter[str] = Counter()
    for history in many([LEFT, RIGHT], count=100):
        newest, before, gone = -(2**62), {}, set()
        for c in history.changes:
            identity, cause = (c.source, c.at, c.pos), before.get((c.seq, "taken back"))
            if c.weight < 0:
                found["retraction"] += 1
                gone.add(identity)
                before[c.seq, "taken back"] = c
            elif cause is not None and cause.source == c.source:
                found[
                    "at another time" if c.at != cause.at else "as another row" if c.pos != cause.pos else "corrected"
                ] += 1
            elif identity in gone:
                found["back again"] += 1
            else:
                found["late" if c.at < newest else "tie" if c.at == newest else "in order"] += 1
            newest = max(newest, c.at)
            found["null"] += None in c.values
        for seq in history.seqs:
            rows = [c for c in history.changes if c.seq == seq]
            found["several inputs at once"] += len({c.source for c in rows}) > 1
            found["several rows at once"] += sum(c.weight for c in rows) > 1
            found["retraction and late row at once"] += len(rows) > 2 and any(c.weight < 0 for c in rows)
    rare = {what: n for what, n in found.items() if n < 40}
    assert not rare
    assert len(found) == 12


def test_messages_are_only_inserted() -> None:
    changes = [c for h in many([LEFT, MESSAGES]) for c in h.changes]
    messages = [c for c in changes if c.source == 1]
    assert {c.weight for c in messages} == {1}
    assert {c.values[2] for c in messages} == {0, 1, None}
    assert {(c.values[0], c.values[2]) for c in messages} >= {(UNAVAILABLE, None), (UNAVAILABLE, 0), (None, 1)}
    assert any(c.at == BEGINNING for c in messages)
    assert any(c.weight < 0 for c in changes)


def test_rows_in_order_are_in_order() -> None:
    for history in many([LEFT, RIGHT], IN_ORDER):
        order = [(c.at, -c.source, c.pos) for c in history.changes]
        assert order == sorted(order)
        assert all(c.weight == 1 for c in history.changes)


def test_identities_are_unique_and_deltas_add_up_to_the_live_rows() -> None:
    for history in many([LEFT, RIGHT]):
        live = history.live()
        for i, (frame, schema) in enumerate(zip(history.relations(), history.schemas, strict=True)):
            assert relation(frame, schema) == sorted(
                ((c.at, c.pos, c.values) for c in live if c.source == i), key=lambda r: r[:2]
            )
        identities = [(c.at, c.pos) for c in live]
        assert len(identities) == len(set(identities))


def test_cutting_loses_nothing_and_keeps_changes_whole() -> None:
    for history in many([LEFT, RIGHT], count=10):
        steps = history.steps(history.seqs[::3])
        assert len(steps) == -(-len(history.seqs) // 3)
        for i, schema in enumerate(history.schemas):
            whole = accumulate([history.deltas(history.changes)[i]], schema)
            assert accumulate([s[i] for s in steps], schema).equals(whole)
        by_row = history.steps(history.seqs)
        assert [{int(s) for d in step for s in d.seq} for step in by_row] == [{s} for s in history.seqs]


def test_bounds_hold_and_are_the_greatest() -> None:
    for history in many([LEFT, RIGHT], count=10):
        steps = history.steps(history.seqs[::3])
        least = [min(int(d.at.min()) for d in s if len(d)) for s in steps]
        assert history.bounds(steps) == [min(least[i:]) for i in range(len(steps))]


def test_shuffling_keeps_what_is_live() -> None:
    moved = 0
    for history in many([LEFT, RIGHT]):
        other = shuffled(history, np.random.default_rng(0))
        assert {(c.source, c.at, c.pos): c.values for c in other.live()} == {
            (c.source, c.at, c.pos): c.values for c in history.live()
        }
        moved += [c.pos for c in other.changes] != [c.pos for c in history.changes]
        assert any(c.weight < 0 for c in other.changes) or not any(c.weight < 0 for c in history.changes)
    assert moved > 40


def test_some_histories_have_floats_that_round() -> None:
    used = [{c.values[2] for c in h.changes} for h in many([LEFT])]
    assert set().union(*used) == set(DECIMALS)
    assert 10 < sum(floats <= set(FLOATS) for floats in used) < 40


def test_no_bytes_are_no_history_and_a_zero_ends_it() -> None:
    assert decode(b"", [LEFT]).changes == []
    data = bytes(range(1, 200))
    assert decode(data, [LEFT]).changes
    assert decode(b"\x01\x01\x00" + data, [LEFT]).changes == []


def test_live_refuses_a_history_that_is_none() -> None:
    row = Change(1, 0, 1, 5, 7, ("a", 1, 1.0, None))
    with pytest.raises(AssertionError, match="there already"):
        History([LEFT], [row, row._replace(seq=2)]).live()
    with pytest.raises(AssertionError, match="does not take back what is there"):
        History([LEFT], [row, row._replace(seq=2, weight=-1, values=("b", 1, 1.0, None))]).live()
