import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import wasmtime
from tests.runner.conftest import Bind

from sandboxd.v1 import call_pb2

INTERRUPT = call_pb2.TRAP_CODE_INTERRUPT


@contextmanager
def interrupting(engine: wasmtime.Engine) -> Iterator[None]:
    """Bump the epoch every millisecond, as the runner's interrupting thread does.

    Not at once: a bump before the guest's first instruction ends the call before it has begun.
    """
    over = threading.Event()

    def bump() -> None:
        over.wait(0.1)
        while not over.wait(0.001):
            engine.increment_epoch()

    thread = threading.Thread(target=bump)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("module", "spinning"),
    [
        ('(func $f (export "f") (loop (br 0)))', "f"),
        ('(func $s (loop (br 0))) (start $s) (func (export "f"))', "s"),
        ('(func $i (export "_initialize") (loop (br 0))) (func (export "f"))', "i"),
    ],
)
def test_a_loop_is_interrupted_wherever_it_is(bind: Bind, module: str, spinning: str) -> None:
    bound = bind(f"(module {module})")
    with interrupting(bound.engine):
        trapped = bound.typed("f").trapped
    assert trapped.code == INTERRUPT
    assert trapped.frames[0].function_name == spinning


@pytest.mark.parametrize("spinning", ["alloc", "f", "dealloc"])
def test_every_step_of_a_bytes_call_can_be_interrupted_and_none_follows(
    bind: Bind, spinning: str
) -> None:
    def body(name: str, ordinary: str) -> str:
        return f"(loop (br 0)) {ordinary}" if name == spinning else ordinary

    bound = bind(f"""
      (module
        (import "env" "log" (func $log (param i32)))
        (memory (export "memory") 1)
        (func $alloc (export "alloc") (param i32) (result i32)
          (call $log (i32.const 1)) {body("alloc", "(i32.const 8)")})
        (func $f (export "f") (param i32 i32) (result i64)
          (call $log (i32.const 2)) {body("f", "(i64.const 0x0000000800000001)")})
        (func $dealloc (export "dealloc") (param i32 i32)
          (call $log (i32.const 3)) {body("dealloc", "")}))
    """)
    with interrupting(bound.engine):
        time.sleep(0.002)
        result = bound.call_bytes("f", b"x")
    assert result.trapped.code == INTERRUPT
    # A bump may come as early as the first function's entry; what matters is that none followed.
    steps = [entry.number.i32 for entry in bound.logs]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) <= ["alloc", "f", "dealloc"].index(spinning) + 1


def test_the_call_after_an_interrupted_one_is_not_disturbed(bind: Bind) -> None:
    bound = bind("""
      (module (func (export "spin") (loop (br 0))) (func (export "f") (result i32) (i32.const 7)))
    """)
    with interrupting(bound.engine):
        assert bound.typed("spin").trapped.code == INTERRUPT
    assert bound.typed("f").completed.results[0].i32 == 7


def test_a_guest_that_keeps_calling_the_host_is_interrupted(bind: Bind) -> None:
    bound = bind("""
      (module
        (import "env" "log" (func $log (param i32 i32)))
        (memory (export "memory") 1)
        (func (export "f") (loop (call $log (i32.const 0) (i32.const 0)) (br 0))))
    """)
    with interrupting(bound.engine):
        outcome = bound.typed("f")
    # 1,024 log entries may be reached before the first bump.
    assert (
        outcome.trapped.code == INTERRUPT
        or outcome.limit_exceeded.kind == call_pb2.LIMIT_KIND_OUTPUT
    )
