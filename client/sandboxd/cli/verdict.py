"""What a shell sees of an outcome: an exit code, and lines on standard error."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sandboxd.client import Execution, Frame, outcomes
from sandboxd.client.outcomes import Outcome
from sandboxd.client.text import printable

EXIT_TIME_UP = 124
EXIT_CANNOT_RUN = 126
EXIT_CANCELLED = 130
# 128 + SIGABRT: the guest broke down.
EXIT_TRAPPED = 134
# 128 + SIGKILL: the guest was ended for what it used or did.
EXIT_LIMIT = 137
# 128 + SIGSYS: what kills a process for a forbidden system call.
EXIT_VIOLATION = 159
EXIT_UNKNOWN = 125

_CODES: dict[type[object], int] = {
    outcomes.Completed: 0,
    outcomes.Trapped: EXIT_TRAPPED,
    outcomes.HostError: EXIT_TRAPPED,
    outcomes.DeadlineExceeded: EXIT_TIME_UP,
    outcomes.CpuTimeExceeded: EXIT_TIME_UP,
    outcomes.Cancelled: EXIT_CANCELLED,
    outcomes.LimitExceeded: EXIT_LIMIT,
    outcomes.ProtocolViolation: EXIT_LIMIT,
    outcomes.LinkError: EXIT_CANNOT_RUN,
    outcomes.SandboxViolation: EXIT_VIOLATION,
}


def exit_code(outcome: Outcome) -> int:
    """Return the exit code; a guest's own is taken modulo 256, as any process's is."""
    match outcome:
        case outcomes.Exited():
            return outcome.code & 0xFF
        case outcomes.Crashed():
            return 128 + (outcome.signal & 0x7F)
    return _CODES.get(type(outcome), EXIT_UNKNOWN)


def say(outcome: Outcome, about: str = "") -> None:
    """Explain on standard error how a guest failed; nothing if it came to its own end.

    `about` tells which one, where there are several.
    """
    if isinstance(outcome, outcomes.Completed | outcomes.Exited):
        return
    which = f"{about}: " if about else ""
    click.echo(f"sandboxctl: {which}{outcome.describe()}", err=True)
    for line in _backtrace(outcome):
        click.echo(line, err=True)


def say_logs(execution: Execution) -> None:
    """Write what the guest logged to standard error, one escaped line per entry."""
    for entry in execution.logs:
        text = printable(entry) if isinstance(entry, bytes) else f"{entry.number} ({entry.type})"
        click.echo(f"log: {text}", err=True)


def say_receipt(execution: Execution) -> None:
    """Write the receipt to standard error, one `name: value` per line."""
    receipt = execution.receipt
    lines = [
        f"module: {printable(receipt.module_digest)}",
        f"outcome: {execution.outcome.name}",
        f"start: {receipt.start_kind.lower()}",
        f"engine: {printable(receipt.engine_version)}",
    ]
    for name in ("queue", "compile", "bind", "run", "cpu"):
        lines.append(f"{name} time: {getattr(receipt, f'{name}_time_ns') / 1e6:.3f} ms")
    lines.append(f"peak memory: {receipt.peak_memory_bytes / (1 << 20):.1f} MiB")
    lines.append(f"bytes in, out: {receipt.bytes_in}, {receipt.bytes_out}")
    lines.append(f"isolation profile: {printable(receipt.isolation_profile) or 'not told'}")
    layers = map(printable, receipt.isolation_layers)
    lines.append(f"isolation layers: {', '.join(layers) or 'none'}")
    told = receipt.self_reported
    if told is not None:
        lines.append(
            f"linear memory (self-reported): {told.linear_memory_bytes / (1 << 20):.1f} MiB"
        )
        if told.fuel_consumed is not None:
            lines.append(f"fuel (self-reported): {told.fuel_consumed}")
    click.echo("\n".join(f"receipt: {line}" for line in lines), err=True)


def _backtrace(outcome: Outcome) -> Iterator[str]:
    frames: tuple[Frame, ...] = ()
    match outcome:
        case outcomes.Trapped() | outcomes.LimitExceeded():
            frames = outcome.frames
        case outcomes.DeadlineExceeded() | outcomes.CpuTimeExceeded() | outcomes.Cancelled():
            frames = outcome.stop.frames
    for frame in frames:
        name = printable(frame.function_name) or f"function {frame.function_index}"
        yield f"  at {name} (module+{frame.module_offset_bytes:#x})"
