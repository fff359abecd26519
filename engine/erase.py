"""What follows a run that forgot a key: logs without it, versions that are marked, and a report of what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from engine.flow import Run
from engine.forget import meant
from engine.graph import Graph
from engine.large import remove_others
from engine.log import erase, scan
from engine.publish import outputs
from engine.store import compact
from engine.training import came_from
from engine.versions import Versions, erased
from operators.delta import POS, Ints


def finish(run: Run, remove: bool) -> dict[str, Any]:
    """After such a run erase what it took back from the logs for good, mark versions, and report, as JSON values.

    remove: also the learners of versions that had seen any of it, but for one that still serves. When nothing was found
    that views or models had taken in, the report names none.
    """
    found, graph = run.found, run.graph
    assert found
    assert run.forget
    models = {name: _finished(graph, name, run, remove) for name in graph.models if len(found.positions)}
    if len(found.positions):
        _erase_changes(run, found.positions)
    remove_others(run.large, run.states)
    compact(run.state.recovery)
    without = [n for n in graph.sources if n not in found.counts]
    return {
        "pipeline": graph.name,
        "forgotten": run.forget.where,
        "sources": found.counts,
        "views": {
            name: {"retracted": retracted, "inserted": inserted}
            for name, (inserted, retracted) in (run.publish.forgotten if run.publish else {}).items()
        },
        "models": models,
        "remains": _remains(run, models, without),
    }


def _erase_changes(run: Run, positions: Ints) -> None:
    """Erase from the logs of sources what met the request, and from those of views what came from such rows."""
    graph, log = run.graph, run.state.folder / "log"
    assert run.forget
    met = meant(graph, run.forget)
    came = pl.col(POS).is_in(pl.lit(pl.Series(positions)).implode())
    for name, schema in graph.logged.items():
        if name in graph.views or name in met:
            erase(log / name, schema, came if name in graph.views else met[name].fill_null(False))


def _finished(graph: Graph, name: str, run: Run, remove: bool) -> dict[str, Any]:
    assert run.found is not None
    model, kept, positions = graph.models[name], run.state.folder, run.found.positions
    log = kept / "log" / model.training.name
    erase(log, model.training.schema, came_from(positions))
    versions = Versions(kept / "models" / name, run.state.seal)
    for v in versions.all():
        if gone := erased(v, scan(log)):
            versions.forgot(v.name, gone, remove and v.name != versions.serving)
    figures = run.models[name].keeper.figures()
    return {
        **run.models[name].forgotten,
        "refresh": str(model.refresh),
        "refit": figures.get("last") if "refit was due" in run.models[name].forgotten["how"] else None,
        "versions": [
            {"version": v.name, "forgotten": v.forgotten, "verdict": v.verdict, "serves": v.name == versions.serving}
            for v in versions.all()
            if v.forgotten
        ],
    }


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _remains(run: Run, models: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    """What is still somewhere, in words."""
    assert run.found is not None
    found, out = run.found.counts, []
    for name, count in found.items():
        if count["records"]:
            out.append(
                f"{name}: {_many(count['records'], 'record')} still where they were read from: to be removed there, "
                "or a run from the start reads them again"
            )
        if count["final"]:
            out.append(
                f"{name}: of {_many(count['final'], 'row')} older than the lateness, what views made of them. Declare "
                "the source erasable=True, and start anew, for rows of any age to be taken back"
            )
    if any(count["records"] for count in found.values()):
        names = ", ".join(f"{n}.jsonl" for n in outputs(run.graph, run.settings.sinks))
        out.append(f"lines that were published before, in {run.out}: {names}; what was taken back was appended")
        if topics := [one.topic for one in run.settings.sinks.values()]:
            out.append(
                f"messages that were published before, in the topics {', '.join(topics)}: tombstones of what was taken "
                "back were sent, and compaction removes what they are for"
            )
    moved = run.publish.forgotten if run.publish else {}
    if names := ", ".join(n for n in run.graph.logged if moved.get(n, (0, 0))[0]):
        out.append(f"the change logs of {names}: what other rows had taken from them, as it was before")
    for name, m in models.items():
        for v in m["versions"]:
            if v["serves"]:
                why = f"; the refit was {m['refit']['verdict']}: {m['refit']['why']}" if m["refit"] else ""
                out.append(
                    f"{name}: version {v['version']} had seen {_many(v['forgotten'], 'example')}, and serves{why}"
                )
            elif v["verdict"] != "removed":
                out.append(
                    f"{name}: version {v['version']} had seen {_many(v['forgotten'], 'example')}; --remove removes it"
                )
    if without:
        out.append(f"{', '.join(without)}: no such column; nothing of it was looked at")
    return out
