"""The escape matrix where there is a cgroup with memory: what only that stops, it stops."""

from __future__ import annotations

import json
from typing import Final

from tests.system.image import CHECKS, PREFIX
from tests.system.registry import check
from tests.system.rows import NAMES
from tests.system.units import run

#: Emulated, half a gigabyte takes ten times as long.
_LIMIT_S: Final = 200
_TIMEOUT_S: Final = 900.0
_USERS: Final = {"root": "root", "user": "sandboxd"}


def _rows(identity: str) -> str:
    text = run(
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect"),
        *(f"--property=User={_USERS[identity]}", f"--property=WorkingDirectory={CHECKS}"),
        "--property=Delegate=memory pids",
        *("--setenv=PYTHONDONTWRITEBYTECODE=1", f"--setenv=SANDBOXD_ESCAPE_LIMIT_S={_LIMIT_S}"),
        *(f"{PREFIX}/bin/python", "-m", "tests.system.rows", identity),
        timeout_s=_TIMEOUT_S,
    )
    found = json.loads(text.splitlines()[-1])
    assert found["controllers"] == ["memory", "pids"], found
    assert not found["refused"], found["refused"]
    assert not found["void"], found["void"]
    assert found["rows"].keys() == set(NAMES)
    assert not found["through"], found["through"]
    assert not found["surprises"], found["surprises"]
    return "\n".join(
        f"{name}: C {row['C']}, all {row['all']}" for name, row in found["rows"].items()
    )


@check("root: the cgroup stops every row of the escape matrix that it must")
def _root() -> str:
    return _rows("root")


@check("ordinary user: the cgroup stops every row of the escape matrix that it must")
def _user() -> str:
    return _rows("user")
