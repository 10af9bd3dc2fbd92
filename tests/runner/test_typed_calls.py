import math

import pytest
from tests.runner.conftest import Bind, Bound, numbers

from sandboxd.v1 import call_pb2, sandbox_pb2
from sandboxd.wire.v1 import runner_pb2

MODULE = """
(module
  (memory (export "memory") 1)
  (global (export "g") i32 (i32.const 1))
  (func (export "nothing"))
  (func (export "add32") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "add64") (param i64 i64) (result i64) (i64.add (local.get 0) (local.get 1)))
  (func (export "echo") (param i32 i64 f32 f64) (result f64 f32 i64 i32)
    local.get 3 local.get 2 local.get 1 local.get 0)
  (func (export "nans") (result f32 f64) (f32.const nan) (f64.const -nan))
  (func (export "vector") (param v128) (result i32) (i32.const 0))
  (func (export "ref") (result externref) (ref.null extern))
  (func (export "touch") (result i32)
    (i32.load (i32.const 64))
    (i32.store (i32.const 64) (i32.const 0xC0FFEE))))
"""


@pytest.fixture(scope="module")
def module(bind: Bind) -> Bound:
    return bind(MODULE)


def test_results_come_back_in_order_and_exactly(module: Bound) -> None:
    result = module.typed(
        "echo", ("i32", -(2**31)), ("i64", -(2**63)), ("f32", 0.5), ("f64", math.pi)
    )
    assert numbers(result) == [math.pi, 0.5, -(2**63), -(2**31)]
    assert [item.WhichOneof("kind") for item in result.completed.results] == [
        "f64",
        "f32",
        "i64",
        "i32",
    ]


def test_integers_wrap_as_twos_complement(module: Bound) -> None:
    assert numbers(module.typed("add32", ("i32", 2**31 - 1), ("i32", 1))) == [-(2**31)]
    assert numbers(module.typed("add64", ("i64", 2**63 - 1), ("i64", 1))) == [-(2**63)]


def test_nan_and_infinity_are_numbers_like_others(module: Bound) -> None:
    assert all(math.isnan(number) for number in numbers(module.typed("nans")))
    result = module.typed("echo", ("i32", 0), ("i64", 0), ("f32", math.inf), ("f64", -math.inf))
    assert numbers(result)[:2] == [-math.inf, math.inf]


def test_a_function_without_results_completes_with_none(module: Bound) -> None:
    assert numbers(module.typed("nothing")) == []


def test_usage_is_reported(module: Bound) -> None:
    result = module.typed("nothing")
    assert result.linear_memory_bytes == 65536
    assert not result.HasField("fuel_consumed")
    assert 0 < result.run_time_ns < 10**9


def test_memory_written_by_one_call_is_not_seen_by_the_next(module: Bound) -> None:
    for _ in range(20):
        assert numbers(module.typed("touch")) == [0]


def test_a_call_without_prepare_in_between_gets_a_fresh_instance_too(module: Bound) -> None:
    job = runner_pb2.Execute(
        request=sandbox_pb2.ExecuteRequest(typed=call_pb2.TypedCall(export="touch")),
        memory_bytes=1 << 20,
    )
    assert [numbers(module.guest.execute(job)) for _ in range(3)] == [[0], [0], [0]]


@pytest.mark.parametrize("export", ["absent", "", "memory", "g", "naïve\0", "x" * 10_000])
def test_what_is_no_exported_function_is_rejected(module: Bound, export: str) -> None:
    assert module.typed(export).rejected.field == "typed.export"


@pytest.mark.parametrize("export", ["vector", "ref"])
def test_functions_of_vectors_and_references_cannot_be_called(module: Bound, export: str) -> None:
    assert module.typed(export).rejected.field == "typed.export"


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ([], "typed.args"),
        ([("i32", 1)], "typed.args"),
        ([("i32", 1)] * 3, "typed.args"),
        ([("i32", 1), ("i64", 1)], "typed.args[1]"),
        ([("f64", 1), ("i32", 1)], "typed.args[0]"),
    ],
)
def test_arguments_must_match_the_signature(
    module: Bound, args: list[tuple[str, float]], field: str
) -> None:
    assert module.typed("add32", *args).rejected.field == field


def test_an_argument_without_a_kind_is_rejected(module: Bound) -> None:
    call = call_pb2.TypedCall(export="add32", args=[call_pb2.Value(), call_pb2.Value()])
    assert module.run(typed=call).rejected.field == "typed.args[0]"


def test_a_job_without_a_call_is_rejected(module: Bound) -> None:
    assert module.run().rejected.field == "call"


def test_a_rejected_call_runs_no_guest_code(bind: Bind) -> None:
    looping = bind('(module (func $s (loop (br 0))) (start $s) (func (export "f") (param i32)))')
    assert looping.typed("absent").rejected.field == "typed.export"
    assert looping.typed("f").rejected.field == "typed.args"


def test_a_rejected_call_reports_nothing_of_the_call_before(module: Bound) -> None:
    jobs = [
        runner_pb2.Execute(
            request=sandbox_pb2.ExecuteRequest(typed=call_pb2.TypedCall(export=name)),
            memory_bytes=1 << 20,
        )
        for name in ("touch", "absent")
    ]
    sizes = [module.guest.execute(job).linear_memory_bytes for job in jobs]
    assert sizes == [65536, 0]


def test_a_reactor_is_initialized_once_before_the_call(bind: Bind) -> None:
    reactor = bind("""
      (module
        (global $n (mut i32) (i32.const 0))
        (func (export "_initialize") (global.set $n (i32.add (global.get $n) (i32.const 1))))
        (func (export "count") (result i32) (global.get $n)))
    """)
    assert [numbers(reactor.typed("count")) for _ in range(2)] == [[1], [1]]
    assert numbers(reactor.typed("_initialize")) == []


def test_an_initializer_of_another_type_is_a_host_error(bind: Bind) -> None:
    module = bind('(module (func (export "_initialize") (param i32)) (func (export "f")))')
    assert "_initialize" in module.typed("f").host_error.message
