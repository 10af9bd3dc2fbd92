"""What a forked child of the nursery does: locks itself down, then attacks or works.

Every public function is a scenario; the nursery calls it by name and reports what it returns.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import mmap
import os
import resource
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

import wasmtime
from wasmtime import _bindings as capi

from sandboxd.runner.isolation import kernel, libffi, limits, lockdown, namespaces, seccomp
from sandboxd.runner.isolation.layers import REQUIRED_DEFAULT, LayerState

MODE = "plain"
RESULT_FD = -1
SLOT = 1_900_000_001
Profile = Literal["runner", "compiler"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_X86 = kernel.MACHINE == "x86_64"
_engine: wasmtime.Engine
_linker: wasmtime.Linker
_callback: Any


def preload() -> None:
    """What a zygote does before it forks: engine, linker, every callback, lazy imports."""
    global _engine, _linker, _callback  # noqa: PLW0603
    config = wasmtime.Config()
    config.parallel_compilation = False
    config.epoch_interruption = True
    _engine = wasmtime.Engine(config)
    _linker = wasmtime.Linker(_engine)
    _linker.define_wasi()
    _linker.define_func(
        "env", "log", wasmtime.FuncType([wasmtime.ValType.i32()], []), LOGGED.append
    )
    _callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda number: number + 1)
    json.dumps({})
    "".encode("idna")
    traceback.format_exception(ValueError("preload"))


LOGGED: list[int] = []
USER_MAPS: dict[str, str] = {}


def policy(profile: Profile = "runner", **changes: Any) -> lockdown.ChildPolicy:
    values: dict[str, Any] = {
        "profile": profile,
        "keep_fds": frozenset({RESULT_FD}),
        "uid": SLOT if os.geteuid() == 0 else 0,
        "data_bytes": 256 << 20,
        "cpu_seconds": 20,
        "file_size_bytes": 16 << 20,
        # Outside a namespace of its own the user's other processes count as well.
        "processes": 16 if os.geteuid() == 0 or MODE == "user" else 4096,
        "parent_pid": os.getppid(),
    }
    return lockdown.ChildPolicy(**values | changes)


def _errno_name() -> str:
    return errno.errorcode[ctypes.get_errno()]


def _raw(number: int, *arguments: int) -> str:
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in arguments))
    return "done" if result >= 0 else _errno_name()


def _attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


# -- attacks -------------------------------------------------------------------------------------


def _mapping(protection: int, flags: int, fd: int = -1) -> str:
    address = _libc.mmap(None, 4096, protection, flags, fd, 0)
    return _errno_name() if address == ctypes.c_void_p(-1).value else "done"


def _protected(protection: int) -> str:
    address = _libc.mmap(None, 4096, 3, 0x22, -1, 0)
    return _attempt(lambda: kernel.mprotect(address, 4096, protection))


def _fork() -> str:
    if os.fork() == 0:
        os._exit(0)
    return "done"


def _foreign_architecture() -> str:
    # getpid of the i386 table through int 0x80, from code that the attacker brought along.
    address = _libc.mmap(None, 4096, 3, 0x22, -1, 0)
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    ctypes.memmove(address, code, len(code))
    kernel.mprotect(address, 4096, 5)
    prototype = ctypes.CFUNCTYPE(ctypes.c_int)
    prototype(address)()
    return "done"


def _socket(family: int, kind: int) -> Callable[[], str]:
    return lambda: _attempt(lambda: socket.socket(family, kind).close())


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
    number = _NUMBERS[name][0 if _X86 else 1]
    return lambda: _raw(number, 0, 0, 0, 0, 0)


ATTACKS: dict[str, Callable[[], str]] = {
    **{name: _numbered(name) for name in _NUMBERS},
    "open a file": lambda: _attempt(lambda: os.open("/etc/passwd", os.O_RDONLY)),
    "create a file": lambda: _attempt(lambda: os.open("/tmp/x", os.O_CREAT | os.O_RDWR)),
    "stat a file": lambda: _attempt(lambda: os.stat("/etc/passwd")),
    "list the root": lambda: _attempt(lambda: os.listdir("/")),
    "path only": lambda: _attempt(lambda: os.open("/", os.O_PATH)),
    "tcp socket": _socket(socket.AF_INET, socket.SOCK_STREAM),
    "tcp6 socket": _socket(socket.AF_INET6, socket.SOCK_STREAM),
    "udp socket": _socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix socket": _socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "netlink socket": _socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet socket": _socket(socket.AF_PACKET, socket.SOCK_RAW),
    "signal the parent": lambda: _attempt(lambda: os.kill(os.getppid(), 0)),
    "tgkill another process": lambda: _raw(234 if _X86 else 131, 1, 1, 0),
    "fork": _fork,
    "vfork": lambda: _raw(58 if _X86 else 220, 0x4111 if not _X86 else 0),
    "new user namespace by clone": lambda: _raw(56 if _X86 else 220, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": lambda: _raw(435, 0, 0),
    "map shared": lambda: _mapping(3, 0x21),
    "map shared and validated": lambda: _mapping(3, 0x23),
    "map a growing stack": lambda: _mapping(3, 0x22 | 0x100),
    "map huge pages": lambda: _mapping(3, 0x22 | 0x40000),
    "map droppable": lambda: _mapping(3, 0x28),
    "map writable and executable": lambda: _mapping(7, 0x22),
    "map executable": lambda: _mapping(5, 0x22),
    "protect writable and executable": lambda: _protected(7),
    "protect executable": lambda: _protected(5),
    "memory file": lambda: _attempt(lambda: os.memfd_create("x")),
    "executable memory file": lambda: _attempt(lambda: os.memfd_create("x", 0x10)),
    "prctl of another option": lambda: _attempt(lambda: kernel.prctl(kernel.PR_SET_DUMPABLE, 1)),
    "undo no-new-privs": lambda: _attempt(lambda: kernel.prctl(38, 0)),
    "name a mapping": lambda: _attempt(lambda: kernel.prctl(0x53564D41)),
    "terminal request": lambda: _attempt(lambda: fcntl.ioctl(RESULT_FD, 0x5412, b"x")),
    "lock a file": lambda: _attempt(lambda: fcntl.lockf(RESULT_FD, fcntl.LOCK_EX)),
    "own a descriptor's signals": lambda: _attempt(lambda: fcntl.fcntl(RESULT_FD, 8, 1)),
    "priority-inheriting lock": lambda: _raw(202 if _X86 else 98, 0, 6),
    "another process's clock": lambda: _attempt(lambda: time.clock_gettime((~1 << 3) | 2)),
    "receive a message": lambda: _raw(47 if _X86 else 212, 0, 0, 0),
    "stack a filter": lambda: _raw(317 if _X86 else 277, 1, 1, 0),
    "stack a listening filter": lambda: _raw(317 if _X86 else 277, 1, 8, 0),
    "x32 getpid": lambda: _raw(0x40000000 | 39),
    "i386 getpid": _foreign_architecture,
    "a syscall of tomorrow": lambda: _raw(4000),
}


def attack(name: str, profile: Profile = "runner", seal: bool = False) -> str:
    """Lock down completely, then attack; returns an errno's name or "done"."""
    lockdown.lock_down(policy(profile))
    if seal:
        lockdown.seal_after_load()
    return ATTACKS[name]()


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
    return lambda: (socket.create_connection(server.getsockname()[:2]).close(), server)


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
    return lambda: _checked_raw(101 if _X86 else 117, 0x4206, pid, 0, 0)  # PTRACE_SEIZE


