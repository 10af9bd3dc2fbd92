"""A real interpreter as a guest: CPython built for WASI, through sandboxctl.

`make interpreter` fetches it; without it these tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON_WASM = Path(__file__).parents[2] / "build" / "interpreters" / "python.wasm"

pytestmark = pytest.mark.skipif(
    not PYTHON_WASM.exists(), reason="no interpreter: `make interpreter` fetches it"
)


def sandboxctl(
    daemon: Any, *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxd.cli", "--address", str(daemon.socket), *arguments],
        input=stdin,
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def pushed(daemon: Any) -> str:
    result = sandboxctl(daemon, "module", "push", str(PYTHON_WASM), "-o", "json")
    assert result.returncode == 0, result.stderr
    return str(daemon.push(PYTHON_WASM.read_bytes()))


def test_cpython_prints_the_answer(daemon: Any, pushed: str) -> None:
    prefix = pushed.removeprefix("sha256:")[:12]
    for module in (str(PYTHON_WASM), prefix):
        result = sandboxctl(daemon, "run", module, "--", "-c", "print(6*7)")
        assert (result.returncode, result.stdout) == (0, b"42\n"), result.stderr


def test_an_endless_python_loop_ends_at_its_deadline_with_124(daemon: Any, pushed: str) -> None:
    result = sandboxctl(daemon, "run", "--wall", "1s", pushed, "--", "-c", "while True: pass")
    assert result.returncode == 124, result.stderr


def test_python_reads_standard_input_and_its_exit_code_is_kept(daemon: Any, pushed: str) -> None:
    code = "import sys; sys.stderr.write(sys.stdin.read().upper()); sys.exit(3)"
    result = sandboxctl(daemon, "run", pushed, "--", "-c", code, stdin=b"hello")
    assert (result.returncode, result.stderr[:5]) == (3, b"HELLO")
