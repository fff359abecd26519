"""Asks a worker how it stands."""

from __future__ import annotations

from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import orjson

_SECONDS, _MOST = 5.0, 1 << 26


class AskError(RuntimeError):
    """No worker answered as one does; the text says which was asked, what came, and what to do."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = build_opener(ProxyHandler({}), _NoRedirect)
"""Goes to the worker itself: a token is shown to no proxy, and follows no redirect."""


def ask(url: str, token: str = "") -> dict[str, Any]:
    """What a worker at this address (http://HOST:PORT) says in `/status.json`. Raises `AskError`."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        fits = False
    if not fits:
        raise AskError(f"{url!r} is not the address of a worker; expected http://HOST:PORT")
    request = Request(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/status.json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with _OPENER.open(request, timeout=_SECONDS) as answer:
            told = orjson.loads(answer.read(_MOST))
    except HTTPError as error:
        if error.code == 401:
            cure = "the one in FRESHET_TOKEN is not its own" if token else "set FRESHET_TOKEN"
            raise AskError(f"the worker at {url} asks for a token; {cure}") from None
        raise AskError(
            f"{url} answers with status {error.code}; expected a worker (freshet run ... --follow)"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise AskError(
            f"no worker answers at {url} ({told}); start one with freshet run PIPELINE --follow, or give its address"
        ) from None
    if not isinstance(told, dict) or "states" not in told:
        raise AskError(f"what answers at {url} is no worker; expected one of this version")
    return told
