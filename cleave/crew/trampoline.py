"""A shared library with one function, made in memory, which jumps to an address of this process.

For interfaces that take the path of a library and look up one name in it, where the function is compiled
only at run time and no compiler or linker is at hand.
"""

from __future__ import annotations

import os
import platform
import struct

_PAGE = 0x1000
_HEADER, _PROGRAM, _SYMBOL = 64, 56, 24
"""Bytes of an ELF header, a program header, a symbol."""
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_EXECUTABLE, _WRITEABLE, _READABLE = 1, 2, 4


def is_supported() -> bool:
    """Whether libraries can be made here: on Linux, for x86-64."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


class Trampoline:
    """The library, as a file without a name that exists as long as this object."""

    def __init__(self, name: str, address: int) -> None:
        """`name` is the function to export. Raises OSError where files in memory are not allowed."""
        self._file = os.memfd_create("cleave-trampoline")
        try:
            os.write(self._file, library(name, address))
        except OSError:
            os.close(self._file)
            raise
        # The loader takes a path that it knows for the library that it has, and numbers of files come again:
        # what is in the library is spelled out in steps that lead nowhere.
        content = name.encode() + struct.pack("<Q", address)
        steps = f"{int.from_bytes(content):b}".replace("1", "./").replace("0", "/")
        self.path = f"/proc/self/fd/{steps}{self._file}"

    def close(self) -> None:
        """Close the file; the library stays usable for whoever has loaded it."""
        os.close(self._file)


def library(name: str, address: int) -> bytes:
    """An ELF shared object for x86-64 (System V gABI, chapters 4 and 5) of two pages.

    The first page is read and executed: headers, hash table, symbols, strings, code. The second is read
    and written, since loaders write into the dynamic section.
    """
    strings = b"\0" + name.encode() + b"\0"
    # endbr64; mov rax, address; jmp rax
    code = b"\xf3\x0f\x1e\xfa\x48\xb8" + struct.pack("<Q", address) + b"\xff\xe0"
    hashed = struct.pack("<5I", 1, 2, 1, 0, 0)  # one bucket, which begins with symbol 1; two symbols
    hash_at = _aligned(_HEADER + 4 * _PROGRAM)
    symbols_at = _aligned(hash_at + len(hashed))
    strings_at = symbols_at + 2 * _SYMBOL
    code_at = _aligned(strings_at + len(strings))
    global_function, section = 0x12, 1
    symbol = struct.pack("<IBBHQQ", 1, global_function, 0, section, code_at, len(code))
    # DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL
    entries = ((4, hash_at), (5, strings_at), (6, symbols_at), (10, len(strings)), (11, _SYMBOL), (0, 0))
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    programs = [
        _program(_LOAD, _READABLE | _EXECUTABLE, 0, code_at + len(code)),
        _program(_LOAD, _READABLE | _WRITEABLE, _PAGE, len(dynamic)),
        _program(_DYNAMIC, _READABLE | _WRITEABLE, _PAGE, len(dynamic)),
        # Without it the loader would make the stacks of this process executable.
        _program(_STACK, _READABLE | _WRITEABLE, 0, 0),
    ]
    contents = {
        0: _header(len(programs)) + b"".join(programs),
        hash_at: hashed,
        symbols_at: bytes(_SYMBOL) + symbol,
        strings_at: strings,
        code_at: code,
        _PAGE: dynamic,
    }
    file = bytearray(_PAGE + len(dynamic))
    for place, content in contents.items():
        file[place : place + len(content)] = content
    return bytes(file)


def _header(programs: int) -> bytes:
    """The ELF header of a shared object for x86-64 without sections."""
    shared_object, x86_64, version = 3, 62, 1
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH",
        *(shared_object, x86_64, version, 0, _HEADER, 0, 0, _HEADER, _PROGRAM, programs, 0, 0, 0),
    )


def _aligned(place: int) -> int:
    return -(-place // 16) * 16


def _program(kind: int, flags: int, place: int, size: int) -> bytes:
    """A program header of what stands at `place` of the file, and there in memory."""
    return struct.pack("<IIQQQQQQ", kind, flags, place, place, place, size, size, _PAGE)
