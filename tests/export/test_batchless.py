"""The batchless graphs against PyTorch in float64 and the RoPE of transformers."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3_next.modeling_qwen3_next import apply_rotary_pos_emb

from cleave.errors import ExportError
from cleave.export.batchless import batchless_graphs
from cleave.plugins.spec import AttentionSpec, RopeSpec

CONTEXT = 4096
ROPES = {
    "default": RopeSpec("default", 10_000.0, 16),
    "partial": RopeSpec("default", 500_000.0, 8),
    "linear": RopeSpec("linear", 10_000.0, 16, factor=4.0),
    "llama3": RopeSpec(
        "llama3",
        500_000.0,
        16,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=64,
    ),
    "yarn": RopeSpec("yarn", 10_000.0, 16, factor=4.0, original_max_position=64, attention_factor=1.1386),
    "none": None,
}
SPECS = {
    "mha": AttentionSpec(4, 4, 16, 0.25, ROPES["default"]),
    "gqa": AttentionSpec(6, 2, 16, 0.25, ROPES["llama3"]),
    "mqa": AttentionSpec(5, 1, 24, 0.2, ROPES["partial"]),
    "yarn": AttentionSpec(4, 2, 16, 0.25, ROPES["yarn"]),
    "linear": AttentionSpec(4, 2, 16, 0.25, ROPES["linear"]),
    "without rope": AttentionSpec(4, 2, 16, 0.25),
    "window": AttentionSpec(4, 2, 16, 0.25, ROPES["default"], window=6),
    "softcap": AttentionSpec(4, 2, 16, 0.25, ROPES["default"], softcap=0.5),
    "softcap and window": AttentionSpec(2, 1, 8, 0.25, RopeSpec("default", 1e4, 8), window=3, softcap=2.0),
}
TOLERANCE = {"float32": 2e-5, "float16": 3e-3, "bfloat16": 3e-2}
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    kv_heads = draw(st.integers(1, 3))
    return AttentionSpec(
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 24, 40])),
        scale=draw(st.sampled_from([0.1, 0.25, 1.0])),
        rope=draw(st.sampled_from(list(ROPES.values()))),
        window=draw(st.none() | st.integers(1, 20)),
        softcap=draw(st.none() | st.sampled_from([0.5, 30.0])),
    )


def cos_sin(rope: RopeSpec, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    parameters: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.base}
    if rope.kind != "default":
        parameters["factor"] = rope.factor
    if rope.kind == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        parameters |= {"attention_factor": rope.attention_factor}
    if rope.kind in ("llama3", "yarn"):
        parameters["original_max_position_embeddings"] = rope.original_max_position
    config = LlamaConfig(
        head_dim=rope.rotary_dim, max_position_embeddings=CONTEXT, rope_parameters=parameters
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(()), torch.arange(length)[None])
    return cos.double(), sin.double()


def truth(spec: AttentionSpec, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of a whole sequence at once, float64: out [tokens, heads * head_dim].

    Keys are rounded to the dtype of k after RoPE, as the cache keeps them.
    """
    length, kept = len(q), getattr(torch, k.dtype.name)
    wide = [
        torch.from_numpy(x.astype(np.float64)).view(1, length, -1, spec.head_dim).transpose(1, 2)
        for x in (q, k, v)
    ]
    queries, keys, values = wide
    if spec.rope is not None:
        queries, keys = apply_rotary_pos_emb(queries, keys, *cos_sin(spec.rope, length))
    keys = keys.to(kept).double()
    rule = sliding_window_causal_mask_function(spec.window) if spec.window else causal_mask_function
    seen = rule(0, 0, torch.arange(length)[:, None], torch.arange(length)[None])
    if spec.softcap is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, scale=spec.scale, enable_gqa=True
        ).transpose(1, 2)
    else:
        out, _ = eager_attention_forward(
            SimpleNamespace(num_key_value_groups=spec.heads // spec.kv_heads, training=False),
            queries,
            keys,
            values,
            torch.zeros(length, length).masked_fill(~seen, -torch.inf),
            scaling=spec.scale,
            softcap=spec.softcap,
        )
    return out.reshape(length, spec.q_size).numpy()


def ort_value(array: np.ndarray) -> ort.OrtValue:
    """An OrtValue over the array's memory; numpy itself has no bfloat16."""
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), onnx.TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=tolerance)


