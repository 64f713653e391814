"""The batchless graphs: RoPE and attention of one sequence over a paged KV cache, without weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cleave.errors import ExportError
from cleave.plugins.spec import AttentionSpec, RopeSpec, attention_factor, inverse_frequencies

# RotaryEmbedding is a standard operator since opset 23, which needs IR 11.
_OPSET = 23
_IR_VERSION = 11
_ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def batchless_graphs(spec: AttentionSpec, dtype: str = "float32") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The prefill and the decode graph of one attention spec, in standard operators of opset 23.

    Inputs, the same for both but that `tokens` is 1 in the decode graph:

    - `q` [tokens, heads * head_dim], `k` and `v` [tokens, kv_heads * head_dim]: `dtype`, before RoPE;
    - `positions` [tokens] int64: consecutive positions of one sequence;
    - `slots` [tokens] int64: where the rows of k and v go in the caches;
    - `context_slots` [context] int64: the slots of consecutive positions of the sequence, ending with
      the chunk's own. The prefill graph masks the future and what lies before the window, so it may
      be given the whole past; the decode graph has no mask and attends to all that it is given;
    - `k_cache` and `v_cache` [num_slots, kv_heads, head_dim]: `dtype`; k is kept after RoPE.

    Outputs: `out`, like q, and `k_cache_out` and `v_cache_out`. Bind each cache as input and output of
    the same run and it is updated in place: only the rows of `slots` are written.

    Angles, scores and softmax are float32 whatever `dtype` is ("float32", "float16" or "bfloat16"), so
    ONNX Runtime needs no kernels of the narrow types on the CPU but Cast and copies. `metadata_props` hold
    `cleave.format`, `cleave.graph` ("prefill" or "decode") and `cleave.attention_spec` (JSON).

    Raises ExportError for another dtype.
    """
    if dtype not in _ELEMENT_TYPES:
        raise ExportError(
            f"batchless graphs cannot be written in {dtype!r}; there are: {', '.join(_ELEMENT_TYPES)}"
        )
    return _model(spec, dtype, decode=False), _model(spec, dtype, decode=True)


def _model(spec: AttentionSpec, dtype: str, *, decode: bool) -> onnx.ModelProto:
    kind = "decode" if decode else "prefill"
    element = _ELEMENT_TYPES[dtype]
    tokens: int | str = 1 if decode else "tokens"
    q_shape: list[int | str] = [tokens, spec.q_size]
    kv_shape: list[int | str] = [tokens, spec.kv_size]
    cache_shape: list[int | str] = ["num_slots", spec.kv_heads, spec.head_dim]
    nodes = _Nodes()
    _attention(nodes, spec, element, decode=decode)
    graph = helper.make_graph(
        nodes.nodes,
        f"{kind}_batchless",
        inputs=[
            helper.make_tensor_value_info("q", element, q_shape),
            helper.make_tensor_value_info("k", element, kv_shape),
            helper.make_tensor_value_info("v", element, kv_shape),
            helper.make_tensor_value_info("positions", TensorProto.INT64, [tokens]),
            helper.make_tensor_value_info("slots", TensorProto.INT64, [tokens]),
            helper.make_tensor_value_info("context_slots", TensorProto.INT64, ["context"]),
            helper.make_tensor_value_info("k_cache", element, cache_shape),
            helper.make_tensor_value_info("v_cache", element, cache_shape),
        ],
        outputs=[
            helper.make_tensor_value_info("out", element, q_shape),
            helper.make_tensor_value_info("k_cache_out", element, cache_shape),
            helper.make_tensor_value_info("v_cache_out", element, cache_shape),
        ],
        initializer=nodes.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cleave",
    )
    helper.set_model_props(
        model,
        {
            "cleave.format": "batchless-1",
            "cleave.graph": kind,
            "cleave.attention_spec": json.dumps(spec.to_dict(), sort_keys=True),
        },
    )
    return model


