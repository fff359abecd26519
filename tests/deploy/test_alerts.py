"""The alerts, as promtool computes them: each fires when it should, and is quiet when it should be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.prometheus import FOLDER, promtool

RULES = [r for g in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for r in g["rules"]]
ALERTS = {r["alert"]: r for r in RULES if "alert" in r}
LIVE = {'freshet_view_phase{view="v", phase="live"}': "1x90"}
EPOCH = {"freshet_checkpoint_interval_seconds": "2x90"}
GONE = "0x29 stale"
"""A value once a minute, until the worker cannot be scraped any more."""

Series = dict[str, str]


class Case(NamedTuple):
    """Series, one value a minute; after `at` minutes the alert fires for these labels, or for none."""

    series: Series
    labels: str | None = None
    at: int = 60


def growing(name: str, by: float = 60, begin: float = 0) -> Series:
    return {name: f"{begin}{by:+}x90"}


OLD = {'freshet_view_frontier_timestamp_seconds{view="v"}': "0x90", 'freshet_view_rows{view="v"}': "9x90"}

CASES: dict[str, list[Case]] = {
    "FreshetWorkerGone": [
        Case({"up": "1x29 0x60"}, '{instance="w"}'),
        Case({'up{job="another"}': "1x90"}, "{}"),
        Case({"up": "1x90"}),
        Case({"up": "1x59 0x30"}),
    ],
    "FreshetRestarting": [
        Case(growing("process_start_time_seconds", 100), '{instance="w"}'),
        Case({"process_start_time_seconds": "100x45 200x45"}),
    ],
    "FreshetViewStale": [
        Case(OLD | LIVE, '{instance="w", view="v"}'),
        Case({'freshet_view_frontier_timestamp_seconds{view="v"}': GONE, 'freshet_view_rows{view="v"}': GONE},
             '{instance="w", view="v"}'),
        Case(OLD | {'freshet_view_phase{view="v", phase="live"}': "0x90"}),
        Case(OLD | {'freshet_view_refreshes_total{view="v", mode="full"}': "1x90"} | LIVE),
        Case(OLD | {'freshet_view_error_after_seconds{view="v"}': "86400x90"} | LIVE),
        Case(OLD | {'freshet_view_refreshes_total{view="v", mode="full"}': "1x90",
                    'freshet_view_error_after_seconds{view="v"}': "60x90"} | LIVE, '{instance="w", view="v"}'),
        Case({'freshet_view_frontier_timestamp_seconds{view="v"}': "0x1600", 'freshet_view_rows{view="v"}': "9x1600",
              'freshet_view_refreshes_total{view="v", mode="full"}': "1x1600"}, '{instance="w", view="v"}', 1600),
        Case(OLD | growing('freshet_view_frontier_timestamp_seconds{view="v"}') | LIVE),
    ],
    "FreshetSourceSilent": [
        Case(growing('freshet_source_watermark_timestamp_seconds{source="a"}')
             | {'freshet_source_watermark_timestamp_seconds{source="b"}': "0x90",
                'freshet_source_idle{source="b"}': "0x90"}, '{instance="w", source="b"}'),
        Case(growing('freshet_source_watermark_timestamp_seconds{source="a"}')
             | {'freshet_source_watermark_timestamp_seconds{source="b"}': "0x90",
                'freshet_source_idle{source="b"}': "1x90"}),
        Case({f'freshet_source_watermark_timestamp_seconds{{source="{s}"}}': "0x90" for s in "ab"}),
    ],
    "FreshetDeadLetters": [
        Case({'freshet_dead_letters_total{source="a"}': "0x55 3x30"}, '{instance="w", source="a"}'),
        Case({'freshet_dead_letters_total{source="a"}': "3x90"}),
    ],
    "FreshetLateChanges": [
        Case(growing('freshet_late_total{source="a"}', 2) | growing('freshet_changes_total{source="a"}', 100),
             '{instance="w", source="a"}'),
        Case(growing('freshet_late_total{source="a"}', 1) | growing('freshet_changes_total{source="a"}', 200)),
        Case({'freshet_late_total{source="a"}': "0x90", 'freshet_changes_total{source="a"}': "0x90"}),
    ],
    "FreshetModelNotFinite": [
        Case(growing('freshet_model_refused_predictions_total{model="m"}', 1), '{instance="w", model="m"}'),
        Case({'freshet_model_refused_predictions_total{model="m"}': "2x90"}),
    ],
    "FreshetModelFailing": [
        Case(growing('freshet_model_failed_predictions_total{model="m"}', 1), '{instance="w", model="m"}'),
        Case(growing('freshet_model_fallen_back_total{model="m"}', 1)
             | {'freshet_model_failed_predictions_total{model="m"}': "0x90"}, '{instance="w", model="m"}'),
        Case({'freshet_model_failed_predictions_total{model="m"}': "2x90",
              'freshet_model_fallen_back_total{model="m"}': "2x90"}),
    ],
    "FreshetModelOld": [
        Case({'freshet_model_training_watermark_timestamp_seconds{model="m"}': "0x3000",
              'freshet_model_fitting{model="m"}': "0x3000"}, '{instance="w", model="m"}', 2900),
        Case({'freshet_model_training_watermark_timestamp_seconds{model="m"}': "0x3000",
              'freshet_model_fitting{model="m"}': "0x3000", 'freshet_view_phase{view="v", phase="live"}': "0x3000"},
             at=2900),
        Case({'freshet_model_training_watermark_timestamp_seconds{model="m"}': "0x3000",
              'freshet_model_fitting{model="m"}': "0x3000"}, at=2000),
    ],
    "FreshetFitsFailing": [
        Case({'freshet_model_refreshes_total{model="m", verdict="failed"}': "0x30 1x60"}, '{instance="w", model="m"}'),
        Case(growing('freshet_model_refreshes_total{model="m", verdict="published"}', 1)
             | {'freshet_model_refreshes_total{model="m", verdict="failed"}': "1x90"}),
    ],
    "FreshetVersionsRefused": [
        Case({'freshet_model_refreshes_total{model="m", verdict="refused"}': "0x10 1x10 2x10 3x60",
              'freshet_model_refreshes_total{model="m", verdict="published"}': "4x90"}, '{instance="w", model="m"}'),
        Case({'freshet_model_refreshes_total{model="m", verdict="refused"}': "0x10 1x10 2x10 3x60",
              'freshet_model_refreshes_total{model="m", verdict="published"}': "4x20 5x90"}),
        Case({'freshet_model_refreshes_total{model="m", verdict="refused"}': "0x20 1x70"}),
    ],
    "FreshetConsistencyBroken": [
        Case({'freshet_audit_mismatches_total{model="m", feature="a"}': "0x30 1x60",
              'freshet_audit_mismatches_total{model="m", feature="b"}': "0x90"}, '{instance="w", model="m"}'),
        Case({'freshet_audit_mismatches_total{model="m", feature="a"}': "0x90",
              'freshet_audit_mismatches_total{model="m", feature="(absent)"}': "0x90"}),
    ],
    "FreshetAuditFailing": [
        Case({'freshet_audits_total{model="m", verdict="failed"}': "0x30 1x60"}, '{instance="w", model="m"}'),
        Case({'freshet_audits_total{model="m", verdict="failed"}': "1x90",
              'freshet_audits_total{model="m", verdict="done"}': "0+1x90"}),
        Case({'freshet_audit_last_end_timestamp_seconds{model="m"}': "0x90",
              'freshet_audit_interval_seconds{model="m"}': "600x90"}, '{instance="w", model="m"}'),
        Case(growing('freshet_audit_last_end_timestamp_seconds{model="m"}')
             | {'freshet_audit_interval_seconds{model="m"}': "600x90"}),
    ],
    "FreshetCheckpointOld": [
        Case({"freshet_checkpoint_last_success_timestamp_seconds": "0x90"} | EPOCH, '{instance="w"}'),
        Case({"process_start_time_seconds": "0x90"} | EPOCH, '{instance="w"}'),
        Case({"freshet_checkpoint_last_success_timestamp_seconds": GONE,
              "freshet_checkpoint_interval_seconds": "2x29 stale"}, '{instance="w"}'),
        Case(growing("freshet_checkpoint_last_success_timestamp_seconds") | EPOCH
             | {"process_start_time_seconds": "0x90"}),
        Case({"freshet_checkpoint_last_success_timestamp_seconds": "3000x90",
              "freshet_checkpoint_interval_seconds": "300x90"}),
    ],
    "FreshetCheckpointSlow": [
        Case({"freshet_checkpoint_duration_seconds": "1.2x90"} | EPOCH, '{instance="w"}'),
        Case({"freshet_checkpoint_duration_seconds": "0.9x90"} | EPOCH),
    ],
    "FreshetBrokerSilent": [
        Case({"freshet_broker_silent_seconds": "0x58 40x30"}, '{instance="w"}'),
        Case({"freshet_broker_silent_seconds": "20x90"}),
    ],
    "FreshetConsumerLagGrowing": [
        Case(growing('freshet_consumer_lag_records{source="a"}', 100, 11000), '{instance="w", source="a"}'),
        Case(growing('freshet_consumer_lag_records{source="a"}', -100, 90000)),
        Case(growing('freshet_consumer_lag_records{source="a"}', 100)),
    ],
    "FreshetBatchesInFlight": [
        Case({"freshet_batches_in_flight": "200x90"}, '{instance="w"}'),
        Case({"freshet_batches_in_flight": "200x58 9x30"}),
    ],
}  # fmt: skip


def named(series: str) -> str:
    """A series with the labels that Prometheus adds, where it has none of its own."""
    name, _, labels = series.partition("{")
    more = [label for label in labels.rstrip("}").split(", ") if label]
    own = [] if any(label.startswith("job=") for label in more) else ['job="freshet"']
    return f"{name}{{{', '.join([*own, 'instance=' + chr(34) + 'w' + chr(34), *more])}}}"


def as_promtool_has_it(alert: str, case: Case) -> dict[str, Any]:
    """A case as one of the tests of promtool: for which labels the alert fires."""
    firing = f'count by (instance, source, view, model) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    expected = [] if case.labels is None else [{"labels": case.labels, "value": 1}]
    return {
        "interval": "1m",
        "input_series": [{"series": named(s), "values": v} for s, v in case.series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{case.at}m", "exp_samples": expected}],
    }


def test_every_alert_has_cases_in_which_it_fires_and_in_which_it_does_not() -> None:
    assert set(CASES) == set(ALERTS)
    for name, cases in CASES.items():
        assert {c.labels is None for c in cases} == {True, False}, name


@pytest.mark.parametrize("alert", sorted(CASES))
def test_an_alert_fires_when_it_should(alert: str, tmp_path: Path) -> None:
    told = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [as_promtool_has_it(alert, case) for case in CASES[alert]],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(told))
    promtool("test", "rules", tmp_path / "test.yml")


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_says_what_it_means_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "meaning", "action"}
    told = {n for c in CASES[alert] if c.labels for n in re.findall(r"(\w+)=", c.labels)}
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= told, "labels that the alert does not have"


def test_rules_and_configuration_are_what_prometheus_reads(tmp_path: Path) -> None:
    promtool("check", "rules", FOLDER / "alerts.yml")
    told = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = told["scrape_configs"]
    job["authorization"]["credentials_file"] = str(tmp_path / "token")  # promtool looks whether it is there
    (tmp_path / "token").write_text("x" * 16)
    for name in told["rule_files"]:
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(told))
    promtool("check", "config", tmp_path / "prometheus.yml")
