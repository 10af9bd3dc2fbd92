"""Names of the isolation layers, why there is each, what they report, and how they fail."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

DESCRIPTORS: Final = "descriptors"
SESSION: Final = "session"
CGROUP: Final = "cgroup"
DAEMON_NON_DUMPABLE: Final = "daemon-non-dumpable"
NAMESPACES: Final = "namespaces"
NO_IPC: Final = "no-ipc"
NO_PASSED_DESCRIPTORS: Final = "no-passed-descriptors"
MEMFD_NOEXEC: Final = "memfd-noexec"
EMPTY_ROOT: Final = "empty-root"
ZYGOTE_CAPABILITIES: Final = "zygote-capabilities"
RLIMITS: Final = "rlimits"
CAPABILITIES: Final = "capabilities"
UID: Final = "uid"
NO_NEW_PRIVS: Final = "no-new-privs"
NON_DUMPABLE: Final = "non-dumpable"
LANDLOCK: Final = "landlock"
LIBFFI_PAGE: Final = "libffi-page"
PARENT_DEATH: Final = "parent-death"
SECCOMP: Final = "seccomp"
MDWE: Final = "mdwe"
SECCOMP_SEALED: Final = "seccomp-sealed"
#: Not a layer, but what they all rest on; only ever the name in an IsolationError.
SINGLE_THREAD: Final = "single-thread"

#: Layers that a child applies itself and that must hold unless the operator says otherwise; of
#: children of root, the user id as well, whatever anybody says (policy.requires).
REQUIRED_DEFAULT: Final = frozenset(
    {
        DESCRIPTORS,
        SESSION,
        RLIMITS,
        CAPABILITIES,
        NO_NEW_PRIVS,
        NON_DUMPABLE,
        LANDLOCK,
        LIBFFI_PAGE,
        PARENT_DEATH,
        SECCOMP,
    }
)

#: Layers that must hold after a runner has loaded its module. MDWE needs Linux 6.3, and the
#: second filter alone refuses everything that MDWE refuses.
SEAL_REQUIRED_DEFAULT: Final = frozenset({SECCOMP_SEALED})

#: What each layer is for.
REASONS: Final = {
    DAEMON_NON_DUMPABLE: (
        "no process of their user can trace supervisor, launcher and zygote or read their memory"
    ),
    NAMESPACES: "no process, network, mount or IPC object of the host can be named",
    NO_PASSED_DESCRIPTORS: "a child can send bytes to the supervisor, and no descriptor",
    NO_IPC: "no shared memory or message queue outlives a child or escapes its limits",
    MEMFD_NOEXEC: "a memory file cannot be executed, so no code gets in as a program",
    EMPTY_ROOT: "there is no file to read, write or execute, and no user namespace to be made",
    ZYGOTE_CAPABILITIES: "whoever takes over the zygote gets three capabilities, not all of root's",
    SESSION: "no terminal to type into, no process group to signal",
    CGROUP: "memory and processes of one child are bounded as a whole, whatever kind they are of",
    DESCRIPTORS: "nothing of the parent's can be read, written or passed on",
    RLIMITS: "memory, files, processes and processor time are bounded without a cgroup",
    CAPABILITIES: "no privilege is left, and none can be had by execve(2) or user id 0",
    UID: "files and processes of its siblings and of the daemon are another user's",
    NON_DUMPABLE: "no process of its user can trace it or read its memory, and it leaves no core",
    NO_NEW_PRIVS: "a set-user-id program gives nothing; Landlock and seccomp stand on it",
    LANDLOCK: "files, TCP, abstract sockets and signals are refused even if a path or pid is found",
    LIBFFI_PAGE: "no page is ready that is both writable and executable",
    PARENT_DEATH: "the child does not outlive the zygote",
    SECCOMP: "the kernel is reached through a few calls with checked arguments only",
    MDWE: "no memory becomes executable after the module was loaded",
    SECCOMP_SEALED: "no code and no descriptor comes in after the module was loaded",
    SINGLE_THREAD: "credentials, Landlock and limits bind the thread that takes them",
}

#: What an operator can do about a layer that does not hold.
REMEDIES: Final = {
    CGROUP: (
        "give the daemon a cgroup of its own with the memory and pids controllers (Delegate=yes "
        "and ProtectControlGroups=no in the unit, or systemd-run --property=Delegate=yes), and do "
        "not pass --cgroups=off"
    ),
    DAEMON_NON_DUMPABLE: "needs prctl(PR_SET_DUMPABLE)",
    NO_PASSED_DESCRIPTORS: "needs Linux 6.16 (SO_PASSRIGHTS)",
    NO_IPC: (
        "start with namespaces, and /proc/sys writable (no ProtectKernelTunables= in the unit); an "
        "ordinary user needs Linux 5.19 and a second level of user namespaces"
    ),
    MEMFD_NOEXEC: "start as root, with namespaces, on Linux 6.3 or newer",
    ZYGOTE_CAPABILITIES: "start as root with CAP_SETPCAP, CAP_SETUID and CAP_SETGID",
    DESCRIPTORS: "pass only open descriptors in keep_fds; close_range(2) needs Linux 5.9",
    SESSION: "fork the child; a process group leader cannot start a session",
    NAMESPACES: (
        "start as root with CAP_SYS_ADMIN, or allow unprivileged user namespaces "
        "(user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0, "
        "no RestrictNamespaces= in the unit), and do not pass --namespaces=off"
    ),
    EMPTY_ROOT: "needs namespaces; allow mount, pivot_root and chroot in the new mount namespace",
    RLIMITS: "raise the hard limits that the daemon was started with",
    CAPABILITIES: "start as root with CAP_SETPCAP, or as an ordinary user without capabilities",
    UID: (
        "start as root, with CAP_SETUID and CAP_SETGID: each child then takes a user id of its own"
    ),
    NO_NEW_PRIVS: "needs Linux 3.5",
    NON_DUMPABLE: "needs prctl(PR_SET_DUMPABLE)",
    LANDLOCK: "needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK and landlock in the lsm= list",
    LIBFFI_PAGE: (
        "call find_writable_code() in the parent, after the last ctypes callback was made and "
        "while /proc is mounted"
    ),
    PARENT_DEATH: "fork the child from the process whose id the policy names, and keep that alive",
    SECCOMP: "needs Linux 4.14 with CONFIG_SECCOMP_FILTER, on x86-64 or aarch64",
    MDWE: "needs Linux 6.3",
    SECCOMP_SEALED: "needs Linux 4.14 with CONFIG_SECCOMP_FILTER, after lock_down()",
    SINGLE_THREAD: "lock the child down right after the fork, before it starts a thread",
}


@dataclass(frozen=True, slots=True)
class LayerState:
    """What became of one layer in this process.

    ``name`` is one of this module's constants. ``active`` is true only if the layer was applied
    and its verification passed. ``detail`` says what was verified, or why it is not active.
    """

    name: str
    active: bool
    detail: str

    @property
    def reason(self) -> str:
        """What the layer is for."""
        return REASONS[self.name]

    @property
    def remedy(self) -> str:
        """What an operator can do to have it; empty if it is active."""
        return "" if self.active else REMEDIES[self.name]


class IsolationError(Exception):
    """A required layer does not hold: the process must not go on.

    ``layer`` is one of this module's constants, ``cause`` what was found, ``remedy`` what an
    operator can do about it.
    """

    def __init__(self, layer: str, cause: str, remedy: str | None = None) -> None:
        self.layer = layer
        self.cause = cause
        self.remedy = REMEDIES[layer] if remedy is None else remedy
        super().__init__(f"isolation layer {layer}: {cause}; remedy: {self.remedy}")

    def __reduce__(self) -> tuple[type[IsolationError], Any]:
        return type(self), (self.layer, self.cause, self.remedy)


class SeveralMissingError(IsolationError):
    """More than one required layer does not hold. It names the first, and its text all of them."""

    def __init__(self, errors: Sequence[IsolationError]) -> None:
        super().__init__(errors[0].layer, errors[0].cause, errors[0].remedy)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        lines = (f"  {error}" for error in self.errors)
        return "\n".join((f"{len(self.errors)} required layers do not hold:", *lines))

    def __reduce__(self) -> tuple[type[IsolationError], Any]:
        return type(self), (self.errors,)


def errors_of(states: Iterable[LayerState], required: Collection[str]) -> list[IsolationError]:
    """Return an error for each required layer that is not active."""
    return [
        IsolationError(state.name, state.detail)
        for state in states
        if state.name in required and not state.active
    ]


def refuse(errors: Sequence[IsolationError]) -> None:
    """Raise all of them as one, if there are any."""
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralMissingError(errors)


class NotInForceError(Exception):
    """A layer was applied without complaint, but its verification shows that it does not hold."""


def refused(layer: str, error: Exception, required: bool) -> LayerState:
    """Turn a failed layer into its inactive state; raise IsolationError if it is required."""
    cause = str(error) or type(error).__name__
    if required:
        raise IsolationError(layer, cause) from error
    return LayerState(layer, active=False, detail=cause)
