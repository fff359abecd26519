"""What a test does on a machine that lacks what it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.broker.broker import MissingError


@contextmanager
def needs() -> Iterator[None]:
    """Skips the test when something is missing, which is said at the end of the run; in CI it is a failure."""
    try:
        yield
    except MissingError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"Kafka: {error}")
