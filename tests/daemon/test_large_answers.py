"""Answers beyond what a gRPC client takes by itself: who starts the daemon so is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from tests.daemon.calls import calling, refused

from sandboxd.client import BytesCall, Client, Limits
from sandboxd.v1 import call_pb2, sandbox_pb2

MIB = 1 << 20
ANSWER_BYTES = 70 * MIB  # also more than what the client took once
WARNING = "a stock gRPC client refuses answers above 4 MiB"
WAT = f"""
(module
  (memory (export "memory") {ANSWER_BYTES // 65536 + 1})
  (func (export "alloc") (param i32) (result i32) (i32.const 0))
  (func (export "run") (param i32 i32) (result i64) (i64.const {ANSWER_BYTES})))
"""


def test_by_default_there_is_nothing_to_warn_of(daemon: Any) -> None:
    assert WARNING not in daemon.log
    assert "--max-message is" not in daemon.log


def test_our_client_takes_what_a_stock_client_refuses_and_the_log_says_what_to_set(
    start_daemon: Any, wat: Callable[[str], bytes]
) -> None:
    wasm = wat(WAT)
    with start_daemon("--max-output=80MiB", "--max-message=5MiB", "--spare-runners=1") as daemon:
        assert daemon.log.count(WARNING) == 1
        assert (
            f"grpc.max_receive_message_length, or what its language calls it, to {96 * MIB} "
            in (daemon.log)
        )
        assert daemon.log.count("--max-message is 5 MiB") == 1
        with Client(daemon.target) as client:
            limits = Limits(output_bytes=ANSWER_BYTES)
            execution = client.execute(wasm, BytesCall("run", b""), limits=limits)
        assert len(execution.check().output) == ANSWER_BYTES
        with calling(daemon) as caller:
            request = sandbox_pb2.ExecuteRequest(
                wasm=wasm,
                bytes=call_pb2.BytesCall(export="run"),
                limits=sandbox_pb2.Limits(output_bytes=ANSWER_BYTES),
            )
            found = refused(caller.execute, request)
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not found.reason, "it is the client that refuses"
