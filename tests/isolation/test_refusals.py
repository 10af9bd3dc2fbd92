"""What a host's refusal of a namespace is told as: with the setting that an operator can change."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandboxd.runner.isolation.refusals import explain

AS_USER = pytest.mark.skipif(os.geteuid() == 0, reason="of an ordinary user")


def host(directory: Path, **sysctls: str) -> Path:
    for name, value in sysctls.items():
        path = directory.joinpath(*name.split("__"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(value + "\n")
    return directory


def error(number: int) -> OSError:
    return OSError(number, f"unshare: {os.strerror(number)}")


def test_a_limit_of_0_is_named(tmp_path: Path) -> None:
    sysctls = host(tmp_path, user__max_user_namespaces="0", user__max_net_namespaces="9")
    said = explain(error(errno.ENOSPC), sysctls)
    assert "unshare: No space left on device: the sysctl user.max_user_namespaces is 0" in said


def test_a_limit_that_is_reached_is_named_with_its_value(tmp_path: Path) -> None:
    said = explain(error(errno.ENOSPC), host(tmp_path, user__max_user_namespaces="7"))
    assert "user.max_user_namespaces (it is 7 here)" in said


@AS_USER
@pytest.mark.parametrize(
    ("sysctl", "value", "named"),
    [
        ("unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("apparmor_restrict_unprivileged_userns", "0", "RestrictNamespaces="),
    ],
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_what_refuses_an_ordinary_user_is_named(
    tmp_path: Path, number: int, sysctl: str, value: str, named: str
) -> None:
    assert named in explain(error(number), host(tmp_path, **{f"kernel__{sysctl}": value}))


def test_settings_that_cannot_be_read_and_other_errors_say_no_more_than_is_known(
    tmp_path: Path,
) -> None:
    assert "it is unknown here" in explain(error(errno.ENOSPC), tmp_path)
    assert explain(error(errno.EINVAL), tmp_path) == str(error(errno.EINVAL))
