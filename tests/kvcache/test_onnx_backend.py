"""The onnx attention backend over random pages, against PyTorch in float64 and the RoPE of transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from cleave.errors import AttentionError
from cleave.export.batchless import batchless_graphs
from cleave.kvcache.backend import CacheShape, create_backend
from cleave.kvcache.backends.onnx import OnnxBackend
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import StepPlan

FULL = AttentionSpec(6, 2, 16, 0.25, RopeSpec("default", 10_000.0, 16))
WINDOW = AttentionSpec(4, 1, 16, 0.25, RopeSpec("default", 500_000.0, 16), window=5)
NO_ROPE = AttentionSpec(3, 3, 8, 0.3)
LAYERS = (FULL, WINDOW, NO_ROPE, FULL)
TOLERANCE = {"float32": 2e-5, "float16": 3e-3}


def pair(spec: AttentionSpec, dtype: str = "float32") -> tuple[bytes, bytes]:
    prefill, decode = batchless_graphs(spec, dtype)
    return prefill.SerializeToString(), decode.SerializeToString()


def shape_of(
    specs: Sequence[AttentionSpec] = LAYERS, *, num_pages: int = 64, page_size: int = 4
) -> CacheShape:
    return CacheShape(tuple(specs), num_pages, page_size, max_position=1024, max_tokens=1024)


def backend_of(shape: CacheShape, dtype: str = "float32", **options: Any) -> OnnxBackend:
    return OnnxBackend(shape, graphs=[pair(spec, dtype) for spec in shape.specs], threads=1, **options)


def truth(spec: AttentionSpec, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of a whole sequence at once, float64: out [tokens, heads * head_dim]."""
    length = len(q)
    wide = [
        torch.from_numpy(x).double().view(1, length, -1, spec.head_dim).transpose(1, 2) for x in (q, k, v)
    ]
    queries, keys, values = wide
    if spec.rope is not None:
        config = LlamaConfig(
            head_dim=spec.head_dim, rope_parameters={"rope_type": "default", "rope_theta": spec.rope.base}
        )
        cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(()), torch.arange(length)[None])
        queries, keys = apply_rotary_pos_emb(queries, keys, cos.double(), sin.double())
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if spec.window is not None:
        seen = seen.triu(1 - spec.window)
    out = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=seen, scale=spec.scale, enable_gqa=True
    )
    return out.transpose(1, 2).reshape(length, spec.q_size).numpy()


