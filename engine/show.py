"""How a pipeline and the figures of a run look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import isfinite
from operator import getitem
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from engine.graph import Graph
from engine.learnt import Calibrated
from engine.log import About
from engine.policy import OnQuery
from engine.skew import KINDS
from operators.delta import Schema
from operators.learned import Learned


def _columns(schema: Schema) -> str:
    return ", ".join(f"{n} {str(t).split('(')[0].lower()}" for n, t in schema.items())


def graph_of(graph: Graph) -> RenderableType:
    """The graph of a pipeline with the columns of each part."""
    tree = Tree(Text(f"pipeline {graph.name}", style="bold"))
    sources = tree.add("sources")
    for s in graph.sources.values():
        kind = "table" if s.table else "append-only source" if s.append_only else "source with corrections"
        branch = sources.add(Text(f"{s.name}: {kind}, key {', '.join(s.key)}, at {s.at or 'when known'}"))
        branch.add(Text(_columns(s.columns), style="dim"))
        _expects(branch, graph, s.name)
    views = tree.add("views")
    for view in graph.views.values():
        if view.name not in graph.declared:
            continue
        of, _, aside = view.name.partition(".")
        kept = f"what {of} does not let in" if aside else f"refresh {view.refresh}"
        by = f", looked up by {', '.join(view.lookup)}" if view.lookup else ""
        branch = views.add(Text(f"{view.name}: key {', '.join(view.key) or 'none'}, {kept}{by}"))
        for node in [] if aside else graph.steps(view.name):
            branch.add(Text(f"{node.operator.name} <- {', '.join(node.inputs)}"))
        branch.add(Text(_columns(view.schema), style="dim"))
        _expects(branch, graph, view.name)
    models = tree.add("models") if graph.models else None
    for model in graph.models.values():
        assert models is not None
        branch = models.add(
            Text(f"{model.name}: questions {model.questions}, answers {model.answers}, refresh {model.refresh}")
        )
        branch.add(Text(f"predicts {model.spec.label} from {', '.join(model.spec.features)}", style="dim"))
        _expects(branch, graph, model.predictions.name)
        _expects(branch, graph, model.training.name)
    sinks = tree.add("sinks")
    for sink in graph.sinks.values():
        sinks.add(Text(f"{sink.name} <- {', '.join(sink.relations)}"))
    return tree


def _expects(branch: Tree, graph: Graph, relation: str) -> None:
    """What is expected of a relation."""
    if relation in graph.expected:
        for e in graph.expected[relation].expectations:
            unknown = ", its bounds not learnt yet" if isinstance(e, Learned) and e.bounds is None else ""
            branch.add(Text(f"expects {e.name}: {e.severity}{unknown}"))


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        min_width=len(title),
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", header_style="dim", no_wrap=True)
    return table


def number(value: float | None) -> str:
    """A count, or a figure with four decimals."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _minute(instant: str | None) -> str:
    return "-" if instant is None else f"{instant[:10]} {instant[11:16]}"


def _lag(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.0f} s"


