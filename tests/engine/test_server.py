"""Who may ask a run, and how: from where, with what token, by what name, how long and how much."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine import server as served_by
from engine.metrics import exposition
from engine.server import Answer, Asked, serve
from engine.settings import Settings, SettingsError, load, token_for
from tests.flow.running import cards, freshet, project

TOKEN = "0123456789abcdef0123456789abcdef"
FIGURES: dict[str, Any] = {
    "pipeline": "shop",
    "sources": {
        "orders": {
            "changes": 3,
            "late": 0,
            "dead_letters": 0,
            "idle": False,
            "watermark": None,
            "standing": "current",
            "last_change": None,
            "last_heard": None,
            "left": {},
        }
    },
    "views": {},
    "steps": {},
    "models": {},
    "expectations": [],
    "worker": {
        "read_ratio": 1.0,
        "batches_in_flight": 0,
        "brokers_silent_seconds": 0.0,
        "unanswered_messages": 0,
        "steps": {},
        "checkpoints": {"epoch_seconds": 2.0, "count": 0, "at": None, "seconds": 0.0},
    },
}
TOLD = {"pipeline": "shop", "ready": False, "phase": "backfill", "brokers": "silent for 9 s"}

Served = Callable[..., ThreadingHTTPServer]


@pytest.fixture
def served() -> Iterator[Served]:
    """Serves figures on a free port, as asked."""
    made = []

    def make(host: str = "127.0.0.1", token: str = "", ready: bool = False) -> ThreadingHTTPServer:
        server = serve(
            0, {"/metrics": exposition(lambda: (FIGURES, True))}, lambda: (ready, {**TOLD, "ready": ready}), host, token
        )
        made.append(server)
        return server

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


def get(server: ThreadingHTTPServer, path: str, **headers: str) -> tuple[int, str]:
    """The status and the body of an answer."""
    url = f"http://127.0.0.1:{server.server_address[1]}{path}"
    asked = urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_on_the_loopback_address_no_token_is_needed(served: Served) -> None:
    server = served(ready=True)
    status, text = get(server, "/metrics")
    assert status == 200
    assert 'freshet_changes_total{source="orders"} 3.0' in text
    assert get(server, "/metrics?name[]=x")[0] == 200
    assert json.loads(get(server, "/readyz")[1]) == {**TOLD, "ready": True}
    assert get(server, "/nothing")[0] == 404


def test_a_token_is_asked_for_and_without_it_only_readiness_is_told(served: Served) -> None:
    server = served("0.0.0.0", TOKEN)
    for wrong in ({}, {"Authorization": "Bearer " + TOKEN[:-1]}, {"Authorization": "Basic " + TOKEN}):
        status, text = get(server, "/metrics", **wrong)
        assert (status, "freshet" in text) == (401, False)
    assert get(server, "/metrics", Authorization="Bearer é" + TOKEN)[0] == 401
    assert get(server, "/metrics", Authorization="bearer " + TOKEN)[0] == 200
    status, text = get(server, "/readyz")
    assert (status, json.loads(text)) == (503, {"ready": False, "phase": "backfill"})
    status, text = get(server, "/healthz")
    assert (status, json.loads(text)) == (200, {"ready": False, "phase": "backfill"})
    assert json.loads(get(server, "/readyz", Authorization="Bearer " + TOKEN)[1]) == TOLD


def test_the_token_is_compared_in_constant_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(served_by.hmac, "compare_digest", lambda a, b: bool(asked.append((a, b))) or a == b)
    assert get(served("0.0.0.0", TOKEN), "/metrics", Authorization="Bearer x" * 3)[0] == 401
    assert asked == [(b"xBearer xBearer x", TOKEN.encode())]


@pytest.mark.parametrize("name", ["evil.example", "evil.example:9310", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_a_page_led_to_the_loopback_address_by_its_own_name_is_refused(served: Served, name: str) -> None:
    server = served(ready=True)
    for path in ("/metrics", "/readyz"):
        assert get(server, path, Host=name)[0] == 403


@pytest.mark.parametrize("name", ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.2:1", "[::1]:9310"])
def test_names_of_this_machine_are_not_refused(served: Served, name: str) -> None:
    assert get(served(), "/metrics", Host=name)[0] == 200


def test_a_taken_port_is_replaced_on_the_loopback_address_only(served: Served) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        free = serve(port, {}, lambda: (True, TOLD))
        free.shutdown()
        free.server_close()
        assert free.server_address[1] != port
        with pytest.raises(OSError, match="in use"):
            serve(port, {}, lambda: (True, TOLD), "0.0.0.0", TOKEN)
    with pytest.raises(ValueError, match="without a token"):
        serve(0, {}, lambda: (True, TOLD), "0.0.0.0")


def raw(server: ThreadingHTTPServer, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) as s:
        got = b""
        try:
            for part in parts:
                s.sendall(part)
                time.sleep(pause)
            while more := s.recv(65536):
                got += more
        except (BrokenPipeError, ConnectionResetError):
            pass
        return got


def test_a_request_that_is_too_long_or_too_slow_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    server = served()
    good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    assert raw(server, good, b"\r\n").startswith(b"HTTP/1.1 200")
    assert raw(server, good + b"X: " + b"x" * 9000 + b"\r\n\r\n") == b""
    assert raw(server, b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 501")
    monkeypatch.setattr(served_by, "_SECONDS", 0.3)
    began = time.monotonic()
    assert raw(server, *(b"%c" % c for c in good), pause=0.05) == b"", "also when each byte comes in time"
    assert time.monotonic() - began < 4


def test_slow_clients_take_a_bounded_number_of_places(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_by, "_SECONDS", 0.5)
    server = served(ready=True)
    idle = [socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) for _ in range(20)]
    try:
        assert [s.recv(1) for s in idle[16:]] == [b""] * 4
        for s in idle:
            s.close()
        deadline = time.monotonic() + 5
        while True:
            try:
                assert get(server, "/healthz")[0] == 200
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        for s in idle:
            s.close()


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def test_a_connection_is_kept_for_a_few_seconds(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_by, "_IDLE", 0.3)
    server = served(ready=True)
    began = time.monotonic()
    two = raw(server, GET + b"\r\n" + GET + b"\r\n" + GET[:20], GET[20:], b"\r\n", pause=0.1)
    assert two.count(b"HTTP/1.1 200") == 3, "also when they come at once, or in parts"
    assert b"Connection" not in two
    assert 0.3 < time.monotonic() - began < 4
    assert raw(server, GET + b"Connection: close\r\n\r\n" + GET + b"\r\n").count(b"HTTP/1.1 200") == 1
    old = raw(server, GET.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n" + GET + b"\r\n")
    assert old.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in old


def test_what_follows_a_request_with_a_body_is_no_request(served: Served) -> None:
    server = served(ready=True)
    inner = GET + b"\r\n"
    for header in (b"Content-Length: %d" % len(inner), b"Transfer-Encoding: chunked", b"Content-Length: x"):
        assert raw(server, GET + header + b"\r\n\r\n" + inner).count(b"HTTP/1.1") == 1
    posted = b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner)
    assert raw(server, posted + inner).count(b"HTTP/1.1") == 1


def test_connections_that_stay_keep_nobody_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_by, "_IDLE", 20.0)
    server = served(ready=True)
    kept = []
    try:
        for i in range(70):
            s = socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5)
            kept.append(s)
            s.sendall(GET + b"\r\n")
            assert (b"Connection: close" in s.recv(65536)) == (i >= 64), "only so many are kept"
        assert get(server, "/metrics")[0] == 200
    finally:
        for s in kept:
            s.close()


def test_who_brings_no_token_is_not_kept(served: Served) -> None:
    server = served("0.0.0.0", TOKEN, ready=True)
    assert raw(server, GET + b"\r\n" + GET + b"\r\n").count(b"HTTP/1.1 200") == 1


def test_a_body_is_taken_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_by, "_SECONDS", 0.4)
    monkeypatch.setattr(served_by, "_IDLE", 0.3)
    asked: list[Asked] = []

    def answer(one: Asked) -> Answer:
        asked.append(one)
        return Answer(200, b"%d" % len(one.body or b""))

    server = serve(0, {}, lambda: (True, TOLD), below={"/views/": answer})
    head = b"POST /views/a%2Fb?c=d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    try:
        assert raw(server, head + b"\r\nab", b"cde" + head + b"\r\n12345", pause=0.1).count(b"HTTP/1.1 200") == 2
        assert asked == [Asked("/views/a%2Fb", "c=d", b"abcde"), Asked("/views/a%2Fb", "c=d", b"12345")]
        assert raw(server, head + b"Expect: 100-continue\r\n\r\n", b"abcde", pause=0.1).startswith(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"
        )
        began = time.monotonic()
        assert raw(server, head + b"\r\nabc") == b"", "a body that does not come"
        assert raw(server, head + b"\r\n", *[b"a"] * 4, pause=0.15) == b"", "or comes slowly"
        assert time.monotonic() - began < 4
        assert len(asked) == 3
    finally:
        server.shutdown()
        server.server_close()


def test_the_token_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRESHET_TOKEN", raising=False)
    assert token_for(Settings()) == ""
    assert token_for(Settings(host="0.0.0.0", port=0)) == ""
    with pytest.raises(SettingsError, match=r"host is '::', .* there is no token; set FRESHET_TOKEN"):
        token_for(Settings(host="::"))
    monkeypatch.setenv("FRESHET_TOKEN", TOKEN)
    assert token_for(Settings(host="0.0.0.0")) == TOKEN
    for unfit in ("short", "sixteen letters, and spaces", "line\n" * 9):
        monkeypatch.setenv("FRESHET_TOKEN", unfit)
        with pytest.raises(SettingsError, match="expected 16 to 512 letters") as error:
            token_for(Settings())
        assert unfit not in str(error.value)


def test_without_a_token_the_command_refuses_before_it_makes_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FRESHET_TOKEN", raising=False)
    folder = project(tmp_path / "cards")
    done = freshet("run", folder, "--host", "0.0.0.0", "--port", "9310", cwd=tmp_path)
    assert done.returncode == 2
    assert "host is '0.0.0.0', where others can read /metrics, and there is no token; set FRESHET_TOKEN" in done.stderr
    assert not (tmp_path / "state").exists()
    (folder / "freshet.toml").write_text('host = "0.0.0.0"\n' + (folder / "freshet.toml").read_text())
    assert load(folder, {}).host == "0.0.0.0"
    assert cards(folder).name == "cards"
