"""`make soak-residue`: nothing of one call is visible to the next one in the same process.

One guest does both: it looks everywhere a canary could be (all of linear memory, a global, a table,
what memory.grow brings, the buffers that WASI fills with arguments, variables and input) and then
leaves its own there and in the output and the log. Each call brings a canary of its own in its
arguments, variables and input, so what it finds there must be its own. Between calls, some end in a
trap, in the output limit or in proc_exit: after a trap the process must be another one, after an
exit it must be the same.

A second guest, a plugin, does the same with what it has. It imports no WASI, so its instances are
made ahead of their calls; its inputs and results are short and long in turn, so that they come and
go by every way there is.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import DaemonProcess
from tests.hostile.guests import assembled
from tests.hostile.harness import Bench, word

from sandboxd.v1 import call_pb2, sandbox_pb2

CANARY_BYTES = 16
# One call in so many ends in a trap, or at the output limit; the process ends with it.
TRAP_EVERY, FLOOD_EVERY = 97, 101
STATUS_EVERY = 25
_MODES = ("leave", "trap", "flood")

# Layout: 0 iovec, 16 counts, 64 argument pointers, 256 arguments, 1024 variable pointers, 1280
# variables, 2048 input. Findings of dirt go to stdout as "dirty"; then what WASI gave is written to
# stderr, and the canary everywhere.
GUEST = """
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get"
    (func $env_sizes (param i32 i32) (result i32)))
  (import "env" "log" (func $log (param i32 i32)))
  (memory (export "memory") 2)
  (table $table 4 64 funcref)
  (global $global (mut i64) (i64.const 0))
  (func $canary)
  (elem declare func $canary)
  (func $dirt_in (param $at i32) (param $end i32) (result i32)
    (loop $on
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (return (i32.const 1))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $on (i32.lt_u (local.get $at) (local.get $end))))
    (i32.const 0))
  (func $is_dirty (result i32)
    (if (call $dirt_in (i32.const 0) (i32.const 131072)) (then (return (i32.const 1))))
    (if (i64.ne (global.get $global) (i64.const 0)) (then (return (i32.const 2))))
    (if (i32.eqz (ref.is_null (table.get $table (i32.const 3)))) (then (return (i32.const 3))))
    (if (i32.ne (table.size $table) (i32.const 4)) (then (return (i32.const 4))))
    (if (i32.ne (memory.grow (i32.const 2)) (i32.const 2)) (then (return (i32.const 5))))
    (call $dirt_in (i32.const 131072) (i32.const 262144)))
  (func $say (param $fd i32) (param $at i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $size))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 16))))
  (func $fill (param $from i32)
    (loop $on
      (memory.copy (local.get $from) (i32.const 2048) (i32.const 16))
      (local.set $from (i32.add (local.get $from) (i32.const 16)))
      (br_if $on (i32.lt_u (local.get $from) (i32.const 262128)))))
  (func (export "_start") (local $dirt i32) (local $mode i32)
    (local.set $dirt (call $is_dirty))
    (if (local.get $dirt) (then
      (i32.store (i32.const 8) (i32.add (i32.const 0x30) (local.get $dirt)))
      (call $say (i32.const 1) (i32.const 8) (i32.const 1))))
    (i32.store (i32.const 0) (i32.const 2048))
    (i32.store (i32.const 4) (i32.const 512))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
    (local.set $mode (i32.load8_u (i32.const 2064)))
    (drop (call $args_sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 64) (i32.const 256)))
    (call $say (i32.const 2) (i32.const 256) (i32.load (i32.const 20)))
    (drop (call $env_sizes (i32.const 16) (i32.const 20)))
    (drop (call $env (i32.const 1024) (i32.const 1280)))
    (call $say (i32.const 2) (i32.const 1280) (i32.load (i32.const 20)))
    (call $say (i32.const 2) (i32.const 2048) (i32.const 16))
    (call $log (i32.const 2048) (i32.const 16))
    (global.set $global (i64.load (i32.const 2048)))
    (table.set $table (i32.const 3) (ref.func $canary))
    (drop (table.grow $table (ref.func $canary) (i32.const 8)))
    (call $fill (i32.const 4096))
    (if (i32.eq (local.get $mode) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get $mode) (i32.const 2)) (then
      (loop $on (call $say (i32.const 1) (i32.const 4096) (i32.const 65536)) (br $on))))))
