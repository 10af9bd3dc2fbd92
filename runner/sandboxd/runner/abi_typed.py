"""Typed calls: numbers in, numbers out. See docs/abi.md."""

from collections.abc import Callable, Sequence
from typing import Any

from wasmtime import _ffi as ffi

from sandboxd.runner.instance import KINDS, Instance
from sandboxd.runner.outcomes import clip, rejected
from sandboxd.runner.signatures import Exports, FunctionType
from sandboxd.v1 import call_pb2


def typed_call(
    exports: Exports, request: call_pb2.TypedCall, start: Callable[[], Instance]
) -> list[call_pb2.Value]:
    """Check a typed call, then start an instance and make it.

    Returns the results; raises Stop for every other outcome.
    """
    type_ = exports.function(request.export)
    if type_ is None:
        raise rejected("typed.export", f"no function {clip(request.export, 256)!r} is exported")
    if not type_.only_numbers:
        raise rejected("typed.export", f"a function of type {type_} cannot be called")
    arguments = _arguments(type_, request.args)
    instance = start()
    instance.initialize(exports, request.export)
    values = instance.invoke(request.export, arguments, len(type_.results))
    return _results(type_, values)


def _arguments(type_: FunctionType, args: Sequence[call_pb2.Value]) -> Any:
    if len(args) != len(type_.params):
        raise rejected(
            "typed.args", f"{len(args)} given, but the export takes {len(type_.params)}: {type_}"
        )
    values: Any = (ffi.wasmtime_val_t * len(args))()
    for i, (arg, param) in enumerate(zip(args, type_.params, strict=True)):
        kind, field = KINDS[param]
        given = arg.WhichOneof("kind")
        if given != field:
            raise rejected(f"typed.args[{i}]", f"an {field} is needed, not {given or 'nothing'}")
        values[i].kind = kind
        setattr(values[i].of, field, getattr(arg, field))
    return values


def _results(type_: FunctionType, values: Any) -> list[call_pb2.Value]:
    results = []
    for value, result in zip(values, type_.results, strict=True):
        _, field = KINDS[result]
        results.append(call_pb2.Value(**{field: getattr(value.of, field)}))
    return results
