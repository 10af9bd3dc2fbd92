"""Makes this process one like the zygote: preloaded, in namespaces and an empty root of its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from sandboxd.runner import engine, preload
from sandboxd.runner.engine import Engines
from sandboxd.runner.isolation import credentials, libffi, memfd, namespaces

T = TypeVar("T")


class Kept(NamedTuple):
    """What the zygote keeps for its children."""

    engines: Engines
    code_pages: tuple[libffi.Range, ...]


def become(prepare: Callable[[Engines], T]) -> tuple[Kept, T]:
    """Become one, and return in the process that is.

    `prepare` is called before files are out of reach, and its result returned. The process that
    called waits for the other one, and ends as it does.
    """
    layer = namespaces.unshare(required=False)
    if layer.active and (inner := os.fork()):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
    preload.preload()
    engines = engine.build_engines()
    pages = libffi.find_writable_code()
    prepared = prepare(engines)
    if layer.active:
        memfd.refuse_executable(required=False)
        namespaces.enter_empty_root(required=True)
    credentials.limit_zygote(required=True)
    gc.collect()
    gc.freeze()
    return Kept(engines, pages), prepared
