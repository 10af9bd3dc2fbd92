"""What goes over the wire for each way of naming a module and calling it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.client.fake_daemon import WASM, FakeDaemon, digest_of

from sandboxd import client as api
from sandboxd.client import AsyncClient, Client, Convention, f32, f64, i32, i64


def test_bare_numbers_take_their_types_from_the_signature(
    daemon: FakeDaemon, client: Client
) -> None:
    client.call(daemon.store(), "mix", 7, 1, 2).check()
    (request,) = daemon.requests("Execute")
    assert [arg.WhichOneof("kind") for arg in request.typed.args] == ["i64", "f32", "f64"]


def test_the_signature_is_looked_up_once_per_digest(daemon: FakeDaemon, client: Client) -> None:
    digest = daemon.store()
    for _ in range(3):
        assert client.call(digest, "add", 2, -5).value == -3
    assert len(daemon.requests("Get")) == 1


def test_typed_numbers_need_no_look_up(daemon: FakeDaemon, client: Client) -> None:
    digest = daemon.store()
    assert client.call(digest, "add", i32(2), i32(3)).value == 5
    assert daemon.requests("Get") == []


def test_a_pushed_module_brings_its_signature(daemon: FakeDaemon, client: Client) -> None:
    pushed = client.push(WASM)
    assert client.call(pushed, "add", 2, 3).value == 5
    assert client.call(pushed.module, "add", 2, 3).value == 5
    assert client.call(pushed.module.digest, "add", 2, 3).value == 5
    assert daemon.requests("Get") == []


def test_a_module_from_a_list_is_looked_up(daemon: FakeDaemon, client: Client) -> None:
    daemon.store()
    (module,) = client.list()
    assert client.call(module, "add", 2, 3).value == 5
    assert len(daemon.requests("Get")) == 1


@pytest.mark.parametrize("inline", [WASM, Path])
def test_inline_modules_need_typed_numbers(
    client: Client, tmp_path: Path, inline: bytes | type[Path]
) -> None:
    module = inline if isinstance(inline, bytes) else _file(tmp_path, WASM)
    with pytest.raises(TypeError, match=r"typed arguments, for example i32\(7\)"):
        client.call(module, "add", 2, 3)
    assert client.call(module, "add", i32(2), i32(3)).value == 5


@pytest.mark.parametrize(
    ("export", "args", "error"),
    [
        ("add", (1,), api.ArgumentMismatch),
        ("add", (1, 2, 3), api.ArgumentMismatch),
        ("add", (1, 0.5), api.ArgumentMismatch),
        ("add", (1, math.inf), api.ArgumentMismatch),
        ("add", (1, 1 << 32), api.ArgumentMismatch),
        ("add", (1, i64(1)), api.ArgumentMismatch),
        ("mix", (1, 1e300, 1), api.ArgumentMismatch),
        ("memory", (1,), api.ExportNotFound),
        ("sub", (1,), api.ExportNotFound),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(
    daemon: FakeDaemon, client: Client, export: str, args: Any, error: type[api.Fault]
) -> None:
    with pytest.raises(error):
        client.call(daemon.store(), export, *args)
    assert daemon.requests("Execute") == []


def test_integers_wrap_as_in_webassembly() -> None:
    assert i32(0xFFFF_FFFF).number == -1
    assert i32(-(1 << 31)).number == -(1 << 31)
    assert i64(1 << 63).number == -(1 << 63)
    for bad in (1 << 32, -(1 << 31) - 1):
        with pytest.raises(ValueError, match="does not fit in i32"):
            i32(bad)
    with pytest.raises(TypeError):
        i32(1.5)  # type: ignore[arg-type]


def test_f32_is_rounded_and_bounded() -> None:
    assert f32(0.1).number == 0.10000000149011612
    assert f32(math.inf).number == math.inf
    assert math.isnan(f64(math.nan).number)
    with pytest.raises(ValueError, match="does not fit in f32"):
        f32(1e39)


@pytest.mark.parametrize("form", ["digest", "bytes", "path"])
def test_a_small_module_travels_as_it_was_given(
    daemon: FakeDaemon, client: Client, tmp_path: Path, form: str
) -> None:
    digest = daemon.store()
    forms: dict[str, str | bytes | Path] = {
        "digest": digest,
        "bytes": WASM,
        "path": _file(tmp_path, WASM),
    }
    module = forms[form]
    client.run(module, ["prog", "-v"], {"LANG": "C"}, b"in").check()
    (request,) = daemon.requests("Execute")
    assert (request.digest, request.wasm) == ((digest, b"") if form == "digest" else ("", WASM))
    assert list(request.wasi.args) == ["prog", "-v"]
    assert [(e.name, e.value) for e in request.wasi.env] == [("LANG", "C")]
    assert request.wasi.stdin == b"in"


@pytest.mark.parametrize("form", [bytes, Path])
def test_a_large_module_is_pushed_when_the_daemon_lacks_it(
    daemon: FakeDaemon, client: Client, tmp_path: Path, form: type
) -> None:
    wasm = WASM + bytes(4 << 20)
    module = wasm if form is bytes else _file(tmp_path, wasm)
    for _ in range(2):
        client.run(module).check()
    assert len(daemon.requests("Push")) == 1
    assert {r.digest for r in daemon.requests("Execute")} == {digest_of(wasm)}
    assert len(daemon.requests("Execute")) == 3  # The first found nothing and ran nothing.


def test_a_small_module_with_much_input_is_pushed_too(daemon: FakeDaemon, client: Client) -> None:
    client.run(WASM + bytes(2 << 20), stdin=bytes(3 << 20)).check()
    assert len(daemon.requests("Push")) == 1


@pytest.mark.parametrize("bad", ["add.wasm", "sha256:abc", "SHA256:" + "a" * 64, ""])
def test_a_string_that_is_no_digest_is_not_sent(client: Client, bad: str) -> None:
    with pytest.raises(ValueError, match=r"pathlib\.Path"):
        client.run(bad)


def test_a_missing_file_is_an_os_error(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.run(tmp_path / "none.wasm")


@pytest.mark.parametrize(
    ("convention", "length"),
    [
        (Convention.PACKED, None),
        (Convention.POINTER_LENGTH, None),
        (Convention.NUL, None),
        (Convention.FIXED, 32),
    ],
)
def test_bytes_calls_name_their_convention(
    daemon: FakeDaemon, client: Client, convention: Convention, length: int | None
) -> None:
    answer = client.call_bytes(WASM, "upper", b"abc", convention=convention, result_length=length)
    assert answer.output == b"ABC"
    (request,) = daemon.requests("Execute")
    number = list(Convention).index(convention) + 1
    assert request.bytes.result_convention == number
    assert request.bytes.result_length_bytes == (length or 0)


def test_a_result_length_goes_with_fixed_only(client: Client) -> None:
    with pytest.raises(ValueError, match="result_length"):
        client.call_bytes(WASM, "f", b"", convention=Convention.FIXED)
    with pytest.raises(ValueError, match="result_length"):
        client.call_bytes(WASM, "f", b"", result_length=1)


def test_fresh_asks_for_a_process_of_its_own(daemon: FakeDaemon, client: Client) -> None:
    client.run(WASM)
    client.run(WASM, fresh=True)
    assert [r.process for r in daemon.requests("Execute")] == [0, 2]


def _every_way(client: Client | AsyncClient, module: str, layers: Any) -> list[Any]:
    call = api.TypedCall("add", [i32(1), i32(2)])
    return [
        lambda: client.execute(module, call, require_layers=layers),
        lambda: client.call(module, "add", i32(1), i32(2), require_layers=layers),
        lambda: client.call_bytes(module, "upper", b"x", require_layers=layers),
        lambda: client.run(module, ["x"], require_layers=layers),
    ]


@pytest.mark.parametrize(
    ("layers", "names"),
    [(["seccomp", "landlock"], ["seccomp", "landlock"]), (iter(()), []), (None, [])],
)
def test_every_way_to_run_can_require_layers(
    daemon: FakeDaemon, client: Client, layers: Any, names: list[str]
) -> None:
    for run in _every_way(client, daemon.store(), layers):
        run()
    assert [list(r.require_layers) for r in daemon.requests("Execute")] == [names] * 4


async def test_the_asyncio_client_requires_layers_too(
    loop_daemon: FakeDaemon, async_client: AsyncClient
) -> None:
    for run in _every_way(async_client, loop_daemon.store(), {"seccomp"}):
        await run()
    assert [list(r.require_layers) for r in loop_daemon.requests("Execute")] == [["seccomp"]] * 4
    with pytest.raises(TypeError, match="require_layers takes several names"):
        await async_client.run(WASM, require_layers="seccomp")


@pytest.mark.parametrize(
    ("layers", "words"),
    [("seccomp", r"write \['seccomp'\] instead of 'seccomp'"), ([7], "names of layers, not 7")],
)
def test_required_layers_that_are_no_list_of_names_are_refused_before_anything_is_sent(
    daemon: FakeDaemon, client: Client, layers: Any, words: str
) -> None:
    for run in _every_way(client, daemon.store(), layers):
        with pytest.raises(TypeError, match=words):
            run()
    assert daemon.seen == []


def _file(directory: Path, wasm: bytes) -> Path:
    path = directory / "guest.wasm"
    path.write_bytes(wasm)
    return path
