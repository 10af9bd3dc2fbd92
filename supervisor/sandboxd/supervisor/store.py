"""The module store: what was acknowledged is on disk, and what was not leaves no trace.

    STATE/lock                                   held while a daemon runs
    STATE/incoming/<random>/                     a push in progress; emptied at start
    STATE/modules/<tenant>/<hex digest>/
        module.wasm                              the bytes, as pushed
        module.pb                                sandboxd.v1.Module: what the compiler told
    STATE/secret, STATE/artifacts/               see artifact_store.py; nothing there is missed

A push is written to `incoming`, synced, and renamed into place, which is atomic; then the directory
is synced, and only then the push is acknowledged. A delete renames the other way. At start every
entry is read; one that is not whole (it cannot be, short of a damaged disk) is reported and not
served, and left alone until it is pushed again. So is one whose bytes turn out, when they are to
be compiled again, to have another digest.

In memory is of each module what fits a few words. What it imports and exports, which is as much as
it likes, is read when it is asked for.

All methods that touch the disk block; the services call them in a thread.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from sandboxd.supervisor import faults, state_directory
from sandboxd.supervisor.keys import DIGEST_PREFIX
from sandboxd.supervisor.state_directory import StateDirectoryForeign
from sandboxd.v1 import module_pb2

log = logging.getLogger(__name__)

WASM_NAME = "module.wasm"
META_NAME = "module.pb"


# What a daemon makes in its state directory: its own files, and the artifact store's.
OWN_NAMES = frozenset({state_directory.LOCK_NAME, "incoming", "modules", "artifacts", "secret"})


class Entry(NamedTuple):
    """What the index knows of a module. `disk_bytes` is of all its files."""

    digest: str
    size_bytes: int
    created_at_ns: int
    disk_bytes: int

    @classmethod
    def of(cls, meta: module_pb2.Module) -> Entry:
        """Sum up a description."""
        created_at_ns = meta.create_time.ToNanoseconds()
        return cls(meta.digest, meta.size_bytes, created_at_ns, meta.size_bytes + meta.ByteSize())

    def brief(self) -> module_pb2.Module:
        """Return the module without imports and exports."""
        module = module_pb2.Module(digest=self.digest, size_bytes=self.size_bytes)
        module.create_time.FromNanoseconds(self.created_at_ns)
        return module


class Incoming:
    """A push in progress: bytes go to a file, and into the digest. Close it in every case."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.head = b""
        directory.mkdir(mode=0o700)
        self.fd = os.open(
            directory / WASM_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )

    @property
    def digest(self) -> str:
        """Digest of what was written so far."""
        return DIGEST_PREFIX + self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append. Raises `faults.ModuleTooLarge` or `faults.StoreFull`."""
        if self.size_bytes + len(chunk) > self._max_bytes:
            raise faults.ModuleTooLarge(
                f"a module has at most {self._max_bytes} bytes here",
                field="chunk",
                metadata={"limit_bytes": str(self._max_bytes)},
            )
        if len(self.head) < 8:
            self.head = (self.head + chunk)[:8]
        self._hash.update(chunk)
        view = memoryview(chunk)
        while view:
            try:
                written = os.write(self.fd, view)
            except OSError as error:
                raise _full(error) from error
            view = view[written:]
            self.size_bytes += written

    def reopen(self) -> int:
        """Open what was written for reading alone; the descriptor is the caller's.

        It is for the compiler, which a hostile module may take over: with a copy of `fd` it could
        change the module after its digest was taken, and fill the disk.
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def commit(self, meta: module_pb2.Module, target: Path) -> bool:
        """Make the module durable at `target`; False if another push got there first.

        Raises `faults.ModuleDamaged` or `StoreFull`.
        """
        if os.fstat(self.fd).st_size != self.size_bytes:
            log.error("a push of %s was changed while it was under way", meta.digest)
            raise faults.ModuleDamaged(
                "the module's file is not what was written to it; nothing was kept",
                metadata={"digest": meta.digest},
            )
        try:
            with open(self._directory / META_NAME, "xb") as file:
                file.write(meta.SerializeToString())
                file.flush()
                os.fsync(file.fileno())
            os.fsync(self.fd)
            _sync(self._directory)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(target.parent.parent)
            self._directory.rename(target)
            _sync(target.parent)
        except FileExistsError:
            return False
        except OSError as error:
            if target.exists():
                return False  # rename onto a directory that is not empty
            raise _full(error) from error
        return True

    def close(self) -> None:
        """Release the file and, unless it was committed, remove it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        shutil.rmtree(self._directory, ignore_errors=True)


class Store:
    """Modules on disk, indexed in memory by (tenant, digest).

    `max_modules` and `budget_bytes` (of their files) bound what is taken in, not what is there.
    """

    def __init__(
        self, state_dir: Path, max_module_bytes: int, max_modules: int, budget_bytes: int
    ) -> None:
        self._modules = self._incoming = state_dir  # set by open()
        self._max_module_bytes = max_module_bytes
        self._max_modules = max_modules
        self._budget_bytes = budget_bytes
        self._stored_bytes = 0
        self._index: dict[str, dict[str, Entry]] = {}
        self._order: dict[str, list[str]] = {}
        self._lock_fd = self._base_fd = -1
        self._state_dir = state_dir

    def claim(self) -> None:
        """Open and lock the directory. Nothing else in it is touched: this may be root.

        Raises `StateDirectoryUnusable`, or OSError with a path that cannot be used.
        """
        # By descriptor from here on: once root is given up, the way to the directory may be barred,
        # and whoever swaps a directory on the way changes nothing.
        self._base_fd = state_directory.open_or_make(self._state_dir)
        self._refuse_foreign()
        self._lock_fd = state_directory.lock(self._base_fd, self._state_dir)

    def unlock(self) -> None:
        """Let another daemon have the directory. It must not be used afterwards, but looked at."""
        os.close(self._lock_fd)
        self._lock_fd = -1

    def load(self) -> None:
        """Drop what was never acknowledged and read the index. Raises OSError."""
        base = Path(f"/proc/self/fd/{self._base_fd}")
        self._modules = base / "modules"
        self._incoming = base / "incoming"
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(mode=0o700)
        self._modules.mkdir(mode=0o700, exist_ok=True)
        for tenant in self._modules.iterdir():
            for entry in tenant.iterdir():
                self._read(tenant.name, entry)
        for tenant_name, modules in self._index.items():
            self._order[tenant_name] = sorted(modules)

    def _refuse_foreign(self) -> None:
        """Touch no directory that is not ours alone: files in it are removed, and change owner."""
        names = set(os.listdir(self._base_fd))
        foreign = {name for name in names - OWN_NAMES if not name.startswith("secret-")}
        if foreign or (names and state_directory.LOCK_NAME not in names):
            raise StateDirectoryForeign(
                f"{self._state_dir} holds what is not sandboxd's ({min(foreign or names)!r}); pass "
                "an empty directory as --state-dir"
            )

    def _read(self, tenant: str, entry: Path) -> None:
        try:
            module = module_pb2.Module.FromString((entry / META_NAME).read_bytes())
            size = (entry / WASM_NAME).stat().st_size
        except (OSError, DecodeError) as error:
            log.error("stored module %s cannot be read and is not served: %s", entry.name, error)
            return
        if module.digest != DIGEST_PREFIX + entry.name or module.size_bytes != size:
            log.error("stored module %s is damaged and is not served", entry.name)
            return
        found = Entry.of(module)
        self._index.setdefault(tenant, {})[found.digest] = found
        self._stored_bytes += found.disk_bytes

    @property
    def directory_fd(self) -> int:
        """Descriptor of the state directory; valid while the store is open."""
        return self._base_fd

    def close(self) -> None:
        """Unlock the directory."""
        if self._base_fd >= 0:
            os.close(self._base_fd)
            self._base_fd = -1
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- writing --------------------------------------------------------------------------------

    def begin(self) -> Incoming:
        """Start a push. Raises `faults.StoreFull`."""
        try:
            return Incoming(self._incoming / secrets.token_hex(8), self._max_module_bytes)
        except OSError as error:
            raise _full(error) from error

    def commit(self, tenant: str, incoming: Incoming, meta: module_pb2.Module) -> bool:
        """Make a push durable; False if the module was stored already."""
        path = self._path(tenant, meta.digest)
        if self.get(tenant, meta.digest) is None and path.exists():
            # It was found damaged at the start. To leave it would lose what is acknowledged now.
            self._discard(path)
        return incoming.commit(meta, path)

    def check_room(self, size_bytes: int) -> None:
        """Raise `faults.StoreFull` if a module of that many bytes is not to be taken in."""
        for setting, maximum, would_be in (
            ("--max-modules", self._max_modules, self.count() + 1),
            ("--module-disk", self._budget_bytes, self._stored_bytes + size_bytes),
        ):
            if would_be > maximum:
                raise faults.StoreFull(
                    f"{setting} allows {maximum}; delete modules that are not needed",
                    metadata={"setting": setting, "maximum": str(maximum)},
                )

    def remember(self, tenant: str, meta: module_pb2.Module) -> Entry:
        """Enter a committed module into the index and return what is stored: the first push's.

        Called on the event loop.
        """
        modules = self._index.setdefault(tenant, {})
        known = modules.get(meta.digest)
        if known is None:
            known = modules[meta.digest] = Entry.of(meta)
            bisect.insort(self._order.setdefault(tenant, []), known.digest)
            self._stored_bytes += known.disk_bytes
        return known

    def forget(self, tenant: str, digest: str) -> bool:
        """Take a module out of the index; False if it is not there. Called on the event loop."""
        known = self._index.get(tenant, {}).pop(digest, None)
        if known is None:
            return False
        self._stored_bytes -= known.disk_bytes
        order = self._order[tenant]
        del order[bisect.bisect_left(order, digest)]
        return True

    def remove(self, tenant: str, digest: str) -> None:
        """Remove a forgotten module from the disk, for good."""
        self._discard(self._path(tenant, digest))

    def _discard(self, path: Path) -> None:
        trash = self._incoming / secrets.token_hex(8)
        path.rename(trash)
        _sync(path.parent)
        shutil.rmtree(trash, ignore_errors=True)

    # --- reading --------------------------------------------------------------------------------

    def get(self, tenant: str, digest: str) -> Entry | None:
        """Return what is known about a module, or None. Does not touch the disk."""
        modules = self._index.get(tenant)
        return modules.get(digest) if modules is not None else None

    def describe(self, tenant: str, digest: str) -> module_pb2.Module | None:
        """Read a module's description from the disk; None if it is not there.

        Raises `faults.ModuleDamaged`, or OSError for want of descriptors.
        """
        try:
            raw = (self._path(tenant, digest) / META_NAME).read_bytes()
            module = module_pb2.Module.FromString(raw)
            if module.digest != digest:
                raise DecodeError("it is another module's")
        except FileNotFoundError:
            return None
        except (OSError, DecodeError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            log.error("the description of %s cannot be read: %s", digest, error)
            raise faults.ModuleDamaged(
                f"the description of {digest} cannot be read", metadata={"digest": digest}
            ) from error
        return module

    def open_wasm(self, tenant: str, digest: str) -> int:
        """Open a module's bytes for reading; the descriptor is the caller's."""
        return os.open(self._path(tenant, digest) / WASM_NAME, os.O_RDONLY | os.O_CLOEXEC)

    def page(self, tenant: str, prefix: str, after: str, size: int) -> list[Entry]:
        """Return up to `size` modules in order of digest, beginning after `after`."""
        order = self._order.get(tenant, [])
        start = bisect.bisect_right(order, after) if after else 0
        start = max(start, bisect.bisect_left(order, prefix))
        page = []
        for digest in order[start : start + size]:
            if not digest.startswith(prefix):
                break
            page.append(self._index[tenant][digest])
        return page

    def count(self) -> int:
        """Number of stored modules of all tenants."""
        return sum(len(modules) for modules in self._index.values())

    def _path(self, tenant: str, digest: str) -> Path:
        return self._modules / tenant / digest.removeprefix(DIGEST_PREFIX)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _full(error: OSError) -> faults.StoreFull:
    return faults.StoreFull(f"the module cannot be stored: {os.strerror(error.errno or 0)}")