class Sequence:
    """One sequence whose tokens lie in random slots of caches that are bound in place."""

    def __init__(
        self, spec: AttentionSpec, dtype: str, *, length: int, num_slots: int, seed: int = 0
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        prefill, decode = batchless_graphs(spec, dtype)
        self.spec = spec
        self.prefill = ort.InferenceSession(prefill.SerializeToString(), options)
        self.decode = ort.InferenceSession(decode.SerializeToString(), options)
        rng = np.random.default_rng(seed)
        self.q = rng.standard_normal((length, spec.q_size)).astype(NUMPY[dtype])
        self.k, self.v = (rng.standard_normal((length, spec.kv_size)).astype(NUMPY[dtype]) for _ in "kv")
        self.out = np.full_like(self.q, np.nan)
        self.slots = rng.permutation(num_slots)[:length]
        self.caches = [np.full((num_slots, spec.kv_heads, spec.head_dim), np.nan, NUMPY[dtype]) for _ in "kv"]

    def bind(self, session: ort.InferenceSession, start: int, end: int, context: int) -> Any:
        """A binding for tokens start..end that attend to the last `context` tokens up to end."""
        binding = session.io_binding()
        inputs = {
            "q": self.q[start:end],
            "k": self.k[start:end],
            "v": self.v[start:end],
            "positions": np.arange(start, end),
            "slots": self.slots[start:end],
            "context_slots": self.slots[end - context : end],
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort_value(array))
        out = ort_value(self.out[start:end])
        binding.bind_ortvalue_output("out", out)
        for name, cache in zip(("k_cache", "v_cache"), self.caches, strict=True):
            value = ort_value(cache)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"{name}_out", value)
        return binding

    def run_prefill(self, start: int, end: int) -> None:
        self.prefill.run_with_iobinding(self.bind(self.prefill, start, end, context=end))

    def run_decode(self, start: int) -> None:
        seen = start + 1 if self.spec.window is None else min(start + 1, self.spec.window)
        self.decode.run_with_iobinding(self.bind(self.decode, start, start + 1, context=seen))

    def truth(self) -> np.ndarray:
        return truth(self.spec, self.q, self.k, self.v)


@every_dtype
@every_spec
def test_a_prompt_in_chunks_and_then_decoding_is_attention_over_the_history(
    spec: AttentionSpec, dtype: str
) -> None:
    sequence = Sequence(spec, dtype, length=40, num_slots=64)
    for start, end in ((0, 1), (1, 12), (12, 31), (31, 36)):
        sequence.run_prefill(start, end)
    for start in range(36, 40):
        sequence.run_decode(start)
    assert_close(sequence.out, sequence.truth(), TOLERANCE[dtype])


@settings(max_examples=25, deadline=None)
@given(
    spec=specs(),
    dtype=st.sampled_from(list(TOLERANCE)),
    cuts=st.sets(st.integers(1, 49)),
    seed=st.integers(0, 99),
)
def test_any_spec_in_any_chunks_is_attention_over_the_history(
    spec: AttentionSpec, dtype: str, cuts: set[int], seed: int
) -> None:
    sequence = Sequence(spec, dtype, length=50, num_slots=80, seed=seed)
    edges = [0, *sorted(cuts), 50]
    for start, end in itertools.pairwise(edges):
        if end - start == 1:
            sequence.run_decode(start)
        else:
            sequence.run_prefill(start, end)
    assert_close(sequence.out, sequence.truth(), TOLERANCE[dtype])


@every_dtype
@every_spec
def test_decode_equals_prefill_of_one_token_bit_for_bit(spec: AttentionSpec, dtype: str) -> None:
    sequence = Sequence(spec, dtype, length=33, num_slots=64)
    sequence.run_prefill(0, 32)
    seen = 33 if spec.window is None else min(33, spec.window)
    sequence.prefill.run_with_iobinding(sequence.bind(sequence.prefill, 32, 33, context=seen))
    prefilled, keys = sequence.out[32].copy(), sequence.caches[0].copy()
    sequence.out[32] = np.nan
    sequence.run_decode(32)
    assert sequence.out[32].tobytes() == prefilled.tobytes()
    assert sequence.caches[0].tobytes() == keys.tobytes()


