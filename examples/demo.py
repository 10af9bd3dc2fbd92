"""`make demo`: a private daemon, real guests, one that hangs and one that has to be killed.

Starts a daemon on a socket in a temporary directory, as whoever you are, and stops it again. Every
claim is checked; the exit status is 0 only if all of them held.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from sandboxd.client import (
    BytesCall,
    Client,
    Convention,
    DaemonUnreachable,
    DeadlineExceeded,
    Execution,
    Limits,
    TypedCall,
    WasiCommand,
)

HERE = Path(__file__).resolve().parent
GUESTS = HERE / "guests" / "c"
START_TIMEOUT_S = 30.0


def main() -> None:
    """Run the tour."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-demo-") as directory:
        socket = Path(directory) / "s.sock"
        with daemon(socket, Path(directory) / "state"), Client(str(socket)) as client:
            hash_a_file(client)
            count_words(socket)
            interrupt_a_loop(client)
            kill_a_sleeper(client)
            status(socket)
    say("The daemon stopped clean. Next: README.md, `sandboxctl --help`, docs/abi.md.")


@contextlib.contextmanager
def daemon(socket: Path, state: Path) -> Iterator[None]:
    """Run a daemon until the block ends; it must stop clean."""
    started_at = time.monotonic()
    log = state.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [script("sandboxd"), "--listen", f"unix://{socket}", "--state-dir", str(state)],
            stderr=output,
        )
        try:
            wait_until_up(process, socket, log)
            elapsed_ms = (time.monotonic() - started_at) * 1000
            who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
            say(f"A daemon of our own, as {who}, up in {elapsed_ms:.0f} ms (pid {process.pid})")
            yield
        finally:
            process.terminate()
            code = process.wait(START_TIMEOUT_S)
    check(code == 0, f"the daemon ended with {code}:\n{log.read_text()}")


def wait_until_up(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    """Wait until the daemon answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(DaemonUnreachable), Client(str(socket)) as client:
            client.status(timeout=5.0)
            return
        check(process.poll() is None, f"the daemon did not start:\n{log.read_text()}")
        check(time.monotonic() < deadline, f"the daemon does not answer:\n{log.read_text()}")
        time.sleep(0.05)


def hash_a_file(client: Client) -> None:
    """Hash this very file in a guest and compare with hashlib."""
    data = Path(__file__).read_bytes()
    module = client.push(GUESTS / "sha256.wasm")
    call = BytesCall("sha256", data, Convention.FIXED, 32)
    execution = client.execute(module, call).check()
    digest = execution.output
    say(f"SHA-256 of {Path(__file__).name} ({len(data)} bytes), by a guest that we do not trust:")
    show(digest.hex())
    check(digest == hashlib.sha256(data).digest(), "the guest's digest is not hashlib's")
    show("the same as hashlib's")
    show(receipt(execution))
    warm = client.execute(module, call).check()
    show(receipt(warm) + "   (again: the process is warm, the instance is fresh)")
    show(isolation(warm))


def count_words(socket: Path) -> None:
    """Pipe text through a WASI command, on the command line."""
    text = b"it is a truth\nuniversally acknowledged\n"
    say("A WASI command in a pipe:  printf ... | sandboxctl run word_count.wasm")
    result = subprocess.run(
        [script("sandboxctl"), "--address", str(socket), "run", str(GUESTS / "word_count.wasm")],
        input=text,
        stdout=subprocess.PIPE,
        check=True,
    )
    show(result.stdout.decode().strip())
    check(result.stdout.split() == b"2 6 39".split(), "the counts are wrong")


def interrupt_a_loop(client: Client) -> None:
    """An endless loop meets its deadline and is interrupted inside WebAssembly."""
    say("An endless loop, with 500 ms to live:")
    execution = client.execute(
        GUESTS / "endless_loop.wasm", TypedCall("spin"), limits=Limits(wall_time_ms=500)
    )
    outcome = execution.outcome
    if not isinstance(outcome, DeadlineExceeded):
        fail(f"expected a deadline, got {outcome}")
    stop = outcome.stop
    where = stop.frames[0].function_name if stop.frames else "?"
    show(f"{stop.method.lower()} in function {where!r}, {stop.overshoot_ns / 1e6:.1f} ms late")
    check(stop.method == "INTERRUPTED", "the loop was not interrupted")
    show(receipt(execution))


def kill_a_sleeper(client: Client) -> None:
    """A guest that sleeps inside a host call, where no interrupt reaches it."""
    say("A guest that sleeps for a minute inside a host call, with 500 ms to live:")
    execution = client.execute(
        GUESTS / "sleep.wasm",
        WasiCommand(["sleep", "60"]),
        limits=Limits(wall_time_ms=500),
    )
    outcome = execution.outcome
    if not isinstance(outcome, DeadlineExceeded):
        fail(f"expected a deadline, got {outcome}")
    stop = outcome.stop
    show(f"{stop.method.lower()}, {stop.overshoot_ns / 1e6:.1f} ms late (50 ms of it grace)")
    check(stop.method == "KILLED", "the sleeper was not killed")
    show(f"what it had written comes back: {execution.stdout!r}")
    check(execution.stdout == b"sleeping 60 s\n", "the output before the kill is lost")
    show(receipt(execution))


def status(socket: Path) -> None:
    """What the daemon says about itself."""
    say("sandboxctl status")
    sys.stdout.flush()
    subprocess.run([script("sandboxctl"), "--address", str(socket), "status"], check=True)


def receipt(execution: Execution) -> str:
    """One line of the receipt."""
    it = execution.receipt
    return (
        f"receipt: {it.start_kind.lower()} process, bind {it.bind_time_ns / 1e6:.2f} ms, "
        f"run {it.run_time_ns / 1e6:.2f} ms, CPU {it.cpu_time_ns / 1e6:.2f} ms, "
        f"peak {it.peak_memory_bytes / 2**20:.0f} MiB"
    )


def isolation(execution: Execution) -> str:
    """What the receipt tells of the walls around the guest's process."""
    it = execution.receipt
    check(len(it.isolation_layers) > 0, "the receipt names no layer of isolation")
    some = ", ".join(it.isolation_layers[:3])
    return (
        f"receipt: profile {it.isolation_profile}, {len(it.isolation_layers)} layers of isolation "
        f"held: {some}, ... (all: sandboxctl call --receipt)"
    )


def script(name: str) -> str:
    """A console script of the environment that runs this."""
    return str(Path(sys.executable).parent / name)


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n==> {text}", flush=True)


def show(text: str) -> None:
    """Print a finding."""
    print(f"    {text}", flush=True)


def check(held: bool, otherwise: str) -> None:
    """Fail the demo unless a claim held."""
    if not held:
        fail(otherwise)


def fail(why: str) -> NoReturn:
    """End the demo with a reason."""
    raise SystemExit(f"demo failed: {why}")


if __name__ == "__main__":
    main()
