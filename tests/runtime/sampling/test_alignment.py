"""Where the device sampler's tensors begin: Triton compiles a kernel once more for one that is unaligned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device_sampling import GPU, kinds, states

pytest.importorskip("triton")
from cleave.runtime.sampling.device import launch as launch_module
from cleave.runtime.sampling.device.launch import Launches
from cleave.runtime.sampling.device.sampler import DeviceSampler

VOCAB = 700


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_what_kernels_are_given_is_aligned_to_sixteen_bytes(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tensors without data are that kernels are compiled with when a model is loaded."""
    given: dict[str, list[torch.Tensor]] = {}

    def note(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
        tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
        given.setdefault(kernel.__name__, []).extend(tensors)

    monkeypatch.setattr(launch_module, "launch", note)
    device = DeviceSampler(VOCAB, GPU, rows)
    every = Launches.of([one for one in states(VOCAB, len(kinds(VOCAB))) if one is not None], VOCAB)
    logits = torch.zeros(rows, VOCAB, device=GPU)
    for results in device._results:
        every.run(logits, rows, device._buffers, device._slots, device._parameters, results)
    assert {"edit_kernel", "gather_kernel", "draw_kernel", "rank_kernel"} <= given.keys()
    for kernel, tensors in given.items():
        odd = [tuple(tensor.shape) for tensor in tensors if tensor.data_ptr() % 16]
        assert not odd, f"{kernel} is given tensors {odd} that begin elsewhere"
