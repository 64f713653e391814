"""Bytes and operations, against cases counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cleave.export.artifact import Artifact
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.counts import ModelShape, Work, total
from cleave.runtime.bench.published import CARDS, LLAMA_2_7B

# hidden 8, 2 heads and 1 KV head of 4, MLP 16, 2 layers, vocabulary 10.
# A layer: q 8x8, k 8x4, v 8x4, o 8x8 = 192; gate, up, down 3 x 128 = 384. Norms: 5 x 8.
TINY = ModelShape.llama(
    hidden=8,
    intermediate=16,
    layers=2,
    vocab=10,
    spec=AttentionSpec(heads=2, kv_heads=1, head_dim=4, scale=1.0),
)


def test_parameters_of_a_tiny_model() -> None:
    assert TINY.linear == 2 * (192 + 384) == 1152
    assert TINY.vectors == 40
    assert TINY.step_parameters == 1152 + 40 + 80


def test_one_decode_step() -> None:
    work = TINY.work([Chunk(0, 5, 1)], 1, weight_item=4, kv_item=4)
    assert work.weight_bytes == (1272 + 8) * 4
    assert work.kv_read_bytes == 2 * 2 * 4 * 5 * 4  # layers, k and v, width, tokens before, bytes
    assert work.kv_written_bytes == 2 * 2 * 4 * 1 * 4
    # Linear layers and lm_head 2 each; 6 keys: q·k and the sum of values take 2 x 8 each, in 2 layers.
    assert work.operations == 2 * 1152 + 2 * 80 + 2 * 6 * (2 * 8 + 2 * 8)
    assert work.bytes == work.weight_bytes + work.kv_read_bytes + work.kv_written_bytes


def test_a_prefill_reads_no_history_and_sees_a_triangle_of_keys() -> None:
    work = TINY.work([Chunk(0, 0, 3)], 1, weight_item=2, kv_item=2)
    assert work.weight_bytes == (1272 + 3 * 8) * 2
    assert work.kv_read_bytes == 0
    assert work.kv_written_bytes == 2 * 2 * 4 * 3 * 2
    assert work.operations == 3 * 2 * 1152 + 2 * 80 + 2 * 32 * (1 + 2 + 3)


def test_a_batch_reads_the_weights_once_and_every_cache() -> None:
    work = TINY.work([Chunk(0, 5, 1), Chunk(1, 7, 1)], 2, weight_item=4, kv_item=2)
    assert work.weight_bytes == (1272 + 2 * 8) * 4
    assert work.kv_read_bytes == 2 * 2 * 4 * (5 + 7) * 2
    assert work.operations == 2 * 2 * 1152 + 2 * 2 * 80 + 2 * 32 * (6 + 8)


def test_a_window_bounds_what_is_read_and_seen() -> None:
    spec = AttentionSpec(heads=2, kv_heads=1, head_dim=4, scale=1.0, window=4)
    shape = ModelShape.llama(hidden=8, intermediate=16, layers=1, vocab=10, spec=spec)
    work = shape.work([Chunk(0, 6, 2)], 1, weight_item=4, kv_item=1)
    assert work.kv_read_bytes == 2 * 4 * 3  # the first query sees itself and three before it
    assert work.operations - 2 * 2 * 576 - 2 * 80 == 32 * (4 + 4)


def test_the_work_of_steps_adds_up() -> None:
    assert total([Work(1, 2, 3, 4), Work(10, 20, 30, 40)]) == Work(11, 22, 33, 44)


@pytest.mark.parametrize("variant", ["gqa", "tied", "qwen3"])
def test_an_artifact_has_the_shape_of_its_config(variant: str, artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact(variant))
    config = opened.manifest.config
    shape = ModelShape.of(opened)
    expected = ModelShape.llama(
        hidden=64, intermediate=96, layers=3, vocab=config["vocab_size"], spec=opened.manifest.layer_specs[0]
    )
    assert (shape.hidden, shape.vocab, shape.linear) == (expected.hidden, expected.vocab, expected.linear)
    norms_of_heads = 3 * 2 * 32 if variant == "qwen3" else 0
    assert shape.vectors == expected.vectors + norms_of_heads


def test_llama_2_7b_has_its_known_size() -> None:
    assert LLAMA_2_7B.step_parameters + 32000 * 4096 == 6_738_415_616
    assert LLAMA_2_7B.work([Chunk(0, 1, 1)], 1, weight_item=2, kv_item=2).kv_written_bytes == 524_288


def test_the_published_decode_at_batch_1_was_78_percent_of_the_card() -> None:
    ada = CARDS[0]
    assert ada.decode[0][0] / ada.limit("decode", 1) == pytest.approx(0.78, abs=0.005)
    assert CARDS[1].decode[1][0] / CARDS[1].limit("decode", 1) == pytest.approx(0.33, abs=0.005)
