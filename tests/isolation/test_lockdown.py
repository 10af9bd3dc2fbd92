"""The lock-down as a whole: every layer holds, or the child does not go on."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable

import pytest
from tests.isolation.nursery_client import Nursery

from sandboxd.runner.isolation import landlock, lockdown
from sandboxd.runner.isolation.layers import (
    REASONS,
    REMEDIES,
    REQUIRED_DEFAULT,
    IsolationError,
    LayerState,
)

ORDER = [step.layer for step in lockdown.STEPS]


#: Not every host has them: a kernel before 6.3, no cgroup delegated.
OPTIONAL = {"mdwe", "cgroup"}


def missing(states: list[LayerState], nursery: Nursery) -> set[str]:
    """Layers that are not active and ought to be; a user id of its own needs root."""
    ordinary = nursery.mode == "user" or os.geteuid() != 0
    inactive = {state.name for state in states if not state.active}
    assert ("uid" in inactive) == ordinary
    return inactive - OPTIONAL - {"uid"}


def test_every_layer_of_a_runner_is_active_and_says_what_was_verified(nursery: Nursery) -> None:
    states: list[LayerState] = nursery.run("lock_down", seal=True).value
    names = [state.name for state in states]
    assert names == [*dict.fromkeys(ORDER), "mdwe", "seccomp-sealed"]
    assert not missing(states, nursery), states
    assert all(state.detail for state in states)


def test_a_child_that_keeps_its_user_verifies_that_it_is_not_and_cannot_become_root(
    nurseries: Callable[[str], Nursery],
) -> None:
    states = {state.name: state for state in nurseries("user").run("lock_down").value}
    assert "cannot become root" in states["capabilities"].detail
    assert "siblings" in states["uid"].detail
    assert states["uid"].remedy


def test_a_state_says_what_the_layer_is_for_and_what_to_do_without_it(nursery: Nursery) -> None:
    states: list[LayerState] = nursery.run("lock_down").value
    for state in states:
        assert state.reason == REASONS[state.name]
        assert state.remedy == ("" if state.active else REMEDIES[state.name])


def test_every_layer_of_a_compiler_is_active(nursery: Nursery) -> None:
    states: list[LayerState] = nursery.run("lock_down", profile="compiler").value
    assert [state.name for state in states] == [*dict.fromkeys(ORDER)]
    assert not missing(states, nursery), states


def test_every_layer_of_a_child_but_the_cgroup_is_required_by_default() -> None:
    assert frozenset(ORDER) - {"cgroup", "uid"} == REQUIRED_DEFAULT


def test_security_order_is_kept() -> None:
    assert ORDER[:3] == ["session", "cgroup", "descriptors"], "a cgroup is joined by descriptor"
    assert ORDER.index("uid") < ORDER.index("non-dumpable"), "changing ids sets it again"
    assert ORDER.index("uid") < ORDER.index("parent-death"), "changing ids clears it"
    assert ORDER.index("no-new-privs") < ORDER.index("landlock")
    assert ORDER[-1] == "seccomp"


def test_a_child_with_two_threads_is_refused(nursery: Nursery) -> None:
    assert nursery.run("lock_down_with_thread").failed_layer == "single-thread"


def test_a_second_lock_down_ends_the_process(nursery: Nursery) -> None:
    assert nursery.run("lock_down_twice").killed_by == "SIGSYS"


def test_a_child_of_another_parent_is_refused(nursery: Nursery) -> None:
    outcome = nursery.run("lock_down", parent_pid=os.getpid())
    # Landlock tries to signal the parent that was named: there is no such process in a PID
    # namespace.
    assert outcome.failed_layer in {"parent-death", "landlock"}


def test_root_without_a_user_id_of_its_own_is_refused(nursery: Nursery) -> None:
    if nursery.mode == "user" or os.geteuid() != 0:
        pytest.skip("needs a nursery that runs as root")
    assert nursery.run("lock_down", uid=0).failed_layer == "uid"


def test_an_ordinary_user_cannot_take_another_user_id(nursery: Nursery) -> None:
    if nursery.mode != "user" and os.geteuid() == 0:
        pytest.skip("needs a nursery that runs as an ordinary user")
    assert nursery.run("lock_down", uid=1_900_000_001).failed_layer == "uid"


def test_a_descriptor_to_keep_that_is_not_open_is_refused(nursery: Nursery) -> None:
    outcome = nursery.run("lock_down", keep_fds=frozenset({700}))
    assert outcome.failed_layer == "descriptors"


@pytest.mark.parametrize(("file_size_bytes", "said"), [(1 << 20, "EPERM"), (0, "EFBIG")])
def test_standard_streams_that_are_not_kept_swallow_nothing(
    nursery: Nursery, file_size_bytes: int, said: str
) -> None:
    found = nursery.run("standard_streams", file_size_bytes=file_size_bytes).value
    assert found == [said, said, said, "b''"]


def test_limits_are_what_the_policy_says(plain: Nursery) -> None:
    limits = plain.run("limits_read_back").value
    assert limits["DATA"] == (256 << 20, 256 << 20)
    assert limits["CPU"] == (20, 21)
    assert limits["CORE"] == (0, 0)
    assert limits["NOFILE"][1] < 100
    assert limits["AS"] == ((256 << 20) + (16 << 30),) * 2
    assert limits["FSIZE"] == (0, 0)


def test_an_unknown_layer_is_refused(plain: Nursery) -> None:
    outcome = plain.run("attack_one_wall", name="read host file", layers=frozenset({"wall"}))
    assert outcome.report is not None
    assert outcome.report[:2] == ("raised", "ValueError")


def test_an_isolation_error_names_layer_cause_and_remedy() -> None:
    error = IsolationError("landlock", "no such thing")
    assert (error.layer, error.cause) == ("landlock", "no such thing")
    assert error.remedy == REMEDIES["landlock"]
    assert str(error) == f"isolation layer landlock: no such thing; remedy: {error.remedy}"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.layer, copy.cause, copy.remedy) == (error.layer, error.cause, error.remedy)


@pytest.mark.parametrize(
    ("abi", "rights"),
    [
        (1, (0x1FFF, 0, 0)),
        (2, (0x3FFF, 0, 0)),
        (3, (0x7FFF, 0, 0)),
        (4, (0x7FFF, 3, 0)),
        (5, (0xFFFF, 3, 0)),
        (7, (0xFFFF, 3, 3)),
    ],
)
def test_landlock_handles_every_right_that_the_kernel_has(
    abi: int, rights: tuple[int, int, int]
) -> None:
    assert landlock.rights_of(abi) == rights
