"""Why a host refuses a namespace: the kernel gives a number, and this the setting behind it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

_SYSCTLS: Final = Path("/proc/sys")
#: Namespaces that have a limit of their own, in the order of how likely it is to be the one.
_KINDS: Final = ("user", "net", "pid", "mnt", "ipc", "uts", "cgroup")


def explain(error: OSError, sysctls: Path = _SYSCTLS) -> str:
    """Return the error's text and, as far as the host's settings tell, what to change.

    To be called while /proc is mounted, by the process that was refused.
    """
    match error.errno:
        case errno.ENOSPC | errno.EUSERS:
            return f"{error}: {_limit(sysctls)}"
        case errno.EPERM | errno.EACCES:
            return f"{error}: {_refusal(sysctls)}"
        case _:
            return str(error)


def _limit(sysctls: Path) -> str:
    limits = {kind: _read(sysctls / f"user/max_{kind}_namespaces") for kind in _KINDS}
    if zero := [kind for kind, limit in limits.items() if limit == "0"]:
        names = " and ".join(f"user.max_{kind}_namespaces" for kind in zero)
        return f"the sysctl {names} is 0; raise it, for example to 10000"
    return (
        "a limit of namespaces is reached; raise the sysctl user.max_user_namespaces (it is "
        f"{limits['user'] or 'unknown'} here) or that of another kind, or end what holds so many: "
        "lsns(8) lists them"
    )


def _refusal(sysctls: Path) -> str:
    if os.geteuid() == 0:
        return (
            "root lacks CAP_SYS_ADMIN here, or a seccomp filter or a security module of what the "
            "daemon runs in (a container, RestrictNamespaces= of the unit) refuses"
        )
    if _read(sysctls / "kernel/unprivileged_userns_clone") == "0":
        return (
            "unprivileged user namespaces are off; set the sysctl "
            "kernel.unprivileged_userns_clone=1"
        )
    if _read(sysctls / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts unprivileged user namespaces; give the daemon a profile that "
            "grants userns, or set the sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return (
        "unprivileged user namespaces are refused here: by a seccomp filter or a security module "
        "(a container's, RestrictNamespaces= of the unit), or because the daemon is in a chroot"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
