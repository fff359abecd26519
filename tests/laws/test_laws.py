"""The laws, over every operator in the catalogue and each of its samples."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import operators
from tests.laws import laws
from tests.laws.history import decode
from tests.laws.laws import Case
from tests.laws.oracle import QUERIES, oracle, query_of

CASES = [Case(operator, schemas, i) for c in operators.catalogue() for i, (operator, schemas) in enumerate(c.samples())]
IDS = [f"{c.operator.name}-{c.sample}" for c in CASES]
HISTORIES = st.binary(min_size=60, max_size=500)

every_case = pytest.mark.parametrize("case", CASES, ids=IDS)


@pytest.mark.parametrize("operator", operators.catalogue(), ids=lambda c: c.__name__)
def test_every_operator_has_samples_and_an_oracle(operator: type[operators.operator.Operator]) -> None:
    samples = operator.samples()
    assert len(samples) >= 2, f"{operator.__name__}.samples() gives {len(samples)} instances; expected at least 2"
    for i, (instance, schemas) in enumerate(samples):
        assert isinstance(instance, operator)
        assert len(schemas) == 1 + len(instance.others) + instance.timed
        assert not instance.keys or len(instance.keys) == len(schemas)
        query_of(Case(instance, schemas, i))


def test_no_oracle_is_left_over() -> None:
    assert set(QUERIES) == {c.__name__ for c in operators.catalogue()}


@every_case
@given(data=HISTORIES)
def test_one_definition(case: Case, data: bytes) -> None:
    laws.one_definition(case, decode(data, case.schemas), _rng(data), oracle)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.operator.reach is not None], ids=lambda c: f"{c.operator.name}-{c.sample}"
)
@settings(max_examples=15)
@given(data=HISTORIES)
def test_reach_is_enough(case: Case, data: bytes) -> None:
    laws.reach_is_enough(case, decode(data, case.schemas), _rng(data))


@every_case
@given(data=HISTORIES)
def test_cuts_do_not_show(case: Case, data: bytes) -> None:
    laws.cuts_do_not_show(case, decode(data, case.schemas), _rng(data))


@every_case
@given(data=HISTORIES)
def test_retracting_everything_leaves_nothing(case: Case, data: bytes) -> None:
    law = laws.deleted if case.has_messages else laws.undone
    law(case, decode(data, case.schemas), _rng(data))


@every_case
@given(data=HISTORIES)
def test_restart_does_not_show(case: Case, data: bytes) -> None:
    laws.restart_does_not_show(case, decode(data, case.schemas), _rng(data))


@every_case
@given(data=HISTORIES)
def test_order_of_arrival_does_not_show(case: Case, data: bytes) -> None:
    laws.arrival_does_not_show(case, decode(data, case.schemas), _rng(data))


@every_case
@given(data=HISTORIES)
def test_refreshes_do_not_show(case: Case, data: bytes) -> None:
    laws.refreshes_do_not_show(case, decode(data, case.schemas), _rng(data))


@every_case
@given(data=HISTORIES)
def test_forgetting_does_not_show(case: Case, data: bytes) -> None:
    laws.horizon_does_not_show(case, decode(data, case.schemas), _rng(data))


def _rng(data: bytes) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(data))
