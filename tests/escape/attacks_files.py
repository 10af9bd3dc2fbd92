"""Attacks on the host's files, and by programs in them."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.escape import native
from tests.escape.field import SECRET, Field, attack
from tests.escape.native import ContainedError, VoidError

#: An attacker that has become another program ends with this status.
EXIT_OF_FOREIGN_PROGRAM: Final = 42
_SETUID_OWNER: Final = 65532
_AT_FDCWD: Final = (1 << 64) - 100


def expect_secret(got: bytes) -> None:
    """Success is to have read the secret, not merely to have read."""
    if SECRET not in got:
        raise ContainedError(got)


def read(path: str, size: int = 4096) -> bytes:
    """Read from the start of a file with as few system calls as can be."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


@attack("read the user's private file", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _read_private(field: Field) -> None:
    expect_secret(read(field.bait.file))


@attack("read a public file of the host", "N:ENOENT L:EACCES S:EACCES")
def _read_public(_field: Field) -> None:
    if b"root" not in read("/etc/passwd"):
        raise ContainedError


@attack("read through a path with /proc/self/root", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _read_through_root(field: Field) -> None:
    expect_secret(read(f"/proc/self/root/..{field.bait.file}"))


@attack("hold a file by its path alone", "N:ENOENT S:EACCES")
def _path_only(field: Field) -> None:
    # Landlock asks nothing of O_PATH.
    os.open(field.bait.directory, os.O_PATH)


@attack("write to a private file", "U:EACCES R:EFBIG N:ENOENT L:EACCES S:EACCES")
def _write_private(field: Field) -> None:
    fd = os.open(field.bait.file, os.O_RDWR)
    if os.pwrite(fd, SECRET, 0) != len(SECRET):
        raise ContainedError


@attack("create a file in a public directory", "N:ENOENT L:EACCES S:EACCES")
def _create(field: Field) -> None:
    path = f"{field.bait.directory}/made"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    os.unlink(path)
    os.close(fd)


@attack("list a directory of the host", "N:ENOENT L:EACCES S:EACCES")
def _list(field: Field) -> None:
    if "secret" not in os.listdir(field.bait.directory):
        raise ContainedError


@attack("look up a file's metadata", "N:ENOENT S:EACCES")
def _stat(field: Field) -> None:
    os.stat(field.bait.file)


@attack("delete a file of the user", "U:EACCES N:ENOENT L:EACCES S:SIGSYS")
def _delete(field: Field) -> Iterator[None]:
    path = f"{field.bait.directory}/private/x"
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    yield
    os.unlink(path)


@attack("link a private file elsewhere", "U:EPERM N:ENOENT L:EACCES|EXDEV S:SIGSYS")
def _link(field: Field) -> None:
    os.link(field.bait.file, f"{field.bait.directory}/link")
    os.unlink(f"{field.bait.directory}/link")


@attack("truncate a private file", "U:EACCES N:ENOENT L:EACCES S:SIGSYS")
def _truncate(field: Field) -> None:
    os.truncate(field.bait.file, len(SECRET))


@attack("rename a private file", "U:EACCES N:ENOENT L:EACCES S:SIGSYS")
def _rename(field: Field) -> Iterator[None]:
    path = f"{field.bait.directory}/private/y"
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    yield
    os.rename(path, f"{path}-renamed")


@attack("make a directory", "N:ENOENT L:EACCES S:SIGSYS")
def _mkdir(field: Field) -> None:
    os.mkdir(f"{field.bait.directory}/made")
    os.rmdir(f"{field.bait.directory}/made")


@attack("make a symbolic link", "N:ENOENT L:EACCES S:SIGSYS")
def _symlink(field: Field) -> None:
    os.symlink("/etc/passwd", f"{field.bait.directory}/made")
    os.unlink(f"{field.bait.directory}/made")


@attack("make a named pipe", "N:ENOENT L:EACCES S:SIGSYS")
def _mkfifo(field: Field) -> None:
    os.mkfifo(f"{field.bait.directory}/made")
    os.unlink(f"{field.bait.directory}/made")


@attack("change a file's times", "U:EPERM N:ENOENT S:SIGSYS")
def _utime(field: Field) -> None:
    os.utime(field.bait.file, (1, 1))


@attack("read the host's connections", "N:ENOENT L:EACCES S:EACCES")
def _connections(field: Field) -> None:
    if b"%04X" % field.bait.tcp4 not in read("/proc/net/tcp", 1 << 20):
        raise ContainedError


@attack("read the host's mounts", "N:ENOENT L:EACCES S:EACCES")
def _mounts(_field: Field) -> None:
    read("/proc/self/mountinfo")


@attack("read the host's devices from /sys", "N:ENOENT L:EACCES S:EACCES")
def _sys(_field: Field) -> None:
    os.listdir("/sys/devices")


@attack("open a device", "N:ENOENT L:EACCES S:EACCES")
def _device(_field: Field) -> None:
    os.open("/dev/urandom", os.O_RDWR)


@attack("read the kernel's memory from /proc/kcore", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _kcore(_field: Field) -> None:
    if not read("/proc/kcore", 64):
        raise VoidError("the kernel shows nothing")


@attack("press a magic key by /proc/sysrq-trigger", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _sysrq(_field: Field) -> None:
    # Opened, not written to: the host must not notice.
    os.open("/proc/sysrq-trigger", os.O_WRONLY)


@attack("name the kernel's helper program", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _modprobe(_field: Field) -> None:
    for path in ("/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper"):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR)
            os.pwrite(fd, os.read(fd, 256) or b"\n", 0)
            return
    raise FileNotFoundError(2, "neither is there")


@attack("change a cgroup of the host", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _cgroup(_field: Field) -> None:
    for path in ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs"):
        with contextlib.suppress(FileNotFoundError):
            os.open(path, os.O_WRONLY)
            return
    raise FileNotFoundError(2, "there is no cgroup")


@attack("read a disk of the host", "U:EACCES N:ENOENT L:EACCES S:EACCES")
def _disk(_field: Field) -> Iterator[None]:
    disks = [entry for entry in glob.glob("/dev/*") if stat.S_ISBLK(os.stat(entry).st_mode)]
    # Loop devices without a file read as empty.
    full = [disk for disk in disks if os.access(disk, os.R_OK) and read(disk, 512)]
    disk = (full or disks or ["/dev/vda"])[0]
    yield
    if not read(disk, 512):
        raise VoidError("the host has no disk with anything on it")


@attack("change a file's mode", "U:EPERM N:ENOENT S:SIGSYS")
def _chmod(field: Field) -> None:
    os.chmod(field.bait.file, 0o600)


@attack("make a device node", "U:EPERM N:ENOENT L:EACCES S:SIGSYS")
def _mknod(field: Field) -> None:
    path = f"{field.bait.directory}/null"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.unlink(path)


@attack("name a file by handle", "N:ENOENT S:SIGSYS")
def _name_to_handle(field: Field) -> None:
    buffer = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132), 136)
    mount = ctypes.c_int(0)
    name, keep = native.text(field.bait.file.encode())
    native.call(
        *("name_to_handle_at", _AT_FDCWD, name),
        *(ctypes.addressof(buffer), ctypes.addressof(mount), 0),
    )
    del keep


@attack("open a private file by handle", "U:EPERM N:ENOENT L:EACCES S:EACCES")
def _open_by_handle(field: Field) -> None:
    if not field.bait.handle:
        raise VoidError("the file system has no handles")
    handle = ctypes.create_string_buffer(bytes.fromhex(field.bait.handle))
    mount = os.open(field.bait.directory, os.O_RDONLY | os.O_DIRECTORY)
    fd = native.call("open_by_handle_at", mount, ctypes.addressof(handle), os.O_RDONLY)
    expect_secret(os.read(fd, 64))


@attack("open by handle from an inherited directory", "U:EPERM L:EACCES S:SIGSYS H:EBADF")
def _open_by_inherited_handle(field: Field) -> None:
    if not field.bait.handle:
        raise VoidError("the file system has no handles")
    handle = ctypes.create_string_buffer(bytes.fromhex(field.bait.handle))
    mount = field.inherited["directory"]
    fd = native.call("open_by_handle_at", mount, ctypes.addressof(handle), os.O_RDONLY)
    expect_secret(os.read(fd, 64))


@attack("watch a file of the host", "U:EACCES N:ENOENT S:SIGSYS")
def _watch(field: Field) -> None:
    watcher = native.call("inotify_init1", 0)
    name, keep = native.text(field.bait.file.encode())
    native.call("inotify_add_watch", watcher, name, 2)
    del keep


@attack("use an inherited file", "Z:SIGSYS H:EBADF")
def _inherited_file(field: Field) -> None:
    expect_secret(os.pread(field.inherited["file"], 64, 0))


@attack("open below an inherited directory", "U:EACCES L:EACCES S:EACCES H:EBADF")
def _inherited_directory(field: Field) -> None:
    fd = os.open("secret", os.O_RDONLY, dir_fd=field.inherited["directory"])
    expect_secret(os.read(fd, 64))


@attack("leave by an inherited directory", "S:SIGSYS H:EBADF")
def _leave(field: Field) -> None:
    os.fchdir(field.inherited["directory"])
    os.chdir("..")


@attack("reach the controlling terminal", "N:ENOENT L:EACCES S:EACCES H:ENXIO")
def _controlling_terminal(field: Field) -> None:
    if "terminal" not in field.inherited:
        raise VoidError("the host has no pseudo-terminals")
    os.open("/dev/tty", os.O_RDWR)


@attack("escape from a chroot", "U:EPERM N:ENOENT L:EACCES S:SIGSYS")
def _chroot(field: Field) -> None:
    # The classic way out: a root below the working directory.
    below = f"{field.bait.directory}/root-{os.getpid()}"
    os.mkdir(below)
    try:
        os.chroot(below)
    except OSError:
        os.rmdir(below)
        raise
    for _ in range(16):
        os.chdir("..")
    os.chroot(".")
    os.rmdir(below)
    expect_secret(read(field.bait.file))


@attack("run a program of the host", "N:ENOENT L:EACCES S:SIGSYS Z:SIGSYS|SIGSEGV")
def _execve(_field: Field) -> None:
    os.execve("/bin/sh", ["sh", "-c", f"exit {EXIT_OF_FOREIGN_PROGRAM}"], {})


@attack("run a program from a memory file", "R:EFBIG N:EACCES|works S:SIGSYS", "R:EFBIG S:SIGSYS")
def _execveat(_field: Field) -> None:
    fd = os.memfd_create("program", 0)
    os.write(fd, _smallest_program())
    empty, keep = native.text(b"")
    arguments = (ctypes.c_void_p * 2)(empty, None)
    at_empty_path = 0x1000
    native.call("execveat", fd, empty, ctypes.addressof(arguments), 0, at_empty_path)
    del keep


def _smallest_program() -> bytes:
    """A static ELF executable that ends with EXIT_OF_FOREIGN_PROGRAM."""
    if native.X86:
        # mov edi, 42; mov eax, 231; syscall (exit_group)
        code, machine = b"\xbf\x2a\x00\x00\x00\xb8\xe7\x00\x00\x00\x0f\x05", 62
    else:
        # mov x0, #42; mov x8, #94; svc #0 (exit_group)
        code, machine = struct.pack("<III", 0xD2800540, 0xD2800BC8, 0xD4000001), 183
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    header = struct.pack(
        *("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, base + headers),
        *(64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + code


@attack("gain a user id by a set-uid program", "N:ENOENT L:EACCES S:SIGSYS Z:contained P:contained")
def _set_uid(field: Field) -> Iterator[None]:
    if os.geteuid() != 0:
        raise VoidError("only root can lay out a set-uid program of another user")
    program = Path(field.bait.directory, "id")
    if not program.exists():
        shutil.copyfile(shutil.which("id") or "/usr/bin/id", program)
        os.chown(program, _SETUID_OWNER, _SETUID_OWNER)
        program.chmod(0o4755)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        raise VoidError("the directory is mounted without set-uid")
    yield
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 1)
        try:
            os.execve(program, ["id", "-u"], {})
        except OSError as error:
            os._exit(error.errno or 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(writing)
    if status > 0:
        raise OSError(status, "execve")
    if os.read(reading, 64).strip() != str(_SETUID_OWNER).encode():
        raise ContainedError
