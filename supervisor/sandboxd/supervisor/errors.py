"""Why the daemon cannot start.

    StartError
    ├── UnknownLayer             a layer that does not exist was required; told as bad usage
    ├── StateDirectoryUnusable   another daemon's, or not a daemon's at all
    ├── UidRangeUnavailable      as root: no range of user ids of its own
    ├── LauncherLost             the process that starts zygotes is gone
    ├── ZygoteFailed             the process that forks runners did not get ready
    ├── EndpointError            an address cannot be listened on
    └── PrivilegeError           as root: root could not be given up

Faults of requests are another tree: faults.py.
"""

from __future__ import annotations


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do."""