def summary_of(
    graph: Graph, figures: Mapping[str, Any], seconds: float, stopped: bool, pipeline: str = "PIPELINE"
) -> RenderableType:
    """The summary of a run. pipeline: how the command names it."""
    state = "stopped; the same command goes on from here" if stopped else "done"
    parts: list[RenderableType] = [
        Text(),
        Text(f"{graph.name}: {state}", style="bold green"),
        Text(
            f"{figures['changes']:,} changes read, {figures['dead_letters']:,} dead letters, "
            f"{figures['late']:,} late changes; this run took {seconds:,.1f} s"
        ),
        Text(),
    ]
    sources = _table("Sources", "source", "changes", "late", "dead letters", "watermark")
    for name, s in figures["sources"].items():
        sources.add_row(
            name, number(s["changes"]), number(s["late"]), number(s["dead_letters"]), _minute(s["watermark"])
        )
    views = _table(
        "Views, and how far behind their inputs (local) and sources (global)",
        "view",
        "rows",
        "corrected",
        "frontier",
        "local",
        "global",
        "pending",
    )
    for name, v in figures["views"].items():
        views.add_row(
            name,
            number(v["rows"]),
            number(v["retracted"]),
            _minute(v["frontier"]),
            _lag(v["local_lag_seconds"]),
            _lag(v["global_lag_seconds"]),
            number(v["pending_changes"]),
        )
    parts += [sources, Text(), views, Text(), *_failures(figures["expectations"])]
    parts += [*_suspects(figures["views"]), *_refreshes(figures["views"])]
    if figures["models"]:
        models = _table("Models", "model", "questions", "answers", "predictions", "waiting", "closed unanswered")
        for name, m in figures["models"].items():
            models.add_row(name, *(number(m[k]) for k in ("questions", "answers", "predictions", "waiting", "closed")))
        parts += [models, Text(), *_refits(graph, figures["models"])]
        parts += [_quality(figures["models"]), *_leaks(figures["models"]), Text(), *_skew(figures["models"])]
        parts += _audits(figures["models"])
    parts += [
        Text("Outputs", style="bold"),
        *(Text(f"{n:<14}{path}") for n, path in figures["outputs"].items()),
        Text(),
    ]
    if graph.sinks:
        first = figures["outputs"][next(iter(graph.sinks))]
        parts += [
            Text("Next", style="bold"),
            *([] if first.startswith("topic ") else [Text(f"head -3 {first}")]),
            Text(f"freshet check {pipeline}         the graph and its schemas"),
            Text(f"freshet run {pipeline} --follow  go on when the files grow"),
        ]
    return Group(*parts)


def freshness_of(told: Mapping[str, Any]) -> RenderableType:
    """How fresh each view and model of a worker is, as it tells. A bound that none has is no column."""
    heads = "view", "state", "lag", "target", "within", "warn after", "error after", "pending", "frontier", "because of"
    rows = list[tuple[str | Text, ...]]()
    for kind in ("views", "models"):
        for name, v in told[kind].items():
            within = v.get("within_target")
            causes = ", ".join(f"{source}: {standing}" for source, standing in v.get("causes", {}).items())
            rows.append(
                (
                    name if kind == "views" else f"{name} (model)",
                    Text(v["state"], style=_JUDGED.get(v["state"], "")),
                    *(times(v[f"{what}_seconds"]) for what in ("lag", "target_lag")),
                    "-" if within is None else f"{within:.1%}",
                    *(times(v[f"{what}_seconds"]) for what in ("warn_after", "error_after")),
                    number(v.get("pending_changes")),
                    _minute(v.get("frontier")),
                    causes or "-",
                )
            )
    optional = ("target", "within", "warn after", "error after")
    shown = [i for i, head in enumerate(heads) if head not in optional or any(row[i] != "-" for row in rows)]
    table = _table(f"{told['pipeline']}, {told['phase']}, at {told['time'][:19]}Z", *(heads[i] for i in shown))
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap, column.overflow = False, "fold"
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


_JUDGED = {"fresh": "green", "behind": "yellow", "warn": "bold yellow", "error": "bold red", "unknown": "yellow"}


