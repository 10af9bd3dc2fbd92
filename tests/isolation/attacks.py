"""Attacks of a forked child: after the whole lock-down, or with one wall alone.

Every public function is a scenario; the nursery calls it by name and reports what it returns.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import socket
import threading
import time
from collections.abc import Callable

from tests.isolation import child
from tests.isolation.child import X86, Profile, attempt, errno_name, libc, policy, raw

from sandboxd.runner.isolation import kernel, lockdown


def _mapping(protection: int, flags: int, fd: int = -1) -> str:
    address = libc.mmap(None, 4096, protection, flags, fd, 0)
    return errno_name() if address == ctypes.c_void_p(-1).value else "done"


def _protected(protection: int) -> str:
    address = libc.mmap(None, 4096, 3, 0x22, -1, 0)
    return attempt(lambda: kernel.mprotect(address, 4096, protection))


def _fork() -> str:
    if os.fork() == 0:
        os._exit(0)
    return "done"


def _foreign_code() -> Callable[[], int]:
    # getpid of the i386 table through int 0x80, from code that the attacker brought along.
    address = libc.mmap(None, 4096, 3, 0x22, -1, 0)
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    ctypes.memmove(address, code, len(code))
    kernel.mprotect(address, 4096, 5)
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)


def _foreign_architecture() -> str:
    _foreign_code()()
    return "done"


def _socket(family: int, kind: int) -> Callable[[], str]:
    return lambda: attempt(lambda: socket.socket(family, kind).close())


_NUMBERS: dict[str, tuple[int, int]] = {
    # name: x86-64, aarch64
    "ptrace": (101, 117),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "execve": (59, 221),
    "execveat": (322, 281),
    "mount": (165, 40),
    "fsopen": (430, 430),
    "move_mount": (429, 429),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "capset": (126, 91),
    "prlimit64": (302, 261),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "sched_setscheduler": (144, 119),
    "setpriority": (141, 140),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "connect": (42, 203),
    "pipe2": (293, 59),
    "dup3": (292, 24),
    "socketpair": (53, 199),
    "inotify_init1": (294, 26),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mlockall": (151, 230),
    "personality": (135, 92),
    "setsid": (112, 157),
    "landlock_create_ruleset": (444, 444),
    "close_range": (436, 436),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknodat": (259, 33),
    "ftruncate": (77, 46),
    "getdents64": (217, 61),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "acct": (163, 89),
    "swapon": (167, 224),
    "quotactl": (179, 60),
    "vmsplice": (278, 75),
    "splice": (275, 76),
    "remap_file_pages": (216, 234),
    "mbind": (237, 235),
    "timer_create": (222, 107),
    "signalfd4": (289, 74),
}


def _numbered(name: str) -> Callable[[], str]:
    number = _NUMBERS[name][0 if X86 else 1]
    return lambda: raw(number, 0, 0, 0, 0, 0)


ATTACKS: dict[str, Callable[[], str]] = {
    **{name: _numbered(name) for name in _NUMBERS},
    "open a file": lambda: attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
    "create a file": lambda: attempt(lambda: os.open("/tmp/x", os.O_CREAT | os.O_RDWR)),
    "stat a file": lambda: attempt(lambda: os.stat("/etc/passwd")),
    "list the root": lambda: attempt(lambda: os.listdir("/")),
    "path only": lambda: attempt(lambda: os.open("/", os.O_PATH)),
    "tcp socket": _socket(socket.AF_INET, socket.SOCK_STREAM),
    "tcp6 socket": _socket(socket.AF_INET6, socket.SOCK_STREAM),
    "udp socket": _socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix socket": _socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "netlink socket": _socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet socket": _socket(socket.AF_PACKET, socket.SOCK_RAW),
    "signal the parent": lambda: attempt(lambda: os.kill(os.getppid(), 0)),
    "tgkill another process": lambda: raw(234 if X86 else 131, 1, 1, 0),
    "fork": _fork,
    "vfork": lambda: raw(58 if X86 else 220, 0x4111 if not X86 else 0),
    "new user namespace by clone": lambda: raw(56 if X86 else 220, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": lambda: raw(435, 0, 0),
    "map shared": lambda: _mapping(3, 0x21),
    "map shared and validated": lambda: _mapping(3, 0x23),
    "map a growing stack": lambda: _mapping(3, 0x22 | 0x100),
    "map huge pages": lambda: _mapping(3, 0x22 | 0x40000),
    "map droppable": lambda: _mapping(3, 0x28),
    "map writable and executable": lambda: _mapping(7, 0x22),
    "map executable": lambda: _mapping(5, 0x22),
    "protect writable and executable": lambda: _protected(7),
    "protect executable": lambda: _protected(5),
    "memory file": lambda: attempt(lambda: os.memfd_create("x")),
    "executable memory file": lambda: attempt(lambda: os.memfd_create("x", 0x10)),
    "prctl of another option": lambda: attempt(lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 1)),
    "undo no-new-privs": lambda: attempt(lambda: kernel.prctl(38, 0)),
    "name a mapping": lambda: attempt(lambda: kernel.prctl(0x53564D41)),
    "terminal request": lambda: attempt(lambda: fcntl.ioctl(child.RESULT_FD, 0x5412, b"x")),
    "lock a file": lambda: attempt(lambda: fcntl.lockf(child.RESULT_FD, fcntl.LOCK_EX)),
    "own a descriptor's signals": lambda: attempt(lambda: fcntl.fcntl(child.RESULT_FD, 8, 1)),
    "priority-inheriting lock": lambda: raw(202 if X86 else 98, 0, 6),
    "another process's clock": lambda: attempt(lambda: time.clock_gettime((~1 << 3) | 2)),
    "receive a message": lambda: raw(47 if X86 else 212, 0, 0, 0),
    "stack a filter": lambda: raw(317 if X86 else 277, 1, 1, 0),
    "stack a listening filter": lambda: raw(317 if X86 else 277, 1, 8, 0),
    "x32 getpid": lambda: raw(0x40000000 | 39),
    "i386 getpid": _foreign_architecture,
    "a syscall of tomorrow": lambda: raw(4000),
}


def attack(name: str, profile: Profile = "runner", seal: bool = False) -> str:
    """Lock down completely, then attack; returns an errno's name or "done"."""
    lockdown.lock_down(policy(profile))
    if seal:
        lockdown.seal_after_load()
    return ATTACKS[name]()


