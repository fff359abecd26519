"""What a run answers over HTTP, and whom.

Who may ask: on the loopback address whoever is on this machine, but no page of a browser that was led here by a name
(the `Host` must be a loopback one). With a token whoever has it; `/healthz` and `/readyz` answer the others, too, and
tell them no more than whether and where in its life the worker is. A browser brings no token with the first page, so
that page, `/`, goes to everyone, holds no data and asks for it. A request has a few seconds and a few kilobytes,
one that is posted a megabyte. A connection is kept open for a few seconds, so that a client may ask again; there are
places for those that have asked nothing yet, so that those that stay open keep nobody out.
"""

from __future__ import annotations

import hmac
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
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


class Asked(NamedTuple):
    """A request. path, query: as they came, not decoded. body: None unless it was posted."""

    path: str
    query: str
    body: bytes | None


_HEAD, _BODY, _SECONDS, _AT_ONCE = 8192, 1_000_000, 5.0, 16
"""Of a request: the most bytes of its head and its body, the seconds in which each must be there (and the answer
taken), how many clients at a time that have asked nothing yet."""

_KEPT, _IDLE = 64, 3.0
"""How many connections are kept open after an answer, and for how many seconds without a request."""

_END = re.compile(rb"\r?\n\r?\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._new, self._kept = BoundedSemaphore(_AT_ONCE), BoundedSemaphore(_KEPT)
        self._place: dict[Any, BoundedSemaphore] = {}
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        socket.socket.bind(self.socket, self.server_address)  # the base class asks for the name of the host, slowly
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._new.acquire(blocking=False):
            self._place[request] = self._new
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._place.pop(request).release()

    def keep(self, request: Any) -> bool:
        """Whether a connection that was answered may stay open; it then takes no place of those that come."""
        if self._place[request] is self._new and self._kept.acquire(blocking=False):
            self._place[request] = self._kept
            self._new.release()
        return self._place[request] is self._kept

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that left, or was too slow
            super().handle_error(request, client_address)


class _Incoming:
    """What comes over a connection, request by request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._read = connection, b""

    def head(self, idle: float) -> bytes | None:
        """The head of the next request; None when it is not there in time, or too long. idle: seconds to its start."""
        if not self._read and not self._more(_HEAD, time.monotonic() + idle):
            return None
        deadline = time.monotonic() + _SECONDS
        while (end := _END.search(self._read, 0, _HEAD)) is None:
            if len(self._read) >= _HEAD or not self._more(_HEAD - len(self._read), deadline):
                return None
        head, self._read = self._read[: end.end()], self._read[end.end() :]
        return head

    def body(self, length: int) -> bytes | None:
        """So many bytes; None when they are not there in time."""
        deadline = time.monotonic() + _SECONDS
        while len(self._read) < length:
            if not self._more(length - len(self._read), deadline):
                return None
        body, self._read = self._read[:length], self._read[length:]
        return body

    def _more(self, most: int, deadline: float) -> bool:
        if (left := deadline - time.monotonic()) <= 0:
            return False
        self._connection.settimeout(left)
        more = self._connection.recv(most)
        self._connection.settimeout(_SECONDS)
        self._read += more
        return bool(more)


def serve(
    port: int,
    pages: Mapping[str, Callable[[], Answer]],
    ready: Callable[[], tuple[bool, dict[str, Any]]],
    host: str = "127.0.0.1",
    token: str = "",
    below: Mapping[str, Callable[[Asked], Answer]] | None = None,
    shell: Answer | None = None,
) -> ThreadingHTTPServer:
    """Serve `/healthz`, `/readyz` and pages in a thread of its own. On the loopback address a free port is taken
    when `port` is not; elsewhere others know the port, and it raises `OSError`.

    pages: by path, what it is answered. ready: whether it does its work, and what to tell of that.
    token: what `Authorization: Bearer` must bring to see more than `ready` and `phase`; elsewhere than on the
    loopback address it must not be empty. below: by the beginning of a path, which ends in "/", what all requests
    below it are answered, also posted ones. shell: what `/` is answered, by status 401 where a token is expected and
    not brought.
    """
    local = is_loopback(host)
    if not (local or token):
        raise ValueError(f"{host!r} is served without a token; expected one, or the loopback address")
    prefixes = below or {}
    known_paths = ", ".join([*([] if shell is None else ["/"]), *pages, *prefixes, "/healthz", "/readyz"])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "freshet", ""
        disable_nagle_algorithm = True
        server: _Server

        def handle(self) -> None:
            self.incoming, idle = _Incoming(self.connection), _SECONDS
            while (head := self.incoming.head(idle)) is not None:
                self.rfile = BytesIO(head)
                self.handle_one_request()
                if self.close_connection:
                    return
                idle = _IDLE

        def do_GET(self) -> None:
            if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
                self.close_connection = True  # what follows is no request
            path, self.known = self.path.partition("?")[0], self._is_known()
            if self._is_strange():
                self._answer(_STRANGE)
            elif path == "/" and shell is not None:
                self._answer(shell if self.known else shell._replace(status=401))
            elif (path in pages or self._below(path)) and not self.known:
                self._answer(_UNKNOWN)
            elif path in pages:
                self._answer(pages[path]())
            elif answer := self._below(path):
                self._answer(answer(Asked(path, self.path.partition("?")[2], None)))
            elif path in ("/healthz", "/readyz"):
                good, told = ready()
                told = told if self.known else {"ready": good, "phase": told.get("phase")}
                self._answer(as_json(told)._replace(status=200 if good or path == "/healthz" else 503))
            else:
                self._answer(Answer(404, f"not found; there are {known_paths}\n".encode()))

        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            lengths, self.known = self.headers.get_all("Content-Length", []), self._is_known()
            if (answer := self._below(path)) is None:
                self.send_error(501, "nothing is to be posted here")
            elif self._is_strange():
                self._answer(_STRANGE)
            elif not self.known:
                self._answer(_UNKNOWN)
            elif (
                "Transfer-Encoding" in self.headers or len(lengths) != 1 or not re.fullmatch("[0-9]{1,18}", lengths[0])
            ):
                self._answer(Answer(411, b"expected one Content-Length, and no Transfer-Encoding\n"))
            elif int(lengths[0]) > _BODY:
                self._answer(Answer(413, b"the body has %d bytes; expected at most %d\n" % (int(lengths[0]), _BODY)))
            elif (body := self.incoming.body(int(lengths[0]))) is None:
                self.close_connection = True
            else:
                self._answer(answer(Asked(path, query, body)))

        @staticmethod
        def _below(path: str) -> Callable[[Asked], Answer] | None:
            return next((answer for begin, answer in prefixes.items() if path.startswith(begin)), None)

        def _is_strange(self) -> bool:
            return local and not is_loopback(_name(self.headers.get("Host", "")))

        def _is_known(self) -> bool:
            if not token:
                return True
            scheme, _, brought = self.headers.get("Authorization", "").partition(" ")
            same = hmac.compare_digest(brought.strip().encode("utf-8", "replace"), token.encode())
            return same and scheme.lower() == "bearer"

        def _answer(self, answer: Answer) -> None:
            if self.request_version != "HTTP/1.1" or answer.status in _LAST or not self.known:
                self.close_connection = True
            if not (self.close_connection or self.server.keep(self.connection)):
                self.close_connection = True
            head = [
                f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
                f"Server: {self.server_version}",
                f"Date: {self.date_time_string()}",
                f"Content-Type: {answer.kind}",
                f"Content-Length: {len(answer.body)}",
                "Cache-Control: no-store",
                f"Content-Security-Policy: {answer.policy}",
                "Referrer-Policy: no-referrer",
                "X-Content-Type-Options: nosniff",
                *(["Connection: close"] if self.close_connection else []),
                *(["WWW-Authenticate: Bearer"] if answer.status == 401 else []),
            ]
            self.wfile.write("\r\n".join([*head, "", ""]).encode() + answer.body)  # at once: a second segment waits

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


_LAST = {401, 403, 411, 413}
"""Statuses behind which a connection is closed: who may not ask, and bodies that were not read."""
_STRANGE = Answer(403, b"the Host is none of this machine; ask for 127.0.0.1 or localhost\n")
_UNKNOWN = Answer(401, b"expected the token of the worker, as Authorization: Bearer TOKEN\n")


def _name(host: str) -> str:
    """The name or address in a `Host`, without the port.

    >>> _name("localhost:9310"), _name("[::1]:9310"), _name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
