"""What is left when the daemon, or a part of it, ends in whatever way."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from tests.system.registry import check, until
from tests.system.units import GUESTS, SHIPPED, TIMEOUT_S, UNITS, Unit, run

_DOCUMENT: Final = b"[1]"
_LEFT: Final = Path("/run/left-behind")
#: Runs after the daemon has ended and before systemd clears up what it left, itself outside.
_WITNESS: Final = f"""\
[Service]
ExecStopPost=+/bin/sh -c 'find {{cgroup}} -mindepth 1 -type d >{_LEFT}'
"""


@check("modules and what was compiled of them survive systemctl restart")
def _restart() -> str:
    with SHIPPED.client() as client:
        digest = client.push(GUESTS / "json.wasm").module.digest
    assert SHIPPED.format(digest, _DOCUMENT).output
    SHIPPED.systemctl("restart")
    until(SHIPPED.serves, TIMEOUT_S, "spare runners")
    with SHIPPED.client() as client:
        assert [module.digest for module in client.list()] == [digest]
    assert SHIPPED.format(digest, _DOCUMENT).output
    artifacts = SHIPPED.status().artifacts
    assert (artifacts.loaded_total, artifacts.compiled_total) == (1, 0), artifacts
    return f"{digest[:19]}... is there, its artifact loaded, nothing compiled"


def _process(unit: Unit, name: str) -> psutil.Process:
    """The first one of this name; of two zygote processes the outer one."""
    return next(
        process
        for process in psutil.Process(unit.pid).children(recursive=True)
        if process.name() == name
    )


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


def _replaces_zygote(unit: Unit) -> str:
    before = unit.status()
    runners = [process for process, _ in unit.processes() if process.name() == "sbx-runner"]
    os.kill(before.zygote_pid, signal.SIGKILL)
    until(lambda: _gone(runners), TIMEOUT_S, "its runners are gone")
    until(unit.serves, TIMEOUT_S, "another zygote")
    after = unit.status()
    assert after.pid == before.pid
    assert after.zygote_pid != before.zygote_pid
    assert unit.layer().active, unit.layer()
    assert len(unit.trees) == 1, unit.trees
    return f"{len(runners)} runners went with it; in the same {unit.trees[0].name} again"


@check("a launcher that is killed is replaced, its cgroups swept, and others made")
def _replaces_launcher() -> str:
    (tree,) = SHIPPED.trees
    before = SHIPPED.status()
    (launcher,) = psutil.Process(SHIPPED.pid).children()
    below = launcher.children(recursive=True)
    launcher.kill()
    until(lambda: _gone(below), TIMEOUT_S, "all below it is gone")
    until(SHIPPED.serves, TIMEOUT_S, "another zygote")
    assert SHIPPED.pid == before.pid
    assert SHIPPED.layer().active, SHIPPED.layer()
    assert not tree.exists(), f"{SHIPPED.trees}"
    return f"{len(below)} processes went with it; {tree.name} became {SHIPPED.trees[0].name}"


def _killed(unit: Unit) -> str:
    (tree,) = unit.trees
    processes = [process for process, _ in unit.processes()]
    restarts = int(unit.show("NRestarts"))
    os.kill(unit.pid, signal.SIGKILL)
    until(lambda: _gone(processes), TIMEOUT_S, "every process is gone")
    until(lambda: unit.show("ActiveState") == "active", TIMEOUT_S, "systemd restarts it")
    until(unit.serves, TIMEOUT_S, "spare runners")
    assert int(unit.show("NRestarts")) == restarts + 1
    assert unit.layer().active, unit.layer()
    assert not tree.exists()
    return f"{len(processes)} processes are gone; restarted by systemd, cgroups active again"


def _stopped(unit: Unit) -> str:
    cgroup = unit.cgroup
    dropin = Path(f"/run/systemd/system/{unit.name}.d/witness.conf")
    dropin.parent.mkdir(parents=True, exist_ok=True)
    dropin.write_text(_WITNESS.format(cgroup=cgroup), "utf-8")
    run("systemctl", "daemon-reload")
    processes = [process for process, _ in unit.processes()]
    assert processes
    unit.systemctl("stop")
    assert unit.show("ActiveState") == "inactive", unit.show("ActiveState")
    assert unit.show("Result") == "success"
    assert _gone(processes)
    # Not its own leaf, from which it cannot remove itself, nor that of the witness.
    left = [line for line in _LEFT.read_text("utf-8").splitlines() if _is_tree(Path(line), cgroup)]
    assert not left, f"systemd had to clear up: {left}"
    assert not cgroup.exists()
    return f"{len(processes)} processes and their cgroups are gone before systemd clears up"


def _is_tree(directory: Path, cgroup: Path) -> bool:
    return directory.relative_to(cgroup).parts[0].startswith("sandboxd-")


def _enter_all() -> None:
    for unit in UNITS:
        check(f"{unit.who}: a zygote that is killed is replaced, in the same cgroups")(
            partial(_replaces_zygote, unit)
        )
        check(f"{unit.who}: a daemon killed by SIGKILL leaves no process, and systemd restarts it")(
            partial(_killed, unit)
        )
        check(f"{unit.who}: systemctl stop leaves no process and no cgroup behind")(
            partial(_stopped, unit)
        )


_enter_all()
