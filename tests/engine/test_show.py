"""What the summary of a run says."""

from __future__ import annotations

import io
import re
from typing import Any

import polars as pl
from rich.console import Console
from river import linear_model

import operators as op
from engine import Pipeline, deferred, immediate, on_query
from engine.model import kept
from engine.policy import Policy
from engine.show import freshness_of, summary_of


def summary(
    policies: dict[str, Policy],
    more: dict[str, Any] | None = None,
    expectations: list[dict[str, Any]] | None = None,
) -> str:
    """The summary of a run in which models under these policies were asked nothing, but for what `more` says."""
    p = Pipeline("p")
    asked = p.source("asked", key="id", at="at", schema={"id": int, "at": pl.Datetime, "a": float})
    told = p.source("told", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float})
    questions = p.view("questions", asked, op.project("id", "a"))
    for name, policy in policies.items():
        learner = linear_model.LinearRegression()
        p.model(name, questions, answers=told, label="y", learner=learner, refresh=policy, wait="1d")
    figures = {"changes": 0, "dead_letters": 0, "late": 0, "sources": {}, "views": {}, "outputs": {}}
    models = {n: {**kept(m.spec, m.refresh).figures(), **(more or {}).get(n, {})} for n, m in p.models.items()}
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(summary_of(p, {**figures, "expectations": expectations or [], "models": models}, 1.0, stopped=False))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def section(text: str, title: str) -> list[str]:
    """The lines below a title, as far as the next empty one."""
    return text.split(f"{title}\n")[1].split("\n\n")[0].splitlines()


def test_models_that_are_refreshed_or_look_examples_up_are_in_the_table_of_refreshes() -> None:
    text = summary({"at_once": immediate(), "daily": deferred(every="1d"), "near": on_query(32)})
    shown = [line.split()[:2] for line in section(text, "Refreshes of models")]
    assert shown[1:] == [["daily", "deferred(every='1d')"], ["near", "on_query(neighbours=32)"]]


def test_without_such_a_model_there_is_no_table_of_refreshes() -> None:
    text = summary({"at_once": immediate()})
    assert "Quality of what was served" in text
    assert "Refreshes of models" not in text


def test_a_warning_says_how_many_questions_were_answered_from_fewer_examples_than_there_should_be() -> None:
    policies: dict[str, Policy] = {"late": on_query(32), "near": on_query(3), "at_once": immediate()}
    text = summary(policies, {"late": {"fewer": 32, "questions": 1200}})
    warned = [line for line in text.splitlines() if line.startswith("warning:")]
    assert warned == ["warning: late: 32 of 1,200 questions were answered from fewer than 32 examples"]


def test_features_that_became_others_than_were_served_are_in_a_table_of_their_own() -> None:
    assert SKEW not in summary({"m": immediate()})
    same = {"mismatch": 0, "missing": 0, "extra": 0, "smape": 0.0}
    features = {
        "n": {**same, "mismatch": 30, "smape": 0.25},
        "fixed": same,
        "place": {**same, "extra": 2, "smape": None},
    }
    skew = {"all": {"questions": 1200, "taken_back": 7, "features": features}}
    text = summary({"m": immediate()}, {"m": {"skew": skew}})
    assert [" ".join(line.split()) for line in section(text, SKEW)[1:]] == [
        "m, n 1,200 30 0 0 0.2500",
        "m, place 1,200 0 0 2 -",
        "m: the rows of 7 questions were taken back after they had been asked",
    ]


SKEW = "Served otherwise than it is now"


def test_expectations_that_were_not_met_are_in_a_table_of_their_own() -> None:
    told = {"relation": "asked", "severity": "warn", "failures": 0, "failing": 0}
    some = [
        {**told, "expectation": "not_null(a)"},
        {**told, "expectation": "between(a, 0, 1)", "failures": 1200, "failing": 3},
        {**told, "expectation": "odd", "severity": "stop", "failures": 1, "failing": None},
    ]
    assert [" ".join(line.split()) for line in section(summary({}, expectations=some), TITLE)] == [
        "relation, expectation severity rows that came there now",
        "asked, between(a, 0, 1) warn 1,200 3",
        "asked, odd stop 1 -",
    ]
    assert TITLE not in summary({}, expectations=some[:1])


TITLE = "Expectations that were not met"


def test_what_audits_found_is_shown() -> None:
    audit = {"audits": 3, "failed": 1, "checked": 1200, "mismatches": {"a": 2, "(absent)": 5}}
    text = summary({"m": immediate(), "n": immediate()}, {"m": {"audit": audit}})
    row = next(line for line in section(text, "Audits: served against recomputed") if line.split()[:1] == ["m"])
    assert row.split() == ["m", "3", "1", "1,200", "7"]
    assert "Audits" not in summary({"m": immediate()})


def test_how_fresh_views_are_fits_a_terminal_and_a_bound_that_none_has_is_no_column() -> None:
    bounds = dict.fromkeys(("target_lag_seconds", "warn_after_seconds", "error_after_seconds"))
    view = {**bounds, "lag_seconds": 87_786_123.0, "state": "error", "pending_changes": 3,
            "causes": {"beats": "reading"}, "frontier": "2024-02-14T23:57:00.000000Z"}  # fmt: skip
    told: dict[str, Any] = {"pipeline": "p", "phase": "live", "time": "2026-01-01T00:00:00.000000Z", "models": {}}

    def shown(view: dict[str, Any]) -> list[list[str]]:
        console = Console(width=80, file=io.StringIO(), color_system="truecolor", force_terminal=True)
        console.print(freshness_of({**told, "views": {"beats.quarantine": view}}))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "\x1b[1;31m" in text, "an error is red"
        return [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]

    title, heads, row = shown(view)
    assert title == ["p,", "live,", "at", "2026-01-01T00:00:00Z"]
    assert heads == ["view", "state", "lag", "pending", "frontier", "because", "of"]
    assert row == ["beats.quarantine", "error", "1,016.0", "d", "3", "2024-02-14", "23:57", "beats:", "reading"]
    assert "warn after" in " ".join(shown({**view, "warn_after_seconds": 60.0})[1])
