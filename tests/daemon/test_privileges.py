"""What the kernel says about the processes, as root and as an ordinary user.

The daemon claims layers of isolation in its status; these tests look at the processes instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.daemon.calls import calling, i32, i64, refused, typed, wasi

from sandboxd.v1 import admin_pb2, sandbox_pb2

# Nobody, by convention; it needs no entry in the user database.
ORDINARY_USER = 65534


def can_run_as(user: int) -> bool:
    """True if this user can read the interpreter and the packages under test."""
    code = "import sandboxd.supervisor.daemon, sandboxd.runner.zygote, wasmtime"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return ended.returncode == 0


@pytest.fixture(scope="module", params=["as we are", "ordinary user"])
def started(request: pytest.FixtureRequest, start_daemon: Any) -> Iterator[Any]:
    """A daemon of the tests' own user, and, if that is root, one of an ordinary user."""
    user = None
    if request.param == "ordinary user":
        if os.geteuid() != 0:
            pytest.skip("the tests run as an ordinary user: the other daemon is this one")
        if not can_run_as(ORDINARY_USER):
            pytest.skip(f"an ordinary user cannot read {sys.prefix} or what it links to")
        user = ORDINARY_USER
    with start_daemon(user=user) as running:
        yield running


@pytest.fixture(scope="module")
def busy_pids(started: Any, sink_wasm: bytes) -> Iterator[list[int]]:
    """Two runners that work, so that every layer has been applied to them."""
    with calling(started) as caller:
        digest = started.push(sink_wasm)
        pending = [
            caller.sandbox.Execute.future(
                typed(digest, "sleep", i64(600_000), wall_time_ms=250_000)
            )
            for _ in range(2)
        ]

        def busy(status: admin_pb2.GetStatusResponse) -> list[int]:
            # Not those that are still binding.
            return [one.pid for one in status.runners if one.state == admin_pb2.RUNNER_STATE_BUSY]

        yield busy(started.wait_status(lambda status: len(busy(status)) == 2))
        for call in pending:
            call.cancel()


def kernel_status(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def layer(daemon: Any, name: str) -> Any:
    (found,) = [one for one in daemon.status().layers if one.name == name]
    return found


def test_calls_of_every_kind_work(started: Any, sink_wasm: bytes, guests: Path) -> None:
    with calling(started) as caller:
        digest = started.push(sink_wasm)
        assert caller.execute(typed(digest, "add", i32(1), i32(2))).completed.results[0].i32 == 3
        words = (guests / "c" / "word_count.wasm").read_bytes()
        assert caller.execute(wasi(words, "wc", stdin=b"a b\n")).stdout.split() == [
            b"1",
            b"2",
            b"4",
        ]
        looped = caller.execute(typed(digest, "spin", wall_time_ms=700)).deadline_exceeded
        assert looped.stop.stage == sandbox_pb2.STAGE_RUN
        slept = caller.execute(typed(digest, "sleep", i64(60_000), wall_time_ms=700))
        assert slept.deadline_exceeded.stop.method == sandbox_pb2.STOP_METHOD_KILLED
        assert slept.stdout == b"before\n"


def test_a_runner_has_no_privilege_and_two_filters(busy_pids: list[int]) -> None:
    for pid in busy_pids:
        status = kernel_status(pid)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["Seccomp_filters"]) >= 2
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities], 16) == 0, capabilities


def test_a_runner_is_not_root_and_shares_its_user_with_no_other_where_it_can(
    started: Any, busy_pids: list[int]
) -> None:
    uids = [kernel_status(pid)["Uid"].split() for pid in busy_pids]
    for real, *others in uids:
        assert others == [real] * 3
        assert real != "0"
        if os.geteuid() != 0:
            assert int(real) == os.geteuid()
        elif started.user is not None:
            assert int(real) == started.user
    if os.geteuid() == 0 and started.user is None:
        assert layer(started, "uid").active
        assert layer(started, "uid").required
        assert uids[0] != uids[1], "each runner has a user id of its own"
    else:
        shared = layer(started, "uid")
        assert not shared.active, "siblings and supervisor have the same user id"
        assert not shared.required
        assert "siblings" in shared.detail
        assert "root" in shared.remedy


def test_a_call_can_require_a_user_id_of_its_own_exactly_where_there_is_one(
    started: Any, sink_wasm: bytes
) -> None:
    with calling(started) as caller:
        request = typed(started.push(sink_wasm), "add", i32(1), i32(2))
        request.require_layers.append("uid")
        if layer(started, "uid").active:
            assert "uid" in caller.execute(request).receipt.isolation_layers
        else:
            assert refused(caller.execute, request).reason == "LAYER_NOT_ACTIVE"


@pytest.mark.parametrize("preset", ["default", "container", "strict"])
def test_every_preset_starts_as_an_ordinary_user_and_says_what_is_missing(
    start_daemon: Any, tmp_path: Path, preset: str
) -> None:
    ordinary = (sys.executable, str(Path(__file__).with_name("shrinking_host.py")))
    host = (*ordinary, str(tmp_path / "controller"))
    arguments = ("--isolation", preset, "--spare-runners=1")
    with start_daemon(*arguments, host=host) as daemon:
        assert not layer(daemon, "uid").active
        assert not layer(daemon, "uid").required
        warnings = [line for line in daemon.log.splitlines() if "layers that are not" in line]
        assert len(warnings) == 1, daemon.log
        told = warnings[0].partition(": ")[2]
        assert "sandboxctl doctor" in told
        for one in daemon.status().layers:
            assert (f" {one.name}," in f" {told.replace(';', ',')}") != one.active, told
    os.kill(int((tmp_path / "controller").read_text()), signal.SIGKILL)


