"""What the daemon says of its layers is what holds now: nothing of a zygote that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.calls import Caller, calling, i32, refused, typed

from sandboxd.supervisor import isolation
from sandboxd.v1 import sandbox_pb2

# What the daemon loses with user namespaces.
LOST = {"namespaces", "empty-root"}


def active(daemon: Any) -> set[str]:
    return {layer.name for layer in daemon.status().layers if layer.active}


def add(digest: str, *require_layers: str, **limits: int) -> sandbox_pb2.ExecuteRequest:
    request = typed(digest, "add", i32(20), i32(22))
    request.limits.CopyFrom(sandbox_pb2.Limits(**limits))
    request.require_layers.extend(require_layers)
    return request


def receipt(caller: Caller, digest: str) -> set[str]:
    response = caller.execute(add(digest))
    assert response.completed.results[0].i32 == 42
    return set(response.receipt.isolation_layers)


def test_every_layer_that_there_is_has_a_row(start_daemon: Any) -> None:
    with start_daemon("--namespaces=off", "--spare-runners=1") as daemon:
        rows = {layer.name: layer for layer in daemon.status().layers}
        assert rows.keys() == isolation.LAYERS
        for name in (*LOST, "memfd-noexec", "no-ipc"):
            assert not rows[name].active
            assert "switched off by --namespaces=off" in rows[name].detail
            assert "--namespaces=off" in rows["namespaces"].remedy


def test_a_receipt_names_the_layers_of_its_runner(daemon: Any, caller: Any, sink: str) -> None:
    assert receipt(caller, sink) == active(daemon)


@pytest.fixture
def shrinking(start_daemon: Any, tmp_path: Path) -> Iterator[Any]:
    """Start a daemon on a host that can take its user namespaces away: `host_shrinks`."""
    controller = tmp_path / "controller"
    host = str(Path(__file__).with_name("shrinking_host.py"))

    @contextlib.contextmanager
    def start(*arguments: str) -> Iterator[Any]:
        with start_daemon(*arguments, host=(sys.executable, host, str(controller))) as daemon:
            if not active(daemon) >= LOST:
                pytest.skip("this host allows no user namespaces in a user namespace")
            yield daemon

    def shrink() -> None:
        os.kill(int(controller.read_text()), signal.SIGUSR1)

    start.shrink = shrink  # type: ignore[attr-defined]
    yield start
    with contextlib.suppress(OSError):
        shrink()


def lose_zygote(daemon: Any) -> None:
    os.kill(daemon.status().zygote_pid, signal.SIGKILL)


def test_after_another_zygote_nothing_claims_a_layer_that_is_gone(
    shrinking: Any, sink_wasm: bytes
) -> None:
    with shrinking("--spare-runners=1") as daemon, calling(daemon) as caller:
        digest = daemon.push(sink_wasm)
        assert receipt(caller, digest) >= LOST
        assert caller.execute(add(digest, *LOST)).completed.results
        shrinking.shrink()
        lose_zygote(daemon)
        daemon.wait_status(
            lambda status: status.pool.zygote_starts_total == 2 and status.pool.spare > 0
        )
        assert not active(daemon) & LOST
        assert not receipt(caller, digest) & LOST
        assert receipt(caller, digest) == active(daemon)
        assert refused(caller.execute, add(digest, "empty-root")).reason == "LAYER_NOT_ACTIVE"


def test_a_zygote_that_lacks_a_required_layer_does_not_serve(
    shrinking: Any, sink_wasm: bytes
) -> None:
    with (
        shrinking("--spare-runners=1", "--require-layer=empty-root") as daemon,
        calling(daemon) as caller,
    ):
        digest = daemon.push(sink_wasm)
        assert receipt(caller, digest) >= LOST
        shrinking.shrink()
        lose_zygote(daemon)
        daemon.wait_status(lambda _: "the zygote cannot be started, trying again" in daemon.log)
        assert "isolation layer empty-root: there are no namespaces of our own" in daemon.log
        answer = caller.execute(add(digest, wall_time_ms=1500))
        assert answer.deadline_exceeded.stop.stage == sandbox_pb2.STAGE_QUEUE
        assert not answer.receipt.isolation_layers
        assert daemon.status().pool.zygote_starts_total == 1
        # There is none, so nothing holds.
        assert not active(daemon)
