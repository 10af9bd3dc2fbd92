"""Fixtures: nurseries, in which each test's attack runs as a forked, locked-down child."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import wasmtime
from tests.isolation.nursery_client import Nursery


@pytest.fixture(scope="session")
def nurseries() -> Iterator[Callable[[str], Nursery]]:
    """Starts the nursery of a mode on first use; skips where the host has no such mode."""
    started: dict[str, Nursery] = {}

    def get(mode: str) -> Nursery:
        if mode == "root" and os.geteuid() != 0:
            pytest.skip("needs root")
        if mode not in started:
            started[mode] = Nursery(mode)
        nursery = started[mode]
        if nursery.greeting[0] != "ready":
            pytest.skip(f"the host refuses this mode: {nursery.greeting[1]}")
        return nursery

    yield get
    for nursery in started.values():
        nursery.close()


@pytest.fixture(params=["root", "user", "plain"])
def nursery(request: pytest.FixtureRequest, nurseries: Callable[[str], Nursery]) -> Nursery:
    """Each mode in turn."""
    return nurseries(request.param)


@pytest.fixture(params=["root", "user"])
def jailed(request: pytest.FixtureRequest, nurseries: Callable[[str], Nursery]) -> Nursery:
    """Each mode that has namespaces and an empty root, in turn."""
    return nurseries(request.param)


@pytest.fixture
def plain(nurseries: Callable[[str], Nursery]) -> Nursery:
    """Whoever runs the tests, on the host's own root."""
    return nurseries("plain")


@pytest.fixture
def ordinary(nurseries: Callable[[str], Nursery]) -> Nursery:
    """An ordinary user in a user namespace."""
    return nurseries("user")


@pytest.fixture(params=["plain", "ordinary"])
def roomy(request: pytest.FixtureRequest, nurseries: Callable[[str], Nursery]) -> Nursery:
    """A nursery outside any namespace, run by root or by an ordinary user, in turn."""
    return nurseries(request.param)


@pytest.fixture(scope="session")
def wasm() -> Callable[[str], bytes]:
    """Turns WebAssembly text into a module, once per text."""
    seen: dict[str, bytes] = {}

    def assemble(text: str) -> bytes:
        if text not in seen:
            seen[text] = bytes(wasmtime.wat2wasm(text))
        return seen[text]

    return assemble