def attack_through_i386(profile: Profile, sealed: bool) -> int:
    """Make a foreign call from code that was there before the lock-down."""
    foreign = _foreign_code()
    assert foreign() == os.getpid()
    lockdown.lock_down(policy(profile))
    if sealed:
        lockdown.seal_after_load(core=profile == "core")
    return foreign()


def attack_from_older_thread(name: str) -> str:
    """Attack after sealing, from a thread that was started before it."""
    lockdown.lock_down(policy())
    answers: list[str] = []
    go = threading.Event()

    def body() -> None:
        go.wait()
        answers.append(ATTACKS[name]())

    thread = threading.Thread(target=body)
    thread.start()
    lockdown.seal_after_load()
    go.set()
    thread.join()
    return answers[0]


# -- one wall alone ------------------------------------------------------------------------------


def _alone_read_host_file() -> Callable[[], object]:
    return lambda: os.close(os.open("/proc/self/status", os.O_RDONLY))


def _alone_write_file() -> Callable[[], object]:
    return lambda: os.close(os.open("/dev/null", os.O_WRONLY))


def _alone_connect_tcp() -> Callable[[], object]:
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()[:2]
    return lambda: (socket.create_connection(address), server)


def _alone_abstract_socket() -> Callable[[], object]:
    # The listener lives in another process: a domain may reach what it made itself.
    name = f"\0sandboxd-test-{os.getpid()}"
    _sleeping_child(lambda: _listening(name))
    return lambda: socket.socket(socket.AF_UNIX).connect(name)


def _listening(name: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    return server


def _alone_signal_sibling() -> Callable[[], object]:
    pid = _sleeping_child()
    return lambda: os.kill(pid, 0)


def _alone_ptrace_child() -> Callable[[], object]:
    pid = _sleeping_child()
    return lambda: _checked_raw(101 if X86 else 117, 0x4206, pid, 0, 0)  # PTRACE_SEIZE


def _sleeping_child(prepare: Callable[[], object] = lambda: None) -> int:
    """Another process, until this one ends. (A parent-death signal would be subject to the
    permissions of the parent that dies, which the attack is about to give up.)"""
    ready, tell_ready = os.pipe()
    life, hold_life = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(child.RESULT_FD)  # or the nursery would wait for this process to report
        os.close(hold_life)
        held = prepare()
        os.write(tell_ready, b"x")
        os.read(life, 1)
        del held
        os._exit(0)
    os.read(ready, 1)
    return pid


def _checked_raw(number: int, *arguments: int) -> None:
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "syscall")


def _alone_mount() -> Callable[[], object]:
    kernel.unshare(0x00020000)
    kernel.mount("", "/", "", 0x44000)
    return lambda: kernel.mount("x", "/proc", "tmpfs", 0)


def _alone_setuid_0() -> Callable[[], object]:
    return lambda: os.setresuid(0, 0, 0)


def _alone_raise_limit() -> Callable[[], object]:
    # In the child: pytest's process keeps its own.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
    new = (ctypes.c_uint64 * 2)(0, 8192)
    number, core = (302 if X86 else 261), resource.RLIMIT_CORE
    return lambda: _checked_raw(number, 0, core, ctypes.addressof(new), 0)


def _alone_private_memory() -> Callable[[], object]:
    return lambda: mmap.mmap(-1, 512 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _alone_grow_memory_file() -> Callable[[], object]:
    fd = os.memfd_create("x")
    return lambda: os.pwrite(fd, b"x", 64 << 20)


def _alone_lock_memory() -> Callable[[], object]:
    page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
    return lambda: _checked_raw(149 if X86 else 228, page, 4096)


def _alone_many_descriptors() -> Callable[[], object]:
    return lambda: [os.dup(child.RESULT_FD) for _ in range(500)]


def _alone_inherited_descriptor() -> Callable[[], object]:
    reading, writing = os.pipe()
    return lambda: (os.write(writing, b"x"), reading)


def _alone_real_time() -> Callable[[], object]:
    return lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _alone_chroot() -> Callable[[], object]:
    return lambda: os.chroot("/proc")


def _alone_read_parents_memory() -> Callable[[], object]:
    return lambda: os.close(os.open(f"/proc/{os.getppid()}/mem", os.O_RDONLY))


ALONE: dict[str, Callable[[], Callable[[], object]]] = {
    name.removeprefix("_alone_").replace("_", " "): function
    for name, function in list(globals().items())
    if name.startswith("_alone_")
}


def attack_one_wall(name: str, layers: frozenset[str]) -> str:
    """Apply only the given layers, then attack; returns an errno's name or "done"."""
    action = ALONE[name]()
    lockdown.apply_layers(policy(), layers)
    return attempt(action)
