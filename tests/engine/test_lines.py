"""Reading lines: whatever the cuts, positions and forms of the file, each line comes once and whole."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.lines import Lines, LinesError

TEXT = st.lists(st.sampled_from([b"", b"a", b"bc", b"x" * 40, "é".encode(), b'{"n":1}']), max_size=12)


def file(content: bytes, name: str = "changes.jsonl") -> Path:
    path = Path(tempfile.mkdtemp()) / name
    path.write_bytes(content)
    return path


def everything(lines: Lines, about: int = 1 << 17) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while not lines.ended:
        some, offsets = lines.read(about)
        assert some
        found += zip(offsets.tolist(), some, strict=True)
    assert not lines.read(about)[0]
    return found


@given(TEXT, st.booleans(), st.integers(1, 50), st.sampled_from(["plain", "gzip", "two members"]))
@settings(max_examples=150, deadline=None)
def test_all_lines_at_their_positions_and_the_rest_from_any_position(
    text: list[bytes], ends: bool, about: int, form: str
) -> None:
    content = b"\n".join(text) + (b"\n" if ends and text else b"")
    packed = content
    if form == "gzip":
        packed = gzip.compress(content)
    elif form == "two members":
        half = len(content) // 2
        packed = gzip.compress(content[:half]) + gzip.compress(content[half:]) + b"\0" * 7
    path = file(packed)
    lines = Lines(path)
    all_of_them = everything(lines, about)
    want, begin = [], 0
    for line in content.splitlines(keepends=True):
        want.append((begin, line.rstrip(b"\n")))
        begin += len(line)
    assert all_of_them == want
    assert lines.position == len(content)
    assert lines.size_left() == 0
    for i, (position, _) in enumerate(want):
        assert everything(Lines(path, position), about) == want[i:]
    assert everything(Lines(path, len(content))) == []


def test_cr_lf() -> None:
    assert everything(Lines(file(b"a\r\n\r\nb\rc\r\nd\r"))) == [(0, b"a"), (3, b""), (5, b"b\rc"), (10, b"d")]


@given(st.lists(st.binary(max_size=5).map(lambda b: b.replace(b"\r", b"\n")), max_size=12))
@settings(max_examples=80, deadline=None)
def test_following_never_hands_out_half_a_line(pieces: list[bytes]) -> None:
    path = file(b"")
    lines = Lines(path, follow=True)
    assert lines.ended
    found, content = [], b""
    for piece in pieces:
        with path.open("ab") as out:
            out.write(piece)
        content += piece
        found += everything(lines, 3)
        whole = content.split(b"\n")[:-1]
        assert [line for _, line in found] == whole
        assert [content[p : p + len(line) + 1] for p, line in found] == [line + b"\n" for line in whole]
        assert lines.position == content.rfind(b"\n") + 1
    assert lines.size_left() == len(content) - lines.position
    assert lines.total == len(content)


def test_a_line_longer_than_allowed_is_cut_and_the_next_one_is_whole() -> None:
    content = b"a\n" + b"x" * 5000 + b"\nb\n" + b"y" * 4000
    want = [(0, b"a"), (2, b"x" * 1000), (5003, b"b"), (5005, b"y" * 1000)]
    path = file(content)
    lines = Lines(path, max_line=1000)
    found = []
    while (some := lines.read(64))[0]:
        found += zip(some[1].tolist(), some[0], strict=True)
    assert found == want
    assert lines.position == len(content)
    assert everything(Lines(path, 2, max_line=1000), 64) == want[1:]
    assert everything(Lines(path, max_line=1000)) == want
    assert [len(line) for _, line in everything(Lines(path), 64)] == [1, 5000, 1, 4000]


def test_a_long_line_that_is_still_written_waits() -> None:
    path = file(b"x" * 3000)
    lines = Lines(path, follow=True, max_line=1000)
    assert not lines.read(64)[0]
    assert lines.position == 0
    with path.open("ab") as out:
        out.write(b"x\nb\n")
    assert everything(lines, 64) == [(0, b"x" * 1000), (3002, b"b")]


def test_missing_file_and_directory() -> None:
    path = file(b"")
    with pytest.raises(FileNotFoundError, match=r"no file '.*nothing': expected a file with one record per line; p"):
        Lines(path.parent / "nothing")
    with pytest.raises(IsADirectoryError, match="is a directory: expected a file"):
        Lines(path.parent)


def test_a_position_that_cannot_be() -> None:
    for packed in (b"a\nbcd\n", gzip.compress(b"a\nbcd\n")):
        path = file(packed)
        with pytest.raises(LinesError, match=r"has 6 bytes, but position 7 was reached in it: the file was cut or rep"):
            Lines(path, 7)
        with pytest.raises(LinesError, match="no line begins at position 3: the file was cut"):
            Lines(path, 3)


def test_a_last_line_that_was_read_without_its_end_may_get_it_later() -> None:
    path = file(b"a\nb")
    first = Lines(path)
    assert everything(first) == [(0, b"a"), (2, b"b")]
    path.write_bytes(b"a\nb\nc\n")
    assert everything(Lines(path, first.position)) == [(3, b""), (4, b"c")]
    path.write_bytes(b"a\nbbb\nc\n")
    with pytest.raises(LinesError, match="no line begins at position 3"):
        Lines(path, first.position)


def test_the_fingerprint_is_of_the_beginning_and_an_appended_file_keeps_it() -> None:
    path = file(b"a\n")
    old = Lines(path).fingerprint
    assert old.startswith("2:")
    path.write_bytes(b"a\nb\n")
    Lines(path, 2).check(old)
    path.write_bytes(b"b\nb\n")
    with pytest.raises(LinesError, match=r"is not the file that was read before: its first 2 bytes differ .*; put"):
        Lines(path, 2).check(old)
    path.write_bytes(b"x" * 5000)
    long = Lines(path).fingerprint
    assert long.startswith("1024:")
    path.write_bytes(b"x" * 900)
    with pytest.raises(LinesError, match="differ"):
        Lines(path).check(long)


def test_a_followed_file_that_is_cut_removed_or_replaced() -> None:
    path = file(b"a\nb\n")
    lines = Lines(path, follow=True)
    lines.read()
    path.write_bytes(b"a\n")
    assert not lines.ended
    with pytest.raises(LinesError, match="shrank to 2 bytes when 4 had been read"):
        lines.read()

    path = file(b"a\n")
    lines = Lines(path, follow=True)
    lines.read()
    path.rename(path.with_suffix(".old"))
    with pytest.raises(LinesError, match="was removed or renamed"):
        lines.read()

    path = file(b"a\n")
    lines = Lines(path, follow=True)
    other = file(b"a\nb\n")
    other.replace(path)
    assert list(lines.read()[0]) == [b"a"]
    with pytest.raises(LinesError, match="was replaced by another file"):
        lines.read()


def test_gzip_cannot_be_followed() -> None:
    with pytest.raises(LinesError, match="is gzip, which cannot be followed: unpack it"):
        Lines(file(gzip.compress(b"a\n")), follow=True)


def test_damaged_gzip_gives_what_is_readable_and_then_says_so() -> None:
    content = b"".join(b'{"n":%d,"x":"%d"}\n' % (i, i * i * 7919) for i in range(5000))
    whole = gzip.compress(content)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for packed, reason in ((whole[: len(whole) // 2], "is gzip that ends early"), (bytes(damaged), "is damaged gzip")):
        lines, found = Lines(file(packed)), []
        with pytest.raises(LinesError, match=reason):  # noqa: PT012
            while not lines.ended:
                found += lines.read(1000)[0]
        assert 100 < len(found) < 5000
        if "early" in reason:
            assert b"".join(line + b"\n" for line in found) == content[: lines.position]


def test_much_in_little_gzip_is_read_in_blocks() -> None:
    lines = Lines(file(gzip.compress(b"0123456789\n" * 1_000_000)))
    n = 0
    while not lines.ended:
        some, _ = lines.read()
        assert len(some) < 30_000
        n += len(some)
    assert n == 1_000_000