def test_the_window_is_masked_in_prefill_even_where_older_slots_are_given() -> None:
    spec = SPECS["window"]
    sequence = Sequence(spec, "float32", length=30, num_slots=32)
    sequence.run_prefill(0, 20)
    sequence.run_prefill(20, 30)
    whole = sequence.out[20:].copy()
    only_seen = sequence.bind(sequence.prefill, 20, 30, context=10 + spec.window - 1)
    sequence.prefill.run_with_iobinding(only_seen)
    assert_close(sequence.out[20:], whole, 1e-6)


@every_dtype
def test_only_the_slots_of_the_chunk_are_written_and_into_the_bound_buffer(dtype: str) -> None:
    sequence = Sequence(SPECS["gqa"], dtype, length=12, num_slots=64)
    binding = sequence.bind(sequence.prefill, 0, 12, context=12)
    sequence.prefill.run_with_iobinding(binding)
    written = [value.data_ptr() for value in binding.get_outputs()]
    assert written == [array.ctypes.data for array in (sequence.out, *sequence.caches)]
    for cache, rows in zip(sequence.caches, (None, sequence.v), strict=True):
        others = np.setdiff1d(np.arange(64), sequence.slots)
        assert np.isnan(cache[others]).all()
        assert not np.isnan(cache[sequence.slots]).any()
        if rows is not None:
            np.testing.assert_array_equal(cache[sequence.slots].reshape(rows.shape), rows)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_run_time_does_not_grow_with_the_cache(kind: str) -> None:
    spec = AttentionSpec(8, 2, 64, 0.125, RopeSpec("default", 10_000.0, 64))

    def seconds(num_slots: int) -> float:
        """A run over 128 tokens of context; copying the larger caches once would take over 10 ms."""
        sequence = Sequence(spec, "float32", length=128, num_slots=num_slots)
        sequence.run_prefill(0, 128)
        session = sequence.prefill if kind == "prefill" else sequence.decode
        binding = sequence.bind(session, 127, 128, context=128)
        times = []
        for _ in range(30):
            began = time.perf_counter()
            session.run_with_iobinding(binding)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    assert seconds(200_000) < seconds(256) + 3e-3


@every_dtype
@every_spec
def test_the_graphs_are_standard_onnx_without_weights(spec: AttentionSpec, dtype: str) -> None:
    for model in batchless_graphs(spec, dtype):
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        assert {node.domain for node in model.graph.node} == {""}
        frequencies = spec.rope.rotary_dim // 2 if spec.rope else 0
        assert all(
            np.prod(constant.dims) <= max(frequencies, spec.kv_heads, 4)
            for constant in model.graph.initializer
        )


@every_spec
def test_the_graphs_say_what_they_are(spec: AttentionSpec) -> None:
    for kind, tokens, model in zip(("prefill", "decode"), ("tokens", 1), batchless_graphs(spec), strict=True):
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["cleave.format"] == "batchless-1"
        assert metadata["cleave.graph"] == kind
        assert AttentionSpec.from_dict(json.loads(metadata["cleave.attention_spec"])) == spec
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        cache = ["num_slots", spec.kv_heads, spec.head_dim]
        assert shapes == {
            "q": [tokens, spec.q_size],
            "k": [tokens, spec.kv_size],
            "v": [tokens, spec.kv_size],
            "positions": [tokens],
            "slots": [tokens],
            "context_slots": ["context"],
            "k_cache": cache,
            "v_cache": cache,
            "out": [tokens, spec.q_size],
            "k_cache_out": cache,
            "v_cache_out": cache,
        }


def test_one_spec_gives_the_same_bytes_every_time() -> None:
    first, second = (batchless_graphs(SPECS["yarn"]) for _ in range(2))
    assert [model.SerializeToString() for model in first] == [model.SerializeToString() for model in second]


def test_another_dtype_is_refused_with_those_there_are() -> None:
    with pytest.raises(ExportError, match="'float64'; there are: float32, float16, bfloat16"):
        batchless_graphs(SPECS["mha"], "float64")
