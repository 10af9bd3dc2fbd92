"""What the zygote takes once for all children: executable memory files refused, root reduced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.isolation.nursery_client import Nursery

from sandboxd.runner.isolation import seccomp

_SYSCTL = Path("/proc/sys/vm/memfd_noexec")
_KEPT = (1 << 5) | (1 << 6) | (1 << 7)


def test_executable_memory_files_are_refused_in_a_pid_namespace_of_root(plain: Nursery) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can set it")
    if not _SYSCTL.exists():
        pytest.skip("needs Linux 6.3")
    found = plain.run("refuse_executable_memory").value
    assert found["state"].active
    assert found["executable"] == "EACCES"
    assert found["plain"] == "done"
    assert found["here"] == found["host before"], "the host's own setting is untouched"


def test_outside_a_pid_namespace_the_host_keeps_its_setting(plain: Nursery) -> None:
    if not _SYSCTL.exists():
        pytest.skip("needs Linux 6.3")
    found = plain.run("refuse_executable_memory_of_host").value
    assert not found["state"].active
    assert "PID namespace" in found["state"].detail
    assert found["before"] == found["after"]


def test_the_zygote_keeps_what_forking_into_slots_needs(nursery: Nursery) -> None:
    found = nursery.run("limit_zygote").value
    as_root = nursery.mode == "root" or (nursery.mode == "plain" and os.geteuid() == 0)
    kept = _KEPT if as_root else 0
    assert found["state"].active
    assert found["capabilities"] == (kept, kept, 0)
    assert found["change the root"] == "EPERM"
    if as_root:
        assert found["bounding"] == 0


def test_a_child_of_a_reduced_zygote_locks_itself_down(nursery: Nursery) -> None:
    states = nursery.run("lock_down_below_limited_zygote").value
    active = {state.name for state in states if state.active}
    assert active >= {"capabilities", "landlock", "seccomp"}, states
    as_root = nursery.mode == "root" or (nursery.mode == "plain" and os.geteuid() == 0)
    assert ("uid" in active) == as_root


@pytest.mark.parametrize("option", [24, 28], ids=["bounding set", "securebits"])
@pytest.mark.parametrize("action", [1, 0], ids=["refused", "does nothing"])
def test_a_zygote_that_cannot_be_reduced_keeps_what_children_need_to_do_it(
    plain: Nursery, option: int, action: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    clause = seccomp.Clause((seccomp.Match(0, (option,)),), seccomp.errno_action(action))
    number = 157 if os.uname().machine == "x86_64" else 167
    faults = [(number, seccomp.Rule((clause,), seccomp.ALLOW))]
    found = plain.run("limit_zygote", faults=faults).value
    assert not found["state"].active
    assert found["capabilities"][0] & 1 << 8, "CAP_SETPCAP is still there"
