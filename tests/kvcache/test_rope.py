"""RoPE tables against transformers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from cleave.kvcache.rope import attention_factor, inverse_frequencies, rope_tables
from cleave.kvcache.spec import RopeSpec

BASES = (10_000.0, 500_000.0, 1_000_000.0, 8_000_000.0)
DIMS = (20, 32, 64, 80, 96, 128, 256)
CHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "default": ({},),
    "linear": ({"factor": 2.5}, {"factor": 8.0}),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192},
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192},
        {"factor": 3.0, "low_freq_factor": 0.7, "high_freq_factor": 5.5, "original_max_position": 1000},
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position": 32768},
        {"factor": 40.0, "original_max_position": 4096, "beta_fast": 24.0, "beta_slow": 2.0},
        {"factor": 16.0, "original_max_position": 4096, "truncate": False, "attention_factor": 1.25},
    ),
}
CASES = [
    (kind, base, dim, changes)
    for kind, variants in CHANGES.items()
    for base, dim, changes in product(BASES, DIMS, variants)
]


def theirs(kind: str, base: float, dim: int, changes: dict[str, Any]) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": kind, "rope_theta": base, **changes}
    if "original_max_position" in parameters:
        parameters["original_max_position_embeddings"] = parameters.pop("original_max_position")
    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=1 << 18,
        rope_parameters=parameters,
    )
    return LlamaRotaryEmbedding(config)


def ours(kind: str, base: float, dim: int, changes: dict[str, Any], their_factor: float) -> RopeSpec:
    fields = {**changes, "attention_factor": their_factor} if kind == "yarn" else changes
    return RopeSpec(kind, base, dim, **fields)


def ulps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many float32 lie between; for numbers of one sign."""
    return np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32))


def test_every_kind_is_one_that_transformers_has() -> None:
    assert set(CHANGES) - {"default"} <= set(ROPE_INIT_FUNCTIONS)


def test_frequencies_are_those_of_transformers_but_for_the_last_bit_of_its_pow() -> None:
    compared = different = 0
    for case in CASES:
        rotary = theirs(*case)
        rope = ours(*case, rotary.attention_scaling)
        distance = ulps(inverse_frequencies(rope), rotary.inv_freq.numpy())
        # Where two frequencies are blended, the one ulp can become two.
        assert distance.max() <= (2 if case[0] in ("llama3", "yarn") else 1), case
        assert attention_factor(rope) == rotary.attention_scaling
        compared += distance.size
        different += np.count_nonzero(distance)
    assert different <= compared // 200


@pytest.mark.parametrize("kind", CHANGES)
def test_frequencies_are_bit_identical_where_pow_is(kind: str) -> None:
    for base, dim, changes in product((10_000.0, 500_000.0), (64, 128), CHANGES[kind]):
        rotary = theirs(kind, base, dim, changes)
        rope = ours(kind, base, dim, changes, rotary.attention_scaling)
        np.testing.assert_array_equal(inverse_frequencies(rope), rotary.inv_freq.numpy())


@pytest.mark.parametrize("kind", CHANGES)
def test_tables_are_within_the_last_bit_of_transformers(kind: str) -> None:
    changes = CHANGES[kind][-1]
    rotary = theirs(kind, 10_000.0, 64, changes)
    their_cos, their_sin = rotary(torch.zeros(()), torch.arange(3000)[None])
    tables = rope_tables(ours(kind, 10_000.0, 64, changes, rotary.attention_scaling), 3000)
    for table, their in zip(tables, (their_cos, their_sin), strict=True):
        assert table.shape == (3000, 32)
        assert table.dtype == np.float32
        np.testing.assert_array_max_ulp(table, their[0, :, :32].numpy(), maxulp=2)
