"""`sandboxctl batch`: a line in, a line out, and one that fails harms no other."""

from __future__ import annotations

import json
import signal
import subprocess

import grpc
import pytest
from tests.cli.conftest import Sandboxctl
from tests.client.fake_daemon import FakeDaemon, Refusal

from sandboxd.v1 import call_pb2, sandbox_pb2

Response = sandbox_pb2.ExecuteResponse


def odd_ones_trap(request: sandbox_pb2.ExecuteRequest) -> Response:
    total = sum(arg.i32 for arg in request.typed.args)
    if total % 2:
        trapped = call_pb2.Trapped(code=call_pb2.TRAP_CODE_UNREACHABLE, message="odd\x1b[1m")
        return Response(trapped=trapped)
    return Response(completed=call_pb2.Completed(results=[call_pb2.Value(i32=total)]))


def exits(request: sandbox_pb2.ExecuteRequest) -> Response:
    return Response(exited=call_pb2.Exited(code=len(request.bytes.input)))


def test_a_line_of_numbers_is_a_call_and_a_line_of_output(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    done = ctl("batch", "guest.wasm", "add", stdin=b"1 2\n3   -4\ni32:0x10 5")
    assert (done.code, done.out, done.err) == (0, b"3\n-1\n21\n", "")
    assert len(daemon.requests("Push")) == 1
    (request,) = daemon.requests("ExecuteBatch")
    assert request.max_parallel == 0
    assert {item.digest for item in request.requests} == set(daemon.modules)


def test_a_line_of_bytes_is_passed_as_it_is(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    (ctl.directory / "lines").write_bytes(b"one\n\ntw\to\r\nthree\xff\n")
    digest = daemon.store()
    done = ctl("batch", digest, "upper", "--bytes", "-i", "lines", "--result", "fixed:4")
    assert (done.code, done.out.splitlines()) == (0, [b"ONE", b"", rb"TW\tO\r", rb"THREE\xff"])
    (request,) = daemon.requests("ExecuteBatch")
    assert [item.bytes.input for item in request.requests] == [
        b"one",
        b"",
        b"tw\to\r",
        b"three\xff",
    ]
    assert {item.bytes.result_length_bytes for item in request.requests} == {4}
    assert daemon.requests("Get") == []


def test_options_are_those_of_a_call(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    options = ["--wall", "1s", "--fresh", "--require-layer", "seccomp", "--max-parallel", "7"]
    assert ctl("batch", daemon.store(), "add", *options, stdin=b"1 1\n").code == 0
    (batch,) = daemon.requests("ExecuteBatch")
    (request,) = batch.requests
    assert batch.max_parallel == 7
    assert request.limits.wall_time_ms == 1000
    assert request.process == sandbox_pb2.PROCESS_POLICY_FRESH
    assert list(request.require_layers) == ["seccomp"]


def test_calls_that_fail_leave_an_empty_line_and_are_told_by_their_line(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    daemon.answer = odd_ones_trap
    done = ctl("batch", daemon.store(), "add", stdin=b"1 1\n1 2\n2 2\n")
    assert (done.code, done.out) == (3, b"2\n\n4\n")
    assert "sandboxctl: line 2: " in done.err
    assert r"odd\x1b" in done.err
    assert "sandboxctl: 1 of 3 calls failed" in done.err


def test_a_code_other_than_0_is_a_failure(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.answer = exits
    done = ctl("batch", daemon.store(), "f", "--bytes", stdin=b"\nab\n")
    assert (done.code, done.out) == (3, b"\n\n")
    assert "line 2: " in done.err
    assert "line 1: " not in done.err
    assert ctl("batch", daemon.store(), "f", "--bytes", stdin=b"\n\n").code == 0


def test_json_is_a_document_per_line_in_the_order_of_the_input(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    daemon.answer = odd_ones_trap
    digest = daemon.store()
    done = ctl("batch", digest, "add", "-o", "json", stdin=b"1 1\n1 2\n2 2\n")
    assert done.code == 3
    documents = [json.loads(line) for line in done.out.splitlines()]
    assert [document["index"] for document in documents] == [0, 1, 2]
    single = ctl("call", digest, "add", "1", "1", "-o", "json").json
    assert documents[0] == {"index": 0, **single}
    assert documents[1]["outcome"]["name"] == "trapped"
    assert documents[1]["exit_code"] == 134
    assert b"\x1b" not in done.out


def test_a_refused_call_has_an_error_in_json(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    digest = daemon.store()
    daemon.drops = 1
    done = ctl("batch", digest, "f", "--bytes", "-o", "json", stdin=b"a\nb\n")
    assert done.code == 3
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert first["index"] == 0
    assert first["error"]["reason"] == "MODULE_NOT_FOUND"
    assert set(first) == {"index", "error"}
    assert second["outcome"]["name"] == "completed"


def test_a_line_above_the_message_limit_fails_alone(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    lines = b"a\n" + b"b" * (5 << 20) + b"\nc\n"
    done = ctl("batch", "guest.wasm", "upper", "--bytes", stdin=lines)
    assert (done.code, done.out) == (3, b"A\n\nC\n")
    assert "sandboxctl: line 2: " in done.err
    assert "--max-message" in done.err
    assert "Push" not in done.err


def test_what_to_do_is_said_once_for_a_kind_of_error(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    digest = daemon.store()
    daemon.drops = 3
    large = b"b" * (5 << 20)
    done = ctl("batch", digest, "f", "--bytes", stdin=b"a\nb\nc\nd\n%b\n%b\n" % (large, large))
    assert done.code == 3
    for line in (1, 2, 3, 5, 6):
        assert f"sandboxctl: line {line}: " in done.err
    assert done.err.count("Push it first") == 1
    assert done.err.count("Send less input") == 1


def test_nothing_in_nothing_out(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("batch", daemon.store(), "add")
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_many_lines_are_sent_in_several_messages(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    lines = "".join(f"{n} 1\n" for n in range(2500))
    done = ctl("batch", daemon.store(), "add", stdin=lines.encode())
    assert done.out.split() == [b"%d" % (n + 1) for n in range(2500)]
    assert len(daemon.requests("ExecuteBatch")) == 3


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["add"], b"1 2\n1\n", "line 2: 'add' takes 2 arguments"),
        (["add"], b"1 2\n1 x\n", "line 2: argument 2: 'x' is not an i32"),
        (["add"], b"1 2\n\xff\n", "line 2 is not valid UTF-8"),
        (["add", "--result", "nul"], b"", "--result goes with --bytes"),
        (["add", "--bytes", "--result", "x"], b"a\n", "pointer-length, nul or fixed"),
        (["add", "--max-parallel", "0"], b"", "--max-parallel"),
        ([], b"", "EXPORT"),
    ],
)
def test_a_wrong_command_line_or_a_wrong_line_runs_nothing(
    daemon: FakeDaemon, ctl: Sandboxctl, args: list[str], stdin: bytes, message: str
) -> None:
    done = ctl("batch", "guest.wasm", *args, stdin=stdin)
    assert (done.code, done.out) == (2, b"")
    assert message in " ".join(done.err.split())
    assert daemon.requests("ExecuteBatch") == []


def test_a_closed_standard_input_is_bad_usage(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    batch = ctl.without_stdin("batch", "guest.wasm", "add")
    call = ctl.without_stdin("call", "guest.wasm", "upper", "--input", "-")
    assert (batch.code, call.code) == (2, 125)
    for done in (batch, call):
        assert done.out == b""
        assert "standard input is closed" in " ".join(done.err.split())
    assert daemon.seen == []


def test_a_daemon_that_refuses_the_batch_is_a_failure_of_its_own(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    digest = daemon.store()
    refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_after_ms=500)
    daemon.refusals["ExecuteBatch"].append(refusal)
    done = ctl("batch", digest, "add", "-o", "json", stdin=b"1 1\n")
    assert done.code == 1
    assert json.loads(done.out.splitlines()[-1])["error"]["reason"] == "QUEUE_FULL"
    assert "[QUEUE_FULL]" in done.err


def test_the_timeout_is_for_the_whole_batch(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.hang = True
    done = ctl("batch", daemon.store(), "add", "--timeout", "300ms", stdin=b"1 1\n" * 4)
    assert done.code == 1
    assert "--timeout" in done.err


def test_the_timeout_is_for_waiting_for_the_input_too(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    digest = daemon.store()
    running = ctl.start(
        *("batch", digest, "add", "--timeout", "300ms"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with running:
        assert running.stdin is not None
        running.stdin.write(b"1 1\n")
        running.stdin.flush()
        assert running.wait(20) == 1
        assert running.stderr is not None
        assert b"--timeout was over before standard input" in running.stderr.read()
    assert daemon.seen == []


def test_input_that_comes_in_time_is_read_to_its_end(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    lines = "".join(f"{n} 1\n" for n in range(20_000)).encode()
    done = ctl("batch", daemon.store(), "add", "--timeout", "30s", stdin=lines)
    assert (done.code, len(done.out.split())) == (0, 20_000)


def test_input_that_is_far_too_long_is_bad_usage(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    for options in ([], ["--timeout", "30s"]):
        done = ctl("batch", daemon.store(), "add", *options, stdin=b"1 1\n" * (17 << 20))
        assert done.code == 2
        assert "64 MiB" in done.err
    assert daemon.seen == []


def test_an_interrupt_cancels_the_batch(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.hang = True
    (ctl.directory / "lines").write_bytes(b"1 1\n" * 4)
    running = ctl.start("batch", daemon.store(), "add", "-i", "lines", stdout=subprocess.DEVNULL)
    assert daemon.started.wait(20)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 130
    assert daemon.cancelled.wait(5)
