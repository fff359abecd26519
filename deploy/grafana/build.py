"""The dashboards of Grafana: `python -m deploy.grafana.build` writes them to `dashboards/`.

A panel is what it asks Prometheus, and what that means to whoever looks. `$instance` is the worker, of the job
`freshet`. When a worker cannot be scraped Prometheus forgets its series at once; so ages are computed from what was
last known, within an hour, and go on growing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).with_name("dashboards")
SCHEMA = 41
"""The version of the format of dashboards, that of Grafana 12."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WHICH = 'instance=~"$instance"'


class Panel(NamedTuple):
    """A graph, or with `kind` "stat" the last value.

    says: what it means, and what to do. asks: expressions, each with the legend of its series. unit: as Grafana names
    it. width: of 24 columns. bad: the value from which it is red.
    """

    title: str
    says: str
    asks: Sequence[tuple[str, str]]
    unit: str = "short"
    width: int = 12
    kind: str = "timeseries"
    bad: float | None = None
    stacked: bool = False


class Dashboard(NamedTuple):
    """Panels under headings. of: the variable that it is about, and a metric that has it as a label."""

    uid: str
    title: str
    says: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    of: tuple[str, str] | None = None


def rate(name: str, more: str = "", by: str = "") -> str:
    """How much a counter grows in a second. by: labels that are kept."""
    found = f"rate({name}{{{WHICH}{more}}}[$__rate_interval])"
    return f"sum by ({by}) ({found})" if by else found


def age(name: str, more: str = "") -> str:
    """How long ago a time was that a metric tells, or told last."""
    return f"time() - last_over_time({name}{{{WHICH}{more}}}[1h])"


def now(name: str, more: str = "") -> str:
    """The value of a metric."""
    return f"{name}{{{WHICH}{more}}}"


VIEW, MODEL = ', view=~"$view"', ', model=~"$model"'
OF_VIEW = ', step=~"$view([.].*)?"'

