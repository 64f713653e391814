"""Random mixed batches, what a backend gives for them, and the truth about them.

The truth knows no pages, no chunks and no steps: it is attention over the whole sequence at once, in
float64, with the RoPE of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from cleave.export.batchless import batchless_graphs
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

MAX_POSITION = 512
GPU = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the backends for GPUs run; on the CPU in Triton's interpreter (see conftest.py)."""
LONGEST = 150 if GPU == "cuda" else 80
"""Tokens of a sequence in a step, at most, for these backends: the interpreter takes long over more."""
ON_GPU = ("triton", "flashinfer")
if GPU == "cpu" and find_spec("triton"):
    from fused import round_once

    round_once()

HALVES = {"float32": 3e-5, "float16": 4e-3, "bfloat16": 4e-2}
"""dtype -> tolerance of results in it, absolute and relative."""


@dataclass(frozen=True)
class Case:
    """Layers, how many tokens of each sequence every step has, and what the rest is drawn from."""

    specs: tuple[AttentionSpec, ...]
    steps: tuple[tuple[int, ...], ...]
    page_size: int
    seed: int


def options(backend: str, specs: tuple[AttentionSpec, ...]) -> dict[str, Any]:
    """What the backend is made with besides its shape."""
    if backend == "onnx":
        graphs = {spec: tuple(map(serialized, batchless_graphs(spec))) for spec in set(specs)}
        return {"graphs": [graphs[spec] for spec in specs], "threads": 1}
    if backend in ON_GPU:
        return {"device": GPU, "dtype": "float32"}
    return {"threads": 1} if backend == "cpu" else {}


def serialized(graph: onnx.ModelProto) -> bytes:
    return bytes(graph.SerializeToString())


def rope_specs(head_dim: int) -> st.SearchStrategy[RopeSpec | None]:
    scaled = {
        "default": {},
        "linear": {"factor": 4.0},
        "llama3": {"factor": 8.0, "original_max_position": 64},
        "yarn": {"factor": 4.0, "original_max_position": 64, "attention_factor": 1.1386294},
    }
    rope = st.builds(
        lambda kind, base, rotary_dim: RopeSpec(kind, base, rotary_dim, **scaled[kind]),
        st.sampled_from(list(scaled)),
        st.sampled_from([100.0, 10_000.0, 500_000.0]),
        st.one_of(st.just(head_dim // 2 * 2), st.integers(1, head_dim // 2).map(lambda half: 2 * half)),
    )
    return rope if head_dim == 2 else st.one_of(rope, rope, st.none())


@st.composite
def attention_specs(draw: st.DrawFn) -> AttentionSpec:
    kv_heads = draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([2, 5, 8, 16, 20, 33, 48, 64, 80, 112]))
    return AttentionSpec(
        heads=kv_heads * draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13])),
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=draw(st.sampled_from([head_dim**-0.5, 0.05, 0.7])),
        rope=draw(rope_specs(head_dim)),
        window=draw(st.one_of(st.none(), st.integers(1, 40), st.integers(100, 200))),
        softcap=draw(st.one_of(st.none(), st.none(), st.sampled_from([2.0, 30.0]))),
    )


@st.composite
def cases(draw: st.DrawFn, longest: int = 150) -> Case:
    """A step has up to `longest` tokens of a sequence."""
    sequences = draw(st.integers(1, 4))
    count = st.one_of(
        st.just(1), st.just(1), st.just(0), st.integers(2, 40), st.integers(longest - 50, longest)
    )
    step = st.tuples(*[count] * sequences).filter(any)
    return Case(
        specs=tuple(draw(st.lists(attention_specs(), min_size=1, max_size=2))),
        steps=tuple(draw(st.lists(step, min_size=1, max_size=4))),
        page_size=draw(st.sampled_from([16, 32, 48])),
        seed=draw(st.integers(0, 1 << 20)),
    )


def rotated(rope: RopeSpec | None, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE by transformers, q and k [1, heads, tokens, head_dim]."""
    if rope is None:
        return q, k
    parameters: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.base}
    if rope.kind != "default":
        parameters["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn"):
        parameters["original_max_position_embeddings"] = rope.original_max_position
    if rope.kind == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        parameters["attention_factor"] = rope.attention_factor
    config = LlamaConfig(
        head_dim=rope.rotary_dim, max_position_embeddings=1 << 16, rope_parameters=parameters
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(()), torch.arange(q.shape[2])[None])
    both: tuple[torch.Tensor, torch.Tensor] = apply_rotary_pos_emb(q, k, cos.double(), sin.double())
    return both


def truth(spec: AttentionSpec, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of one whole sequence, [tokens, heads * head_dim]."""
    queries, keys, values = (
        torch.from_numpy(x).double().view(1, len(x), -1, spec.head_dim).transpose(1, 2) for x in (q, k, v)
    )
    queries, keys = rotated(spec.rope, queries, keys)
    seen = torch.ones(len(q), len(q), dtype=torch.bool).tril()
    if spec.window is not None:
        seen = seen.triu(1 - spec.window)
    if spec.softcap is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, scale=spec.scale, enable_gqa=True
        ).transpose(1, 2)
    else:
        layer = SimpleNamespace(
            num_key_value_groups=spec.heads // spec.kv_heads, training=False, head_dim=spec.head_dim
        )
        mask = torch.zeros(len(q), len(q), dtype=torch.float64).masked_fill(~seen, -torch.inf)
        out, _ = eager_attention_forward(
            layer, queries, keys, values, mask, scaling=spec.scale, softcap=spec.softcap
        )
    return out.reshape(len(q), spec.q_size).numpy()