class History:
    """Sequences of given lengths, their pages in random physical order, and q, k, v of every layer."""

    def __init__(
        self, shape: CacheShape, lengths: Sequence[int], dtype: str = "float32", seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        pages = iter(rng.permutation(shape.num_pages))
        size = shape.page_size
        self.pages = [[int(next(pages)) for _ in range(-(-length // size))] for length in lengths]
        self.held = [0] * len(lengths)
        self.arrays = [
            [
                tuple(
                    rng.standard_normal((length, width)).astype(dtype)
                    for width in (spec.q_size, spec.kv_size, spec.kv_size)
                )
                for length in lengths
            ]
            for spec in shape.specs
        ]
        self.outs = [[np.full_like(q, np.nan) for q, _, _ in layer] for layer in self.arrays]

    def plan(self, step: Sequence[tuple[int, int]]) -> StepPlan:
        """The plan of (sequence, tokens) chunks, in this order."""
        starts = np.array([self.held[sequence] for sequence, _ in step])
        counts = np.array([count for _, count in step])
        positions = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        table = np.full((len(step), max(len(self.pages[s]) for s, _ in step)), -1, np.int32)
        for row, (sequence, _) in zip(table, step, strict=True):
            row[: len(self.pages[sequence])] = self.pages[sequence]
        chunk = np.repeat(np.arange(len(step)), counts)
        size = self.shape.page_size
        slots = table[chunk, positions // size].astype(np.int64) * size + positions % size
        return StepPlan(np.concatenate([[0], np.cumsum(counts)]), starts, positions, slots, table)

    def run(self, backend: OnnxBackend, step: Sequence[tuple[int, int]]) -> None:
        """One step of every layer; outs of its rows are filled."""
        backend.plan(self.plan(step))
        rows = [
            (sequence, slice(self.held[sequence], self.held[sequence] + count)) for sequence, count in step
        ]
        for layer, arrays in enumerate(self.arrays):
            q, k, v = (np.concatenate([arrays[s][i][r] for s, r in rows]) for i in range(3))
            out = np.full_like(q, np.nan)
            backend.run(layer, q, k, v, out)
            first = 0
            for sequence, where in rows:
                count = where.stop - where.start
                self.outs[layer][sequence][where] = out[first : first + count]
                first += count
        for sequence, where in rows:
            self.held[sequence] = where.stop

    def check(self, tolerance: float) -> None:
        for spec, arrays, outs in zip(self.shape.specs, self.arrays, self.outs, strict=True):
            for sequence, held in enumerate(self.held):
                if held == 0:
                    continue
                expected = truth(spec, *(array[:held] for array in arrays[sequence]))
                np.testing.assert_allclose(outs[sequence][:held], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_mixed_batch_is_attention_over_each_history(dtype: str) -> None:
    shape = shape_of()
    history, backend = History(shape, [30, 9, 20], dtype), backend_of(shape, dtype)
    steps = [[(0, 13)], [(1, 1), (0, 5)], [(2, 17), (0, 1), (1, 1)], [(0, 11), (2, 2), (1, 7)], [(2, 1)]]
    for step in steps:
        history.run(backend, step)
    assert history.held == [30, 9, 20]
    history.check(TOLERANCE[dtype])


@settings(max_examples=15, deadline=None)
@given(data=st.data(), page_size=st.sampled_from([1, 3, 16]), seed=st.integers(0, 99))
def test_any_steps_over_any_pages_are_attention_over_each_history(
    data: st.DataObject, page_size: int, seed: int
) -> None:
    shape = shape_of(page_size=page_size)
    history, backend = History(shape, [20, 20, 20], seed=seed), backend_of(shape)
    for _ in range(data.draw(st.integers(1, 5))):
        order = data.draw(st.permutations(range(3)))
        counts = {sequence: data.draw(st.integers(0, 20 - history.held[sequence])) for sequence in order}
        step = [(sequence, count) for sequence, count in counts.items() if count]
        if step:
            history.run(backend, step)
    history.check(TOLERANCE["float32"])


def test_a_chunk_longer_than_one_run_of_the_graph_is_attention_over_the_history() -> None:
    shape = shape_of((FULL, WINDOW), num_pages=100)
    history, backend = History(shape, [390]), backend_of(shape)
    for step in ([(0, 3)], [(0, 386)], [(0, 1)]):
        history.run(backend, step)
    history.check(TOLERANCE["float32"])


def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch() -> None:
    shape = shape_of()
    alone, together = History(shape, [30, 9, 20]), History(shape, [30, 9, 20])
    first, second = backend_of(shape), backend_of(shape)
    for chunk in ((0, 13), (0, 16), (0, 1)):
        alone.run(first, [chunk])
    for step in ([(1, 5), (0, 13)], [(0, 16), (2, 20)], [(1, 1), (0, 1)]):
        together.run(second, step)
    for layer in range(len(LAYERS)):
        np.testing.assert_array_equal(alone.outs[layer][0], together.outs[layer][0])


def test_a_step_that_runs_again_gives_the_same_bits() -> None:
    shape = shape_of()
    history, backend = History(shape, [12]), backend_of(shape)
    history.run(backend, [(0, 8)])
    history.run(backend, [(0, 4)])
    before = [outs[0].copy() for outs in history.outs]
    history.held = [8]
    history.run(backend, [(0, 4)])
    for layer, expected in enumerate(before):
        np.testing.assert_array_equal(history.outs[layer][0], expected)


def test_a_decode_step_does_not_take_longer_where_the_cache_is_larger() -> None:
    def seconds(num_pages: int) -> float:
        """One layer of a decode step; copying the larger caches once would take over 10 ms."""
        shape = shape_of((FULL,), num_pages=num_pages, page_size=16)
        history, backend = History(shape, [101]), backend_of(shape)
        history.run(backend, [(0, 100)])
        times = []
        for _ in range(30):
            history.held = [100]
            began = time.perf_counter()
            history.run(backend, [(0, 1)])
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    assert seconds(50_000) < seconds(16) + 3e-3


def test_tensors_that_speak_dlpack_are_read_and_written_in_place() -> None:
    shape = shape_of((FULL,))
    history, backend = History(shape, [7]), backend_of(shape)
    q, k, v = (torch.from_numpy(array) for array in history.arrays[0][0])
    out = torch.full_like(q, torch.nan)
    backend.plan(history.plan([(0, 7)]))
    backend.run(0, q, k, v, out)
    expected = truth(FULL, *history.arrays[0][0])
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=TOLERANCE["float32"])


def test_layers_with_equal_graphs_share_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: made.append(a) or real(*a, **k))
    backend_of(shape_of((FULL, WINDOW, FULL, WINDOW, FULL)))
    assert len(made) == 4


def test_the_registry_makes_it_from_files(tmp_path: Path) -> None:
    files = tmp_path / "prefill_batchless.onnx", tmp_path / "decode_batchless.onnx"
    for file, graph in zip(files, pair(FULL), strict=True):
        file.write_bytes(graph)
    shape = shape_of((FULL,))
    history = History(shape, [5])
    backend = create_backend("onnx", shape, graphs=[files], threads=1)
    assert isinstance(backend, OnnxBackend)
    history.run(backend, [(0, 5)])
    history.check(TOLERANCE["float32"])
    backend.close()


def test_two_backends_in_one_process_do_not_meet() -> None:
    shape = shape_of((FULL,))
    one, other = History(shape, [9], seed=1), History(shape, [9], seed=2)
    first, second = backend_of(shape), backend_of(shape)
    for step in ([(0, 6)], [(0, 3)]):
        one.run(first, step)
        other.run(second, step)
    one.check(TOLERANCE["float32"])
    other.check(TOLERANCE["float32"])


def test_a_graph_of_another_spec_is_refused() -> None:
    with pytest.raises(
        AttentionError, match=r"prefill graph does not fit its layer: .*window=5.*window=None"
    ):
        OnnxBackend(shape_of((FULL,)), graphs=[pair(WINDOW)])


def test_prefill_and_decode_the_wrong_way_round_are_refused() -> None:
    prefill, decode = pair(FULL)
    with pytest.raises(AttentionError, match="kind 'decode'; it must be 'batchless-1' and 'prefill'"):
        OnnxBackend(shape_of((FULL,)), graphs=[(decode, prefill)])


def test_prefill_and_decode_in_two_dtypes_are_refused() -> None:
    graphs = pair(FULL, "float32")[0], pair(FULL, "float16")[1]
    with pytest.raises(AttentionError, match="prefill graph is float32 and the decode graph float16"):
        OnnxBackend(shape_of((FULL,)), graphs=[graphs])


def test_bfloat16_graphs_are_refused_with_what_to_do() -> None:
    with pytest.raises(AttentionError, match="runs float32 and float16: export the batchless graphs in one"):
        OnnxBackend(shape_of((FULL,)), graphs=[pair(FULL, "bfloat16")])


def test_too_few_graphs_are_refused() -> None:
    with pytest.raises(AttentionError, match="1 pairs of batchless graphs were given for 2 layers"):
        OnnxBackend(shape_of((FULL, FULL)), graphs=[pair(FULL)])


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    shape = shape_of((FULL,))
    with pytest.raises(AttentionError, match="the prefill graph cannot be loaded"):
        OnnxBackend(shape, graphs=[(b"not onnx", b"not onnx")])
    missing = tmp_path / "prefill_batchless.onnx"
    with pytest.raises(AttentionError, match=r"prefill_batchless\.onnx' cannot be loaded"):
        OnnxBackend(shape, graphs=[(missing, missing)])


def test_no_threads_are_refused() -> None:
    with pytest.raises(AttentionError, match="threads is 0; it must be positive"):
        OnnxBackend(shape_of((FULL,)), graphs=[pair(FULL)], threads=0)


def test_run_before_plan_is_refused() -> None:
    with pytest.raises(AttentionError, match="call plan"):
        backend_of(shape_of((FULL,))).run(0, None, None, None, None)


def test_arrays_that_do_not_fit_are_refused() -> None:
    shape = shape_of((FULL,))
    history, backend = History(shape, [4]), backend_of(shape)
    backend.plan(history.plan([(0, 4)]))
    q, k, v = history.arrays[0][0]
    out = np.empty_like(q)
    with pytest.raises(AttentionError, match=r"q is \[3, 96\] float32; it must be contiguous, \[4, 96\]"):
        backend.run(0, q[:3], k, v, out)
    with pytest.raises(AttentionError, match=r"k is \[4, 32\] float16"):
        backend.run(0, q, k.astype(np.float16), v, out)
    with pytest.raises(AttentionError, match=r"out is \[4, 96\] float32, not contiguous"):
        backend.run(0, q, k, v, np.empty((4, 192), np.float32)[:, :96])