def test_an_ordinary_user_who_requires_a_user_id_for_each_runner_is_told_to_start_as_root(
    tmp_path: Path,
) -> None:
    ordinary = (sys.executable, str(Path(__file__).with_name("shrinking_host.py")))
    command = (
        *ordinary,
        *(str(tmp_path / "controller"), sys.executable, "-m", "sandboxd.supervisor.main"),
        *("--listen", f"unix://{tmp_path}/s", "--state-dir", str(tmp_path / "state")),
        "--require-layer=uid",
    )
    # Not a pipe: the controller has it, too.
    with (tmp_path / "log").open("w") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, timeout=60, check=False)
    os.kill(int((tmp_path / "controller").read_text()), signal.SIGKILL)
    told = (tmp_path / "log").read_text()
    assert ended.returncode == 1
    assert "isolation layer uid" in told
    assert "start as root" in told
    assert "Traceback" not in told


def test_every_thread_of_the_supervisor_gave_up_what_root_had(started: Any) -> None:
    if os.geteuid() != 0 or started.user is not None:
        pytest.skip("it had nothing to give up")
    tasks = list(Path(f"/proc/{started.pid}/task").iterdir())
    assert len(tasks) > 1, "gRPC has threads"
    for task in tasks:
        status = kernel_status(f"{started.pid}/task/{task.name}")
        assert status["NoNewPrivs"] == "1", task
        assert "0" not in status["Uid"].split(), task
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities], 16) & ~(1 << 5) == 0, (task, capabilities)


def can_open_memory(pid: int, user: int) -> bool:
    """True if a process of this user, which is not its parent, can read and write its memory."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups(())
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
            os._exit(0)
        except PermissionError:
            os._exit(1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1)
    return code == 0


def test_no_process_of_its_user_can_read_the_memory_of_the_daemon(started: Any) -> None:
    launcher = psutil.Process(started.status().zygote_pid).parent()
    assert launcher is not None
    parts = [psutil.Process(started.pid), launcher, *launcher.children()]
    parts += [child for outer in launcher.children() for child in outer.children()]
    assert len(parts) == 4
    for part in parts:
        user = int(kernel_status(part.pid)["Uid"].split()[0])
        if user != 0:  # from root nothing can be hidden
            assert not can_open_memory(part.pid, user), part
    assert layer(started, "daemon-non-dumpable").active


def test_namespaces_are_entered_exactly_if_the_status_says_so(
    started: Any, busy_pids: list[int]
) -> None:
    told = layer(started, "namespaces")
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        ours = os.readlink(f"/proc/self/ns/{kind}")
        for pid in busy_pids:
            try:
                theirs = os.readlink(f"/proc/{pid}/ns/{kind}")
            except PermissionError:
                pytest.skip("only root can look: the runner is not dumpable")
            assert (theirs != ours) == told.active, (kind, told)


def test_a_runner_sees_an_empty_root_exactly_if_the_status_says_so(
    started: Any, busy_pids: list[int]
) -> None:
    told = layer(started, "empty-root")
    for pid in busy_pids:
        with contextlib.suppress(PermissionError):
            entries = os.listdir(f"/proc/{pid}/root")
            assert (entries == []) == told.active, (entries, told)


def test_a_runner_holds_few_descriptors_and_none_of_the_daemons(
    started: Any, busy_pids: list[int]
) -> None:
    for pid in busy_pids:
        try:
            names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except PermissionError:
            pytest.skip("only root can look: the runner is not dumpable")
        assert len(names) <= 12, names
        files = [name for name in names if name.startswith("/")]
        assert not [name for name in files if not name.startswith("/memfd:")], names


def test_the_limits_of_a_runner_are_in_force(busy_pids: list[int]) -> None:
    for pid in busy_pids:
        try:
            limits = Path(f"/proc/{pid}/limits").read_text()
        except PermissionError:
            pytest.skip("only root can look: the runner is not dumpable")
        rows = {line[:25].strip(): line[25:].split() for line in limits.splitlines()}
        assert rows["Max core file size"][:2] == ["0", "0"]
        for name in ("Max data size", "Max cpu time", "Max file size", "Max open files"):
            assert rows[name][0].isdigit(), rows[name]


def test_every_layer_that_is_required_is_active(started: Any, busy_pids: list[int]) -> None:
    assert busy_pids
    layers = {one.name: one for one in started.status().layers}
    required = {
        *("descriptors", "session", "rlimits", "capabilities", "no-new-privs", "non-dumpable"),
        *("landlock", "libffi-page", "parent-death", "seccomp", "seccomp-sealed"),
        "daemon-non-dumpable",
    }
    assert required <= {name for name, one in layers.items() if one.active}, layers
    assert all(one.detail for one in layers.values())


def test_the_daemon_itself_keeps_its_user(started: Any) -> None:
    uids = psutil.Process(started.pid).uids()
    if os.geteuid() == 0 and started.user is None:
        # Started as root, it gave root up for good, but for the right to end its runners.
        assert 0 not in uids
        assert int(kernel_status(started.pid)["CapEff"], 16) == 1 << 5
    else:
        assert uids.effective == (os.geteuid() if started.user is None else started.user)
