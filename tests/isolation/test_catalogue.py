"""The catalogue: every layer named, explained, and probed without touching who asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.runner.isolation import catalogue, layers, lockdown
from sandboxd.supervisor import isolation

NAMES = [layer.name for layer in catalogue.LAYERS]
_ROOT = Path(__file__).parents[2]


def test_the_supervisor_knows_the_same_layers() -> None:
    assert frozenset(NAMES) == isolation.LAYERS
    assert len(NAMES) == len(set(NAMES))


def test_the_supervisor_knows_who_tells_of_which_layer() -> None:
    tellers = {
        "zygote": isolation.OF_ZYGOTE,
        "child": isolation.OF_CHILD,
        "loaded runner": isolation.AFTER_LOADING,
    }
    for layer in catalogue.LAYERS:
        # What the supervisor takes itself, the zygote has tried.
        teller = "zygote" if layer.taker == "supervisor" else layer.taker
        assert [one for one, names in tellers.items() if layer.name in names] == [teller]


def test_what_a_child_requires_by_default_is_what_the_default_preset_requires() -> None:
    required = layers.REQUIRED_DEFAULT | layers.SEAL_REQUIRED_DEFAULT
    assert required | {layers.DAEMON_NON_DUMPABLE} == isolation.PRESETS["default"]


def test_presets_grow_from_container_to_strict() -> None:
    presets = isolation.PRESETS
    assert presets["container"] < presets["default"] < presets["strict"] < isolation.LAYERS


@pytest.mark.parametrize(
    ("options", "added"),
    [
        (("require", "auto"), {"namespaces", "empty-root"}),
        (("auto", "require"), {"cgroup"}),
        (("off", "off"), set()),
    ],
)
def test_an_option_that_requires_adds_its_layers(options: tuple[str, str], added: set[str]) -> None:
    required = isolation.required_layers("container", (), *options)
    assert frozenset(required) == isolation.PRESETS["container"] | added


def test_a_daemon_of_root_requires_a_user_id_of_its_own_for_each_runner() -> None:
    for preset, names in isolation.PRESETS.items():
        assert "uid" not in names
        assert "uid" in isolation.required_layers(preset, (), "off", "off", as_root=True)
        assert "uid" not in isolation.required_layers(preset, (), "off", "off")


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_a_reason_and_a_remedy(name: str) -> None:
    layer = next(layer for layer in catalogue.LAYERS if layer.name == name)
    assert layer.reason
    assert layer.remedy


def test_the_catalogue_is_in_the_order_in_which_layers_are_taken() -> None:
    takers = [layer.taker for layer in catalogue.LAYERS]
    assert takers == sorted(takers, key=["supervisor", "zygote", "child", "loaded runner"].index)
    assert [layer.name for layer in catalogue.LAYERS if layer.taker == "child"] == [
        *dict.fromkeys(step.layer for step in lockdown.STEPS)
    ]


_PROBE = """
import json, os, resource
from pathlib import Path
from sandboxd.runner.isolation import catalogue, libffi
def me():
    status = Path("/proc/self/status").read_text().splitlines()
    kept = [l for l in status if l.split(":")[0] in KEYS.split()]
    spaces = {n: os.readlink(f"/proc/self/ns/{n}") for n in os.listdir("/proc/self/ns")}
    limits = [resource.getrlimit(n) for n in range(resource.RLIM_NLIMITS)]
    return kept, spaces, limits, os.listdir("/"), sorted(os.listdir("/proc/self/fd")), os.getsid(0)
KEYS = "Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters"
libffi.find_writable_code()
before = me()
states = [layer.probe() for layer in catalogue.LAYERS]
print(json.dumps([before == me(), [[s.name, s.active, s.detail] for s in states]]))
"""


def test_probing_changes_nothing_for_the_caller_and_answers_for_every_layer() -> None:
    program = _PROBE.replace("range(resource.RLIM_NLIMITS)", "range(16)")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    untouched, states = json.loads(ran.stdout)
    assert untouched
    assert [name for name, _, _ in states] == NAMES
    assert all(detail for _, _, detail in states)
    inactive = {name for name, active, _ in states if not active}
    # What the tests of the other modules find active here, the probes must, too.
    assert not inactive & {"session", "descriptors", "rlimits", "non-dumpable", "seccomp"}
    assert ("uid" in inactive) == (os.geteuid() != 0)


def test_a_probe_that_dies_is_an_inactive_layer() -> None:
    def die(_policy: object) -> layers.LayerState:
        os._exit(9)

    state = catalogue.Layer("mdwe", "loaded runner", die).probe()
    assert not state.active
    assert "9" in state.detail


def test_anyone_can_ask_what_the_host_can_do() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sandboxd.runner.isolation"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=_ROOT,
    )
    for name in NAMES:
        assert f"\n{name} " in "\n" + ran.stdout
