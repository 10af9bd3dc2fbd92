"""Starts the daemon, as ever, in a process where clients choose their tenant.

    python -m bench.tenants [flags of the daemon]

The product has one tenant: its services name the constant DEFAULT_TENANT wherever they hand a
tenant on, and all that lies behind them takes any. Here the methods that name it are made anew for
each tenant, with its name as the value of that constant, and the call's metadata says which of them
serve it. Nothing else is replaced. Nobody is asked who they are: this is for measuring only.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from grpc import aio

from bench.stage import Metadata
from sandboxd import supervisor
from sandboxd.supervisor import faults
from sandboxd.supervisor.keys import DEFAULT_TENANT

PROGRAM = ("bench.tenants",)
"""For `Stage.daemon`."""
KEY = "bench-tenant"
"""Of the metadata that names the tenant; a call without it is DEFAULT_TENANT's."""
_CONSTANT = "DEFAULT_TENANT"
_TENANT = re.compile(r"[a-z0-9-]{1,64}")
_SERVICES = "sandboxd.supervisor.services"


class SeamGone(Exception):  # noqa: N818 - a state of the code
    """The product hands tenants on elsewhere than is written here."""


class Seam(NamedTuple):
    """A service that names the constant."""

    module: str
    service: str
    handlers: tuple[str, ...]
    """Methods that are registered with the server."""
    readers: tuple[str, ...]
    """Methods that name the constant."""


SEAMS = (
    Seam(
        f"{_SERVICES}.sandbox",
        "SandboxService",
        ("Execute", "ExecuteBatch"),
        ("Execute", "ExecuteBatch"),
    ),
    Seam(
        f"{_SERVICES}.modules",
        "ModuleService",
        ("Push", "Get", "List", "Delete"),
        ("_push", "Get", "List", "Delete"),
    ),
)


def metadata(tenant: str) -> Metadata:
    """Return the metadata of a call of this tenant."""
    return ((KEY, tenant),)


# --- is the seam where it was? --------------------------------------------------------------------


def check(seams: Iterable[Seam], names: Iterable[str]) -> None:
    """Raise SeamGone unless the seams' readers name the constant, and nothing else in `names`.

    `names` are modules. Looked at is their code, whether it has run or not.
    """
    expected = {
        f"{seam.module}:{seam.service}.{reader}" for seam in seams for reader in seam.readers
    }
    found = {f"{name}:{reader}" for name in names for reader in _readers(_code_of(name))}
    gone, new = sorted(expected - found), sorted(found - expected)
    if gone or new:
        raise SeamGone(
            f"tenants are handed on elsewhere than bench/tenants.py says: {_CONSTANT} is no longer "
            f"named by {', '.join(gone) or 'none'}, and now by {', '.join(new) or 'none'}; it has "
            "to be told of what came in its place (or go, if clients can choose a tenant now)"
        )


def product() -> list[str]:
    """Return the names of all modules of the supervisor."""
    prefix = f"{supervisor.__name__}."
    return [module.name for module in pkgutil.walk_packages(supervisor.__path__, prefix)]


def _code_of(name: str) -> types.CodeType:
    spec = importlib.util.find_spec(name)
    loader: Any = spec.loader if spec is not None else None
    code = loader.get_code(name) if loader is not None else None
    if not isinstance(code, types.CodeType):
        raise SeamGone(f"the supervisor has no module {name} any more (bench/tenants.py)")
    return code


def _readers(code: types.CodeType) -> Iterator[str]:
    """Qualified names of the functions of a module that name the constant."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if _CONSTANT in inner.co_names:
                yield inner.co_qualname
            yield from _readers(inner)


# --- methods of a tenant --------------------------------------------------------------------------


def install(seam: Seam) -> None:
    """Make the service's handlers look at the metadata first. Raises SeamGone."""
    service: Any = getattr(importlib.import_module(seam.module), seam.service, None)
    methods = {name: _method(seam, service, name) for name in (*seam.handlers, *seam.readers)}
    views = _Views(service, methods, seam.readers)
    for name in seam.handlers:
        setattr(service, name, _dispatching(name, views))


def _method(seam: Seam, service: object, name: str) -> types.FunctionType:
    method = vars(service).get(name) if inspect.isclass(service) else None
    if (
        not isinstance(method, types.FunctionType)
        or not inspect.iscoroutinefunction(method)
        or _CONSTANT not in method.__globals__
    ):
        raise SeamGone(
            f"{seam.module} has no asynchronous method {seam.service}.{name} any more, or no "
            f"global {_CONSTANT}: bench/tenants.py has to be told of what came in its place"
        )
    return method


class _Views:
    """The same service once more for each tenant: it shares all attributes with the first."""

    def __init__(
        self, service: type, methods: Mapping[str, types.FunctionType], readers: Iterable[str]
    ) -> None:
        self._service = service
        self._methods = methods
        self._readers = frozenset(readers)
        self._made: dict[tuple[object, str], Any] = {}

    def get(self, instance: object, tenant: str) -> Any:
        """Return the view of a service that is this tenant's."""
        view = self._made.get((instance, tenant))
        if view is None:
            view = self._made[instance, tenant] = self._make(instance, tenant)
        return view

    def _make(self, instance: object, tenant: str) -> Any:
        methods = {
            name: _for_tenant(method, tenant) if name in self._readers else method
            for name, method in self._methods.items()
        }
        view: Any = object.__new__(type(self._service.__name__, (self._service,), methods))
        view.__dict__ = instance.__dict__
        return view


def _for_tenant(method: types.FunctionType, tenant: str) -> types.FunctionType:
    """Return the same function; the constant is this tenant's name to it."""
    seen = {**method.__globals__, _CONSTANT: tenant}
    made = types.FunctionType(
        method.__code__, seen, method.__name__, method.__defaults__, method.__closure__
    )
    made.__kwdefaults__ = method.__kwdefaults__
    return made


def _dispatching(name: str, views: _Views) -> Callable[..., Any]:
    async def handle(self: object, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        view = views.get(self, _tenant_of(context))
        return await getattr(view, name)(request, context)

    return handle


def _tenant_of(context: aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == KEY:
            # It becomes the name of a directory.
            if not isinstance(value, str) or not _TENANT.fullmatch(value):
                raise faults.InvalidRequest("a tenant is named by a-z, 0-9 and -", field=KEY)
            return value
    return DEFAULT_TENANT


def main() -> None:
    """Serve until SIGTERM; raises SeamGone if the code has no such seam any more."""
    check(SEAMS, product())
    for seam in SEAMS:
        install(seam)
    serve: Callable[[], None] = importlib.import_module("sandboxd.supervisor.main").main
    serve()


if __name__ == "__main__":
    main()
