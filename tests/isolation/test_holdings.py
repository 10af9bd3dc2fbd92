"""Descriptors have numbers that the second filter knows, addresses an end, and IPC no objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.isolation import holdings
from tests.isolation.nursery_client import Nursery
from tests.isolation.test_engine import ARITHMETIC

from sandboxd.runner.isolation import passing
from sandboxd.runner.isolation.policy import RESERVED_BYTES

Wasm = Callable[[str], bytes]
_DATA_BYTES = 256 << 20
_GIB = 1 << 30
_LEFT_OPEN = {
    *("read", "pread", "readv", "write", "pwrite", "writev", "map", "duplicate", "renumber"),
}
#: What is not killed: runner, then core.
_OWN = {
    "write to the socket": ("done", "done"),
    # A pipe of the nursery's, of which the child has the wrong end; EBADF is the kernel's own.
    "read the interrupt pipe": ("EBADF", "EBADF"),
    "write to standard error": ("EFBIG", "EFBIG"),
    "write where the event loop may": ("EBADF", "SIGSYS"),
}


def test_descriptors_get_their_numbers_even_if_these_were_each_others(nursery: Nursery) -> None:
    assert nursery.run("move_descriptors").value == [b"0", b"1"]


def test_a_descriptor_is_not_moved_onto_one_that_is_kept(plain: Nursery) -> None:
    assert plain.run("move_onto_kept").failed_layer == "descriptors"


@pytest.mark.parametrize("hygienic", [True, False], ids=["closed", "left open"])
@pytest.mark.parametrize("profile", ["runner", "core"])
@pytest.mark.parametrize("name", holdings.USES)
def test_a_sealed_runner_uses_its_own_descriptors_and_no_other(
    plain: Nursery, name: str, profile: str, hygienic: bool
) -> None:
    outcome = plain.run("use", name=name, profile=profile, hygienic=hygienic)
    said = outcome.killed_by if outcome.status < 0 else outcome.value
    assert said == _OWN.get(name, ("SIGSYS",) * 2)[profile == "core"]
    assert _LEFT_OPEN.isdisjoint(_OWN)


def test_addresses_end_where_page_tables_would_count(plain: Nursery) -> None:
    assert plain.run("map_addresses", size=RESERVED_BYTES + _DATA_BYTES).value == "ENOMEM"
    assert plain.run("map_addresses", size=8 * _GIB).value == "done"


def test_two_instances_have_their_reservations_at_once(nursery: Nursery, wasm: Wasm) -> None:
    artifact = nursery.run("compile_freely", wasm=wasm(ARITHMETIC)).value
    assert nursery.run("two_instances_at_once", artifact=artifact).value == [1, 1]


def test_nothing_can_be_made_in_the_ipc_namespace(jailed: Nursery) -> None:
    found = jailed.run("make_ipc_objects").value
    # CAP_SYS_RESOURCE is above the limit of queues; a locked-down child has none.
    assert found.pop("message queue") in {"ENOSPC", *(["done"] if jailed.mode == "root" else [])}
    assert found == {"shared memory": "EINVAL", "messages": "ENOSPC", "semaphores": "ENOSPC"}


def test_the_hosts_ipc_namespace_keeps_its_limits_and_does_not_pass(plain: Nursery) -> None:
    found = plain.run("look_for_forbidden_ipc").value
    assert not found["state"].active
    assert found["unchanged"]


def test_a_socket_refuses_descriptors_where_the_kernel_can(plain: Nursery) -> None:
    if not passing.hold().active:
        pytest.skip("needs Linux 6.16")
    assert plain.run("pass_to_deaf_socket").value == "EPERM"
