"""The JSON that `-o json` writes: a contract, described in docs/cli.md."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from datetime import datetime
from typing import Any

import click

from sandboxd.client import Execution, Fault, Module, Value
from sandboxd.client.outcomes import Outcome


def write(document: dict[str, Any]) -> None:
    """Write one document to standard output.

    Only printable ASCII leaves: a guest's strings cannot act on a terminal even here.
    """
    _write(json.dumps(document, indent=2, allow_nan=False))


def write_line(document: dict[str, Any]) -> None:
    """Write one of many documents, in a line of its own; see `write`."""
    _write(json.dumps(document, allow_nan=False))


def _write(text: str) -> None:
    click.echo(text.replace("\x7f", "\\u007f"))


def plain(thing: Any) -> Any:
    """Reduce a client object to what JSON knows; keys are the field names."""
    document: Any = thing
    match thing:
        case Value():
            document = {"type": thing.type.value, "value": plain(thing.number)}
        case bytes():
            document = _bytes(thing)
        case float() if not math.isfinite(thing):
            document = "NaN" if math.isnan(thing) else "Infinity" if thing > 0 else "-Infinity"
        case datetime():
            document = thing.isoformat().replace("+00:00", "Z")
        case tuple() | list():
            document = [plain(item) for item in thing]
        case _ if dataclasses.is_dataclass(thing):
            document = {f.name: plain(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    return document


def _bytes(data: bytes) -> dict[str, str | None]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    return {"base64": base64.b64encode(data).decode(), "utf8": text}


def execution(answer: Execution, exit_code: int) -> dict[str, Any]:
    """Describe an execution."""
    return {
        "outcome": outcome(answer.outcome),
        "exit_code": exit_code,
        "stdout": plain(answer.stdout),
        "stderr": plain(answer.stderr),
        "logs": [
            {"message": plain(entry)} if isinstance(entry, bytes) else {"number": plain(entry)}
            for entry in answer.logs
        ],
        "receipt": plain(answer.receipt),
    }


def outcome(what: Outcome) -> dict[str, Any]:
    """Describe an outcome: its name, then its fields."""
    return {"name": what.name, **plain(what)}


def module(what: Module, *, interface: bool = True) -> dict[str, Any]:
    """Describe a module; a list has no imports and exports to tell."""
    document: dict[str, Any] = plain(what)
    if not interface:
        del document["imports"], document["exports"]
    return document


def error(what: BaseException) -> dict[str, Any]:
    """Describe a failure that is not a guest's."""
    document: dict[str, Any] = {
        "message": what.message if isinstance(what, Fault) else str(what),
        "code": None,
        "reason": None,
        "metadata": {},
        "field_violations": [],
        "retry_after": None,
    }
    if isinstance(what, click.ClickException):
        document["message"] = what.format_message()
    if isinstance(what, Fault):
        document |= {
            "code": what.code,
            "reason": what.reason,
            "metadata": dict(what.metadata),
            "field_violations": plain(what.field_violations),
            "retry_after": what.retry_after,
        }
    return document