OVERVIEW = Dashboard(
    "freshet-overview",
    "Freshet: overview",
    "Whether all views are fresh, and what flows. For one of them go to the dashboard of the view or model.",
    [
        (
            "Now",
            [
                Panel(
                    "Workers that answer",
                    "Workers that Prometheus can scrape. When one is missing see its log and exit code.",
                    [('sum(up{job="freshet", instance=~"$instance"})', "workers")],
                    width=4,
                    kind="stat",
                ),
                Panel(
                    "Alerts",
                    "Alerts on Freshet that fire. Each says in Prometheus, under Alerts, what it means and what to do.",
                    [('count(ALERTS{alertname=~"Freshet.*", alertstate="firing"}) or vector(0)', "firing")],
                    width=4,
                    kind="stat",
                    bad=1,
                ),
                Panel(
                    "Oldest view",
                    "The age of the view whose frontier is furthest behind the present. See below which one it is.",
                    [(f"max({age('freshet_view_frontier_timestamp_seconds')})", "age")],
                    "s",
                    4,
                    "stat",
                ),
                Panel(
                    "Changes",
                    "Changes that are read from all sources in a second. 0 when all is read, or nothing comes.",
                    [(f"sum({rate('freshet_changes_total')})", "changes")],
                    "cps",
                    4,
                    "stat",
                ),
                Panel(
                    "Dead letters",
                    "Records of the last hour that could not be read. Read the reasons in dead_letters.jsonl or its "
                    "topic.",
                    [(f"sum(increase(freshet_dead_letters_total{{{WHICH}}}[1h]))", "records")],
                    "short",
                    4,
                    "stat",
                    bad=1,
                ),
                Panel(
                    "What runs",
                    "The pipeline and version of each worker. After an upgrade all should say the same.",
                    [(now("freshet_build_info"), "{{pipeline}} {{version}}, Python {{python}}")],
                    width=4,
                    kind="stat",
                ),
            ],
        ),
        (
            "Freshness",
            [
                Panel(
                    "Age of views",
                    "The present less the frontier: everything older is contained. A line that climbs with the clock "
                    "has stopped: its sources are silent, or the worker is behind or gone. The steps of a saw are "
                    "refreshes.",
                    [(age("freshet_view_frontier_timestamp_seconds"), "{{view}}")],
                    "s",
                ),
                Panel(
                    "Lag of views",
                    "How far a view is behind what its sources have read. If this is small and the age is large, the "
                    "sources give nothing newer; if this is large, the view waits for its refresh, or work is slow.",
                    [(now("freshet_view_lag_seconds", ', scope="global"'), "{{view}}")],
                    "s",
                ),
                Panel(
                    "Changes pending",
                    "Changes that were read and a view does not contain yet. A deferred view collects them until it "
                    "is due; of an immediate one there should be few.",
                    [(now("freshet_view_pending_changes"), "{{view}}")],
                ),
                Panel(
                    "Live",
                    "1 when a view follows the present, 0 while history is caught up with. Ages mean little before "
                    "that.",
                    [(now("freshet_view_phase", ', phase="live"'), "{{view}}")],
                ),
            ],
        ),
        (
            "Sources",
            [
                Panel(
                    "Changes by source",
                    "Changes read in a second. A source that falls to 0 while others go on holds back what depends on "
                    "it.",
                    [(rate("freshet_changes_total"), "{{source}}")],
                    "cps",
                    8,
                ),
                Panel(
                    "Late changes",
                    "Changes in a second that came later than the lateness of their source: in no view, but kept in "
                    "the late output. Give the source a greater lateness if that is usual.",
                    [(rate("freshet_late_total"), "{{source}}")],
                    "cps",
                    8,
                ),
                Panel(
                    "Dead letters by source",
                    "Records in a second that could not be read. Mend the producer or the schema, and send them again.",
                    [(rate("freshet_dead_letters_total"), "{{source}}")],
                    "cps",
                    8,
                ),
                Panel(
                    "Age of watermarks",
                    "The present less the event time below which nothing more is expected. The oldest holds back all "
                    "views that depend on it, unless the source is idle.",
                    [(age("freshet_source_watermark_timestamp_seconds"), "{{source}}")],
                    "s",
                ),
                Panel(
                    "Idle sources",
                    "1 when a source has been silent for its idle_after and holds back no watermark. Expected of "
                    "sources that rarely have anything to say; of others see whether the producer lives.",
                    [(now("freshet_source_idle"), "{{source}}")],
                ),
            ],
        ),
    ],
)

