"""The endless loop: it does not end by itself, and a trap names the function."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import wasmtime

if TYPE_CHECKING:
    from tests.guests.conftest import Guest


@pytest.mark.parametrize("export", ["spin", "_start"])
def test_only_an_interrupt_ends_it_and_the_backtrace_names_spin(
    load: Callable[[str], Guest], export: str
) -> None:
    config = wasmtime.Config()
    config.epoch_interruption = True
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    module = wasmtime.Module(engine, load("endless_loop").path.read_bytes())
    assert module.imports == []
    function = wasmtime.Instance(store, module, []).exports(store)[export]
    assert isinstance(function, wasmtime.Func)

    timer = threading.Timer(0.05, engine.increment_epoch)
    timer.start()
    with pytest.raises(wasmtime.Trap) as trapped:
        function(store)
    timer.join()
    assert trapped.value.trap_code is wasmtime.TrapCode.INTERRUPT
    assert "spin" in str(trapped.value.frames[0].func_name)
