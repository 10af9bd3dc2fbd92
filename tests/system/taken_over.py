"""Native code in real runners and compilers: what an escaped guest, or a hostile module, becomes.

Imported by the launcher of a real daemon (see `install`), and by nothing else. A call whose input,
or a module whose last bytes, name an attack of the escape matrix have it made by the child that
serves them: locked down and, in a runner, sealed as ever. All else is served honestly.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any, Final, cast

from tests.system.image import CHECKS

ORDER: Final = b"strike: "
#: An order that is no attack: to use memory that the resource limits allow.
PRIVATE: Final = "use private memory"
PRIVATE_BYTES: Final = 100 << 20
_FILE: Final = Path(sysconfig.get_path("purelib"), "taken_over.pth")
_LAUNCHER: Final = "sandboxd.runner.launcher"


def install() -> None:
    """Have the next daemon's children follow orders."""
    condition = f"import sys; {_LAUNCHER!r} in sys.orig_argv and "
    action = f"(sys.path.append({CHECKS!r}), __import__('tests.system.taken_over'))"
    _FILE.write_text(condition + action + "\n", "utf-8")


def remove() -> None:
    """Leave the daemon as it was installed, from its next start on."""
    _FILE.unlink(missing_ok=True)


def order(attack: str) -> bytes:
    """What the input of a call, or a module, ends with."""
    return ORDER + attack.encode()


def _take_over() -> None:
    from tests.escape import attacks
    from tests.escape.field import CATALOGUE

    from sandboxd.runner import children, compiler
    from sandboxd.runner.guest import Guest

    assert attacks.GROUPS  # fills the catalogue
    honest_call, honest_compilation = Guest.execute, compiler.compile_module

    def obey(text: bytes) -> None:
        _, found, name = text.rpartition(ORDER)
        if name == PRIVATE.encode():
            b"x" * PRIVATE_BYTES
        elif found:
            # The attacks that are ordered look for nothing in their field.
            CATALOGUE[name.decode()].strike(cast(Any, None))

    def execute(self: Guest, job: Any) -> Any:
        obey(job.request.bytes.input)
        return honest_call(self, job)

    def compile_module(engine: Any, wasm: bytes, artifact_fd: int, maximum: int) -> Any:
        obey(wasm)
        return honest_compilation(engine, wasm, artifact_fd, maximum)

    cast(Any, Guest).execute = execute
    cast(Any, children).compile_module = compile_module


if _LAUNCHER in sys.orig_argv:
    _take_over()
