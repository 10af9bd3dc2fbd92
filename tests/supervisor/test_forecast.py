"""Which modules are expected to be called again, in a process that has run nothing."""

from __future__ import annotations

import pytest
from tests.supervisor.fakes import key, module_artifact

from sandboxd.supervisor.forecast import MAX_REMEMBERED, WINDOW_S, Expected, Forecast

A, B = key("a"), key("b")


def test_a_module_that_is_called_again_soon_recurs_and_no_other() -> None:
    forecast = Forecast(4)
    assert not forecast.recurs(A, 1.0)
    assert not forecast.recurs(B, 2.0)
    assert forecast.recurs(A, 1.0 + WINDOW_S)
    assert not forecast.recurs(A, 1.0 + 2 * WINDOW_S + 0.1)


def test_tenants_and_variants_recur_apart() -> None:
    forecast = Forecast(4)
    forecast.recurs(A, 1.0)
    assert not forecast.recurs(A._replace(tenant="other"), 1.0)
    assert not forecast.recurs(A._replace(fuel=True), 1.0)


def test_with_a_limit_of_none_nothing_recurs() -> None:
    forecast = Forecast(0)
    assert not any(forecast.recurs(A, 1.0) for _ in range(3))


def test_what_was_called_longest_ago_is_forgotten() -> None:
    forecast = Forecast(4)
    forecast.recurs(A, 1.0)
    for number in range(MAX_REMEMBERED):
        forecast.recurs(key(f"m{number}"), 1.0)
    assert not forecast.recurs(A, 1.0)
    assert forecast.recurs(key(f"m{MAX_REMEMBERED - 1}"), 1.0)


def test_calls_are_due_in_their_order() -> None:
    forecast = Forecast(4)
    for one in (A, B, A):
        forecast.add(Expected(one, module_artifact(), 1, 1))
    assert len(forecast) == 3
    assert [forecast.next().key for _ in range(3)] == [A, B, A]
    with pytest.raises(IndexError):
        forecast.next()


def test_what_is_cleared_is_not_due() -> None:
    forecast = Forecast(4)
    forecast.add(Expected(A, module_artifact(), 1, 1))
    forecast.clear()
    assert not len(forecast)