def _failures(expectations: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """The expectations that rows did not meet."""
    table = _table("Expectations that were not met", "relation, expectation", "severity", "rows that came", "there now")
    for e in expectations:
        if e["failures"]:
            name = f"{e['relation']}, {e['expectation']}"
            table.add_row(name, e["severity"], number(e["failures"]), number(e["failing"]))
    return [table, Text()] if table.row_count else []


def _suspects(views: Mapping[str, Any]) -> list[RenderableType]:
    """The views that have held suspect rows."""
    table = _table("Suspect rows", "view", "rows that came", "there now")
    for name, v in views.items():
        if v["suspect_inserted"]:
            table.add_row(name, number(v["suspect_inserted"]), number(v["suspect"]))
    return [table, Text()] if table.row_count else []


def _refreshes(views: Mapping[str, Any]) -> list[RenderableType]:
    """How deferred views were refreshed: each mode, what it took, and what was expected of it the last time."""
    table = _table(
        "Refreshes",
        "view, mode",
        "refreshes",
        "seconds",
        "the last in this mode",
        "expected for the last",
        "taken last",
    )
    for name, v in views.items():
        for mode, m in (v["refresh"] or {}).get("ways", {}).items():
            taken = "yes" if v["refresh"]["taken"] == mode else "-"
            last, expected = m["measured_seconds"], m["predicted_seconds"]
            table.add_row(
                f"{name}, {mode}", number(m["refreshes"]), *map(number, (m["seconds"], last, expected)), taken
            )
    return [table, Text()] if table.row_count else []


def _refits(graph: Graph, models: Mapping[str, Any]) -> list[RenderableType]:
    """How models that do not learn each answer as it comes were kept, and what went amiss."""
    table = _table(
        "Refreshes of models", "model", "refresh", "serves", "published", "refused", "failed", "fallen back", "examples"
    )
    for name, m in models.items():
        if "refreshes" not in m and "held" not in m:
            continue
        done = m.get("refreshes", {})
        counts = (number(done.get(k)) for k in ("published", "refused", "failed", "fallen_back"))
        table.add_row(name, str(graph.models[name].refresh), m.get("version") or "-", *counts, number(m.get("held")))
    return [table, *_unpublished(models), *_short(graph, models), Text()] if table.row_count else []


def _unpublished(models: Mapping[str, Any]) -> list[Text]:
    """Why the last version of a model does not serve."""
    last = {name: m["last"] for name, m in models.items() if m.get("last")}
    return [
        Text(f"{name}: the last version was {v['verdict']}: {v['why']}")
        for name, v in last.items()
        if v["verdict"] != "published"
    ]


def _short(graph: Graph, models: Mapping[str, Any]) -> list[Text]:
    """Of models on query that are to look among more examples than there were, how often that was so."""
    return [
        Text.assemble(
            ("warning: ", "yellow"),
            f"{name}: {m['fewer']:,} of {m['questions']:,} questions were answered from fewer than "
            f"{refresh.neighbours:,} examples",
        )
        for name, m in models.items()
        if isinstance(refresh := graph.models[name].refresh, OnQuery) and m["fewer"]
    ]


def fitting(models: Mapping[str, Any]) -> str:
    """The fits that run, in a few words: " · fitting late 45 %"."""
    return "".join(f" · fitting {n} {m['share']:.0%}" for n, m in models.items() if m.get("fitting")).replace("%", " %")


def _quality(models: Mapping[str, Any]) -> Table:
    table = _table(
        "Quality of what was served",
        "model, metric",
        "honest",
        "baseline",
        "leak: label at once",
    )
    for name, m in models.items():
        for metric, value in m["metrics"].items():
            leak = m["naive"][metric] if m["naive"] else None
            table.add_row(f"{name}, {metric}", number(value), number(m["baseline"].get(metric)), number(leak))
    return table


def _leaks(models: Mapping[str, Any]) -> list[Text]:
    """For each model that keeps it, what the leak would have claimed, in one line."""
    lines = []
    for name, m in models.items():
        for metric, leak in (m["naive"] or {}).items():
            if leak is not None:
                claimed, honest = number(leak), number(m["metrics"][metric])
                lines.append(
                    Text(f"{name}: a label learnt at once would have claimed {metric} {claimed}, not {honest}")
                )
    return lines


def _skew(models: Mapping[str, Any]) -> list[RenderableType]:
    """The features that have become others than were served, and the questions whose rows were taken back."""
    table = _table("Served otherwise than it is now", "model, feature", "questions", *KINDS, "smape")
    for name, m in models.items():
        skew = m["skew"]["all"]
        for feature, f in skew["features"].items():
            if any(f[k] for k in KINDS):
                counts = [number(n) for n in (skew["questions"], *(f[k] for k in KINDS), f["smape"])]
                table.add_row(f"{name}, {feature}", *counts)
    lines = [
        Text(f"{name}: the rows of {number(n)} questions were taken back after they had been asked")
        for name, m in models.items()
        if (n := m["skew"]["all"]["taken_back"])
    ]
    return [*([table] if table.row_count else []), *lines, *([Text()] if table.row_count or lines else [])]


def _audits(models: Mapping[str, Any]) -> list[RenderableType]:
    """What audits beside the run have found."""
    table = _table("Audits: served against recomputed", "model", "audits", "failed", "questions", "mismatches")
    for name, m in models.items():
        if (a := m.get("audit")) is not None:
            wrong = sum(a["mismatches"].values())
            table.add_row(name, *(number(n) for n in (a["audits"], a["failed"], a["checked"], wrong)))
    return [table, Text()] if table.row_count else []


def logs_of(logs: Sequence[About]) -> RenderableType:
    """The change logs there are."""
    table = _table("Change logs", "relation", "rows", "first known", "last known")
    for log in logs:
        period = [_minute(t.isoformat() if t else None) for t in (log.first, log.last)]
        table.add_row(log.name, number(log.rows), *period)
    return table


def audits_of(audits: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What audits of models found, by feature, and some of what is wrong."""
    parts: list[RenderableType] = []
    for a in audits:
        about = f"{number(a['checked'])} of {number(a['answered'])} answered questions, {a['seconds']:.1f} s"
        table = _table(f"{a['model']}: {about}", "feature", "mismatch", "missing", "extra")
        for name, kinds in a["features"].items():
            table.add_row(name, *map(number, kinds.values()))
        parts.append(table)
        whole = {"without a row": a["absent"], "with what became known later": a["later"]}
        parts += [Text(f"{number(n)} questions {what}") for what, n in whole.items() if n]
        parts += [
            Text(f"{', '.join(map(str, w['key']))} (change {w['seq']}): {w['feature']} was served as {w['served']}, "
                 f"recomputed it is {w['recomputed']}")
            for w in a["wrong"]
        ]  # fmt: skip
        parts.append(Text())
    return Group(*parts)


_NO_VERSIONS = {
    "immediate": "learns each answer as it comes: there are no versions",
    "on_query": "fitted for each question: there are no versions",
    "deferred": "no version was fitted yet",
}


def versions_of(models: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The versions of models, newest last; what became of those that do not serve below."""
    parts: list[RenderableType] = []
    for m in models:
        title = f"{m['model']}: refresh {m['refresh']}"
        if not m["versions"]:
            parts += [Text(title, style="bold"), Text(_NO_VERSIONS[m["refresh"].partition("(")[0]]), Text()]
            continue
        corrected = any(v["taken_back"] for v in m["versions"])
        names = ["version", "known", "examples", "asked", "due", "verdict", "loss", "served"]
        names += ["taken back", "seconds"] if corrected else ["seconds"]
        table = _table(title, *names)
        for column in table.columns[1:]:
            column.no_wrap, column.overflow = False, "fold"
        for v in m["versions"]:
            table.add_row(
                f"{'*' if v['serving'] else ' '} {v['name']}",
                _minute(v["known"]),
                number(v["examples"]),
                _days(v["first"], v["last"]),
                v["reason"].partition(":")[0],
                v["verdict"],
                number(v["checks"].get("loss")),
                number(v["checks"].get("served_loss")),
                *([number(v["taken_back"])] if corrected else []),
                number(v["seconds"]),
            )
        parts += [table, *(Text(f"{v['name']}: {v['why']}") for v in m["versions"] if v["why"])]
        if m["wanted"]:
            parts.append(Text(f"{m['wanted']} was asked for, and serves from the next batch on"))
        parts.append(Text())
    if any(v["serving"] for m in models for v in m["versions"]):
        told = "* serves. loss, served: of the version and of what was served, on what was held out."
        if any(v["taken_back"] for m in models for v in m["versions"]):
            told += " taken back: of its examples, since."
        parts.append(Text(told))
    return Group(*parts)


def forgotten_of(report: Mapping[str, Any]) -> RenderableType:
    """What `freshet forget` did, and what it could not."""
    what = " ".join(f"{column}={value}" for column, value in report["forgotten"].items())
    sources = _table("Sources", "source", "records", "late", "final", "changes")
    for name, s in report["sources"].items():
        sources.add_row(name, *(number(s[n]) for n in ("records", "late", "final", "changes")))
    views = _table("Views", "view", "taken back", "put in their place")
    for name, v in report["views"].items():
        if v["retracted"] or v["inserted"]:
            views.add_row(name, number(v["retracted"]), number(v["inserted"]))
    models = _table("Models", "model", "examples", "what became of it")
    models.columns[2].justify, models.columns[2].no_wrap = "left", False
    for name, m in report["models"].items():
        how = m["how"]
        if (fit := m["refit"]) is not None:
            how += f"; {fit['name']} was fitted on {fit['examples']:,} examples and {fit['verdict']}"
        models.add_row(name, number(m["examples"]), how)
    remains = [Text("What remains", style="bold"), *(Text(f"- {line}") for line in report["remains"]), Text()]
    found = any(s["records"] for s in report["sources"].values())
    told = f"forgot {what}" if found else f"nothing of {what} was found"
    title = Text(f"{report['pipeline']}: {told}", style="bold green")
    return Group(Text(), title, Text(), *(t for t in (sources, views, models) if t.row_count), *remains)


def _days(first: str | None, last: str | None) -> str:
    days = dict.fromkeys(instant[:10] for instant in (first, last) if instant is not None)
    return " - ".join(days) or "-"


def times(seconds: float | None) -> str:
    """A length of time in its fitting unit.

    >>> times(42.0), times(5400.0), times(3 * 86400.0), times(None)
    ('42 s', '1.5 h', '3.0 d', '-')
    """
    if seconds is None:
        return "-"
    for unit, size, least in (("d", 86_400, 172_800), ("h", 3_600, 3_600), ("min", 60, 120)):
        if seconds >= least:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def marked(found: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The best values of a comparison, each as (policy, column)."""
    rows, out = found["policies"], set[tuple[str, str]]()
    for name, path, sign in (
        ("loss", ("loss",), 1),
        ("stale", ("stale", "p50"), 1),
        ("seconds", ("seconds", "total"), 1),
        *((m, ("metrics", m), -1 if up else 1) for m, up in found["metrics"].items()),
    ):
        values = {r["policy"]: reduce(getitem, path, r) for r in rows if r["loss"] is not None}
        there = {policy: sign * v for policy, v in values.items() if v is not None}
        out |= {(policy, name) for policy, v in there.items() if v == min(there.values())}
    return out


def verdicts(count: Mapping[str, int] | None) -> str:
    """Refreshes by verdict, those not published only where there are any."""
    if count is None:
        return "-"
    return ", ".join([str(count["published"]), *(f"{count[v]} {v}" for v in ("refused", "failed") if count[v])])


def comparison_of(found: Mapping[str, Any]) -> RenderableType:
    """What a comparison of policies found (`engine.compare.figures`): a table (best values bold), failures, advice."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
    table.title = (
        f"{found['pipeline']}, {found['model']}: {found['common']:,} common of {found['judged']:,} judged questions"
    )
    table.add_column("policy", header_style="dim", overflow="fold")
    for head in (found["loss"], "best in", *found["metrics"], "stale", "processor", "refreshes"):
        table.add_column(head, justify="right", header_style="dim", no_wrap=True)
    marks = marked(found)
    for r in found["policies"]:
        cells = [
            ("loss", "failed" if r["failed"] is not None else number(r["loss"])),
            ("", f"{r['best']:.0%}" if "best" in r else "-"),
            *((m, number(r["metrics"][m])) for m in found["metrics"]),
            ("stale", times(r["stale"]["p50"])),
            ("seconds", f"{r['seconds']['total']:,.1f} s"),
            ("", "-" if r["refreshes"] is None else f"{sum(r['refreshes'].values()):,}"),
        ]
        table.add_row(
            Text(r["policy"], style="green" if r["policy"] == found["advised"] else ""),
            *(Text(text, style="bold" if (r["policy"], what) in marks else "") for what, text in cells),
        )
    failed = [Text(f"{r['policy']} failed: {r['failed']}") for r in found["policies"] if r["failed"] is not None]
    return Group(Text(), table, *failed, Text(found["advice"]))


_STATES = {"fresh": "green", "behind": "yellow", "backfill": "blue", "idle": "dim", "failed": "bold red"}


def status_of(told: Mapping[str, Any], rates: Mapping[str, float]) -> RenderableType:
    """How a worker stands, by its `/status.json`. rates: changes a second, of sources of which that is known."""

    def state(id_: str) -> Text:
        return Text(told["states"][id_]["state"], style=_STATES[told["states"][id_]["state"]])

    head = Text.assemble(
        (told["pipeline"], "bold"),
        f": {told['phase']}, {told['changes']:,} changes, {told['dead_letters']:,} dead letters",
    )
    if told["failed"] is not None:
        head.append(f", {told['failed']}", "bold red")
    if told["brokers"] != "answer":
        head.append(f", brokers are {told['brokers']}", "yellow")
    sources = _table("Sources", "source", "state", "changes", "rate", "late", "dead letters", "watermark")
    for name, s in told["sources"].items():
        kind = "source" if f"source {name}" in told["states"] else "table"
        rate = f"{rates[name]:,.1f}/s" if name in rates else "-"
        counts = (number(s["late"]), number(s["dead_letters"]))
        sources.add_row(name, state(f"{kind} {name}"), number(s["changes"]), rate, *counts, _minute(s["watermark"]))
    views = _table("Views", "view", "state", "rows", "local", "global", "age", "pending", "why")
    ids = {f"{m}.{kind}": f"{kind} {m}" for m in told["models"] for kind in ("predictions", "training")}
    for name, v in told["views"].items():
        mine = ids.get(name, f"view {name}")
        lags = (times(v[n]) for n in ("local_lag_seconds", "global_lag_seconds", "age_seconds"))
        views.add_row(
            name,
            state(mine),
            number(v["rows"]),
            *lags,
            number(v["pending_changes"]),
            told["states"][mine]["why"] or "-",
        )
    parts: list[RenderableType] = [head, Text(), sources, Text(), views]
    if told["models"]:
        models = _table("Models", "model", "state", "questions", "answers", "waiting", "version")
        for name, m in told["models"].items():
            counts_ = (number(m[n]) for n in ("questions", "answers", "waiting"))
            models.add_row(name, state(f"model {name}"), *counts_, m.get("version") or "-")
        parts += [Text(), models]
    return Group(*parts)


def calibration_of(found: Sequence[Calibrated], budget: float) -> RenderableType:
    """The bounds that were found for learned expectations, and what they rest on."""
    parts: list[RenderableType] = []
    for relation in dict.fromkeys(one.relation for one in found):
        table = _table(relation, "expectation", "key", "least", "most", "days", "expected", "beyond")
        for one in found:
            if one.relation == relation:
                low, high = (f"{b:g}" if isfinite(b) else "-" for b in one.bounds)
                days = f"{one.days:,}", f"{one.days * budget:.2f}", f"{one.beyond:,}"
                table.add_row(one.expectation, one.group or "every other", low, high, *days)
        parts += [table, Text()]
    told = "days: check-days seen; expected: false alarms on as many others; beyond: those of them beyond the bounds"
    return Group(*parts, Text(told, style="dim"))
