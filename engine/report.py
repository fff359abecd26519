"""What a run has to say of itself: figures as plain values, for `/metrics`, the summary and summary.json."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec

from engine.flow import Run
from engine.freshness import Bounds, Freshness, OnTime, Standing, contained, freshness, least, standing
from engine.graph import Graph, Model
from engine.log import scan
from engine.logs import SILENT
from engine.lookup import Version
from engine.publish import Publish
from engine.seal import Seal
from engine.versions import Versions, taken_back
from operators.delta import BEGINNING
from operators.operator import microseconds

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def instant(us: int | None) -> str | None:
    """Microseconds UTC as ISO 8601 text; None for none and for the beginning."""
    if us is None or us <= BEGINNING:
        return None
    return (_EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")


def standings(run: Run, now: int | None) -> dict[str, Standing]:
    """How each source stands. now: as for `freshness_of`."""
    merge = run.merge
    if merge is None:
        return {}
    behind, heard = merge.idle(), merge.heard()
    found: dict[str, Standing] = {}
    for name, s in run.graph.sources.items():
        found[name] = "backfill" if now is None else standing(heard[name], now, s.idle_after, s.heartbeat, run.live)
        if found[name] in ("current", "backfill") and behind[name]:
            found[name] = "idle"
    return found


def freshness_of(
    run: Run, now: int | None, taken: Publish | Version | None = None, views: Collection[str] | None = None
) -> dict[str, Freshness]:
    """How fresh each view is. now: the present in microseconds; None in a replay, whose clock is the data.

    taken: what they contain (default: what is published). views: only these.
    """
    merge, taken = run.merge, taken or run.publish
    if merge is None and taken is None:
        return {}
    made_of, passed = run.made_of, run.passed
    reached = taken.contained if taken is not None and taken.contained else dict.fromkeys(run.graph.sources, BEGINNING)
    applied = taken.read if taken is not None else {}
    read, marks = (merge.read, merge.watermark) if merge is not None else (applied, reached)
    held = taken.held if taken is not None else {}
    idle = {name for name, how in standings(run, now).items() if how == "idle"}
    since = (merge.since if merge is not None else None) or 0
    found: dict[str, Freshness] = {}

    def contains(name: str) -> dict[str, int]:
        return contained(made_of[name], passed[name], reached, held)

    for name in run.graph.views if views is None else views:
        mine = made_of[name]
        node = run.graph.nodes.get(name)
        given = _inputs(run.graph, name) if node is not None else []
        inputs = {i: least(contains(i), made_of[i]) for i in given}
        pending = sum(read.get(r, 0) - applied.get(r, 0) for r in mine) + sum(
            held[h][1] for h in passed[name] if h in held
        )
        found[name] = freshness(mine, inputs, contains(name), marks, pending, now if run.live else None, idle, since)
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
    marks = merge.watermark if merge else publish.contained if publish is not None else {}
    stand = standings(run, now)
    sizes: dict[str, list[int]] = {}
    for shard in run.shards:
        for name, (keys, held) in shard.sizes().items():
            total = sizes.setdefault(name, [0, 0])
            total[0] += keys
            total[1] += held
    left = merge.left() if merge else {}
    fresh, declared, made_of = freshness_of(run, now), run.declared, run.made_of
    views = {}
    for name in graph.views:
        inserted, retracted, *suspect = publish.rows[name] if publish is not None else (0, 0)
        f = fresh.get(name)
        views[name] = {
            "rows": inserted - retracted,
            "inserted": inserted,
            "retracted": retracted,
            "suspect": suspect[0] - suspect[1] if suspect else None,
            "suspect_inserted": suspect[0] if suspect else None,
            "frontier": instant(f.frontier) if f else None,
            "local_lag_seconds": f.local_lag / 1e6 if f else None,
            "global_lag_seconds": f.global_lag / 1e6 if f else None,
            "age_seconds": f.age / 1e6 if f and f.age is not None else None,
            "pending_changes": f.pending if f else 0,
            **_judged(declared[name], f, run.live, all(stand.get(r) == "idle" for r in made_of[name])),
            "within_target": _within(run.on_time, name),
            "causes": {r: stand[r] for r in sorted(made_of[name]) if stand.get(r) not in (None, "current", "backfill")},
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
                "idle": stand.get(name) == "idle",
                "standing": stand.get(name, "backfill"),
                "left": left.get(name, {}),
                **_heard(run, name, now),
            }
            for name in graph.sources
        },
        "worker": worker(run),
        "views": views,
        "steps": {name: {"keys": keys, "bytes": held} for name, (keys, held) in sizes.items()},
        "models": {name: _of_model(run, name, m.figures(), now, declared[name]) for name, m in run.models.items()},
        "expectations": [
            {"relation": name, "expectation": e.name, "severity": e.severity, "failures": failures, "failing": failing}
            for name, x in graph.expected.items()
            for e in x.expectations
            for failures, failing in [judged.get((name, *e.definition), (0, 0))]
        ],
    }


def _judged(bounds: Bounds, f: Freshness | None, live: bool, idle: bool) -> dict[str, Any]:
    """The lag of a view, what is declared of it, and how that stands."""
    lag = f.lag if f else None
    state = bounds.state(lag, live, idle, f.global_lag if f else 0, f is not None and f.frontier is not None)
    return {**_declared(bounds, lag), "state": state}


def _declared(bounds: Bounds, lag: int | None) -> dict[str, Any]:
    """A lag, and what is declared of it, in seconds."""
    told = {"lag": lag, "target_lag": bounds.target, "warn_after": bounds.warn, "error_after": bounds.error}
    return {f"{name}_seconds": None if us is None else us / 1e6 for name, us in told.items()}


def _within(on_time: OnTime, view: str) -> float | None:
    """The share of the time for which a view was within its target."""
    seen = on_time.seen.get(view, 0.0)
    return on_time.within[view] / seen if seen else None


def _heard(run: Run, source: str, now: int | None) -> dict[str, Any]:
    """When something was last heard of a source, and how much of it was refused since."""
    if run.merge is None:
        return {"last_change": None, "last_heard": None, "refused_in_a_row": 0}
    heard = run.merge.heard()[source]
    told = {"last_change": heard.change or None, "last_heard": heard.anything or None} if now is not None else {}
    return {
        "last_change": instant(told.get("last_change")),
        "last_heard": instant(told.get("last_heard")),
        "refused_in_a_row": heard.refused,
    }


def _of_model(run: Run, name: str, told: dict[str, Any], now: int | None, bounds: Bounds) -> dict[str, Any]:
    """The figures of a model, and how old what it has learnt is."""
    since = (run.merge.since if run.merge is not None else None) or 0
    trained = told["trained"] if told["trained"] is not None else since
    audit = None if run.audits is None else run.audits.figures(name)
    lag = now - trained if now is not None and run.live else None
    return {**told, **_declared(bounds, lag), "state": bounds.state(lag, run.live, False), "audit": audit}


def look(run: Run, now: int) -> None:
    """Measure for how long views are within their targets: called again and again."""
    aims = [n for n in run.graph.views if run.declared[n].target is not None]
    if aims and run.live:
        fresh = freshness_of(run, now, views=aims)
        run.on_time.look(now, {n: (run.declared[n], f.lag) for n, f in fresh.items()})


def worker(run: Run) -> dict[str, Any]:
    """How a process works: what it waits for, what its steps took, when state was saved (by the one that reads)."""
    kept = run.checkpoints
    saved = {
        "epoch_seconds": microseconds(run.settings.epoch, "epoch") / 1e6,
        "count": kept.count,
        "at": kept.at,
        "seconds": kept.seconds,
    }
    return {
        "read_ratio": None if run.merge is None else run.merge.progress,
        "batches_in_flight": run.in_flight,
        "brokers_silent_seconds": run.silent,
        "unanswered_messages": run.unanswered,
        "steps": {name: {"calls": n, "seconds": took} for name, (n, took) in run.timing.steps().items()},
        "checkpoints": None if run.merge is None else saved,
    }


def standing_of(run: Run) -> dict[str, Any]:
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
