import pytest
from tests.runner.conftest import Bind, Child

from sandboxd.v1 import call_pb2

OUTPUT = call_pb2.LIMIT_KIND_OUTPUT

# A command that does what its body says, with a few functions to say it with.
COMMAND = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get"
    (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get"
    (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "env" "log" (func $log (param i32)))
  (memory (export "memory") 4)
  (data (i32.const 16) "hello")
  (func $write (param $fd i32) (param $at i32) (param $length i32) (result i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func $read (param $at i32) (param $length i32) (result i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.load (i32.const 8)))
  (func (export "f") (result i32) (call $write (i32.const 1) (i32.const 16) (i32.const 5)))
  (func $start (export "_start") BODY))
"""
CAT = """
  (local $n i32)
  (loop $more
    (local.set $n (call $read (i32.const 1024) (i32.const 65536)))
    (if (local.get $n) (then
      (drop (call $write (i32.const 1) (i32.const 1024) (local.get $n)))
      (br $more))))
"""
FLOOD = "(loop (drop (call $write (i32.const 1) (i32.const 1024) (i32.const 4000))) (br 0))"


def command(body: str) -> str:
    return COMMAND.replace("BODY", body)


def wasi(**fields: object) -> call_pb2.WasiCommand:
    return call_pb2.WasiCommand(**fields)  # type: ignore[arg-type]


def test_a_command_that_returns_has_exited_with_zero(child: Child) -> None:
    child.bind(command("(drop (call $write (i32.const 1) (i32.const 16) (i32.const 5)))"))
    answer = child.run(wasi=wasi())
    assert answer.result.WhichOneof("outcome") == "exited"
    assert answer.result.WhichOneof("outcome") == "exited", answer.result
    assert answer.result.exited.code == 0
    assert (answer.stdout, answer.stderr) == (b"hello", b"")
    assert answer.result.linear_memory_bytes == 4 * 65536


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 255, 256, 2**31 - 1, -(2**31), -1])
def test_every_exit_code_is_kept(bind: Bind, code: int) -> None:
    # proc_exit is the host's own and does no I/O: this may run here.
    module = bind(f"""
      (module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func (export "_start") (call $exit (i32.const {code})) (loop (br 0)))
        (func (export "f") (call $exit (i32.const {code}))))
    """)
    result = module.run(wasi=wasi())
    assert result.WhichOneof("outcome") == "exited"
    assert result.exited.code == code
    assert module.typed("f").exited.code == code


def test_standard_error_is_apart_from_standard_output(child: Child) -> None:
    child.bind(
        command("""
          (drop (call $write (i32.const 2) (i32.const 16) (i32.const 4)))
          (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1)))
          (call $exit (i32.const 3))
        """)
    )
    answer = child.run(wasi=wasi())
    assert answer.result.exited.code == 3
    assert (answer.stdout, answer.stderr) == (b"h", b"hell")


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 100_000, 1_000_000])
def test_standard_input_is_followed_by_end_of_file(child: Child, size: int) -> None:
    child.bind(command(CAT))
    data = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
    answer = child.run(wasi=wasi(stdin=data))
    assert answer.result.WhichOneof("outcome") == "exited", answer.result
    assert answer.result.exited.code == 0
    assert answer.stdout == data


def test_input_that_was_not_read_does_not_reach_the_next_call(child: Child) -> None:
    child.bind(
        command(
            "(drop (call $write (i32.const 1) (i32.const 1024)"
            " (call $read (i32.const 1024) (i32.const 2))))"
        )
    )
    assert child.run(wasi=wasi(stdin=b"secret of the first")).stdout == b"se"
    assert child.run(wasi=wasi(stdin=b"")).stdout == b""
    assert child.run(wasi=wasi(stdin=b"ab")).stdout == b"ab"


def test_arguments_and_environment_are_exactly_those_of_the_call(child: Child) -> None:
    child.bind(
        command("""
          (drop (call $args_sizes (i32.const 100) (i32.const 104)))
          (drop (call $args (i32.const 200) (i32.const 2000)))
          (drop (call $write (i32.const 1) (i32.const 2000) (i32.load (i32.const 104))))
          (drop (call $env_sizes (i32.const 100) (i32.const 104)))
          (drop (call $env (i32.const 200) (i32.const 4000)))
          (drop (call $write (i32.const 2) (i32.const 4000) (i32.load (i32.const 104))))
        """)
    )
    variables = [
        call_pb2.EnvironmentVariable(name="NAME", value="a=b"),
        call_pb2.EnvironmentVariable(name="Ü", value=""),
    ]
    answer = child.run(wasi=wasi(args=["prog", "", "ünï\n"], env=variables))
    assert answer.stdout == "prog\0\0ünï\n\0".encode()
    assert answer.stderr == "NAME=a=b\0Ü=\0".encode()
    answer = child.run(wasi=wasi())
    assert (answer.stdout, answer.stderr) == (b"", b"")


def test_clock_and_random_numbers_work_and_there_is_no_directory(child: Child) -> None:
    child.bind(
        command("""
          (call $log (call $clock (i32.const 1) (i64.const 1) (i32.const 64)))
          (call $log (call $random (i32.const 128) (i32.const 64)))
          (call $log (i64.eqz (i64.load (i32.const 64))))
          (call $log (i32.eqz (i64.eqz (i64.load (i32.const 128)))))
          (call $log (i32.eqz (call $prestat (i32.const 3) (i32.const 64))))
          (call $log (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 16)
            (i32.const 5) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0)
            (i32.const 64))))
        """)
    )
    answer = child.run(wasi=wasi())
    assert answer.result.WhichOneof("outcome") == "exited", answer.result
    assert answer.result.exited.code == 0
    assert [entry.number.i32 for entry in answer.logs] == [0, 0, 0, 1, 0, 0]


def test_output_before_a_trap_is_complete(child: Child) -> None:
    child.bind(
        command("""
          (local $i i32)
          (loop $more
            (drop (call $write (i32.const 1) (i32.const 16) (i32.const 5)))
            (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))
              (i32.const 50))))
          unreachable
        """)
    )
    for _ in range(20):
        answer = child.run(wasi=wasi())
        assert answer.result.trapped.code == call_pb2.TRAP_CODE_UNREACHABLE
        assert answer.stdout == b"hello" * 50


def test_a_typed_call_may_print(child: Child) -> None:
    child.bind(command(""))
    answer = child.run(typed=call_pb2.TypedCall(export="f"))
    assert answer.result.completed.results[0].i32 == 0
    assert answer.stdout == b"hello"


@pytest.mark.parametrize("limit", [0, 1, 3999, 4000, 4001, 100_000])
def test_an_output_flood_is_cut_exactly_and_ends_the_guest(child: Child, limit: int) -> None:
    child.bind(command(FLOOD))
    answer = child.run(wasi=wasi(), output_bytes=limit)
    assert answer.result.limit_exceeded.kind == OUTPUT
    assert [frame.function_name for frame in answer.result.limit_exceeded.frames][-1] == "start"
    assert len(answer.stdout) == limit


def test_both_streams_and_the_log_share_one_limit(child: Child) -> None:
    child.bind(
        command("""
          (drop (call $write (i32.const 1) (i32.const 16) (i32.const 5)))
          (call $log (i32.const 1))
          (drop (call $write (i32.const 2) (i32.const 16) (i32.const 5)))
        """)
    )
    answer = child.run(wasi=wasi(), output_bytes=26)
    assert answer.result.WhichOneof("outcome") == "exited", answer.result
    assert answer.result.exited.code == 0
    assert (answer.stdout, answer.stderr, len(answer.logs)) == (b"hello", b"hello", 1)
    answer = child.run(wasi=wasi(), output_bytes=24)
    assert answer.result.limit_exceeded.kind == OUTPUT
    assert (answer.stdout, answer.stderr, len(answer.logs)) == (b"hello", b"hel", 1)


@pytest.mark.parametrize("ending", ["", "unreachable", "(call $exit (i32.const 0))"])
def test_an_exceeded_output_limit_is_the_outcome_however_the_guest_ends(
    child: Child, ending: str
) -> None:
    child.bind(command(f"(drop (call $write (i32.const 1) (i32.const 16) (i32.const 5))) {ending}"))
    answer = child.run(wasi=wasi(), output_bytes=4)
    assert answer.result.limit_exceeded.kind == OUTPUT
    assert answer.stdout == b"hell"


def test_the_call_after_an_output_flood_is_not_disturbed(child: Child) -> None:
    child.bind(command(FLOOD))
    assert child.run(wasi=wasi(), output_bytes=10).result.HasField("limit_exceeded")
    answer = child.run(typed=call_pb2.TypedCall(export="f"))
    assert answer.result.completed.results[0].i32 == 0
    assert answer.stdout == b"hello"


def test_a_bad_pointer_to_the_engines_own_wasi_is_a_host_error(child: Child) -> None:
    child.bind(
        command("(drop (call $fd_write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 8)))")
    )
    answer = child.run(wasi=wasi())
    assert "out of bounds" in answer.result.host_error.message


@pytest.mark.parametrize(
    "fields",
    [
        "",
        '(func (export "_start") (param i32))',
        '(func (export "_start") (result i32) (i32.const 0))',
        '(memory (export "_start") 1)',
    ],
)
def test_a_command_needs_a_start_export_of_the_right_type(bind: Bind, fields: str) -> None:
    assert bind(f"(module {fields})").run(wasi=wasi()).rejected.field == "wasi"


def test_a_command_may_do_without_wasi_imports(bind: Bind) -> None:
    module = bind('(module (func (export "_start")) (func (export "_initialize") unreachable))')
    assert module.run(wasi=wasi()).WhichOneof("outcome") == "exited"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (wasi(args=["ok", "a\0b"]), "wasi.args[1]"),
        (wasi(env=[call_pb2.EnvironmentVariable(name="", value="")]), "wasi.env[0].name"),
        (wasi(env=[call_pb2.EnvironmentVariable(name="A=B", value="")]), "wasi.env[0].name"),
        (wasi(env=[call_pb2.EnvironmentVariable(name="A\0", value="")]), "wasi.env[0].name"),
        (wasi(env=[call_pb2.EnvironmentVariable(name="A", value="\0")]), "wasi.env[0].value"),
    ],
)
def test_what_c_strings_cannot_carry_is_rejected(
    bind: Bind, request_: call_pb2.WasiCommand, field: str
) -> None:
    module = bind('(module (func (export "_start")))')
    assert module.run(wasi=request_).rejected.field == field