def _sleeping_child(prepare: Callable[[], object] = lambda: None) -> int:
    """Another process, until this one ends. (A parent-death signal would be subject to the
    permissions of the parent that dies, which the attack is about to give up.)"""
    ready, tell_ready = os.pipe()
    life, hold_life = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(RESULT_FD)  # or the nursery would wait for this process to report
        os.close(hold_life)
        held = prepare()
        os.write(tell_ready, b"x")
        os.read(life, 1)
        del held
        os._exit(0)
    os.read(ready, 1)
    return pid


def _checked_raw(number: int, *arguments: int) -> None:
    if _libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in arguments)) < 0:
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
    number, core = (302 if _X86 else 261), resource.RLIMIT_CORE
    return lambda: _checked_raw(number, 0, core, ctypes.addressof(new), 0)


def _alone_private_memory() -> Callable[[], object]:
    return lambda: mmap.mmap(-1, 512 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _alone_grow_memory_file() -> Callable[[], object]:
    fd = os.memfd_create("x")
    return lambda: os.pwrite(fd, b"x", 64 << 20)


def _alone_lock_memory() -> Callable[[], object]:
    page = _libc.mmap(None, 4096, 3, 0x22, -1, 0)
    return lambda: _checked_raw(149 if _X86 else 228, page, 4096)


def _alone_many_descriptors() -> Callable[[], object]:
    return lambda: [os.dup(RESULT_FD) for _ in range(500)]


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
    return _attempt(action)


# -- the lock-down itself ------------------------------------------------------------------------


def lock_down(profile: Profile = "runner", seal: bool = False, **changes: Any) -> list[LayerState]:
    states = list(lockdown.lock_down(policy(profile, **changes)))
    if seal:
        states += lockdown.seal_after_load()
    return states


def lock_down_with_thread() -> None:
    stop = threading.Event()
    threading.Thread(target=stop.wait, daemon=True).start()
    try:
        lockdown.lock_down(policy())
    finally:
        stop.set()


def seal_alone() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    lockdown.seal_after_load()


def lock_down_twice() -> None:
    lockdown.lock_down(policy())
    lockdown.lock_down(policy())


def standard_streams() -> list[str]:
    """What writing to and reading from the standard streams gives after the lock-down."""
    keep = frozenset({RESULT_FD})
    lockdown.lock_down(policy(keep_fds=keep))
    return [
        *(_attempt(lambda fd=fd: os.write(fd, b"x")) for fd in (0, 1, 2)),
        repr(os.read(0, 1)),
    ]


def inject(
    faults: list[tuple[int, seccomp.Rule]],
    required: frozenset[str] = REQUIRED_DEFAULT,
    then_seal: bool = False,
    after: bool = False,
) -> list[LayerState]:
    """Lock down on a kernel that refuses, or lies about, some calls.

    after: the faults begin between lock-down and sealing.
    """
    program = seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW).for_process(os.getpid())
    if not after:
        if os.geteuid() != 0 and not kernel.capabilities()[0]:
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.load_filter(program)
    states = list(lockdown.lock_down(policy(required=required)))
    if after:
        kernel.load_filter(program)
    if then_seal:
        states += lockdown.seal_after_load(required | {"seccomp-sealed"})
    return states


