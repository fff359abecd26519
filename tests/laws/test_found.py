"""Histories on which a law once failed, shrunk: each found a defect that must not come back."""

from __future__ import annotations

import numpy as np
import pytest

from operators.operator import Operator
from operators.project import Project
from operators.window import Window
from tests.laws import laws
from tests.laws.history import Change, History
from tests.laws.laws import Case
from tests.laws.oracle import oracle

FOUND: dict[str, tuple[type[Operator], int, list[Change]]] = {
    "a null before it hid the least integer of a window": (
        Window,
        1,
        [Change(1, 0, 1, 1000, 1, ("b", 1, None, 1.0)), Change(2, 0, 1, 1000, 2, ("b", 1, 1, 1.0))],
    ),
    "a null that came late before them hid the least integer of a window": (
        Window,
        1,
        [
            Change(1, 0, 1, 1_814_400_000_000, 4, ("a", 0, 2, -0.25)),
            Change(2, 0, 1, 1_801_800_000_000, 5, ("a", 0, 2, 1e15)),
            Change(3, 0, 1, 1_794_600_000_000, 7, ("a", 0, None, 1e15)),
        ],
    ),
    "a row that came alone was divided by a constant to another last bit than among others": (
        Project,
        1,
        [
            Change(1, 0, 1, 1000, 1, ("a", 1, 2.5, None, None)),
            Change(2, 0, 1, 1001, 2, ("a", 2, 0.1, None, None)),
            Change(2, 0, 1, 1001, 3, ("a", 3, 2.5, None, None)),
        ],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    operator, sample, changes = FOUND[name]
    made, schemas = operator.samples()[sample]
    case, history = Case(made, schemas, sample), History(schemas, changes)
    for seed in range(4):
        for law in (laws.cuts_do_not_show, laws.undone, laws.restart_does_not_show, laws.arrival_does_not_show):
            law(case, history, np.random.default_rng(seed))
        laws.one_definition(case, history, np.random.default_rng(seed), oracle)
