"""The shipped unit: it starts, its daemon is bounded by cgroups, and the right users reach it."""

from __future__ import annotations

import grp
import json
import os
import re
from pathlib import Path
from typing import Final

from tests.system.image import PREFIX
from tests.system.registry import check, until
from tests.system.units import GUESTS, SHIPPED, TIMEOUT_S, run

_CONTROL: Final = f"{PREFIX}/bin/sandboxctl"
#: From 0 (nothing to see) to 10; systemd calls everything below 4.5 OK.
EXPOSURE_LIMIT: Final = 2.9
_STRANGER: Final = "4711"


@check("the guest has systemd, and cgroup v2 alone")
def _guest() -> str:
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    kinds = {fields[2]: fields[3] for fields in mounts if fields[2].startswith("cgroup")}
    assert kinds.keys() == {"cgroup2"}, kinds
    assert os.readlink("/proc/1/exe").endswith("/systemd")
    version = run("systemctl", "--version").split()[1]
    return f"Linux {os.uname().release}, systemd {version}, cgroup2 with {kinds['cgroup2']}"


@check("the shipped unit starts, with nothing set, and is active")
def _starts() -> str:
    SHIPPED.systemctl("enable")
    SHIPPED.systemctl("start")
    states = [SHIPPED.show(name) for name in ("ActiveState", "SubState", "User", "NRestarts")]
    assert states == ["active", "running", "sandboxd", "0"], states
    return f"active, running, as user sandboxd; {SHIPPED.show('StatusText')}"


@check("sandboxctl doctor finds the layer cgroup active, on v2")
def _doctor() -> str:
    until(SHIPPED.serves, TIMEOUT_S, "spare runners")
    found = json.loads(run(_CONTROL, "doctor", "--output=json"))
    assert found["host"]["cgroup_mode"] == "v2", found["host"]
    (layer,) = [layer for layer in found["layers"] if layer["name"] == "cgroup"]
    assert layer["active"], layer
    verified = r"alone in a cgroup with memory, pids: \d+ MiB, 16 tasks"
    assert re.fullmatch(verified, layer["detail"]), layer
    missing = [other["name"] for other in found["layers"] if not other["active"]]
    return f"verified: {layer['detail']}\nnot active here: {', '.join(missing) or 'none'}"


@check("sandboxctl doctor finds the layer no-ipc active: the unit leaves /proc/sys writable")
def _no_ipc() -> str:
    found = json.loads(run(_CONTROL, "doctor", "--output=json"))
    (layer,) = [layer for layer in found["layers"] if layer["name"] == "no-ipc"]
    assert layer["active"], layer
    return f"verified: {layer['detail']}"


@check("systemd-analyze security stays below its bound")
def _exposure() -> str:
    text = run("systemd-analyze", "security", "--no-pager", SHIPPED.name)
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", text)
    assert found is not None, text
    exposure = float(found[1])
    assert exposure <= EXPOSURE_LIMIT, text
    return f"exposure {exposure}, bound {EXPOSURE_LIMIT}"


def _call_as(groups: str) -> str:
    guest = str(GUESTS / "json.wasm")
    who = ("setpriv", f"--reuid={_STRANGER}", f"--regid={_STRANGER}", groups)
    call = (_CONTROL, "call", guest, "format", "--input", str(GUESTS / "json.c"), "--timeout=60s")
    return run(*who, *call, check=False)


@check("members of the group sandboxd may call, others may not")
def _group() -> str:
    member = _call_as(f"--groups={grp.getgrnam('sandboxd').gr_gid}")
    assert '{"error": "' in member, member
    other = _call_as("--clear-groups")
    assert '{"error": "' not in other, other
    return f"a stranger gets: {other.splitlines()[0]}"
