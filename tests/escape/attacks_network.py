"""Attacks over sockets, on listeners that do exist on the host."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import time
from typing import Final

from tests.escape.attacks_files import expect_secret
from tests.escape.field import Field, attack
from tests.escape.native import ContainedError, VoidError

_AF_ALG: Final = 38
_AF_VSOCK: Final = 40
_IPPROTO_MPTCP: Final = 262
_SO_RCVTIMEO: Final = 20
_ETH_P_ALL: Final = 0x0003
_NLMSG_DONE, _RTM_NEWLINK, _RTM_GETLINK, _IFLA_IFNAME = 3, 16, 18, 3


def _impatient(family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that gives up after half a second, without poll(2)."""
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVTIMEO, struct.pack("qq", 0, 500_000))
    return made


def _talk(family: int, address: object) -> None:
    with _impatient(family, socket.SOCK_STREAM) as client:
        client.connect(address)  # type: ignore[arg-type]
        expect_secret(client.recv(64))


@attack("TCP over IPv4", "N:ENETUNREACH L:EACCES S:SIGSYS", landlock_abi=4)
def _tcp4(field: Field) -> None:
    _talk(socket.AF_INET, ("127.0.0.1", field.bait.tcp4))


@attack("TCP over IPv6", "N:EADDRNOTAVAIL|ENETUNREACH L:EACCES S:SIGSYS", landlock_abi=4)
def _tcp6(field: Field) -> None:
    if not field.bait.tcp6:
        raise VoidError("the host has no IPv6")
    _talk(socket.AF_INET6, ("::1", field.bait.tcp6))


@attack("take a TCP port of the host", "N:contained L:EACCES S:SIGSYS", landlock_abi=4)
def _bind(field: Field) -> None:
    with socket.socket() as server:
        # In use on the host; free wherever the host's listener is not.
        try:
            server.bind(("127.0.0.1", field.bait.tcp4))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return
            raise
    raise ContainedError


@attack("multipath TCP", "N:ENETUNREACH S:SIGSYS")
def _mptcp(field: Field) -> None:
    # Landlock's rights are about plain TCP.
    with _impatient(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_MPTCP) as client:
        client.connect(("127.0.0.1", field.bait.tcp4))
        expect_secret(client.recv(64))


@attack("UDP", "N:ENETUNREACH S:SIGSYS")
def _udp(field: Field) -> None:
    with _impatient(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", ("127.0.0.1", field.bait.udp))
        expect_secret(client.recv(64))


@attack("UDP over IPv6", "N:EADDRNOTAVAIL|ENETUNREACH S:SIGSYS")
def _udp6(field: Field) -> None:
    if not field.bait.udp6:
        raise VoidError("the host has no IPv6")
    with _impatient(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", ("::1", field.bait.udp6))
        expect_secret(client.recv(64))


@attack("unix datagrams by a path", "U:EACCES N:ENOENT S:SIGSYS")
def _unix_datagram(field: Field) -> None:
    with _impatient(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind("")  # an abstract address of its own, for the answer
        client.sendto(b"hello", f"{field.bait.directory}/datagrams")
        expect_secret(client.recv(64))


@attack("listen on a unix socket of the host", "N:ENOENT L:EACCES S:SIGSYS")
def _unix_listen(field: Field) -> None:
    path = f"{field.bait.directory}/listener"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    os.unlink(path)


@attack("unix socket by its path", "U:EACCES N:ENOENT S:SIGSYS")
def _unix(field: Field) -> None:
    _talk(socket.AF_UNIX, field.bait.socket)


@attack("abstract unix socket", "N:ECONNREFUSED L:EPERM S:SIGSYS", landlock_abi=6)
def _abstract(field: Field) -> None:
    _talk(socket.AF_UNIX, f"\0{field.bait.abstract}")


@attack("take an abstract name of the host", "N:contained S:SIGSYS")
def _abstract_name(field: Field) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(f"\0{field.bait.abstract}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return  # the host's own listener has it
            raise
    raise ContainedError


@attack("abstract unix datagrams", "N:ECONNREFUSED L:EPERM S:SIGSYS", landlock_abi=6)
def _abstract_datagram(field: Field) -> None:
    with _impatient(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind("")
        client.sendto(b"hello", f"\0{field.bait.abstract}-datagrams")
        expect_secret(client.recv(64))


@attack("learn the host's interfaces by netlink", "N:contained S:SIGSYS")
def _netlink(field: Field) -> None:
    if field.bait.interfaces == ["lo"]:
        raise VoidError("the host has no interface but the loopback")
    with _impatient(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHIIBxHiII", 32, _RTM_GETLINK, 0x301, 1, 0, 0, 0, 0, 0, 0))
        answer = netlink.recv(1 << 16)
    names = [name for name in field.bait.interfaces if name != "lo"]
    if not any(name.encode() + b"\0" in answer for name in names):
        raise ContainedError


@attack("listen in on the host's packets", "U:EPERM N:ENETDOWN|EAGAIN S:SIGSYS")
def _packet(_field: Field) -> None:
    with _impatient(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as wire:
        wire.bind(("lo", _ETH_P_ALL))
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            with contextlib.suppress(ContainedError):
                expect_secret(wire.recv(2048))
                return
    raise ContainedError


@attack("forge packets over a raw socket", "U:EPERM N:ENETUNREACH S:SIGSYS")
def _raw(_field: Field) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(b"\x00" * 8, ("127.0.0.1", 0))


@attack("reach the hypervisor by a vsock", "S:SIGSYS")
def _vsock(_field: Field) -> None:
    with socket.socket(_AF_VSOCK, socket.SOCK_STREAM) as vsock:
        vsock.bind((0xFFFFFFFF, 0xFFFFFFFF))


@attack("reach the kernel's ciphers", "S:SIGSYS")
def _alg(_field: Field) -> None:
    with socket.socket(_AF_ALG, socket.SOCK_SEQPACKET) as cipher:
        cipher.bind(("hash", "sha256"))


@attack("pass a descriptor to the supervisor", "S:SIGSYS F:EPERM")
def _pass_descriptor(field: Field) -> None:
    rights = array.array("i", [field.channel.fileno()])
    field.channel.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