"""

# The input is the canary, again and again; it comes to 4096. The answer is the input.
PLUGIN = """
(module
  (import "env" "log" (func $log (param i32 i32)))
  (memory (export "memory") 4 8)
  (data (i32.const 0) "initial ")
  (table $table 4 64 funcref)
  (global $global (mut i64) (i64.const 0))
  (func $canary)
  (elem declare func $canary)
  (func $dirt_in (param $at i32) (param $end i32) (result i32)
    (loop $on
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (return (i32.const 1))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $on (i32.lt_u (local.get $at) (local.get $end))))
    (i32.const 0))
  (func $is_dirty (param $size i32) (result i32)
    (if (i64.ne (i64.load (i32.const 0)) (i64.const 0x206c616974696e69)) (then
      (return (i32.const 1))))
    (if (call $dirt_in (i32.const 8) (i32.const 4096)) (then (return (i32.const 1))))
    (if (call $dirt_in (i32.add (i32.const 4096) (local.get $size)) (i32.const 262144)) (then
      (return (i32.const 1))))
    (if (i64.ne (global.get $global) (i64.const 0)) (then (return (i32.const 1))))
    (if (i32.eqz (ref.is_null (table.get $table (i32.const 3)))) (then (return (i32.const 1))))
    (if (i32.ne (table.size $table) (i32.const 4)) (then (return (i32.const 1))))
    (if (i32.ne (memory.grow (i32.const 2)) (i32.const 4)) (then (return (i32.const 1))))
    (call $dirt_in (i32.const 262144) (i32.const 393216)))
  (func $leave (export "leave") (param $at i32) (param $size i32) (result i64) (local $to i32)
    (if (call $is_dirty (local.get $size)) (then
      (return (i64.const 0x500000000))))
    (call $log (local.get $at) (i32.const 16))
    (global.set $global (i64.load (local.get $at)))
    (table.set $table (i32.const 3) (ref.func $canary))
    (drop (table.grow $table (ref.func $canary) (i32.const 8)))
    (loop $on
      (memory.copy (local.get $to) (local.get $at) (i32.const 16))
      (local.set $to (i32.add (local.get $to) (i32.const 16)))
      (br_if $on (i32.lt_u (local.get $to) (i32.const 393200))))
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size))))
  (func (export "trap") (param i32 i32) (result i64)
    (drop (call $leave (local.get 0) (local.get 1)))
    unreachable)
  (func (export "alloc") (param i32) (result i32) (i32.const 4096)))