ONE_VIEW = Dashboard(
    "freshet-view",
    "Freshet: a view",
    "How fresh a view is, what it holds, and what it costs to keep.",
    [
        (
            "Freshness",
            [
                Panel(
                    "Age, and its limit",
                    "The present less the frontier, and the age at which FreshetViewStale fires: the recording rule "
                    "freshet:view_stale_after_seconds, in which a view can have a limit of its own.",
                    [
                        (age("freshet_view_frontier_timestamp_seconds", VIEW), "{{view}}"),
                        (now("freshet:view_stale_after_seconds", VIEW), "{{view}}: limit"),
                    ],
                    "s",
                ),
                Panel(
                    "Lag",
                    "Behind its direct inputs (local), and behind what its root sources have read (global). A global "
                    "lag without a local one comes from a view below it.",
                    [(now("freshet_view_lag_seconds", VIEW), "{{view}}: {{scope}}")],
                    "s",
                ),
                Panel(
                    "Changes pending",
                    "Changes that were read and the view does not contain yet; a refresh takes in all of them.",
                    [(now("freshet_view_pending_changes", VIEW), "{{view}}")],
                ),
                Panel(
                    "Refreshes",
                    "Refreshes of a deferred view in a second, by mode. None: changes are not due yet, or nothing "
                    "comes.",
                    [(rate("freshet_view_refreshes_total", VIEW), "{{view}}: {{mode}}")],
                    "cps",
                ),
            ],
        ),
        (
            "What it holds",
            [
                Panel(
                    "Rows",
                    "Rows that the view holds. If they grow for ever, see whether a window or expiry should bound "
                    "them.",
                    [(now("freshet_view_rows", VIEW), "{{view}}")],
                ),
                Panel(
                    "Retractions",
                    "Rows taken back in a second: corrections of late or changed rows. Many of them cost every reader; "
                    "deferring the view lets them cancel out.",
                    [(rate("freshet_view_retractions_total", VIEW), "{{view}}")],
                    "cps",
                ),
                Panel(
                    "Keys of its steps",
                    "Keys that its operators hold. State grows with them, and so does the time to save it.",
                    [(now("freshet_step_keys", OF_VIEW), "{{step}}")],
                ),
                Panel(
                    "State of its steps",
                    "Bytes that its operators hold. If they grow for ever, a window or a wait is too long.",
                    [(now("freshet_step_state_bytes", OF_VIEW), "{{step}}")],
                    "bytes",
                ),
            ],
        ),
        (
            "What it costs",
            [
                Panel(
                    "Time of its steps",
                    "Seconds that its operators take in a second: the share of one processor.",
                    [(rate("freshet_step_seconds_total", OF_VIEW, "step"), "{{step}}")],
                    "percentunit",
                    8,
                    stacked=True,
                ),
                Panel(
                    "Time of refreshes",
                    "Seconds in a second that the refreshes of a deferred view take, by mode.",
                    [(rate("freshet_view_refresh_seconds_total", VIEW), "{{view}}: {{mode}}")],
                    "percentunit",
                    8,
                ),
                Panel(
                    "What a refresh is expected to take",
                    "Of a deferred view, for the last refresh, in each mode that can be taken; `auto` takes the "
                    "lesser.",
                    [(now("freshet_view_refresh_predicted_seconds", VIEW), "{{view}}: {{mode}}")],
                    "s",
                    8,
                ),
            ],
        ),
    ],
    ("view", "freshet_view_rows"),
)

