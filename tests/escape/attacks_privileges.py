"""Attacks for privilege: users, capabilities, priorities, namespaces, mounts, the host's state."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from tests.escape import native
from tests.escape.attacks_files import expect_secret
from tests.escape.field import SECRET, Field, attack
from tests.escape.native import ContainedError

from sandboxd.runner.isolation import kernel

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_PRIVATE, _MS_REC = 4096, 1 << 18, 16384
_MNT_DETACH: Final = 2
_KEYCTL_SEARCH, _KEYCTL_READ = 10, 11
_USER_KEYRING: Final = 0xFFFFFFFC
_CAPABILITY_VERSION_3: Final = 0x20080522
_IOPRIO_REALTIME: Final = 1 << 13


@attack("become user 0", "U:EPERM S:SIGSYS")
def _setuid(_field: Field) -> None:
    os.setresuid(0, 0, 0)


@attack("join group 0", "U:EPERM S:SIGSYS")
def _setgroups(_field: Field) -> None:
    os.setgroups([0])


@attack("take capabilities", "U:EPERM S:SIGSYS")
def _capset(_field: Field) -> None:
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    wanted = 1 << 21  # CAP_SYS_ADMIN
    data = ctypes.create_string_buffer(struct.pack("IIIIII", wanted, wanted, 0, 0, 0, 0))
    native.call("capset", ctypes.addressof(header), ctypes.addressof(data))


@attack("real-time scheduling", "U:EPERM S:SIGSYS")
def _realtime(_field: Field) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@attack("negative nice value", "U:EACCES|EPERM S:SIGSYS")
def _nice(_field: Field) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, -5)


@attack("real-time input and output", "U:EPERM S:SIGSYS")
def _ioprio(_field: Field) -> None:
    native.call("ioprio_set", 1, 0, _IOPRIO_REALTIME)


@attack("hide from the OOM killer", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _oom(_field: Field) -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"-1000")


@attack("set the clock", "U:EPERM S:SIGSYS")
def _clock(_field: Field) -> None:
    # To what it is: the host must not notice.
    now = ctypes.create_string_buffer(struct.pack("qq", *divmod(time.time_ns(), 10**9)))
    native.call("clock_settime", 0, ctypes.addressof(now))


@attack("rename the host", "U:EPERM N:contained S:SIGSYS")
def _hostname(field: Field) -> Iterator[None]:
    try:
        hosts = os.stat("/proc/self/ns/uts").st_ino == field.bait.uts
    except FileNotFoundError:
        hosts = False  # in the empty root
    yield
    # To what it is: the host must not notice.
    name, keep = native.text(field.bait.hostname.encode())
    native.call("sethostname", name, len(field.bait.hostname))
    del keep
    if not hosts:
        raise ContainedError


@attack("write core_pattern", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _core_pattern(_field: Field) -> None:
    fd = os.open("/proc/sys/kernel/core_pattern", os.O_RDWR)
    os.pwrite(fd, os.read(fd, 256), 0)


@attack("mount a file system", "U:EPERM N:EINVAL L:EPERM S:SIGSYS")
def _mount(_field: Field) -> None:
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount("", "/", "", _MS_REC | _MS_PRIVATE)
    kernel.mount("x", "/", "tmpfs", 0)


@attack("mount by the newer calls", "U:EPERM S:SIGSYS")
def _fsopen(_field: Field) -> None:
    kind, keep = native.text(b"tmpfs")
    native.call("fsopen", kind, 0)
    del keep


@attack("unmount what hides the host", "U:EPERM N:EINVAL L:EPERM S:SIGSYS")
def _umount(_field: Field) -> None:
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount("", "/", "", _MS_REC | _MS_PRIVATE)
    kernel.umount("/proc", _MNT_DETACH)


@attack("change the root by pivot_root", "U:EPERM N:EINVAL L:EPERM S:SIGSYS")
def _pivot(field: Field) -> None:
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount("", "/", "", _MS_REC | _MS_PRIVATE)
    kernel.mount(field.bait.directory, field.bait.directory, "", _MS_BIND)
    os.chdir(field.bait.directory)
    kernel.pivot_root(".", ".")


@attack("new user namespace by unshare", "N:EPERM S:SIGSYS")
def _userns(_field: Field) -> None:
    kernel.unshare(_CLONE_NEWUSER)


@attack("new user namespace by clone", "N:EPERM S:SIGSYS")
def _userns_by_clone(_field: Field) -> None:
    if native.call("clone", _CLONE_NEWUSER | 17) == 0:
        os._exit(0)


@attack("read the user's keyring", "U:ENOKEY S:SIGSYS", "N:ENOKEY S:SIGSYS")
def _keyring(_field: Field) -> None:
    kind, keep_kind = native.text(b"user")
    label, keep_label = native.text(b"sandboxd-escape")
    key = native.call("keyctl", _KEYCTL_SEARCH, _USER_KEYRING, kind, label, 0)
    buffer = ctypes.create_string_buffer(64)
    native.call("keyctl", _KEYCTL_READ, key, ctypes.addressof(buffer), 64)
    del keep_kind, keep_label
    expect_secret(buffer.raw)


@attack("read another's System V shared memory", "U:EACCES N:ENOENT S:SIGSYS")
def _shm(field: Field) -> None:
    segment = native.call("shmget", field.bait.shm_key, 0, 0)
    address = native.call("shmat", segment, 0, 0o10000)
    expect_secret(ctypes.string_at(address, len(SECRET)))


@attack("read another's System V messages", "U:EACCES N:ENOENT S:SIGSYS")
def _msg(field: Field) -> None:
    queue = native.call("msgget", field.bait.shm_key, 0)
    buffer = ctypes.create_string_buffer(128)
    native.call("msgrcv", queue, ctypes.addressof(buffer), 64, 0, 0o4000)
    expect_secret(buffer.raw)


@attack("change another's System V semaphore", "U:EACCES N:ENOENT S:SIGSYS")
def _sem(field: Field) -> None:
    semaphores = native.call("semget", field.bait.shm_key, 0, 0)
    native.call("semctl", semaphores, 0, 16, 1)


@attack("open another's POSIX message queue", "U:EACCES N:ENOENT L:EACCES S:SIGSYS")
def _mq(field: Field) -> None:
    name, keep = native.text(field.bait.queue.encode())
    native.call("mq_open", name, os.O_RDWR, 0, 0)
    del keep
