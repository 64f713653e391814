"""Memory in huge pages, by the kernel's own account of it."""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cleave.runtime.engines import huge_pages
from cleave.runtime.engines.huge_pages import HugePages, huge_page_size

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not huge_page_size(), reason="the system gives no huge pages"
)
MIB = 1 << 20


@contextmanager
def private(size: int) -> Iterator[mmap.mmap]:
    """Memory as malloc gets it."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        yield memory


def account(memory: mmap.mmap) -> dict[str, int]:
    """MiB of the mapping that has this memory, by /proc/self/smaps."""
    address = np.frombuffer(memory, np.uint8).ctypes.data
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if mapping:
            inside = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif inside and line.endswith("kB"):
            name, size, _ = line.split()
            found[name.rstrip(":")] = int(size) >> 10
    return found


def moved() -> None:
    pages = HugePages()
    pages.wait()


def test_memory_in_use_moves_and_keeps_its_contents() -> None:
    with private(64 * MIB) as memory:
        array = np.frombuffer(memory, np.uint32)
        array[:] = np.arange(len(array))
        before = account(memory)["AnonHugePages"]
        moved()
        after = account(memory)["AnonHugePages"]
        np.testing.assert_array_equal(array, np.arange(len(array)))
        del array
    if after == before:
        pytest.skip("the kernel cannot move memory into huge pages on demand, or has none to give")
    assert after >= 56


def test_memory_that_is_not_used_is_not_taken() -> None:
    with private(64 * MIB) as memory:
        array = np.frombuffer(memory, np.uint8)
        array[:: 4 * mmap.PAGESIZE] = 1
        before = account(memory)
        moved()
        after = account(memory)
        del array
    assert (after["Rss"], after["AnonHugePages"]) == (before["Rss"], before["AnonHugePages"])


def test_it_ends_when_told_to() -> None:
    HugePages().close()


def test_a_system_told_to_give_none_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n", "ascii")
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert huge_page_size() == 0
    moved()


def test_a_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "missing")
    moved()
    monkeypatch.undo()
    monkeypatch.setattr(huge_pages, "_PAGES", tmp_path / "missing")
    moved()
