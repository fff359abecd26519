"""What is answered below `/views/`, over HTTP: from a real run, to those who may ask, and to those who ask amiss."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from engine.answer import MOST, Views
from engine.bind import check_alone
from engine.flow import Run
from engine.openapi import document
from engine.pipeline import Pipeline
from engine.recovery import StateError
from engine.server import serve
from engine.settings import Settings, SettingsError
from operators import aggregate, count, project, total
from operators.operator import DefinitionError
from tests.flow.running import cards, run_here

TOKEN = "0123456789abcdef0123456789abcdef"
PIPELINE = """
import polars as pl
from river import linear_model

import operators as op
from engine import Pipeline

p = Pipeline("shop")
orders = p.source(
    "orders", key="id", at="at", lateness="1m",
    schema={"id": int, "shop": str, "day": pl.Datetime, "vip": bool, "x": float, "n": int, "at": pl.Datetime},
)
told = p.source("told", key="id", at="at", lateness="1m", schema={"id": int, "y": float, "at": pl.Datetime})
rows = p.view("rows", orders, op.where(pl.col("id") >= 0), lookup=True)
shops = p.view("shops", orders, op.aggregate(by="shop", n=op.count(), x=op.total("x")), lookup=True)
newest = p.view("newest", orders, op.project("id", "shop", "x"), lookup="shop", log=True)
days = p.view("days", orders, op.aggregate(by=["shop", "day", "vip"], n=op.count()), lookup=True)
asked = p.view("asked", orders, op.project("id", "x"))
m = p.model("m", asked, answers=told, label="y", learner=linear_model.LinearRegression(), lookup=True)
p.sink("rows", rows)
"""
NOON = "2024-01-01T12:00:00Z"


def orders() -> list[dict[str, Any]]:
    def at(second: int) -> str:
        return f"2024-01-01T12:00:{second:02}Z"

    rows = [
        {"id": i, "shop": "ab"[i % 2], "day": "2024-01-01T00:00:00Z", "vip": i < 2, "x": i / 2, "n": i, "at": at(i)}
        for i in range(6)
    ]
    rows.append({"id": 2**53 + 1, "shop": "é/../%", "day": None, "vip": None, "x": None, "n": None, "at": at(7)})
    rows.append({"id": 7, "shop": "", "day": None, "vip": None, "x": 1.0, "n": None, "at": at(8)})
    rows.append({"id": 8, "shop": None, "day": None, "vip": None, "x": 2.0, "n": None, "at": at(9)})
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has come to its end."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "freshet.toml").write_text(
        'port = 0\n[sources.orders]\npath = "orders.jsonl"\n[sources.told]\npath = "told.jsonl"\n'
    )
    (folder / "orders.jsonl").write_text("".join(json.dumps(o) + "\n" for o in orders()))
    answers = [{"id": i, "y": float(i), "at": f"2024-01-01T12:00:{20 + i}Z"} for i in (1, 3)]
    (folder / "told.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    return run_here(cards(folder), folder, folder / "out", folder / "state")


class Client:
    """Asks a server over one connection that is kept open."""

    def __init__(self, port: int) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def __call__(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        self.http.request("GET" if body is None else "POST", path, body, headers)
        answer = self.http.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if answer.headers["Content-Type"] == "application/json" else text


@pytest.fixture(scope="module")
def port(run: Run) -> Iterator[int]:
    server = serve(0, {}, lambda: (True, {"phase": "live"}), below={"/views/": Views(run)})
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(port: int) -> Iterator[Client]:
    client = Client(port)
    yield client
    client.http.close()


def test_the_row_of_a_key_with_its_version_and_freshness(ask: Client, run: Run) -> None:
    status, told = ask("/views/shops/a")
    assert run.publish is not None
    assert status == 200
    assert told == {
        "view": "shops",
        "version": run.publish.number,
        "frontier": "2024-01-01T12:00:09Z",
        "lag_seconds": {"local": 0.0, "global": 0.0},
        "phase": "backfill",
        "rows": [{"shop": "a", "n": 3, "x": 3.0, "at": "2024-01-01T12:00:04Z"}],
    }
    sock = ask.http.sock
    assert ask("/views/shops?shop=b")[1]["rows"][0]["n"] == 3
    assert ask("/views/shops", b'{"keys": ["b", "nobody", "a", "b", null]}') == (
        200,
        {
            **told,
            "rows": [
                {"shop": "b", "n": 3, "x": 4.5, "at": "2024-01-01T12:00:05Z"},
                None,
                told["rows"][0],
                {"shop": "b", "n": 3, "x": 4.5, "at": "2024-01-01T12:00:05Z"},
                {"shop": None, "n": 1, "x": 2.0, "at": "2024-01-01T12:00:09Z"},
            ],
        },
    )
    assert ask("/views/shops", b'{"keys": []}')[1]["rows"] == []
    assert ask.http.sock is sock, "all over one connection"


def test_a_key_that_is_not_there(ask: Client) -> None:
    status, told = ask("/views/shops/nobody")
    assert (status, told["view"], told["rows"]) == (404, "shops", [None])


def test_of_several_rows_of_a_key_the_newest(ask: Client) -> None:
    assert ask("/views/newest/a")[1]["rows"] == [{"id": 4, "shop": "a", "x": 2.0, "at": "2024-01-01T12:00:04Z"}]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/views/rows/9007199254740993", [2**53 + 1]),
        ("/views/rows/0003", [3]),
        ("/views/shops/%C3%A9%2F..%2F%25", ["é/../%"]),
        ("/views/shops/", [""]),
        ("/views/days/a/2024-01-01T00:00:00Z/true", [["a", "2024-01-01T01:00:00+01:00", True]]),
        ("/views/days?vip=false&day=2024-01-01&shop=a", [["a", "2024-01-01", False]]),
    ],
)
def test_keys_of_every_type(ask: Client, path: str, keys: list[Any]) -> None:
    status, one = ask(path)
    assert status == 200
    status, many = ask(path.partition("?")[0][: len("/views/") + 5].rstrip("/"), json.dumps({"keys": keys}).encode())
    assert (status, many["rows"]) == (200, one["rows"])
    assert one["rows"][0] is not None


def test_the_newest_prediction_and_the_training_set_as_of_a_time(ask: Client) -> None:
    status, told = ask("/views/m.predictions/3")
    assert (status, told["rows"][0]["id"], told["rows"][0]["model"]) == (200, 3, "m")
    status, then = ask("/views/m.training/1?as_of=2024-01-01T12:00:21Z")
    assert (status, list(then)) == (200, ["view", "as_of", "rows"])
    assert (then["rows"][0]["label"], then["rows"][0]["answered"]) == (1.0, "2024-01-01T12:00:21Z")
    assert ask("/views/m.training/1?as_of=2024-01-01T12:00:20.999999Z")[0] == 404
    many = ask("/views/m.training?as_of=2024-01-01T12:00:22Z", b'{"keys": [3, 1, 1]}')[1]["rows"]
    assert [r and r["id"] for r in many] == [None, 1, 1]
    assert ask("/views/m.training?as_of=2024-01-02", b'{"keys": [3, 4]}')[1]["rows"][0]["label"] == 3.0


def test_a_view_with_a_change_log_as_of_a_time_and_now(ask: Client) -> None:
    """The newest row of a key, of those that were there then."""
    for second, expected in ((1, [0, 1]), (3, [2, 3]), (59, [4, 5])):
        status, then = ask(f"/views/newest?as_of=2024-01-01T12:00:{second:02}Z", b'{"keys": ["a", "b", "c"]}')
        assert (status, then["as_of"]) == (200, f"2024-01-01T12:00:{second:02}Z")
        assert [r and r["id"] for r in then["rows"]] == [*expected, None]
    assert ask("/views/newest/a?as_of=2024-01-01T11:59:59Z")[0] == 404
    assert ask("/views/newest/a")[1]["rows"] == ask("/views/newest/a?as_of=2024-01-02")[1]["rows"]


WRONG = [
    ("/views/nothing/1", None, 404, '"nothing" cannot be looked up; there are: rows, shops, newest, days, m.pred'),
    ("/views/asked/1", None, 404, '"asked" cannot be looked up'),
    ("/views/", None, 404, '"" cannot be looked up'),
    ("/views/%00", None, 404, '"\\u0000" cannot be looked up'),
    ("/views/..%2F..%2Fetc/passwd", None, 404, '"../../etc" cannot be looked up'),
    ("/views/../../etc/passwd", None, 404, '".." cannot be looked up'),
    ("/views/shops/%ff", None, 400, "the path is no UTF-8"),
    ("/views/shops", None, 400, "expected the key of shops: /views/shops/SHOP, or /views/shops?shop=SHOP"),
    ("/views/shops/a/b", None, 400, "expected the key of shops"),
    ("/views/shops/a?shop=a", None, 400, "expected the key of shops"),
    ("/views/days/a", None, 400, "/views/days/SHOP/DAY/VIP, or /views/days?shop=SHOP&day=DAY&vip=VIP"),
    ("/views/shops?shop=a&more=1", None, 400, "expected the key of shops"),
    ("/views/shops?shop=a&shop=b", None, 400, "one thing twice"),
    ("/views/shops?shop", None, 400, "the query cannot be read"),
    ("/views/shops?shop=%ff", None, 400, "the query cannot be read"),
    ("/views/shops?" + "&".join(f"a{i}=1" for i in range(70)), None, 400, "the query cannot be read"),
    ("/views/rows/x", None, 400, 'id is "x"; expected an integer of 64 bits'),
    ("/views/rows/1.0", None, 400, 'id is "1.0"; expected an integer'),
    ("/views/rows/99999999999999999999", None, 400, "expected an integer of 64 bits"),
    ("/views/rows/-9223372036854775808", None, 400, "expected an integer of 64 bits"),
    ("/views/rows/%D9%A3", None, 400, "expected an integer"),
    ("/views/days/a/never/true", None, 400, 'day is "never"; expected a time such as 2013-02-01T12:00:00Z'),
    ("/views/days/a/0001-01-01T00:00:00+14:00/true", None, 400, "expected a time"),
    ("/views/days/a/2024-01-01/yes", None, 400, 'vip is "yes"; expected true or false'),
    (
        "/views/shops/a?as_of=2024-01-01",
        None,
        400,
        "so it is not known what it was at a time; those that have: m.training",
    ),
    ("/views/m.training/1", None, 400, "expected ?as_of=TIME"),
    ("/views/m.training/1?as_of=", None, 400, 'as_of is ""; expected a time'),
    ("/views/shops/a", b'{"keys": []}', 400, "keys are posted to /views/shops;"),
    ("/views/shops?shop=a", b'{"keys": []}', 400, "keys are posted to"),
    ("/views/shops", b"", 400, "the body is not JSON"),
    ("/views/shops", b'{"keys": [}', 400, "the body is not JSON"),
    ("/views/shops", b'{"keys": ["\xff"]}', 400, "the body is not JSON"),
    ("/views/shops", b'{"keys": ["\\ud800"]}', 400, "the body is not JSON"),
    ("/views/shops", b"[" * 900_000, 400, "the body is not JSON"),
    ("/views/shops", b'{"keys":' + b"[" * 500 + b"]" * 500 + b"}", 400, "shop is a list; expected text"),
    ("/views/shops", b'["a"]', 400, 'expected {"keys": '),
    ("/views/shops", b'{"keys": "a"}', 400, 'expected {"keys": '),
    ("/views/shops", b'{"keys": [], "more": 1}', 400, 'expected {"keys": '),
    ("/views/shops", b'{"keys": [1]}', 400, "shop is 1; expected text"),
    ("/views/rows", b'{"keys": [true]}', 400, "id is true; expected an integer"),
    ("/views/rows", b'{"keys": [1.0]}', 400, "id is 1.0; expected an integer"),
    ("/views/rows", b'{"keys": ["1"]}', 400, 'id is "1"; expected an integer'),
    ("/views/rows", b'{"keys": [9223372036854775808]}', 400, "expected an integer of 64 bits"),
    ("/views/days", b'{"keys": ["a"]}', 400, 'a key is "a"; expected a list of shop, day, vip'),
    ("/views/days", b'{"keys": [["a", 5, true]]}', 400, "day is 5; expected a time"),
    ("/views/days", b'{"keys": [["a", null, 1]]}', 400, "vip is 1; expected true or false"),
    (
        "/views/rows",
        json.dumps({"keys": [0] * (MOST + 1)}).encode(),
        400,
        "there are 1,001 keys; expected at most 1,000",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "text"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_what_is_asked_amiss_is_told(ask: Client, path: str, body: bytes | None, status: int, text: str) -> None:
    found, told = ask(path, body)
    assert (found, list(told)) == (status, ["error"])
    assert text in told["error"]
    assert ask("/views/shops/a")[0] == 200


def test_as_many_keys_as_may_be(ask: Client) -> None:
    status, told = ask("/views/rows", json.dumps({"keys": list(range(MOST))}).encode())
    assert (status, len(told["rows"]), sum(r is not None for r in told["rows"])) == (200, MOST, 8)


def test_a_body_that_is_too_long_is_refused_before_it_is_read(ask: Client) -> None:
    ask.http.putrequest("POST", "/views/shops")
    ask.http.putheader("Content-Length", "1000001")
    ask.http.endheaders()
    answer = ask.http.getresponse()
    assert (answer.status, answer.read()) == (413, b"the body has 1000001 bytes; expected at most 1000000\n")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Transfer-Encoding", "chunked")],
        [("Content-Length", "2"), ("Content-Length", "4")],
        [("Content-Length", "2"), ("Transfer-Encoding", "chunked")],
        [("Content-Length", "-1")],
        [("Content-Length", "+2")],
    ],
    ids=str,
)
def test_a_body_of_doubtful_length_is_not_read(ask: Client, headers: list[tuple[str, str]]) -> None:
    ask.http.putrequest("POST", "/views/shops")
    for name, value in headers:
        ask.http.putheader(name, value)
    ask.http.endheaders()
    answer = ask.http.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (411, "close")


def test_a_key_may_hold_anything(ask: Client) -> None:
    for key in ("\x00", "a\x00b", "../../../etc/passwd", "\r\nX: y", "𝄞", "a" * 1000, "'; DROP TABLE", "{}", "%"):
        assert ask(f"/views/shops/{quote(key, safe='')}")[1]["rows"] == [None]
        assert ask("/views/shops", json.dumps({"keys": [key]}).encode())[1]["rows"] == [None]


def test_only_who_may_ask_is_answered(run: Run) -> None:
    server = serve(0, {}, lambda: (True, {}), "0.0.0.0", TOKEN, {"/views/": Views(run)})
    try:
        body = b'{"keys": ["a"]}'
        for path, posted in (("/views/shops/a", None), ("/views/shops", body), ("/views/nothing/a", None)):
            ask = Client(server.server_address[1])
            for wrong in ({}, {"Authorization": "Bearer " + TOKEN[:-1]}, {"Authorization": "Basic " + TOKEN}):
                status, text = ask(path, posted, **wrong)
                assert (status, text) == (401, b"expected the token of the worker, as Authorization: Bearer TOKEN\n")
            assert ask(path, posted, Authorization="Bearer " + TOKEN)[0] == (404 if "nothing" in path else 200)
    finally:
        server.shutdown()
        server.server_close()


def test_a_page_led_here_by_its_own_name_is_refused(ask: Client) -> None:
    assert ask("/views/shops/a", Host="evil.example")[0] == 403
    assert ask("/views/shops", b'{"keys": ["a"]}', Host="evil.example:80")[0] == 403


def test_the_document_is_valid_and_true(ask: Client, run: Run) -> None:
    for token in (False, True):
        OpenAPIV31SpecValidator(made := document(run.graph, "1", MOST, token)).validate()
        assert ("security" in made["paths"]["/views/shops"]["post"]) == token
    resolved = {"components": made["components"]}
    asked = {
        "/views/rows/{id}": "/views/rows/3",
        "/views/shops/{shop}": "/views/shops/nobody",
        "/views/newest/{shop}": "/views/newest/a",
        "/views/days/{shop}/{day}/{vip}": "/views/days/a/2024-01-01/true",
        "/views/m.predictions/{id}": "/views/m.predictions/1",
        "/views/m.training/{id}": "/views/m.training/1?as_of=2024-01-02",
    }
    assert {p for p in made["paths"] if "{" in p} == set(asked)
    for path, example in asked.items():
        status, told = ask(example)
        schema = made["paths"][path]["get"]["responses"][str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(told, {**schema, **resolved})
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**told, "rows": [{"more": 1}]}, {**schema, **resolved})
    newest = made["paths"]["/views/newest/{shop}"]["get"]
    assert [(p["name"], p["required"]) for p in newest["parameters"]] == [("shop", True), ("as_of", False)]
    schema = newest["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(ask("/views/newest/a?as_of=2024-01-02")[1], {**schema, **resolved})
    body = made["paths"]["/views/days"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate({"keys": [["a", None, True]]}, body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"keys": [["a", None]]}, body)


def test_what_cannot_be_looked_up_is_said_when_it_is_declared() -> None:
    p = Pipeline("p")
    s = p.source("s", key="k", at="at", schema={"k": int, "as_of": int, "x": float, "at": datetime})
    with pytest.raises(DefinitionError, match=r"view 'v' has lookup=True, but its rows have no key any more"):
        p.view("v", s, project("x"), lookup=True)
    with pytest.raises(DefinitionError, match=r"view 'v': lookup: 'x' has type Float64"):
        p.view("v", s, project("k", "x"), lookup="x")
    with pytest.raises(DefinitionError, match="view 'v': lookup"):
        p.view("v", s, project("k", "x"), lookup=["k", "nothing"])
    with pytest.raises(DefinitionError, match="lookup by a column 'as_of'"):
        p.view("v", s, project("k", "as_of"), lookup=["k", "as_of"])
    plain = p.view("plain", s, aggregate(by="k", n=count(), x=total("x")))
    before = p.definition()
    p.view("v", plain, project("k", "n"), lookup=True)
    assert set(p.definition()) - set(before) == {"step v (project)", "lookup of v"}
    check_alone(p, Settings(), False)
    for settings, addresses in ((Settings(processes=2), False), (Settings(), True)):
        with pytest.raises(
            SettingsError, match=r"v: one process keeps what is looked up .* expected processes to be 1"
        ):
            check_alone(p, settings, addresses)


def test_state_of_another_lookup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "freshet.toml").write_text(
        'port = 0\n[sources.orders]\npath = "orders.jsonl"\n[sources.told]\npath = "told.jsonl"\n'
    )
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(o) + "\n" for o in orders()))
    (tmp_path / "told.jsonl").touch()
    run_here(cards(tmp_path), tmp_path, tmp_path / "out", tmp_path / "state")
    (tmp_path / "pipeline.py").write_text(PIPELINE.replace(', lookup="shop"', ', lookup="id"'))
    with pytest.raises(StateError, match="lookup of newest changed"):
        run_here(cards(tmp_path), tmp_path, tmp_path / "out", tmp_path / "state")
