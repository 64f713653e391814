"""How a step is divided: every row of every head once, and parts of about equal cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleave.kvcache.backends import cpu_work
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

CHUNKS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=12)


def plan_of(chunks: list[tuple[int, int]]) -> StepPlan:
    starts = np.array([start for start, _ in chunks])
    offsets = np.cumsum([0, *(count for _, count in chunks)])
    positions = np.concatenate([start + np.arange(count) for start, count in chunks])
    return StepPlan(offsets, starts, positions, positions, np.zeros((len(chunks), 1), np.int32))


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (30, 1)])
@given(chunks=CHUNKS)
def test_items_are_every_row_of_every_head_once(
    heads: int, kv_heads: int, chunks: list[tuple[int, int]]
) -> None:
    spec = AttentionSpec(heads, kv_heads, 16, 1.0)
    work = cpu_work.cut(plan_of(chunks), spec, tile=24, threads=1)
    rows = [
        (chunk, head, row)
        for chunk, head, first, count in work.arrays["items"].tolist()
        for row in range(first, first + count)
    ]
    share = heads // kv_heads
    assert work.rows == sum(count for _, count in chunks)
    assert sorted(rows) == [
        (chunk, head, row)
        for chunk, (_, count) in enumerate(chunks)
        for head in range(kv_heads)
        for row in range(count * share)
    ]
    assert work.arrays["items"][:, 3].max() <= 24


@given(
    chunks=CHUNKS,
    threads=st.integers(1, 9),
    enough=st.sampled_from([1, 10_000, 1 << 40]),
    window=st.sampled_from([None, 20]),
)
def test_parts_are_in_order_and_none_is_empty(
    chunks: list[tuple[int, int]], threads: int, enough: int, window: int | None
) -> None:
    spec = AttentionSpec(6, 2, 16, 1.0, window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_work, "SPLIT", enough)
        work = cpu_work.cut(plan_of(chunks), spec, tile=24, threads=threads)
    assert work.arrays["bounds"][0] == 0
    assert work.arrays["bounds"][-1] == len(work.arrays["items"])
    assert (np.diff(work.arrays["bounds"]) > 0).all()
    assert 1 <= work.parts <= threads * cpu_work.PARTS
    assert work.parts == 1 or (enough < 1 << 40 and threads > 1)


def test_a_long_prompt_is_shared_evenly() -> None:
    spec = AttentionSpec(8, 1, 64, 0.125)
    work = cpu_work.cut(plan_of([(0, 1000)]), spec, tile=24, threads=2)
    items = work.arrays["items"]
    cost = (items[:, 2] + items[:, 3]) * (items[:, 3] + 12)
    parts = np.add.reduceat(cost, work.arrays["bounds"][:-1])
    assert work.parts == 2 * cpu_work.PARTS
    np.testing.assert_allclose(parts / cost.sum(), 1 / work.parts, atol=0.02)
