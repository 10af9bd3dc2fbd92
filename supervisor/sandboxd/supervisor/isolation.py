"""Which layers of isolation must hold: presets, and what an operator adds.

The layers themselves live in the runner; here they are names. A required layer that cannot be
applied, or does not verify, stops the start.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from sandboxd.supervisor.errors import StartError

DAEMON_NON_DUMPABLE = "daemon-non-dumpable"
# What holds on every host that is supported; the first of the daemon's own processes, the others of
# every child.
_WALL = frozenset(
    {
        DAEMON_NON_DUMPABLE,
        "descriptors",
        "session",
        "rlimits",
        "capabilities",
        "no-new-privs",
        "non-dumpable",
        "libffi-page",
        "parent-death",
        "seccomp",
        "seccomp-sealed",
    }
)
# What the zygote enters, and what it gives up, once for all children.
_NAMESPACES = frozenset({"namespaces", "empty-root", "zygote-capabilities"})
PRESETS: dict[str, frozenset[str]] = {
    # Everything that does not depend on the administrator of the host.
    "default": _WALL | {"landlock"},
    # Everything that a host of today has for root and for an ordinary user alike.
    "strict": _WALL | {"landlock", "mdwe", *_NAMESPACES},
    # Inside a container that allows neither namespaces nor Landlock and is itself the outer wall.
    "container": _WALL,
}
# Beyond any preset: only root has the first two, and the first always is required of root; the
# third must be delegated to the daemon, and the others need a kernel of today.
LAYERS = PRESETS["strict"] | {"uid", "memfd-noexec", "cgroup", "no-ipc", "no-passed-descriptors"}

# Who tells of a layer: the zygote, of what it did once for all children; each child, of itself.
# What a runner applies after it has loaded its module, the zygote has rehearsed, and it confirms.
AFTER_LOADING = frozenset({"mdwe", "seccomp-sealed"})
OF_ZYGOTE = _NAMESPACES | {
    "memfd-noexec",
    "no-ipc",
    "no-passed-descriptors",
    DAEMON_NON_DUMPABLE,
}
OF_CHILD = LAYERS - OF_ZYGOTE - AFTER_LOADING


class UnknownLayer(StartError):  # noqa: N818 - a state of the world
    """A layer that does not exist was required."""


def check_names(names: Iterable[str]) -> None:
    """Raise `UnknownLayer`, which names the likeliest and all others, if one is no layer's."""
    for name in names:
        if name not in LAYERS:
            near = difflib.get_close_matches(name, LAYERS, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UnknownLayer(f"no layer {name!r}{hint} There are {', '.join(sorted(LAYERS))}")


def required_layers(
    preset: str, added: Collection[str], namespaces: str, cgroups: str, as_root: bool = False
) -> tuple[str, ...]:
    """Return the names of the layers that must hold, sorted. Raises `UnknownLayer`."""
    check_names(added)
    required = PRESETS[preset] | set(added)
    if namespaces == "require":
        required |= {"namespaces", "empty-root"}
    if cgroups == "require":
        required |= {"cgroup"}
    if as_root:
        required |= {"uid"}  # a runner of an ordinary user has that user's id, a root's its own
    return tuple(sorted(required))