def unshare_under_fault(
    faults: list[tuple[int, seccomp.Rule]], required: bool
) -> tuple[LayerState, int]:
    """Unshare on a kernel that refuses; returns the state and the user id that is left."""
    if os.geteuid() != 0:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.load_filter(seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW).for_process(1))
    state = namespaces.unshare(required)
    return state, os.geteuid()


def enter_root_under_fault(
    faults: list[tuple[int, seccomp.Rule]], required: bool
) -> tuple[LayerState, bool]:
    """Unshare, then enter the root on a kernel that refuses; returns the state and whether the
    host's files are still there."""
    namespaces.unshare(required=True)
    pid = os.fork()
    if pid != 0:
        # The child, PID 1 of the new namespace, answers the nursery in this one's place.
        os.waitpid(pid, 0)
        os._exit(0)
    program = seccomp.assemble(kernel.MACHINE, dict(faults), seccomp.ALLOW)
    kernel.load_filter(program.for_process(os.getpid()))
    state = namespaces.enter_empty_root(required)
    return state, os.path.exists("/proc/self/status")


def try_to_leave_the_root() -> dict[str, str]:
    """Ways out of the empty root that a process with all its capabilities may try."""
    return {
        "user namespace": _attempt(lambda: kernel.unshare(0x10000000)),
        "write": _attempt(lambda: os.open("/x", os.O_CREAT | os.O_WRONLY)),
        "list": repr(os.listdir("/")),
        "above": repr(os.listdir("/../..")),
        "proc": _attempt(lambda: os.open("/proc/self/status", os.O_RDONLY)),
        "pid 1 is the nursery": repr(os.getppid()),
        "interfaces": repr([name for _, name in socket.if_nameindex()]),
    }


