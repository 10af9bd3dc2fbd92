"""`sandboxctl call`: numbers, bytes and what the guest says meanwhile."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
from tests.cli.conftest import Sandboxctl
from tests.client.fake_daemon import FakeDaemon

from sandboxd.v1 import call_pb2, sandbox_pb2

Response = sandbox_pb2.ExecuteResponse


def test_a_file_is_pushed_for_its_signature(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("call", "guest.wasm", "add", "2", "-3")
    assert (done.code, done.out, done.err) == (0, b"-1\n", "")
    assert len(daemon.requests("Push")) == 1
    assert daemon.requests("Execute")[0].digest in daemon.modules


def test_typed_arguments_need_no_push(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    assert ctl("call", "guest.wasm", "add", "i32:2", "i32:0x10").out == b"18\n"
    assert daemon.requests("Push") == []


def test_negative_numbers_stand_among_options(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    digest = daemon.store()
    done = ctl("call", digest, "mix", "-7", "--wall", "1s", "-.5", "-inf", "-o", "json")
    assert done.code == 0
    (request,) = daemon.requests("Execute")
    assert [(a.WhichOneof("kind"), a.i64 or a.f32 or a.f64) for a in request.typed.args] == [
        ("i64", -7),
        ("f32", -0.5),
        ("f64", float("-inf")),
    ]
    assert request.limits.wall_time_ms == 1000
    assert done.json["outcome"]["results"] == [{"type": "i32", "value": 0}]


@pytest.mark.parametrize("option", ["--wall", "--memory", "--fuel", "-i", "--result", "--timeout"])
def test_a_negative_value_of_an_option_is_refused_as_it_was_written(
    daemon: FakeDaemon, ctl: Sandboxctl, option: str
) -> None:
    done = ctl("call", "guest.wasm", "f", option, "-1")
    assert done.code == 125
    assert "-1" in done.err or option == "--result"
    for word in ("null byte", "bug", "\0", "x00"):
        assert word not in done.err
    assert daemon.requests("Execute") == []


def test_values_of_options_may_begin_like_negative_numbers(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    (ctl.directory / "-1.bin").write_bytes(b"abc")
    layers = ["--require-layer", "-1", "--require-layer", "seccomp"]
    done = ctl("call", "guest.wasm", "-2", "-i", "-1.bin", *layers)
    assert (done.code, done.out) == (0, b"ABC")
    (request,) = daemon.requests("Execute")
    assert request.bytes.export == "-2"
    assert list(request.require_layers) == ["-1", "seccomp"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["add", "1"], "takes 2 arguments (i32, i32) -> i32, not 1"),
        (["add", "1", "x"], "argument 2: 'x' is not an i32"),
        (["add", "1", "4294967296"], "argument 2: '4294967296' is not an i32"),
        (["add", "1", "f64:2"], "argument 2 is i32, not f64"),
        (["none", "1"], "exports no function named 'none'"),
        (["add", "--input", "x", "1"], "either numbers or --input"),
        (["add", "--result", "nul"], "--result goes with --input"),
        (["add", "--input", "guest.wasm", "--result", "fixed"], "pointer-length, nul or fixed"),
        (["add", "--input", "missing.bin"], "missing.bin: No such file or directory"),
    ],
)
def test_wrong_arguments_are_125_and_run_nothing(
    daemon: FakeDaemon, ctl: Sandboxctl, args: list[str], message: str
) -> None:
    done = ctl("call", "guest.wasm", *args)
    assert done.code == 125
    assert message in done.err
    assert daemon.requests("Execute") == []


def test_bytes_go_in_and_come_out(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("call", "guest.wasm", "upper", "-i", "-", stdin=b"abc\xff\n")
    assert (done.code, done.out) == (0, b"ABC\xff\n")
    ctl("call", "guest.wasm", "f", "--input", "guest.wasm", "--result", "fixed:32")
    fixed = daemon.requests("Execute")[1].bytes
    assert fixed.result_convention == call_pb2.RESULT_CONVENTION_FIXED_LENGTH
    assert fixed.result_length_bytes == 32
    assert fixed.input == (ctl.directory / "guest.wasm").read_bytes()


def test_a_result_on_a_terminal_is_escaped(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.answer = lambda _: Response(completed=call_pb2.Completed(output=b"\x1b[2Jhi"))
    leader, terminal = pty.openpty()
    process = ctl.start(
        "call", "guest.wasm", "f", "-i", "-", stdin=subprocess.DEVNULL, stdout=terminal
    )
    os.close(terminal)
    assert process.wait(20) == 0
    assert os.read(leader, 100) == b"\\x1b[2Jhi\r\n"
    os.close(leader)


def test_what_the_guest_prints_is_kept_apart_and_escaped(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    def answer(_: object) -> Response:
        response = Response(stdout=b"one\n\x1btwo", stderr=b"\xff")
        response.completed.results.add(f64=0.5)
        response.completed.results.add(i64=-(1 << 63))
        response.logs.entries.add(number=call_pb2.Value(i32=7))
        return response

    daemon.answer = answer
    done = ctl("call", "guest.wasm", "f")
    assert done.out == b"0.5\n-9223372036854775808\n"
    assert done.err == "stdout: one\nstdout: \\x1btwo\nstderr: \\xff\nlog: 7 (i32)\n"
    assert ctl("call", "-o", "json", "guest.wasm", "f").json["outcome"]["results"][1] == {
        "type": "i64",
        "value": -(1 << 63),
    }


def test_a_trap_has_the_code_of_run(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.answer = lambda _: Response(trapped=call_pb2.Trapped(code=call_pb2.TRAP_CODE_OTHER))
    done = ctl("call", "guest.wasm", "f")
    assert (done.code, done.out) == (134, b"")
    assert done.err == "sandboxctl: guest trapped: OTHER\n"
