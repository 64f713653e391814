"""Which kernel is taken when timings are close."""

from __future__ import annotations

import pytest

from cleave.runtime.engines.inductor.choose import fastest
from cleave.runtime.engines.inductor.small import Blocks

ONE, OTHER = Blocks(64, 128, 4, 4), Blocks(32, 128, 4, 5)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((50e-6, 49.5e-6, 49.4e-6), None),  # within the margin the library stays
        ((50e-6, 47e-6, 46.5e-6), ONE),  # and of own kernels the one that stands first
        ((50e-6, 47e-6, 45e-6), OTHER),
        ((50e-6, 60e-6, 70e-6), None),
    ],
)
def test_a_candidate_has_to_be_faster_than_timings_differ_by(
    seconds: tuple[float, ...], chosen: Blocks | None
) -> None:
    assert fastest((None, ONE, OTHER), seconds) == chosen