ONE_MODEL = Dashboard(
    "freshet-model",
    "Freshet: a model",
    "What a model is asked and told, which version answers, and how old what it has learnt is.",
    [
        (
            "Questions and answers",
            [
                Panel(
                    "Questions and answers",
                    "In a second. Answers that stay away while questions come: the source of labels is silent or late.",
                    [
                        (rate("freshet_model_questions_total", MODEL), "{{model}}: questions"),
                        (rate("freshet_model_answers_total", MODEL), "{{model}}: answers"),
                    ],
                    "cps",
                    8,
                ),
                Panel(
                    "Labels pending",
                    "Questions that wait for their answer. It levels off at what comes within `wait`; if it grows, "
                    "answers find no question: see their key.",
                    [(now("freshet_labels_pending", MODEL), "{{model}}")],
                    width=8,
                ),
                Panel(
                    "Predictions that failed",
                    "In a second: not finite and not served, no answer because the learner raised an error, or "
                    "answered by the version before. All should be 0; otherwise roll back (freshet rollback) and mend "
                    "the learner.",
                    [
                        (rate("freshet_model_refused_predictions_total", MODEL), "{{model}}: not finite"),
                        (rate("freshet_model_failed_predictions_total", MODEL), "{{model}}: failed"),
                        (rate("freshet_model_fallen_back_total", MODEL), "{{model}}: by the version before"),
                    ],
                    "cps",
                    8,
                ),
                Panel(
                    "Guards",
                    "Predictions in a second on which a guard acted, by guard and action; void: it had no value to "
                    "give. A guard that suddenly acts often says that questions, or the model, have changed.",
                    [(rate("freshet_guard_actions_total", MODEL), "{{model}}: {{guard}}, {{action}}")],
                    "cps",
                ),
                Panel(
                    "Features served otherwise than they became",
                    "Of the questions that can be corrected no more, in a second: another value (mismatch), a value "
                    "where null was served (missing), null where a value was (extra). Late rows do that; if it grows, "
                    "a source of the features has become later. See also the frontiers on the predictions.",
                    [(rate("freshet_skew_features_total", MODEL), "{{model}}: {{feature}}, {{kind}}")],
                    "cps",
                ),
                Panel(
                    "How far features are from what was served",
                    "The mean of 2 abs(a-b) / (abs(a) + abs(b)) over all questions so far, from 0 to 2; null counts 0.",
                    [(now("freshet_skew_smape", MODEL), "{{model}}: {{feature}}")],
                ),
                Panel(
                    "Models on query",
                    "Examples that the model looks among, and questions in a second that found fewer than they should.",
                    [
                        (now("freshet_model_examples_held", MODEL), "{{model}}: examples"),
                        (rate("freshet_model_fewer_neighbours_total", MODEL), "{{model}}: too few, in a second"),
                    ],
                ),
            ],
        ),
        (
            "Audits: what was served against a recompute",
            [
                Panel(
                    "Mismatches",
                    "Features that were not served as a recompute from the change logs gives them, since the worker "
                    "began; (absent), (later): questions without a row, or with what became known later. All must be "
                    "0: see the last report in audit/ of the state, and freshet audit.",
                    [(now("freshet_audit_mismatches_total", MODEL), "{{model}}: {{feature}}")],
                    width=8,
                    bad=1,
                ),
                Panel(
                    "Questions audited",
                    "Questions that audits have looked at, and audits that failed. Only of models with audit=.",
                    [
                        (now("freshet_audit_questions_total", MODEL), "{{model}}: questions"),
                        (now("freshet_audits_total", MODEL + ', verdict="failed"'), "{{model}}: failed audits"),
                    ],
                    width=8,
                ),
                Panel(
                    "Age of the last audit",
                    "Since an audit last ended, beside how often there is one. If it climbs beyond, audits hang or are "
                    "slower than that: see the log of the worker, or audit less often.",
                    [
                        (age("freshet_audit_last_end_timestamp_seconds", MODEL), "{{model}}"),
                        (now("freshet_audit_interval_seconds", MODEL), "{{model}}: every"),
                    ],
                    "s",
                    8,
                ),
            ],
        ),
        (
            "Versions of deferred models",
            [
                Panel(
                    "The version that serves",
                    "Where the name changes another version began to serve. freshet models says why, and from what.",
                    [(now("freshet_model_version_info", MODEL), "{{model}}: {{version}}")],
                    width=8,
                ),
                Panel(
                    "Versions fitted",
                    "So far, by verdict: published ones serve; refused ones were worse than what served; failed ones "
                    "could not be fitted, and freshet models names the error.",
                    [(now("freshet_model_refreshes_total", MODEL), "{{model}}: {{verdict}}")],
                    width=8,
                ),
                Panel(
                    "Being fitted",
                    "1 while a version is being fitted, beside the stream. If that never ends, the fit takes longer "
                    "than its cadence: take a shorter window or a longer cadence.",
                    [(now("freshet_model_fitting", MODEL), "{{model}}")],
                    width=8,
                ),
                Panel(
                    "Age of what was learnt, and its limit",
                    "How long ago the newest example that the serving version has learnt became known, and the age at "
                    "which FreshetModelOld fires (the recording rule freshet:model_stale_after_seconds).",
                    [
                        (age("freshet_model_training_watermark_timestamp_seconds", MODEL), "{{model}}"),
                        (now("freshet:model_stale_after_seconds", MODEL), "{{model}}: limit"),
                    ],
                    "s",
                ),
                Panel(
                    "Debt against price",
                    "What staying with the serving version has cost, in units of the loss, and the price at which a "
                    "new one is fitted. Only of models with debt=. Debt that climbs quickly: the data has changed.",
                    [
                        (now("freshet_model_debt", MODEL), "{{model}}: debt"),
                        (now("freshet_model_price", MODEL), "{{model}}: price"),
                    ],
                ),
            ],
        ),
    ],
    ("model", "freshet_model_questions_total"),
)

