"""`sandboxd --check`: it says what a start would say, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.supervisor import isolation

TIMEOUT_S = 60


def check(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    base = ("--listen", f"unix://{tmp_path}/run/s", "--state-dir", str(tmp_path / "state"))
    return subprocess.run(
        [sys.executable, "-m", "sandboxd.supervisor.main", "--check", *base, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def lines(ended: subprocess.CompletedProcess[str], word: str) -> list[str]:
    assert "Traceback" not in ended.stderr
    return [line[6:] for line in ended.stdout.splitlines() if line.startswith(word)]


def test_where_a_daemon_would_start_all_is_well_and_nothing_is_left(tmp_path: Path) -> None:
    ended = check(tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not lines(ended, "FAIL")
    looked_at = " ".join(lines(ended, "ok"))
    for what in ("settings", "state directory", "isolation default", f"listen unix://{tmp_path}"):
        assert what in looked_at
    assert os.listdir(tmp_path) == []


def test_layers_that_are_not_active_are_told_with_what_to_do(tmp_path: Path) -> None:
    ended = check(tmp_path, "--namespaces=off", "--cgroups=off")
    assert ended.returncode == 0
    notes = lines(ended, "note")
    for name in ("namespaces", "cgroup"):
        (note,) = [one for one in notes if one.startswith(f"layer {name} is not active: ")]
        assert "switched off" in note
        assert "; remedy: " in note
    assert all(one.split()[1] in isolation.LAYERS for one in notes)


def test_all_that_would_stop_a_start_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    absent = str(tmp_path / "absent.pem")
    ended = check(
        tmp_path, "--tls-cert", absent, "--tls-key", absent, "--tls-client-ca", absent,
        "--namespaces=off", "--require-layer=namespaces", "--require-layer=no-ipc",
        "--state-dir", str(tmp_path / "file" / "state"), "--listen", f"unix://{tmp_path}/file/s",
        "--listen", "tcp://127.0.0.1:0", "--socket-group", "no-such-group",
    )  # fmt: skip
    assert ended.returncode == 1
    failed = lines(ended, "FAIL")
    assert [line.split(":")[0] for line in failed] == [
        "state directory", "isolation", "listen", "listen", "listen",
    ]  # fmt: skip
    assert str(tmp_path / "file") in failed[0]
    assert "isolation layer namespaces: " in ended.stderr
    assert "isolation layer no-ipc: " in ended.stderr
    assert "no-such-group" in failed[2]
    assert absent in failed[4]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--require-layer=secomp", "did you mean seccomp?"),
        ("--default-memory=1GiB", "--default-memory is above --max-memory"),
        ("--tls-cert=/x", "--tls-client-ca"),
        ("--listen=tcp://0.0.0.0:5000", "--tls-client-ca"),
        ("--listen=unix://{tmp_path}/run/s", "is given twice"),
    ],
)
def test_bad_usage_is_2_and_nothing_was_looked_at(
    tmp_path: Path, argument: str, words: str
) -> None:
    ended = check(tmp_path, argument.format(tmp_path=tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert os.listdir(tmp_path) == []


def test_a_daemon_that_this_one_would_replace_is_no_failure(tmp_path: Path, daemon: Any) -> None:
    mine = ("--state-dir", str(daemon.state_dir))
    theirs = ("--listen", f"unix://{daemon.socket}")
    ended = check(tmp_path, *mine, *theirs)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    notes = " ".join(lines(ended, "note"))
    assert f"another sandboxd uses {daemon.state_dir}: it must stop first" in notes
    assert f"another daemon serves {daemon.socket}" in notes
    # Anybody else's socket is one.
    ended = check(tmp_path, *theirs)
    assert ended.returncode == 1
    assert f"another daemon serves {daemon.socket}" in lines(ended, "FAIL")[0]
    assert daemon.status().pid


def test_a_directory_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    # Whoever asks: nothing can be made there.
    ended = check(tmp_path, "--state-dir=/proc/nothing", "--listen=unix:///proc/nothing/s")
    assert ended.returncode == 1
    failed = lines(ended, "FAIL")
    assert [line.split(":")[0] for line in failed] == ["state directory", "listen"]
    assert "--state-dir" in failed[0]
    assert "--listen" in failed[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_state_directory_of_somebody_else_is_found(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", 12345, 12345)
    ended = check(tmp_path)
    assert ended.returncode == 1
    assert "belongs to user 12345" in " ".join(lines(ended, "FAIL"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_that_may_not_be_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    ended = check(tmp_path)
    assert ended.returncode == 1
    assert "Permission denied" in lines(ended, "FAIL")[0]


def test_remarks_on_settings_are_told(tmp_path: Path) -> None:
    ended = check(
        tmp_path, "--max-output=8MiB", "--max-message=8MiB", "--insecure-tcp",
        "--max-runners=8", "--ahead-runners=4",
    )  # fmt: skip
    notes = " ".join(lines(ended, "note"))
    assert "--max-output is 8 MiB: a stock gRPC client refuses answers above 4 MiB" in notes
    assert "grpc.max_receive_message_length" in notes
    assert "--max-message is 8 MiB" in notes
    assert "TCP without TLS" in notes
    assert "--ahead-runners is 4, and 2 of them can be kept" in notes


def test_a_layer_that_does_not_hold_is_told_with_where_to_read_of_it(tmp_path: Path) -> None:
    ended = check(tmp_path, "--cgroups=off", "--require-layer=cgroup")
    assert ended.returncode == 1
    (failed,) = lines(ended, "FAIL")
    assert failed.startswith("isolation: ")
    assert "standard error has its message" in failed
    assert "isolation layer cgroup: " in ended.stderr


def test_what_is_no_socket_is_told_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = check(tmp_path, f"--listen=unix://{tmp_path}/file")
    assert ended.returncode == 1
    assert lines(ended, "FAIL") == [
        f"listen: {tmp_path}/file is not a socket; move it away, or pass another --listen"
    ]


def test_who_interrupts_a_check_gets_no_answer_and_leaves_nothing(tmp_path: Path) -> None:
    command = (
        *(sys.executable, "-m", "sandboxd.supervisor.main", "--check"),
        *("--listen", f"unix://{tmp_path}/run/s", "--state-dir", str(tmp_path / "state")),
    )
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ok    settings\n"
        # As a terminal does it: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert told == "sandboxd: interrupted\n"
    assert os.listdir(tmp_path) == []
