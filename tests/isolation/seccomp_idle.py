"""`make seccomp-idle`: which rows of the system call tables does no workload miss?

Leaves out one row at a time and runs every workload of its profile in a locked-down child. A row
is idle if all of them end as they do with the whole table. Idle is a question, not a verdict: a row
may be there for another libc, another kernel, or an accident (see its reason).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import wasmtime
from tests.isolation.nursery_client import Nursery, Outcome
from tests.isolation.test_engine import ARITHMETIC, COMMAND

from sandboxd.runner.isolation import kernel, syscalls
from sandboxd.runner.isolation.policy import Profile

Workload = tuple[str, dict[str, Any]]
_PROFILES: tuple[Profile, ...] = ("core", "runner", "compiler")


def workloads(nursery: Nursery, profile: Profile) -> dict[str, Workload]:
    """What the profile is there for, by name: a scenario of work.py and its arguments."""
    wasm = bytes(wasmtime.wat2wasm(ARITHMETIC))
    if profile == "compiler":
        return {
            "compile": ("compile_locked", {"wasm": wasm}),
            "refuse": ("compile_error", {"wasm": wasm[:-1]}),
            "run out of memory": ("compile_out_of_memory", {"wasm": wasm}),
        }
    module = nursery.run("compile_freely", wasm=wasm).value
    calls = {"artifact": module, "times": 3}
    found: dict[str, Workload] = {
        "call": ("call_export", {**calls, "export": "add", "arguments": [1, 2]}),
        "grow": ("call_export", {**calls, "export": "grow", "arguments": [50]}),
        "trap": ("call_export", {**calls, "export": "boom", "arguments": []}),
        "overflow": ("call_export", {**calls, "export": "deep", "arguments": []}),
        "interrupt": ("interrupt_by_pipe", {"artifact": module, "export": "spin"}),
        "bind": ("receive_module", {"artifact": module, "export": "size"}),
        "abort": ("end_by", {"way": "abort"}),
        "corrupt the heap": ("end_by", {"way": "free twice"}),
        "exit": ("end_by", {"way": "exit"}),
    }
    if profile == "runner":
        command = nursery.run("compile_freely", wasm=bytes(wasmtime.wat2wasm(COMMAND))).value
        found["WASI"] = ("run_command", {"artifact": command, "stdin": b"x" * 999, "times": 2})
        found["Python"] = ("interpreter_at_work", {})
    return found


def rows_of(profile: Profile) -> Iterator[syscalls.Row]:
    """The profile's rows on this machine."""
    for row in syscalls.ROWS:
        if profile in row.profiles and row.number(kernel.MACHINE) is not None:
            yield row


def _run(nursery: Nursery, profile: Profile, row: str, workload: Workload) -> tuple[int, Any]:
    name, arguments = workload
    outcome: Outcome = nursery.run(
        "without_row", profile=profile, row=row, name=name, arguments=arguments
    )
    return outcome.status, outcome.report


def missed_by(nursery: Nursery, profile: Profile) -> dict[str, list[str]]:
    """For each row the workloads that end otherwise without it."""
    work = workloads(nursery, profile)
    whole = {name: _run(nursery, profile, "", one) for name, one in work.items()}
    return {
        row.name: [
            name
            for name, one in work.items()
            if _run(nursery, profile, row.name, one) != whole[name]
        ]
        for row in rows_of(profile)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Find rows that no workload needs.")
    parser.add_argument("profiles", nargs="*", default=_PROFILES, metavar="PROFILE")
    parser.add_argument("--all", action="store_true", help="print the rows that are missed, too")
    chosen = parser.parse_args()
    nursery = Nursery("plain")
    for profile in chosen.profiles:
        missed = missed_by(nursery, profile)
        reasons = {row.name: row.reason for row in rows_of(profile)}
        idle = [name for name, by in missed.items() if not by]
        print(f"{profile}: {len(missed)} rows, {len(idle)} idle")
        for name, by in missed.items():
            if chosen.all or not by:
                print(f"  {name:20} {', '.join(by) or 'idle':40} {reasons[name]}")
    nursery.close()


if __name__ == "__main__":
    main()
