"""Settings: one definition each; it yields the flag, the environment variable and its help.

`--max-runners` is SANDBOXD_MAX_RUNNERS in the environment. A size takes a suffix (KiB, MiB, GiB), a
duration one (ms, s, m, h).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click

MIB = 1024 * 1024
ENVIRONMENT_PREFIX = "SANDBOXD"

_UNITS_SIZE = {"": 1, "B": 1, "KIB": 1024, "MIB": MIB, "GIB": 1024 * MIB}
_UNITS_TIME = {"": 1000, "MS": 1, "S": 1000, "M": 60_000, "H": 3_600_000}


class _UnitType(click.ParamType[int]):
    """A number with an optional unit, up to `most`. `zero` is allowed only if told so."""

    _units: ClassVar[dict[str, int]]
    _example: ClassVar[str]

    def __init__(self, most: int, most_told: str, zero: bool = False) -> None:
        self._most = most
        self._most_told = most_told
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number in the smallest unit; fail on anything else."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value))
        if match is None or match[2].upper() not in self._units:
            self.fail(f"{value!r} is not {self._example}", param, ctx)
        found = float(match[1]) * self._units[match[2].upper()]
        if found > self._most:
            self.fail(f"{value!r} is too large; at most {self._most_told}", param, ctx)
        number = int(found)
        if number == 0 and not self._zero:
            self.fail(f"{value!r} is too small; give {self._example}", param, ctx)
        return number


class SizeType(_UnitType):
    """A number of bytes, with an optional suffix."""

    name = "size"
    _units = _UNITS_SIZE
    _example = "a size, such as 64MiB"


class DurationType(_UnitType):
    """A duration in milliseconds, with an optional suffix; seconds without."""

    name = "duration"
    _units = _UNITS_TIME
    _example = "a duration, such as 250ms"


class NumberType(click.IntRange):
    """A whole number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; fail on anything else."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return super().convert(number, param, ctx)


def _option(default: Any, help_text: str, kind: Any = None, **extra: Any) -> Any:
    metadata = {"help": help_text, "type": kind, **extra}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _directory(root: str, variable: str, fallback: str) -> Path:
    if os.geteuid() == 0:
        return Path(root)
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "sandboxd"


def _default_socket() -> str:
    if os.geteuid() == 0:
        return "unix:///run/sandboxd/sandboxd.sock"
    base = os.environ.get("XDG_RUNTIME_DIR") or str(_default_state())
    return (
        f"unix://{base}/sandboxd/sandboxd.sock"
        if "XDG_RUNTIME_DIR" in os.environ
        else (f"unix://{base}/sandboxd.sock")
    )


def _default_state() -> Path:
    return _directory("/var/lib/sandboxd", "XDG_STATE_HOME", ".local/state")


