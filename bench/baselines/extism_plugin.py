"""Extism's Python SDK, in one's own process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bench import guests


def load() -> tuple[Any, str]:
    """Return Extism's module, or None and why it cannot be used."""
    try:
        return importlib.import_module("extism.extism"), ""
    except (ImportError, OSError) as error:
        return None, f"extism cannot be imported: {error}; pip install -e '.[bench]'"


def kept_plugin(extism: Any) -> Callable[[bytes], bytes]:
    """One plugin for all calls: its memory lives on from call to call."""
    plugin = extism.Plugin(guests.extism_echo())
    return lambda data: bytes(plugin.call("echo", data))


def fresh_plugin(extism: Any) -> Callable[[bytes], bytes]:
    """A plugin per call, compiled once: what a fresh instance costs there."""
    compiled = extism.CompiledPlugin(guests.extism_echo())
    return lambda data: bytes(extism.Plugin(compiled).call("echo", data))
