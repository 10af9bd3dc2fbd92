"""The secret that seals are made with: STATE/secret, 32 random bytes that nobody else can read.

Losing it costs recompiling, no more. So one that others could have read or written is replaced
instead of trusted, and all that was sealed with it is worthless from then on.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection

from sandboxd.supervisor import private_files
from sandboxd.supervisor.private_files import NotPrivate
from sandboxd.supervisor.sealing import SECRET_BYTES

log = logging.getLogger(__name__)

NAME = "secret"


def load_or_create(dir_fd: int, owners: Collection[int]) -> bytes:
    """Return the secret in a directory, making another one if it is missing or cannot be trusted.

    Raises OSError if the directory cannot be read or written.
    """
    try:
        return _load(dir_fd, owners)
    except FileNotFoundError:
        pass
    except (NotPrivate, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.error("%s is not used and is replaced: %s; modules are compiled again", NAME, reason)
        private_files.remove(NAME, dir_fd)
    return _create(dir_fd)


def _load(dir_fd: int, owners: Collection[int]) -> bytes:
    fd = private_files.open_file(NAME, dir_fd, owners, private_files.OTHERS_MAY_ANYTHING)
    try:
        secret = os.read(fd, SECRET_BYTES + 1)
    finally:
        os.close(fd)
    if len(secret) != SECRET_BYTES:
        raise NotPrivate(f"it does not have {SECRET_BYTES} bytes")
    return secret


def _create(dir_fd: int) -> bytes:
    secret = secrets.token_bytes(SECRET_BYTES)
    aside = f"{NAME}-{secrets.token_hex(8)}"
    fd = private_files.create_file(aside, dir_fd)
    try:
        os.write(fd, secret)
        # A secret that a power cut takes away, or cuts short, is missed like any other.
    finally:
        os.close(fd)
    os.rename(aside, NAME, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    return secret
