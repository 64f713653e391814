"""The blocks that are chosen for Hopper fit it, by Triton's own compiler."""

from __future__ import annotations

from typing import Any

import pytest
from compiling import told_by

pytest.importorskip("triton")
PROGRAM, MULTIPROCESSOR = 227 << 10, 228 << 10
"""Bytes of shared memory of a program at most, and of a multiprocessor, on Hopper."""
REGISTERS = 1 << 16
WIDE, GROUPED = (8, 4, 256), (32, 8, 128)
"""heads, kv_heads, head_dim."""


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[int, int, int], Any]:
    """The prefill kernel of both."""
    shapes = (WIDE, GROUPED)
    return dict(zip(shapes, told_by("prefill_code.py", PROGRAM, *WIDE, *GROUPED), strict=True))


def test_a_program_of_the_prefill_kernel_has_the_shared_memory_that_it_needs(
    compiled: dict[tuple[int, int, int], Any],
) -> None:
    assert compiled[WIDE]["shared"] <= PROGRAM


def test_two_programs_share_a_multiprocessor_of_hopper(compiled: dict[tuple[int, int, int], Any]) -> None:
    """Which the registers of its threads are bounded for; a program also takes 1 KiB of the driver's."""
    code = compiled[GROUPED]
    assert 2 * (code["shared"] + 1024) <= MULTIPROCESSOR
    assert 2 * code["threads"] * code["registers"] <= REGISTERS
