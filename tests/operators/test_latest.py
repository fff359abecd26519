"""Latest: what the laws do not say. The laws themselves run over it in tests/laws."""

from __future__ import annotations

import pickle
import zlib
from itertools import pairwise
from typing import Any, Literal

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.delta import AT, BEGINNING, BOOL, INT, POS, STRING, Delta, Schema, accumulate, to_column
from operators.latest import latest
from operators.message import UNAVAILABLE
from operators.operator import DefinitionError
from tests.laws import laws
from tests.laws.history import Change, decode, generate
from tests.laws.laws import Case

SCHEMA: Schema = {"k": STRING, "x": INT, "deleted": BOOL}
TEXT: Schema = {"k": STRING, "t": STRING, "u": STRING, "deleted": BOOL}
Message = tuple[Any, ...]


def messages(*rows: Message, schema: Schema = SCHEMA, seq: int | None = None) -> list[Delta]:
    """Messages (at, pos, *values); known in the order of position, or all at `seq`."""
    columns = {n: to_column([r[2 + i] for r in rows], t) for i, (n, t) in enumerate(schema.items())}
    at, pos = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    return [Delta(columns, np.ones(len(rows), np.int64), at, pos, pos if seq is None else np.full(len(rows), seq))]


def out(d: Delta) -> list[tuple[Any, ...]]:
    """(weight, pos, key, value) of each row that came out."""
    k, x = (d.columns[n].tolist() for n in list(d.columns)[:2])
    return list(zip(d.weight.tolist(), d.pos.tolist(), k, x, strict=True))


def twin(changes: list[Change], order: str) -> list[laws.Row]:
    """The messages one after another in the order that counts, into a dict."""
    rows: dict[Any, Change] = {}
    for c in sorted(changes, key=lambda c: (c.pos,) if order == "position" else (c.at, c.pos)):
        k, _, deleted = c.values
        if deleted == 1 and k is None:
            rows.clear()
        elif deleted == 1:
            rows.pop(k, None)
        else:
            rows[k] = c
    return sorted(((c.at, c.pos, c.values[:2]) for c in rows.values()), key=laws.order)


@pytest.mark.parametrize("order", ["position", "at"])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.binary(min_size=60, max_size=600))
def test_it_is_its_twin(order: Literal["position", "at"], data: bytes) -> None:
    case = Case(latest(by="k", order=order), [SCHEMA])
    history = decode(data, case.schemas)
    steps = history.steps(laws.random_cuts(history, np.random.default_rng(zlib.crc32(data))))
    assert laws.run(case, steps, history.bounds(steps)).accumulated() == twin(history.live(), order)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["position", "at"])
def test_it_is_row_number_1_from_the_end(seed: int, order: Literal["position", "at"]) -> None:
    case = Case(latest(by="k", order=order), [SCHEMA])
    history = generate(np.random.default_rng(seed), case.schemas, 2000)
    con = duckdb.connect()
    con.execute("CREATE TABLE m (k VARCHAR, x BIGINT, deleted BOOLEAN, _at BIGINT, _pos BIGINT)")
    con.executemany("INSERT INTO m VALUES (?, ?, ?, ?, ?)", history.relations()[0].rows())
    by = "_pos" if order == "position" else "_at, _pos"
    newest = ", ".join(f"{c} DESC" for c in by.split(", "))
    sql = f"""
        WITH numbered AS (SELECT *, row_number() OVER (ORDER BY {by}) AS n FROM m),
             after AS (SELECT * FROM numbered WHERE n > coalesce(
                 (SELECT max(n) FROM numbered WHERE deleted AND k IS NULL), 0))
        SELECT _at, _pos, k, x FROM (SELECT * FROM after QUALIFY row_number() OVER (
            PARTITION BY k ORDER BY {newest}) = 1) WHERE deleted IS NOT TRUE"""
    expected = sorted(((at, pos, (k, x)) for at, pos, k, x in con.execute(sql).fetchall()), key=laws.order)
    assert laws.run(case, history.steps(history.seqs[::7])).accumulated() == expected


