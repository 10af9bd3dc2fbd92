"""A `multiprocessing` pool whose workers keep the module compiled: processes without walls."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Iterator

from bench.baselines.in_process import InProcess

_module: InProcess


def _prepare(wasm: bytes) -> None:
    global _module  # noqa: PLW0603 - how a pool's worker keeps anything
    _module = InProcess(wasm)


def _call(export: str, data: bytes) -> bytes:
    return _module.bytes_call(export, data)


class ProcessPool:
    """A pool with a worker per processor."""

    def __init__(self, wasm: bytes) -> None:
        # Not fork: this process speaks gRPC, and the two do not mix.
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(len(os.sched_getaffinity(0)), _prepare, (wasm,))

    def call(self, export: str, data: bytes) -> bytes:
        """Make a call and wait for it."""
        return self._pool.apply(_call, (export, data))

    async def call_async(self, export: str, data: bytes) -> bytes:
        """Make a call without blocking the event loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def answered(output: bytes) -> None:
            loop.call_soon_threadsafe(done.set_result, output)

        def failed(error: BaseException) -> None:
            loop.call_soon_threadsafe(done.set_exception, error)

        self._pool.apply_async(_call, (export, data), callback=answered, error_callback=failed)
        return await done

    def close(self) -> None:
        """End the workers."""
        self._pool.terminate()
        self._pool.join()


@contextlib.contextmanager
def process_pool(wasm: bytes) -> Iterator[ProcessPool]:
    """Run a pool until the block ends."""
    pool = ProcessPool(wasm)
    try:
        yield pool
    finally:
        pool.close()