def mix_pages(server: AttentionServer, rng: np.random.Generator) -> None:
    """Leave the free pages in random order, by opening and closing sequences."""
    names = range(1_000, 1_000 + server.num_pages)
    for name in names:
        server.open(name)
        server.plan([Chunk(name, 0, 1)])
        server.commit()
    for name in rng.permutation(names):
        server.close(int(name))


def served(
    backend: str, case: Case, data: list[list[tuple[np.ndarray, ...]]], **changed: Any
) -> list[list[np.ndarray]]:
    """What the backend gives for every sequence and layer, step by step; data[sequence][layer] is q, k, v.

    `changed` are other options than the usual ones; with a `dtype` among them tensors have that one.
    """
    settings = options(backend, case.specs) | changed
    lengths = [sum(step[i] for step in case.steps) for i in range(len(data))]
    server = AttentionServer(
        case.specs,
        backend=backend,
        num_pages=sum(-(-length // case.page_size) for length in lengths) + 1,
        page_size=case.page_size,
        max_position=max(MAX_POSITION * 2, *lengths),
        max_tokens=sum(lengths),
        **settings,
    )
    rng = np.random.default_rng(case.seed)
    mix_pages(server, rng)
    for sequence in range(len(data)):
        server.open(sequence)
    outs = [[np.empty_like(q) for q, _, _ in layers] for layers in data]
    at = [0] * len(data)
    for counts in case.steps:
        order = [int(i) for i in rng.permutation(len(data)) if counts[i]]
        server.plan([Chunk(i, at[i], counts[i]) for i in order])
        for layer, spec in enumerate(case.specs):
            q, k, v = (
                np.concatenate([data[i][layer][tensor][at[i] : at[i] + counts[i]] for i in order])
                for tensor in range(3)
            )
            out = np.full((len(q), spec.q_size), np.nan, np.float32)
            if backend in ON_GPU:
                run_on_tensors(server, layer, q, k, v, out, settings["dtype"])
            else:
                server.run(layer, q, k, v, out)
            first = 0
            for i in order:
                outs[i][layer][at[i] : at[i] + counts[i]] = out[first : first + counts[i]]
                first += counts[i]
        server.commit()
        for i in order:
            at[i] += counts[i]
    server.check()
    server.shutdown()
    return outs


def run_on_tensors(server: AttentionServer, layer: int, *arrays: Any) -> None:
    """The layer on columns of one tensor, as engines have them; `arrays` are q, k, v, out and the dtype."""
    *inputs, out, dtype = arrays
    fused = torch.from_numpy(np.concatenate(inputs, axis=1)).to(GPU, getattr(torch, dtype))
    result = torch.from_numpy(out).to(fused)
    server.run(layer, *fused.split([x.shape[1] for x in inputs], dim=1), result)
    out[:] = result.float().cpu().numpy()


def draw_data(case: Case) -> list[list[tuple[np.ndarray, ...]]]:
    rng = np.random.default_rng(case.seed)
    return [
        [
            tuple(
                rng.standard_normal((sum(step[i] for step in case.steps), width), dtype=np.float32)
                for width in (spec.q_size, spec.kv_size, spec.kv_size)
            )
            for spec in case.specs
        ]
        for i in range(len(case.steps[0]))
    ]


def check_halves(
    case: Case, dtype: str, spread: float = 1.0, backend: str = "triton", **options: Any
) -> None:
    """The kernels for GPUs against the truth about tensors that were rounded to `dtype` first.

    `spread` is how much larger than usual the scores are.
    """
    tolerance = HALVES[dtype] * spread
    data = draw_data(case)
    for outs, layers in zip(served(backend, case, data, dtype=dtype, **options), data, strict=True):
        for spec, out, (q, k, v) in zip(case.specs, outs, layers, strict=True):
            if len(q):
                rounded = (torch.from_numpy(x).to(getattr(torch, dtype)).float().numpy() for x in (q, k, v))
                np.testing.assert_allclose(out, truth(spec, *rounded), rtol=tolerance, atol=tolerance)
