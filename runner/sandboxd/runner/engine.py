"""The WebAssembly engine: what it accepts, and how it is bounded.

Compiler and runner must agree on every setting here: an artifact compiled by an
engine of another configuration is refused when it is loaded. Both processes are
forked from one zygote that called :func:`build_engines` once, so they do.
"""

import atexit
import functools
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

import wasmtime
from wasmtime import _ffi as ffi

# Stack that WebAssembly code may use; past it a guest traps with STACK_OVERFLOW. Host calls run on
# what the thread has left, so this must stay well under the thread's own stack (8 MiB for
# the main thread by default).
MAX_WASM_STACK_BYTES = 512 * 1024

# docs/abi.md, "What is enabled". Sign extension, saturating conversions, mutable globals and
# extended constant expressions have no switch in the C API and are always on.
_ENABLED_PROPOSALS = (
    "wasm_multi_value",
    "wasm_bulk_memory",
    "wasm_reference_types",
    "wasm_simd",
    "wasm_tail_call",
)
_DISABLED_PROPOSALS = (
    "wasm_threads",
    "shared_memory",
    "wasm_memory64",
    "wasm_multi_memory",
    "wasm_gc",
    "wasm_function_references",
    "wasm_exceptions",
    "wasm_stack_switching",
    "wasm_relaxed_simd",
    "wasm_component_model",
    "wasm_component_model_map",
    "wasm_component_model_implements",
    "wasm_custom_page_sizes",
    "wasm_wide_arithmetic",
)

# Switches that the engine's package does not pass on. Only components use `concurrency_support`.
_SWITCHED_OFF_IN_C = (
    "wasm_branch_hinting",
    "wasm_compact_imports",
    "concurrency_support",
    # A copy-on-write image of a module's data would be a memory file: memory that RLIMIT_DATA does
    # not count, and a reason to leave memfd_create(2) to a runner. Without it data is copied into
    # each instance.
    "memory_init_cow",
)

_SETTINGS: tuple[tuple[str, bool | int | str], ...] = (
    ("strategy", "cranelift"),
    ("cranelift_opt_level", "speed"),
    # Threads that compile would not survive the fork of a child (the child would hang).
    ("parallel_compilation", False),
    # Backtraces walk frame pointers. Unwind tables would only be registered and
    # never read, at a cost for each module that is loaded.
    ("native_unwind_info", False),
    ("epoch_interruption", True),
    ("max_wasm_stack", MAX_WASM_STACK_BYTES),
    # The default memory reservation (4 GiB and guard) is kept: bounds checks stay elided, and
    # growth is bounded by the store's limits and by RLIMIT_DATA, which counts committed pages.
)

# The text of the engine's own bug report; the only place where the library holds its full
# version in a form that nothing else in it resembles.
_VERSION_IN_LIBRARY = re.compile(rb"version: (\d+\.\d+\.\d+)\n\nThis is a bug in Wasmtime")


class EngineVersionUnknownError(RuntimeError):
    """The engine's library does not tell its version, so its artifacts cannot be keyed."""

    def __init__(self, library: Path):
        self.library = library
        super().__init__(f"no engine version found in {library.name}")


@dataclass(frozen=True, slots=True)
class Engines:
    """The two engines of a process.

    plain: for modules compiled without fuel metering.
    fuel: for modules compiled with it.
    """

    plain: wasmtime.Engine
    fuel: wasmtime.Engine


def engine_settings(fuel: bool) -> tuple[tuple[str, bool | int | str], ...]:
    """Every setting of an engine, by name: all that two engines must have in common.

    Every proposal is set explicitly, so that a change of the engine's defaults
    cannot enable one. Function names in backtraces need no setting.
    """
    return (
        *((name, True) for name in _ENABLED_PROPOSALS),
        *((name, False) for name in (*_DISABLED_PROPOSALS, *_SWITCHED_OFF_IN_C)),
        *_SETTINGS,
        ("consume_fuel", fuel),
    )


def build_engine(fuel: bool) -> wasmtime.Engine:
    """Build an engine, with or without fuel metering."""
    config = wasmtime.Config()
    for name, value in engine_settings(fuel):
        if name in _SWITCHED_OFF_IN_C:
            getattr(ffi, f"wasmtime_config_{name}_set")(config.ptr(), value)
        else:
            setattr(config, name, value)
    return wasmtime.Engine(config)


@functools.cache
def build_engines() -> Engines:
    """Build both engines, once for the life of the process and of what it forks."""
    return Engines(plain=build_engine(fuel=False), fuel=build_engine(fuel=True))


# Engine objects that live until the interpreter tears modules down would fail noisily then.
atexit.register(build_engines.cache_clear)


@functools.cache
def engine_version() -> str:
    """Version of the engine inside the loaded library, for example "50.0.0".

    The version of the Python package is another one (package 50.0.1 embeds
    engine 50.0.0). Raises EngineVersionUnknownError.
    """
    library = Path(ffi.filename)
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        found = _VERSION_IN_LIBRARY.search(content)
        if found is None:
            raise EngineVersionUnknownError(library)
        return found[1].decode("ascii")
