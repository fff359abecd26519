"""How a pipeline and the figures of a run look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from engine.graph import Graph
from operators.delta import Schema


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
    views = tree.add("views")
    for view in graph.views.values():
        if view.name not in graph.declared:
            continue
        branch = views.add(Text(f"{view.name}: key {', '.join(view.key) or 'none'}, refresh {view.refresh}"))
        steps = [n for n in graph.declared.values() if n.view == view.name]
        for node in sorted(steps, key=lambda n: (n.name == view.name, n.name)):
            branch.add(Text(f"{node.operator.name} <- {', '.join(node.inputs)}"))
        branch.add(Text(_columns(view.schema), style="dim"))
    models = tree.add("models") if graph.models else None
    for model in graph.models.values():
        assert models is not None
        branch = models.add(
            Text(f"{model.name}: questions {model.questions}, answers {model.answers}, refresh {model.refresh}")
        )
        branch.add(Text(f"predicts {model.spec.label} from {', '.join(model.spec.features)}", style="dim"))
    sinks = tree.add("sinks")
    for sink in graph.sinks.values():
        sinks.add(Text(f"{sink.name} <- {', '.join(sink.relations)}"))
    return tree


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


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _minute(instant: str | None) -> str:
    return "-" if instant is None else f"{instant[:10]} {instant[11:16]}"


def _lag(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.0f} s"


def summary_of(graph: Graph, figures: Mapping[str, Any], seconds: float, stopped: bool) -> RenderableType:
    """The summary of a run."""
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
            name, _number(s["changes"]), _number(s["late"]), _number(s["dead_letters"]), _minute(s["watermark"])
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
            _number(v["rows"]),
            _number(v["retracted"]),
            _minute(v["frontier"]),
            _lag(v["local_lag_seconds"]),
            _lag(v["global_lag_seconds"]),
            _number(v["pending_changes"]),
        )
    parts += [sources, Text(), views, Text(), *_refreshes(figures["views"])]
    if figures["models"]:
        models = _table("Models", "model", "questions", "answers", "predictions", "waiting", "closed unanswered")
        for name, m in figures["models"].items():
            models.add_row(name, *(_number(m[k]) for k in ("questions", "answers", "predictions", "waiting", "closed")))
        parts += [models, Text(), _quality(figures["models"]), *_leaks(figures["models"]), Text()]
    parts += [
        Text("Outputs", style="bold"),
        *(Text(f"{n:<14}{path}") for n, path in figures["outputs"].items()),
        Text(),
    ]
    if graph.sinks:
        first = figures["outputs"][next(iter(graph.sinks))]
        parts += [
            Text("Next", style="bold"),
            Text(f"head -3 {first}"),
            Text("freshet check PIPELINE         the graph and its schemas, without running"),
            Text("freshet run PIPELINE --follow  go on when the files grow, with /metrics"),
        ]
    return Group(*parts)


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
                f"{name}, {mode}", _number(m["refreshes"]), *map(_number, (m["seconds"], last, expected)), taken
            )
    return [table, Text()] if table.row_count else []


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
            table.add_row(f"{name}, {metric}", _number(value), _number(m["baseline"].get(metric)), _number(leak))
    return table


def _leaks(models: Mapping[str, Any]) -> list[Text]:
    """For each model that keeps it, what the leak would have claimed, in one line."""
    lines = []
    for name, m in models.items():
        for metric, leak in (m["naive"] or {}).items():
            if leak is not None:
                claimed, honest = _number(leak), _number(m["metrics"][metric])
                lines.append(
                    Text(f"{name}: a label learnt at once would have claimed {metric} {claimed}, not {honest}")
                )
    return lines
