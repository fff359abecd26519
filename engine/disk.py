"""Files that cannot be written: told in one line, with the name and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DiskError(OSError):
    """A file that cannot be written; the text names it and the cure."""


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Errors of the system are told as those of this file.

    >>> with writing("out/orders.jsonl"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    engine.disk.DiskError: 'out/orders.jsonl' cannot be written: No space left on device; make room
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(f"{str(path)!r} cannot be written: {error.strerror or error}; make room") from None
