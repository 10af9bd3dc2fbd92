"""Every group of attacks: importing this fills the catalogue."""

from __future__ import annotations

from typing import Final

from tests.escape import (
    attacks_files,
    attacks_kernel,
    attacks_memory,
    attacks_network,
    attacks_privileges,
    attacks_processes,
    attacks_resources,
    attacks_siblings,
)

GROUPS: Final = (
    attacks_files,
    attacks_processes,
    attacks_siblings,
    attacks_network,
    attacks_memory,
    attacks_resources,
    attacks_privileges,
    attacks_kernel,
)
EXIT_OF_FOREIGN_PROGRAM: Final = attacks_files.EXIT_OF_FOREIGN_PROGRAM
