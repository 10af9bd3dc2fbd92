"""sandboxctl, the command line of sandboxd. See docs/cli.md."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run `sandboxctl`."""
    from sandboxd.cli.app import invoke

    sys.exit(invoke(sys.argv[1:]))
