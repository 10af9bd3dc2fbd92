"""A new process for one call: start Python, import wasmtime, load, instantiate, call, end.

    python -I one_call.py ARTIFACT EXPORT < input > output

The module is compiled already, which is to this baseline's advantage. It is a script of its own
and imports nothing of ours.
"""

from __future__ import annotations

import sys

import wasmtime


def main() -> None:
    """Make the call."""
    artifact, export = sys.argv[1:]
    data = sys.stdin.buffer.read()
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    instance = wasmtime.Instance(store, wasmtime.Module.deserialize_file(engine, artifact), [])
    exports = instance.exports(store)
    memory = exports["memory"]
    alloc, function = exports["alloc"], exports[export]
    assert isinstance(memory, wasmtime.Memory)
    assert isinstance(alloc, wasmtime.Func)
    assert isinstance(function, wasmtime.Func)
    pointer = alloc(store, len(data))
    memory.write(store, data, pointer)
    packed = function(store, pointer, len(data))
    start, length = (packed >> 32) & 0xFFFFFFFF, packed & 0xFFFFFFFF
    sys.stdout.buffer.write(memory.read(store, start, start + length))


if __name__ == "__main__":
    main()
