"""Which machine, which versions, how busy: what makes a number mean something."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from bench.results import Machine, rounded

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("grpcio", "protobuf", "wasmtime", "extism")


def describe() -> Machine:
    """Describe this machine and the versions of what is measured."""
    uname = os.uname()
    versions = {"python": platform.python_version(), **_package_versions()}
    if bwrap := shutil.which("bwrap"):
        output = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False)
        versions["bubblewrap"] = output.stdout.split()[-1]
    return Machine(
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        kernel=uname.release,
        architecture=uname.machine,
        user="root" if os.geteuid() == 0 else "an ordinary user",
        versions=versions,
    )


def _package_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def commit() -> str:
    """Return the commit that is measured, with "+" if the tree differs from it."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        return "unknown"
    changes = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def load() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes."""
    return [rounded(value) for value in os.getloadavg()]