def test_each_message_takes_back_the_row_before_it() -> None:
    kept = latest(by="k").start([SCHEMA])
    assert out(kept.apply(messages((5, 1, "a", 1, False), (5, 2, "a", 2, False), (5, 3, "b", 3, False)))) == [
        (1, 1, "a", 1), (-1, 1, "a", 1), (1, 2, "a", 2), (1, 3, "b", 3),
    ]  # fmt: skip
    assert out(kept.apply(messages((4, 4, "a", None, True), (3, 5, "c", 0, True)))) == [(-1, 2, "a", 2)]
    assert out(kept.apply(messages((9, 6, "a", 6, None)))) == [(1, 6, "a", 6)]


def test_messages_of_one_change_are_one_change() -> None:
    kept = latest(by="k").start([SCHEMA])
    kept.apply(messages((5, 1, "a", 1, False)))
    both = messages((5, 2, "a", 2, False), (5, 3, "a", 3, False), (5, 4, "b", 4, False), (5, 5, "b", 5, True), seq=9)
    assert out(kept.apply(both)) == [(-1, 1, "a", 1), (1, 3, "a", 3)]


def test_a_message_behind_a_newer_one_changes_nothing_whatever_the_order() -> None:
    by_pos, by_at = (latest(by="k", order=o).start([SCHEMA]) for o in ("position", "at"))
    for kept in (by_pos, by_at):
        kept.apply(messages((10, 5, "a", 5, False)))
    assert out(by_pos.apply(messages((20, 4, "a", 4, False)))) == []
    assert out(by_at.apply(messages((20, 4, "a", 4, False)))) == [(-1, 5, "a", 5), (1, 4, "a", 4)]
    assert out(by_at.apply(messages((19, 9, "a", 9, False)))) == []


def test_a_delete_is_remembered_until_the_horizon_has_passed_it() -> None:
    kept = latest(by="k", order="at").start([SCHEMA])
    kept.apply(messages((10, 1, "a", 1, False), (20, 2, "a", 0, True)))
    assert out(kept.apply(messages((15, 3, "a", 3, False)), 15)) == []
    assert kept.size[0] == 1
    kept.apply(messages((20, 4, "b", 4, False)), 20)
    assert kept.size[0] == 2
    kept.apply(messages((21, 5, "b", 5, False)), 21)
    assert kept.size[0] == 1
    assert out(kept.apply(messages((21, 6, "a", 6, False)), 21)) == [(1, 6, "a", 6)]


def test_a_null_key_that_is_deleted_deletes_everything_older_also_what_comes_later() -> None:
    kept = latest(by="k").start([SCHEMA])
    kept.apply(messages((1, 1, "a", 1, False), (1, 2, None, 2, False), (1, 9, "c", 9, False)))
    assert sorted(out(kept.apply(messages((2, 5, None, None, True)))), key=str) == [(-1, 1, "a", 1), (-1, 2, None, 2)]
    assert kept.size[0] == 1
    kept2 = latest(by="k").start([SCHEMA])
    kept2.restore(pickle.loads(pickle.dumps(kept.snapshot())))
    for again in (kept, kept2):
        assert out(again.apply(messages((2, 4, "d", 4, False)))) == []
        assert again.size[0] == 1
        assert out(again.apply(messages((2, 6, "d", 6, False)))) == [(1, 6, "d", 6)]
        assert out(again.apply(messages((2, 5, None, None, True)))) == []


def test_with_two_key_columns_only_a_key_of_nulls_deletes_everything() -> None:
    kept = latest(by=["k", "x"]).start([SCHEMA])
    kept.apply(messages((1, 1, "a", 1, False), (1, 2, None, 1, False)))
    assert out(kept.apply(messages((1, 3, None, 1, True)))) == [(-1, 2, None, 1)]
    assert out(kept.apply(messages((1, 4, None, None, True)))) == [(-1, 1, "a", 1)]


