"""What a run has to say of itself: figures as plain values, for `/metrics`, the summary and summary.json."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec

from engine.flow import Run
from engine.freshness import Freshness, contained, freshness, least
from engine.graph import Graph, Model
from engine.log import scan
from engine.logs import SILENT
from engine.plan import roots
from engine.seal import Seal
from engine.versions import Versions, taken_back
from operators.delta import BEGINNING

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def instant(us: int | None) -> str | None:
    """Microseconds UTC as ISO 8601 text; None for none and for the beginning."""
    if us is None or us <= BEGINNING:
        return None
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")


def freshness_of(run: Run, now: int | None) -> dict[str, Freshness]:
    """How fresh each view is. now: the present in microseconds; None in a replay, whose clock is the data."""
    merge, publish = run.merge, run.publish
    if merge is None and publish is None:
        return {}
    made_of = roots(run.graph)
    reached = (
        publish.contained if publish is not None and publish.contained else dict.fromkeys(run.graph.sources, BEGINNING)
    )
    applied = publish.read if publish is not None else {}
    read, marks = (merge.read, merge.watermark) if merge is not None else (applied, reached)
    passed, held = roots(run.graph, held=True), publish.held if publish is not None else {}
    found: dict[str, Freshness] = {}

    def contains(name: str) -> dict[str, int]:
        return contained(made_of[name], passed[name], reached, held)

    for name in run.graph.views:
        mine = made_of[name]
        node = run.graph.nodes.get(name)
        given = _inputs(run.graph, name) if node is not None else []
        inputs = {i: least(contains(i), made_of[i]) for i in given}
        pending = sum(read.get(r, 0) - applied.get(r, 0) for r in mine) + sum(
            held[h][1] for h in passed[name] if h in held
        )
        found[name] = freshness(mine, inputs, contains(name), marks, pending, now)
    return found


def _inputs(graph: Graph, view: str) -> list[str]:
    """What a view is made of directly: of a deferred one what it waits with."""
    if view in graph.holds:
        return [given for _, given in graph.holds[view].inputs]
    return list(graph.nodes[view].inputs)


def figures(run: Run, now: int | None) -> dict[str, Any]:
    """Every figure of a run, as JSON values."""
    graph, merge, publish = run.graph, run.merge, run.publish
    none = dict.fromkeys(graph.sources, 0)
    told = publish.counts if publish is not None else {}
    counts = {w: merge.counts(w) if merge else told.get(w, none) for w in ("late", "dead", "skipped")}
    read = merge.read if merge else (publish.read if publish is not None else {}) or none
    marks, idle = (merge.watermark, merge.idle()) if merge else (publish.contained if publish is not None else {}, {})
    sizes: dict[str, list[int]] = {}
    for shard in run.shards:
        for name, (keys, held) in shard.sizes().items():
            total = sizes.setdefault(name, [0, 0])
            total[0] += keys
            total[1] += held
    fresh = freshness_of(run, now)
    views = {}
    for name in graph.views:
        inserted, retracted = publish.rows[name] if publish is not None else (0, 0)
        f = fresh.get(name)
        views[name] = {
            "rows": inserted - retracted,
            "inserted": inserted,
            "retracted": retracted,
            "frontier": instant(f.frontier) if f else None,
            "local_lag_seconds": f.local_lag / 1e6 if f else None,
            "global_lag_seconds": f.global_lag / 1e6 if f else None,
            "age_seconds": f.age / 1e6 if f and f.age is not None else None,
            "pending_changes": f.pending if f else 0,
            "refresh": run.costs[name].figures() if name in run.costs else None,
        }
    judged = publish.failures if publish is not None else {}
    return {
        "pipeline": graph.name,
        "changes": sum(read.values()),
        "late": sum(counts["late"].values()),
        "dead_letters": sum(counts["dead"].values()),
        "sources": {
            name: {
                "changes": read[name],
                "late": counts["late"][name],
                "dead_letters": counts["dead"][name],
                "skipped": counts["skipped"][name],
                "watermark": instant(marks.get(name)),
                "idle": idle.get(name, False),
            }
            for name in graph.sources
        },
        "views": views,
        "steps": {name: {"keys": keys, "bytes": held} for name, (keys, held) in sizes.items()},
        "models": {name: m.figures() for name, m in run.models.items()},
        "expectations": [
            {"relation": name, "expectation": e.name, "severity": e.severity, "failures": failures, "failing": failing}
            for name, x in graph.expected.items()
            for e in x.expectations
            for failures, failing in [judged.get((name, *e.definition), (0, 0))]
        ],
    }


def standing(run: Run) -> dict[str, Any]:
    """How a run stands, in few words: see `engine.logs.Watch`."""
    versions = {}
    for name, model in dict(run.models).items():
        if (told := model.keeper.figures()).get("refreshes") is not None:
            versions[name] = {"serving": told["version"], **told["refreshes"]}
    return {
        "live": run.live,
        "silent": run.silent,
        "dead": run.merge.counts("dead") if run.merge is not None else {},
        "versions": versions,
    }


def readiness(run: Run) -> tuple[bool, dict[str, Any]]:
    """Whether a run does its work, and what is to be told of that."""
    began = run.merge is not None and run.publish is not None if not run.addresses else run.failed is None
    silent = run.silent
    phase = "starting" if not began else "live" if run.live else "backfill"
    good = began and silent < SILENT and run.failed is None
    return good, {
        "pipeline": run.graph.name,
        "ready": good,
        "phase": phase,
        "brokers": "answer" if silent < SILENT else f"silent for {silent:.0f} s",
    }


def history(model: Model, kept: Path, seal: Seal) -> dict[str, Any]:
    """The versions of a model, newest last, as JSON values; `served` says when each began to serve, `taken_back` how
    many of its examples are none any more. kept: the state of the pipeline, under its seal.
    """
    versions, log = Versions(kept / "models" / model.name, seal), kept / "log" / model.training.name
    return {
        "model": model.name,
        "refresh": str(model.refresh),
        "wanted": versions.wanted(),
        "versions": [
            {
                **msgspec.to_builtins(v),
                **{n: instant(getattr(v, n)) for n in ("known", "first", "last", "newest")},
                "serving": v.name == versions.serving,
                "served": [instant(s.known) for s in versions.served if s.version == v.name],
                "taken_back": taken_back(v, scan(log)),
            }
            for v in versions.all()
        ],
    }
