"""Guests made for measuring are what they claim to be."""

from __future__ import annotations

import pytest
import wasmtime
from bench import guests
from bench.baselines.in_process import InProcess

from sandboxd.runner.engine import build_engine


@pytest.mark.parametrize("size", [0, 64, guests.PAGE_BYTES, 3 << 20])
def test_the_echo_answers_its_input_whatever_its_size(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert InProcess(guests.echo()).bytes_call("echo", data[:size]) == data[:size]


def test_in_process_calls_work_with_our_engine_as_well() -> None:
    module = InProcess(guests.echo(), build_engine(fuel=False))
    assert module.bytes_call("echo", b"abc") == b"abc"


@pytest.mark.parametrize("size", [1_000, 100_000, 500_000])
@pytest.mark.parametrize("make", [guests.code_module, guests.data_module])
def test_a_module_has_about_the_size_asked_for(make: guests.Make, size: int) -> None:
    wasm = make(size)
    assert size <= len(wasm) <= size * 1.1 + 300
    wasmtime.Module.validate(wasmtime.Engine(), wasm)


def test_variants_differ_in_nothing_that_runs() -> None:
    one, two = (guests.variant(guests.echo(), number) for number in (1, 2))
    assert one != two
    assert InProcess(two).bytes_call("echo", b"x") == b"x"
