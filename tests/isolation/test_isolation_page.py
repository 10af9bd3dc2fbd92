"""docs/isolation.md says of every layer what the code says."""

from __future__ import annotations

from pathlib import Path

from tests.escape import walls

from sandboxd.runner.isolation import catalogue, layers
from sandboxd.supervisor import isolation

PAGE = Path(__file__).parents[2] / "docs" / "isolation.md"
#: Letters of docs/isolation-matrix.md for what the zygote, the supervisor or a loaded runner takes.
BEYOND_CHILDREN = {
    layers.NAMESPACES: "N",
    layers.EMPTY_ROOT: "N",
    layers.MEMFD_NOEXEC: "N",
    layers.NO_IPC: "N",
    layers.NO_PASSED_DESCRIPTORS: "F",
    layers.MDWE: "M",
    layers.SECCOMP_SEALED: "Z",
}
#: Attacked by tests of their own: no attack of an escaped guest is stopped by them alone.
NO_LETTER = {layers.DAEMON_NON_DUMPABLE, layers.ZYGOTE_CAPABILITIES, layers.PARENT_DEATH}


def letter_of(name: str) -> str:
    found = [letter for letter in walls.SINGLE if name in walls.layers_of(letter)]
    return found[0] if found else BEYOND_CHILDREN.get(name, "")


def expected_rows() -> list[str]:
    rows = []
    for layer in catalogue.LAYERS:
        presets = [
            "yes" if layer.name in isolation.PRESETS[preset] else ""
            for preset in ("default", "strict", "container")
        ]
        if layer.name == layers.UID:
            presets = ["as root"] * 3
        cells = (f"`{layer.name}`", layer.reason, *presets, letter_of(layer.name))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def test_the_table_of_layers_is_that_of_the_code() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert rows == expected_rows()


def test_a_layer_without_a_letter_is_none_of_a_wall() -> None:
    without = {layer.name for layer in catalogue.LAYERS if not letter_of(layer.name)}
    assert without == NO_LETTER


def test_what_container_leaves_out_is_told() -> None:
    told = PAGE.read_text("utf-8").partition("`container` leaves out")[2].partition(".")[0]
    left_out = isolation.PRESETS["strict"] - isolation.PRESETS["container"]
    assert {name for name in isolation.LAYERS if f"`{name}`" in told} == left_out


def test_the_shipped_unit_leaves_the_settings_of_namespaces_writable() -> None:
    unit = PAGE.parents[1] / "systemd" / "sandboxd.service"
    given = [line for line in unit.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert not [line for line in given if line.startswith("ProtectKernelTunables=")]
