"""Makes `python -m sandboxd.cli` the same as `sandboxctl`."""

from sandboxd.cli import main

main()
