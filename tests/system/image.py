"""The image: Debian 12 with systemd, the project installed as docs/systemd.md says, and the checks.

Debian's part and the project's dependencies are kept below build/; the checkout goes in anew each
time. Nothing of the host gets in, and nothing is executed outside of the new root but pip.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
RELEASE: Final = "bookworm"
#: Debian 12's Python, and the oldest C library that wheels are taken for.
_PYTHON: Final = "3.11"
_PLATFORMS: Final = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
_PACKAGES: Final = (
    "dbus",
    "libseccomp2",
    "linux-image-cloud-amd64",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
)
_DISK: Final = "2G"
#: As in docs/systemd.md.
PREFIX: Final = "/opt/sandboxd"
#: Where the checks are in the guest.
CHECKS: Final = "/opt/checks"
_INSTALLED: Final = {
    "sandboxd.sysusers": "usr/lib/sysusers.d/sandboxd.conf",
    "sandboxd.service": "etc/systemd/system/sandboxd.service",
    "sandboxd.env": "etc/sandboxd/sandboxd.env",
}
#: Runs the checks once the system is up, then switches it off, whatever came of them.
_UNIT: Final = f"""\
[Unit]
Description=checks of sandboxd
After=multi-user.target
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=oneshot
WorkingDirectory={CHECKS}
ExecStart={PREFIX}/bin/python -m tests.system.inside /dev/ttyS1
StandardOutput=journal+console
TimeoutStartSec=infinity
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What the machine boots."""

    disk: Path
    kernel: Path
    initrd: Path


def build(directory: Path) -> Image:
    """Build the image below the directory. Raises CalledProcessError if a tool fails."""
    directory.mkdir(parents=True, exist_ok=True)
    base = _base(directory)
    wheels = _wheels(directory)
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    _run("tar", "--extract", "--file", base, "--directory", root, "--numeric-owner")
    _install(root, wheels)
    _add_checks(root)
    disk = directory / "disk.img"
    disk.unlink(missing_ok=True)
    _run("mkfs.ext4", "-q", "-E", "root_owner=0:0", "-d", root, disk, _DISK)
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(root / name, directory / name)
    shutil.rmtree(root)
    return Image(disk, directory / "vmlinuz", directory / "initrd.img")


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _base(directory: Path) -> Path:
    """Debian's part, which takes a minute to fetch and install."""
    base = directory / f"debian-{_key(RELEASE, *_PACKAGES)}.tar"
    if not base.exists():
        part = base.with_name(f"part-{base.name}")
        packages = f"--include={','.join(_PACKAGES)}"
        _run("mmdebstrap", "--variant=apt", "--quiet", packages, RELEASE, part)
        part.rename(base)
    return base


def _wheels(directory: Path) -> Path:
    """The checkout as a wheel, and those that it depends on."""
    pip = (sys.executable, "-m", "pip", "--quiet")
    wheels = directory / f"wheels-{_key((PROJECT / 'pyproject.toml').read_text('utf-8'))}"
    project = directory / "project"
    shutil.rmtree(project, ignore_errors=True)
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", project, PROJECT)
    (wheel,) = project.glob("*.whl")
    if not wheels.exists():
        part = wheels.with_name(f"part-{wheels.name}")
        shutil.rmtree(part, ignore_errors=True)
        platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
        chosen = ("--only-binary", ":all:", "--python-version", _PYTHON, *platforms)
        _run(*pip, "download", "--dest", part, *chosen, f"sandboxd[server] @ {wheel.as_uri()}")
        part.rename(wheels)
    shutil.copy(wheel, wheels / wheel.name)
    return wheels


def _install(root: Path, wheels: Path) -> None:
    """The steps of docs/systemd.md."""
    inside = root / "wheels"
    shutil.copytree(wheels, inside)
    _chroot(root, "python3", "-m", "venv", PREFIX)
    pip = (f"{PREFIX}/bin/pip", "--quiet", "--disable-pip-version-check")
    _chroot(root, *pip, "install", "--no-index", "--find-links=/wheels", "sandboxd[server]")
    shutil.rmtree(inside)
    for name, where in _INSTALLED.items():
        (root / where).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / "systemd" / name, root / where)
        (root / where).chmod(0o644)
    _chroot(root, "systemd-sysusers")


def _chroot(root: Path, *command: str) -> None:
    _run(
        "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "chroot", root, *command
    )


def _add_checks(root: Path) -> None:
    checks = root / CHECKS.lstrip("/")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("tests/escape", "tests/system", "examples/guests/c"):
        shutil.copytree(PROJECT / name, checks / name, ignore=skip)
    units = root / "etc/systemd/system"
    (units / "checks.service").write_text(_UNIT, "utf-8")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "checks.service").symlink_to("../checks.service")
    (root / "etc/hostname").write_text("guest\n", "utf-8")
    # Nobody logs in, and the second serial port is ours.
    for name in ("serial-getty@.service", "getty@.service", "apt-daily.timer"):
        (units / name).symlink_to("/dev/null")