def test_with_keep_a_key_is_forgotten_in_silence_and_its_row_stays() -> None:
    kept = latest(by="k", keep="10us").start([SCHEMA])
    kept.apply(messages((1, 1, "a", 1, False), (50, 2, "b", 2, False)))
    assert out(kept.apply(messages((51, 3, "b", 3, False)), 12)) == [(-1, 2, "b", 2), (1, 3, "b", 3)]
    assert kept.size[0] == 1
    assert out(kept.apply(messages((60, 4, "a", 4, False), (61, 5, "b", 5, False)), 12)) == [
        (1, 4, "a", 4), (-1, 3, "b", 3), (1, 5, "b", 5),
    ]  # fmt: skip
    forever = latest(by="k").start([SCHEMA])
    forever.apply(messages((1, 1, "a", 1, False)))
    assert out(forever.apply(messages((10**9, 2, "a", 2, False)), 10**9)) == [(-1, 1, "a", 1), (1, 2, "a", 2)]


# ---- texts that are as before

CELLS = st.sampled_from(["p", "q", "", None, UNAVAILABLE, UNAVAILABLE])
TEXTS = st.lists(
    st.tuples(st.sampled_from(["a", "b", None]), CELLS, CELLS, st.sampled_from([False, None, None, None, True])),
    max_size=30,
)


def filled(rows: list[Message]) -> list[laws.Row]:
    """A dict of what each key has now."""
    now: dict[Any, tuple[int, list[Any]]] = {}
    for pos, (k, t, u, deleted) in enumerate(rows, 1):
        if deleted and k is None:
            now.clear()
        elif deleted:
            now.pop(k, None)
        else:
            before = now[k][1] if k in now else [None, None]
            cells = zip((t, u), before, strict=True)
            now[k] = pos, [b if c == UNAVAILABLE and deleted is None else c for c, b in cells]
    return sorted(((7, pos, (k, *cells)) for k, (pos, cells) in now.items()), key=laws.order)


@pytest.mark.parametrize("order", ["position", "at"])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(rows=TEXTS, cuts=st.sets(st.integers(1, 30)), seed=st.integers(0, 9))
def test_what_is_untold_is_as_before_in_whatever_order_it_comes(
    order: Literal["position", "at"], rows: list[Message], cuts: set[int], seed: int
) -> None:
    operator = latest(by="k", order=order)
    kept, schema = operator.start([TEXT]), operator.schema([TEXT])
    all_ = [(7, pos, *r) for pos, r in enumerate(rows, 1)]
    arrival = np.random.default_rng(seed).permutation(len(all_)).tolist() if seed else range(len(all_))
    bounds = sorted({0, len(all_), *(c for c in cuts if c < len(all_))})
    parts = [messages(*(all_[i] for i in arrival[a:b]), schema=TEXT, seq=b) for a, b in pairwise(bounds)]
    found = laws.relation(accumulate([kept.apply(p) for p in parts], schema), schema)
    assert found == filled(rows)
    if rows:
        frame = accumulate(messages(*all_, schema=TEXT), TEXT)
        assert laws.relation(operator.recompute([frame.lazy()]).collect(), schema) == found


def text(kept: Any, *rows: Message) -> list[tuple[Any, ...]]:
    """(weight, pos, t, u) of each row that comes out."""
    d = kept.apply(messages(*rows, schema=TEXT))
    return [(w, p, t, u) for (w, p, _, t), u in zip(out(d), d.columns["u"].tolist(), strict=True)]


def test_a_message_that_comes_late_tells_what_the_newest_leaves_untold() -> None:
    kept = latest(by="k").start([TEXT])
    assert text(kept, (1, 1, "a", "p", "q", False)) == [(1, 1, "p", "q")]
    assert text(kept, (1, 9, "a", UNAVAILABLE, "r", None)) == [(-1, 1, "p", "q"), (1, 9, "p", "r")]
    assert text(kept, (1, 5, "a", "s", "t", False)) == [(-1, 9, "p", "r"), (1, 9, "s", "r")]
    assert text(kept, (1, 4, "a", "x", "x", False)) == []
    assert text(kept, (1, 6, "a", "s", "t", False)) == [], "it was so before"
    assert text(kept, (1, 7, "a", None, None, True)) == [(-1, 9, "s", "r"), (1, 9, None, "r")]
    assert text(kept, (1, 3, None, None, None, True)) == []
    assert text(kept, (1, 8, "a", "v", UNAVAILABLE, None)) == [(-1, 9, None, "r"), (1, 9, "v", "r")]
    assert text(kept, (1, 8, None, None, None, True)) == []


