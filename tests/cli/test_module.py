"""`sandboxctl module`, and how a module is named."""

from __future__ import annotations

import os
import pty
import subprocess

import grpc
import pytest
from tests.cli.conftest import Sandboxctl
from tests.client.fake_daemon import F64, I32, WASM, FakeDaemon, Refusal, digest_of, function

from sandboxd.v1 import call_pb2

DIGEST = digest_of(WASM)
HEX = DIGEST.removeprefix("sha256:")
EVIL = "\x1b[31m[bold]x[/bold]\u202e\n\x9b"


def test_push_list_show_and_remove(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    (ctl.directory / "other.wasm").write_bytes(WASM + b"x")
    done = ctl("module", "push", "guest.wasm", "other.wasm", "guest.wasm")
    assert done.code == 0
    first, _, third = done.out.decode().splitlines()
    assert first == f"{DIGEST}  guest.wasm  compiled in 12 ms"
    assert third == f"{DIGEST}  guest.wasm  was stored already"
    listed = ctl("module", "ls").out.decode()
    assert HEX[:12] in listed
    assert "2023-11-14 22:13:20 UTC" in listed
    assert ctl("module", "ls", HEX[:4]).out.decode().count("UTC") == 1
    assert DIGEST in ctl("module", "ls", "-q").out.decode().split()
    assert ctl("module", "rm", "guest.wasm").out.decode() == f"{DIGEST}\n"
    assert DIGEST not in daemon.modules


def test_the_json_documents_have_stable_keys(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    module = {"digest": DIGEST, "size_bytes": 8, "create_time": "2023-11-14T22:13:20Z"}
    pushed = ctl("module", "push", "-o", "json", "guest.wasm").json
    assert set(pushed) == {"pushed", "errors"}
    assert set(pushed["pushed"][0]) == {"path", "created", "compile_time_ns", "module"}
    assert ctl("-o", "json", "module", "ls").json == {"modules": [module]}
    shown = ctl("module", "show", HEX, "--output", "json").json["module"]
    assert module.items() <= shown.items()
    assert shown["imports"] == []
    assert shown["exports"][0] == {
        "name": "add",
        "kind": "function",
        "module": "",
        "signature": {"params": ["i32", "i32"], "results": ["i32"]},
        "minimum": 0,
        "maximum": None,
    }
    assert ctl("module", "rm", "-o", "json", HEX[:8]).json == {
        "removed": [{"name": HEX[:8], "digest": DIGEST}],
        "errors": [],
    }


def test_show_writes_signatures_that_cannot_act_on_the_terminal(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    daemon.imports = [
        function("log", [I32], [], module="env"),
        call_pb2.Extern(
            module="env", name="mem", kind=call_pb2.EXTERN_KIND_MEMORY, minimum=1, maximum=16
        ),
    ]
    daemon.exports = [
        function(EVIL, [I32, F64], [I32, I32]),
        call_pb2.Extern(name="t", kind=call_pb2.EXTERN_KIND_TABLE, minimum=3),
        call_pb2.Extern(name="g", kind=call_pb2.EXTERN_KIND_GLOBAL),
    ]
    lines = ctl("module", "show", daemon.store()).out.decode().splitlines()
    assert lines[3:] == [
        "imports:",
        "  env.log(i32) -> ()",
        "  memory env.mem 1..16 pages",
        "exports:",
        r"  \x1b[31m[bold]x[/bold]\u202e\n\x9b(i32, f64) -> (i32, i32)",
        "  table t 3.. elements",
        "  global g",
    ]


def test_one_refused_file_does_not_stop_the_others(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.refusals["Push"].append(
        Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"unexpected {EVIL}",
            "INVALID_MODULE",
            metadata={"offset_bytes": "9"},
        )
    )
    done = ctl("module", "push", "-o", "json", "guest.wasm", "none.wasm", "guest.wasm")
    assert done.code == 1
    assert len(done.json["pushed"]) == 1
    refused, missing = done.json["errors"]
    assert refused["name"] == "guest.wasm"
    assert refused["error"]["reason"] == "INVALID_MODULE"
    assert refused["error"]["metadata"] == {"offset_bytes": "9"}
    assert "No such file" in missing["error"]["message"]
    assert "at byte 9 of the module" in done.err
    assert all(line.isprintable() for line in done.err.splitlines())


def test_a_unique_prefix_names_a_module(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.store()
    for name in (HEX[:4], f"sha256:{HEX[:6]}", HEX[:8].upper(), HEX, DIGEST):
        assert ctl("run", name).code == 0
    assert {r.digest for r in daemon.requests("Execute")} == {DIGEST}


def test_an_ambiguous_prefix_lists_its_candidates(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    one, two = "sha256:" + "ab" * 32, "sha256:" + "ab" * 31 + "cd"
    daemon.store(digest=one)
    daemon.store(digest=two)
    done = ctl("module", "show", "abab")
    assert done.code == 1
    assert one in done.err
    assert two in done.err
    assert daemon.requests("Get") == []
    many = [daemon.store(digest=f"sha256:ffff{n:060x}") for n in range(15)]
    err = ctl("module", "show", "ffff").err
    assert many[9] in err
    assert many[10] not in err
    assert "…" in err


@pytest.mark.parametrize("name", ["abc", "abcx", "dddd", "none.wasm", "x" * 300, "."])
def test_a_name_that_means_nothing_says_what_to_do(
    daemon: FakeDaemon, ctl: Sandboxctl, name: str
) -> None:
    done = ctl("module", "show", name)
    assert done.code == 1
    assert "sandboxctl module" in done.err


def test_a_file_wins_over_a_prefix(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    daemon.store()
    (ctl.directory / HEX[:4]).write_bytes(WASM + b"file")
    ctl("run", HEX[:4])
    assert daemon.requests("Execute")[0].wasm == WASM + b"file"


def test_an_unknown_digest_says_push(daemon: FakeDaemon, ctl: Sandboxctl) -> None:
    done = ctl("module", "rm", "sha256:" + "0" * 64)
    assert done.code == 1
    assert "[MODULE_NOT_FOUND]" in done.err
    assert "sandboxctl module push" in done.err


def test_a_large_push_shows_progress_on_a_terminal_only(
    daemon: FakeDaemon, ctl: Sandboxctl
) -> None:
    (ctl.directory / "big.wasm").write_bytes(WASM + bytes(2 << 20))
    assert ctl("module", "push", "big.wasm").err == ""
    leader, terminal = pty.openpty()
    process = ctl.start("module", "push", "big.wasm", stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # EIO: the other side was closed.
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait(20) == 0
    assert b"big.wasm" in seen
