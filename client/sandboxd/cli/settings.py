"""What the global options say, and the options that every command repeats."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # Not generic at runtime in older releases of click.
    _FloatParameter = click.ParamType[float]
    _IntParameter = click.ParamType[int]
else:
    _FloatParameter = _IntParameter = click.ParamType

# The largest number that the API carries (uint64).
UINT64_MAX = (1 << 64) - 1

EXIT_FAULT = 1
EXIT_USAGE = 2
# As in `docker run` and timeout(1): not the guest but sandboxd, or the way it was called.
EXIT_SANDBOXD = 125
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@dataclass(slots=True)
class Settings:
    """Global options; an option after the subcommand overrides the same option before it."""

    address: str | None = None
    output: str = "table"
    timeout: float | None = None
    """Seconds; None leaves it to each command."""
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_name: str | None = None
    json_lines: bool = False
    """Whether documents for programs are many, and each is one line."""
    fault_code: int = EXIT_FAULT
    """Exit code if sandboxd itself fails."""
    usage_code: int = EXIT_USAGE
    """Exit code if the command line is wrong."""

    @property
    def json(self) -> bool:
        """Whether the output is for programs."""
        return self.output == "json"


def settings_of(ctx: click.Context) -> Settings:
    """Find the settings from anywhere in the command tree."""
    settings = ctx.find_root().obj
    assert isinstance(settings, Settings)
    return settings


class Duration(_FloatParameter):
    """`500ms`, `5s`, `2m`, `1h`, or bare seconds; converts to float seconds, above 0."""

    name = "duration"
    _UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF012

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse one value."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|)", value)
        if not match:
            self.fail(f"{value!r} is not a duration: write 500ms, 5s, 2m or 1h", param, ctx)
        seconds = float(match[1]) * self._UNITS[match[2]]
        if not 0.001 <= seconds <= UINT64_MAX // 1000:
            self.fail(f"{value!r} is out of range: at least 1ms is needed", param, ctx)
        return seconds


class Size(_IntParameter):
    """`65536`, `64KiB`, `64MiB`, `1GiB` (K, M, G alone are binary too); converts to bytes."""

    name = "size"
    _UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse one value."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)(?:([KMG])(?:iB)?|B|)", value)
        if not match:
            self.fail(f"{value!r} is not a size: write 65536, 64KiB, 64MiB or 1GiB", param, ctx)
        size = int(match[1]) * self._UNITS[match[2] or ""]
        if size > UINT64_MAX:
            self.fail(f"{value!r} is out of range", param, ctx)
        return size


DURATION = Duration()
SIZE = Size()

_F = TypeVar("_F", bound=Callable[..., Any])


def _store(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None:
        assert param.name is not None
        setattr(settings_of(ctx), param.name, value)


def global_options(command: _F) -> _F:
    """Add --address, --output and --timeout; they land in `Settings`."""
    for option in (
        click.option(
            "--timeout",
            type=DURATION,
            help="Give up after this long, for example 10s.",
            expose_value=False,
            callback=_store,
        ),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "json"]),
            help="For people, or for programs.  [default: table]",
            expose_value=False,
            callback=_store,
        ),
        click.option(
            "-a",
            "--address",
            metavar="ADDRESS",
            help="Where the daemon is: unix:///path, /path, host:port.  "
            "[default: $SANDBOXD_ADDRESS, else unix:///run/sandboxd/sandboxd.sock]",
            expose_value=False,
            callback=_store,
        ),
    ):
        command = option(command)
    return command


def tls_options(command: _F) -> _F:
    """Add the options for TLS over TCP; they land in `Settings`."""
    for name, what in (
        ("name", "Name to expect in the daemon's certificate."),
        ("key", "Private key for mutual TLS (PEM)."),
        ("cert", "Client certificate for mutual TLS (PEM)."),
        ("ca", "Trust the daemon's certificate by these (PEM); turns TLS on."),
    ):
        command = click.option(
            f"--tls-{name}",
            envvar=f"SANDBOXD_TLS_{name.upper()}",
            show_envvar=True,
            type=str if name == "name" else click.Path(path_type=Path),
            metavar="NAME" if name == "name" else "FILE",
            help=what,
            expose_value=False,
            callback=_store,
        )(command)
    return command


class GuestCommand(click.Command):
    """A command that runs a guest: what is not the guest's doing exits with 125."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the exit codes before anything can be wrong with the arguments."""
        settings = settings_of(ctx)
        settings.fault_code = settings.usage_code = EXIT_SANDBOXD
        return super().parse_args(ctx, args)


def utf8(text: str, what: str) -> str:
    """Return `text` if the API can carry it, else raise a usage error."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{what} is not valid UTF-8") from None
    return text
