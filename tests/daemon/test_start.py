"""Starts that are refused: in one line that says why, before anything is served."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.daemon.calls import calling, i32, refused, typed

from sandboxd.supervisor import isolation, settings

TIMEOUT_S = 60
NUMBERS = [
    field.name
    for field in dataclasses.fields(settings.Settings)
    if field.type == "int" and field.name != "uid_base"
]


def start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    base = ("--listen", f"unix://{tmp_path}/s", "--state-dir", str(tmp_path / "state"))
    return subprocess.run(
        [sys.executable, "-m", "sandboxd.supervisor.main", *base, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-message", "4GiB"),
        ("--max-output", "3GiB"),
        ("--queue-capacity", "9999999999"),
        ("--max-runners", "100000000"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_setting_beyond_what_can_be_counted_is_bad_usage(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended = start(tmp_path, *arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert arguments[0] in last
    assert arguments[1] in last


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", ["9" * 30, "9" * 400])
def test_every_number_has_an_end(name: str, number: str) -> None:
    @click.command()
    @settings.options
    def command(**_: Any) -> None:
        pass

    flag = "--" + name.replace("_", "-")
    ended = CliRunner().invoke(command, [flag, number])
    assert ended.exit_code == 2, ended.exception
    assert flag in ended.output


def test_a_daemon_with_the_largest_settings_serves(start_daemon: Any, sink_wasm: bytes) -> None:
    largest = [
        *("--max-message=1GiB", "--max-output=1GiB", "--queue-capacity=1000000"),
        *("--max-memory=1024GiB", "--compile-memory=1024GiB", "--max-artifact=1024GiB"),
        *("--module-disk=1048576GiB", "--artifact-disk=1048576GiB", "--drain=8760h"),
        *("--max-wall-time=8760h", "--max-cpu-time=8760h", "--runner-max-age=8760h"),
        *("--grace=8760h", "--max-modules=4294967295", "--max-table-elements=4294967295"),
        "--spare-runners=1",
    ]
    with start_daemon(*largest) as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        assert caller.execute(typed(digest, "add", i32(1), i32(2))).completed.results[0].i32 == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="user ids are taken by root only")
def test_a_range_with_a_real_user_in_it_is_refused(tmp_path: Path) -> None:
    ended = start(tmp_path, "--uid-base", "65500")  # 65534 is nobody's
    assert ended.returncode == 1
    assert "65534 is the user nobody" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_share_of_a_processor_that_nothing_enforces_stops_the_start(tmp_path: Path) -> None:
    ended = start(tmp_path, "--runner-cpu-percent", "50", "--cgroups", "off")
    assert ended.returncode == 1
    assert "--runner-cpu-percent" in ended.stderr
    assert "switched off by --cgroups=off" in ended.stderr
    assert "remedy: give the daemon a cgroup of its own with the cpu controller" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_misspelt_layer_in_a_call_is_bad_usage_that_names_the_known_ones(
    daemon: Any, sink_wasm: bytes
) -> None:
    with calling(daemon) as caller:
        request = typed(daemon.push(sink_wasm), "add", i32(1), i32(2))
        request.require_layers.extend(["seccomp", "secomp"])
        found = refused(caller.execute, request)
    assert found.reason == "INVALID_REQUEST"
    assert found.field == "require_layers[1]"
    for name in isolation.LAYERS:
        assert name in found.message
