"""A daemon under systemd, as its operator and as the kernel see it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from tests.system.image import CHECKS, PREFIX

from sandboxd.client import Client, DaemonUnreachable, Execution, Layer, Limits, Status

CGROUPS: Final = Path("/sys/fs/cgroup")
GUESTS: Final = Path(CHECKS, "examples/guests/c")
SETTINGS: Final = Path("/etc/sandboxd/sandboxd.env")
#: Emulated processors are slow; nothing here judges how fast the daemon is.
TIMEOUT_S: Final = 240.0


def run(*command: str, check: bool = True, timeout_s: float = TIMEOUT_S) -> str:
    """Run a command; return what it wrote. Raises AssertionError with that if it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    written = ran.stdout + ran.stderr
    assert not check or ran.returncode == 0, f"{' '.join(command)}: {ran.returncode}: {written}"
    return written.strip()


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that runs the daemon; `who` is told in the names of checks."""

    name: str
    address: str
    who: str

    def systemctl(self, verb: str) -> str:
        """Do something with it, and wait until that is done; tells what went wrong, if it does."""
        try:
            return run("systemctl", verb, self.name)
        except AssertionError as error:
            log = run("journalctl", "--unit", self.name, "--lines=30", "--output=cat", check=False)
            raise AssertionError(f"{error}\n{log}") from None

    def show(self, name: str) -> str:
        """One property of the unit."""
        return run("systemctl", "show", "--value", "--property", name, self.name)

    @property
    def pid(self) -> int:
        """Process id of the daemon; 0 if it does not run."""
        return int(self.show("MainPID"))

    @property
    def cgroup(self) -> Path:
        """The cgroup that systemd made for it."""
        return CGROUPS / self.show("ControlGroup").lstrip("/")

    @property
    def trees(self) -> list[Path]:
        """The directories of the launchers that have children in this unit."""
        return list(self.cgroup.glob("sandboxd-*"))

    def processes(self) -> Iterator[tuple[psutil.Process, Path]]:
        """Every process of the unit, with the cgroup that it is in."""
        for members in self.cgroup.rglob("cgroup.procs"):
            for pid in members.read_text("ascii").split():
                yield psutil.Process(int(pid)), members.parent

    def client(self) -> Client:
        """A connection to it, as any program makes one."""
        return Client(self.address)

    def status(self) -> Status:
        """What it says about itself."""
        with self.client() as client:
            return client.status(timeout=TIMEOUT_S)

    def layer(self, name: str = "cgroup") -> Layer:
        """One of its layers of isolation."""
        return next(layer for layer in self.status().layers if layer.name == name)

    def format(self, module: bytes | str, text: bytes, *, fresh: bool = False) -> Execution:
        """Have the guest `json` print a document; its runner is bound to it afterwards."""
        limits = Limits(wall_time_ms=100_000, cpu_time_ms=100_000)
        with self.client() as client:
            return client.call_bytes(module, "format", text, limits=limits, fresh=fresh)

    def serves(self) -> bool:
        """Whether it answers, with spare runners that are ready."""
        try:
            pool = self.status().pool
        except DaemonUnreachable:
            return False
        return pool.spare > 0 and not pool.starting


SHIPPED: Final = Unit("sandboxd.service", "unix:///run/sandboxd/sandboxd.sock", "ordinary user")
AS_ROOT: Final = Unit(
    "sandboxd-as-root.service", "unix:///run/sandboxd-as-root/sandboxd.sock", "root"
)
UNITS: Final = (SHIPPED, AS_ROOT)

#: Not shipped: what an operator writes who starts the daemon as root.
_AS_ROOT_FILE: Final = f"""\
[Service]
Type=notify
ExecStart={PREFIX}/bin/sandboxd
Environment=SANDBOXD_LISTEN={AS_ROOT.address}
Environment=SANDBOXD_STATE_DIR=/var/lib/sandboxd-as-root
Environment=SANDBOXD_NAMESPACES=require
EnvironmentFile={SETTINGS}
RuntimeDirectory=sandboxd-as-root
StateDirectory=sandboxd-as-root
KillMode=mixed
Restart=on-failure
RestartSec=1s
OOMPolicy=continue
Delegate=memory pids cpu
"""


def write_unit_for_root() -> None:
    """Make the unit of the daemon that is started as root."""
    Path("/etc/systemd/system", AS_ROOT.name).write_text(_AS_ROOT_FILE, "utf-8")
    run("systemctl", "daemon-reload")
