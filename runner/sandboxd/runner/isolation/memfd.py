"""Memory files that cannot be executed: a sysctl of the PID namespace."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from sandboxd.runner.isolation.layers import MEMFD_NOEXEC, LayerState, NotInForceError, refused

_SYSCTL: Final = Path("/proc/sys/vm/memfd_noexec")
#: MEMFD_NOEXEC_SCOPE_NOEXEC_ENFORCED of linux/pid_namespace.h: a memory file that asks to be
#: executable is refused, one that says nothing is sealed against it. It can never be lowered.
_ENFORCED: Final = "2"
_MFD_EXEC: Final = 0x10


def refuse_executable(required: bool) -> LayerState:
    """Refuse executable memory files in this PID namespace, for good.

    To be called by its PID 1 while /proc is there: anywhere else the setting would be the host's.
    Raises IsolationError if required, or returns the inactive state.
    """
    try:
        if os.getpid() != 1:
            raise NotInForceError("there is no PID namespace of our own to set it in")
        _SYSCTL.write_text(_ENFORCED, "ascii")
        detail = verify()
    except (OSError, NotInForceError) as error:
        return refused(MEMFD_NOEXEC, error, required)
    return LayerState(MEMFD_NOEXEC, active=True, detail=detail)


def verify() -> str:
    """Check that an executable memory file is refused; return what was checked."""
    try:
        os.close(os.memfd_create("probe", os.MFD_CLOEXEC | _MFD_EXEC))
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
    else:
        raise NotInForceError("an executable memory file can still be made")
    return "an executable memory file is refused"
