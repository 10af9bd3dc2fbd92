"""The real console script in a subprocess, against a fake daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.client.fake_daemon import WASM, FakeDaemon, in_thread

SCRIPT = Path(sys.executable).with_name("sandboxctl")


@dataclass
class Done:
    """What a shell would see."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Sandboxctl:
    """Runs `sandboxctl` with an environment of its own."""

    address: str
    directory: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *args: str | bytes | Path, stdin: bytes = b"") -> Done:
        done = subprocess.run(
            [SCRIPT, *args],
            input=stdin,
            capture_output=True,
            env=self.environment(),
            cwd=self.directory,
            timeout=60,
            check=False,
        )
        return self._done(done)

    def without_stdin(self, *args: str | Path) -> Done:
        """Run it as a shell does with `<&-`."""
        closed = ["sh", "-c", 'exec "$@" <&-', "sh", SCRIPT, *args]
        done = subprocess.run(
            closed,
            capture_output=True,
            env=self.environment(),
            cwd=self.directory,
            timeout=60,
            check=False,
        )
        return self._done(done)

    def _done(self, done: subprocess.CompletedProcess[bytes]) -> Done:
        err = done.stderr.decode()
        assert "Traceback" not in err
        return Done(done.returncode, done.stdout, err)

    def start(self, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [SCRIPT, *args], env=self.environment(), cwd=self.directory, **options
        )

    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SANDBOXD_")}
        strict = {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "", "COLUMNS": "80"}
        return inherited | strict | {"SANDBOXD_ADDRESS": self.address} | self.env


@pytest.fixture
def socket() -> Iterator[Path]:
    # Not tmp_path: a socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="sandboxd-") as directory:
        yield Path(directory) / "sock"


@pytest.fixture
def daemon(socket: Path) -> Iterator[FakeDaemon]:
    with in_thread(FakeDaemon(socket)) as fake:
        yield fake


@pytest.fixture
def ctl(socket: Path, tmp_path: Path) -> Sandboxctl:
    """Run it in a directory that holds `guest.wasm`."""
    (tmp_path / "guest.wasm").write_bytes(WASM)
    return Sandboxctl(f"unix://{socket}", tmp_path)
