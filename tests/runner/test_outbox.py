import ctypes
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.runner.conftest import read_outbox

from sandboxd.runner.outbox import REGIONS_OFFSET_BYTES, Outbox, Region
from sandboxd.v1 import call_pb2

CAPACITY = 1000


@pytest.fixture
def fd() -> Iterator[int]:
    number = os.memfd_create("outbox")
    os.ftruncate(number, REGIONS_OFFSET_BYTES + 4 * CAPACITY)
    yield number
    os.close(number)


@pytest.fixture
def outbox(fd: int) -> Iterator[Outbox]:
    mapped = Outbox(fd)
    yield mapped
    mapped.close()


def test_what_is_appended_can_be_read_through_the_file(fd: int, outbox: Outbox) -> None:
    assert outbox.append_stdout(b"out") == 3
    assert outbox.append_stderr(b"err\0") == 4
    assert outbox.append_stdout(b"put") == 3
    for number in range(3):
        entry = call_pb2.LogEntry(number=call_pb2.Value(i32=number))
        assert outbox.append_log(entry.SerializeToString())
    stdout, stderr, logs = read_outbox(fd)
    assert (stdout, stderr) == (b"output", b"err\0")
    assert [entry.number.i32 for entry in logs.entries] == [0, 1, 2]


def test_a_region_keeps_what_fits_and_leaves_its_neighbours_alone(fd: int, outbox: Outbox) -> None:
    assert outbox.append_stderr(b"e" * CAPACITY) == CAPACITY
    assert outbox.append_stdout(b"o" * (CAPACITY + 1)) == CAPACITY
    assert outbox.append_stdout(b"x") == 0
    stdout, stderr, _ = read_outbox(fd)
    assert (stdout, stderr) == (b"o" * CAPACITY, b"e" * CAPACITY)


def test_a_log_entry_is_kept_whole_or_not_at_all(fd: int, outbox: Outbox) -> None:
    def entry(size: int) -> bytes:
        return call_pb2.LogEntry(message=b"m" * size).SerializeToString()

    assert outbox.append_log(entry(800))
    assert not outbox.append_log(entry(200))
    assert outbox.append_log(entry(100))
    assert [len(item.message) for item in read_outbox(fd)[2].entries] == [800, 100]


def test_reset_empties_every_region(fd: int, outbox: Outbox) -> None:
    outbox.append_stdout(b"a")
    outbox.append_stderr(b"b")
    outbox.append_log(call_pb2.LogEntry(message=b"c").SerializeToString())
    outbox.reset()
    assert struct.unpack("<4Q", os.pread(fd, 32, 0)) == (0, 0, 0, 0)
    outbox.append_stdout(b"d")
    assert read_outbox(fd)[0] == b"d"


def test_lengths_that_someone_else_wrote_are_not_believed(fd: int, outbox: Outbox) -> None:
    os.pwrite(fd, struct.pack("<3Q", 2**63, 2**64 - 1, 5), 0)
    assert outbox.append_stdout(b"abc") == 3
    assert os.pread(fd, 3, REGIONS_OFFSET_BYTES) == b"abc"


def test_the_mapping_outlives_the_descriptor_and_holds_no_other(outbox: Outbox, fd: int) -> None:
    targets = []
    for number in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    assert sum("memfd:outbox" in target for target in targets) == 1


def test_a_file_without_room_is_refused(fd: int) -> None:
    os.ftruncate(fd, REGIONS_OFFSET_BYTES + 2)
    with pytest.raises(ValueError, match="no room"):
        Outbox(fd)


def test_what_cannot_be_mapped_is_an_os_error(fd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="outbox"):
            Outbox(read_only)
    finally:
        os.close(read_only)


def test_output_survives_the_death_of_the_process_that_wrote_it(fd: int) -> None:
    script = (
        "import os, signal; from sandboxd.runner.outbox import Outbox; "
        f"box = Outbox({fd}); os.close({fd}); box.append_stdout(b'last words'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], pass_fds=[fd], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_outbox(fd)[0] == b"last words"


def test_the_inbox_lies_behind_the_regions(fd: int) -> None:
    inbox_bytes = 10_000
    os.ftruncate(fd, REGIONS_OFFSET_BYTES + 4 * CAPACITY + inbox_bytes)
    os.pwrite(fd, inbox_bytes.to_bytes(8, "little"), 32)
    os.pwrite(fd, b"a long input", REGIONS_OFFSET_BYTES + 4 * CAPACITY)
    mapped = Outbox(fd)
    assert mapped.capacity == CAPACITY
    assert ctypes.string_at(mapped.inbox(12), 12) == b"a long input"
    mapped.append(Region.RESULT, bytes([255]) * (CAPACITY + 1))
    assert ctypes.string_at(mapped.inbox(12), 12) == b"a long input"
    with pytest.raises(ValueError, match="inbox"):
        mapped.inbox(inbox_bytes + 1)
    mapped.close()
