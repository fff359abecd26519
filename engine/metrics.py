"""The figures of a run as Prometheus metrics.

Times are exported as timestamps beside every lag, so that a dashboard computes `time() - x` and a dead worker looks
stale, not frozen. Labels are names of sources, views and models, never data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engine.server import Answer

METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "freshet_changes": ("counter", ("source",), "Changes read."),
    "freshet_late": ("counter", ("source",), "Changes that came later than the lateness of their source."),
    "freshet_dead_letters": ("counter", ("source",), "Records that could not be decoded or were refused."),
    "freshet_source_watermark_timestamp_seconds": (
        "gauge",
        ("source",),
        "Event time below which no change is expected.",
    ),
    "freshet_source_idle": ("gauge", ("source",), "1 when the source is idle and holds back no watermark."),
    "freshet_view_rows": ("gauge", ("view",), "Rows the view holds."),
    "freshet_view_retractions": ("counter", ("view",), "Rows retracted."),
    "freshet_view_frontier_timestamp_seconds": (
        "gauge",
        ("view",),
        "Event time below which all changes are contained.",
    ),
    "freshet_view_lag_seconds": (
        "gauge",
        ("view", "scope"),
        "How far the view is behind its direct inputs (local) and behind what its root sources have read (global).",
    ),
    "freshet_view_age_seconds": ("gauge", ("view",), "Present minus frontier; absent in a replay."),
    "freshet_view_pending_changes": ("gauge", ("view",), "Changes read that the view does not contain yet."),
    "freshet_view_refreshes": ("counter", ("view", "mode"), "Refreshes of a deferred view."),
    "freshet_view_refresh_seconds": (
        "counter",
        ("view", "mode"),
        "Seconds that the refreshes of a deferred view took.",
    ),
    "freshet_view_refresh_predicted_seconds": (
        "gauge",
        ("view", "mode"),
        "What the last refresh of a deferred view was expected to take in each mode.",
    ),
    "freshet_view_phase": ("gauge", ("view", "phase"), "1 for the present phase: backfill or live."),
    "freshet_step_keys": ("gauge", ("step",), "Keys held by an operator."),
    "freshet_step_state_bytes": ("gauge", ("step",), "Bytes of state held by an operator."),
    "freshet_model_questions": ("counter", ("model",), "Questions asked."),
    "freshet_model_answers": ("counter", ("model",), "Answers received."),
    "freshet_labels_pending": ("gauge", ("model",), "Questions that wait for their answer."),
    "freshet_model_version_info": ("gauge", ("model", "version"), "1 for the version that serves."),
    "freshet_model_training_watermark_timestamp_seconds": (
        "gauge",
        ("model",),
        "When the newest example that the serving version has learnt became known.",
    ),
    "freshet_model_refreshes": (
        "counter",
        ("model", "verdict"),
        "Versions fitted, by what became of them: published, refused or failed.",
    ),
    "freshet_model_fitting": ("gauge", ("model",), "1 while a version is being fitted."),
    "freshet_model_fallen_back": (
        "counter",
        ("model",),
        "Predictions by the version before, because the one that serves failed.",
    ),
    "freshet_model_debt": (
        "gauge",
        ("model",),
        "What staying with the serving version has cost, in units of the loss.",
    ),
    "freshet_model_price": ("gauge", ("model",), "The debt at which a new version is fitted."),
    "freshet_model_examples_held": ("gauge", ("model",), "Examples that a model on query looks among."),
    "freshet_model_fewer_neighbours": (
        "counter",
        ("model",),
        "Questions answered from fewer examples than there should be.",
    ),
    "freshet_model_refused_predictions": ("counter", ("model",), "Predictions that were not finite, and not served."),
    "freshet_model_failed_predictions": ("counter", ("model",), "Questions at which the learner failed."),
    "freshet_guard_actions": (
        "counter",
        ("model", "guard", "action"),
        "Predictions on which a guard acted; void: on which it had no value to give.",
    ),
    "freshet_expectation_failures": (
        "counter",
        ("relation", "expectation", "severity"),
        "Rows that came and did not meet what is expected.",
    ),
    "freshet_expectation_failing": (
        "gauge",
        ("relation", "expectation", "severity"),
        "Rows there now that do not meet it, the quarantine included; absent when it was not declared from the start.",
    ),
}
"""Every metric: its type, labels and meaning; counters are exported with the suffix `_total`."""


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()


def samples(figures: dict[str, Any], live: bool) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """The values of all metrics: (name, label values, value)."""
    for name, s in figures["sources"].items():
        yield "freshet_changes", (name,), s["changes"]
        yield "freshet_late", (name,), s["late"]
        yield "freshet_dead_letters", (name,), s["dead_letters"]
        yield "freshet_source_idle", (name,), float(s["idle"])
        if s["watermark"]:
            yield "freshet_source_watermark_timestamp_seconds", (name,), _seconds(s["watermark"])
    for name, v in figures["views"].items():
        yield "freshet_view_rows", (name,), v["rows"]
        yield "freshet_view_retractions", (name,), v["retracted"]
        yield "freshet_view_pending_changes", (name,), v["pending_changes"]
        for mode, m in (v["refresh"] or {}).get("ways", {}).items():
            yield "freshet_view_refreshes", (name, mode), m["refreshes"]
            yield "freshet_view_refresh_seconds", (name, mode), m["seconds"]
            if m["predicted_seconds"] is not None:
                yield "freshet_view_refresh_predicted_seconds", (name, mode), m["predicted_seconds"]
        for phase in ("backfill", "live"):
            yield "freshet_view_phase", (name, phase), float((phase == "live") == live)
        if v["frontier"]:
            yield "freshet_view_frontier_timestamp_seconds", (name,), _seconds(v["frontier"])
            yield "freshet_view_lag_seconds", (name, "local"), v["local_lag_seconds"]
            yield "freshet_view_lag_seconds", (name, "global"), v["global_lag_seconds"]
        if v["age_seconds"] is not None:
            yield "freshet_view_age_seconds", (name,), v["age_seconds"]
    for name, s in figures["steps"].items():
        yield "freshet_step_keys", (name,), s["keys"]
        yield "freshet_step_state_bytes", (name,), s["bytes"]
    for name, m in figures["models"].items():
        yield "freshet_model_questions", (name,), m["questions"]
        yield "freshet_model_answers", (name,), m["answers"]
        yield "freshet_labels_pending", (name,), m["waiting"]
        yield "freshet_model_refused_predictions", (name,), m["refused"]
        yield "freshet_model_failed_predictions", (name,), m["failed"]
        for told, n in m["guards"].items():
            yield "freshet_guard_actions", (name, *told.split(": ")), n
        if "refreshes" in m:
            yield from _refitted(name, m)
        if "held" in m:
            yield "freshet_model_examples_held", (name,), m["held"]
            yield "freshet_model_fewer_neighbours", (name,), m["fewer"]
    for e in figures["expectations"]:
        labels = e["relation"], e["expectation"], e["severity"]
        yield "freshet_expectation_failures", labels, e["failures"]
        if e["failing"] is not None:
            yield "freshet_expectation_failing", labels, e["failing"]


def _refitted(name: str, m: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """The values of a deferred model."""
    for verdict in ("published", "refused", "failed"):
        yield "freshet_model_refreshes", (name, verdict), m["refreshes"][verdict]
    yield "freshet_model_fallen_back", (name,), m["refreshes"]["fallen_back"]
    yield "freshet_model_fitting", (name,), float(m["fitting"] is not None)
    if m["version"] is not None:
        yield "freshet_model_version_info", (name, m["version"]), 1.0
    if m["trained"] is not None:
        yield "freshet_model_training_watermark_timestamp_seconds", (name,), m["trained"] / 1e6
    for what in ("debt", "price"):
        if m["due"][what] is not None:
            yield f"freshet_model_{what}", (name,), m["due"][what]


class _Collector:
    def __init__(self, look: Callable[[], tuple[dict[str, Any], bool]]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        made: dict[str, Any] = {}
        for name, (kind, labels, text) in METRICS.items():
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            made[name] = family(name, text, labels=labels)
        for name, values, value in samples(*self._look()):
            made[name].add_metric(list(values), value)
        return made.values()


def exposition(look: Callable[[], tuple[dict[str, Any], bool]]) -> Callable[[], Answer]:
    """What answers `/metrics`. look: gives the figures and whether the run is live."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(look))
    return lambda: Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
