"""The real daemon on hosts where one step goes wrong: it does not start, and says why.

The faults come from a seccomp filter that the daemon inherits (faulty_host.py), or from what the
host lacks. Before the daemon serves nobody can push or call anything, so no guest runs.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxd.runner.isolation import cgroups
from sandboxd.runner.isolation.layers import REMEDIES

_ROOT = Path(__file__).parents[2]
_X86 = platform.machine() == "x86_64"
_ALL = 0xFFFFFFFFFFFFFFFF
_NEW_NAMESPACES = 0x7E020000
_START_TIMEOUT_S = 60
EPERM = errno.EPERM
#: The call answers 0 and does nothing.
LIE = 0


@dataclass(frozen=True)
class Fault:
    """One call that goes wrong: always, for some values of an argument, or for all others."""

    layer: str
    numbers: tuple[int, int]
    error: int = EPERM
    argument: int | None = None
    values: tuple[int, ...] = ()
    mask: int = _ALL
    negate: bool = False
    #: The layer must be named by an option to be required.
    optional: bool = False
    root_only: bool = False

    def encoded(self) -> str:
        number = self.numbers[0 if _X86 else 1]
        rest = (self.argument, self.mask, self.values, self.negate, self.error)
        return json.dumps([[number, *rest]])


def prctl(layer: str, option: int, error: int = EPERM, **more: bool) -> Fault:
    return Fault(layer, (157, 167), error, 0, (option,), **more)


_MEMFD = (319, 279)
_MOUNT = (165, 40)
_SETSOCKOPT = (54, 208)
FAULTS = {
    "setsid lies": Fault("session", (112, 157), LIE),
    "close_range is refused": Fault("descriptors", (436, 436)),
    "close_range lies": Fault("descriptors", (436, 436), LIE),
    # Of RLIMIT_DATA: the daemon itself sets another one.
    "prlimit64 is refused": Fault("rlimits", (302, 261), EPERM, 1, (resource.RLIMIT_DATA,)),
    "prlimit64 lies": Fault("rlimits", (302, 261), LIE, 1, (resource.RLIMIT_DATA,)),
    "capset is refused": Fault("capabilities", (126, 91)),
    "PR_CAPBSET_DROP lies": prctl("capabilities", 24, LIE, root_only=True),
    "PR_SET_SECUREBITS is refused": prctl("capabilities", 28, root_only=True),
    "setgroups is refused": Fault("uid", (116, 159), root_only=True),
    "setresgid is refused": Fault("uid", (119, 149), root_only=True),
    "setresuid lies": Fault("uid", (117, 147), LIE, root_only=True),
    "PR_SET_DUMPABLE is refused": prctl("daemon-non-dumpable", 4),
    "PR_SET_DUMPABLE lies": prctl("daemon-non-dumpable", 4, LIE),
    "PR_SET_NO_NEW_PRIVS lies": prctl("no-new-privs", 38, LIE, root_only=True),
    "landlock_create_ruleset is refused": Fault("landlock", (444, 444), errno.EOPNOTSUPP),
    "landlock_restrict_self lies": Fault("landlock", (446, 446), LIE),
    "mprotect is refused": Fault("libffi-page", (10, 226), EPERM, 2, (5,)),
    "PR_SET_PDEATHSIG lies": prctl("parent-death", 1, LIE),
    "seccomp is refused": Fault("seccomp", (317, 277)),
    "seccomp lies": Fault("seccomp", (317, 277), LIE),
    "PR_SET_MDWE is refused": prctl("mdwe", 65, errno.EINVAL, optional=True),
    "PR_SET_MDWE lies": prctl("mdwe", 65, LIE, optional=True),
    "unshare is refused": Fault(
        "namespaces", (272, 97), EPERM, 0, (0,), _NEW_NAMESPACES, negate=True, optional=True
    ),
    "mount is refused": Fault("empty-root", _MOUNT, optional=True),
    "chroot lies": Fault("empty-root", (161, 51), LIE, optional=True),
    "memfd_create lets all through": Fault(
        "memfd-noexec", _MEMFD, LIE, 1, (0x10,), 0x10, optional=True, root_only=True
    ),
    "shmget lets all through": Fault("no-ipc", (29, 194), LIE, optional=True),
    "msgget is refused for another reason": Fault("no-ipc", (68, 186), optional=True),
    "semget lets all through": Fault("no-ipc", (64, 190), LIE, optional=True),
    "SO_PASSRIGHTS is not there": Fault(
        "no-passed-descriptors", _SETSOCKOPT, errno.ENOPROTOOPT, 2, (83,), optional=True
    ),
    "SO_PASSRIGHTS lies": Fault("no-passed-descriptors", _SETSOCKOPT, LIE, 2, (83,), optional=True),
    "dup3 is refused": Fault("descriptors", (292, 24)),
    "dup3 lies": Fault("descriptors", (292, 24), LIE),
    "RLIMIT_AS lies": Fault("rlimits", (302, 261), LIE, 1, (resource.RLIMIT_AS,)),
    "PR_CAPBSET_DROP is refused": prctl("zygote-capabilities", 24, optional=True, root_only=True),
}


def start(tmp_path: Path, faults: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start the daemon on a faulty host and wait until it has given up."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.isolation.faulty_host", faults),
            *(sys.executable, "-m", "sandboxd.supervisor.main"),
            *("--listen", f"unix://{tmp_path}/s.sock", "--state-dir", str(tmp_path / "state")),
            *arguments,
        ],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_START_TIMEOUT_S,
        check=False,
    )


def _assert_refused(result: subprocess.CompletedProcess[str], layer: str) -> None:
    said = result.stdout + result.stderr
    assert result.returncode == 1, said
    assert f"isolation layer {layer}: " in said
    assert f"remedy: {REMEDIES[layer]}" in said
    assert "listens on" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", FAULTS)
def test_a_required_layer_that_does_not_hold_stops_the_start(tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    if fault.root_only and os.geteuid() != 0:
        pytest.skip("without root this step is not taken")
    if fault.layer == "libffi-page" and not _X86:
        pytest.skip("libffi keeps such a page on x86-64 only")
    options = ("--require-layer", fault.layer) if fault.optional else ()
    _assert_refused(start(tmp_path, fault.encoded(), *options), fault.layer)


def test_namespaces_that_are_required_by_their_own_option_stop_the_start(tmp_path: Path) -> None:
    fault = FAULTS["unshare is refused"]
    _assert_refused(start(tmp_path, fault.encoded(), "--namespaces=require"), "namespaces")


def test_a_limit_of_namespaces_that_is_reached_is_named(tmp_path: Path) -> None:
    full = dataclasses.replace(FAULTS["unshare is refused"], error=errno.ENOSPC)
    result = start(tmp_path, full.encoded(), "--namespaces=require")
    _assert_refused(result, "namespaces")
    assert "raise the sysctl user.max_user_namespaces" in result.stderr


def test_namespaces_that_a_host_refuses_are_told_with_who_may_refuse_them(tmp_path: Path) -> None:
    result = start(tmp_path, FAULTS["unshare is refused"].encoded(), "--namespaces=require")
    _assert_refused(result, "namespaces")
    who = "root lacks CAP_SYS_ADMIN" if os.geteuid() == 0 else "unprivileged user namespaces"
    assert who in result.stderr


@pytest.mark.parametrize("layer", ["empty-root", "memfd-noexec", "no-ipc"])
def test_what_rests_on_namespaces_stops_the_start_where_there_are_none(
    tmp_path: Path, layer: str
) -> None:
    fault = FAULTS["unshare is refused"].encoded()
    _assert_refused(start(tmp_path, fault, "--require-layer", layer), layer)


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        (("--isolation=strict",), "namespaces"),
        (("--require-layer=namespaces",), "namespaces"),
        (("--require-layer=empty-root",), "empty-root"),
        (("--require-layer=memfd-noexec",), "memfd-noexec"),
        (("--require-layer=no-ipc",), "no-ipc"),
    ],
)
def test_namespaces_that_are_required_and_switched_off_stop_the_start(
    tmp_path: Path, options: tuple[str, ...], layer: str
) -> None:
    _assert_refused(start(tmp_path, "[]", "--namespaces=off", *options), layer)


def test_all_required_layers_that_do_not_hold_are_told_at_once_each_with_its_remedy(
    tmp_path: Path,
) -> None:
    # Of every process that takes any: launcher, zygote, each child, a runner that has loaded.
    names = ("unshare is refused", "SO_PASSRIGHTS is not there", "prlimit64 lies",
             "landlock_create_ruleset is refused", "PR_SET_MDWE is refused")  # fmt: skip
    faults = [FAULTS[name] for name in names]
    missing = [*(fault.layer for fault in faults), "cgroup", "empty-root", "no-ipc"]
    everything = json.dumps([json.loads(fault.encoded())[0] for fault in faults])
    options = [f"--require-layer={name}" for name in missing]
    result = start(tmp_path, everything, "--cgroups=off", *options)
    for name in missing:
        _assert_refused(result, name)
    assert f"sandboxd: {len(missing)} required layers do not hold:\n" in result.stderr
    assert result.stderr.count("isolation layer ") == len(missing)
    assert "the zygote ended with status 3; standard error has its message" in result.stderr


def test_cgroups_that_the_host_does_not_delegate_stop_the_start(tmp_path: Path) -> None:
    if not cgroups.find_places()[1]:
        pytest.skip("this host delegates cgroups")
    _assert_refused(start(tmp_path, "[]", "--cgroups=require"), "cgroup")


def test_cgroups_that_are_required_and_switched_off_stop_the_start(tmp_path: Path) -> None:
    result = start(tmp_path, "[]", "--cgroups=off", "--require-layer=cgroup")
    _assert_refused(result, "cgroup")


def test_a_rehearsal_that_fails_stops_the_start_at_once_and_says_why(tmp_path: Path) -> None:
    # Of all processes, a runner that rehearses is the first to reserve the engine's 4 GiB.
    reserve = Fault("", (9, 222), errno.EADDRINUSE, 1, (1 << 32,), 0xFFFFFFFF << 32)
    began_at = time.monotonic()
    result = start(tmp_path, reserve.encoded())
    assert time.monotonic() - began_at < 15
    assert result.returncode == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert "no runner can be started: it could not get ready: its rehearsal failed: " in last
    assert os.strerror(errno.EADDRINUSE) in last
    assert "Traceback" not in result.stderr
