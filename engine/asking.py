"""Asking a worker how it stands, over HTTP, from another process."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

from engine.settings import TOKEN

_SECONDS = 5.0


class NoAnswerError(RuntimeError):
    """No worker answers, or not to us; the text says where, what came instead, and the cure."""


def ask(url: str, path: str) -> Any:
    """What a worker answers to a path, as plain values. Raises `NoAnswerError`.

    url: such as http://127.0.0.1:9310. The token, where there is one, comes from the environment.
    """
    where = f"{url.rstrip('/')}{path}"
    token = os.environ.get(TOKEN, "")
    asked = urllib.request.Request(where, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise NoAnswerError(f"{where} wants the token of the worker; set {TOKEN}") from None
        raise NoAnswerError(f"{where} answers {error.code}; is it a worker of Freshet, and of this version?") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise NoAnswerError(
            f"no worker answers at {where} ({why}); is it running (freshet run PIPELINE --follow), and on that port?"
        ) from None