def test_all_keys_deleted_late_leave_what_is_untold_null() -> None:
    kept = latest(by="k").start([TEXT])
    text(kept, (1, 1, "a", "p", "q", False), (1, 9, "a", UNAVAILABLE, UNAVAILABLE, None))
    assert text(kept, (1, 5, None, None, None, True)) == [(-1, 9, "p", "q"), (1, 9, None, None)]
    assert text(kept, (1, 10, "a", UNAVAILABLE, "r", None)) == [(-1, 9, None, None), (1, 10, None, "r")]


def test_where_nothing_is_before_or_it_was_deleted_what_is_untold_is_null() -> None:
    kept = latest(by="k").start([TEXT])
    assert text(kept, (1, 1, "a", UNAVAILABLE, "q", None)) == [(1, 1, None, "q")]
    assert text(kept, (1, 2, "a", "", "", True), (1, 3, "a", UNAVAILABLE, "r", None))[1:] == [(1, 3, None, "r")]


def test_without_a_doubt_about_it_that_is_a_text_like_any_other() -> None:
    for order in ("position", "at"):
        kept = latest(by="k", order=order).start([TEXT])
        text(kept, (1, 1, "a", "p", "p", False))
        assert text(kept, (2, 2, "a", UNAVAILABLE, "p", False))[1] == (1, 2, UNAVAILABLE, "p")


def test_where_texts_were_told_is_kept_from_the_first_untold_one_on() -> None:
    kept = latest(by="k").start([TEXT])
    kept.apply(messages(*((1, n, f"k{n}", "t", "u", None) for n in range(100)), schema=TEXT))
    before = kept.size[1]
    text(kept, (1, 100, "k1", UNAVAILABLE, "q", None))
    assert 100 * 32 < kept.size[1] - before < 100 * 32 * 4


# ---- what is kept, and what is refused


def test_memory_is_bounded_while_keys_come_and_go() -> None:
    kept = latest(by="k").start([SCHEMA])
    sizes = []
    for n in range(1000):
        kept.apply(messages((n, 2 * n, f"k{n}", 1, False), (n, 2 * n + 1, f"k{n - 3}", 0, True)), n)
        sizes.append(kept.size)
    assert max(s[0] for s in sizes) <= 40
    assert max(s[1] for s in sizes[500:]) <= max(s[1] for s in sizes[:500])


def test_a_table_row_from_the_start_is_older_than_all() -> None:
    kept = latest(by="k", order="at").start([SCHEMA])
    kept.apply(messages((BEGINNING, 9, "a", 9, False)))
    assert out(kept.apply(messages((1, 1, "a", 1, False)))) == [(-1, 9, "a", 9), (1, 1, "a", 1)]


def test_messages_are_only_inserted() -> None:
    d = messages((1, 1, "a", 1, False))[0]
    d.weight[:] = -1
    with pytest.raises(
        ValueError, match=r"latest: a message has weight -1; expected messages, which are only ever inserted"
    ):
        latest(by="k").start([SCHEMA]).apply([d])


def test_parameters_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"latest: order is 'time'; expected 'position' or 'at'"):
        latest(by="k", order="time")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"latest: by: no column 'kk'; did you mean 'k'\?"):
        latest(by="kk").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"the column 'deleted' is None; expected a Boolean column"):
        latest(by="k").schema([{"k": STRING}])
    with pytest.raises(DefinitionError, match=r"expected the key without 'deleted'"):
        latest(by=["k", "deleted"]).schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"latest: keep is 'long': expected"):
        latest(by="k", keep="long")


def test_the_result_has_the_at_and_position_of_the_message() -> None:
    frame = pl.DataFrame({"k": ["a"], "x": [1], "deleted": [False], AT: [5], POS: [6]})
    assert latest(by="k").recompute([frame.lazy()]).collect().row(0, named=True) == {"k": "a", "x": 1, AT: 5, POS: 6}