"""
# Below and above what goes in and out another way; multiples of the canary.
PLUGIN_SIZES = (16, 16_384, 16_400, 32_768, 32_784, 160_000)


@dataclass
class Tally:
    """What the calls found."""

    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    start_kinds: Counter[str] = field(default_factory=Counter)
    pids: set[int] = field(default_factory=set)
    breaches: list[str] = field(default_factory=list)


def _request(digest: str, canary: str, mode: int) -> sandbox_pb2.ExecuteRequest:
    return sandbox_pb2.ExecuteRequest(
        digest=digest,
        wasi=call_pb2.WasiCommand(
            args=[canary],
            env=[call_pb2.EnvironmentVariable(name="C", value=canary)],
            stdin=canary.encode() + bytes([mode]),
        ),
        limits=sandbox_pb2.Limits(output_bytes=200_000),
    )


def _check(tally: Tally, response: sandbox_pb2.ExecuteResponse, canary: str, mode: int) -> None:
    said = word(response)
    tally.calls += 1
    tally.outcomes[said] += 1
    tally.start_kinds[sandbox_pb2.StartKind.Name(response.receipt.start_kind)] += 1
    own = canary.encode()
    wanted = ("exited:0", "trapped:UNREACHABLE", "limit:OUTPUT")[mode]
    if said != wanted:
        tally.breaches.append(f"{said} instead of {wanted}")
    if response.stderr != own + b"\0C=" + own + b"\0" + own:
        tally.breaches.append(f"it saw {response.stderr!r}")
    if [entry.message for entry in response.logs.entries] != [own]:
        tally.breaches.append(f"it logged {response.logs}")
    foreign = response.stdout.replace(own, b"").strip(b"\0")
    # A flood is cut somewhere within a canary.
    if mode == 2:
        foreign = b"" if own.startswith(foreign) else foreign
    if foreign or (mode != 2 and response.stdout):
        tally.breaches.append(f"it said {response.stdout[:80]!r}")


async def soak(daemon: DaemonProcess, calls: int) -> Tally:
    """Make the calls one after another; one module, so one process until a call ends it."""
    tally = Tally()
    async with daemon.aio_channel() as channel:
        bench = Bench(daemon, channel)
        digest = await bench.stored(assembled(GUEST))
        ended = True
        for index in range(calls):
            mode = 1 if index % TRAP_EVERY == 50 else 2 if index % FLOOD_EVERY == 60 else 0
            canary = secrets.token_hex(CANARY_BYTES // 2)
            response = await bench.execute(_request(digest, canary, mode))
            _check(tally, response, canary, mode)
            reused = response.receipt.start_kind == sandbox_pb2.START_KIND_REUSED
            if reused == ended and index:
                tally.breaches.append(
                    f"call {index}: {'the same' if reused else 'another'} process"
                )
            ended = mode != 0
            if not ended and index % STATUS_EVERY == 0:
                status = await bench.status()
                tally.pids.update(
                    runner.pid for runner in status.runners if runner.module_digest == digest
                )
    return tally


async def soak_plugin(daemon: DaemonProcess, calls: int) -> Tally:
    """Make the calls of the plugin one after another."""
    tally = Tally()
    async with daemon.aio_channel() as channel:
        bench = Bench(daemon, channel)
        digest = await bench.stored(assembled(PLUGIN))
        for index in range(calls):
            traps = index % TRAP_EVERY == 50
            canary = secrets.token_bytes(CANARY_BYTES)
            data = canary * (PLUGIN_SIZES[index % len(PLUGIN_SIZES)] // CANARY_BYTES)
            call = call_pb2.BytesCall(export="trap" if traps else "leave", input=data)
            response = await bench.execute(sandbox_pb2.ExecuteRequest(digest=digest, bytes=call))
            _check_plugin(tally, response, data, traps)
    return tally


def _check_plugin(
    tally: Tally, response: sandbox_pb2.ExecuteResponse, data: bytes, traps: bool
) -> None:
    said = word(response)
    tally.calls += 1
    tally.outcomes[said] += 1
    tally.start_kinds[sandbox_pb2.StartKind.Name(response.receipt.start_kind)] += 1
    if said != ("trapped:UNREACHABLE" if traps else "completed"):
        tally.breaches.append(f"{said} of {'trap' if traps else 'leave'}")
    if not traps and response.completed.output != data:
        tally.breaches.append(f"it answered {response.completed.output[:40]!r}")
    if [entry.message for entry in response.logs.entries] != [data[:CANARY_BYTES]]:
        tally.breaches.append(f"it logged {response.logs}")


def report(tally: Tally) -> str:
    outcomes = ", ".join(f"{name} x{count}" for name, count in sorted(tally.outcomes.items()))
    kinds = ", ".join(f"{name} x{count}" for name, count in sorted(tally.start_kinds.items()))
    return "\n".join(
        [
            f"{tally.calls} calls of one module: {outcomes}",
            f"processes: {kinds}" + (f"; {len(tally.pids)} process ids seen" if tally.pids else ""),
            *tally.breaches[:20],
            f"canaries of another call seen, or other deviations: {len(tally.breaches)}",
        ]
    )


# A runner would retire after a number of calls; here it is to serve as many as it can.
ARGUMENTS = ("--max-runners", "4", "--spare-runners", "2", "--runner-max-executions", "1000000")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sbx-") as directory:
        daemon = DaemonProcess(Path(directory), ARGUMENTS)
        daemon.start()
        try:
            tallies = [
                asyncio.run(soak(daemon, arguments.calls)),
                asyncio.run(soak_plugin(daemon, arguments.calls)),
            ]
        finally:
            daemon.stop()
    print("\n\n".join(map(report, tallies)))
    return int(any(tally.breaches or tally.calls != arguments.calls for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
