"""The grammar of refresh policies: each is a value, its text says it whole, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
from river import drift

from engine import DefinitionError, debt, deferred, immediate, on_query
from engine.policy import Debt, Deferred, parse


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (immediate(), "immediate()"),
        (deferred(every="90m", rows=5), "deferred(every='1h30m', rows=5)"),
        (deferred(target_lag="downstream", mode="auto"), "deferred(target_lag='downstream', mode='auto')"),
        (deferred(target_lag="5m"), "deferred(target_lag='5m')"),
        (
            deferred(drift=drift.ADWIN(delta=0.01), window="30d", mode="full"),
            "deferred(drift={'loss': ADWIN(delta=0.01)}, mode='full', window='30d')",
        ),
        (
            deferred(every="1d", drift={"temp": drift.PageHinkley(), "loss": drift.ADWIN()}),
            "deferred(every='1d', drift={'temp': PageHinkley(), 'loss': ADWIN()})",
        ),
        (deferred(debt=400), "deferred(debt=debt(price=400))"),
        (deferred(debt=debt(per_second=2.5), mode="full"), "deferred(debt=debt(per_second=2.5), mode='full')"),
        (on_query(32), "on_query(neighbours=32)"),
        (
            on_query(5, fit="learner", index="approximate", window="7d"),
            "on_query(neighbours=5, fit='learner', index='approximate', window='7d')",
        ),
    ],
)
def test_the_text_of_a_policy_says_it_whole(policy: Any, text: str) -> None:
    assert str(policy) == text
    again = parse(text)
    assert (str(again), again.definition) == (text, policy.definition)


def test_a_price_may_be_a_number_or_measured() -> None:
    assert parse("deferred(debt=400)").definition == deferred(debt=debt(400)).definition
    measured = parse("deferred(debt=debt(per_second=2))")
    assert isinstance(measured, Deferred)
    assert isinstance(measured.debt, Debt)
    assert (measured.debt.price, measured.debt.per_second) == (None, 2)


def test_definitions_tell_policies_apart() -> None:
    several = [
        immediate(),
        deferred(every="1h"),
        deferred(target_lag="1h"),
        deferred(rows=1),
        deferred(rows=1, mode="full"),
        deferred(drift=drift.ADWIN()),
        deferred(drift=drift.ADWIN(delta=0.1)),
        deferred(drift={"x": drift.ADWIN()}),
        deferred(debt=1),
        deferred(debt=debt(per_second=1)),
        on_query(1),
        on_query(1, fit="learner"),
    ]
    assert len({repr(p.definition) for p in several}) == len(several)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "expected every='1h' or rows=1000, target_lag='5m', drift= or debt="),
        ({"mode": "full"}, "expected every='1h'"),
        ({"rows": 0}, "rows is 0: expected more than 0"),
        ({"rows": True}, "rows is True: expected more than 0"),
        ({"every": "0s"}, "every is 0: expected more than 0"),
        ({"every": "soon"}, "deferred: every is 'soon': expected a timedelta or text such as '90s'"),
        ({"every": "1d", "mode": "partial"}, "mode is 'partial': expected 'incremental', 'full' or 'auto'"),
        ({"drift": 3}, "drift of 'loss' is 3: expected a detector of river.drift"),
        ({"debt": 0}, "price is 0 and per_second is None: expected one of them, a number above 0"),
        ({"debt": "much"}, "debt is 'much': expected a price"),
    ],
)
def test_a_deferred_policy_that_cannot_work_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        deferred(**given)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: on_query(0), "neighbours is 0: expected 1 or more"),
        (lambda: on_query(3, fit="global"), "fit is 'global'"),
        (lambda: on_query(3, index="fast"), "index is 'fast'"),
        (lambda: debt(1, per_second=1), "expected one of them"),
        (lambda: debt(float("nan")), "a number above 0"),
    ],
)
def test_other_policies_that_cannot_work_are_refused(make: Any, text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        make()
    assert text in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "daily",
        "deferred(every=1d)",
        "deferred(every='1d'",
        "deferred('1d')",
        "eval('1')",
        "__import__('os')",
        "deferred(drift=Nothing())",
        "deferred(every='1d', speed=3)",
        "debt(3)",
        "deferred(**{'rows': 1})",
        "deferred(every='never')",
    ],
)
def test_text_that_is_no_policy_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(DefinitionError, match=r"^refresh of 'late'"):
        parse(text, "refresh of 'late'")
