"""Seals: how an artifact that was on disk is known to be the one that a compiler here made.

An artifact is machine code without integrity of its own: most of its bits can be flipped and the
engine still loads and runs it. So what lies on disk is sealed with HMAC-SHA256, under a key that
is derived from a secret of the supervisor and from the tenant's name (RFC 5869). A file is

    magic, lengths       _PREFIX
    header               whose artifact, of which module, made by which engine: `_header`
    description          sandboxd.wire.v1.Compiled: imports and exports, which calls are checked by
    artifact
    seal                 32 bytes, over all of the above

What is verified is what is used: the artifact is first copied into a memory file, that is made
unchangeable, and the seal is computed over its content. No runner ever maps the file on disk.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from sandboxd.supervisor.artifacts import Artifact, ModuleInfo
from sandboxd.supervisor.keys import EngineIdentity, Key
from sandboxd.supervisor.memory_file import new_memory_file, seal
from sandboxd.wire.v1 import runner_pb2

SECRET_BYTES: Final = 32
# The last byte is the version of the format.
_MAGIC: Final = b"sbx-art\x01"
# Magic, then lengths: header, description, artifact.
_PREFIX: Final = struct.Struct("<8sIIQ")
_SEAL_BYTES: Final = 32
_SALT: Final = b"sandboxd artifact seal"
_CHUNK_BYTES: Final = 1 << 20
# As the longest answer of a compiler (compilation.MAX_REPLY_BYTES).
_MAX_DESCRIPTION_BYTES: Final = 24 << 20


class SealBroken(Exception):  # noqa: N818 - a state of the world
    """A file is not what it should be; the message says in which way. It must not be used."""


class Sealer:
    """Seals artifacts and opens sealed ones. All methods block; they may be called in threads."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes")
        self._root = hmac.digest(_SALT, secret, "sha256")

    def write(self, key: Key, engine: EngineIdentity, artifact: Artifact, fd: int) -> int:
        """Write an artifact with its seal to a file; return the number of bytes. Raises OSError."""
        header = _header(key, engine)
        description = artifact.info.description
        prefix = _PREFIX.pack(_MAGIC, len(header), len(description), artifact.size_bytes)
        mac = self._mac(key.tenant)
        for part in (prefix, header, description):
            mac.update(part)
            _write_all(fd, memoryview(part))
        for chunk in _chunks(artifact.fd, artifact.size_bytes):
            mac.update(chunk)
            _write_all(fd, chunk)
        _write_all(fd, memoryview(mac.digest()))
        return sealed_bytes(key, engine, artifact)

    def read(self, key: Key, engine: EngineIdentity, fd: int, max_bytes: int) -> Artifact:
        """Return the artifact in a file. Raises `SealBroken`, or OSError if it cannot be read.

        `max_bytes` bounds the artifact. The file may be changed meanwhile: what is returned is what
        was verified.
        """
        prefix = _read(fd, _PREFIX.size, 0)
        magic, header_bytes, description_bytes, size = _PREFIX.unpack(prefix)
        expected = _header(key, engine)
        if magic != _MAGIC:
            raise SealBroken("it is not a sealed artifact of this version")
        if description_bytes > _MAX_DESCRIPTION_BYTES or not 0 < size <= max_bytes:
            raise SealBroken("its lengths are out of bounds")
        if header_bytes != len(expected) or _read(fd, header_bytes, len(prefix)) != expected:
            raise SealBroken("it is another tenant's or module's, or was made by another engine")
        at = len(prefix) + header_bytes
        description = _read(fd, description_bytes, at)
        at += description_bytes
        if os.fstat(fd).st_size != at + size + _SEAL_BYTES:
            raise SealBroken("its size is not the sum of its parts")
        mac = self._mac(key.tenant)
        for part in (prefix, expected, description):
            mac.update(part)
        artifact_fd = _sealed_copy(fd, at, size)
        try:
            for chunk in _chunks(artifact_fd, size):
                mac.update(chunk)
            if not hmac.compare_digest(mac.digest(), _read(fd, _SEAL_BYTES, at + size)):
                raise SealBroken("its seal is wrong")
            info = _understand(description)
        except BaseException:
            os.close(artifact_fd)
            raise
        return Artifact(artifact_fd, size, info, engine, from_disk=True)

    def _mac(self, tenant: str) -> hmac.HMAC:
        # HKDF-Expand for one block.
        key = hmac.digest(self._root, b"tenant " + tenant.encode() + b"\x01", "sha256")
        return hmac.new(key, digestmod=hashlib.sha256)


def sealed_bytes(key: Key, engine: EngineIdentity, artifact: Artifact) -> int:
    """Return the size of the file that an artifact would be sealed into."""
    head = _PREFIX.size + len(_header(key, engine)) + len(artifact.info.description)
    return head + artifact.size_bytes + _SEAL_BYTES


def _header(key: Key, engine: EngineIdentity) -> bytes:
    """Encode whose, of which module and by which engine; no two differ in meaning alone."""
    fields = [key.tenant, key.digest, "fuel" if key.fuel else "plain", *engine]
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in map(str.encode, fields))


def _understand(description: bytes) -> ModuleInfo:
    try:
        compiled = runner_pb2.Compiled.FromString(description)
        return ModuleInfo.of(compiled.imports, compiled.exports, compiled.no_start_function)
    except (DecodeError, ValueError) as error:
        raise SealBroken("its description is not one of this version") from error


def _sealed_copy(fd: int, at: int, size: int) -> int:
    """Copy a part of a file into a memory file that nobody can change any more."""
    copy = new_memory_file()
    try:
        while size:
            sent = os.sendfile(copy, fd, at, size)
            if not sent:
                raise SealBroken("it was cut short while it was read")
            at += sent
            size -= sent
        seal(copy)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _chunks(fd: int, size: int) -> Iterator[memoryview]:
    """Read a file from its beginning; a chunk is valid until the next one."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, size)))
    at = 0
    while at < size:
        length = os.preadv(fd, [buffer[: size - at]], at)
        if not length:
            raise SealBroken("it is shorter than it should be")
        yield buffer[:length]
        at += length


def _read(fd: int, size: int, at: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.pread(fd, size - len(data), at + len(data))
        if not more:
            raise SealBroken("it is shorter than it should be")
        data += more
    return data


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]
