"""The blocks that are chosen for Hopper fit it, by Triton's own compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parent.parent / "support" / "prefill_code.py"
PROGRAM, MULTIPROCESSOR = 227 << 10, 228 << 10
"""Bytes of shared memory of a program at most, and of a multiprocessor, on Hopper."""
REGISTERS = 1 << 16


def compiled(*numbers: int) -> dict[str, int]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, numbers)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    code: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return code


def test_a_program_of_the_prefill_kernel_has_the_shared_memory_that_it_needs() -> None:
    assert compiled(PROGRAM, 8, 4, 256)["shared"] <= PROGRAM


def test_two_programs_share_a_multiprocessor_of_hopper() -> None:
    """Which the registers of its threads are bounded for; a program also takes 1 KiB of the driver's."""
    code = compiled(PROGRAM, 32, 8, 128)
    assert 2 * (code["shared"] + 1024) <= MULTIPROCESSOR
    assert 2 * code["threads"] * code["registers"] <= REGISTERS
