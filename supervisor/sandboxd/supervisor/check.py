"""`sandboxd --check`: would a daemon with these settings start here? Nothing is served.

The parts, the launcher, a zygote and a first runner are the real ones, so a layer of isolation
holds here if it would hold in a daemon. Nothing stays behind: the state directory is locked for a
moment, and not made; one that is there may get the file that the lock is on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sandboxd.supervisor import (
    configuration,
    endpoints,
    privileges,
    state_directory,
    status,
)
from sandboxd.supervisor.addresses import EndpointBusy
from sandboxd.supervisor.errors import StartError
from sandboxd.supervisor.parts import Parts
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.state_directory import StateDirectoryBusy
from sandboxd.supervisor.zygote_keeper import ZygoteKeeper


class Check:
    """One check; `echo` gets a line for each thing that was looked at."""

    def __init__(self, settings: Settings, echo: Callable[[str], None]) -> None:
        self._settings = settings
        self._echo = echo
        self._as_root = os.geteuid() == 0
        self._failed = False
        self._replaces_another = False

    async def run(self) -> bool:
        """Look at everything, whatever is found. Return True if a daemon would start."""
        privileges.hide_memory()
        # Those that contradict each other were bad usage (usage.py).
        self._echo("ok    settings")
        parts = Parts.of(self._settings)
        keeper = ZygoteKeeper(self._settings, self._as_root, parts, lambda _: None)
        try:
            await self._check_host(parts, keeper)
        finally:
            await keeper.close()
        for address in self._settings.listen:
            self._check_listen(address)
        for remark in configuration.remarks(self._settings):
            self._echo(f"note  {remark}")
        return not self._failed

    async def _check_host(self, parts: Parts, keeper: ZygoteKeeper) -> None:
        self._check_state(parts)
        with self._looking_at("isolation", self._settings.isolation):
            keeper.exec_launcher(_owner(parts))
            if keeper.uids is not None:
                self._check_account(parts, keeper.uids.ids.start)
            await keeper.start()
        layers = status.describe_layers(keeper.rows(), keeper.required)
        # Those that are required were told already, or hold.
        for layer in layers if keeper.starts else ():
            if not layer.active and not layer.required:
                remedy = f"; remedy: {layer.remedy}" if layer.remedy else ""
                self._echo(f"note  layer {layer.name} is not active: {layer.detail}{remedy}")

    def _check_state(self, parts: Parts) -> None:
        path = self._settings.state_dir
        with self._looking_at("state directory", str(path)):
            try:
                if path.is_dir():
                    parts.store.claim()
                    state_directory.try_making_in(path)
                    parts.store.unlock()
                else:
                    state_directory.require_makable(path)
            except StateDirectoryBusy:
                self._replaces_another = True
                self._echo(f"note  another sandboxd uses {path}: it must stop first")
            except OSError as error:
                where = error.filename if isinstance(error.filename, str) else path
                words = f"{where}: {error.strerror}; pass another --state-dir"
                raise StartError(words) from error

    def _check_account(self, parts: Parts, first_uid: int) -> None:
        with self._looking_at("user"):
            become = privileges.account(self._settings.user, first_uid)
            if parts.store.directory_fd >= 0:
                path = self._settings.state_dir
                state_directory.must_hand_over(parts.store.directory_fd, path, become)

    def _check_listen(self, address: str) -> None:
        settings = self._settings
        with self._looking_at("listen", address):
            tls = configuration.tls(settings)
            try:
                endpoints.check(address, settings.socket_group, tls, settings.insecure_tcp)
            except EndpointBusy as busy:
                if not self._replaces_another:
                    raise
                self._echo(f"note  {busy}")

    @contextmanager
    def _looking_at(self, what: str, which: str = "") -> Iterator[None]:
        try:
            yield
        except StartError as error:
            self._failed = True
            self._echo(f"FAIL  {what}: {error}")
        else:
            self._echo(f"ok    {what} {which}".rstrip())


def _owner(parts: Parts) -> int | None:
    fd = parts.store.directory_fd
    return os.fstat(fd).st_uid if fd >= 0 else None
