"""Files of records, one per line, plain or gzip (told by its first bytes), read in order and from any position.

A position is an offset in the uncompressed bytes, where a line begins; the same file read again from a position gives
exactly the rest. A file may grow, and a followed one is read on; what was read of it must not change: a file that is
shorter than the position, that was replaced, or whose beginning has another `fingerprint` is refused, for to go on in
it would lose or repeat records in silence.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from engine.scan import Records
from operators.delta import Ints

_BLOCK = 1 << 17
_LF, _CR = 10, 13
_PRINT = 1 << 10
"""The most bytes that a fingerprint covers."""


class LinesError(RuntimeError):
    """A file that cannot be read on; the text names it, what was found and the cure."""


class Lines:
    r"""The lines of a file, in order.

    position: where to begin. follow: whether the file is still written: an unfinished last line is then left until it
    is finished; otherwise the end of the file ends it. max_line: a longer line is handed out cut to so many bytes, to
    bound memory; keep it above the longest record that is accepted anywhere. Not called from two threads at once.

    Raises `FileNotFoundError`, `IsADirectoryError`, or `LinesError` when the position cannot be one of this file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "changes.jsonl"
    >>> _ = path.write_bytes(b'{"n":1}\n{"n":2}\n')
    >>> lines = Lines(path)
    >>> lines.read()
    (Records(b'{"n":1}', b'{"n":2}'), array([0, 8]))
    >>> lines.position, lines.ended
    (16, True)
    >>> Lines(path, position=8).read()
    (Records(b'{"n":2}'), array([8]))
    """

    def __init__(self, path: Path, position: int = 0, *, follow: bool = False, max_line: int = 64 << 20) -> None:
        self.path = path
        self.follow = follow
        self.max_line = max_line
        self.position = position
        """Where the next unread line begins, in uncompressed bytes."""
        if path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a directory: expected a file with one record per line")
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no file {str(path)!r}: expected a file with one record per line; put it there, or mend the path"
            ) from None
        self._print = b""
        zipped = os.pread(self._file.fileno(), 2, 0) == b"\x1f\x8b"
        if zipped and follow:
            raise LinesError(
                f"{str(path)!r} is gzip, which cannot be followed: unpack it, or read it without following"
            )
        self._unzip = zlib.decompressobj(31) if zipped else None
        self._packed = b""
        self._between = True
        self._buffer = b""
        self._used = 0
        self._read = 0
        self._exhausted = False
        self._broken: str | None = None
        self._about = _BLOCK
        self._head = b""
        self._length = 0
        self._complete = False
        if position:
            self._seek(position)

    @property
    def total(self) -> int:
        """The size of the file in bytes, compressed if it is."""
        return os.fstat(self._file.fileno()).st_size

    def size_left(self, position: int | None = None) -> int:
        """How many bytes of the file are unread, or behind a position; if it is compressed those unread, about."""
        reached = self.position if position is None else position
        return max(0, self.total - (reached if self._unzip is None else self._read))

    @property
    def ended(self) -> bool:
        """Whether no line is there now; without following: for good. Looks ahead in the file."""
        return not self._look(self._about) and self._broken is None

    @property
    def fingerprint(self) -> str:
        """What tells this file from others: "length:hash" of its first bytes, as many as there are, at most 1 KiB."""
        if len(self._print) < _PRINT:
            self._print = os.pread(self._file.fileno(), _PRINT, 0)
        return _fingerprint(self._print)

    def check(self, fingerprint: str) -> None:
        """Raises `LinesError` when the file does not begin as the one did whose fingerprint this is."""
        length = int(fingerprint.partition(":")[0])
        found = _fingerprint(os.pread(self._file.fileno(), length, 0))
        if found != fingerprint:
            raise LinesError(
                f"{str(self.path)!r} is not the file that was read before: its first {length} bytes differ "
                f"({found}, expected {fingerprint}); put the old file back, or start again without the state"
            )

    def read(self, about: int = _BLOCK) -> tuple[Records, Ints]:
        """The next whole lines, of about so many bytes together, without line ends, and where each begins.

        No lines when nothing more is there now. A line may end in LF or CR LF. Raises `LinesError` when the file was
        cut or replaced under the reader, or is a damaged gzip file; the lines before the damage are handed out first.
        """
        self._about = about
        if not self._look(about):
            if self._broken is not None:
                raise LinesError(self._broken)
            return Records.of([]), np.empty(0, np.int64)
        if self._length:
            return self._hand_out_long()
        buffer, begin = self._buffer, self._used
        cut = buffer.rfind(b"\n", begin, begin + about) + 1 or buffer.find(b"\n", begin) + 1
        block = buffer[begin:cut] if cut else buffer[begin:] + b"\n"
        self._used = cut or len(buffer)
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _LF)
        begins = np.concatenate([[0], ends[:-1] + 1])
        offsets = begins + self.position
        self.position += self._used - begin
        if b"\r" in block:
            ends = ends - (np.frombuffer(block, np.uint8)[np.maximum(ends - 1, begins)] == _CR)
        if len(block) > self.max_line:
            ends = np.minimum(ends, begins + self.max_line)
        return Records(block, begins, ends), offsets

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _hand_out_long(self) -> tuple[Records, Ints]:
        lines, offsets = Records.of([self._head]), np.array([self.position])
        self.position += self._length + self._complete
        self._head, self._length, self._complete = b"", 0, False
        return lines, offsets

    def _look(self, about: int) -> bool:
        """Read until a whole line is there, if there is one; whether it is.

        The bytes from `_used` on in `_buffer` are unread lines, unless `_length` says that a line longer than max_line
        comes first: `_length` bytes of it were read, of which `_head` is kept; `_complete` when its end was found.
        """
        if self._complete or (not self._length and self._buffer.find(b"\n", self._used) >= 0):
            return True
        pieces = [self._buffer[self._used :]]
        size, end = len(pieces[0]), -1
        while end < 0 and (block := self._block(max(about, 1))):
            end = block.find(b"\n")
            if self._length:
                self._length += end if end >= 0 else len(block)
                self._complete = end >= 0
                pieces = [block[end + 1 :]] if end >= 0 else []
                continue
            pieces.append(block)
            size += len(block)
            if end < 0 and size > self.max_line:
                self._head, self._length = b"".join(pieces)[: self.max_line], size
                pieces = []
        self._buffer, self._used = b"".join(pieces), 0
        at_end = not self.follow and self._broken is None and bool(self._buffer or self._length)
        return end >= 0 or at_end

    def _block(self, size: int) -> bytes:
        """The next bytes, at most so many; none when nothing more is there now, or when `_broken` says why."""
        if self._exhausted or self._broken is not None:
            return b""
        block = self._raw(size) if self._unzip is None else self._unzipped(size)
        if not block:
            self._exhausted = not self.follow
            if self._broken is None:
                self._broken = self._changed()
        return block

    def _raw(self, size: int) -> bytes:
        block = os.read(self._file.fileno(), size)
        self._read += len(block)
        return block

    def _unzipped(self, size: int) -> bytes:
        """The next bytes of all members of a gzip file."""
        assert self._unzip is not None
        while True:
            if not self._packed:
                self._packed = self._raw(_BLOCK)
            if self._between:  # members may be padded with zeros
                self._packed = self._packed.lstrip(b"\0")
            last = not self._packed
            if last and self._between:
                return b""
            try:
                block = self._unzip.decompress(self._packed, size)
            except zlib.error as error:
                self._broken = f"{str(self.path)!r} is damaged gzip: {error}; all lines before the damage were read"
                return b""
            self._between = self._unzip.eof
            if self._unzip.eof:
                self._packed = self._unzip.unused_data
                self._unzip = zlib.decompressobj(31)
            else:
                self._packed = self._unzip.unconsumed_tail
            if block:
                return block
            if last and not self._between:
                self._broken = (
                    f"{str(self.path)!r} is gzip that ends early after {self.total} bytes; all whole lines were read: "
                    "write the file again in full"
                )
                return b""

    def _changed(self) -> str | None:
        """What happened to a file that has no more bytes and should be as it was, only longer."""
        opened = os.fstat(self._file.fileno())
        cure = "put the old file back, or start again without the state"
        if opened.st_size < self._read:
            return f"{str(self.path)!r} shrank to {opened.st_size} bytes when {self._read} had been read; {cure}"
        if not self.follow:
            return None
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return f"{str(self.path)!r} was removed or renamed while it was followed; {cure}"
        if (there.st_ino, there.st_dev) != (opened.st_ino, opened.st_dev):
            return f"{str(self.path)!r} was replaced by another file while it was followed; {cure}"
        return None

    def _seek(self, position: int) -> None:
        cure = "the file was cut or replaced; put the old file back, or start again without the state"
        if self._unzip is None:
            there = self.total
            if position <= there:
                os.lseek(self._file.fileno(), position - 1, os.SEEK_SET)
                self._read = position - 1
                before = self._block(1)
        else:
            there, before = 0, b""
            while there < position and (block := self._block(min(_BLOCK, position - there))):
                there += len(block)
                before = block[-1:]
        if self._broken is not None:
            raise LinesError(self._broken)
        if position > there:
            raise LinesError(f"{str(self.path)!r} has {there} bytes, but position {position} was reached in it: {cure}")
        self._buffer = self._block(_BLOCK)
        if before != b"\n" and self._buffer[:1] not in (b"", b"\n", b"\r"):
            raise LinesError(f"in {str(self.path)!r} no line begins at position {position}: {cure}")


def _fingerprint(beginning: bytes) -> str:
    return f"{len(beginning)}:{hashlib.sha256(beginning).hexdigest()[:16]}"
