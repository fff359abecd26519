"""Cutting a batch for shards: each key to its shard, and what concerns every key to all of them."""

from __future__ import annotations

import numpy as np
import pytest

from engine.batch import Batch
from engine.plan import Stage
from engine.view import Split
from operators.delta import BOOL, INT, STRING, Delta, Schema, to_column


@pytest.mark.parametrize(
    ("schema", "rows"),
    [
        ({"k": INT}, [(1,), (2,), (None,), (3,)]),
        ({"k": STRING}, [("a",), ("b",), (None,), ("c",)]),
        ({"k": STRING, "n": INT}, [("a", 1), ("b", None), (None, None), (None, 2)]),
    ],
)
def test_a_truncation_goes_to_every_shard_and_every_other_row_to_one(
    schema: Schema, rows: list[tuple[object, ...]]
) -> None:
    n = np.arange(4)
    columns = {name: to_column([r[i] for r in rows], t) for i, (name, t) in enumerate(schema.items())}
    columns["deleted"] = to_column([False, True, True, True], BOOL)
    delta = Delta(columns, np.ones(4, np.int64), n, n, n)
    split = Split(Stage("s", (), {"t": tuple(schema)}, ()), shards=3)
    parts = split(Batch(1, {"t": delta}, {}, {}, {}))
    assert len(parts) == 3
    assert all(2 in p.deltas["t"].seq for _, p in parts)
    assert sorted(s for _, p in parts for s in p.deltas["t"].seq if s != 2) == [0, 1, 3]
    assert all((np.diff(p.deltas["t"].seq) > 0).all() for _, p in parts)
