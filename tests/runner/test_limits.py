import pytest
from tests.runner.conftest import MIB, Bind, numbers

from sandboxd.v1 import call_pb2

MEMORY = call_pb2.LIMIT_KIND_MEMORY
TABLES = call_pb2.LIMIT_KIND_TABLE_ELEMENTS
COUNT = call_pb2.LIMIT_KIND_INSTANCE_COUNT
FUEL = call_pb2.LIMIT_KIND_FUEL


def test_growing_past_the_limit_returns_minus_one_and_the_guest_decides(bind: Bind) -> None:
    module = bind("""
      (module (memory (export "memory") 1)
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
        (func (export "bomb") (result i32)
          (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
          (memory.size)))
    """)
    assert numbers(module.typed("grow", ("i32", 15), memory_bytes=MIB)) == [1]
    assert numbers(module.typed("grow", ("i32", 16), memory_bytes=MIB)) == [-1]
    result = module.typed("bomb", memory_bytes=MIB)
    assert numbers(result) == [16]
    assert result.linear_memory_bytes == MIB


@pytest.mark.parametrize("pages", [17, 65536])
def test_a_declared_memory_above_the_limit_is_refused_at_instantiation(
    bind: Bind, pages: int
) -> None:
    module = bind(f'(module (memory {pages}) (func (export "f")))')
    exceeded = module.typed("f", memory_bytes=MIB).limit_exceeded
    assert exceeded.kind == MEMORY
    assert str(pages) in exceeded.message


def test_four_gibibytes_may_be_declared_under_a_limit_that_allows_them(bind: Bind) -> None:
    module = bind(
        '(module (memory 65536) (func (export "f") (i32.store (i32.const -4) memory.size)))'
    )
    for limit in (2**32, 2**63, 2**64 - 1):
        assert module.typed("f", memory_bytes=limit).WhichOneof("outcome") == "completed"


def test_a_limit_of_zero_allows_no_memory(bind: Bind) -> None:
    assert (
        bind('(module (memory 1) (func (export "f")))')
        .typed("f", memory_bytes=0)
        .limit_exceeded.kind
        == MEMORY
    )
    without = bind('(module (func (export "f")))')
    assert without.typed("f", memory_bytes=0).WhichOneof("outcome") == "completed"


def test_a_declared_table_above_the_limit_is_refused_at_instantiation(bind: Bind) -> None:
    module = bind('(module (table 1001 funcref) (func (export "f")))')
    assert module.typed("f", table_elements=1000).limit_exceeded.kind == TABLES
    assert module.typed("f", table_elements=1001).WhichOneof("outcome") == "completed"


def test_a_table_grows_up_to_the_limit(bind: Bind) -> None:
    module = bind("""
      (module (table 1 externref)
        (func (export "grow") (param i32) (result i32)
          (table.grow 0 (ref.null extern) (local.get 0))))
    """)
    assert numbers(module.typed("grow", ("i32", 99), table_elements=100)) == [1]
    assert numbers(module.typed("grow", ("i32", 100), table_elements=100)) == [-1]


def test_several_tables_together_stay_under_the_limit(bind: Bind) -> None:
    module = bind("""
      (module (table $a 1 funcref) (table $b 1 funcref) (table $c 1 externref)
        (func (export "grow") (param i32) (result i32 i32 i32)
          (table.grow $a (ref.null func) (local.get 0))
          (table.grow $b (ref.null func) (local.get 0))
          (table.grow $c (ref.null extern) (local.get 0))))
    """)
    for _ in range(2):
        assert numbers(module.typed("grow", ("i32", 32), table_elements=100)) == [1, 1, 1]
        assert numbers(module.typed("grow", ("i32", 33), table_elements=100)) == [-1, -1, -1]


def test_more_tables_than_one_guest_may_have_are_refused(bind: Bind) -> None:
    allowed = bind("(module " + "(table 1 funcref)" * 16 + '(func (export "f")))')
    assert allowed.typed("f").WhichOneof("outcome") == "completed"
    module = bind("(module " + "(table 1 funcref)" * 17 + '(func (export "f")))')
    for _ in range(2):
        exceeded = module.typed("f").limit_exceeded
        assert exceeded.kind == COUNT
        assert "17" in exceeded.message


def test_fuel_ends_a_loop_with_a_backtrace(bind: Bind) -> None:
    module = bind('(module (func $spin (export "f") (loop (br 0))))', fuel=True)
    result = module.typed("f", fuel=10_000)
    assert result.limit_exceeded.kind == FUEL
    assert result.limit_exceeded.frames[0].function_name == "spin"
    assert result.fuel_consumed == 10_000


def test_fuel_used_is_reported_and_the_same_each_time(bind: Bind) -> None:
    module = bind(
        """
        (module (func (export "f") (param i32)
          (loop (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))
        """,
        fuel=True,
    )
    used = [module.typed("f", ("i32", n), fuel=2**64 - 1).fuel_consumed for n in (10, 10, 1000)]
    assert 0 < used[0] == used[1] < used[2] < 10_000


def test_fuel_is_counted_in_the_start_function_too(bind: Bind) -> None:
    module = bind('(module (func $s (loop (br 0))) (start $s) (func (export "f")))', fuel=True)
    assert module.typed("f", fuel=1000).limit_exceeded.kind == FUEL


def test_no_fuel_at_all_is_a_limit_reached_at_once(bind: Bind) -> None:
    module = bind('(module (func (export "f")))', fuel=True)
    assert module.typed("f", fuel=0).limit_exceeded.kind == FUEL


@pytest.mark.parametrize("fuel", [True, False])
def test_a_job_whose_fuel_does_not_fit_the_engine_is_a_bug_of_the_daemon(
    bind: Bind, fuel: bool
) -> None:
    module = bind('(module (func (export "f")))', fuel=fuel)
    with pytest.raises(ValueError, match="fuel"):
        module.typed("f", **({} if fuel else {"fuel": 1}))
