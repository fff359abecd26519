"""What a run shows of itself to those who look at it: the page `/`, and the figures behind it.

    /                   the page, an empty shell: `engine/status.html`
    /graph.json         the pipeline as a drawing
    /status.json        how it stands now: figures, and in which state each part of the drawing, and each quarantine, is
    /status/NAME.json   the newest changes of a view, dead letters and late changes of a source, versions of a model

Values of rows are in the last of these only.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from engine.draw import Part, drawing, parts
from engine.draw import as_json as drawn_as_json
from engine.flow import Run
from engine.graph import DEAD_LETTERS, LATE, Graph, View
from engine.plan import roots
from engine.recent import MOST
from engine.refit import Refitted
from engine.report import figures, instant, readiness
from engine.server import Answer, as_json
from engine.versions import Version

State = Literal["failed", "backfill", "behind", "idle", "fresh"]
_WRONG = {
    "dead": "nothing came within its heartbeat",
    "refused": "all that came last was refused: has its schema changed?",
    "partition silent": "one of its partitions gives nothing, while others do",
}
_WORST: tuple[State, ...] = ("failed", "backfill", "behind", "idle", "fresh")


def states(graph: Graph, told: Mapping[str, Any], phase: str, failed: str | None) -> dict[str, dict[str, str]]:
    """In which state each part of the drawing is, by its id, and each quarantine, which has no part; and why.

    failed: the run has, or the last version of a model could not be fitted. backfill: history is being read. behind: a
    view is past a bound, see `engine.freshness.Bounds`, or waits for the first change of a source; a source gives
    nothing for no good reason. idle: no source of it has anything to tell. fresh: none of these. What is made of a view
    is no better than the view.

    told: see `engine.report.figures`. failed: the step that did.
    """
    made_of = roots(graph)

    def source(name: str) -> tuple[State, str]:
        figure = told["sources"][name]
        if figure["standing"] in _WRONG:
            return "behind", _WRONG[figure["standing"]]
        if figure["idle"] or not figure["changes"]:
            return "idle", "no change for a while" if figure["changes"] else "no change yet"
        return "fresh", ""

    def view(name: str) -> tuple[State, str]:
        figure = told["views"][name]
        state, target = figure["state"], figure["target_lag_seconds"]
        if state == "fresh":
            return "fresh", ""
        if state == "idle":
            return "idle", "its sources are idle"
        if state == "unknown":
            waits = ", ".join(sorted(r for r in made_of[name] if told["sources"][r]["watermark"] is None))
            return "behind", f"waits for the first change of {waits}" if waits else "contains nothing yet"
        if state == "behind" and target is None:
            return "behind", f"lacks {figure['pending_changes']:,} changes"
        bound = "target_lag" if state == "behind" else f"{state}_after"
        return "behind", f"{figure['lag_seconds']:,.0f} s behind the present, more than its {bound}"

    def state(part: Part) -> tuple[State, str]:
        if failed is not None:
            return "failed", failed
        if phase != "live":
            return "backfill", "history is being read"
        if part.kind in ("source", "table"):
            return source(part.name)
        if part.kind == "model":
            last = told["models"].get(part.name, {}).get("last")
            if last and last["verdict"] == "failed":
                return "failed", f"version {last['name']} could not be fitted"
            return view(graph.models[part.name].predictions.name)
        if part.kind == "sink":
            return min(map(view, graph.sinks[part.name].relations), key=lambda s: _WORST.index(s[0]))
        return view(part.name)

    drawn = parts(graph)[0]
    shown = {p.name for p in drawn if p.kind != "sink"}
    aside = [Part(f"view {name}", "view", name, {}, {}) for name in graph.views if name not in shown]
    return {p.id: dict(zip(("state", "why"), state(p), strict=True)) for p in [*drawn, *aside]}


def status(run: Run, started: int) -> dict[str, Any]:
    """How a run stands, as JSON values. started: when it was, in microseconds; it tells one run from another."""
    told, (good, about) = figures(run, run.now()), readiness(run)
    failed = None if run.failed is None else f"{run.failed[0]} failed"
    return {
        **told,
        **about,
        "ready": good,
        "time": instant(run.now()),
        "started": instant(started),
        "failed": failed,
        "states": states(run.graph, told, about["phase"], failed),
    }


def pages(run: Run, started: int) -> dict[str, Callable[[], Answer]]:
    """What a run answers, by path."""
    graph = run.graph
    drawn = as_json(drawn_as_json(drawing(graph)))
    return {
        "/status.json": lambda: as_json(status(run, started)),
        "/graph.json": lambda: drawn,
        **{f"/status/{name}.json": partial(_view, run, view) for name, view in graph.views.items()},
        **{f"/status/{name}.json": partial(_source, run, name) for name in graph.sources},
        **{f"/status/{name}.json": _Model(run, name) for name in graph.models},
    }


def _view(run: Run, view: View) -> Answer:
    changes = run.publish.recent.changes(view.name, view.schema) if run.publish is not None else []
    return as_json({"name": view.name, "columns": list(view.schema), "changes": changes})


def _source(run: Run, name: str) -> Answer:
    def lines(output: str) -> list[dict[str, Any]]:
        found = run.publish.recent.lines(output) if run.publish is not None else []
        return [line for line in found if line["source"] == name]

    return as_json({"name": name, "dead_letters": lines(DEAD_LETTERS), "late": lines(LATE)})


class _Model:
    """The newest versions of a model; they are read anew only when one was fitted or began to serve."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name
        self._told: tuple[object, list[dict[str, Any]]] = None, []

    def __call__(self) -> Answer:
        model = self._run.models.get(self._name)
        if model is not None and isinstance(model.keeper, Refitted):
            serving = model.keeper.figures()
            if (now := (serving["version"], serving["refreshes"])) != self._told[0]:
                newest = model.keeper.versions.all()[: -MOST - 1 : -1]
                self._told = now, [_version(v, v.name == serving["version"]) for v in newest]
        return as_json({"name": self._name, "versions": self._told[1]})


def _version(v: Version, serving: bool) -> dict[str, Any]:
    return {
        "version": v.name,
        "serving": serving,
        "verdict": v.verdict,
        "known": instant(v.known),
        "examples": v.examples,
        "due": v.reason,
        "loss": v.checks.get("loss"),
        "served loss": v.checks.get("served_loss"),
        "why": v.why,
    }


def shell() -> Answer:
    """The page without data. A browser runs and loads nothing but what is in it, and asks only where it came from."""
    body = Path(__file__).with_name("status.html").read_bytes()
    allowed = " ".join(f"{what}-src {_hash(body, tag)};" for what, tag in (("style", b"style"), ("script", b"script")))
    policy = (
        f"default-src 'none'; {allowed} img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Answer(200, body, "text/html; charset=utf-8", policy)


def _hash(body: bytes, tag: bytes) -> str:
    """What a content security policy calls the one text within a tag."""
    (text,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), body, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text).digest()).decode()}'"