def user_maps() -> dict[str, str]:
    """The maps of the user namespace, as the outer process wrote them, are read by the nursery
    before /proc disappears."""
    return USER_MAPS


# -- libffi --------------------------------------------------------------------------------------


def callback_after_lock_down() -> int:
    lockdown.lock_down(policy())
    return int(_callback(41))


def new_callback_after_lock_down() -> str:
    lockdown.lock_down(policy())
    ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    return "created"


def write_to_code_page() -> str:
    lockdown.lock_down(policy())
    ranges = libffi._pages(())
    if not ranges:
        return "no such page"
    ctypes.memset(ranges[0][0], 0, 1)
    return "written"


def probe_code_page() -> list[str]:
    """Whether the page counts as writable before and after it was locked."""
    ranges = libffi._pages(())
    answers = [_attempt(lambda: kernel.touch_for_writing(ranges[0][0])) if ranges else "done"]
    libffi.lock_pages(())
    answers.append(_attempt(lambda: kernel.touch_for_writing(ranges[0][0])) if ranges else "EFAULT")
    return answers


def forget_code_pages() -> None:
    libffi._found = None
    lockdown.lock_down(policy())


# -- the engine and the interpreter, at work -----------------------------------------------------


def compile_freely(wasm: bytes) -> bytes:
    return bytes(wasmtime.Module(_engine, wasm).serialize())


def compile_locked(wasm: bytes) -> bytes:
    """As a compiler: reads the module from one descriptor, writes the artifact to another."""
    source, target = os.memfd_create("wasm"), os.memfd_create("artifact")
    os.write(source, wasm)
    keep = frozenset({RESULT_FD, source, target})
    lockdown.lock_down(policy("compiler", keep_fds=keep))
    os.lseek(source, 0, os.SEEK_SET)
    read = os.read(source, 1 << 20)
    assert read == os.pread(source, 1 << 20, 0)
    os.pwrite(target, wasmtime.Module(_engine, read).serialize(), 0)
    return os.pread(target, 1 << 22, 0)


def compile_error(wasm: bytes) -> str:
    lockdown.lock_down(policy("compiler"))
    try:
        wasmtime.Module(_engine, wasm)
    except wasmtime.WasmtimeError:
        return traceback.format_exc()
    return "valid"


def compile_out_of_memory(wasm: bytes) -> str:
    lockdown.lock_down(policy("compiler", data_bytes=24 << 20))
    wasmtime.Module(_engine, wasm)
    return "compiled"


def _ready_runner(artifact: bytes, **changes: Any) -> wasmtime.Module:
    lockdown.lock_down(policy(**changes))
    module = wasmtime.Module.deserialize(_engine, artifact)
    lockdown.seal_after_load()
    return module


def _store() -> wasmtime.Store:
    store = wasmtime.Store(_engine)
    store.set_epoch_deadline(1)
    return store


def call_export(artifact: bytes, export: str, arguments: list[int], times: int = 1) -> list[Any]:
    """Call an export, each time in a fresh instance; traps are returned by their code's name."""
    module = _ready_runner(artifact)
    answers: list[Any] = []
    for _ in range(times):
        store = _store()
        try:
            instance = _linker.instantiate(store, module)
            function = instance.exports(store)[export]
            assert isinstance(function, wasmtime.Func)
            answers.append(function(store, *arguments))
        except wasmtime.Trap as trap:
            code = trap.trap_code
            answers.append((code.name if code else None, [f.func_name for f in trap.frames]))
    return [*answers, *LOGGED]


