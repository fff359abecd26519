"""What a run answers over HTTP, as an OpenAPI document: made from what the pipeline declares."""

from __future__ import annotations

from typing import Any

import polars as pl

from engine.graph import AS_OF, Graph, View
from operators.delta import BOOL, FLOAT, INT, STRING, TIME

_TYPES: dict[pl.DataType, dict[str, Any]] = {
    INT: {"type": "integer", "format": "int64"},
    FLOAT: {"type": "number", "format": "double"},
    STRING: {"type": "string"},
    BOOL: {"type": "boolean"},
    TIME: {"type": "string", "format": "date-time"},
}
_TEXT = {"description": "In words.", "content": {"text/plain": {"schema": {"type": "string"}}}}
_REFUSED = {
    "description": "What is wrong with the request, and what was expected.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}


def document(graph: Graph, version: str, most: int, token: bool) -> dict[str, Any]:
    """The document of a pipeline. most: keys in one request. token: whether one is needed."""
    paths: dict[str, Any] = {
        "/metrics": {"get": _page("metrics", "The figures of the run, for Prometheus.", "text/plain")},
        "/openapi.json": {"get": _page("openapi", "This document.", "application/json")},
        "/healthz": {
            "get": _page("health", "Whether the worker lives, and where in its life it is.", "application/json")
        },
        "/readyz": {"get": _page("readiness", "Whether the worker does its work.", "application/json")},
    }
    paths["/readyz"]["get"]["responses"]["503"] = {"description": "It does not."}
    logged = [m.training for m in graph.models.values() if m.training.lookup]
    for view in graph.lookups.values():
        paths |= _paths(view, most, True, view.log)
    for view in logged:
        paths |= _paths(view, most, False, True)
    if token:
        for path in paths.keys() - {"/healthz", "/readyz"}:
            for operation in paths[path].values():
                operation["responses"]["401"] = _TEXT
                operation["security"] = [{"token": []}]
    schemas = {view.name: _row(view) for view in [*graph.lookups.values(), *logged]}
    components: dict[str, Any] = {"schemas": schemas}
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": graph.name,
            "version": version,
            "description": "The newest rows of the views of a pipeline, by key, and how the run stands.",
        },
        "paths": paths,
        "components": components,
    }


def _page(name: str, text: str, kind: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": text,
        "responses": {"200": {"description": text, "content": {kind: {}}}},
    }


def _null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def _row(view: View) -> dict[str, Any]:
    columns = {n: _null(_TYPES[t]) for n, t in view.schema.items()}
    return {
        "type": "object",
        "required": list({**columns, "at": None}),
        "properties": {**columns, **({} if "at" in columns else {"at": _null(_TYPES[TIME])})},
    }


def _answer(view: View, now: bool, then: bool) -> dict[str, Any]:
    """What is answered: as it is now, or as of a time, or either."""
    rows = {"type": "array", "items": {"anyOf": [{"$ref": f"#/components/schemas/{view.name}"}, {"type": "null"}]}}
    number = {"type": "number"}
    version = {
        "version": {"type": "integer", "description": "The number of the batch after which this was so."},
        "frontier": {**_null(_TYPES[TIME]), "description": "Every change below it is contained."},
        "lag_seconds": {
            "type": "object",
            "description": "How far it is behind its direct inputs, and behind what its root sources have read.",
            "required": ["local", "global"],
            "properties": {"local": number, "global": number},
        },
        "phase": {"enum": ["backfill", "live"]},
    }
    heads: list[dict[str, Any]] = [version] * now + [{AS_OF: _TYPES[TIME]}] * then
    given = [{"view": {"const": view.name}, **head, "rows": rows} for head in heads]
    bodies = [{"type": "object", "required": list(one), "properties": one} for one in given]
    return {
        "description": "The rows of the keys, in their order; null for a key that is not there.",
        "content": {"application/json": {"schema": bodies[0] if len(bodies) == 1 else {"anyOf": bodies}}},
    }


def _paths(view: View, most: int, now: bool, then: bool) -> dict[str, Any]:
    """The three ways to look rows of a view up. now, then: whether as they are, and as of a time."""
    keys = {n: _TYPES[view.schema[n]] for n in view.lookup}
    at = [{"name": AS_OF, "in": "query", "required": not now, "schema": _TYPES[TIME]}] if then else []
    what = "The newest row" if now else "What was known at a time"
    answers = {"200": _answer(view, now, then), "400": _REFUSED} | ({"503": _REFUSED} if now else {})
    one = {**answers, "404": _answer(view, now, then)}
    named = [{"name": n, "required": True, "schema": t} for n, t in keys.items()]
    root = f"/views/{view.name}"
    several = {"type": "array", "prefixItems": [_null(t) for t in keys.values()], "minItems": len(keys)}
    key = _null(next(iter(keys.values()))) if len(keys) == 1 else {**several, "maxItems": len(keys)}
    asked = {
        "type": "object",
        "required": ["keys"],
        "properties": {"keys": {"type": "array", "items": key, "maxItems": most}},
        "additionalProperties": False,
    }
    by_path = {
        "operationId": f"{view.name}.get",
        "summary": f"{what} of a key of {view.name}.",
        "parameters": [*({**p, "in": "path"} for p in named), *at],
        "responses": one,
    }
    by_query = {
        "operationId": f"{view.name}.query",
        "summary": f"{what} of a key of {view.name}, its parts by name.",
        "parameters": [*({**p, "in": "query"} for p in named), *at],
        "responses": one,
    }
    many = {
        "operationId": f"{view.name}.post",
        "summary": f"{what} of many keys of {view.name}.",
        "parameters": at,
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {**answers, "411": _TEXT, "413": _TEXT},
    }
    return {
        root: {"get": by_query, "post": many},
        "/".join([root, *(f"{{{n}}}" for n in keys)]): {"get": by_path},
    }
