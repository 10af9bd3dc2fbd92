"""The outbox: honest lengths give the bytes, lies are cut at the limit and told."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor.outbox import (
    HEADER,
    LOG_OVERHEAD_BYTES,
    NOTHING,
    REGIONS_OFFSET,
    Outbox,
)

LIMIT = 10_000


def write(outbox: Outbox, out: bytes, err: bytes, log: bytes) -> None:
    """What an honest runner does."""
    for region, data in enumerate((out, err, log)):
        os.pwrite(outbox.fd, data, REGIONS_OFFSET + region * outbox.capacity_bytes)
    os.pwrite(outbox.fd, HEADER.pack(len(out), len(err), len(log)), 0)


@given(st.binary(max_size=LIMIT // 2), st.binary(max_size=LIMIT // 2), st.binary(max_size=LIMIT))
def test_what_was_written_is_taken_once(out: bytes, err: bytes, log: bytes) -> None:
    outbox = Outbox(LIMIT)
    write(outbox, out, err, log)
    taken = outbox.take(LIMIT)
    assert (taken.stdout, taken.stderr, taken.log, taken.honest) == (out, err, log, True)
    assert outbox.take(LIMIT) == NOTHING


u64 = st.integers(0, 2**64 - 1) | st.integers(LIMIT - 2, LIMIT + 2)


@given(u64, u64, u64, st.integers(0, LIMIT))
def test_lying_lengths_never_yield_more_than_the_limit(
    out: int, err: int, log: int, limit: int
) -> None:
    outbox = Outbox(LIMIT)
    os.pwrite(outbox.fd, HEADER.pack(out, err, log), 0)
    taken = outbox.take(limit)
    believable = out + err <= limit and log <= limit + LOG_OVERHEAD_BYTES
    assert taken.honest == believable
    assert len(taken.stdout) + len(taken.stderr) <= limit
    assert len(taken.log) <= (log if believable else 0)
    assert outbox.take(limit) == NOTHING


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
