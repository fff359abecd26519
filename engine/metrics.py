"""The figures of a run as Prometheus metrics.

Times are exported as timestamps beside every lag, so that a dashboard computes `time() - last_over_time(x[1h])` and a
dead worker looks stale: Prometheus forgets the series of what it cannot scrape. Labels are names of sources, views,
models and features, never data.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib import metadata
from itertools import accumulate
from typing import Any, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engine.freshness import Standing, State
from engine.model import DELAYS
from engine.server import Answer
from engine.skew import KINDS

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
    "freshet_source_standing": (
        "gauge",
        ("source", "standing"),
        "1 for how the source stands: current, idle, reading, partition silent, refused, dead or backfill.",
    ),
    "freshet_source_last_change_timestamp_seconds": (
        "gauge",
        ("source",),
        "When a change last came (the start of the run before the first).",
    ),
    "freshet_source_last_heard_timestamp_seconds": (
        "gauge",
        ("source",),
        "When a record of any kind last came, a heartbeat too.",
    ),
    "freshet_view_rows": ("gauge", ("view",), "Rows the view holds."),
    "freshet_view_retractions": ("counter", ("view",), "Rows retracted."),
    "freshet_view_suspect_rows": ("gauge", ("view",), "Suspect rows the view holds; of views that are marked."),
    "freshet_view_suspect_inserts": (
        "counter",
        ("view",),
        "Suspect rows inserted; a row that becomes suspect is inserted anew.",
    ),
    "freshet_view_frontier_timestamp_seconds": (
        "gauge",
        ("view",),
        "Event time below which all changes are contained.",
    ),
    "freshet_view_lag_seconds": (
        "gauge",
        ("view", "scope"),
        "How far the view is behind its direct inputs (local), behind what its root sources have read (global), and "
        "behind the present, idle sources apart (present; only while it is followed).",
    ),
    "freshet_view_age_seconds": ("gauge", ("view",), "Present minus frontier; absent in a replay."),
    "freshet_view_target_lag_seconds": ("gauge", ("view",), "The lag that the view, or model, is to have at most."),
    "freshet_view_warn_after_seconds": ("gauge", ("view",), "The lag past which somebody is to look."),
    "freshet_view_error_after_seconds": ("gauge", ("view",), "The lag past which the view is not to be trusted."),
    "freshet_view_within_target_ratio": (
        "gauge",
        ("view",),
        "The share of the time since the present is followed in which the view was within its target lag.",
    ),
    "freshet_view_state": (
        "gauge",
        ("view", "state"),
        "1 for the present state of a view, or model: fresh, behind its target, past warn or error, idle, backfill or "
        "unknown.",
    ),
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
    "freshet_source_waiting_rows": (
        "gauge",
        ("source",),
        "Rows that were read and wait for their turn, because other sources are behind.",
    ),
    "freshet_source_unread_bytes": ("gauge", ("source",), "Bytes of its files behind what was handed on."),
    "freshet_consumer_lag_records": ("gauge", ("source",), "Offsets of its topics behind what was handed on."),
    "freshet_source_fetched_bytes": ("gauge", ("source",), "Bytes of its topics that were fetched and not read yet."),
    "freshet_read_ratio": ("gauge", (), "Share of what is there that has been read, by bytes and offsets."),
    "freshet_batches_in_flight": (
        "gauge",
        (),
        "Batches that were read and are not published; at 200 nothing more is read.",
    ),
    "freshet_step_calls": ("counter", ("step",), "How often a step was given something to do."),
    "freshet_step_seconds": (
        "counter",
        ("step",),
        "Seconds that a step of the dataflow took; saving its state counts apart.",
    ),
    "freshet_checkpoints": ("counter", (), "States saved that are known to be complete."),
    "freshet_checkpoint_interval_seconds": ("gauge", (), "How often state is to be saved: the setting epoch."),
    "freshet_checkpoint_duration_seconds": (
        "gauge",
        (),
        "Seconds that the steps took to save the newest state that is known to be complete.",
    ),
    "freshet_checkpoint_last_success_timestamp_seconds": (
        "gauge",
        (),
        "When the newest state that is known to be complete was saved; that is known once the next is being saved.",
    ),
    "freshet_messages_unanswered": ("gauge", (), "Messages that were sent to topics and are not acknowledged."),
    "freshet_broker_silent_seconds": ("gauge", (), "Seconds for which brokers that were asked have not answered."),
    "freshet_build_info": ("gauge", ("pipeline", "version", "python"), "1; what runs here."),
    "freshet_model_questions": ("counter", ("model",), "Questions asked."),
    "freshet_model_answers": ("counter", ("model",), "Answers received."),
    "freshet_labels_pending": ("gauge", ("model",), "Questions that wait for their answer."),
    "freshet_model_version_info": ("gauge", ("model", "version"), "1 for the version that serves."),
    "freshet_model_training_watermark_timestamp_seconds": (
        "gauge",
        ("model",),
        "When the newest example that the serving version has learnt became known.",
    ),
    "freshet_model_lag_seconds": (
        "gauge",
        ("model",),
        "Present minus when the newest example became known that the model has learnt.",
    ),
    "freshet_label_watermark_timestamp_seconds": ("gauge", ("model",), "When the newest label became known."),
    "freshet_label_delay_seconds": (
        "histogram",
        ("model",),
        "From the event time of a question until its label was known.",
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
    "freshet_skew_questions": (
        "counter",
        ("model",),
        "Questions that can be corrected no more: their features as served were compared with what they had become.",
    ),
    "freshet_skew_taken_back": ("counter", ("model",), "Of these, questions whose row had been taken back."),
    "freshet_skew_features": (
        "counter",
        ("model", "feature", "kind"),
        "Of these, features that had become others than were served: mismatch (another value), missing (null was "
        "served) or extra (a value was served that is none).",
    ),
    "freshet_skew_open_questions": ("gauge", ("model",), "Questions that can still be corrected."),
    "freshet_skew_open_taken_back": ("gauge", ("model",), "Of these, questions whose row is taken back for now."),
    "freshet_skew_open_features": (
        "gauge",
        ("model", "feature", "kind"),
        "Of these, features that are others for now than were served, as for freshet_skew_features.",
    ),
    "freshet_skew_smape": (
        "gauge",
        ("model", "feature"),
        "Of a number, how far what was served is from what it became: the mean of 2 abs(a-b) / (abs(a) + abs(b)), from "
        "0 to 2, over all questions whose row is there; null counts 0.",
    ),
    "freshet_guard_actions": (
        "counter",
        ("model", "guard", "action"),
        "Predictions on which a guard acted; void: on which it had no value to give.",
    ),
    "freshet_audits": ("counter", ("model", "verdict"), "Audits that ended: done or failed."),
    "freshet_audit_questions": ("counter", ("model",), "Questions that audits have looked at."),
    "freshet_audit_mismatches": (
        "counter",
        ("model", "feature"),
        "Features that were not served as a recompute gives them; (absent) and (later): questions without a row, or "
        "with what became known later. Other than 0 it is a bug.",
    ),
    "freshet_audit_interval_seconds": ("gauge", ("model",), "How often a model is audited."),
    "freshet_audit_last_end_timestamp_seconds": (
        "gauge",
        ("model",),
        "When an audit last ended (when the run caught up before the first).",
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


Sample = tuple[str, tuple[str, ...], Any]


def samples(figures: dict[str, Any], live: bool) -> Iterator[Sample]:
    """The values of all metrics: (name, label values, value); of a histogram the counts of its steps, and the sum."""
    for name, s in figures["sources"].items():
        yield "freshet_changes", (name,), s["changes"]
        yield "freshet_late", (name,), s["late"]
        yield "freshet_dead_letters", (name,), s["dead_letters"]
        yield "freshet_source_idle", (name,), float(s["idle"])
        for what, n in s["left"].items():
            yield LEFT[what], (name,), n
        if s["watermark"]:
            yield "freshet_source_watermark_timestamp_seconds", (name,), _seconds(s["watermark"])
        for standing in get_args(Standing):
            yield "freshet_source_standing", (name, standing), float(s["standing"] == standing)
        for what in ("change", "heard"):
            if s[f"last_{what}"]:
                yield f"freshet_source_last_{what}_timestamp_seconds", (name,), _seconds(s[f"last_{what}"])
    for name, v in figures["views"].items():
        yield "freshet_view_rows", (name,), v["rows"]
        yield "freshet_view_retractions", (name,), v["retracted"]
        if v["suspect"] is not None:
            yield "freshet_view_suspect_rows", (name,), v["suspect"]
            yield "freshet_view_suspect_inserts", (name,), v["suspect_inserted"]
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
        if v["lag_seconds"] is not None:
            yield "freshet_view_lag_seconds", (name, "present"), v["lag_seconds"]
        if v["within_target"] is not None:
            yield "freshet_view_within_target_ratio", (name,), v["within_target"]
        yield from _judged(name, v)
    for name, s in figures["steps"].items():
        yield "freshet_step_keys", (name,), s["keys"]
        yield "freshet_step_state_bytes", (name,), s["bytes"]
    yield from _working(figures["worker"])
    yield "freshet_build_info", (figures["pipeline"], metadata.version("freshet"), platform.python_version()), 1.0
    for name, m in figures["models"].items():
        yield "freshet_model_questions", (name,), m["questions"]
        yield "freshet_model_answers", (name,), m["answers"]
        yield "freshet_labels_pending", (name,), m["waiting"]
        if m["trained"] is not None:
            yield "freshet_model_training_watermark_timestamp_seconds", (name,), m["trained"] / 1e6
        if m["labelled"] is not None:
            yield "freshet_label_watermark_timestamp_seconds", (name,), m["labelled"] / 1e6
        if m["lag_seconds"] is not None:
            yield "freshet_model_lag_seconds", (name,), m["lag_seconds"]
        yield "freshet_label_delay_seconds", (name,), (m["label_delays"]["counts"], m["label_delays"]["seconds"])
        yield from _judged(name, m)
        yield "freshet_model_refused_predictions", (name,), m["refused"]
        yield "freshet_model_failed_predictions", (name,), m["failed"]
        for told, n in m["guards"].items():
            yield "freshet_guard_actions", (name, *told.split(": ")), n
        yield from _skewed(name, m["skew"])
        if m["audit"] is not None:
            yield from _audited(name, m["audit"])
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


def _judged(name: str, told: dict[str, Any]) -> Iterator[Sample]:
    """What is declared of the lag of a view or model, and how it stands."""
    for what in ("target_lag", "warn_after", "error_after"):
        if told[f"{what}_seconds"] is not None:
            yield f"freshet_view_{what}_seconds", (name,), told[f"{what}_seconds"]
    for state in get_args(State):
        yield "freshet_view_state", (name, state), float(told["state"] == state)


def _skewed(name: str, skew: dict[str, Any]) -> Iterator[Sample]:
    """How far what a model was served is from what it became."""
    for which, prefix in (("final", "freshet_skew"), ("open", "freshet_skew_open")):
        yield f"{prefix}_questions", (name,), skew[which]["questions"]
        yield f"{prefix}_taken_back", (name,), skew[which]["taken_back"]
        for feature, f in skew[which]["features"].items():
            for kind in KINDS:
                yield f"{prefix}_features", (name, feature, kind), f[kind]
    for feature, f in skew["all"]["features"].items():
        if f["smape"] is not None:
            yield "freshet_skew_smape", (name, feature), f["smape"]


LEFT = {
    "rows": "freshet_source_waiting_rows",
    "bytes": "freshet_source_unread_bytes",
    "records": "freshet_consumer_lag_records",
    "fetched": "freshet_source_fetched_bytes",
}
"""By what is counted the metric of how much is left to be read of a source."""


def _working(worker: dict[str, Any]) -> Iterator[Sample]:
    """The values of a process."""
    yield "freshet_batches_in_flight", (), worker["batches_in_flight"]
    yield "freshet_broker_silent_seconds", (), worker["brokers_silent_seconds"]
    yield "freshet_messages_unanswered", (), worker["unanswered_messages"]
    for step, spent in worker["steps"].items():
        yield "freshet_step_calls", (step,), spent["calls"]
        yield "freshet_step_seconds", (step,), spent["seconds"]
    if (saved := worker["checkpoints"]) is None:
        return
    yield "freshet_read_ratio", (), worker["read_ratio"]
    yield "freshet_checkpoint_interval_seconds", (), saved["epoch_seconds"]
    yield "freshet_checkpoints", (), saved["count"]
    if saved["at"] is not None:
        yield "freshet_checkpoint_duration_seconds", (), saved["seconds"]
        yield "freshet_checkpoint_last_success_timestamp_seconds", (), saved["at"]


def _audited(name: str, a: dict[str, Any]) -> Iterator[Sample]:
    """The values of what audits found."""
    yield "freshet_audits", (name, "done"), a["audits"] - a["failed"]
    yield "freshet_audits", (name, "failed"), a["failed"]
    yield "freshet_audit_questions", (name,), a["checked"]
    yield "freshet_audit_interval_seconds", (name,), a["every_seconds"]
    for feature, n in a["mismatches"].items():
        yield "freshet_audit_mismatches", (name, feature), n
    if a["at"] is not None:
        yield "freshet_audit_last_end_timestamp_seconds", (name,), a["at"]


def _refitted(name: str, m: dict[str, Any]) -> Iterator[Sample]:
    """The values of a deferred model."""
    for verdict in ("published", "refused", "failed"):
        yield "freshet_model_refreshes", (name, verdict), m["refreshes"][verdict]
    yield "freshet_model_fallen_back", (name,), m["refreshes"]["fallen_back"]
    yield "freshet_model_fitting", (name,), float(m["fitting"] is not None)
    if m["version"] is not None:
        yield "freshet_model_version_info", (name, m["version"]), 1.0
    for what in ("debt", "price"):
        if m["due"][what] is not None:
            yield f"freshet_model_{what}", (name,), m["due"][what]


class _Collector:
    def __init__(self, look: Callable[[], tuple[dict[str, Any], bool]]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        made: dict[str, Any] = {}
        for name, (kind, labels, text) in METRICS.items():
            made[name] = _FAMILIES[kind](name, text, labels=labels)
        for name, values, value in samples(*self._look()):
            if METRICS[name][0] == "histogram":
                counts, total = value
                steps = zip([*map(str, DELAYS), "+Inf"], accumulate(counts), strict=True)
                made[name].add_metric(list(values), list(steps), total)
            else:
                made[name].add_metric(list(values), value)
        return made.values()


_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


def exposition(look: Callable[[], tuple[dict[str, Any], bool]]) -> Callable[[], Answer]:
    """What answers `/metrics`. look: gives the figures and whether the run is live."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(look))
    ProcessCollector(registry=registry)
    return lambda: Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)


def _of_the_process() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """The metrics that the client library has of a process, as in `METRICS`; none where there is no /proc."""
    found = ProcessCollector(registry=None).collect()
    return {m.name: (m.type, (), m.documentation) for m in found}


def reference() -> str:
    """Every metric in a table, as Markdown: what docs/metrics.md is."""
    lines = [
        "# Metrics",
        "",
        "What `/metrics` of a worker exports; made by `python -m engine.metrics > docs/metrics.md`, from the code.",
        "",
        "Labels are names of sources, views, models, features and steps, never data. Times are seconds since 1970,",
        "and all else is in base units. A counter begins at 0 with the process or, if it is part of the state, goes on",
        "from there.",
        "",
        "| metric | type | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, (kind, labels, text) in {**METRICS, **_of_the_process()}.items():
        full = name + ("_total" if kind == "counter" else "")
        lines.append(f"| `{full}` | {kind} | {', '.join(labels)} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference())