WORKER = Dashboard(
    "freshet-worker",
    "Freshet: Kafka and worker",
    "Whether a worker keeps up, where its time goes, and whether its state is saved.",
    [
        (
            "What waits",
            [
                Panel(
                    "Consumer lag",
                    "Offsets of topics behind what was handed on. If it grows the worker does not keep up: see which "
                    "step takes the time. What retention removes before it is read stops the run.",
                    [(now("freshet_consumer_lag_records"), "{{source}}")],
                ),
                Panel(
                    "Unread bytes of files",
                    "Bytes of files behind what was handed on. If they grow the worker does not keep up: see which "
                    "step takes the time.",
                    [(now("freshet_source_unread_bytes"), "{{source}}")],
                    "bytes",
                ),
                Panel(
                    "Rows that wait for other sources",
                    "Rows that were read and wait for their turn, for they became known later than what another "
                    "source has reached. While history is read that is usual; if it stays, the other source is silent "
                    "or slow.",
                    [(now("freshet_source_waiting_rows"), "{{source}}")],
                    width=8,
                ),
                Panel(
                    "Fetched and not read",
                    "Bytes of topics in memory. Near 64 MiB nothing more is fetched, and the broker is not what is "
                    "slow.",
                    [(now("freshet_source_fetched_bytes"), "{{source}}")],
                    "bytes",
                    8,
                ),
                Panel(
                    "Batches in flight",
                    "Batches that were read and are not published. At 200 nothing more is read: a step or an output "
                    "is slow.",
                    [(now("freshet_batches_in_flight"), "{{instance}}")],
                    width=8,
                    bad=150,
                ),
            ],
        ),
        (
            "Where time goes",
            [
                Panel(
                    "Time by step",
                    "Seconds that each step takes in a second. A sum near 1 is a whole processor: the worker is at its "
                    "limit, and the greatest share is what to make cheaper.",
                    [(rate("freshet_step_seconds_total", "", "instance, step"), "{{step}}")],
                    "percentunit",
                    16,
                    stacked=True,
                ),
                Panel(
                    "Calls by step",
                    "How often each step is given something to do, in a second. Many small batches cost more than few "
                    "large.",
                    [(rate("freshet_step_calls_total", "", "instance, step"), "{{step}}")],
                    "cps",
                    8,
                ),
            ],
        ),
        (
            "Saved state",
            [
                Panel(
                    "Age of the saved state",
                    "What a crash would cost: all since then is done again. It swings between one and two epochs; if "
                    "it climbs, saving hangs: see the disk, and whether brokers answer.",
                    [(age("freshet_checkpoint_last_success_timestamp_seconds"), "{{instance}}")],
                    "s",
                    8,
                ),
                Panel(
                    "Time to save it",
                    "Seconds that the steps took to save the newest complete state, while the stream stood still, and "
                    "how often that is done. Near the interval: use a longer epoch, or less state.",
                    [
                        (now("freshet_checkpoint_duration_seconds"), "{{instance}}: took"),
                        (now("freshet_checkpoint_interval_seconds"), "{{instance}}: every"),
                    ],
                    "s",
                    8,
                ),
                Panel(
                    "States saved",
                    "Complete states in a second. None: the worker hangs, or only began.",
                    [(rate("freshet_checkpoints_total"), "{{instance}}")],
                    "cps",
                    8,
                ),
            ],
        ),
        (
            "Brokers",
            [
                Panel(
                    "Silence of brokers",
                    "Seconds for which brokers that were asked have not answered. The worker waits, and goes on by "
                    "itself; see whether they live and can be reached from there.",
                    [(now("freshet_broker_silent_seconds"), "{{instance}}")],
                    "s",
                    bad=30,
                ),
                Panel(
                    "Messages not acknowledged",
                    "Messages that were sent to topics. At 50,000 the worker waits: brokers are slow to acknowledge.",
                    [(now("freshet_messages_unanswered"), "{{instance}}")],
                ),
            ],
        ),
        (
            "Process",
            [
                Panel(
                    "Memory",
                    "Resident memory. It follows the state of the steps; if it grows beyond that, look at the learner.",
                    [
                        (now("process_resident_memory_bytes", ', job="freshet"'), "{{instance}}"),
                        (f"sum by (instance) ({now('freshet_step_state_bytes')})", "{{instance}}: state of steps"),
                    ],
                    "bytes",
                    8,
                ),
                Panel(
                    "Processor",
                    "Processors used. A fit runs in a process of its own and is not in it.",
                    [(rate("process_cpu_seconds_total", ', job="freshet"'), "{{instance}}")],
                    "percentunit",
                    8,
                ),
                Panel(
                    "Open files, and the limit",
                    "At the limit nothing can be opened: raise it (LimitNOFILE, ulimit -n).",
                    [
                        (now("process_open_fds", ', job="freshet"'), "{{instance}}"),
                        (now("process_max_fds", ', job="freshet"'), "{{instance}}: limit"),
                    ],
                    width=4,
                ),
                Panel(
                    "Up for",
                    "Since the process began. If it is always short, the worker fails and is started anew: see its "
                    "log.",
                    [(f"time() - {now('process_start_time_seconds', ', job=' + chr(34) + 'freshet' + chr(34))}", "up")],
                    "s",
                    4,
                    "stat",
                ),
            ],
        ),
    ],
)

