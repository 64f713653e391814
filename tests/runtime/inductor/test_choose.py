"""Which kernel is taken when timings are close."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cleave.runtime.engines.inductor.choose import Chooser, Linear, fastest
from cleave.runtime.engines.inductor.small_launch import Blocks

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


def test_what_was_chosen_is_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {Linear(1, 64, 32, norm=True): ONE, Linear(8, 64, 32): None}
    monkeypatch.setattr(Chooser, "_choose", lambda self, layer: answers[layer])
    first = Chooser(torch.float16, torch.device("cpu"))
    assert [first(layer) for layer in answers] == [ONE, None]
    first.keep(tmp_path / "chosen.json")

    def fail(self: Chooser, layer: Linear) -> None:
        raise AssertionError(layer)

    monkeypatch.setattr(Chooser, "_choose", fail)
    second = Chooser(torch.float16, torch.device("cpu"), tmp_path / "chosen.json")
    assert [second(layer) for layer in answers] == [ONE, None]
    assert second.chosen == answers
    with pytest.raises(AssertionError, match="rows=4"):
        second(Linear(4, 64, 32))
    assert Chooser(torch.float16, torch.device("cpu"), tmp_path / "none.json").chosen == {}
