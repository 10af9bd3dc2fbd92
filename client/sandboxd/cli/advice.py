"""Says in a line what went wrong and in another what to do next."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from typing import TYPE_CHECKING

from sandboxd.client import (
    AccessDenied,
    DaemonUnreachable,
    DeadlineFault,
    Fault,
    FieldViolation,
    InternalFault,
    InvalidModule,
    LayerNotActive,
    MessageTooLarge,
    ModuleDamaged,
    ModuleNotFound,
    ModuleTooComplex,
    ModuleTooLarge,
    StoreFull,
    Unavailable,
    Unsupported,
)
from sandboxd.client.target import resolve_target, socket_path
from sandboxd.client.text import printable

if TYPE_CHECKING:
    from sandboxd.cli.settings import Settings

_NEXT: tuple[tuple[type[Fault], str], ...] = (
    (ModuleDamaged, "Push it again: sandboxctl module push FILE; then look at the daemon's disk"),
    (ModuleNotFound, "Push it first: sandboxctl module push FILE"),
    (ModuleTooLarge, "Strip it (wasm-opt -Oz, wasm-strip), or raise sandboxd's --max-module"),
    (LayerNotActive, "See which layers are active, and why not: sandboxctl doctor"),
    (StoreFull, "Make room: sandboxctl module ls, then sandboxctl module rm DIGEST"),
    (MessageTooLarge, "Send less input, or start sandboxd with a higher --max-message"),
    (AccessDenied, "Present a certificate that the daemon trusts: --tls-cert and --tls-key"),
    (DeadlineFault, "Give it longer with --timeout, or look at it: sandboxctl status"),
    (Unsupported, "Client and daemon differ in age? Compare: sandboxctl version"),
    (InternalFault, "This is a bug in sandboxd; its log says more: journalctl -u sandboxd"),
)

# By the fault's metadata, see docs/errors.md; every other limit is fixed.
COMPILER_FLAGS = {
    "memory": "--compile-memory",
    "wall_time": "--compile-wall-time",
    "cpu_time": "--compile-cpu-time",
    "artifact_size": "--max-artifact",
}
# The compiler misbehaved: no limit at all.
_COMPILER_BROKE = frozenset({"crash", "sandbox", "protocol"})


def explain(fault: Fault, settings: Settings) -> tuple[str, str]:
    """Return what went wrong and what to do next; the second may be empty."""
    if isinstance(fault, DaemonUnreachable):
        return _unreachable(fault, settings)
    problem = fault.message
    if isinstance(fault, InvalidModule) and fault.offset_bytes:
        problem += f" (at byte {fault.offset_bytes} of the module)"
    if fault.field_violations:
        problem += f" ({'; '.join(_field(fault, v) for v in fault.field_violations)})"
    if fault.reason:
        problem += f" [{fault.reason}]"
    return printable(problem), _next_step(fault)


def _field(fault: Fault, violation: FieldViolation) -> str:
    if violation.description == fault.message:
        return violation.field or "request"
    return f"{violation.field}: {violation.description}"


def _next_step(fault: Fault) -> str:
    if fault.retry_after is not None:
        return f"Try again in {max(fault.retry_after, 0.1):.1f} s; the load: sandboxctl status"
    if isinstance(fault, Unavailable):
        return "Try again; if it stays so, look at the daemon: sandboxctl status"
    if isinstance(fault, ModuleTooComplex):
        return _simplify(fault.metadata.get("limit", ""))
    return next((step for kind, step in _NEXT if isinstance(fault, kind)), "")


def _simplify(limit: str) -> str:
    if limit in COMPILER_FLAGS:
        return f"Split it up, or start sandboxd with a higher {COMPILER_FLAGS[limit]}"
    if limit in _COMPILER_BROKE:
        return "The module breaks the compiler: please report it, with the module"
    return "Split it up: this limit is fixed, and no setting of sandboxd raises it"


def _unreachable(fault: Fault, settings: Settings) -> tuple[str, str]:
    target = resolve_target(settings.address)
    elsewhere = "name another address with --address or SANDBOXD_ADDRESS"
    path = socket_path(target)
    if path is None:
        return (
            f"no sandboxd answers at {printable(target)}: {printable(fault.message)}",
            f"Check that it listens there and that TLS is right (--tls-ca), or {elsewhere}",
        )
    match _connect_errno(path):
        case errno.EACCES | errno.EPERM:
            group = _group(path)
            return (
                f"permission denied on the socket {printable(path)}",
                f"Join its group: sudo usermod -aG {group} $USER, then log in again"
                if group
                else "Only root may use it: have the daemon started with --socket-group",
            )
        case errno.ENOENT | errno.ECONNREFUSED | errno.ENOTSOCK | errno.ENOTDIR:
            return (
                f"sandboxd is not running: nobody listens on {printable(path)}",
                f"Start it: sudo systemctl start sandboxd; or {elsewhere}",
            )
    return (
        f"the connection to {printable(path)} broke: {printable(fault.message)}",
        "Try again; if it stays so, the daemon's log says more: journalctl -u sandboxd",
    )


def _connect_errno(path: str) -> int:
    """Ask the kernel why: gRPC only gives a text."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path)


def _group(path: str) -> str:
    """Name the group that may connect; the packaged one if it cannot be seen, none for root's."""
    try:
        status = os.stat(path)
        if not stat.S_ISSOCK(status.st_mode) or status.st_gid == 0:
            return ""
        return grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return "sandboxd"
