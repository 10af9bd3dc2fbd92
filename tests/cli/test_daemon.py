"""`status`, `version`, and what is said when the daemon is not there."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket as sockets
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import grpc
import pytest
from tests.cli.conftest import SCRIPT, Sandboxctl
from tests.client.fake_daemon import FakeDaemon, Refusal

from sandboxd.cli import advice, tables
from sandboxd.supervisor.main import main
from sandboxd.v1 import admin_pb2

LONG = " ".join(["verified"] * 20)
EVIL = "\x1b[31m[bold]t[/bold]"


def test_status_shows_every_part(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    status = daemon.status
    status.pid, status.zygote_pid, status.uptime_ns, status.modules = 4321, 4322, 90 * 10**9, 17
    status.pool.capacity, status.queue.capacity = 64, 256
    status.latency.p99_ns = 2_500_000
    status.outcomes.add(name="completed", count=12)
    status.outcomes.add(name="QUEUE_FULL", count=3, fault=True)
    status.runners.add(
        pid=555,
        state=admin_pb2.RUNNER_STATE_BUSY,
        tenant=EVIL,
        module_digest="sha256:" + "ab" * 32,
        rss_bytes=20 << 20,
    )
    status.layers.add(name="seccomp", active=True, detail="verified")
    status.layers.add(name="cgroup", active=False, detail="no delegation")
    out = ctl("status").out.decode()
    for text in ("4321", "90.0 s", "2.5 ms", "QUEUE_FULL", "busy", "20.0 MiB", "no delegation"):
        assert text in out
    assert r"\x1b[31m[bold]t[/bold]" in out
    assert "\x1b" not in out
    document = ctl("status", "-o", "json").json
    assert document["pool"]["capacity"] == 64
    assert document["runners"][0]["tenant"] == EVIL
    assert document["runners"][0]["state"] == "BUSY"
    assert document["layers"][1] == {
        "name": "cgroup",
        "active": False,
        "detail": "no delegation",
        "required": False,
        "remedy": "",
        "reason": "",
    }
    assert set(document) == set(status.DESCRIPTOR.fields_by_name)


def test_doctor_tells_what_is_missing_and_what_to_do(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    status = daemon.status
    status.engine_version, status.isolation_profile = "50.0.0", "default"
    status.host.engine_package_version, status.host.kernel = "50.0.1", "6.1.0"
    status.host.supervisor_uid = 1000
    status.layers.add(name="seccomp", active=True, detail="verified", required=True)
    status.layers.add(name="cgroup", active=False, detail="none", remedy="delegate it \x1b[31m")
    done = ctl("doctor")
    assert done.code == 0
    out = done.out.decode()
    assert "the engine is 50.0.0, though its package says 50.0.1" in out
    assert r"cgroup is not active: delegate it \x1b[31m" in out
    assert "\x1b" not in out
    assert ctl("doctor", "--strict").code == 3
    document = ctl("doctor", "-o", "json").json
    assert set(document) == {
        "isolation_profile", "engine_version", "host", "layers", "findings",
    }  # fmt: skip
    assert len(document["findings"]) == 2
    status.layers.add(name="landlock", active=False, required=True)
    assert ctl("doctor").code == 3
    assert ctl("doctor", "-o", "json").code == 3


def test_the_doctor_without_a_daemon_has_another_code_than_its_findings(ctl: Sandboxctl) -> None:
    assert ctl("doctor").code == ctl("doctor", "--strict").code == 1


def test_the_doctors_keys_are_documented(daemon: FakeDaemon) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for message in (admin_pb2.Layer, admin_pb2.Host):
        for name in message.DESCRIPTOR.fields_by_name:
            assert f"`{name}`" in text


def _add_layers(daemon: FakeDaemon) -> None:
    add = daemon.status.layers.add
    add(name="no-passed-descriptors", detail=LONG, reason="stops descriptors")
    add(name="seccomp", active=True, detail="two filters", reason="stops system calls")


def _on_a_terminal(ctl: Sandboxctl, *args: str) -> str:
    leader, terminal = pty.openpty()
    process = ctl.start(*args, stdout=terminal)
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the other side was closed.
        while piece := os.read(leader, 4096):
            seen += piece
    os.close(leader)
    assert process.wait(20) == 0
    return seen.decode()


def test_a_row_in_a_pipe_is_one_line_without_padding(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    _add_layers(daemon)
    for command in ("doctor", "status"):
        lines = ctl(command).out.decode().splitlines()
        assert all(line == line.rstrip() for line in lines)
        (row,) = [line for line in lines if line.startswith("seccomp")]
        assert len(row) < 100
        (row,) = [line for line in lines if line.startswith("no-passed")]
        assert LONG in row


@pytest.mark.parametrize("command", ["doctor", "status"])
def test_a_layers_name_stays_whole_on_a_narrow_terminal(
    daemon: FakeDaemon, ctl: Sandboxctl, command: str
) -> None:
    _add_layers(daemon)
    ctl.env |= {"TERM": "xterm", "COLUMNS": "80"}
    out = _on_a_terminal(ctl, command)
    assert "\x1b[1m" in out
    table = out.split("Isolation")[1].split("\r\n\r\n")[0]
    assert "no-passed-descriptors  NO " in table
    assert "stops" in table or command == "status"
    ctl.env["NO_COLOR"] = "1"
    assert "\x1b" not in _on_a_terminal(ctl, command)


@pytest.mark.parametrize("command", [["doctor"], ["status"], ["module", "ls"], ["version"]])
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_reader_that_went_away_is_141(
    daemon: FakeDaemon, ctl: Sandboxctl, command: list[str], output: str
) -> None:
    _add_layers(daemon)
    daemon.store()
    reader, writer = os.pipe()
    process = ctl.start(*command, "-o", output, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_rich_does_not_choose_the_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115 - closing it fails
    with pytest.raises(BrokenPipeError):
        tables.console(stream).print("x")
    with contextlib.suppress(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("memory", "sandboxd with a higher --compile-memory"),
        ("wall_time", "--compile-wall-time"),
        ("cpu_time", "--compile-cpu-time"),
        ("artifact_size", "--max-artifact"),
        ("functions", "this limit is fixed"),
        ("stack", "this limit is fixed"),
        ("crash", "please report it"),
    ],
)
def test_a_module_that_is_too_complex_names_the_setting_if_there_is_one(
    daemon: FakeDaemon, ctl: Sandboxctl, limit: str, words: str
) -> None:
    bad = grpc.StatusCode.INVALID_ARGUMENT
    refusal = Refusal(bad, "too much", "MODULE_TOO_COMPLEX", metadata={"limit": limit})
    daemon.refusals["Push"].append(refusal)
    done = ctl("module", "push", "guest.wasm")
    assert done.code == 1
    assert words in done.err.splitlines()[1]


def test_the_flags_in_the_advice_exist() -> None:
    options = {name for option in main.params for name in option.opts}
    assert set(advice.COMPILER_FLAGS.values()) | {"--max-module"} <= options


def test_an_empty_status_is_shown_too(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("status")
    assert (done.code, done.err) == (0, "")


def test_version_tells_both_sides(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("version")
    assert done.code == 0
    assert "daemon: 9.9.9 (engine 50.0.0)" in done.out.decode()
    document = ctl("version", "-o", "json").json
    assert document["daemon"] == {"version": "9.9.9", "engine_version": "50.0.0"}
    assert document["error"] is None


def test_the_version_of_the_client_alone_needs_no_daemon(ctl: Sandboxctl) -> None:
    done = ctl("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.decode() == f"sandboxctl {metadata.version('sandboxd')}\n"


def test_version_works_without_a_daemon(ctl: Sandboxctl) -> None:
    done = ctl("version")
    assert done.code == 0
    assert "daemon: none (sandboxd is not running" in done.out.decode()
    document = ctl("version", "-o", "json").json
    assert document["daemon"] is None
    assert document["error"]["code"] == "UNAVAILABLE"


def test_no_daemon_is_explained(ctl: Sandboxctl, socket: Path) -> None:
    done = ctl("status")
    assert done.code == 1
    assert done.err == (
        f"sandboxctl: sandboxd is not running: nobody listens on {socket}\n"
        "Start it: sudo systemctl start sandboxd; or name another address with --address "
        "or SANDBOXD_ADDRESS\n"
    )
    assert ctl("run", "guest.wasm").code == 125
    as_json = ctl("-o", "json", "status")
    assert as_json.json["error"]["code"] == "UNAVAILABLE"


def test_a_socket_that_was_left_behind_is_explained(ctl: Sandboxctl, socket: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(socket))
    assert "sandboxd is not running" in ctl("status").err


def test_a_tcp_address_without_a_daemon_is_explained(ctl: Sandboxctl) -> None:
    with sockets.socket() as taken:  # Bound and not listening: nobody answers here.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = ctl("status", "-a", f"127.0.0.1:{port}")
    assert done.code == 1
    assert f"no sandboxd answers at 127.0.0.1:{port}" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to any socket")
def test_a_socket_of_another_group_is_explained(
    daemon: FakeDaemon, ctl: Sandboxctl, socket: Path
) -> None:
    socket.chmod(0)
    done = ctl("status")
    assert done.code == 1
    assert "permission denied on the socket" in done.err
    assert "usermod -aG" in done.err


@pytest.mark.parametrize(
    ("code", "reason", "advice"),
    [
        (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "Try again"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL", "sandboxctl module rm"),
        (grpc.StatusCode.PERMISSION_DENIED, "", "--tls-cert"),
        (grpc.StatusCode.UNIMPLEMENTED, "", "sandboxctl version"),
        (grpc.StatusCode.INTERNAL, "", "journalctl"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", "--timeout"),
    ],
)
def test_a_fault_says_what_to_do_next_in_two_lines(
    daemon: FakeDaemon, ctl: Sandboxctl, code: grpc.StatusCode, reason: str, advice: str
) -> None:
    daemon.refusals["GetStatus"].append(Refusal(code, f"broken {EVIL}", reason))
    done = ctl("status")
    assert done.code == 1
    assert advice in done.err
    assert len(done.err.splitlines()) == 2
    assert "\x1b" not in done.err


def test_ordinary_usage_errors_are_2(ctl: Sandboxctl) -> None:
    for args in (["nonsense"], ["status", "--nonsense"], ["-o", "xml", "status"], ["module", "rm"]):
        assert ctl(*args).code == 2


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["call"], ["module"], ["module", "push"], ["module", "ls"], ["module", "show"],
     ["module", "rm"], ["status"], ["doctor"], ["version"]],
)  # fmt: skip
def test_every_command_teaches_with_examples(ctl: Sandboxctl, command: list[str]) -> None:
    done = ctl(*command, "--help")
    assert done.code == 0
    assert "Examples:\n    sandboxctl" in done.out.decode() or "watch" in done.out.decode()


def test_help_imports_nothing_heavy(ctl: Sandboxctl) -> None:
    code = (
        "import sys; from sandboxd.cli.app import invoke; code = invoke(['run', '--help']); "
        "print(code, sorted({'grpc', 'rich', 'asyncio', 'google.protobuf', 'sandboxd.client'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=True, env=ctl.environment(),
    )  # fmt: skip
    assert done.stderr == "0 []\n"


def test_the_module_can_be_run_like_the_script(ctl: Sandboxctl) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sandboxd.cli", "version", "-o", "json"],
        capture_output=True, check=True, env=ctl.environment(),
    )  # fmt: skip
    assert json.loads(done.stdout)["daemon"] is None


def test_shell_completion_is_there(ctl: Sandboxctl) -> None:
    ctl.env["_SANDBOXCTL_COMPLETE"] = "bash_source"
    done = ctl()
    assert done.code == 0
    assert b"complete" in done.out


def test_an_encoding_without_the_character_does_not_fail(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    daemon.status.layers.add(name="é", active=True)
    ctl.env |= {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = ctl("status")
    assert (done.code, done.err) == (0, "")
    assert rb"\xe9" in done.out
    assert SCRIPT.exists()
