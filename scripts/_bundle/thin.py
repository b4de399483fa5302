"""Blank the device code of other GPUs in CUDA libraries.

A library keeps its size, its ELF and its fat-binary headers; only payloads become zeros. It loads, registers and runs
on the one architecture as before, and compresses to what that architecture needs. In each container stay: the cubins
that run there (same major version, the highest minor version up to its own); where there are none, the newest PTX that
can be compiled for it. Entries of other kinds stay.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

FATBIN_MAGIC, PTX, CUBIN = 0xBA55ED50, 1, 2
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_SECTION_PREFIX = b".nv_fatbin"


class Unreadable(Exception):
    """Report device code whose layout this program does not know."""


class DeviceCode(NamedTuple):
    """Describe one piece of device code: PTX or a cubin, the architecture (90), and where its payload is."""

    kind: int
    architecture: int
    start: int
    size: int


def blank(library: bytearray, architecture: int) -> int:
    """Blank in place what does not run on `architecture`, and return the number of bytes. Raises Unreadable."""
    wanted, unwanted = 0, []
    try:
        for entries in containers(library):
            kept = _kept(entries, architecture)
            wanted += len(kept)
            unwanted += [entry for entry in entries if entry.kind in (PTX, CUBIN) and entry not in kept]
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise Unreadable(str(error)) from None
    if unwanted and not wanted:
        raise Unreadable(f"it has no code for compute capability {architecture / 10:g}")
    for entry in unwanted:
        library[entry.start : entry.start + entry.size] = bytes(entry.size)
    return sum(entry.size for entry in unwanted)


def _kept(entries: list[DeviceCode], architecture: int) -> list[DeviceCode]:
    runs = [e for e in entries if e.kind == CUBIN and e.architecture // 10 == architecture // 10]
    best = max((e.architecture for e in runs if e.architecture <= architecture), default=None)
    if best is not None:
        return [e for e in runs if e.architecture == best]
    compiles = [e for e in entries if e.kind == PTX and e.architecture <= architecture]
    newest = max((e.architecture for e in compiles), default=None)
    return [e for e in compiles if e.architecture == newest]


def containers(library: bytes | bytearray) -> Iterator[list[DeviceCode]]:
    """Yield the entries of each fat binary in a library; nothing where it is no ELF file or has no device code."""
    if not library.startswith(_ELF64_LITTLE):
        return
    for name, offset, size in _sections(library):
        if name.startswith(_SECTION_PREFIX):
            yield from _containers(library, offset, min(offset + size, len(library)))


def _sections(library: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", library, table + number * size) for number in range(count)]
    for header in headers:
        start = headers[names][4] + header[0]
        yield bytes(library[start : library.index(b"\0", start)]), header[4], header[5]


def _containers(library: bytes | bytearray, at: int, end: int) -> Iterator[list[DeviceCode]]:
    while at + 16 <= end:
        magic, _, header, length = struct.unpack_from("<IHHQ", library, at)
        if magic != FATBIN_MAGIC:  # padding between containers
            at += 8
            continue
        stop = at + header + length
        if stop > end:
            raise Unreadable("a fat binary is longer than its section")
        if stop < at + 16:
            raise Unreadable("a fat binary is shorter than its header")
        yield list(_entries(library, at + header, stop))
        at = stop


def _entries(library: bytes | bytearray, at: int, stop: int) -> Iterator[DeviceCode]:
    while at + 32 <= stop:
        kind, _, header, size = struct.unpack_from("<HHIQ", library, at)
        (architecture,) = struct.unpack_from("<I", library, at + 28)
        if header == 0:
            return
        if at + header + size > stop:
            raise Unreadable("device code is longer than its fat binary")
        yield DeviceCode(kind, architecture, at + header, size)
        at += header + size
