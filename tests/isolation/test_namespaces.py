"""Namespaces and the empty root, from the inside."""

from __future__ import annotations

import os

from tests.isolation.nursery_client import ORDINARY_USER, Nursery


def test_both_layers_are_active_and_verified(jailed: Nursery) -> None:
    states = jailed.greeting[1]
    assert [(state.name, state.active) for state in states] == [
        ("namespaces", True),
        ("empty-root", True),
    ]


def test_there_is_no_way_out_of_the_empty_root(jailed: Nursery) -> None:
    found = jailed.run("try_to_leave_the_root").value
    assert found == {
        # A chrooted task cannot make one, even with every capability.
        "user namespace": "EPERM",
        "write": "EROFS",
        "list": "[]",
        "above": "[]",
        "proc": "ENOENT",
        "pid 1 is the nursery": "1",
        "interfaces": "['lo']",
    }


def test_an_ordinary_user_is_itself_and_maps_nobody_else(ordinary: Nursery) -> None:
    maps = ordinary.run("user_maps").value
    user = maps["user"]
    # From within; the user namespace around it, whose user 0 this is, has the IPC namespace.
    assert maps["uid_map"].split() == [user, "0", "1"]
    assert int(user) == (os.geteuid() or ORDINARY_USER)
    assert maps["setgroups"].strip() == "deny"
