"""Artifacts that no compiler made: what seals and stores see of them is bytes."""

from __future__ import annotations

import os

from sandboxd.supervisor.artifacts import Artifact, ModuleInfo
from sandboxd.supervisor.keys import DIGEST_PREFIX, EngineIdentity, Key
from sandboxd.supervisor.memory_file import new_memory_file, seal
from sandboxd.v1 import call_pb2

ENGINE = EngineIdentity("50.0.0", "aa" * 32, "bb" * 32, "cc" * 32)
KEY = Key("tenant", DIGEST_PREFIX + "0" * 64, fuel=False)
INFO = ModuleInfo.of(
    (call_pb2.Extern(module="env", name="log", kind=call_pb2.EXTERN_KIND_FUNCTION),),
    (
        call_pb2.Extern(
            name="f", kind=call_pb2.EXTERN_KIND_FUNCTION, params=[call_pb2.VALUE_TYPE_I32]
        ),
        call_pb2.Extern(name="memory", kind=call_pb2.EXTERN_KIND_MEMORY, minimum=1),
    ),
)


def artifact(content: bytes, info: ModuleInfo = INFO) -> Artifact:
    fd = new_memory_file()
    os.write(fd, content)
    seal(fd)
    return Artifact(fd, len(content), info, ENGINE)


def content_of(held: Artifact) -> bytes:
    return os.pread(held.fd, held.size_bytes + 1, 0)


def digest(number: int) -> str:
    return f"{DIGEST_PREFIX}{number:064x}"
