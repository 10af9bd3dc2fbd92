"""The outbox: honest lengths give the bytes, lies are cut at the limit and told."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxd.supervisor.outbox import (
    HEADER,
    KEPT_BYTES,
    LOG_OVERHEAD_BYTES,
    MAX_LOG_ENTRIES,
    NOTHING,
    REGIONS_OFFSET,
    Outbox,
)
from sandboxd.v1 import call_pb2

LIMIT = 10_000


def write(outbox: Outbox, *parts: bytes) -> None:
    """What an honest runner does: standard output, standard error, log, result."""
    for region, data in enumerate(parts):
        os.pwrite(outbox.fd, data, REGIONS_OFFSET + region * outbox.capacity_bytes)
    os.pwrite(outbox.fd, HEADER.pack(*map(len, parts)), 0)


def logged(messages: list[bytes]) -> bytes:
    entries = [call_pb2.LogEntry(message=message) for message in messages]
    return call_pb2.Logs(entries=entries).SerializeToString()


some = st.binary(max_size=LIMIT // 3)


@given(some, some, st.lists(st.binary(max_size=99), max_size=9).map(logged), some)
def test_what_was_written_is_taken_once(out: bytes, err: bytes, log: bytes, result: bytes) -> None:
    outbox = Outbox(LIMIT)
    write(outbox, out, err, log, result)
    taken = outbox.take(LIMIT)
    assert (taken.stdout, taken.stderr, taken.log, taken.result) == (out, err, log, result)
    assert taken.honest
    assert outbox.take(LIMIT) == NOTHING


u64 = st.integers(0, 2**64 - 1) | st.integers(LIMIT - 2, LIMIT + 2)


@given(u64, u64, u64, u64, st.integers(0, LIMIT))
@example(0, 0, 1, 0, LIMIT)
@example(0, 0, 4, 0, LIMIT)
def test_lying_lengths_never_yield_more_than_the_limit(
    out: int, err: int, log: int, result: int, limit: int
) -> None:
    outbox = Outbox(LIMIT)
    os.pwrite(outbox.fd, HEADER.pack(out, err, log, result), 0)
    taken = outbox.take(limit)
    believable = out + err + result <= limit and log <= limit + LOG_OVERHEAD_BYTES
    # The file holds zeros: no log of any length is one.
    assert taken.honest == (believable and log == 0)
    assert len(taken.stdout) + len(taken.stderr) + len(taken.result) <= limit
    assert taken.log == b""


def test_a_log_of_more_entries_than_are_allowed_is_a_lie() -> None:
    outbox = Outbox(LIMIT)
    write(outbox, b"", b"", logged([b""] * (MAX_LOG_ENTRIES + 1)), b"")
    taken = outbox.take(LIMIT)
    assert (taken.log, taken.honest) == (b"", False)
    assert outbox.take(LIMIT) == NOTHING


@pytest.mark.parametrize("size", [0, 1, 1 << 30])
def test_a_runner_cannot_resize_it(size: int) -> None:
    outbox = Outbox(LIMIT)
    with pytest.raises(PermissionError):
        os.ftruncate(outbox.fd, size)


def test_an_empty_outbox_costs_no_memory() -> None:
    outbox = Outbox(1 << 30)
    assert os.fstat(outbox.fd).st_blocks == 0


def test_its_descriptor_ends_with_it() -> None:
    outbox = Outbox(LIMIT)
    fd = outbox.fd
    del outbox
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_is_put_into_the_inbox_lies_behind_the_regions() -> None:
    outbox = Outbox(LIMIT, inbox_bytes=4 << 20)
    data = bytes(range(256)) * 8000
    outbox.put(data)
    assert os.pread(outbox.fd, len(data), REGIONS_OFFSET + 4 * outbox.capacity_bytes) == data
    assert int.from_bytes(os.pread(outbox.fd, 8, 32), "little") == 4 << 20


def test_what_long_calls_leave_is_given_back_when_asked() -> None:
    outbox = Outbox(8 << 20, inbox_bytes=8 << 20)
    for _ in range(3):
        outbox.put(bytes(8 << 20))
        os.pwrite(outbox.fd, HEADER.pack(0, 0, 0, 8 << 20), 0)
        os.pwrite(outbox.fd, b"x" * (8 << 20), REGIONS_OFFSET + 3 * outbox.capacity_bytes)
        assert len(outbox.take(8 << 20).result) == 8 << 20
        assert os.fstat(outbox.fd).st_blocks * 512 >= 16 << 20, "kept for the next"
        outbox.give_back()
        assert os.fstat(outbox.fd).st_blocks * 512 <= 8192


def test_what_short_calls_leave_is_kept_for_the_next() -> None:
    outbox = Outbox(LIMIT, inbox_bytes=8 << 20)
    outbox.put(bytes(KEPT_BYTES))
    outbox.take(LIMIT)
    outbox.give_back()
    assert os.fstat(outbox.fd).st_blocks * 512 >= KEPT_BYTES
