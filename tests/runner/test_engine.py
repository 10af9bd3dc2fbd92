import ctypes
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import wasmtime
from tests.runner.conftest import Bind, compile_wasm, numbers
from wasmtime import _ffi as ffi

from sandboxd.runner import engine as engine_module
from sandboxd.runner.engine import Engines, build_engines, engine_version
from sandboxd.runner.guest import ArtifactError, Guest
from sandboxd.runner.outbox import Outbox


def test_the_version_is_that_of_the_library() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", engine_version())
    assert engine_version().split(".")[0] == version("wasmtime").split(".")[0]


def test_a_library_without_a_version_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(b"version: 1.2\n\nThis is a bug in Wasmtime")
    monkeypatch.setattr(ffi, "filename", library)
    engine_version.cache_clear()
    with pytest.raises(engine_module.EngineVersionUnknownError, match=r"library\.so"):
        engine_version()
    monkeypatch.undo()
    engine_version.cache_clear()


def test_engines_are_built_once() -> None:
    assert build_engines() is build_engines()


def test_preloading_starts_no_thread_and_works_with_no_argument() -> None:
    script = (
        "import os; from sandboxd.runner.preload import preload; preload(); preload(); "
        "print(len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_cut_artifact_is_refused(engines: Engines, size: int) -> None:
    artifact = compile_wasm(engines.plain, bytes(wasmtime.wat2wasm("(module)")))
    with pytest.raises(ArtifactError):
        load(engines.plain, artifact[:size])


def test_an_artifact_of_the_other_engine_is_refused(engines: Engines) -> None:
    wasm = bytes(wasmtime.wat2wasm('(module (func (export "f")))'))
    with pytest.raises(ArtifactError, match="fuel"):
        load(engines.fuel, compile_wasm(engines.plain, wasm))
    with pytest.raises(ArtifactError, match="fuel"):
        load(engines.plain, compile_wasm(engines.fuel, wasm))


def test_an_artifact_may_be_given_by_its_address(engines: Engines, bind: Bind) -> None:
    wasm = bytes(wasmtime.wat2wasm("(module)"))
    artifact = compile_wasm(engines.plain, wasm)
    buffer = ctypes.create_string_buffer(artifact, len(artifact))
    bound = bind('(module (func (export "f") (result i32) (i32.const 1)))')
    Guest(engines.plain, (ctypes.addressof(buffer), len(artifact)), False, bound.outbox)
    assert numbers(bound.typed("f")) == [1]


def load(engine: wasmtime.Engine, artifact: bytes) -> None:
    # Nothing is written to it: the artifact is refused first.
    Guest(engine, artifact, False, Outbox.__new__(Outbox))
