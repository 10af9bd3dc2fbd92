"""Settings: one definition yields the flag, the environment variable and the help."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tests.supervisor.parsing import parse

from sandboxd.supervisor import isolation, usage
from sandboxd.supervisor.main import main
from sandboxd.supervisor.settings import DURATION, SIZE, Settings

FIELDS = dataclasses.fields(Settings)
# A value for every kind of setting that is no setting's default, as an operator would write it.
WRITTEN = {
    "size": ("3MiB", 3 * 1024 * 1024),
    "duration": ("1.5s", 1500),
    "integer range": ("17", 17),
}
SPECIAL = {
    "isolation": ("strict", "strict"),
    "require_layer": ("landlock", ("landlock",)),
    "cgroups": ("off", "off"),
    "listen": ("unix:///x/y", ("unix:///x/y",)),
    "state_dir": ("/x/z", Path("/x/z")),
    "namespaces": ("off", "off"),
    "log_level": ("error", "error"),
}


def example(field: dataclasses.Field[Any]) -> tuple[str, Any]:
    if field.name in SPECIAL:
        return SPECIAL[field.name]
    kind = field.metadata["type"]
    return WRITTEN[kind.name] if kind is not None else ("some-text", "some-text")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_flag_and_environment_variable_mean_the_same(field: dataclasses.Field[Any]) -> None:
    flag = "--" + field.name.replace("_", "-")
    variable = "SANDBOXD_" + field.name.upper()
    if field.name == "insecure_tcp":
        assert parse([flag]).insecure_tcp is parse([], {variable: "1"}).insecure_tcp is True
        return
    written, wanted = example(field)
    changed = parse([flag, written])
    assert getattr(changed, field.name) == wanted
    assert changed == parse([], {variable: written})
    assert changed == dataclasses.replace(parse([]), **{field.name: wanted})


def test_a_flag_goes_before_the_environment() -> None:
    assert parse(["--max-runners", "3"], {"SANDBOXD_MAX_RUNNERS": "4"}).max_runners == 3


def test_several_addresses_can_be_given_both_ways() -> None:
    wanted = ("unix:///a", "tcp://127.0.0.1:0")
    assert parse(["--listen", wanted[0], "--listen", wanted[1]]).listen == wanted
    assert parse([], {"SANDBOXD_LISTEN": " ".join(wanted)}).listen == wanted


def test_several_layers_can_be_required_both_ways() -> None:
    wanted = ("uid", "no-ipc")
    assert parse(["--require-layer", wanted[0], "--require-layer", wanted[1]]).require_layer == (
        wanted
    )
    assert parse([], {"SANDBOXD_REQUIRE_LAYER": " ".join(wanted)}).require_layer == wanted


def test_help_lists_every_setting_with_variable_and_default() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    for field in FIELDS:
        assert "--" + field.name.replace("_", "-") in output
        assert "SANDBOXD_" + field.name.upper() in output
        assert field.metadata["help"].split()[0] in output
    assert "default: 512MiB" in output


def test_defaults_are_in_bytes_and_milliseconds() -> None:
    default = parse([])
    assert default.max_memory == 512 * 1024 * 1024
    assert default.grace == 50
    assert default.runner_max_age == 3_600_000


SIZES = {"": 1, "B": 1, "KiB": 2**10, "kib": 2**10, "MiB": 2**20, "GIB": 2**30}
DURATIONS = {"": 1000, "ms": 1, "MS": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


@given(st.integers(1, 2**40), st.sampled_from(sorted(SIZES)), st.sampled_from(["", " "]))
def test_sizes_take_a_suffix(number: int, unit: str, space: str) -> None:
    text, wanted = f"{number}{space}{unit}", number * SIZES[unit]
    if wanted > 2**40:
        with pytest.raises(click.BadParameter, match="at most 1024GiB"):
            SIZE.convert(text, None, None)
    else:
        assert SIZE.convert(text, None, None) == wanted


@given(st.integers(1, 2**31), st.sampled_from(sorted(DURATIONS)))
def test_durations_take_a_suffix(number: int, unit: str) -> None:
    wanted = number * DURATIONS[unit]
    if wanted > 8760 * 3_600_000:
        with pytest.raises(click.BadParameter, match="at most 8760h"):
            DURATION.convert(f"{number}{unit}", None, None)
    else:
        assert DURATION.convert(f"{number}{unit}", None, None) == wanted


def test_fractions_are_understood() -> None:
    assert SIZE.convert("1.5KiB", None, None) == 1536
    assert DURATION.convert("0.25s", None, None) == 250


@pytest.mark.parametrize("text", ["", "x", "-1s", "1d", "1e3", "1 2", "MiB", "0x10", "1MiBs"])
@pytest.mark.parametrize("kind", [SIZE, DURATION])
def test_nonsense_is_refused_with_an_example(kind: Any, text: str) -> None:
    with pytest.raises(click.BadParameter, match="such as"):
        kind.convert(text, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-runners", "0"],
        ["--spare-runners", "-1"],
        ["--grace", "soon"],
        ["--max-memory", "1TB"],
        ["--namespaces", "maybe"],
        ["--no-such-flag"],
        ["surplus"],
        # Zero would refuse every call that does not set the limit itself.
        ["--default-wall-time", "0"],
        ["--max-cpu-time", "0s"],
        ["--compile-wall-time", "0.1ms"],
        ["--max-module", "0"],
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_2_and_a_word(arguments: list[str]) -> None:
    # Were it not refused, the daemon could not start there either.
    result = CliRunner().invoke(main, ["--state-dir", "/dev/null/state", *arguments])
    assert result.exit_code == 2
    assert "Error" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--require-layer", "secomp"], ["'secomp'", "mean seccomp?", *isolation.LAYERS]),
        (["--require-layer", "nonsense"], ["'nonsense'", *isolation.LAYERS]),
        (["--listen", "rel/s.sock"], ["unix:///path", f"mean unix://{Path.cwd()}/rel/s.sock?"]),
        (["--listen", "/run/s.sock"], ["unix:///path", "mean unix:///run/s.sock?"]),
        (["--listen", "unix:s.sock"], ["absolute", f"mean unix://{Path.cwd()}/s.sock?"]),
        (["--listen", "unix://run/s.sock"], ["absolute", "mean unix:///run/s.sock?"]),
        (["--listen", "unix:///run/"], ["ends in a name"]),
        (["--listen", "unix:///a?b"], ["'?'"]),
        (["--listen", "unix:"], ["absolute", "unix:///path"]),
        (["--listen", "ftp://x"], ["unix:///path", "tcp://127.0.0.1:port"]),
        (["--listen", "tcp://[::1"], ["tcp://127.0.0.1:port"]),
        (["--listen", "tcp://localhost"], ["host and a port"]),
        (["--max-runners", "abc"], ["'abc' is not a whole number"]),
        (["--max-modules", "1.5"], ["'1.5' is not a whole number"]),
        (["--max-runners", "0"], ["0 is not in the range 1<=x<=10000"]),
        (["--user", "no-such-user"], ["'no-such-user'"]),
        (["--user", "root"], ["as root"]),
        (["--user", "0"], ["as root"]),
        (["--user", "4294967295"], ["at most 4294967294"]),
    ],
    ids=lambda given: "=".join(given) if given[0].startswith("--") else "",
)
@pytest.mark.parametrize("written", ["flag", "environment"])
def test_a_value_that_no_start_would_take_is_bad_usage_and_the_message_helps(
    arguments: list[str], words: list[str], written: str
) -> None:
    flag, value = arguments
    base = ["--state-dir", "/dev/null/state"]
    environment = {"SANDBOXD_" + flag[2:].upper().replace("-", "_"): value}
    result = (
        CliRunner().invoke(main, [*base, *arguments])
        if written == "flag"
        else CliRunner().invoke(main, base, env=environment)
    )
    assert result.exit_code == 2, result.output
    assert re.search(rf"Invalid value for '?{flag}'?.*: ", result.output)
    for word in words:
        assert word in result.output


TLS = ("--tls-cert", "--tls-key", "--tls-client-ca")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--default-output=8MiB"], "--default-output is above --max-output"),
        (["--max-output=1KiB"], "--default-output is above --max-output"),
        (["--default-memory=1GiB"], "--default-memory is above --max-memory"),
        (["--max-wall-time=1s"], "--default-wall-time is above --max-wall-time"),
        (["--default-cpu-time=1h"], "--default-cpu-time is above --max-cpu-time"),
        (["--max-table-elements=1"], "--default-table-elements is above --max-table-elements"),
        *(([f"{flag}=/x"], "TLS needs all of") for flag in TLS),
        ([f"{TLS[0]}=/x", f"{TLS[1]}=/x"], "TLS needs all of"),
        (["--listen=tcp://0.0.0.0:5000"], "TCP needs --tls-cert"),
        (["--listen=tcp://127.0.0.1:0"], "TCP needs --tls-cert"),
        (["--listen=tcp://0.0.0.0:5000", "--insecure-tcp"], "only a loopback address"),
        (["--listen=tcp://example.org:1", "--insecure-tcp"], "only a loopback address"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
@pytest.mark.parametrize("checked", [[], ["--check"]], ids=["start", "check"])
def test_settings_that_contradict_each_other_are_bad_usage(
    arguments: list[str], words: str, checked: list[str]
) -> None:
    base = ["--state-dir", "/dev/null/state", *checked]
    result = CliRunner().invoke(main, [*base, *arguments])
    assert result.exit_code == 2, result.output
    assert words in result.output


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("unix:///x/s", "unix:///x/s"),
        ("unix:///x/s", "unix:///x/./y/..//s"),
        ("tcp://127.0.0.1:5000", "tcp://127.0.0.1:5000"),
        ("tcp://LOCALHOST:5000", "tcp://localhost:5000"),
        ("tcp://[::1]:5000", "tcp://[0:0:0:0:0:0:0:1]:5000"),
        ("tcp://0.0.0.0:5000", "tcp://127.0.0.1:5000"),
        ("tcp://[::1]:5000", "tcp://[::]:5000"),
    ],
)
@pytest.mark.parametrize("checked", [[], ["--check"]], ids=["start", "check"])
def test_an_address_that_is_given_twice_is_bad_usage(
    one: str, other: str, checked: list[str]
) -> None:
    base = ["--state-dir", "/dev/null/state", *checked, *(f"{flag}=/x" for flag in TLS)]
    result = CliRunner().invoke(
        main, [*base, "--listen", one, "--listen=unix:///x/t", "--listen", other]
    )
    assert result.exit_code == 2, result.output
    assert "Invalid value for --listen: " in result.output
    assert ("is given twice" if one == other else "collide") in result.output


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("unix:///x/s", "unix:///x/t"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("tcp://127.0.0.1:5000", "tcp://127.0.0.1:5001"),
        ("tcp://127.0.0.1:5000", "tcp://[::1]:5000"),
        ("unix:///x/s", "tcp://[::1]:5000"),
    ],
)
def test_addresses_that_can_be_served_at_once_are_taken(one: str, other: str) -> None:
    usage.check(parse(["--insecure-tcp", "--listen", one, "--listen", other]))
