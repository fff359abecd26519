"""The audit: the features that a model was served are what a recompute from scratch gives, at the same moment.

For a question that change number s asked, the relations that its view is made of are taken from the change logs of the
sources as they were after change s, and the view is recomputed from these, by the definitions of its operators and not
by what keeps it. The row of the question must then be, bit for bit, what the training set says was served. Every other
figure than 0 is a bug, or somebody has changed the logs.

What was served is known of questions that were answered: those are examples. Of these a sample is taken that depends on
nothing but the questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl

from engine.graph import Graph, Model
from engine.log import KNOWN, ROW, SEQ, WEIGHT, erased, scan
from engine.past import Recompute, needed, then, whole
from engine.skew import KINDS
from operators.delta import AT, BEGINNING, FLOAT, INT, POS, Array, Schema, is_null, to_array
from operators.operator import DefinitionError

SAMPLE = 100
"""So many questions are looked at, unless it is said how many."""
TOLD = 10
"""So many of the values that differ are told, at most."""

_THERE = "_there"


def audit(graph: Graph, state: Path, model: str, sample: int = SAMPLE, since: int = -1) -> dict[str, Any]:
    """What an audit of a model finds, as JSON values.

    state: where the state of the pipeline is kept. sample: how many questions are looked at, at most. since: only those
    of which the training set told after that `seq`; `to` of an audit, for the next one.

    `checked` questions, of `answered` ones; up to which change, `to`; `absent`: of how many the view has no row;
    `later`: of how many something that the view is made of became known after they were asked; `features`: by feature
    how many values are wrong, by `KINDS`; `wrong`: some of these; `mismatches`: all that is wrong, which must be 0.
    Questions asked before rows were erased are left out: what they were served is not known any more.
    Raises `DefinitionError` when it cannot be audited, `LogError`.
    """
    began = perf_counter()
    made = _found(graph, model)
    of = sorted(needed(graph, made.questions, roots=True))
    last = whole(state)
    logs = {name: scan(state / "log" / name).filter(pl.col(SEQ) <= last).collect() for name in of}
    gone = max(erased(state / "log" / name) for name in of)
    answered = (
        scan(state / "log" / made.training.name)
        .filter((pl.col(SEQ) > since) & (pl.col(SEQ) <= last) & (pl.col(WEIGHT) > 0) & (pl.col("seq") > gone))
        .unique([AT, POS], keep="first", maintain_order=True)
        .collect()
    )
    served = answered.with_columns(pl.struct(AT, POS).hash(seed=1).alias(WEIGHT)).sort(WEIGHT).head(sample).sort("seq")
    schema = {f: made.spec.questions[f] for f in made.spec.features}
    again = _again(graph, made.questions, schema, logs, served)
    there = again[_THERE].to_numpy().astype(bool)
    features, wrong = _compared(served, again, schema, made.spec.key, there)
    later = _later(logs, served)
    absent = int((~there).sum())
    return {
        "model": model,
        "questions": made.questions,
        "checked": len(served),
        "answered": len(answered),
        "to": last,
        "absent": absent,
        "later": later,
        "features": features,
        "wrong": wrong,
        "mismatches": absent + later + sum(sum(kinds.values()) for kinds in features.values()),
        "seconds": perf_counter() - began,
    }


def _found(graph: Graph, model: str) -> Model:
    if model not in graph.models:
        there = ", ".join(graph.models) or "none"
        raise DefinitionError(f"there is no model {model!r} in pipeline {graph.name!r}; there are: {there}")
    return graph.models[model]


def _again(
    graph: Graph, view: str, schema: Schema, logs: Mapping[str, pl.DataFrame], served: pl.DataFrame
) -> pl.DataFrame:
    """For each row that was served that of the view, recomputed as of its question, and whether it is there."""
    found = [pl.DataFrame(schema={**schema, AT: INT, POS: INT})]
    whose = served.select("seq", pl.col(AT).cast(INT).fill_null(BEGINNING), POS)
    relations = {name: _Relation(log) for name, log in logs.items()}
    for (seq,), asked in whose.group_by("seq", maintain_order=True):
        known = Recompute(graph, {name: relation(int(str(seq))) for name, relation in relations.items()})
        rows = pl.concat(known.at(view, at, at) for at in asked[AT].unique())
        found.append(rows.join(asked, on=[AT, POS], how="semi").select(*schema, pl.col(AT, POS).cast(INT)))
    again = pl.concat(found).with_columns(pl.lit(True).alias(_THERE))
    return whose.join(again, on=[AT, POS], how="left", maintain_order="left").with_columns(
        pl.col(_THERE).fill_null(False)
    )


class _Relation:
    """A relation as of any change, from its log."""

    def __init__(self, log: pl.DataFrame) -> None:
        self._log = log
        self._inserts: pl.DataFrame | None = None
        if len(log) == 0 or bool((log[WEIGHT] > 0).all()):
            at = pl.col(AT).cast(INT).fill_null(BEGINNING)
            self._inserts = log.with_columns(at).sort(AT, POS).drop(KNOWN, WEIGHT, ROW)

    def __call__(self, seq: int) -> pl.DataFrame:
        if self._inserts is None:
            return then(self._log.lazy(), seq=seq).collect()
        return self._inserts.filter(pl.col(SEQ) <= seq).drop(SEQ)


def _compared(
    served: pl.DataFrame, again: pl.DataFrame, schema: Schema, key: tuple[str, ...], there: Array
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """By feature how many values are wrong, and some of these."""
    features: dict[str, dict[str, int]] = {}
    wrong: list[dict[str, Any]] = []
    for name, dtype in schema.items():
        mine, theirs = (_bits(frame[name], dtype) for frame in (served, again))
        none, nothing = (is_null(to_array(frame[name])) for frame in (served, again))
        differs = there & (mine != theirs).astype(bool)
        kinds = dict(zip(KINDS, (~none & ~nothing, none & ~nothing, ~none & nothing), strict=True))
        features[name] = {kind: int((differs & which).sum()) for kind, which in kinds.items()}
        for i in np.flatnonzero(differs)[: TOLD - len(wrong)].tolist():
            row = served.row(i, named=True)
            told = {"key": [row[k] for k in key], "seq": row["seq"], "feature": name}
            wrong.append({**told, "served": str(row[name]), "recomputed": str(again[name][i])})
    return features, wrong


def _bits(column: pl.Series, dtype: pl.DataType) -> Array:
    """Values that are equal when they are so bit for bit; a null is one value."""
    if dtype == FLOAT:
        return to_array(column.fill_nan(None)).view(np.int64)
    return to_array(column)


def _later(logs: Mapping[str, pl.DataFrame], served: pl.DataFrame) -> int:
    """How many questions were asked before something became known that is numbered as if it had been there."""
    told = pl.concat([log.select(SEQ, KNOWN) for log in logs.values()]).sort(SEQ)
    told = told.with_columns(newest=pl.col(KNOWN).cum_max()).unique(SEQ, keep="last")
    asked = served.select(pl.col("seq").alias(SEQ)).join(told, on=SEQ, how="left")
    return int((asked["newest"] > asked[KNOWN]).sum())
