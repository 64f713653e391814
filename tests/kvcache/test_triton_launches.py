"""What the GPU backend launches without asking Triton is what Triton would launch: by Triton's own compiler,
over a driver that only listens. It runs in a process of its own, because others here run the interpreter.
"""

from __future__ import annotations

import pytest
from compiling import told_by

pytest.importorskip("triton")
APART, COLUMNS, SPARSE, UNALIGNED = range(4)
"""How q, k and v lie in memory; the last two have equal strides."""
CODES = 9
"""Three kernels of three layers."""


def test_the_code_of_a_kernel_is_looked_up_once_for_each_layout_and_never_mistaken() -> None:
    ways = [APART, APART, COLUMNS, COLUMNS, SPARSE, SPARSE, UNALIGNED, UNALIGNED, SPARSE]
    told = told_by("triton_launches.py", *ways)
    launches = told["launches"] // len(ways)
    asked = [after - before for before, after in zip([0, *told["asked"]], told["asked"], strict=False)]
    assert asked == [CODES, 0, CODES, 0, CODES, 0, launches, launches, 0]
    assert launches > CODES
    # Hooks hear of every launch, also of those that Triton is not asked about: sanitize.py counts on it.
    assert sum(told["heard"].values()) == 2 * told["launches"]
    assert told["heard"].keys() == {"append_kernel", "decode_kernel", "prefill_kernel"}
