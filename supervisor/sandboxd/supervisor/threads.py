"""Blocking steps in threads, which are never abandoned: they hold files that others would close."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; if the caller is cancelled meanwhile, finish it first, then be cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # However often it is cancelled.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await asyncio.shield(task)
        raise


async def in_thread(step: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking step in a thread, to its end."""
    return await to_the_end(asyncio.to_thread(step, *arguments))
