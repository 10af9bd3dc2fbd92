"""The machine, as far as isolation depends on it: for the status and `sandboxctl doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from sandboxd.v1 import admin_pb2


def describe(started_as_root: bool) -> admin_pb2.Host:
    """Describe the machine; the supervisor's user id is the present one."""
    return admin_pb2.Host(
        kernel=platform.release(),
        machine=platform.machine(),
        cgroup_mode=cgroup_mode(Path("/proc/self/mounts").read_text(encoding="utf-8")),
        engine_package_version=importlib.metadata.version("wasmtime"),
        supervisor_uid=os.geteuid(),
        started_as_root=started_as_root,
    )


def cgroup_mode(mounts: str) -> str:
    """Tell from /proc/self/mounts how control groups are mounted: v2, v1, hybrid or none."""
    kinds = {
        fields[2]
        for fields in (line.split() for line in mounts.splitlines())
        if len(fields) > 2 and fields[2] in ("cgroup", "cgroup2")
    }
    if kinds == {"cgroup", "cgroup2"}:
        return "hybrid"
    return {"cgroup": "v1", "cgroup2": "v2"}.get("".join(kinds), "none")
