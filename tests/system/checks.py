"""Every group of checks: importing this fills the registry, in the order of the run."""

from __future__ import annotations

from typing import Final

from tests.system import checks_unit  # isort: skip
from tests.system import checks_cgroups  # isort: skip
from tests.system import checks_memory  # isort: skip
from tests.system import checks_life  # isort: skip
from tests.system import checks_matrix  # isort: skip

GROUPS: Final = (checks_unit, checks_cgroups, checks_memory, checks_life, checks_matrix)
