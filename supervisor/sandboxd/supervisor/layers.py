"""What one zygote and its children told of isolation, held against what must hold.

Nothing outlives its zygote: another one, on a host that has changed, may have less. A layer that
nobody told of is not active. What is said here comes from processes that have seen no guest yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from sandboxd.supervisor import isolation, privileges
from sandboxd.supervisor.text import for_people
from sandboxd.v1 import sandbox_pb2
from sandboxd.wire.v1 import control_pb2

MAX_DETAIL_CHARACTERS = 256
_UNTOLD = "no process has told of it"
_UNTOLD_REMEDY = "run the supervisor and the runner of one version"
NO_ZYGOTE = "there is no zygote at the moment; another one is being started"


class Held(NamedTuple):
    """The layers that hold for one child: its own, and its zygote's."""

    names: tuple[str, ...]
    receipt_fields: bytes
    """They, as part of a serialized Receipt."""


NOTHING_HELD = Held((), b"")


class LayerMissing(Exception):  # noqa: N818 - a state of the world
    """Required layers do not hold, or nobody told of them: the process must not serve."""

    def __init__(self, missing: Iterable[control_pb2.IsolationLayer]) -> None:
        super().__init__("; and ".join(_in_words(layer) for layer in missing))


class Layers:
    """The layers of one zygote.

    Raises `LayerMissing`, which names all, if any that is `required` and the zygote's own does not
    hold.
    """

    def __init__(
        self, reported: Iterable[control_pb2.IsolationLayer], required: Collection[str]
    ) -> None:
        self._required = frozenset(required)
        self._known = _by_name(reported, isolation.OF_ZYGOTE | isolation.AFTER_LOADING)
        self._add_own_memory()
        _check(self._known, self._required & (isolation.OF_ZYGOTE | isolation.AFTER_LOADING))
        self._active = tuple(name for name, layer in self._known.items() if layer.active)

    def _add_own_memory(self) -> None:
        """The zygote cannot look into this process, which is the third that the layer is about."""
        layer = self._known.get(isolation.DAEMON_NON_DUMPABLE)
        if layer is not None and layer.active and privileges.is_dumpable():
            layer.active = False
            layer.detail = "the supervisor is dumpable"
            layer.remedy = "needs prctl(PR_SET_DUMPABLE)"

    @property
    def sealing(self) -> frozenset[str]:
        """Layers that every runner applies after loading: the zygote has rehearsed them."""
        return isolation.AFTER_LOADING.intersection(self._active)

    def is_active(self, name: str) -> bool:
        """True if the layer holds in every process that told of it, and one did."""
        return name in self._known and self._known[name].active

    def of_child(self, reported: Iterable[control_pb2.IsolationLayer]) -> Held:
        """Take what a child told and return the layers that hold for it.

        Raises `LayerMissing` if it lacks one that is required.
        """
        own = _by_name(reported, isolation.OF_CHILD)
        for name, layer in own.items():
            known = self._known.get(name)
            # One process where a layer does not hold is enough to say that it does not.
            if known is None or known.active:
                self._known[name] = layer
        _check(own, self._required & isolation.OF_CHILD)
        names = (*self._active, *(name for name, layer in own.items() if layer.active))
        return Held(names, sandbox_pb2.Receipt(isolation_layers=names).SerializeToString())

    def refuted(self, names: Iterable[str]) -> list[str]:
        """Those of the names that no child of this zygote can be expected to have."""
        return [
            name
            for name in names
            if name not in isolation.LAYERS
            or (name in self._known and not self._known[name].active)
        ]

    def rows(self) -> list[control_pb2.IsolationLayer]:
        """Every layer that there is, those that nobody told of at the end."""
        untold = sorted(isolation.LAYERS - self._known.keys())
        return [*self._known.values(), *(absent(name) for name in untold)]


def absent(
    name: str, detail: str = _UNTOLD, remedy: str = _UNTOLD_REMEDY
) -> control_pb2.IsolationLayer:
    """A layer that nobody told of."""
    return control_pb2.IsolationLayer(name=name, active=False, detail=detail, remedy=remedy)


def no_rows() -> list[control_pb2.IsolationLayer]:
    """Every layer while there is no zygote."""
    return [absent(name, NO_ZYGOTE, "") for name in sorted(isolation.LAYERS)]


def _by_name(
    reported: Iterable[control_pb2.IsolationLayer], allowed: frozenset[str]
) -> dict[str, control_pb2.IsolationLayer]:
    return {layer.name: layer for layer in reported if layer.name in allowed}


def _check(reported: dict[str, control_pb2.IsolationLayer], required: frozenset[str]) -> None:
    layers = [reported.get(name) or absent(name) for name in sorted(required)]
    if missing := [layer for layer in layers if not layer.active]:
        raise LayerMissing(missing)


def _in_words(layer: control_pb2.IsolationLayer) -> str:
    detail = for_people(layer.detail, MAX_DETAIL_CHARACTERS)
    remedy = for_people(layer.remedy, MAX_DETAIL_CHARACTERS)
    return f"isolation layer {layer.name}: {detail}; remedy: {remedy}"