DASHBOARDS = (OVERVIEW, ONE_VIEW, ONE_MODEL, WORKER)


def _variable(name: str, metric: str, several: bool) -> dict[str, Any]:
    """A variable of the values that a label has."""
    asked = metric if name == "instance" else f"{metric}{{{WHICH}}}"
    query = f"label_values({asked}, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "allValue": ".*" if several else None,
        "current": {"text": "All", "value": "$__all"} if several else {},
        "options": [],
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad is not None:
        steps.append({"color": "red", "value": panel.bad})
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.kind == "stat":
        many = panel.title == "What runs"
        options |= {"textMode": "name" if many else "value", "colorMode": "value", "graphMode": "none"}
    else:
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 5,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "off" if panel.bad is None else "line"},
        }
        options = {
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _height(panel)},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            | ({"instant": True, "range": False} if panel.kind == "stat" else {"range": True})
            for i, (expression, legend) in enumerate(panel.asks)
        ],
    }


def _height(panel: Panel) -> int:
    return 4 if panel.kind == "stat" else 8


def made(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in dashboard.rows:
        heading = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": heading, "panels": []}
        )
        x, y, tall = 0, y + 1, 0
        for panel in row:
            if x + panel.width > 24:
                x, y, tall = 0, y + tall, 0
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x, tall = x + panel.width, max(tall, _height(panel))
        y += tall
    source = {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "current": {}}
    variables = [source, _variable("instance", "freshet_build_info", True)]
    if dashboard.of is not None:
        variables.append(_variable(*dashboard.of, several=False))
    links = {"type": "dashboards", "title": "Freshet", "tags": ["freshet"], "asDropdown": True, "keepTime": True}
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.says,
        "tags": ["freshet"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "annotations": {"list": []},
        "links": [links | {"includeVars": True}],
        "panels": panels,
    }


def text(dashboard: Dashboard) -> str:
    """The file of a dashboard."""
    return json.dumps(made(dashboard), indent=1) + "\n"


if __name__ == "__main__":
    for one in DASHBOARDS:
        (FOLDER / f"{one.uid}.json").write_text(text(one))
