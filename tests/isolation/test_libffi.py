"""The writable and executable page of libffi."""

from __future__ import annotations

from tests.isolation.nursery_client import Nursery


def test_callbacks_made_before_the_lock_down_still_work(nursery: Nursery) -> None:
    assert nursery.run("callback_after_lock_down").value == 42


def test_writing_into_the_page_ends_the_process(nursery: Nursery) -> None:
    outcome = nursery.run("write_to_code_page")
    assert outcome.status == -11 or outcome.value == "no such page"


def test_the_kernel_sees_the_page_as_writable_before_and_not_after(nursery: Nursery) -> None:
    assert nursery.run("probe_code_page").value == ["still writable", "locked"]
