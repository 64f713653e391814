"""Kernels that start before the one before them has ended: what they may fetch, and what they wait for."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cleave.runtime.engines.inductor import small_launch
from cleave.runtime.engines.inductor.small import add_norm, small_norm
from cleave.runtime.engines.inductor.small_launch import Blocks

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="looks on in Triton's interpreter"
)
EPSILON = 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float16, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("splits", [0, 3, 6])
@pytest.mark.parametrize("width", [1000, 576, 64])
def test_what_is_fetched_early_is_of_the_weight(
    splits: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every address, and of each row of it what its program reads first."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from cleave.runtime.engines.inductor import small_kernel

    fetched: list[int] = []

    def note(_: object, code: str, constraints: str, values: list[Any], *__: object) -> Any:
        if "prefetch" in code:
            fetched.extend(values[0].data.reshape(-1).tolist())
        nothing = TensorHandle(np.zeros(values[0].data.shape if values else 1, np.int32), tl.int32)
        return SimpleNamespace(get_result=lambda _: nothing)

    for name in ("gdc_wait", "gdc_launch_dependents"):
        monkeypatch.setattr(small_kernel, name, lambda: None)
    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", note)
    monkeypatch.setattr(small_launch, "_early", lambda device: {"EARLY": True})
    x, weight = (random(rows, width, seed=rows) for rows in (2, 70))
    blocks = Blocks(64, 64, 4, 6, splits)
    small_launch.multiply(x, weight, None, False, blocks, 16)
    places = {(address - weight.data_ptr()) // 2 for address in fetched}
    assert 0 <= min(places) <= max(places) < weight.numel()
    parts, steps = max(1, splits), -(-width // 64)
    first = {row * width + part * steps // parts * 64 for row in range(70) for part in range(parts)}
    assert first <= places


@pytest.mark.parametrize("kernel", ["vector", "rows", "matrix", "splits", "norm", "add_norm"])
def test_what_the_kernel_before_writes_is_waited_for(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program finds what is no number in its inputs until it has waited, and stores nothing before."""
    from triton.runtime.interpreter import InterpreterBuilder

    from cleave.runtime.engines.inductor import small_kernel

    rows = 1 if kernel in ("vector", "rows") else 5
    x, residual = (random(rows, 200, seed=seed) for seed in (0, 1))
    weight, factors = random(200, 200, seed=2), random(200, seed=3)
    parts = random(3, rows, 200, dtype=torch.float32, seed=4)
    blocks = {"rows": Blocks(2, 0, 4, turns=3), "splits": Blocks(64, 64, 4, 3, 2)}.get(
        kernel, Blocks(16, 64, 4, 3)
    )

    def run() -> Any:
        if kernel == "norm":
            return small_norm(x, factors, EPSILON)
        if kernel == "add_norm":
            return torch.stack(add_norm(parts, residual, factors, EPSILON))
        if kernel == "splits":
            return small_launch.multiply(x, weight, None, False, blocks, 16)
        norm = factors if rows == 1 else None
        return small_launch.linear(x, weight, norm, residual, EPSILON, False, blocks)

    wanted = run()
    late = {one: one.clone() for one in (x, residual, parts)}
    has_waited = False
    begin, store = InterpreterBuilder.set_grid_idx, InterpreterBuilder.create_masked_store

    def hide(builder: Any, *place: int) -> None:
        nonlocal has_waited
        has_waited = False
        for one in late:
            one.fill_(torch.nan)
        begin(builder, *place)

    def wait() -> None:
        nonlocal has_waited
        has_waited = True
        for one, written in late.items():
            one.copy_(written)

    def checked_store(*given: Any) -> Any:
        assert has_waited
        return store(*given)

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", hide)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
    monkeypatch.setattr(small_kernel, "gdc_wait", wait)
    monkeypatch.setattr(small_kernel, "gdc_launch_dependents", lambda: None)
    monkeypatch.setattr(small_kernel, "fetch", lambda *_: None)
    monkeypatch.setattr(small_launch, "_early", lambda device: {"EARLY": True})
    assert torch.equal(run(), wanted)
    assert wanted.isfinite().all()
