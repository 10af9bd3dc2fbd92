"""A process that is out of memory tells so, instead of failing."""

from collections.abc import Iterator

import pytest
from tests.runner.conftest import MIB, Child

from sandboxd.v1 import call_pb2

MODULE = """
(module
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32)
    (drop (memory.grow (i32.const 1500))) (i32.const 1024))
  (func (export "f") (param i32 i32) (result i32 i32) (i32.const 0) (i32.const 67108864))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
"""
LIMITS = {"memory_bytes": 1 << 30, "output_bytes": 1 << 30}


@pytest.fixture
def small_child() -> Iterator[Child]:
    running = Child(data_bytes=200 * MIB)
    yield running
    running.close()


def test_a_long_result_needs_no_memory_of_the_process(small_child: Child) -> None:
    """It is copied from the guest's memory into the outbox, and nowhere else."""
    small_child.bind(MODULE)
    call = call_pb2.BytesCall(
        export="f", result_convention=call_pb2.RESULT_CONVENTION_POINTER_LENGTH
    )
    for _ in range(2):
        assert small_child.run(bytes=call, **LIMITS).result.HasField("completed")


def test_growth_that_the_process_has_no_memory_for_returns_minus_one(small_child: Child) -> None:
    small_child.bind(MODULE)
    call = call_pb2.TypedCall(export="grow", args=[call_pb2.Value(i32=5000)])
    assert small_child.run(typed=call, **LIMITS).result.completed.results[0].i32 == -1


@pytest.mark.parametrize(
    "fields",
    ["(memory 5000)", "(table 40000000 funcref)", '(memory 5000) (data (i32.const 0) "x")'],
)
def test_an_instance_that_the_process_has_no_memory_for_is_a_memory_limit(
    small_child: Child, fields: str
) -> None:
    small_child.bind(f'(module {fields} (func (export "f")))')
    call = call_pb2.TypedCall(export="f")
    result = small_child.run(typed=call, table_elements=1 << 30, **LIMITS).result
    assert result.limit_exceeded.kind == call_pb2.LIMIT_KIND_MEMORY
