"""Runs a WASI command: `wasi_host.py MODULE [ARGUMENT...]`, with this process's standard streams.

`wasi_host.py --batch MODULE` runs it once per input: a JSON list of base64 inputs on standard
input, a JSON list of base64 outputs on standard output.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path

import wasmtime


def run(engine: wasmtime.Engine, module: wasmtime.Module, wasi: wasmtime.WasiConfig) -> int:
    """Calls `_start` in a fresh instance; returns the exit code."""
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    start = linker.instantiate(store, module).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    try:
        start(store)
    except wasmtime.ExitTrap as ended:
        return int(ended.code)
    return 0


def run_batch(engine: wasmtime.Engine, module: wasmtime.Module, inputs: list[str]) -> list[str]:
    """Runs the command once per input; returns the outputs. All exit codes must be 0."""
    outputs = []
    with tempfile.TemporaryDirectory() as scratch:
        stdin, stdout = Path(scratch, "stdin"), Path(scratch, "stdout")
        for data in inputs:
            stdin.write_bytes(base64.b64decode(data))
            wasi = wasmtime.WasiConfig()
            wasi.stdin_file = str(stdin)
            wasi.stdout_file = str(stdout)
            assert run(engine, module, wasi) == 0
            outputs.append(base64.b64encode(stdout.read_bytes()).decode())
    return outputs


def main(arguments: list[str]) -> int:
    """Returns the guest's exit code."""
    batch = arguments[0] == "--batch"
    path = Path(arguments[1 if batch else 0])
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, path.read_bytes())
    if batch:
        json.dump(run_batch(engine, module, json.load(sys.stdin)), sys.stdout)
        return 0
    wasi = wasmtime.WasiConfig()
    wasi.argv = [path.stem, *arguments[1:]]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    return run(engine, module, wasi)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
