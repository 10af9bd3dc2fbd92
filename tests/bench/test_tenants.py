"""The launcher that lets clients choose their tenant, and what the figure makes sure of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from bench import guests, requests, tenants
from bench.figure import QUICK
from bench.figures.tenants import check_apart
from bench.stage import ROOT, Daemon, Metadata, Stage, completed

from sandboxd.supervisor.keys import DEFAULT_TENANT
from sandboxd.v1 import admin_pb2, module_pb2, module_pb2_grpc

ONE, TWO, NOBODY = tenants.metadata("one"), tenants.metadata("two"), ()

# --- a daemon of its own --------------------------------------------------------------------------


@pytest_asyncio.fixture
async def daemon() -> AsyncIterator[Daemon]:
    async with Stage(QUICK).daemon(program=tenants.PROGRAM) as running:
        yield running


async def _call(daemon: Daemon, digest: str, metadata: Metadata) -> None:
    request = requests.bytes_call(digest, "echo", b"x")
    completed(await daemon.stub().Execute(request, metadata=metadata))


async def _stored(daemon: Daemon, metadata: Metadata) -> list[str]:
    stub = module_pb2_grpc.ModuleServiceStub(daemon.channel())
    response = await stub.List(module_pb2.ListRequest(), metadata=metadata)
    return [module.digest for module in response.modules]


async def test_two_tenants_have_their_own_runners_and_do_not_see_each_others_modules(
    daemon: Daemon,
) -> None:
    digest = await daemon.push(guests.echo(), ONE)
    await _call(daemon, digest, ONE)
    for other in (TWO, NOBODY):
        assert await _stored(daemon, other) == []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _call(daemon, digest, other)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert b"MODULE_NOT_FOUND" in str(refused.value.trailing_metadata()).encode()
        pushed = await daemon.push_timed(guests.echo(), other)
        assert pushed.created
        assert pushed.compile_time_ns > 0
        await _call(daemon, digest, other)
        assert await _stored(daemon, other) == [digest]
    runners = {runner.tenant: runner.pid for runner in (await daemon.status()).runners}
    assert len(set(runners.values())) == len(runners)
    assert {"one", "two", DEFAULT_TENANT} <= set(runners)

    await daemon.delete(digest)
    assert await _stored(daemon, NOBODY) == []
    await _call(daemon, digest, ONE)


async def test_a_tenant_that_would_name_another_directory_is_refused(daemon: Daemon) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await daemon.push(guests.echo(), tenants.metadata("../one"))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


# --- without the seam -----------------------------------------------------------------------------


def test_the_product_hands_tenants_on_where_the_launcher_says() -> None:
    tenants.check(tenants.SEAMS, tenants.product())


def test_a_method_that_names_the_constant_no_longer_is_told() -> None:
    *_, modules = tenants.SEAMS
    elsewhere = modules._replace(readers=(*modules.readers, "Push"))
    with pytest.raises(tenants.SeamGone, match=r"no longer named by \S+:ModuleService\.Push, and"):
        tenants.check([*tenants.SEAMS, elsewhere], tenants.product())


def test_code_that_names_the_constant_besides_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "newcomer.py").write_text(
        "import keys\nclass Service:\n    def get(self):\n        return keys.DEFAULT_TENANT\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(tenants.SeamGone, match=r"by none, and now by newcomer:Service\.get"):
        tenants.check(tenants.SEAMS, [*tenants.product(), "newcomer"])


@pytest.mark.parametrize(
    ("module", "gone"), [("sandbox", "SandboxService.Execute"), ("modules", "ModuleService._push")]
)
def test_the_launcher_serves_nothing_without_the_seam(module: str, gone: str) -> None:
    program = (
        f"from bench import tenants; from sandboxd.supervisor.services.{module} import *; "
        f"del {gone}; tenants.main(); print('serves')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert f"no asynchronous method {gone} any more" in ended.stderr
    assert "bench/tenants.py has to be told" in ended.stderr


# --- what the figure makes sure of ----------------------------------------------------------------


def _status(*owners: str, modules: int) -> admin_pb2.GetStatusResponse:
    idle = admin_pb2.RUNNER_STATE_IDLE
    return admin_pb2.GetStatusResponse(
        modules=modules,
        artifacts=admin_pb2.ArtifactStatus(compiled_total=modules),
        pool=admin_pb2.PoolStatus(capacity=6),
        runners=[admin_pb2.Runner(state=idle, tenant=owner) for owner in owners],
    )


def test_tenants_with_a_runner_each_are_apart_as_far_as_there_is_room() -> None:
    check_apart(_status("a", modules=1), 1)
    check_apart(_status("b", "c", modules=3), 3)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (_status("a", "b", modules=1), "2 tenants: 1 modules, 1 were compiled"),
        (_status("a", "a", modules=2), "2 tenants have runners so"),
        (_status("a", modules=2), "2 tenants have runners so"),
    ],
)
def test_tenants_that_share_are_no_measurement(
    status: admin_pb2.GetStatusResponse, says: str
) -> None:
    with pytest.raises(RuntimeError, match=says):
        check_apart(status, 2)
