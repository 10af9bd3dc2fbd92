"""Attacks on the kernel's wide or privileged interfaces.

Those that would take the host down are made with arguments that the kernel refuses only after it
has granted the privilege: that errno is their success.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from typing import Final

from tests.escape import native
from tests.escape.attacks_files import expect_secret
from tests.escape.field import Field, attack
from tests.escape.native import VoidError

_BPF_PROG_LOAD: Final = 5
_FAN_CLASS_CONTENT: Final = 4
_AT_FDCWD: Final = -100
_IORING_OP_OPENAT, _IORING_OP_READ = 18, 22
_IORING_OFF_SQES: Final = 0x10000000


def _granted(name: str, arguments: tuple[int, ...], success: int) -> None:
    """Make a call whose arguments are bad: with the privilege it fails in this very way."""
    try:
        native.call(name, *arguments)
    except OSError as error:
        if error.errno != success:
            raise


@attack("load a BPF program", "U:EPERM S:SIGSYS")
def _bpf(_field: Field) -> None:
    # r0 = 0; exit: a socket filter
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence, keep = native.text(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIQQ", 1, 2, ctypes.addressof(code), licence), 128
    )
    native.call("bpf", _BPF_PROG_LOAD, ctypes.addressof(attributes), 128)
    del keep


@attack("watch the kernel by perf events", "U:EACCES|EPERM S:SIGSYS")
def _perf(_field: Field) -> None:
    # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CONTEXT_SWITCHES, of every process on processor 0
    event = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 128, 3), 128)
    native.call("perf_event_open", ctypes.addressof(event), (1 << 64) - 1, 0, (1 << 64) - 1, 0)


@attack("hold the kernel's page faults by userfaultfd", "U:EPERM S:SIGSYS")
def _userfaultfd(_field: Field) -> None:
    native.call("userfaultfd", 0)


@attack("set up io_uring", "S:SIGSYS U+R:ENOMEM", "R:ENOMEM|works S:SIGSYS")
def _io_uring(_field: Field) -> None:
    parameters = ctypes.create_string_buffer(120)
    native.call("io_uring_setup", 2, ctypes.addressof(parameters))


@attack(
    "read a private file through io_uring",
    # Its rings are locked memory, of which root may have any amount.
    "U:EACCES N:ENOENT L:EACCES S:SIGSYS Z:SIGSYS U+R:ENOMEM",
    "R:ENOMEM|works N:ENOENT L:EACCES S:SIGSYS Z:SIGSYS",
)
def _io_uring_read(field: Field) -> None:
    parameters = ctypes.create_string_buffer(120)
    ring = native.call("io_uring_setup", 2, ctypes.addressof(parameters))
    fields = struct.unpack("=10I10I10I", parameters.raw)
    submit, complete = fields[10:18], fields[20:28]
    queues = native.mmap(native.PAGE, 3, native.MAP_SHARED | native.MAP_POPULATE, ring)
    entries = _map_at(native.PAGE, ring, _IORING_OFF_SQES)
    path, keep = native.text(field.bait.file.encode())

    def submit_one(entry: bytes) -> int:
        ctypes.memmove(entries, entry, 64)
        tail = ctypes.c_uint32.from_address(queues + submit[1])
        mask = ctypes.c_uint32.from_address(queues + submit[2]).value
        slot = queues + submit[6] + 4 * (tail.value & mask)
        ctypes.c_uint32.from_address(slot).value = 0
        tail.value += 1
        native.call("io_uring_enter", ring, 1, 1, 1, 0, 0)
        head = ctypes.c_uint32.from_address(queues + complete[0])
        mask = ctypes.c_uint32.from_address(queues + complete[2]).value
        event = queues + complete[5] + 16 * (head.value & mask)
        result = ctypes.c_int32.from_address(event + 8).value
        head.value += 1
        if result < 0:
            raise OSError(-result, "io_uring")
        return result

    opened = struct.pack("=BBHiQQIIQ", _IORING_OP_OPENAT, 0, 0, _AT_FDCWD, 0, path, 0, 0, 1)
    fd = submit_one(opened.ljust(64, b"\0"))
    buffer = ctypes.create_string_buffer(64)
    wanted = struct.pack(
        "=BBHiQQIIQ", _IORING_OP_READ, 0, 0, fd, 0, ctypes.addressof(buffer), 64, 0, 2
    )
    submit_one(wanted.ljust(64, b"\0"))
    del keep
    expect_secret(buffer.raw)


def _map_at(length: int, fd: int, offset: int) -> int:
    address = native._mmap(None, length, 3, native.MAP_SHARED | native.MAP_POPULATE, fd, offset)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


@attack("change the segment table by modify_ldt", "S:SIGSYS")
def _ldt(_field: Field) -> None:
    entry = ctypes.create_string_buffer(struct.pack("IIII", 0, 0, 0xFFFFF, 0b1010001))
    native.call("modify_ldt", 1, ctypes.addressof(entry), 16)


@attack("reach the input and output ports", "U:EPERM S:SIGSYS")
def _iopl(_field: Field) -> None:
    native.call("iopl", 3)


@attack("read the kernel's log", "U:EPERM S:SIGSYS")
def _syslog(_field: Field) -> None:
    buffer = ctypes.create_string_buffer(4096)
    native.call("syslog", 3, ctypes.addressof(buffer), 4096)


@attack("watch every file by fanotify", "U:EPERM S:SIGSYS")
def _fanotify(_field: Field) -> None:
    native.call("fanotify_init", _FAN_CLASS_CONTENT, 0)


@attack("load a kernel module", "U:EPERM S:SIGSYS")
def _init_module(_field: Field) -> None:
    image, keep = native.text(b"no module")
    _granted("init_module", (image, 8, image + 8), errno.ENOEXEC)
    del keep


@attack("unload a kernel module", "U:EPERM S:SIGSYS")
def _delete_module(_field: Field) -> None:
    name, keep = native.text(b"sandboxd_no_such_module")
    _granted("delete_module", (name, os.O_NONBLOCK), errno.ENOENT)
    del keep


@attack("load another kernel", "U:EPERM S:SIGSYS")
def _kexec(_field: Field) -> None:
    _granted("kexec_load", (0, 0, 0, 0xFFFF), errno.EINVAL)


@attack("restart the host", "U:EPERM S:SIGSYS")
def _reboot(_field: Field) -> None:
    _granted("reboot", (0, 0, 0, 0), errno.EINVAL)


@attack("swap on a file", "U:EPERM S:SIGSYS")
def _swapon(_field: Field) -> None:
    name, keep = native.text(b"/sandboxd-no-such-file")
    _granted("swapon", (name, 0), errno.ENOENT)
    del keep


@attack("have every process accounted to a file", "U:EPERM S:SIGSYS")
def _acct(_field: Field) -> None:
    name, keep = native.text(b"/sandboxd-no-such-file")
    _granted("acct", (name,), errno.ENOENT)
    del keep


@attack("type into an inherited terminal", "U:EIO|EPERM|works S:ENOTTY H:EBADF")
def _tiocsti(field: Field) -> None:
    if "terminal" not in field.inherited:
        raise VoidError("the host has no pseudo-terminals")
    fcntl.ioctl(field.inherited["terminal"], termios.TIOCSTI, b"x")