# Ends of what the parts can count. Memory and disk: far beyond a machine, and far below where a
# resource limit overflows. A message and what goes out with it: gRPC's sizes are 32 bits, signed,
# and the runner's results end here. Durations: their sums stay within the kernel's clocks.
_TERA = 1024 * 1024 * MIB
SIZE = SizeType(_TERA, "1024GiB")
DISK = SizeType(1024 * _TERA, "1048576GiB")
DISK_OR_ZERO = SizeType(1024 * _TERA, "1048576GiB", zero=True)
MESSAGE = SizeType(1024 * MIB, "1GiB")
DURATION = DurationType(365 * 24 * 3_600_000, "8760h")
DURATION_OR_ZERO = DurationType(365 * 24 * 3_600_000, "8760h", zero=True)
# Those that wait or run take a descriptor, a process or a place in gRPC's counter, which has 32
# bits; the others count by themselves.
PROCESSES = NumberType(1, 10_000)
WAITING = NumberType(1, 1_000_000)
COUNT = NumberType(1, 2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything an operator can set. Sizes in bytes, durations in milliseconds."""

    listen: tuple[str, ...] = _option(
        lambda: (_default_socket(),),
        "Where to listen: unix:///path or tcp://127.0.0.1:port; may be repeated. TCP needs "
        "--tls-cert, --tls-key and --tls-client-ca, or --insecure-tcp.",
        multiple=True,
        show="/run/sandboxd/sandboxd.sock as root, else below XDG_RUNTIME_DIR or the state "
        "directory",
    )
    state_dir: Path = _option(
        _default_state,
        "Where modules are stored.",
        click.Path(path_type=Path, file_okay=False),
        show="/var/lib/sandboxd as root, else below XDG_STATE_HOME",
    )
    socket_group: str = _option("", "Group that may connect to the unix socket (mode 0660).")
    tls_cert: str = _option("", "Server certificate (PEM), for TCP.")
    tls_key: str = _option("", "Server key (PEM), for TCP.")
    tls_client_ca: str = _option("", "Authority that signs client certificates (PEM), for TCP.")
    insecure_tcp: bool = _option(
        False,
        "Allow TCP without TLS on a loopback address. Every user of this machine can then "
        "run guests.",
    )
    max_runners: int = _option(32, "Most runner processes at once.", PROCESSES)
    spare_runners: int | None = _option(
        None,
        "Runner processes kept ready ahead of need. At most half of --max-runners. [default: 4, or "
        "that half]",
        NumberType(0, 10_000),
        show=False,
    )
    ahead_runners: int | None = _option(
        None,
        "Runner processes kept bound ahead of need, for modules whose calls use processes up again "
        "and again: they ask for one of their own, trap, or are stopped. At most a quarter of "
        "--max-runners, or one if there are two or three. [default: 4, or that quarter]",
        NumberType(0, 10_000),
        show=False,
    )
    queue_capacity: int = _option(1024, "Most calls that may wait for a runner.", WAITING)
    queue_bytes: int = _option(
        256 * MIB,
        "Most memory that calls may hold while they wait for compiler or runner, and batches until "
        "they end; as much again for results of batches that clients have not read.",
        SIZE,
    )
    runner_max_executions: int = _option(
        10_000, "Calls that a runner serves before it ends.", COUNT
    )
    runner_max_age: int = _option("1h", "Age at which a runner ends.", DURATION)
    runner_idle_timeout: int = _option("5m", "Idle time after which a runner ends.", DURATION)
    grace: int = _option(
        "50ms", "Time between interrupting a guest and killing it.", DURATION_OR_ZERO
    )
    default_wall_time: int = _option("10s", "Wall-clock limit if a call sets none.", DURATION)
    max_wall_time: int = _option("5m", "Highest wall-clock limit that a call can set.", DURATION)
    default_cpu_time: int = _option("10s", "CPU limit if a call sets none.", DURATION)
    max_cpu_time: int = _option("5m", "Highest CPU limit that a call can set.", DURATION)
    default_memory: int = _option("256MiB", "Linear memory if a call sets none.", SIZE)
    max_memory: int = _option("512MiB", "Most linear memory that a call can set.", SIZE)
    default_table_elements: int = _option(100_000, "Table elements if a call sets none.", COUNT)
    max_table_elements: int = _option(1_000_000, "Most table elements that a call can set.", COUNT)
    default_output: int = _option("1MiB", "Output limit if a call sets none.", MESSAGE)
    max_output: int = _option("2MiB", "Highest output limit that a call can set.", MESSAGE)
    max_module: int = _option("128MiB", "Largest module that can be pushed.", SIZE)
    max_modules: int = _option(10_000, "Most modules that may be stored.", COUNT)
    module_disk: int = _option("64GiB", "Disk space for stored modules.", DISK)
    push_time: int = _option("5m", "Time in which a pushed module must have come.", DURATION)
    max_message: int = _option("4MiB", "Largest gRPC message accepted.", MESSAGE)
    compilers: int = _option(1, "Compiler processes at once.", PROCESSES)
    compile_queue: int = _option(64, "Modules that may wait for the compiler.", WAITING)
    compile_wall_time: int = _option("120s", "Wall-clock limit of one compilation.", DURATION)
    compile_cpu_time: int = _option("120s", "CPU limit of one compilation.", DURATION)
    compile_memory: int = _option("2GiB", "Memory limit of one compilation.", SIZE)
    max_artifact: int = _option("512MiB", "Largest compiled module.", SIZE)
    artifact_cache: int = _option("1GiB", "Memory for compiled modules.", SIZE)
    artifact_disk: int = _option(
        "4GiB", "Disk space for compiled modules; 0 keeps none over a restart.", DISK_OR_ZERO
    )
    drain: int = _option(
        "10s", "Time that running calls get when the daemon stops.", DURATION_OR_ZERO
    )
    user: str = _option(
        "",
        "User, by name or number, that the daemon becomes when started as root. [default: "
        "sandboxd if it exists, else the first id of the range below]",
        show=False,
    )
    uid_base: int | None = _option(
        None,
        "First user id of the range that runners take when started as root. The range must not "
        "overlap with real users or containers. [default: the range that owns the state "
        "directory, else the first one from 1900000000 on that no other sandboxd of this "
        "machine takes]",
        COUNT,
        show=False,
    )
    isolation: str = _option(
        "default",
        "Layers that must hold, or the daemon does not start. default: all that do not depend on "
        "the host's administrator; strict: all but uid (always required as root) and memfd-noexec "
        "(root only), cgroup (--cgroups=require), no-ipc and no-passed-descriptors (Linux 6.16); "
        "container: for a container that allows neither namespaces nor Landlock. `sandboxctl "
        "doctor` lists the layers.",
        click.Choice(["default", "strict", "container"]),
    )
    require_layer: tuple[str, ...] = _option(
        (),
        "A layer that must hold, too; may be repeated, and in the environment takes several, with "
        "spaces between them.",
        multiple=True,
    )
    namespaces: str = _option(
        "auto",
        "Namespaces and an empty root for all runners: require, auto (use if the host allows) or "
        "off.",
        click.Choice(["require", "auto", "off"]),
    )
    cgroups: str = _option(
        "auto",
        "A cgroup for each runner and compiler, with limits of memory and threads: require, auto "
        "(use what was delegated to the daemon) or off.",
        click.Choice(["require", "auto", "off"]),
    )
    runner_cpu_percent: int = _option(
        0,
        "Share of one processor that a runner or compiler may use, in percent; 0: no limit. Needs "
        "a cgroup with the controller cpu; without one the daemon does not start.",
        NumberType(0, 1_000_000),
    )
    log_level: str = _option(
        "info",
        "Least severity that is logged.",
        click.Choice(["debug", "info", "warning", "error"]),
    )


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a click command with one option per setting."""
    for field in reversed(dataclasses.fields(Settings)):
        command = _click_option(field)(command)
    return command


def _click_option(field: dataclasses.Field[Any]) -> Callable[[Any], Any]:
    metadata = field.metadata
    name = field.name.replace("_", "-")
    has_factory = field.default is dataclasses.MISSING
    common: dict[str, Any] = {
        "help": metadata["help"],
        "envvar": f"{ENVIRONMENT_PREFIX}_{field.name.upper()}",
        "show_envvar": True,
        "show_default": metadata.get("show", True),
        "default": None if has_factory else field.default,
    }
    if field.type in (bool, "bool"):
        return click.option(f"--{name}", is_flag=True, **common)
    return click.option(
        f"--{name}", type=metadata["type"], multiple=metadata.get("multiple", False), **common
    )


def from_arguments(arguments: dict[str, Any]) -> Settings:
    """Build the settings from click's arguments; what was not given takes its default."""
    given = {name: value for name, value in arguments.items() if value is not None and value != ()}
    return Settings(**given)
