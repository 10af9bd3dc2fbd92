"""A kernel that refuses a call, or says yes and does nothing, at every step of the lock-down.

The faults are injected by a seccomp filter of the test's own: an errno for a refusal, errno 0
for a lie. Whatever the step, the child must end with IsolationError instead of going on.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import pytest
from tests.isolation.nursery_client import ORDINARY_USER, Nursery

from sandboxd.runner.isolation import kernel
from sandboxd.runner.isolation.layers import REQUIRED_DEFAULT
from sandboxd.runner.isolation.seccomp import ALLOW, Clause, Match, Rule, errno_action

REFUSAL = errno_action(errno.EPERM)
LIE = errno_action(0)
_COLUMN = 0 if kernel.MACHINE == "x86_64" else 1


@dataclass(frozen=True)
class Fault:
    """A system call of which one kind goes wrong."""

    numbers: tuple[int, int]
    #: None: every call of it.
    only: Match | None = None
    never: Match | None = None

    def rules(self, action: int) -> list[tuple[int, Rule]]:
        if self.only is not None:
            rule = Rule((Clause((self.only,), action),), ALLOW)
        elif self.never is not None:
            rule = Rule((Clause((self.never,), ALLOW),), action)
        else:
            rule = Rule(default=action)
        return [(self.numbers[_COLUMN], rule)]


def prctl(option: int) -> Fault:
    return Fault((157, 167), only=Match(0, (option,)))


CLOSE_RANGE = Fault((436, 436))
DUP3 = Fault((292, 24))
SETSID = Fault((112, 157))
PRLIMIT = Fault((302, 261), never=Match(2, (0,), wide=True))
SETGROUPS = Fault((116, 159))
SETRESGID = Fault((119, 149))
SETRESUID = Fault((117, 147))
CAPSET = Fault((126, 91))
CREATE_RULESET = Fault((444, 444))
RESTRICT_SELF = Fault((446, 446))
MPROTECT = Fault((10, 226), only=Match(2, (5,)))
SECCOMP = Fault((317, 277))
UNSHARE = Fault((272, 97))

#: Layer that must fail, fault, and the nursery modes in which the layer makes this call.
FAULTS = {
    "close_range": ("descriptors", CLOSE_RANGE, {"root", "user"}),
    "dup3": ("descriptors", DUP3, {"root", "user"}),
    "setsid": ("session", SETSID, {"root", "user"}),
    "prlimit64": ("rlimits", PRLIMIT, {"root", "user"}),
    "PR_CAPBSET_DROP": ("capabilities", prctl(kernel.PR_CAPBSET_DROP), {"root", "user"}),
    "PR_SET_SECUREBITS": ("capabilities", prctl(kernel.PR_SET_SECUREBITS), {"root", "user"}),
    "setgroups": ("uid", SETGROUPS, {"root"}),
    "setresgid": ("uid", SETRESGID, {"root"}),
    "setresuid": ("uid", SETRESUID, {"root"}),
    "capset": ("capabilities", CAPSET, {"root", "user"}),
    "PR_SET_DUMPABLE": ("non-dumpable", prctl(kernel.PR_SET_DUMPABLE), {"root", "user"}),
    "PR_SET_NO_NEW_PRIVS": ("no-new-privs", prctl(38), {"root", "user"}),
    "landlock_create_ruleset": ("landlock", CREATE_RULESET, {"root", "user"}),
    "landlock_restrict_self": ("landlock", RESTRICT_SELF, {"root", "user"}),
    "mprotect": ("libffi-page", MPROTECT, {"root", "user"}),
    "PR_SET_PDEATHSIG": ("parent-death", prctl(kernel.PR_SET_PDEATHSIG), {"root", "user"}),
    "seccomp": ("seccomp", SECCOMP, {"root", "user"}),
}
#: Lies that change nothing: leaving user id 0 had already emptied the sets and the flag, which the
#: daemon clears before it forks anyway.
HARMLESS_LIES = {("root", "capset"), ("root", "PR_SET_DUMPABLE"), ("user", "PR_SET_DUMPABLE")}
SEALING = {
    "PR_SET_MDWE": ("mdwe", prctl(kernel.PR_SET_MDWE)),
    "seccomp": ("seccomp-sealed", SECCOMP),
}


def _case(name: str, mode: str) -> tuple[str, Fault]:
    layer, fault, modes = FAULTS[name]
    if mode not in modes:
        pytest.skip("this step makes no such call without root")
    if layer == "libffi-page" and kernel.MACHINE != "x86_64":
        pytest.skip("libffi keeps such a page on x86-64 only")
    return layer, fault


@pytest.mark.parametrize("name", FAULTS)
def test_a_refused_call_stops_the_child(jailed: Nursery, name: str) -> None:
    layer, fault = _case(name, jailed.mode)
    assert jailed.run("inject", faults=fault.rules(REFUSAL)).failed_layer == layer


@pytest.mark.parametrize("name", FAULTS)
def test_a_call_that_does_nothing_stops_the_child(jailed: Nursery, name: str) -> None:
    layer, fault = _case(name, jailed.mode)
    if (jailed.mode, name) in HARMLESS_LIES:
        pytest.skip("the layer holds without this call")
    assert jailed.run("inject", faults=fault.rules(LIE)).failed_layer == layer


@pytest.mark.parametrize("name", FAULTS)
def test_a_layer_that_is_not_required_comes_back_inactive(jailed: Nursery, name: str) -> None:
    layer, fault = _case(name, jailed.mode)
    if layer == "uid":
        # No option under root: nothing goes on as user 0.
        required = REQUIRED_DEFAULT - {"uid", "landlock", "capabilities"}
        outcome = jailed.run("inject", faults=fault.rules(REFUSAL), required=required)
        assert outcome.failed_layer == "uid"
        return
    # Without these, what stands on them fails as well.
    optional = {
        "no-new-privs": {"no-new-privs", "seccomp", "landlock"},
    }.get(layer, {layer})
    outcome = jailed.run(
        "inject", faults=fault.rules(REFUSAL), required=REQUIRED_DEFAULT - optional
    )
    states = {state.name: state for state in outcome.value}
    assert not states[layer].active
    assert states[layer].detail
    expected = states.keys() - optional - {"cgroup"}
    if jailed.mode == "user":
        expected -= {"uid"}
    assert all(states[name].active for name in expected), states


@pytest.mark.parametrize("action", [REFUSAL, LIE], ids=["refused", "does nothing"])
@pytest.mark.parametrize("name", SEALING)
def test_a_seal_that_does_not_hold_stops_the_child(jailed: Nursery, name: str, action: int) -> None:
    layer, fault = SEALING[name]
    outcome = jailed.run(
        "inject",
        faults=fault.rules(action),
        required=REQUIRED_DEFAULT | {"mdwe"},
        then_seal=True,
        after=True,
    )
    assert outcome.failed_layer == layer


def test_an_optional_seal_comes_back_inactive(jailed: Nursery) -> None:
    outcome = jailed.run(
        "inject", faults=SEALING["PR_SET_MDWE"][1].rules(REFUSAL), then_seal=True, after=True
    )
    states = {state.name: state for state in outcome.value}
    assert not states["mdwe"].active
    assert states["seccomp-sealed"].active


def test_sealing_without_the_lock_down_is_refused(plain: Nursery) -> None:
    assert plain.run("seal_alone").failed_layer == "seccomp-sealed"


def test_code_pages_that_nobody_looked_for_stop_the_child(jailed: Nursery) -> None:
    assert jailed.run("forget_code_pages").failed_layer == "libffi-page"


@pytest.mark.parametrize("action", [REFUSAL, LIE], ids=["refused", "does nothing"])
def test_namespaces_that_are_refused_stop_the_zygote_if_required(
    roomy: Nursery, action: int
) -> None:
    outcome = roomy.run("unshare_under_fault", faults=UNSHARE.rules(action), required=True)
    assert outcome.failed_layer == "namespaces"


def test_namespaces_that_are_refused_leave_the_zygote_as_it_was(roomy: Nursery) -> None:
    outcome = roomy.run("unshare_under_fault", faults=UNSHARE.rules(REFUSAL), required=False)
    state, user = outcome.value
    assert not state.active
    assert "not permitted" in state.detail
    expected = ORDINARY_USER if os.geteuid() == 0 and roomy.mode == "ordinary" else os.geteuid()
    assert user == expected


MOUNT = Fault((165, 40))
REMOUNT = Fault((165, 40), only=Match(3, (32 | 1,), 0x21))
PIVOT_ROOT = Fault((155, 41))
UMOUNT = Fault((166, 39))
CHROOT = Fault((161, 51))


@pytest.mark.parametrize("fault", [MOUNT, PIVOT_ROOT], ids=["mount", "pivot_root"])
def test_a_refused_empty_root_leaves_the_old_one_if_not_required(
    roomy: Nursery, fault: Fault
) -> None:
    outcome = roomy.run("enter_root_under_fault", faults=fault.rules(REFUSAL), required=False)
    state, files_are_there = outcome.value
    assert not state.active
    assert files_are_there


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("action", [REFUSAL, LIE], ids=["refused", "does nothing"])
@pytest.mark.parametrize(
    "fault", [UMOUNT, REMOUNT, CHROOT], ids=["umount", "remount read-only", "chroot"]
)
def test_an_empty_root_that_is_half_made_always_stops_the_zygote(
    roomy: Nursery, fault: Fault, action: int, required: bool
) -> None:
    outcome = roomy.run("enter_root_under_fault", faults=fault.rules(action), required=required)
    assert outcome.failed_layer == "empty-root"