def run_command(artifact: bytes, stdin: bytes, times: int = 1) -> list[tuple[bytes, int]]:
    """Run a WASI command; returns standard output and exit code of each run."""
    module = _ready_runner(artifact)
    answers = []
    for _ in range(times):
        store, output = _store(), bytearray()
        config = wasmtime.WasiConfig()
        config.argv = ["guest"]
        config.env = [("NAME", "value")]
        config.stdout_custom = output.extend
        config.stderr_custom = output.extend
        vector = capi.wasm_byte_vec_t()
        buffer = (ctypes.c_uint8 * max(len(stdin), 1)).from_buffer_copy(stdin or b"\0")
        capi.wasm_byte_vec_new(ctypes.byref(vector), len(stdin), buffer)
        capi.wasi_config_set_stdin_bytes(config.ptr(), ctypes.byref(vector))
        store.set_wasi(config)
        code = 0
        try:
            start = _linker.instantiate(store, module).exports(store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
        except wasmtime.ExitTrap as ended:
            code = ended.code
        answers.append((bytes(output), code))
    return answers


def interrupt_by_pipe(artifact: bytes, export: str) -> str:
    """A thread blocks on a pipe and bumps the epoch while the guest spins."""
    reading, writing = os.pipe()
    keep = frozenset({RESULT_FD, reading, writing})
    lockdown.lock_down(policy(keep_fds=keep))

    def watch() -> None:
        os.read(reading, 1)
        _engine.increment_epoch()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    module = wasmtime.Module.deserialize(_engine, artifact)
    lockdown.seal_after_load()
    store = _store()
    spin = _linker.instantiate(store, module).exports(store)[export]
    assert isinstance(spin, wasmtime.Func)
    os.write(writing, b"x")
    try:
        spin(store)
    except wasmtime.Trap as trap:
        return trap.trap_code.name if trap.trap_code else "no code"
    return "returned"


def receive_module(artifact: bytes, export: str) -> Any:
    """A descriptor comes in before the seal; the module in it runs after."""
    ours, theirs = socket.socketpair()
    fd = os.memfd_create("artifact")
    os.write(fd, artifact)
    socket.send_fds(theirs, [b"x"], [fd])
    lockdown.lock_down(policy(keep_fds=frozenset({RESULT_FD, ours.fileno()})))
    _, received, _, _ = socket.recv_fds(ours, 1, 1)
    code = os.pread(received[0], len(artifact), 0)
    os.close(received[0])
    module = wasmtime.Module.deserialize(_engine, code)
    lockdown.seal_after_load()
    store = _store()
    function = _linker.instantiate(store, module).exports(store)[export]
    assert isinstance(function, wasmtime.Func)
    return function(store)


def interpreter_at_work() -> dict[str, Any]:
    """What ordinary Python code does in a sealed runner."""
    lockdown.lock_down(policy())
    lockdown.seal_after_load()
    found: dict[str, Any] = {}
    grown = [bytearray(1 << 20) for _ in range(32)]
    grown[0].extend(bytes(8 << 20))
    found["memory"] = sum(map(len, grown))
    del grown
    gc.collect()
    try:
        raise ValueError("x" * 10)
    except ValueError:
        found["traceback"] = traceback.format_exc().splitlines()[-1]
    counted: list[int] = []
    lock = threading.Lock()

    def count() -> None:
        for _ in range(100):
            with lock:
                counted.append(1)
        time.sleep(0.001)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found["threads"] = len(counted)
    clocks = (time.time, time.monotonic, time.process_time, time.thread_time)
    found["clocks"] = all(clock() > 0 for clock in clocks)
    found["random"] = len(os.urandom(16))
    try:
        __import__("wave")
    except (OSError, ImportError) as error:
        found["late import"] = type(error).__name__
    found["deep"] = _depth_reached()
    return found


def _depth_reached() -> str:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        return type(error).__name__
    return "no end"


def end_by(way: str) -> None:
    """End after the lock-down in one of several ways."""
    lockdown.lock_down(policy(cpu_seconds=1 if way == "burn" else 20))
    lockdown.seal_after_load()
    if way == "abort":
        os.abort()
    elif way == "exit":
        os._exit(7)
    elif way == "crash":
        ctypes.string_at(0)
    elif way == "free twice":
        _libc.malloc.restype = ctypes.c_void_p
        block = ctypes.c_void_p(_libc.malloc(4000))
        _libc.free(block)
        _libc.free(block)
    elif way == "burn":
        while True:
            pass


def limits_read_back() -> dict[str, tuple[int, int]]:
    chosen = policy()
    lockdown.apply_layers(chosen, frozenset({"rlimits"}))
    return {limit.name: resource.getrlimit(limit.resource) for limit in limits.LIMITS}
