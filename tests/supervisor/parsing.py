"""Settings as an operator writes them."""

from __future__ import annotations

from typing import Any

import click
from click.testing import CliRunner

from sandboxd.supervisor import settings
from sandboxd.supervisor.settings import Settings


def parse(arguments: list[str], environment: dict[str, str] | None = None) -> Settings:
    """What the daemon would start with."""
    parsed: list[Settings] = []

    @click.command()
    @settings.options
    def command(**given: Any) -> None:
        parsed.append(settings.from_arguments(given))

    result = CliRunner().invoke(command, arguments, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return parsed[0]
