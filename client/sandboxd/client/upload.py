"""Cuts a module into the messages of a push, for a blocking and for an asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

from sandboxd.client.operations import Upload
from sandboxd.v1.module_pb2 import PushRequest

# The daemon recommends at most 1 MiB; smaller chunks make for smoother progress.
CHUNK_BYTES = 256 << 10


def messages(upload: Upload) -> Iterator[PushRequest]:
    """Yield the header, then chunks; tells `progress` the bytes handed to gRPC so far."""
    if isinstance(upload.source, AsyncIterable):
        raise TypeError("an asynchronous iterator needs AsyncClient")
    source = (upload.source,) if isinstance(upload.source, bytes) else upload.source
    yield PushRequest(header=upload.header)
    sent = 0
    for piece in source:
        for chunk in _chunks(piece):
            yield PushRequest(chunk=chunk)
            sent += len(chunk)
            if upload.progress is not None:
                upload.progress(sent)


async def messages_async(upload: Upload) -> AsyncIterator[PushRequest]:
    """Yield what `messages` does; the source may be asynchronous."""
    if not isinstance(upload.source, AsyncIterable):
        for message in messages(upload):
            yield message
        return
    yield PushRequest(header=upload.header)
    sent = 0
    async for piece in upload.source:
        for chunk in _chunks(piece):
            yield PushRequest(chunk=chunk)
            sent += len(chunk)
            if upload.progress is not None:
                upload.progress(sent)


def _chunks(piece: bytes) -> Iterable[bytes]:
    if not isinstance(piece, bytes):
        raise TypeError(f"a module is made of bytes, not {type(piece).__name__}")
    return (piece[at : at + CHUNK_BYTES] for at in range(0, len(piece), CHUNK_BYTES))
