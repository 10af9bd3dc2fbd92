"""Attacks with new machine code, and on the memory of the attacker itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from typing import Final

from tests.escape import native
from tests.escape.field import Field, attack
from tests.escape.native import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PAGE, VoidError
from wasmtime import _ffi as ffi

from sandboxd.runner.isolation import kernel

#: A function that returns 42.
_CODE: Final = b"\xb8\x2a\x00\x00\x00\xc3" if native.X86 else b"\x40\x05\x80\x52\xc0\x03\x5f\xd6"
_READ_WRITE, _READ_EXEC, _ALL = 3, 5, 7
_READ_IMPLIES_EXEC: Final = 0x0400000
#: The engine's own: the one that every host has.
_LIBRARY: Final = str(ffi.dll._name)
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _run(address: int) -> None:
    """Call the code at an address. A prototype is no callback: it needs no page of libffi's."""
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() != 42:
        raise OSError(0, "the code did not answer")


@attack("map memory writable and executable", "S:SIGSYS Z:SIGSYS M:EACCES")
def _mmap_rwx(_field: Field) -> None:
    address = native.mmap(PAGE, _ALL, MAP_PRIVATE | MAP_ANONYMOUS)
    ctypes.memmove(address, _CODE, len(_CODE))
    _run(address)


@attack("make written memory executable after loading", "Z:SIGSYS M:EACCES")
def _mprotect_rx(_field: Field) -> None:
    address = native.mmap(PAGE, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    ctypes.memmove(address, _CODE, len(_CODE))
    kernel.mprotect(address, PAGE, _READ_EXEC)
    _run(address)


@attack("map a memory file executable", "R:EFBIG S:SIGSYS Z:SIGSYS")
def _memfd_exec(_field: Field) -> None:
    fd = os.memfd_create("code", 0)
    os.write(fd, _CODE)
    _run(native.mmap(PAGE, _READ_EXEC, MAP_PRIVATE, fd))


@attack("map a memory file twice, writable and executable", "R:EFBIG S:SIGSYS Z:SIGSYS")
def _memfd_twice(_field: Field) -> None:
    fd = os.memfd_create("code", 0)
    os.write(fd, bytes(PAGE))
    code = native.mmap(PAGE, _READ_EXEC, MAP_SHARED, fd)
    os.pwrite(fd, _CODE, 0)
    _run(code)


@attack("have every mapping made executable by personality", "S:SIGSYS M:EACCES")
def _personality(_field: Field) -> None:
    if _libc.personality(ctypes.c_ulong(_READ_IMPLIES_EXEC)) < 0:
        raise OSError(ctypes.get_errno(), "personality")
    address = native.mmap(PAGE, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    ctypes.memmove(address, _CODE, len(_CODE))
    _run(address)


@attack("load a library of the host", "N:ENOENT L:EACCES S:EACCES Z:SIGSYS")
def _library(_field: Field) -> None:
    fd = os.open(_LIBRARY, os.O_RDONLY)
    native.mmap(PAGE, _READ_EXEC, MAP_PRIVATE, fd)


def _code_page(field: Field) -> int:
    if not field.code_pages:
        raise VoidError("libffi has no writable and executable page here")
    return field.code_pages[0][0] + field.code_pages[0][1] - 64


@attack("write code into libffi's page", "M:SIGSEGV")
def _libffi(field: Field) -> None:
    address = _code_page(field)
    ctypes.memmove(address, _CODE, len(_CODE))
    _run(address)


@attack("make libffi's page writable, write, and executable again", "Z:SIGSYS M:EACCES")
def _libffi_again(field: Field) -> None:
    address = _code_page(field)
    start, size = field.code_pages[0]
    kernel.mprotect(start, size, _READ_WRITE)
    ctypes.memmove(address, _CODE, len(_CODE))
    kernel.mprotect(start, size, _READ_EXEC)
    _run(address)


@attack(
    "overwrite code through /proc/self/mem",
    "U:EACCES N:ENOENT L:EACCES S:EACCES",
    "N:ENOENT L:EACCES S:EACCES D:EACCES",
)
def _own_mem(_field: Field) -> Iterator[None]:
    address = native.mmap(PAGE, _READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    kernel.mprotect(address, PAGE, _READ_EXEC)
    yield
    fd = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(fd, _CODE, address)
    _run(address)


@attack(
    "leave the memory behind in a core file",
    "U:SIGABRT R:SIGABRT N:SIGABRT L:SIGABRT D:SIGABRT",
    "R:SIGABRT N:SIGABRT L:SIGABRT D:SIGABRT",
)
def _core(field: Field) -> Iterator[None]:
    if field.bait.piped_cores:
        raise VoidError("a program of the host takes the core files")
    with contextlib.suppress(FileNotFoundError):
        os.chdir(field.bait.directory)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    os.abort()