class _Nodes:
    """Nodes and constants of a graph in the making; every method gives back the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, result: str, operator: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [result], name=result, **attributes))
        return result

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def ints(self, name: str, values: Sequence[int]) -> str:
        return self.constant(name, np.array(values, np.int64))

    def reshape(self, result: str, data: str, shape: Sequence[int]) -> str:
        return self.op(result, "Reshape", data, self.ints(f"{result}_shape", shape))


def _attention(nodes: _Nodes, spec: AttentionSpec, element: int, *, decode: bool) -> None:
    q = nodes.op("q_wide", "Cast", "q", to=TensorProto.FLOAT)
    k = "k"
    if spec.rope is not None:
        cos, sin = _cos_sin(nodes, spec.rope)
        k_wide = nodes.op("k_wide", "Cast", k, to=TensorProto.FLOAT)
        q = _rotate(nodes, "q_rotated", q, cos, sin, spec.heads, spec.rope)
        k_rotated = _rotate(nodes, "k_rotated", k_wide, cos, sin, spec.kv_heads, spec.rope)
        k = nodes.op("k_cast", "Cast", k_rotated, to=element)
    keys, values = _append_and_gather(nodes, spec, k)
    q = nodes.op("q_scaled", "Mul", q, nodes.scalar("scale", spec.scale))
    attend = _attend if decode else _attend_masked
    nodes.op("out", "Cast", attend(nodes, spec, q, keys, values), to=element)


def _cos_sin(nodes: _Nodes, rope: RopeSpec) -> tuple[str, str]:
    """[1, tokens, rotary_dim / 2] float32 each, the attention factor included."""
    frequencies = nodes.constant("inv_freq", inverse_frequencies(rope)[None, None, :])
    positions = nodes.op("positions_float", "Cast", "positions", to=TensorProto.FLOAT)
    column = nodes.op("positions_column", "Unsqueeze", positions, nodes.ints("positions_axes", [0, 2]))
    angles = nodes.op("angles", "Mul", column, frequencies)
    cos, sin = nodes.op("cos", "Cos", angles), nodes.op("sin", "Sin", angles)
    if attention_factor(rope) == 1.0:
        return cos, sin
    factor = nodes.scalar("attention_factor", attention_factor(rope))
    return nodes.op("cos_scaled", "Mul", cos, factor), nodes.op("sin_scaled", "Mul", sin, factor)


def _rotate(nodes: _Nodes, result: str, data: str, cos: str, sin: str, heads: int, rope: RopeSpec) -> str:
    """[1, tokens, heads * head_dim]: data [tokens, heads * head_dim] with RoPE."""
    batched = nodes.op(f"{result}_batched", "Unsqueeze", data, nodes.ints(f"{result}_axes", [0]))
    return nodes.op(
        result, "RotaryEmbedding", batched, cos, sin, num_heads=heads, rotary_embedding_dim=rope.rotary_dim
    )


def _append_and_gather(nodes: _Nodes, spec: AttentionSpec, k: str) -> tuple[str, str]:
    """Write k and v to their slots, then read the context: [kv_heads, context, head_dim] float32 each.

    ScatterND writes in place where its input and output are one buffer. Seen as rows of one head
    each, the cache gives the context in heads order with one copy and no transposition.
    """
    rows = nodes.op("slot_rows", "Unsqueeze", "slots", nodes.ints("slots_axes", [1]))
    kv_heads = nodes.ints("kv_heads", [spec.kv_heads])
    first = nodes.op("context_first_head", "Mul", "context_slots", kv_heads)
    head = nodes.constant("kv_head", np.arange(spec.kv_heads, dtype=np.int64)[:, None])
    context = nodes.op("context_heads", "Add", first, head)

    def through_cache(name: str, data: str) -> str:
        heads = nodes.reshape(f"{name}_heads", data, [-1, spec.kv_heads, spec.head_dim])
        cache = nodes.op(f"{name}_cache_out", "ScatterND", f"{name}_cache", rows, heads)
        flat = nodes.reshape(f"{name}_cache_flat", cache, [-1, spec.head_dim])
        gathered = nodes.op(f"{name}_context", "Gather", flat, context, axis=0)
        return nodes.op(f"{name}_context_wide", "Cast", gathered, to=TensorProto.FLOAT)

    return through_cache("k", k), through_cache("v", "v")


def _scores(nodes: _Nodes, spec: AttentionSpec, queries: str, keys: str) -> str:
    """[kv_heads, queries of one KV head, context], softcap applied."""
    transposed = nodes.op("keys_transposed", "Transpose", keys, perm=[0, 2, 1])
    scores = nodes.op("scores", "MatMul", queries, transposed)
    if spec.softcap is None:
        return scores
    cap = nodes.scalar("softcap", spec.softcap)
    ratio = nodes.op("scores_ratio", "Div", scores, cap)
    return nodes.op("scores_capped", "Mul", nodes.op("scores_tanh", "Tanh", ratio), cap)


def _attend(nodes: _Nodes, spec: AttentionSpec, q: str, keys: str, values: str) -> str:
    """[1, heads * head_dim]: one query over the whole context.

    The query heads of one KV head are the rows of one matrix: K and V are read once for all of them.
    """
    queries = nodes.reshape("queries", q, [spec.kv_heads, -1, spec.head_dim])
    weights = nodes.op("weights", "Softmax", _scores(nodes, spec, queries, keys), axis=-1)
    heads = nodes.op("attended", "MatMul", weights, values)
    return nodes.reshape("attended_rows", heads, [1, spec.q_size])


def _attend_masked(nodes: _Nodes, spec: AttentionSpec, q: str, keys: str, values: str) -> str:
    """[tokens, heads * head_dim]: as in `_attend`, the mask shared by all heads."""
    group = spec.heads // spec.kv_heads
    split = nodes.reshape("q_split", q, [-1, spec.kv_heads, group, spec.head_dim])
    grouped = nodes.op("q_grouped", "Transpose", split, perm=[1, 2, 0, 3])
    queries = nodes.reshape("queries", grouped, [spec.kv_heads, -1, spec.head_dim])
    scores = _scores(nodes, spec, queries, keys)

    # One mask serves all heads: the scores are seen as [heads, tokens, context] while it is added.
    per_head = nodes.reshape("scores_per_head", scores, [spec.heads, -1, 0])
    masked = nodes.op("scores_masked", "Add", per_head, _mask(nodes, spec.window))
    weights = nodes.op("weights", "Softmax", masked, axis=-1)
    weights = nodes.reshape("weights_grouped", weights, [spec.kv_heads, -1, 0])

    attended = nodes.op("attended", "MatMul", weights, values)
    heads = nodes.reshape("attended_heads", attended, [spec.kv_heads, group, -1, spec.head_dim])
    rows = nodes.op("attended_by_token", "Transpose", heads, perm=[2, 0, 1, 3])
    return nodes.reshape("attended_rows", rows, [-1, spec.q_size])


def _mask(nodes: _Nodes, window: int | None) -> str:
    """[tokens, context] float32: 0 where the query sees the key, -inf elsewhere."""
    one = nodes.ints("one", [1])
    last = nodes.op("last_position", "Gather", "positions", nodes.ints("last_row", [-1]), axis=0)
    context = nodes.op("context_length", "Shape", "context_slots")
    before = nodes.op("before_context", "Sub", last, context)
    count = nodes.op("context_count", "Squeeze", context)
    zero, step = nodes.constant("zero", np.array(0, np.int64)), nodes.constant("step", np.array(1, np.int64))
    offsets = nodes.op("context_offsets", "Range", zero, count, step)
    first = nodes.op("context_start", "Add", before, one)
    key_positions = nodes.op("key_positions", "Add", offsets, first)
    query_positions = nodes.op("query_positions", "Unsqueeze", "positions", one)
    seen = nodes.op("not_future", "LessOrEqual", key_positions, query_positions)
    if window is not None:
        oldest = nodes.op("before_window", "Sub", query_positions, nodes.ints("window", [window]))
        recent = nodes.op("in_window", "Greater", key_positions, oldest)
        seen = nodes.op("seen", "And", seen, recent)
    return nodes.op("mask", "Where", seen, nodes.scalar("visible", 0.0), nodes.scalar("hidden", -np.inf))
