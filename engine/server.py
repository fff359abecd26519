"""What a run answers over HTTP, and whom.

Who may ask: on the loopback address whoever is on this machine, but no page of a browser that was led here by a name
(the `Host` must be a loopback one). With a token whoever has it; `/healthz` and `/readyz` answer the others, too, and
tell them no more than whether and where in its life the worker is. A browser brings no token with the first page, so
that page, `/`, goes to everyone, holds no data and asks for it. A request has a few seconds and a few kilobytes.
"""

from __future__ import annotations

import hmac
import socket
import sys
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import BoundedSemaphore, Thread
from typing import Any, NamedTuple

import orjson

from engine.settings import is_loopback


class Answer(NamedTuple):
    """What a request is answered. policy: what a browser may do with it (`Content-Security-Policy`)."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    policy: str = "default-src 'none'; frame-ancestors 'none'"


def as_json(told: Any) -> Answer:
    """JSON values as an answer."""
    return Answer(200, orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE), "application/json")


_HEAD, _SECONDS, _AT_ONCE = 8192, 5.0, 16
"""Of a request: the most bytes, the seconds in which it must be there (and the answer taken), how many at a time."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = BoundedSemaphore(_AT_ONCE)
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        socket.socket.bind(self.socket, self.server_address)  # the base class asks for the name of the host, slowly
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that left, or was too slow
            super().handle_error(request, client_address)


def _head(connection: socket.socket) -> bytes | None:
    """The head of a request; None when it is not there in time, or too long."""
    deadline, read = time.monotonic() + _SECONDS, b""
    while b"\r\n\r\n" not in read and b"\n\n" not in read:
        if (left := deadline - time.monotonic()) <= 0 or len(read) >= _HEAD:
            return None
        connection.settimeout(left)
        if not (more := connection.recv(_HEAD - len(read))):
            return None
        read += more
    connection.settimeout(_SECONDS)
    return read


def serve(
    port: int,
    pages: Mapping[str, Callable[[], Answer]],
    ready: Callable[[], tuple[bool, dict[str, Any]]],
    host: str = "127.0.0.1",
    token: str = "",
    shell: Answer | None = None,
) -> ThreadingHTTPServer:
    """Serve `/healthz`, `/readyz` and pages in a thread of its own. On the loopback address a free port is taken
    when `port` is not; elsewhere others know the port, and it raises `OSError`.

    pages: by path, what it is answered. ready: whether it does its work, and what to tell of that.
    token: what `Authorization: Bearer` must bring to see more than `ready` and `phase`; elsewhere than on the
    loopback address it must not be empty. shell: what `/` is answered, by status 401 where a token is expected and not
    brought.
    """
    local = is_loopback(host)
    if not (local or token):
        raise ValueError(f"{host!r} is served without a token; expected one, or the loopback address")
    known_paths = ", ".join([*([] if shell is None else ["/"]), *pages, "/healthz", "/readyz"])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "freshet", ""

        def handle(self) -> None:
            if (head := _head(self.connection)) is not None:
                self.rfile = BytesIO(head)
                self.handle_one_request()

        def do_GET(self) -> None:
            path, known = self.path.partition("?")[0], not token or self._has_token()
            if local and not is_loopback(_name(self.headers.get("Host", ""))):
                self._answer(Answer(403, b"the Host is none of this machine; ask for 127.0.0.1 or localhost\n"))
            elif path == "/" and shell is not None:
                self._answer(shell if known else shell._replace(status=401))
            elif path in pages and not known:
                self._answer(Answer(401, b"expected the token of the worker, as Authorization: Bearer TOKEN\n"))
            elif path in pages:
                self._answer(pages[path]())
            elif path in ("/healthz", "/readyz"):
                good, told = ready()
                told = told if known else {"ready": good, "phase": told.get("phase")}
                self._answer(as_json(told)._replace(status=200 if good or path == "/healthz" else 503))
            else:
                self._answer(Answer(404, f"not found; there are {known_paths}\n".encode()))

        def _has_token(self) -> bool:
            scheme, _, brought = self.headers.get("Authorization", "").partition(" ")
            same = hmac.compare_digest(brought.strip().encode("utf-8", "replace"), token.encode())
            return same and scheme.lower() == "bearer"

        def _answer(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Connection", "close")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", answer.policy)
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            if answer.status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args: Any) -> None:
            return None

    try:
        server = _Server(host, port, Handler)
    except OSError:
        if not local:
            raise
        server = _Server(host, 0, Handler)
    Thread(target=server.serve_forever, name="server", daemon=True).start()
    return server


def _name(host: str) -> str:
    """The name or address in a `Host`, without the port.

    >>> _name("localhost:9310"), _name("[::1]:9310"), _name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
