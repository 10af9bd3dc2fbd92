"""What one zygote and its children told, and what must hold."""

from __future__ import annotations

import pytest

from sandboxd.supervisor import isolation
from sandboxd.supervisor.layers import LayerMissing, Layers
from sandboxd.v1 import sandbox_pb2
from sandboxd.wire.v1 import control_pb2


def told(**active: bool) -> list[control_pb2.IsolationLayer]:
    return [
        control_pb2.IsolationLayer(
            name=name.replace("_", "-"),
            active=is_active,
            detail="" if is_active else "as it\x1bis",
            remedy="do something",
        )
        for name, is_active in active.items()
    ]


@pytest.mark.parametrize("name", sorted(isolation.OF_ZYGOTE | isolation.AFTER_LOADING))
def test_a_layer_that_no_zygote_tells_of_is_not_active(name: str) -> None:
    Layers(told(), ())
    with pytest.raises(
        LayerMissing, match=f"isolation layer {name}: no process has told of it; re"
    ):
        Layers(told(), (name,))


@pytest.mark.parametrize("name", sorted(isolation.OF_CHILD))
def test_a_layer_that_no_child_tells_of_is_not_active(name: str) -> None:
    layers = Layers(told(), (name,))
    with pytest.raises(LayerMissing, match=f"isolation layer {name}: "):
        layers.of_child(told())
    # Nor can the zygote speak for its children.
    layers = Layers([control_pb2.IsolationLayer(name=name, active=True)], (name,))
    with pytest.raises(LayerMissing):
        layers.of_child(told())


def test_the_error_names_layer_cause_and_remedy() -> None:
    with pytest.raises(LayerMissing) as caught:
        Layers(told(namespaces=False), ("namespaces",))
    assert str(caught.value) == ("isolation layer namespaces: as it\ufffdis; remedy: do something")


def test_the_error_names_every_layer_that_is_missing() -> None:
    with pytest.raises(LayerMissing) as caught:
        Layers(told(namespaces=False, mdwe=True), ("namespaces", "mdwe", "empty-root", "session"))
    assert str(caught.value) == (
        "isolation layer empty-root: no process has told of it; "
        "remedy: run the supervisor and the runner of one version; and "
        "isolation layer namespaces: as it\ufffdis; remedy: do something"
    )


def test_a_child_has_its_own_layers_and_its_zygotes() -> None:
    layers = Layers(told(namespaces=True, empty_root=False, mdwe=True), ())
    one = layers.of_child(told(session=True, landlock=True))
    other = layers.of_child(told(session=True, landlock=False, namespaces=True, unheard_of=True))
    assert one.names == ("namespaces", "mdwe", "session", "landlock")
    assert list(sandbox_pb2.Receipt.FromString(one.receipt_fields).isolation_layers) == [*one.names]
    assert other.names == ("namespaces", "mdwe", "session")
    rows = {row.name: row.active for row in layers.rows()}
    assert rows.keys() == isolation.LAYERS
    # One process where it does not hold is enough to say so, whatever others tell later.
    layers.of_child(told(session=True, landlock=True))
    assert {name for name, holds in rows.items() if holds} == {"namespaces", "mdwe", "session"}
    assert not layers.is_active("landlock")


def test_only_what_is_known_not_to_hold_is_refuted() -> None:
    layers = Layers(told(namespaces=True, empty_root=False), ())
    asked = ("namespaces", "empty-root", "session", "no-such-layer")
    assert layers.refuted(asked) == ["empty-root", "no-such-layer"]
