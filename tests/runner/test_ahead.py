"""The next instance is made while there is no call; nobody can tell, but by the clock."""

from __future__ import annotations

import pytest
import wasmtime
from tests.runner.conftest import MIB, Bind, Bound, compile_wasm, numbers

from sandboxd.runner import rehearsal
from sandboxd.runner.engine import Engines
from sandboxd.runner.guest import MAX_AHEAD_ARTIFACT_BYTES, Guest
from sandboxd.v1 import call_pb2

COUNTER = """
(module
  (memory (export "memory") 1)
  (data (i32.const 9) "\\00\\01")
  (table 2 funcref)
  (elem (i32.const 0) $spin)
  (global $g (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $g (i32.add (global.get $g) (i32.const 1)))
    (i32.store8 (i32.const 9) (i32.add (i32.load8_u (i32.const 9)) (i32.const 1)))
    (i32.add (global.get $g) (i32.load8_u (i32.const 9))))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "trap") unreachable)
  (func $spin (export "spin") (loop (br 0))))
"""
PLUGIN = """
(module
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 16))
  (func (export "run") (param i32 i32) (result i64) (i64.const 0x1000000001)))
"""
STARTS = '(module (memory (export "memory") 1) {} (start ${}) (func (export "f")))'
LOGS_AT_START = STARTS.format(
    '(import "env" "log" (func $log (param i32))) (func $s (call $log (i32.const 7)))', "s"
).replace('(memory (export "memory") 1) (import', "(import")
SPINS_AT_START = STARTS.format("(func $s (loop (br 0)))", "s")
STORES_AT_START = STARTS.format("(func $s (i32.store (i32.const 0) (i32.const 1)))", "s")
# The start function is the host's own: no code of the guest could trap before it.
HOST_AT_START = '(module (import "env" "abort" (func $a)) (start $a) (func (export "f")))'


@pytest.fixture
def counter(bind: Bind) -> Bound:
    return bind(COUNTER)


def is_ahead(bound: Bound) -> bool:
    return bound.guest._ahead is not None


def test_an_instance_that_was_made_ahead_is_fresh_and_serves_one_call(counter: Bound) -> None:
    for _ in range(5):
        assert numbers(counter.typed("count")) == [2]
        assert is_ahead(counter)


def test_other_limits_get_an_instance_of_their_own(counter: Bound) -> None:
    counter.typed("count", memory_bytes=10 * MIB)
    assert is_ahead(counter)
    # Were it the one that was made ahead, it could grow to the limit of the call before.
    assert numbers(counter.typed("grow", ("i32", 100), memory_bytes=MIB)) == [-1]
    assert numbers(counter.typed("grow", ("i32", 100), memory_bytes=10 * MIB)) == [1]
    small = counter.typed("count", memory_bytes=65535)
    assert small.limit_exceeded.kind == call_pb2.LIMIT_KIND_MEMORY
    assert numbers(counter.typed("count")) == [2]


def test_after_a_trap_the_next_call_is_served_from_one_that_was_made_ahead(counter: Bound) -> None:
    counter.typed("count")
    assert counter.typed("trap").trapped.code == call_pb2.TRAP_CODE_UNREACHABLE
    assert is_ahead(counter)
    assert numbers(counter.typed("count")) == [2]


@pytest.mark.parametrize("export", ["run", "alloc", "memory", "", "missing"])
def test_what_is_expected_is_made_before_the_first_call(bind: Bind, export: str) -> None:
    """Whatever function is expected: it was the client that named it."""
    bound = bind(PLUGIN)
    bound.guest.expect(MIB, 10, export)
    bound.guest.prepare()
    ahead = bound.guest._ahead
    assert ahead is not None
    served = bound.call_bytes("run", b"x", memory_bytes=MIB, table_elements=10)
    assert served.completed.output == b"x"
    assert bound.guest._ahead is not ahead


def test_nothing_is_made_for_calls_that_nothing_can_be_made_for(bind: Bind) -> None:
    starts = bind(SPINS_AT_START)
    starts.guest.expect(MIB, 10, "")
    starts.guest.prepare()
    assert not is_ahead(starts)


def test_initial_data_is_not_charged_ahead_of_its_call(bind: Bind) -> None:
    counter = bind(COUNTER, fuel=True)
    first = counter.typed("count", fuel=1000)
    again = counter.typed("count", fuel=2000)
    assert not is_ahead(counter)
    assert first.fuel_consumed == again.fuel_consumed > 0
    assert counter.typed("spin", fuel=500).limit_exceeded.kind == call_pb2.LIMIT_KIND_FUEL


def test_a_module_with_much_initial_data_waits_for_its_call(bind: Bind) -> None:
    much = "x" * (MAX_AHEAD_ARTIFACT_BYTES + 1)
    memory = f'(memory (export "memory") 80) (data (i32.const 0) "{much}")'
    bound = bind(f'(module {memory} (func (export "f")))')
    bound.typed("f")
    assert not is_ahead(bound)


@pytest.mark.parametrize("fuel", [False, True])
@pytest.mark.parametrize("wat", [LOGS_AT_START, STORES_AT_START, HOST_AT_START])
def test_a_start_function_runs_in_its_call_and_never_ahead(
    bind: Bind, wat: str, fuel: bool
) -> None:
    bound = bind(wat, fuel=fuel)
    limits = {"fuel": 10_000} if fuel else {}
    outcomes, logs = [], []
    for _ in range(3):
        outcomes.append(bound.typed("f", **limits).WhichOneof("outcome"))
        logs.append([entry.number.i32 for entry in bound.logs])
        assert not is_ahead(bound)
    wanted = "trapped" if wat is HOST_AT_START else "completed"
    assert outcomes == [wanted] * 3
    assert logs == [[7] if wat is LOGS_AT_START else []] * 3


def test_a_module_of_which_nothing_is_known_waits_for_its_call(
    bind: Bind, engines: Engines
) -> None:
    """As one that was compiled by an earlier version, or by a compiler that does not tell."""
    known = bind(SPINS_AT_START)
    wasm = bytes(wasmtime.wat2wasm(SPINS_AT_START))
    guest = Guest(engines.plain, compile_wasm(engines.plain, wasm), False, known.outbox)
    guest._ahead_limits = (MIB, 100)
    guest.prepare()
    assert guest._ahead is None


def test_a_module_with_wasi_is_made_for_its_call(bind: Bind) -> None:
    bound = bind(
        '(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'
        ' (memory (export "memory") 1) (func (export "f")))'
    )
    bound.typed("f")
    assert not is_ahead(bound)


def test_the_rehearsal_plays(engines: Engines, counter: Bound) -> None:
    script = rehearsal.compile_script(engines)
    assert script
    rehearsal.rehearse(engines, script, counter.outbox)
    assert counter.stdout == b""
    assert numbers(counter.typed("count")) == [2]


def test_without_a_script_nothing_is_rehearsed(engines: Engines, counter: Bound) -> None:
    rehearsal.rehearse(engines, b"", counter.outbox)
