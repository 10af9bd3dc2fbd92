"""Artifacts on disk, so that nothing is compiled again after a restart.

    STATE/secret                                     what seals are made with (seal_secret.py)
    STATE/artifacts/<tenant>/<hex digest>.plain      sealed (sealing.py)
    STATE/artifacts/<tenant>/<hex digest>.fuel       the same module, metered

Only modules in the store have artifacts here; an inline module leaves no trace. A file that cannot
be trusted, in whatever way, is removed and counted, and the module compiled again: nothing here is
worth more than the time to do that.

A file is written aside and renamed. It is not synced: after a power cut it may be there in name and
not in content, and then its seal is wrong.

Methods block unless they say otherwise; the compile service calls them in threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator

from sandboxd.supervisor import private_files, seal_secret
from sandboxd.supervisor.artifacts import Artifact
from sandboxd.supervisor.keys import DIGEST_PREFIX, EngineIdentity, Key
from sandboxd.supervisor.private_files import NotPrivate
from sandboxd.supervisor.sealing import SealBroken, Sealer, sealed_bytes

log = logging.getLogger(__name__)

DIRECTORY = "artifacts"
_NAME = re.compile(r"([0-9a-f]{64})\.(plain|fuel)")


class ArtifactStore:
    """Sealed artifacts below a state directory, the least recently loaded dropped first.

    `budget_bytes` bounds their files; 0 keeps none. `max_artifact_bytes` bounds one artifact.
    `is_stored(tenant, digest)` tells whether the module is (still) in the store; it is called in
    threads.
    """

    def __init__(
        self,
        budget_bytes: int,
        max_artifact_bytes: int,
        is_stored: Callable[[str, str], bool],
    ) -> None:
        self._budget_bytes = budget_bytes
        self._max_artifact_bytes = max_artifact_bytes
        self._is_stored = is_stored
        self._sealer: Sealer | None = None
        self._base_fd = -1
        self._owners: Collection[int] = ()
        # Index and directory change together. Held for a rename or an unlink, not for a copy.
        self._lock = threading.Lock()
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self.stored_bytes = 0
        self.loaded_total = 0
        self.rejected_total = 0

    def __len__(self) -> int:
        return len(self._sizes)

    # --- opening --------------------------------------------------------------------------------

    def open(self, state_fd: int, owners: Collection[int]) -> None:
        """Get the secret and an index of what is there; remove what does not belong.

        `owners` are the users that files here may belong to. Raises OSError.
        """
        self._owners = owners
        self._sealer = Sealer(seal_secret.load_or_create(state_fd, owners))
        try:
            self._base_fd = private_files.make_directory(DIRECTORY, state_fd, owners)
        except NotPrivate as error:
            self._reject(state_fd, DIRECTORY, error)
            self._base_fd = private_files.make_directory(DIRECTORY, state_fd, owners)
        found: list[tuple[int, Key, int]] = []
        for tenant in os.listdir(self._base_fd):
            try:
                with self._tenant(tenant) as tenant_fd:
                    found += self._sweep(tenant, tenant_fd)
            except NotPrivate as error:
                self._reject(self._base_fd, tenant, error)
        for _, key, size in sorted(found):
            self._sizes[key] = size
        self.stored_bytes = sum(self._sizes.values())
        self._make_room()

    def _sweep(self, tenant: str, tenant_fd: int) -> Iterator[tuple[int, Key, int]]:
        """Yield when each artifact was last used, its key and size."""
        for name in os.listdir(tenant_fd):
            match = _NAME.fullmatch(name)
            if match is None or not self._is_stored(tenant, DIGEST_PREFIX + match[1]):
                # Half written when a daemon was killed, or of a module that was never acknowledged.
                private_files.remove(name, tenant_fd)
                continue
            try:
                fd = private_files.open_file(name, tenant_fd, self._owners)
            except (NotPrivate, OSError) as error:
                self._reject(tenant_fd, name, error)
                continue
            status = os.fstat(fd)
            os.close(fd)
            key = Key(tenant, DIGEST_PREFIX + match[1], match[2] == "fuel")
            yield status.st_mtime_ns, key, status.st_size

    @contextlib.contextmanager
    def _tenant(self, tenant: str) -> Iterator[int]:
        fd = private_files.open_directory(tenant, self._base_fd, self._owners)
        try:
            yield fd
        finally:
            os.close(fd)

    def close(self) -> None:
        """Release the directory. No other method may be running."""
        if self._base_fd >= 0:
            os.close(self._base_fd)
            self._base_fd = -1

    # --- using ----------------------------------------------------------------------------------

    def has(self, key: Key) -> bool:
        """True if there is a file. Does not block."""
        return key in self._sizes

    def wants(self, key: Key) -> bool:
        """True if `save` would keep an artifact of this module. Does not block."""
        return self._budget_bytes > 0 and self._is_stored(key.tenant, key.digest)

    def load(self, key: Key, engine: EngineIdentity) -> Artifact | None:
        """Return an artifact made by this engine; None if there is none that can be trusted."""
        assert self._sealer is not None
        name = _name(key)
        try:
            with self._tenant(key.tenant) as tenant_fd:
                try:
                    fd = private_files.open_file(name, tenant_fd, self._owners)
                    with open(fd, "rb", buffering=0):
                        artifact = self._sealer.read(key, engine, fd, self._max_artifact_bytes)
                        os.utime(fd)
                except (NotPrivate, SealBroken) as error:
                    self._forget(key)
                    self._reject(tenant_fd, name, error)
                    return None
        except (NotPrivate, OSError) as error:
            self._forget(key)
            log.error("the artifact of %s cannot be read: %s", key.digest, error)
            return None
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
            self.loaded_total += 1
        return artifact

    def save(self, key: Key, artifact: Artifact) -> None:
        """Keep an artifact, if its module is stored and there is room. Raises nothing."""
        assert self._sealer is not None
        size = sealed_bytes(key, artifact.engine, artifact)
        if size > self._budget_bytes or not self._is_stored(key.tenant, key.digest):
            return
        aside = f"new-{secrets.token_hex(8)}"
        try:
            tenant_fd = private_files.make_directory(key.tenant, self._base_fd, self._owners)
            try:
                fd = private_files.create_file(aside, tenant_fd)
                with open(fd, "wb", buffering=0):
                    self._sealer.write(key, artifact.engine, artifact, fd)
                self._enter(key, size, tenant_fd, aside)
            finally:
                private_files.remove(aside, tenant_fd)
                os.close(tenant_fd)
        except (NotPrivate, OSError) as error:
            log.warning("the artifact of %s cannot be kept on disk: %s", key.digest, error)

    def _enter(self, key: Key, size: int, tenant_fd: int, aside: str) -> None:
        with self._lock:
            # A module that was deleted meanwhile has no artifacts: `remove` came before, or waits.
            if not self._is_stored(key.tenant, key.digest):
                return
            os.rename(aside, _name(key), src_dir_fd=tenant_fd, dst_dir_fd=tenant_fd)
            self.stored_bytes += size - self._sizes.pop(key, 0)
            self._sizes[key] = size
            self._make_room()

    def _make_room(self) -> None:
        while self.stored_bytes > self._budget_bytes:
            self._remove(next(iter(self._sizes)))

    def remove(self, tenant: str, digest: str) -> None:
        """Remove the artifacts of a module that is no longer stored."""
        with self._lock:
            for fuel in (False, True):
                key = Key(tenant, digest, fuel)
                if key in self._sizes:
                    self._remove(key)

    def _remove(self, key: Key) -> None:
        self.stored_bytes -= self._sizes.pop(key)
        try:
            with self._tenant(key.tenant) as tenant_fd:
                private_files.remove(_name(key), tenant_fd)
        except (NotPrivate, OSError) as error:
            log.warning("the artifact of %s cannot be removed: %s", key.digest, error)

    def _forget(self, key: Key) -> None:
        with self._lock:
            self.stored_bytes -= self._sizes.pop(key, 0)

    def _reject(self, dir_fd: int, name: str, error: Exception) -> None:
        with self._lock:
            self.rejected_total += 1
        log.error("stored artifact %s is not used and is removed: %s", name, error)
        with contextlib.suppress(OSError):
            private_files.remove(name, dir_fd)


def _name(key: Key) -> str:
    return f"{key.digest.removeprefix(DIGEST_PREFIX)}.{'fuel' if key.fuel else 'plain'}"
