"""sandboxd: theory of operation.

Processes. This one is the supervisor: one asyncio loop, grpc.aio, no guest code, ever. Before gRPC
starts it execs the launcher (sandboxd.runner.launcher), which forks a zygote on command. The zygote
preloads the engine, enters namespaces and an empty root, and forks runners and compilers on
command. The supervisor is not their parent.

Channels. A SOCK_SEQPACKET pair to the zygote (packets with descriptors); one SOCK_STREAM pair per
child (frames); one interrupt pipe per runner; one outbox (shared memory) per runner. Module bytes
and artifacts travel as memory files. Everything that a child sends is hostile.

Privileges. Started as root, the supervisor becomes an ordinary user before it serves
(privileges.py); only launcher and zygote stay root, and each child gets a user id of its own.
Started as an ordinary user, all live in one user namespace. Children drop everything before they
see a tenant's byte.

Clock. Only the supervisor decides that time is up (watchdog.py): it interrupts through the pipe
and, after the grace, kills through the pidfd.

Who reaps. Only the zygote can. It reports each exit; the pidfd tells the supervisor that a process
is gone even when the zygote cannot. When the zygote dies, the kernel kills its PID namespace, and
the supervisor has another one started. When the supervisor dies, launcher and zygote do
(parent-death signals, EOF).

Signals. SIGTERM and SIGINT set an event; the loop acts: drain, then kill what is left. A second one
ends the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from sandboxd.supervisor import logs, settings, usage
from sandboxd.supervisor.errors import StartError

log = logging.getLogger(__name__)

EXIT_START_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sandboxd", message="sandboxd %(version)s")
@click.option(
    "--check",
    is_flag=True,
    help="Serve nothing: say whether a daemon with these settings would start here, with all "
    "layers of isolation that it requires, and exit.",
)
@settings.options
def main(check: bool, **arguments: Any) -> None:
    """Run untrusted WebAssembly for other programs, over gRPC.

    Serves until SIGTERM or SIGINT, then drains. Talk to it with sandboxctl, for example
    `sandboxctl status`. As root it serves /run/sandboxd/sandboxd.sock; as an ordinary user
    a socket below XDG_RUNTIME_DIR.

    Exit status: 0 stopped as asked, or with --check it would start; 1 could not start, or with
    --check would not (standard error says why, or standard output); 2 bad usage;
    130 interrupted before there was an answer, or a daemon.
    """
    chosen = settings.from_arguments(arguments)
    usage.check(chosen)
    logs.configure(chosen.log_level)
    try:
        status = asyncio.run(_check(chosen) if check else _run(chosen))
    except KeyboardInterrupt:
        click.echo("sandboxd: interrupted", err=True)
        status = EXIT_INTERRUPTED
    sys.exit(status)


async def _check(chosen: settings.Settings) -> int:
    with _complete():
        from sandboxd.supervisor.check import Check
    return 0 if await Check(chosen, click.echo).run() else EXIT_START_FAILED


async def _run(chosen: settings.Settings) -> int:
    with _complete():
        from sandboxd.supervisor.daemon import Daemon
    try:
        daemon = Daemon(chosen)
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, daemon.request_stop)
        await daemon.run()
    except StartError as error:
        click.echo(f"sandboxd: {error}", err=True)
        return EXIT_START_FAILED
    # The loop takes its handlers with it. Who asks once more now would kill what has just stopped.
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    log.info("stopped")
    return 0


@contextlib.contextmanager
def _complete() -> Iterator[None]:
    """Import late: --help and bad usage should not wait for gRPC. Say so if it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        click.echo(
            f"sandboxd: {error.name} is missing: the daemon needs more than the client; install "
            "sandboxd with its extra [server]",
            err=True,
        )
        sys.exit(EXIT_START_FAILED)


if __name__ == "__main__":
    main()
