"""`sandboxctl run` behaves like the guest that it runs."""

from __future__ import annotations

import base64
import os
import pty
import signal
import subprocess

import grpc
import pytest
from tests.cli.conftest import SCRIPT, Sandboxctl
from tests.client.fake_daemon import WASM, FakeDaemon, Refusal

from sandboxd.v1 import call_pb2, sandbox_pb2

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e[red]x[/red]\n:smile:"

Response = sandbox_pb2.ExecuteResponse
ENDS = {
    "exit 7": (Response(exited=call_pb2.Exited(code=7)), 7),
    "exit 300": (Response(exited=call_pb2.Exited(code=300)), 44),
    "exit -1": (Response(exited=call_pb2.Exited(code=-1)), 255),
    "trap": (Response(trapped=call_pb2.Trapped(code=call_pb2.TRAP_CODE_UNREACHABLE)), 134),
    "host error": (Response(host_error=call_pb2.HostError(message="bad pointer")), 134),
    "deadline": (Response(deadline_exceeded=sandbox_pb2.DeadlineExceeded()), 124),
    "cpu": (Response(cpu_time_exceeded=sandbox_pb2.CpuTimeExceeded()), 124),
    "cancelled": (Response(cancelled=sandbox_pb2.Cancelled()), 130),
    "limit": (Response(limit_exceeded=call_pb2.LimitExceeded(kind=call_pb2.LIMIT_KIND_FUEL)), 137),
    "link": (Response(link_error=call_pb2.LinkError(module="env", name="x")), 126),
    "crash": (Response(crashed=sandbox_pb2.Crashed(signal=11, signal_name="SIGSEGV")), 139),
    "sandbox": (Response(sandbox_violation=sandbox_pb2.SandboxViolation()), 159),
    "protocol": (Response(protocol_violation=sandbox_pb2.ProtocolViolation()), 137),
    "unknown": (Response(), 125),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_exit_code_tells_how_the_guest_ended(
    daemon: FakeDaemon, ctl: Sandboxctl, name: str
) -> None:
    response, code = ENDS[name]
    response.stdout = b"before"
    daemon.answer = lambda _: response
    done = ctl("run", "guest.wasm")
    assert (done.code, done.out) == (code, b"before")
    assert done.err.startswith("sandboxctl: ") == (not name.startswith("exit"))


def test_bytes_pass_through_unchanged(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    wild = bytes(range(256)) + b"\x1b[2J\r\n"
    daemon.answer = lambda r: Response(
        exited=call_pb2.Exited(), stdout=r.wasi.stdin, stderr=b"to stderr"
    )
    done = ctl("run", "guest.wasm", stdin=wild)
    assert (done.code, done.out, done.err) == (0, wild, "to stderr")


def test_what_follows_the_module_is_the_guests(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    options = ["--wall", "1.5s", "--cpu=200ms", "--memory", "64MiB", "--fuel", "9", "--fresh"]
    done = ctl(
        "run", *options, "--output-limit", "1K", "-e", "A=1=2", "--env", "B=", "./guest.wasm",
        "-o", "json", "--help", "-5", "--", "x",
    )  # fmt: skip
    assert done.code == 0
    (request,) = daemon.requests("Execute")
    assert list(request.wasi.args) == ["guest.wasm", "-o", "json", "--help", "-5", "--", "x"]
    assert {e.name: e.value for e in request.wasi.env} == {"A": "1=2", "B": ""}
    assert request.limits == sandbox_pb2.Limits(
        wall_time_ms=1500, cpu_time_ms=200, memory_bytes=64 << 20, output_bytes=1024, fuel=9
    )
    assert request.process == sandbox_pb2.PROCESS_POLICY_FRESH


def test_json_tells_everything(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    def answer(request: sandbox_pb2.ExecuteRequest) -> Response:
        response = Response(stdout=b"text\x7f", stderr=b"\xff")
        response.trapped.code = call_pb2.TRAP_CODE_ABORT
        response.trapped.message = EVIL
        response.trapped.frames.add(function_index=1, function_name="f", module_offset_bytes=9)
        response.logs.entries.add(message=b"\x00")
        response.logs.entries.add(number=call_pb2.Value(f64=float("nan")))
        response.receipt.cpu_time_ns = 5
        return response

    daemon.answer = answer
    done = ctl("run", "-o", "json", "guest.wasm")
    assert done.code == done.json["exit_code"] == 134
    assert not set(done.out) - {10, *range(32, 127)}
    assert done.json["outcome"] == {
        "name": "trapped",
        "code": "ABORT",
        "message": EVIL,
        "frames": [
            {
                "function_index": 1,
                "function_name": "f",
                "module_offset_bytes": 9,
                "function_offset_bytes": 0,
            }
        ],
    }
    assert done.json["stdout"] == {"base64": _base64(b"text\x7f"), "utf8": "text\x7f"}
    assert done.json["stderr"] == {"base64": _base64(b"\xff"), "utf8": None}
    assert done.json["logs"] == [
        {"message": {"base64": "AA==", "utf8": "\0"}},
        {"number": {"type": "f64", "value": "NaN"}},
    ]
    assert done.json["receipt"]["cpu_time_ns"] == 5


def test_the_receipt_and_logs_go_to_stderr_on_request(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    def answer(_: object) -> Response:
        response = Response(exited=call_pb2.Exited(), stdout=b"out")
        response.logs.entries.add(message=EVIL.encode())
        response.receipt.cpu_time_ns = 1_500_000
        response.receipt.self_reported.fuel_consumed = 3
        return response

    daemon.answer = answer
    assert ctl("run", "guest.wasm").err == ""
    done = ctl("run", "--receipt", "--logs", "guest.wasm")
    assert done.out == b"out"
    assert "receipt: cpu time: 1.500 ms" in done.err
    assert "receipt: fuel (self-reported): 3" in done.err
    assert r"log: \x1b]0;owned\x07" in done.err


def test_the_receipt_names_the_layers_that_held(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    def answer(_: object) -> Response:
        response = Response(exited=call_pb2.Exited())
        response.receipt.isolation_profile = "strict"
        response.receipt.isolation_layers.extend(["seccomp", EVIL])
        return response

    daemon.answer = answer
    for command in (["run", "--receipt", "guest.wasm"], ["call", "--receipt", "guest.wasm", "f"]):
        err = ctl(*command).err
        assert "receipt: isolation profile: strict\n" in err
        assert r"receipt: isolation layers: seccomp, \x1b]0;owned" in err
        assert "\x1b" not in err
    daemon.answer = lambda _: Response(exited=call_pb2.Exited())
    err = ctl("run", "--receipt", "guest.wasm").err
    assert "isolation profile: not told\nreceipt: isolation layers: none\n" in err


def test_a_guests_message_cannot_act_on_the_terminal(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    response = Response()
    response.trapped.message = EVIL
    response.trapped.frames.add(function_name=EVIL)
    daemon.answer = lambda _: response
    err = ctl("run", "guest.wasm").err
    assert "[red]x[/red]\\n:smile:" in err
    assert len(err.splitlines()) == 2
    assert all(line.isprintable() for line in err.splitlines())


@pytest.mark.parametrize(
    "args",
    [
        ["run"],
        ["run", "--nonsense", "guest.wasm"],
        ["run", "--wall", "soon", "guest.wasm"],
        ["run", "--wall", "0", "guest.wasm"],
        ["run", "--memory", "999999999999G", "guest.wasm"],
        ["run", "--env", "NOVALUE", "guest.wasm"],
        ["run", "none.wasm"],
        ["-a", "nonsense", "run", "guest.wasm"],
        ["run", "guest.wasm", b"\xff\xfe"],
        ["call", "guest.wasm"],
    ],
)
def test_calling_it_wrongly_is_125(ctl: Sandboxctl, args: list[str]) -> None:
    done = ctl(*args)
    assert done.code == 125
    assert 0 < len(done.err.splitlines()) <= 4


def test_a_fault_is_125_with_advice(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    daemon.refusals["Execute"].append(
        Refusal(full, "the queue is full", "QUEUE_FULL", retry_after_ms=1500)
    )
    done = ctl("run", "guest.wasm")
    assert done.code == 125
    assert done.err == (
        "sandboxctl: the queue is full [QUEUE_FULL]\n"
        "Try again in 1.5 s; the load: sandboxctl status\n"
    )


def test_an_empty_stdin_can_be_asked_for(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    ctl("run", "--no-stdin", "guest.wasm", stdin=b"not this")
    assert daemon.requests("Execute")[0].wasi.stdin == b""


def test_a_terminal_is_not_read_as_stdin(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    leader, terminal = pty.openpty()
    try:
        with ctl.start("run", "guest.wasm", stdin=terminal) as process:
            assert process.wait(20) == 0
    finally:
        os.close(leader)
        os.close(terminal)
    assert daemon.requests("Execute")[0].wasi.stdin == b""


def test_a_closed_stdin_is_an_empty_one(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
    done = subprocess.run(
        [*shell, SCRIPT, "run", "guest.wasm"],
        env=ctl.environment(), cwd=ctl.directory, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_cancels_the_call_and_exits_with_130(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.hang = True
    process = ctl.start("run", "guest.wasm", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert daemon.started.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")
    assert daemon.cancelled.wait(5)


def test_a_reader_that_went_away_ends_it_quietly(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.answer = lambda _: Response(exited=call_pb2.Exited(), stdout=bytes(1 << 20))
    reader, writer = os.pipe()
    process = ctl.start(
        "run", "guest.wasm", stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_the_timeout_reaches_the_daemon(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    ctl("--timeout", "9s", "run", "guest.wasm")
    ctl("--timeout", "9s", "run", "--timeout", "3s", "guest.wasm")
    first, second = (r.limits.wall_time_ms for r in daemon.requests("Execute"))
    assert 8000 < first <= 9000
    assert 2000 < second <= 3000


def test_a_module_can_come_from_a_pipe(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("run", "--no-stdin", "/dev/stdin", stdin=WASM)
    assert done.code == 0
    assert daemon.requests("Execute")[0].wasm == WASM


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
