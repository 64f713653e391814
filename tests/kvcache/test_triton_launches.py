"""What the GPU backend launches without asking Triton is what Triton would launch: by Triton's own compiler,
over a driver that only listens. It runs in a process of its own, because others here run the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SUPPORT = Path(__file__).parent.parent / "support"
APART, COLUMNS, SPARSE, UNALIGNED = range(4)
"""How q, k and v lie in memory; the last two have equal strides."""
CODES = 9
"""Three kernels of three layers."""


def test_the_code_of_a_kernel_is_looked_up_once_for_each_layout_and_never_mistaken() -> None:
    ways = [APART, APART, COLUMNS, COLUMNS, SPARSE, SPARSE, UNALIGNED, UNALIGNED, SPARSE]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SUPPORT / "triton_launches.py", *map(str, ways)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    launches = told["launches"] // len(ways)
    asked = [after - before for before, after in zip([0, *told["asked"]], told["asked"], strict=False)]
    assert asked == [CODES, 0, CODES, 0, CODES, 0, launches, launches, 0]
    assert launches > CODES
